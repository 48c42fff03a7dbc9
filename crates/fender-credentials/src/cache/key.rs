//! The key of the cache: 32 random bytes in a file of their own, which is made where there is none, or a credential of the service
//! manager, which is not.
//!
//! It lies apart from what it opens: neither in the directory of the cache or below, nor in one that the cache lies below. Whoever
//! copies the one (a volume, a backup) does not thereby have the other. Against whoever reads both, root of the machine for instance,
//! it is no help. It is refused if anybody else could have read it or put it there. A credential lies in memory: the service manager
//! has it from wherever it is kept, which may be a disk that it is encrypted on under a key of the machine's TPM.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use fender_config::snapshot::Storage;
use fender_runtime::random;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use zeroize::Zeroizing;

use super::hexadecimal;
use super::readers::strangers;
use crate::deliver::directory as steps;

const LENGTH: usize = 32;

/// Where the key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPlace {
    /// A file, which is made if it is not there.
    File(PathBuf),
    /// A credential of the service manager: its file below what that says in `CREDENTIALS_DIRECTORY`.
    Credential(PathBuf),
}

impl KeyPlace {
    /// The file of it.
    pub fn path(&self) -> &Path {
        match self {
            Self::File(path) | Self::Credential(path) => path,
        }
    }
}

/// What the keys of the files are derived from.
pub(super) struct Key(Zeroizing<[u8; LENGTH]>);

impl Key {
    /// The one there, for a cache in `cache`. The error names the file, and the way out.
    pub(super) fn open(place: &KeyPlace, cache: &Path) -> Result<Self, String> {
        let path = place.path();
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
        match (read(&parent_there, place, name)?, place) {
            (Some(key), _) => Ok(key),
            (None, KeyPlace::File(_)) => {
                let made = make(&parent_there, name);
                made.map_err(|errno| format!("cannot make `{shown}`: {}", io::Error::from(errno)))?;
                tracing::info!(path = %shown, "made the key of the credentials cache");
                read(&parent_there, place, name)?.ok_or_else(|| format!("`{shown}` is gone again"))
            }
            (None, KeyPlace::Credential(_)) => Err(format!(
                "there is no `{shown}`; give the unit `LoadCredentialEncrypted=` or `LoadCredential=` with this name"
            )),
        }
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
fn read(parent: &OwnedFd, place: &KeyPlace, name: &OsStr) -> Result<Option<Key>, String> {
    let shown = place.path().display();
    let failed = |error: io::Error| format!("`{shown}`: {error}");
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::LOOP) => {
            return Err(format!(
                "`{shown}` is a symbolic link; write the path it leads to"
            ));
        }
        opened => opened.map_err(|errno| failed(errno.into()))?,
    };
    let stat = rustix::fs::fstat(&opened).map_err(|errno| failed(errno.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(format!("`{shown}` is not a regular file"));
    }
    let own = rustix::process::geteuid().as_raw();
    if stat.st_uid != own && stat.st_uid != 0 {
        return Err(format!(
            "`{shown}` belongs to the user {}, who knows it then; have it belong to this process's user (uid {own})",
            stat.st_uid
        ));
    }
    if let Some(who) = strangers(&opened, &stat, own).map_err(failed)? {
        let way_out = match place {
            KeyPlace::File(_) => format!("`chmod go= {shown}`, or remove it to have another made"),
            KeyPlace::Credential(_) => format!(
                "nobody but this process's user (uid {own}) may read it: let the service manager give it to the unit itself, whose `User=` that is"
            ),
        };
        return Err(format!("`{shown}` {who}; {way_out}"));
    }
    if matches!(place, KeyPlace::Credential(_))
        && !steps::is_in_memory(&opened).map_err(|errno| failed(errno.into()))?
    {
        return Err(format!(
            "`{shown}` does not lie in memory (tmpfs or ramfs), as what a service manager gives does; a key that lies on a disk is \
             named by --credentials-cache-key"
        ));
    }
    let mut bytes = Zeroizing::new([0; LENGTH]);
    let mut file = File::from(opened);
    let whole = file.read_exact(&mut *bytes).is_ok();
    let mut no_more = || file.read(&mut [0]).is_ok_and(|more| more == 0);
    if !whole || !no_more() {
        return Err(format!(
            "`{shown}` does not hold {LENGTH} bytes; {}",
            match place {
                KeyPlace::File(_) =>
                    "remove it to have another made, which opens nothing that is kept by now",
                KeyPlace::Credential(_) =>
                    "they are to be random, as they are: `head -c 32 /dev/urandom`",
            }
        ));
    }
    Ok(Some(Key(bytes)))
}

/// Whole or not at all, and never in the place of another.
fn make(parent: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
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
