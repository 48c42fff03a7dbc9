//! The key of the cache: 32 random bytes in a file of their own, which is made where there is none.
//!
//! It lies apart from what it opens: neither in the directory of the cache or below, nor in one that the cache lies below. Whoever
//! copies the one (a volume, a backup) does not thereby have the other. Against whoever reads both, root of the machine for instance,
//! it is no help. It is refused if anybody else could have read it or put it there.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use fender_config::snapshot::Storage;
use fender_runtime::random;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use zeroize::Zeroizing;

use super::{directory, hexadecimal};
use crate::deliver::directory as steps;

const LENGTH: usize = 32;

/// What the keys of the files are derived from.
pub(super) struct Key(Zeroizing<[u8; LENGTH]>);

impl Key {
    /// The one at `path`, for a cache in `cache`. The error names the file, and the way out.
    pub(super) fn open(path: &Path, cache: &Path) -> Result<Self, String> {
        let shown = path.display();
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(format!("`{shown}` names no file"));
        };
        let parent_there = steps::open(parent, Storage::Disk).map_err(|error| error.to_string())?;
        let real = |path: &Path| {
            let real = path.canonicalize();
            real.map_err(|error| format!("`{}`: {error}", path.display()))
        };
        let (beside, cache) = (real(parent)?, real(cache)?);
        if beside.starts_with(&cache) || cache.starts_with(&beside) {
            return Err(format!(
                "`{shown}` lies together with the cache `{}`, and whoever copies the one would have the other; keep it in a \
                 directory of its own, better still on another volume",
                cache.display()
            ));
        }
        if let Some(key) = read(&parent_there, path, name)? {
            return Ok(key);
        }
        let made = make(&parent_there, name);
        made.map_err(|errno| format!("cannot make `{shown}`: {}", std::io::Error::from(errno)))?;
        tracing::info!(path = %shown, "made the key of the credentials cache");
        read(&parent_there, path, name)?.ok_or_else(|| format!("`{shown}` is gone again"))
    }

    pub(super) fn expose(&self) -> &[u8] {
        &*self.0
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn of(bytes: [u8; LENGTH]) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

/// None if there is none.
fn read(parent: &OwnedFd, path: &Path, name: &std::ffi::OsStr) -> Result<Option<Key>, String> {
    let shown = path.display();
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::LOOP) => {
            return Err(format!(
                "`{shown}` is a symbolic link; write the path it leads to"
            ));
        }
        opened => opened.map_err(|errno| format!("`{shown}`: {}", std::io::Error::from(errno)))?,
    };
    let stat = rustix::fs::fstat(&opened);
    let stat = stat.map_err(|errno| format!("`{shown}`: {}", std::io::Error::from(errno)))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(format!("`{shown}` is not a regular file"));
    }
    let own = rustix::process::geteuid().as_raw();
    if stat.st_uid != own && stat.st_uid != 0 {
        return Err(format!(
            "`{shown}` belongs to the user {}, who knows it then; make it this user's, {own}",
            stat.st_uid
        ));
    }
    if stat.st_mode & directory::OTHERS != 0 {
        return Err(format!(
            "`{shown}` is open to others (mode {:o}); `chmod go= {shown}`, or remove it to have another made",
            stat.st_mode & 0o7777
        ));
    }
    let mut bytes = Zeroizing::new([0; LENGTH]);
    let mut file = File::from(opened);
    let whole = file.read_exact(&mut *bytes).is_ok();
    let mut no_more = || file.read(&mut [0]).is_ok_and(|more| more == 0);
    if !whole || !no_more() {
        return Err(format!(
            "`{shown}` does not hold {LENGTH} bytes; remove it to have another made, which opens nothing that is kept by now"
        ));
    }
    Ok(Some(Key(bytes)))
}

/// Whole or not at all, and never in the place of another.
fn make(parent: &OwnedFd, name: &std::ffi::OsStr) -> Result<(), Errno> {
    let bytes: Zeroizing<[u8; LENGTH]> = Zeroizing::new(random::bytes());
    let beside = format!(".{}.new", hexadecimal(&random::bytes::<8>()));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    let opened = rustix::fs::openat(parent, &*beside, flags, mode)?;
    let mut file = File::from(opened);
    let written = file
        .write_all(&*bytes)
        .and_then(|()| file.sync_all())
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO));
    let linked = written.and_then(|()| {
        match rustix::fs::linkat(parent, &*beside, parent, name, AtFlags::empty()) {
            // Another process was faster: its key is the one.
            Err(Errno::EXIST) => Ok(()),
            linked => linked,
        }
    });
    let _ = rustix::fs::unlinkat(parent, &*beside, AtFlags::empty());
    linked?;
    rustix::fs::fsync(parent.as_fd())
}
