//! A secret as a file: whole or not at all, for its reader only, where nobody else can meddle. Several that change together are
//! in `set`.
//!
//! A new value is written beside the old one (0600 from its first moment), given its owner and mode,
//! synced and renamed over it, all relative to a descriptor of the directory, so that nobody can
//! swap a part of the path in between. Equal bytes are left alone, their owner and mode put right.
//!
//! Refused: a path through a symbolic link; a directory that everybody may write to, sticky or not;
//! one that lies on a disk, unless the document says so; documents from elsewhere that name a place
//! nobody on this machine allowed.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use fender_config::snapshot::{FileDelivery, ServedName, Storage};
use fender_identity::Secret;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Stat, Uid};

use crate::allow::{AllowDirs, NotAllowed};
use crate::certificate::CertificateError;
use crate::render::RenderError;

pub(crate) mod accounts;
pub(crate) mod directory;
pub(crate) mod set;

/// What a new value is written to before it takes its name. Fixed, so that what a crash leaves
/// behind is found and replaced.
const TEMPORARY: &str = ".fender-new";

/// Where a secret is to be written, and how: a [`FileDelivery`] that may be carried out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Place {
    path: PathBuf,
    directory: PathBuf,
    name: OsString,
    mode: Mode,
    owner: Option<Uid>,
    group: Option<Gid>,
    storage: Storage,
}

/// A file that holds a secret because we put it there.
#[derive(Debug)]
pub struct Delivered {
    place: Place,
    device: u64,
    inode: u64,
}

/// Whether the value was new to the file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Change {
    Written,
    Unchanged,
}

/// Why a secret was not delivered.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// The document may not name this path.
    #[error("file {0}")]
    NotAllowed(#[from] NotAllowed),
    /// The place is not fit for a secret, and does not become so by itself.
    #[error("`{}` {why}", path.display())]
    Unfit { path: PathBuf, why: String },
    /// The operating system refused.
    #[error("cannot {action} `{}`: {error}", path.display())]
    Failed {
        path: PathBuf,
        action: &'static str,
        error: io::Error,
    },
    /// It is handed over at a socket, and this process has none.
    #[error(
        "is handed over at a socket, and none is open here; name one with --credentials-socket"
    )]
    NoSocket,
    /// It is served at a URL, and this process has none.
    #[error("is served at a URL, and none is open here; name an address with --credentials-url")]
    NoUrl,
    /// The document or the value does not allow for it.
    #[error("`{name}` {why}")]
    Unserved { name: ServedName, why: String },
    /// The value does not become what the document wants.
    #[error("`{}` cannot be made: {error}", path.display())]
    Unrendered { path: PathBuf, error: RenderError },
    /// It would be seen in what the application writes.
    #[error("is not delivered: {why}")]
    Unmasked { why: String },
    /// The value is not what a port is to show.
    #[error(
        "is no certificate that the ports naming it can show: {0}; put chain and key that belong together, and are for their \
         `names`, into its source"
    )]
    NoCertificate(#[from] CertificateError),
    /// There is no place in memory for it.
    #[error("cannot {action}: {error}")]
    Unsealed {
        action: &'static str,
        error: io::Error,
    },
}

impl DeliveryError {
    fn unfit(path: &Path, why: impl Into<String>) -> Self {
        Self::Unfit {
            path: path.to_owned(),
            why: why.into(),
        }
    }

    fn failed(path: &Path, action: &'static str) -> impl Fn(rustix::io::Errno) -> Self {
        move |errno| Self::Failed {
            path: path.to_owned(),
            action,
            error: errno.into(),
        }
    }
}

impl Place {
    /// Resolves names and checks that the document may have its way. Looks at no directory yet:
    /// that is done at each write, because directories change.
    pub fn new(delivery: &FileDelivery, allow: &AllowDirs) -> Result<Self, DeliveryError> {
        let path = &delivery.path;
        allow.check(path)?;
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(DeliveryError::unfit(path, "names no file"));
        };
        let unfit = |why| DeliveryError::unfit(path, why);
        let owner = delivery
            .owner
            .as_deref()
            .map(|owner| accounts::user(owner, "owner"))
            .transpose()
            .map_err(unfit)?;
        let group = delivery
            .group
            .as_deref()
            .map(accounts::group)
            .transpose()
            .map_err(unfit)?;
        Ok(Self {
            path: path.clone(),
            directory: directory.to_owned(),
            name: name.to_owned(),
            mode: Mode::from_raw_mode(delivery.mode & 0o777),
            owner,
            group,
            storage: delivery.storage,
        })
    }

    /// Whose the file is: the user of its document, or this one.
    pub(crate) fn user(&self) -> u32 {
        self.owner.unwrap_or_else(rustix::process::geteuid).as_raw()
    }

    /// The file it names.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the file hold `value`. Blocks.
    pub fn write(&self, value: &Secret) -> Result<(Delivered, Change), DeliveryError> {
        let directory = directory::open(&self.directory, self.storage)?;
        if let Some(file) = holding(&directory, &self.name, self.owner, value) {
            self.restrict(&file)?;
            return Ok((self.delivered(&file)?, Change::Unchanged));
        }
        let temporary = Temporary::create(self, &directory)?;
        temporary.fill(value)?;
        self.restrict(&temporary.file)?;
        let file = temporary.take_name()?;
        Ok((self.delivered(&file)?, Change::Written))
    }

    fn restrict(&self, file: &File) -> Result<(), DeliveryError> {
        restrict(file, &self.path, self.owner, self.group, self.mode)
    }

    fn delivered(&self, file: &File) -> Result<Delivered, DeliveryError> {
        let stat = rustix::fs::fstat(file).map_err(DeliveryError::failed(&self.path, "look at"))?;
        Ok(Delivered {
            place: self.clone(),
            device: stat.st_dev,
            inode: stat.st_ino,
        })
    }
}

impl Delivered {
    /// Where it is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Removes the file, unless somebody has put another in its place. Blocks.
    pub fn remove(&self) -> Result<(), DeliveryError> {
        let Place {
            directory,
            name,
            path,
            storage,
            ..
        } = &self.place;
        let directory = directory::open(directory, *storage)?;
        match rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if (stat.st_dev, stat.st_ino) == (self.device, self.inode) => {}
            Ok(_) | Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(DeliveryError::failed(path, "look at")(errno)),
        }
        rustix::fs::unlinkat(&directory, name, AtFlags::empty())
            .and_then(|()| rustix::fs::fsync(&directory))
            .map_err(DeliveryError::failed(path, "remove"))
    }
}

/// A file on its way to its name; removed if it does not get there.
struct Temporary<'a> {
    place: &'a Place,
    directory: &'a OwnedFd,
    name: OsString,
    file: File,
}

impl<'a> Temporary<'a> {
    fn create(place: &'a Place, directory: &'a OwnedFd) -> Result<Self, DeliveryError> {
        let mut name = OsString::from(".");
        name.push(&place.name);
        name.push(TEMPORARY);
        let _ = rustix::fs::unlinkat(directory, &name, AtFlags::empty());
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(directory, &name, flags, Mode::RUSR | Mode::WUSR).map_err(
            DeliveryError::failed(&place.path, "make a temporary file beside"),
        )?;
        Ok(Self {
            place,
            directory,
            name,
            file: file.into(),
        })
    }

    fn fill(&self, value: &Secret) -> Result<(), DeliveryError> {
        (&self.file)
            .write_all(value.expose())
            .map_err(|error| DeliveryError::Failed {
                path: self.place.path.clone(),
                action: "write",
                error,
            })
    }

    fn take_name(mut self) -> Result<File, DeliveryError> {
        let failed = |action| DeliveryError::failed(&self.place.path, action);
        rustix::fs::fsync(&self.file).map_err(failed("sync"))?;
        let directory = self.directory.as_fd();
        rustix::fs::renameat(directory, &self.name, directory, &self.place.name)
            .map_err(failed("rename a file to"))?;
        rustix::fs::fsync(directory).map_err(failed("sync the directory of"))?;
        self.name = OsString::new();
        self.file
            .try_clone()
            .map_err(|error| DeliveryError::Failed {
                path: self.place.path.clone(),
                action: "hold",
                error,
            })
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if self.name != OsStr::new("") {
            let _ = rustix::fs::unlinkat(self.directory, &self.name, AtFlags::empty());
        }
    }
}

/// The present file, if it is a plain one of ours that holds `value` already.
fn holding(
    directory: &OwnedFd,
    name: &OsStr,
    given_to: Option<Uid>,
    value: &Secret,
) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, name, flags, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&file).ok()?;
    let owner = Uid::from_raw(stat.st_uid);
    let ours = owner == rustix::process::geteuid() || Some(owner) == given_to;
    // Another name for the same file could be held by somebody we do not write for.
    let plain = is_file(&stat) && stat.st_nlink == 1;
    let length = u64::try_from(stat.st_size).ok()?;
    if !ours || !plain || length != value.len() as u64 {
        return None;
    }
    let file = File::from(file);
    let mut bytes = Vec::with_capacity(value.len());
    let read = (&file).take(length).read_to_end(&mut bytes);
    let present = Secret::new(bytes);
    (read.is_ok() && present.ct_eq(value)).then_some(file)
}

/// Owner first: giving a file away takes bits of its mode.
fn restrict(
    file: impl AsFd,
    path: &Path,
    owner: Option<Uid>,
    group: Option<Gid>,
    mode: Mode,
) -> Result<(), DeliveryError> {
    if owner.is_some() || group.is_some() {
        rustix::fs::fchown(&file, owner, group)
            .map_err(DeliveryError::failed(path, "set the owner of"))?;
    }
    rustix::fs::fchmod(&file, mode).map_err(DeliveryError::failed(path, "set the mode of"))
}

fn is_file(stat: &Stat) -> bool {
    rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file()
}

#[cfg(test)]
mod tests;
