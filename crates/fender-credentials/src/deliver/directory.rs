//! Opening the directory a secret is written to, one step at a time.
//!
//! Each step is taken from the descriptor of the last and follows no link, so that the directory
//! which was checked is the one that is written to.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use fender_config::snapshot::Storage;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::DeliveryError;

const STEP: OFlags = OFlags::PATH
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

const TMPFS: u64 = 0x0102_1994;
const RAMFS: u64 = 0x8584_58f6;

/// Opens `path` if it is fit for a secret.
pub(crate) fn open(path: &Path, storage: Storage) -> Result<OwnedFd, DeliveryError> {
    let mut walked = PathBuf::from("/");
    let mut here = rustix::fs::openat(CWD, "/", STEP, Mode::empty())
        .map_err(DeliveryError::failed(&walked, "open"))?;
    let mut stat = look(&here, &walked)?;
    for part in path.components() {
        let Component::Normal(name) = part else {
            continue;
        };
        let shared = passable(&stat, &walked)?;
        walked.push(name);
        here = rustix::fs::openat(&here, name, STEP, Mode::empty())
            .map_err(|errno| explain(&here, name, errno, &walked))?;
        stat = look(&here, &walked)?;
        if shared == Shared::Sticky && !is_trusted(&stat) {
            let why = "belongs to somebody else, in a directory everybody may write to";
            return Err(DeliveryError::unfit(&walked, why));
        }
    }
    if stat.st_mode & Mode::WOTH.as_raw_mode() != 0 {
        let why = "is a directory everybody may write to; name one that only its owner may write to, perhaps one that is made in it";
        return Err(DeliveryError::unfit(path, why));
    }
    fit(&here, path, storage)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(&here, ".", flags, Mode::empty())
        .map_err(DeliveryError::failed(path, "open"))
}

/// Who else may put things into a directory.
#[derive(Clone, Copy, PartialEq)]
enum Shared {
    No,
    /// Everybody, but each may only touch their own.
    Sticky,
}

fn passable(stat: &Stat, path: &Path) -> Result<Shared, DeliveryError> {
    let everybody = stat.st_mode & Mode::WOTH.as_raw_mode() != 0;
    let sticky = stat.st_mode & Mode::SVTX.as_raw_mode() != 0;
    match (everybody, sticky) {
        (false, _) => Ok(Shared::No),
        (true, true) => Ok(Shared::Sticky),
        (true, false) => {
            let why =
                "is a directory everybody may write to, so everything below it could be swapped";
            Err(DeliveryError::unfit(path, why))
        }
    }
}

fn is_trusted(stat: &Stat) -> bool {
    stat.st_uid == 0 || stat.st_uid == rustix::process::geteuid().as_raw()
}

fn fit(directory: &OwnedFd, path: &Path, storage: Storage) -> Result<(), DeliveryError> {
    match storage {
        Storage::Disk => Ok(()),
        Storage::Memory => {
            if is_in_memory(directory).map_err(DeliveryError::failed(path, "look at"))? {
                return Ok(());
            }
            let why = "is not on tmpfs; mount one there, or write `storage: disk` in the document";
            Err(DeliveryError::unfit(path, why))
        }
    }
}

/// Whether it is of a file system that is nowhere else.
pub(crate) fn is_in_memory(file: impl AsFd) -> Result<bool, Errno> {
    let file_system = rustix::fs::fstatfs(file)?;
    Ok(matches!(file_system.f_type as u64, TMPFS | RAMFS))
}

fn look(directory: &OwnedFd, path: &Path) -> Result<Stat, DeliveryError> {
    rustix::fs::fstat(directory).map_err(DeliveryError::failed(path, "look at"))
}

fn explain(parent: &OwnedFd, name: &std::ffi::OsStr, errno: Errno, path: &Path) -> DeliveryError {
    let kind = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
        .map(|stat| FileType::from_raw_mode(stat.st_mode));
    match kind {
        Ok(FileType::Symlink) => {
            DeliveryError::unfit(path, "is a symbolic link; write the path it leads to")
        }
        Err(Errno::NOENT) => DeliveryError::unfit(path, "does not exist; make the directory first"),
        _ => DeliveryError::failed(path, "open")(errno),
    }
}
