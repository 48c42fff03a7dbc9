//! The data directory: a lock, the sealing key, the database, the administrator's files, and an id of its own by which
//! the process that holds it is known to be the same replica again.
//!
//! It belongs to one control plane at a time. What is written here is 0600 at birth, and complete or absent: written
//! beside its place, flushed, renamed.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use fender_identity::{Bundle, Svid};
use fender_runtime::id::OpaqueId;
use zeroize::Zeroizing;

use crate::ca::seal::{KEY_LENGTH, SealError, SealingKey};

/// Whether the directory is held alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// For a control plane: a second one is refused.
    Alone,
    /// For a tool beside a control plane that may be running.
    Shared,
}

/// What to do about a key that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Absent {
    /// Nothing is sealed yet.
    Make,
    /// Another key would open nothing.
    Refuse,
}

#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    /// Apart, if it shall be handed on without the rest: who reads the rest is the authority.
    admin: PathBuf,
    /// The lock goes with the descriptor, and so with the process however it ends.
    _lock: Option<File>,
}

impl DataDir {
    /// `admin` is where the first administrator's files go, if not into the directory itself.
    pub(crate) fn open(
        path: &Path,
        admin: Option<&Path>,
        hold: Hold,
    ) -> Result<Self, DataDirError> {
        let failed = |source| DataDirError::Io {
            path: path.to_owned(),
            source,
        };
        let lock = match hold {
            Hold::Alone => {
                DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(path)
                    .map_err(failed)?;
                check_ours(path)?;
                Some(lock(&path.join("lock"))?)
            }
            Hold::Shared => None,
        };
        // Canonical, so that a path from a document can be compared with it.
        let path = fs::canonicalize(path).map_err(failed)?;
        check_ours(&path)?;
        let admin = admin.map_or_else(|| path.join("admin"), Path::to_owned);
        Ok(Self {
            path,
            admin,
            _lock: lock,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The database's place, made 0600 before SQLite would make it by the umask; its companions copy that mode.
    pub(crate) fn database(&self) -> Result<PathBuf, DataDirError> {
        let path = self.path.join("control.db");
        private()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(at(&path))?;
        Ok(path)
    }

    pub(crate) fn has_database(&self) -> bool {
        self.path.join("control.db").exists()
    }

    /// The key that seals the authorities' keys.
    pub(crate) fn sealing_key(&self, absent: Absent) -> Result<SealingKey, DataDirError> {
        let path = self.path.join("key");
        match (path.exists(), absent) {
            (true, _) => {}
            (false, Absent::Refuse) => return Err(DataDirError::NoKey { path }),
            (false, Absent::Make) => {
                let mut fresh = Zeroizing::new([0; KEY_LENGTH]);
                aws_lc_rs::rand::fill(&mut *fresh).map_err(|_| SealError::Crypto)?;
                write_private(&path, &*fresh)?;
            }
        }
        let mut file = File::open(&path).map_err(at(&path))?;
        if file.metadata().map_err(at(&path))?.mode() & 0o077 != 0 {
            return Err(DataDirError::Exposed { path });
        }
        // One byte more than a key, to tell a longer file.
        let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_LENGTH + 1));
        let limit = u64::try_from(KEY_LENGTH + 1).unwrap_or(u64::MAX);
        io::Read::by_ref(&mut file)
            .take(limit)
            .read_to_end(&mut bytes)
            .map_err(at(&path))?;
        let key = bytes
            .as_slice()
            .try_into()
            .map_err(|_| DataDirError::NotAKey { path })?;
        Ok(SealingKey::new(key)?)
    }

    /// The id of this directory, made once.
    pub(crate) fn home(&self) -> Result<OpaqueId, DataDirError> {
        let path = self.path.join("replica");
        match fs::read_to_string(&path) {
            Ok(text) => text
                .trim_end()
                .parse()
                .map_err(|_| DataDirError::NotAnId { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let home = OpaqueId::random();
                write_private(&path, format!("{home}\n").as_bytes())?;
                Ok(home)
            }
            Err(error) => Err(at(&path)(error)),
        }
    }

    pub(crate) fn admin(&self) -> &Path {
        &self.admin
    }

    /// Whoever has it has all three files: it is written last.
    pub(crate) fn admin_certificate(&self) -> PathBuf {
        self.admin.join("certificate.pem")
    }

    /// Gives an administrator their files. The certificate comes last: where it is, the others are.
    pub(crate) fn write_admin(&self, svid: &Svid, bundle: &Bundle) -> Result<(), DataDirError> {
        let directory = self.admin();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(at(directory))?;
        check_ours(directory)?;
        write_private(&directory.join("bundle.pem"), bundle.to_pem().as_bytes())?;
        write_private(&directory.join("key.pem"), svid.key_pem().expose())?;
        write_private(&self.admin_certificate(), svid.chain_pem().as_bytes())
    }
}

/// Whoever may write to the directory can lay a key or a database of theirs in it before we look, or swap ours.
/// Nobody but its owner may write there.
pub(crate) fn check_ours(path: &Path) -> Result<(), DataDirError> {
    let metadata = fs::metadata(path).map_err(at(path))?;
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    let ours = rustix::process::geteuid().as_raw();
    if owner == ours && mode & 0o022 == 0 {
        return Ok(());
    }
    Err(DataDirError::NotOurs {
        path: path.to_owned(),
        owner,
        mode,
    })
}

fn lock(path: &Path) -> Result<File, DataDirError> {
    let file = private()
        .create(true)
        .append(true)
        .open(path)
        .map_err(at(path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(DataDirError::Held {
            path: path.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(at(path)(source)),
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

/// Makes a directory of ours, if it is not there.
pub(crate) fn make_private(path: &Path) -> Result<(), DataDirError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(at(path))?;
    check_ours(path)
}

/// Written beside its place, flushed, renamed.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), DataDirError> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    // Left over from a crash, perhaps with another mode.
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&fresh)(error)),
        Ok(()) | Err(_) => {}
    }
    let mut file = private()
        .write(true)
        .create_new(true)
        .open(&fresh)
        .map_err(at(&fresh))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(at(&fresh))?;
    fs::rename(&fresh, path).map_err(at(path))?;
    let parent = path.parent().unwrap_or(path);
    File::open(parent)
        .and_then(|parent| parent.sync_all())
        .map_err(at(parent))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_owned();
    move |source| DataDirError::Io { path, source }
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataDirError {
    #[error("use `{}` of the data directory: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("another control plane holds `{}`: give this one a `--data-dir` of its own, or stop the other", path.display())]
    Held { path: PathBuf },
    #[error(
        "the data directory `{}` belongs to uid {owner} and has mode {mode:04o}: only the user of the control plane may \
         write to it; run as its owner, name a directory that is still to be made, or `chmod 700` it",
        path.display()
    )]
    NotOurs {
        path: PathBuf,
        owner: u32,
        mode: u32,
    },
    #[error("others may read the key file `{}`: `chmod 600` it, and consider the authority's keys known to them", path.display())]
    Exposed { path: PathBuf },
    #[error("`{}` is not a key of 32 bytes: restore the one that belongs to this database", path.display())]
    NotAKey { path: PathBuf },
    #[error("`{}` is not the id of a replica: remove it, and this one appears as a new one", path.display())]
    NotAnId { path: PathBuf },
    #[error("the environment variable `{name}` holds no key of 32 bytes in hex or base64")]
    NotAKeyIn { name: String },
    #[error("read the sealing key `{}`: {source}", path.display())]
    SealingKey { path: PathBuf, source: io::Error },
    #[error(
        "the key file `{}` is missing, and without it the authority's keys in the database do not open: restore it, or \
         give every replica the key of the first by `--sealing-key-file`",
        path.display()
    )]
    NoKey { path: PathBuf },
    #[error(transparent)]
    Seal(#[from] SealError),
}
