//! The directory in which a sidecar keeps who it is, so that a restart needs no new token and no control plane.
//!
//! It is closed to everybody else (0700, files 0600), belongs to one process at a time, and changes one whole file at a
//! time: a crash leaves the old file or the new one. Whoever can read it is the workload; it is not encrypted.
//!
//! A successor visits the directory of its predecessor: it reads who it is and writes nothing, until it is handed the
//! lock, which is an open file and so is never let go of in between.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fender_config::snapshot::Snapshot;
use fender_identity::csr::NewKey;
use fender_identity::{Secret, Svid, Trust};
use fender_runtime::clock::UnixTime;
use fender_runtime::file;
use fender_runtime::id::OpaqueId;
use prost::Message as _;
use rustix::fs::OFlags;
use zeroize::Zeroizing;

use crate::convert::InvalidField;
use crate::proto::control::v1 as proto;
use crate::tls::MAX_MESSAGE;

const LOCK: &str = "lock";
/// The private key and the chain in one file, because neither is worth anything without the other.
const SVID: &str = "svid.pem";
const TRUST: &str = "trust.pb";
const SNAPSHOT: &str = "snapshot.pb";
/// When the Snapshot was last known to be the newest, in seconds since 1970.
const FRESH: &str = "snapshot.fresh";
/// A key whose certificate was asked for and has not arrived: asking again with it is not a second use of a token.
const PENDING: &str = "pending.key";

/// By which the control plane knows that what one process left is the next one's.
const PLACE: &str = "place";

/// An open state directory. It stays locked until the last clone is gone.
#[derive(Clone)]
pub struct StateDir(Arc<Inner>);

struct Inner {
    path: PathBuf,
    /// Held while writing: two writers of one file would share the file beside it.
    standing: Mutex<Standing>,
}

/// What this process may do here.
enum Standing {
    /// It has the lock.
    Owner { lock: File },
    /// Another process has the lock and is to hand it over.
    Visitor { missed: bool },
    /// It has handed the lock over.
    Former,
}

/// What a former life left behind.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) svid: Svid,
    pub(crate) trust: Trust,
    pub(crate) renewal_grace: Duration,
    pub(crate) snapshot: Option<Snapshot>,
    /// When it was last known to be the newest. None where nobody wrote it down.
    pub(crate) fresh: Option<UnixTime>,
}

impl StateDir {
    /// Opens the directory, making it if its parent exists, and takes its lock.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StateError> {
        let path = path.into();
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => {
                return Err(StateError::Io {
                    act: "make",
                    path,
                    source,
                });
            }
        }
        check_private(&path)?;
        let standing = Standing::Owner { lock: lock(&path)? };
        Ok(Self::with(path, standing))
    }

    /// Opens the directory of a predecessor, to read who we are. What would be written is not, until the lock is here
    /// by [`StateDir::receive`] or [`StateDir::claim`].
    pub fn visit(path: impl Into<PathBuf>) -> Result<Self, StateError> {
        let path = path.into();
        check_private(&path)?;
        Ok(Self::with(path, Standing::Visitor { missed: false }))
    }

    fn with(path: PathBuf, standing: Standing) -> Self {
        let standing = Mutex::new(standing);
        Self(Arc::new(Inner { path, standing }))
    }

    /// The lock once more, for a successor; nothing if it is not ours to give.
    pub fn lock(&self) -> io::Result<Option<OwnedFd>> {
        match &*self.standing() {
            Standing::Owner { lock } => lock.as_fd().try_clone_to_owned().map(Some),
            Standing::Visitor { .. } | Standing::Former => Ok(None),
        }
    }

    /// Takes the lock that a predecessor gave, unless it is the lock of another directory.
    pub fn receive(&self, given: OwnedFd) -> Result<Received, StateError> {
        let failed = |source| StateError::Io {
            act: "look at",
            path: self.0.path.join(LOCK),
            source,
        };
        let given = File::from(given);
        let theirs = given.metadata().map_err(failed)?;
        let ours = fs::symlink_metadata(self.0.path.join(LOCK)).map_err(failed)?;
        if (theirs.dev(), theirs.ino()) != (ours.dev(), ours.ino()) {
            return Ok(Received::AnotherOne);
        }
        Ok(self.own(given))
    }

    /// Takes the lock that nobody holds any more.
    pub fn claim(&self) -> Result<Received, StateError> {
        match *self.standing() {
            Standing::Owner { .. } => return Ok(Received::Nothing),
            Standing::Visitor { .. } | Standing::Former => {}
        }
        Ok(self.own(lock(&self.0.path)?))
    }

    fn own(&self, lock: File) -> Received {
        let was = std::mem::replace(&mut *self.standing(), Standing::Owner { lock });
        match was {
            Standing::Visitor { missed: true } => Received::Behind,
            Standing::Visitor { missed: false } | Standing::Owner { .. } | Standing::Former => {
                Received::Nothing
            }
        }
    }

    /// Writes nothing any more: a successor does. Undone by [`HandedOn::take_back`].
    pub fn hand_on(&self) -> HandedOn {
        let was = std::mem::replace(&mut *self.standing(), Standing::Former);
        HandedOn {
            state: self.clone(),
            was,
        }
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.0
            .standing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// What is there. Nothing at all if there never was a certificate; an error if there is one that cannot be used.
    pub(crate) fn load(&self) -> Result<Option<Stored>, StateError> {
        let Some(pem) = self.read(SVID)? else {
            return Ok(None);
        };
        let svid = Svid::from_pem(&pem, &pem).map_err(|error| self.damaged(SVID, error))?;
        let trust = self
            .read(TRUST)?
            .ok_or_else(|| self.damaged(TRUST, "it is missing"))?;
        let trust = proto::StoredTrust::decode(trust.as_slice())
            .map_err(|error| self.damaged(TRUST, error))?;
        Ok(Some(Stored {
            svid,
            trust: trust
                .trust
                .map(known)
                .transpose()
                .map_err(|error| self.damaged(TRUST, error))?
                .ok_or_else(|| self.damaged(TRUST, "it says nothing"))?,
            renewal_grace: Duration::from_secs(trust.renewal_grace_seconds),
            snapshot: self.load_snapshot()?,
            fresh: self.load_fresh()?,
        }))
    }

    /// A Snapshot this version cannot read is as good as none: the control plane sends another.
    fn load_snapshot(&self) -> Result<Option<Snapshot>, StateError> {
        let Some(bytes) = self.read(SNAPSHOT)? else {
            return Ok(None);
        };
        let read = proto::Snapshot::decode(bytes.as_slice())
            .map_err(|error| error.to_string())
            .and_then(|message| Snapshot::try_from(message).map_err(|error| error.to_string()));
        match read {
            Ok(snapshot) => Ok(Some(snapshot)),
            Err(error) => {
                tracing::warn!(path = %self.0.path.display(), %error, "stored snapshot ignored");
                Ok(None)
            }
        }
    }

    fn load_fresh(&self) -> Result<Option<UnixTime>, StateError> {
        let Some(bytes) = self.read(FRESH)? else {
            return Ok(None);
        };
        let seconds = std::str::from_utf8(&bytes).ok();
        let seconds = seconds.and_then(|text| text.trim().parse().ok());
        let seconds = seconds.ok_or_else(|| self.damaged(FRESH, "it is not a number"))?;
        Ok(Some(UnixTime::since_unix_epoch(Duration::from_secs(
            seconds,
        ))))
    }

    /// What tells this directory from every other, drawn when it was first asked for. None while that cannot be written
    /// because the directory is another process's.
    pub(crate) fn place(&self) -> Result<Option<OpaqueId>, StateError> {
        if let Some(known) = self.known_place()? {
            return Ok(Some(known));
        }
        self.write(PLACE, format!("{}\n", OpaqueId::random()).as_bytes())?;
        self.known_place()
    }

    fn known_place(&self) -> Result<Option<OpaqueId>, StateError> {
        let Some(bytes) = self.read(PLACE)? else {
            return Ok(None);
        };
        let text = std::str::from_utf8(&bytes).ok();
        let place = text.and_then(|text| text.trim().parse().ok());
        place
            .map(Some)
            .ok_or_else(|| self.damaged(PLACE, "it is not 128 bits in hex"))
    }

    pub(crate) fn save_fresh(&self, moment: UnixTime) -> Result<(), StateError> {
        self.write(FRESH, format!("{}\n", moment.as_secs()).as_bytes())
    }

    pub(crate) fn save_svid(&self, svid: &Svid) -> Result<(), StateError> {
        let (key, chain) = (svid.key_pem(), svid.chain_pem());
        let mut pem = Zeroizing::new(Vec::with_capacity(key.len() + chain.len()));
        pem.extend_from_slice(key.expose());
        pem.extend_from_slice(chain.as_bytes());
        self.write(SVID, &pem)
    }

    pub(crate) fn save_trust(&self, trust: &Trust, grace: Duration) -> Result<(), StateError> {
        let trust = proto::StoredTrust {
            trust: Some(trust.into()),
            renewal_grace_seconds: grace.as_secs(),
        };
        self.write(TRUST, &trust.encode_to_vec())
    }

    pub(crate) fn save_snapshot(&self, snapshot: &Snapshot) -> Result<(), StateError> {
        self.write(SNAPSHOT, &proto::Snapshot::from(snapshot).encode_to_vec())
    }

    pub(crate) fn pending_key(&self) -> Result<Option<NewKey>, StateError> {
        let Some(bytes) = self.read(PENDING)? else {
            return Ok(None);
        };
        NewKey::from_pkcs8(&Secret::new(bytes.to_vec()))
            .map(Some)
            .map_err(|error| self.damaged(PENDING, error))
    }

    pub(crate) fn save_pending_key(&self, key: &NewKey) -> Result<(), StateError> {
        self.write(PENDING, key.pkcs8().expose())
    }

    pub(crate) fn forget_pending_key(&self) -> Result<(), StateError> {
        self.remove(PENDING)
    }

    /// Forgets who it was, because that was revoked: whoever opens it next must attest. Whom to believe is kept.
    pub fn forget_identity(&self) -> Result<(), StateError> {
        self.remove(SVID)
    }

    fn remove(&self, name: &str) -> Result<(), StateError> {
        let Some(_writing) = self.writing() else {
            return Ok(());
        };
        let path = self.0.path.join(name);
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(StateError::Io {
                act: "delete",
                path,
                source,
            }),
        }
    }

    fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StateError> {
        let path = self.0.path.join(name);
        let failed = |source| StateError::Io {
            act: "read",
            path: path.clone(),
            source,
        };
        let file = match open_file(&path, OpenOptions::new().read(true)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed(source)),
        };
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() || metadata.mode() & 0o077 != 0 {
            return Err(StateError::Exposed {
                path,
                mode: metadata.mode() & 0o7777,
            });
        }
        let limit = 2 * MAX_MESSAGE as u64;
        if metadata.len() > limit {
            return Err(self.damaged(name, "it is too large"));
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(metadata.len() as usize + 1));
        file.take(limit).read_to_end(&mut bytes).map_err(failed)?;
        Ok(Some(bytes))
    }

    /// Written beside, synced, renamed, and the directory synced.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        let path = self.0.path.join(name);
        let Some(_writing) = self.writing() else {
            return Ok(());
        };
        file::replace(&path, bytes).map_err(|source| StateError::Io {
            act: "write",
            path: path.clone(),
            source,
        })
    }

    /// The right to change something, if we have it.
    fn writing(&self) -> Option<MutexGuard<'_, Standing>> {
        let mut standing = self.standing();
        match &mut *standing {
            Standing::Owner { .. } => Some(standing),
            Standing::Visitor { missed } => {
                *missed = true;
                None
            }
            Standing::Former => None,
        }
    }

    fn damaged(&self, name: &str, why: impl fmt::Display) -> StateError {
        StateError::Damaged {
            path: self.0.path.join(name),
            why: why.to_string(),
        }
    }
}

impl fmt::Debug for StateDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StateDir").field(&self.0.path).finish()
    }
}

/// What came with the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// What was learned in the meantime has to be written.
    Behind,
    Nothing,
    /// It was the lock of another directory.
    AnotherOne,
}

/// A state directory that was handed on. Dropped, the lock is let go of here.
#[must_use = "dropping it lets go of the lock"]
pub struct HandedOn {
    state: StateDir,
    was: Standing,
}

impl HandedOn {
    /// The successor never heard of it.
    pub fn take_back(self) {
        *self.state.standing() = self.was;
    }
}

/// Kept since the first certificate, when no control plane had numbered it yet.
fn known(message: proto::Trust) -> Result<Trust, InvalidField> {
    let version = message.version;
    let trust = Trust::try_from(proto::Trust {
        version: version.max(1),
        ..message
    })?;
    Ok(Trust { version, ..trust })
}

/// Of this directory, as long as the file is open anywhere.
fn lock(path: &Path) -> Result<File, StateError> {
    let failed = |act, source| StateError::Io {
        act,
        path: path.join(LOCK),
        source,
    };
    let lock = open_file(
        &path.join(LOCK),
        OpenOptions::new().write(true).create(true),
    )
    .map_err(|source| failed("open", source))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(StateError::InUse {
            path: path.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(failed("lock", source)),
    }
}

fn check_private(path: &Path) -> Result<(), StateError> {
    let metadata = fs::symlink_metadata(path).map_err(|source| StateError::Io {
        act: "look at",
        path: path.to_owned(),
        source,
    })?;
    if !metadata.is_dir() {
        return Err(StateError::NotADirectory {
            path: path.to_owned(),
        });
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(StateError::NotOurs {
            path: path.to_owned(),
            owner: metadata.uid(),
        });
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(StateError::Exposed {
            path: path.to_owned(),
            mode: metadata.mode() & 0o7777,
        });
    }
    Ok(())
}

/// Follows no link and waits for nobody.
fn open_file(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    options
        .mode(0o600)
        .custom_flags(flags.bits() as i32)
        .open(path)
}

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The file system.
    #[error("{act} `{path}`", path = .path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file, or a link.
    #[error("state directory `{path}` is not a directory", path = .path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// It belongs to another user.
    #[error("state directory `{path}` belongs to uid {owner}: it must belong to the user of the sidecar", path = .path.display())]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Others can reach what must be private.
    #[error("`{path}` has mode {mode:04o} and may hold a private key: run `chmod go= {path}`", path = .path.display())]
    Exposed {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Another process has it.
    #[error("state directory `{path}` is in use by another sidecar: give each its own", path = .path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// A file does not hold what it should.
    #[error("`{path}` is damaged: {why}; delete the state directory and attest with a new token", path = .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How.
        why: String,
    },
}

#[cfg(test)]
mod tests;
