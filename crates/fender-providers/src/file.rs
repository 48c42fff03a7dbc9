//! A secret in a file, put there by an orchestrator, an agent or a person.
//!
//! The path is followed through symbolic links, because Kubernetes swaps a `..data` link to change
//! a mounted secret. What is opened must be a regular file of at most [`LIMIT`] bytes, and not empty:
//! a pipe would block, a device would never end, and an empty file is one that is being written.
//!
//! Changes are found by looking every half second. File notifications do not cross network file
//! systems or bind mounts reliably, and looking costs little.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fender_identity::Secret;
use fender_runtime::deadline::Deadline;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use tokio::sync::Mutex;

use crate::known::Known;
use crate::{FetchError, Fetched, Source};

/// The most a secret may weigh.
pub const LIMIT: u64 = 1024 * 1024;

/// How often it is looked at.
pub(crate) const INTERVAL: Duration = Duration::from_millis(500);

/// A file system that takes longer than this is away.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who may have to do with a file, beside root and this process's user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    Any,
    /// Whoever may read it, and nobody who can have written it.
    Readers,
    None,
}

/// A secret in a file.
#[derive(Debug)]
pub struct FileSource {
    path: Arc<Path>,
    /// The directory that no link may lead out of.
    root: Option<Arc<Path>>,
    /// The most it may weigh.
    limit: u64,
    /// Who else may have to do with it.
    others: Others,
    /// Also held by the thread that reads, so that a file system that hangs holds up one only.
    last: Arc<Mutex<Known>>,
}

impl FileSource {
    /// The file at `path`, wherever its links lead.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into().into(),
            root: None,
            limit: LIMIT,
            others: Others::Any,
            last: Arc::default(),
        }
    }

    /// The file at `path`, as long as it lies below `root`, links included. An absolute link counts
    /// as one that leads out.
    pub fn below(root: &Path, path: impl Into<PathBuf>) -> Self {
        Self {
            root: Some(root.into()),
            ..Self::new(path)
        }
    }

    /// The same with a bound of its own.
    pub fn of_at_most(self, limit: u64) -> Self {
        Self { limit, ..self }
    }

    /// The same, refused if anybody but root and this process's user owns it or may write to it.
    pub fn written_by_no_other(self) -> Self {
        Self {
            others: Others::Readers,
            ..self
        }
    }

    /// The same, refused if anybody but root and this process's user owns it, may read it or may write to it.
    pub fn seen_by_no_other(self) -> Self {
        Self {
            others: Others::None,
            ..self
        }
    }
}

impl Source for FileSource {
    async fn fetch(&self) -> Result<Fetched, FetchError> {
        let away = |why: &str| FetchError::Outage(format!("`{}` {why}", self.path.display()));
        let read = async {
            let last = self.last.clone().lock_owned().await;
            let (path, root) = (self.path.clone(), self.root.clone());
            let (limit, others) = (self.limit, self.others);
            tokio::task::spawn_blocking(move || {
                let value = read(&path, root.as_deref(), limit, others)?;
                Ok(last.fetched(value))
            })
            .await
        };
        match Deadline::after(PATIENCE).bound(read).await {
            Ok(Ok(fetched)) => fetched,
            Ok(Err(_)) => Err(away("could not be read")),
            Err(_) => Err(away("took too long to read")),
        }
    }

    fn interval(&self) -> Duration {
        INTERVAL
    }
}

fn read(
    path: &Path,
    root: Option<&Path>,
    limit: u64,
    others: Others,
) -> Result<Secret, FetchError> {
    let failed = |error| blame(path, &error);
    let malformed = |why: &str| FetchError::Malformed(format!("`{}` {why}", path.display()));

    let file = open(path, root).map_err(failed)?;
    let before = file.metadata().map_err(failed)?;
    if !before.is_file() {
        return Err(malformed("is not a regular file"));
    }
    if let Some(why) = too_open(path, &before, others) {
        return Err(FetchError::Denied(format!("`{}` {why}", path.display())));
    }
    if before.len() > limit {
        return Err(malformed(&format!("is larger than {}", weight(limit))));
    }
    let value = read_bounded(&file, before.len()).map_err(failed)?;
    let after = file.metadata().map_err(failed)?;
    if version(&before) != version(&after) {
        return Err(malformed("changed while it was read"));
    }
    if value.is_empty() {
        return Err(malformed("is empty"));
    }
    Ok(value)
}

/// Who else has to do with it, and must not.
fn too_open(path: &Path, file: &Metadata, others: Others) -> Option<String> {
    let (refused, what, right) = match others {
        Others::Any => return None,
        Others::Readers => (0o022, "written", "go-w"),
        Others::None => (0o077, "read or written", "600"),
    };
    let (owner, us) = (file.uid(), rustix::process::geteuid().as_raw());
    if owner != 0 && owner != us {
        return Some(format!(
            "belongs to user {owner}, who is neither root nor this process's user {us}"
        ));
    }
    let mode = file.mode() & 0o7777;
    (mode & refused != 0).then(|| {
        let path = path.display();
        format!("may be {what} by others than its owner (mode {mode:o}); `chmod {right} {path}`")
    })
}

fn open(path: &Path, root: Option<&Path>) -> io::Result<File> {
    // Opening a pipe returns at once, to be refused.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Some(root) = root else {
        return Ok(rustix::fs::open(path, flags, Mode::empty())?.into());
    };
    let outside = || io::Error::new(io::ErrorKind::PermissionDenied, "outside its directory");
    let relative = path.strip_prefix(root).map_err(|_| outside())?;
    let root = rustix::fs::open(root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let below = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(root, relative, flags, Mode::empty(), below) {
        Err(Errno::XDEV) => Err(outside()),
        opened => Ok(opened?.into()),
    }
}

/// A bound as people read it.
fn weight(limit: u64) -> String {
    const KIB: u64 = 1024;
    const MIB: u64 = 1024 * KIB;
    if limit.is_multiple_of(MIB) {
        format!("{} MiB", limit / MIB)
    } else {
        format!("{} KiB", limit / KIB)
    }
}

/// Whose failure it is.
fn blame(path: &Path, error: &io::Error) -> FetchError {
    let why = format!("`{}`: {error}", path.display());
    let kind = error.kind();
    if matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) {
        FetchError::Missing(why)
    } else if kind == io::ErrorKind::PermissionDenied {
        FetchError::Denied(why)
    } else {
        FetchError::Outage(why)
    }
}

/// Reads into one allocation, so that growing leaves no copy of the secret behind.
fn read_bounded(file: &File, length: u64) -> io::Result<Secret> {
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
    let read = file.take(length).read_to_end(&mut bytes);
    let value = Secret::new(bytes);
    read.map(|_| value)
}

/// What differs when a file was written to.
fn version(file: &Metadata) -> impl PartialEq + use<> {
    (
        file.len(),
        file.mtime(),
        file.mtime_nsec(),
        file.ctime(),
        file.ctime_nsec(),
    )
}

#[cfg(test)]
mod tests;
