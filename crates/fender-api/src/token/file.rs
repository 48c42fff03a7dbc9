//! The file a join token is read from: a regular file, closed to everybody but its owner, removed after use.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use zeroize::Zeroizing;

use super::{JoinToken, MAX_TEXT, TokenError};

/// The path of a join token. Nothing is read until it is needed: a sidecar that has its state never looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenFile(PathBuf);

impl TokenFile {
    /// A file that may not exist yet, or no longer.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Whether there is something by that name.
    pub(crate) fn exists(&self) -> bool {
        fs::metadata(&self.0).is_ok()
    }

    /// Reads the token.
    pub fn read(&self) -> Result<JoinToken, TokenFileError> {
        let path = || self.0.display().to_string();
        // Not blocking, so that a FIFO in its place cannot hold the start; what was opened is then looked at, not the name.
        let file = rustix::fs::open(
            &self.0,
            OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|errno| TokenFileError::Unreadable {
            path: path(),
            source: errno.into(),
        })?;
        let file = File::from(file);
        let unreadable = |source| TokenFileError::Unreadable {
            path: path(),
            source,
        };
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(TokenFileError::NotAFile { path: path() });
        }
        if metadata.mode() & 0o077 != 0 {
            return Err(TokenFileError::Open {
                path: path(),
                mode: metadata.mode() & 0o7777,
            });
        }
        // With room for a text one byte too long, so that nothing is cut off silently, and never grown: a grown buffer would leave copies.
        let limit = MAX_TEXT + 256;
        let mut bytes = Zeroizing::new(Vec::with_capacity(limit + 32));
        file.take(limit as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(unreadable)?;
        if bytes.len() > limit {
            return Err(TokenFileError::Token {
                path: path(),
                source: TokenError::Form,
            });
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| TokenFileError::Token {
            path: path(),
            source: TokenError::Form,
        })?;
        JoinToken::parse(text).map_err(|source| TokenFileError::Token {
            path: path(),
            source,
        })
    }

    /// Deletes the spent token. Where that is not possible, as on a mounted secret, it says so: the token is worthless by now.
    pub(crate) fn consume(&self) {
        match fs::remove_file(&self.0) {
            Ok(()) => tracing::info!(path = %self.0.display(), "join token deleted after use"),
            Err(error) => tracing::warn!(
                path = %self.0.display(), %error,
                "the join token is spent and its file cannot be deleted"
            ),
        }
    }
}

/// Why no join token could be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenFileError {
    /// It cannot be opened or read.
    #[error("read join token `{path}`")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A directory, a device, a FIFO.
    #[error("join token `{path}` is not a regular file")]
    NotAFile {
        /// The file.
        path: String,
    },
    /// Others may read it.
    #[error(
        "join token `{path}` has mode {mode:04o}: others than its owner may use it; run `chmod 0400 {path}`, and make a new token if somebody may have read it"
    )]
    Open {
        /// The file.
        path: String,
        /// Its permission bits.
        mode: u32,
    },
    /// It holds something else.
    #[error("join token `{path}` cannot be used")]
    Token {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: TokenError,
    },
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use fender_identity::Secret;
    use fender_identity::tls::CaPin;

    use super::*;

    fn text() -> Secret {
        JoinToken::new(
            "spiffe://acme.test/ns/shop/sa/orders".parse().unwrap(),
            vec![CaPin::from([7; 32])],
            Secret::new(vec![3; 32]),
        )
        .unwrap()
        .to_text()
    }

    fn written(mode: u32, bytes: &[u8]) -> (tempfile::TempDir, TokenFile) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (dir, TokenFile::new(path))
    }

    #[test]
    fn a_private_file_is_read_and_deleted_after_use() {
        for mode in [0o600, 0o400] {
            let (_dir, file) = written(mode, text().expose());
            let identity = file.read().unwrap().identity().clone();
            assert_eq!(identity.workload().unwrap().to_string(), "shop/orders");
            file.consume();
            assert!(!file.exists());
        }
    }

    #[test]
    fn a_token_others_may_read_is_refused_with_the_way_out() {
        for mode in [0o640, 0o604, 0o644, 0o660] {
            let (_dir, file) = written(mode, text().expose());
            let error = file.read().unwrap_err();
            assert!(matches!(error, TokenFileError::Open { .. }));
            assert!(error.to_string().contains("chmod 0400"), "{error}");
        }
    }

    #[test]
    fn a_directory_in_the_place_of_a_token_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = TokenFile::new(dir.path()).read().unwrap_err();
        assert!(matches!(error, TokenFileError::NotAFile { .. }));
    }

    #[test]
    fn a_fifo_in_the_place_of_a_token_does_not_hold_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            Mode::RUSR,
            0,
        )
        .unwrap();
        let error = TokenFile::new(path).read().unwrap_err();
        assert!(matches!(error, TokenFileError::NotAFile { .. }));
    }

    #[test]
    fn a_huge_file_is_refused_without_being_read_whole() {
        let (_dir, file) = written(0o600, &vec![b'a'; 1 << 20]);
        assert!(matches!(
            file.read().unwrap_err(),
            TokenFileError::Token {
                source: TokenError::Form,
                ..
            }
        ));
    }
}
