//! Small files, whole: read once, up to a limit, if nobody else may have written or read them; replaced for good or not
//! at all.
//!
//! It never waits for a pipe, never reads a device, and never goes back to the path: what was opened is what is judged
//! and what is read.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Who besides its owner may have been able to read a file, or to put something else into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    Whoever,
    /// Its group may read it, and nobody else anything: what holds a private key.
    GroupReads,
    Nobody,
}

impl Others {
    /// The bits that must not be set.
    fn forbidden(self) -> u32 {
        match self {
            Self::Whoever => 0,
            Self::GroupReads => 0o037,
            Self::Nobody => 0o077,
        }
    }
}

/// Why a file is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("`{path}`: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("`{path}` is not a regular file")]
    NotRegular { path: PathBuf },
    #[error("`{path}` is larger than {limit} bytes")]
    TooLarge { path: PathBuf, limit: u64 },
    #[error("`{path}` is open to others (mode {mode:o}); `chmod {wanted} {path}`", wanted = match others {
        Others::GroupReads => "o=,g-wx",
        Others::Whoever | Others::Nobody => "go=",
    })]
    Exposed {
        path: PathBuf,
        mode: u32,
        others: Others,
    },
}

impl ReadError {
    /// Whether there is no such file, and nothing else is wrong.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Everything in the file.
pub fn read(path: &Path, limit: u64, others: Others) -> Result<Vec<u8>, ReadError> {
    let failed = |source| ReadError::Io {
        path: path.to_owned(),
        source,
    };
    // Opening a pipe would wait for whoever writes into it.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(nonblocking).open(path);
    let file = file.map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        let path = path.to_owned();
        return Err(ReadError::NotRegular { path });
    }
    if metadata.mode() & others.forbidden() != 0 {
        return Err(ReadError::Exposed {
            path: path.to_owned(),
            mode: metadata.mode() & 0o7777,
            others,
        });
    }
    // Sized once: growing would leave copies of a secret behind.
    let size = usize::try_from(metadata.len().min(limit)).unwrap_or_default();
    let mut bytes = Vec::with_capacity(size + 1);
    let mut whole = file.take(limit + 1);
    whole.read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit {
        let path = path.to_owned();
        return Err(ReadError::TooLarge { path, limit });
    }
    Ok(bytes)
}

/// Puts a file of mode 0600 in the place of whatever is there: written beside, synced, renamed, and the directory synced.
/// Two at a time for one path are the caller's to prevent.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidFilename.into());
    };
    let mut beside = OsString::from(".");
    beside.push(name);
    beside.push(".new");
    let beside = directory.join(beside);
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_small_regular_file_is_read_whole_and_nothing_else_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read(&path, 5, Others::Whoever).unwrap(), b"12345");
        let large = read(&path, 4, Others::Whoever).unwrap_err().to_string();
        assert!(large.contains("larger than 4 bytes"), "{large}");
        let endless = read(Path::new("/dev/zero"), 5, Others::Whoever).unwrap_err();
        assert!(matches!(endless, ReadError::NotRegular { .. }), "{endless}");
        let pipe = directory.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        let silent = read(&pipe, 5, Others::Whoever).unwrap_err();
        assert!(matches!(silent, ReadError::NotRegular { .. }), "{silent}");
        let none = read(&directory.path().join("none"), 5, Others::Whoever).unwrap_err();
        assert!(none.is_missing() && !endless.is_missing());
    }

    #[test]
    fn attack_a_key_that_others_can_read_or_replace_is_not_taken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::write(&path, "key").unwrap();
        let taken = |mode, others| {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            read(&path, 5, others).map_err(|error| error.to_string())
        };
        for mode in [0o600, 0o400] {
            assert!(taken(mode, Others::Nobody).is_ok());
        }
        for mode in [0o600, 0o400, 0o640, 0o440] {
            assert!(taken(mode, Others::GroupReads).is_ok(), "{mode:o}");
        }
        for mode in [0o644, 0o604, 0o602, 0o601, 0o660, 0o620, 0o650] {
            let refused = taken(mode, Others::GroupReads).unwrap_err();
            assert!(refused.contains(&format!("mode {mode:o}")), "{refused}");
            assert!(taken(mode, Others::Nobody).is_err(), "{mode:o}");
            assert!(taken(mode, Others::Whoever).is_ok(), "{mode:o}");
        }
        assert!(taken(0o640, Others::Nobody).is_err());
    }

    #[test]
    fn a_file_is_replaced_whole_and_is_its_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "old").unwrap();
        // What a crash has left.
        fs::write(directory.path().join(".file.new"), "half").unwrap();
        replace(&path, b"new").unwrap();
        assert_eq!(read(&path, 5, Others::Nobody).unwrap(), b"new");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert!(replace(&directory.path().join("none/file"), b"").is_err());
    }
}
