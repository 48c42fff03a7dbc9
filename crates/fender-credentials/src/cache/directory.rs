//! The directory of the cache, opened once: of this user alone, reached by no link, and every file in it by the descriptor.
//!
//! Files are replaced for good or not at all, and read only if nobody else could have written or read them.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fender_config::snapshot::Storage;
use fender_runtime::random;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::hexadecimal;
use crate::deliver::DeliveryError;
use crate::deliver::directory as steps;

/// What nobody but the owner may.
pub(super) const OTHERS: u32 = 0o077;
/// More files than any sidecar has credentials.
const MOST_FILES: usize = 65_536;

pub(super) struct Directory {
    path: PathBuf,
    fd: OwnedFd,
}

impl Directory {
    /// Makes it if it is not there. The error names it, and the way out.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let failed = |errno: Errno| format!("`{shown}`: {}", io::Error::from(errno));
        let exposed = |mode: u32| {
            format!(
                "`{shown}` is open to others (mode {:o}); `chmod go= {shown}`",
                mode & 0o7777
            )
        };
        let there = rustix::fs::lstat(path);
        if let Ok(stat) = there
            && FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            && stat.st_mode & OTHERS != 0
        {
            return Err(exposed(stat.st_mode));
        }
        if let Err(Errno::NOENT) = there {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                return Err(format!("`{shown}` names no directory"));
            };
            let parent = step(parent)?;
            match rustix::fs::mkdirat(&parent, name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        let fd = step(path)?;
        let stat = rustix::fs::fstat(&fd).map_err(failed)?;
        let own = rustix::process::geteuid().as_raw();
        if stat.st_uid != own {
            return Err(format!(
                "`{shown}` belongs to the user {}; give it one of this process's user (uid {own})",
                stat.st_uid
            ));
        }
        if stat.st_mode & OTHERS != 0 {
            return Err(exposed(stat.st_mode));
        }
        let path = path.to_owned();
        Ok(Self { path, fd })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Everything in it that has a name that is text.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd)? {
            if names.len() >= MOST_FILES {
                return Err(io::Error::other("it holds too many files"));
            }
            let entry = entry?;
            if let Ok(name) = entry.file_name().to_str() {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// When a file was written last, counted from 1970.
    pub(super) fn modified(&self, name: &str) -> Option<Duration> {
        let stat = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        u64::try_from(stat.st_mtime).ok().map(Duration::from_secs)
    }

    /// The whole of a file of at most `most` bytes; none if there is none. The error says what is wrong, and the way out.
    pub(super) fn read(&self, name: &str, most: usize) -> Result<Option<Vec<u8>>, String> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err("is a symbolic link; remove it".to_owned()),
            opened => opened.map_err(cannot)?,
        };
        let stat = rustix::fs::fstat(&opened).map_err(cannot)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err("is not a regular file; remove it".to_owned());
        }
        if stat.st_uid != rustix::process::geteuid().as_raw() || stat.st_mode & OTHERS != 0 {
            return Err(format!(
                "is another user's or open to others (user {}, mode {:o}); remove it",
                stat.st_uid,
                stat.st_mode & 0o7777
            ));
        }
        let mut bytes = Vec::new();
        let mut whole = File::from(opened).take(most as u64 + 1);
        let read = whole.read_to_end(&mut bytes);
        read.map_err(|error| format!("cannot be read: {error}"))?;
        if bytes.len() > most {
            return Err(format!("is larger than {most} bytes; remove it"));
        }
        Ok(Some(bytes))
    }

    /// Written beside, synced, renamed, and the directory synced.
    pub(super) fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let beside = format!(".{name}.{}", hexadecimal(&random::bytes::<8>()));
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let mut file = File::from(rustix::fs::openat(&self.fd, &*beside, flags, mode)?);
        let written = file
            .write_all(bytes)
            .and_then(|()| file.sync_all())
            .and_then(|()| Ok(rustix::fs::renameat(&self.fd, &*beside, &self.fd, name)?));
        if written.is_err() {
            let _ = rustix::fs::unlinkat(&self.fd, &*beside, AtFlags::empty());
        }
        written?;
        Ok(rustix::fs::fsync(&self.fd)?)
    }

    /// Whether there was one; it is no mistake that there is none.
    pub(super) fn remove(&self, name: &str) -> io::Result<bool> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) => {
                rustix::fs::fsync(&self.fd)?;
                Ok(true)
            }
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

fn cannot(errno: Errno) -> String {
    format!("cannot be read: {}", io::Error::from(errno))
}

/// Opened step by step, by no link, through nothing that others may swap.
fn step(path: &Path) -> Result<OwnedFd, String> {
    steps::open(path, Storage::Disk).map_err(|error: DeliveryError| error.to_string())
}
