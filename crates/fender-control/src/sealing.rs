//! Where the key comes from that seals the authorities' keys. What each place protects is said in
//! `docs/guide/certificate-authority.md`.
//!
//! It never comes from a document, and never from a command line.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fender_identity::Secret;
use zeroize::Zeroizing;

use crate::ca::seal::{KEY_LENGTH, SealingKey};
use crate::datadir::{Absent, DataDir, DataDirError};

/// The longest text of a key, and more than any.
const MAX_TEXT: u64 = 256;

/// Where the sealing key is.
#[derive(Clone, Debug, Default)]
pub enum Sealing {
    /// `key` in the data directory, made at the first start: a copy of the database alone is worth nothing.
    #[default]
    DataDirectory,
    /// A file of the operator's, which nobody but its owner may read.
    File(PathBuf),
    /// A credential of the service manager, which keeps it from everybody but the service.
    Credential(PathBuf),
    /// What was taken out of an environment variable.
    Variable { name: String, value: Secret },
    /// Nowhere: the keys are stored in the clear.
    InPlain,
}

impl Sealing {
    pub(crate) fn key(&self, data: &DataDir, absent: Absent) -> Result<SealingKey, DataDirError> {
        match self.apart()? {
            Some(key) => Ok(key),
            None => data.sealing_key(absent),
        }
    }

    /// The key that does not lie beside what it seals; none if it does.
    pub(crate) fn apart(&self) -> Result<Option<SealingKey>, DataDirError> {
        let bytes = match self {
            Self::DataDirectory => return Ok(None),
            Self::File(path) => from_file(path, Readers::Owner)?,
            Self::Credential(path) => from_file(path, Readers::AsGiven)?,
            Self::Variable { name, value } => parse(value.expose())
                .ok_or_else(|| DataDirError::NotAKeyIn { name: name.clone() })?,
            Self::InPlain => {
                tracing::warn!(
                    "the authorities' keys are stored in the clear: whoever reads where they lie is the authority"
                );
                return Ok(Some(SealingKey::in_plain()));
            }
        };
        Ok(Some(SealingKey::new(&bytes)?))
    }
}

/// Who may be able to read a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Readers {
    Owner,
    /// The service manager shields the directory; the mode of the file says nothing.
    AsGiven,
}

fn from_file(path: &Path, readers: Readers) -> Result<Zeroizing<[u8; KEY_LENGTH]>, DataDirError> {
    let failed = |source| DataDirError::SealingKey {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if readers == Readers::Owner && metadata.mode() & 0o077 != 0 {
        return Err(DataDirError::Exposed {
            path: path.to_owned(),
        });
    }
    let mut text = Zeroizing::new(Vec::with_capacity(KEY_LENGTH * 4));
    file.take(MAX_TEXT).read_to_end(&mut text).map_err(failed)?;
    parse(&text).ok_or_else(|| DataDirError::NotAKey {
        path: path.to_owned(),
    })
}

/// 32 bytes as they are, in hex or in base64.
fn parse(text: &[u8]) -> Option<Zeroizing<[u8; KEY_LENGTH]>> {
    if let Ok(key) = <[u8; KEY_LENGTH]>::try_from(text) {
        return Some(Zeroizing::new(key));
    }
    let text = text.trim_ascii();
    let bytes = Zeroizing::new(match text.len() {
        64 => text
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
            .collect::<Option<Vec<u8>>>()?,
        _ => STANDARD.decode(text).ok()?,
    });
    <[u8; KEY_LENGTH]>::try_from(bytes.as_slice())
        .ok()
        .map(Zeroizing::new)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_read_as_bytes_hex_or_base64_and_as_nothing_else() {
        let key = [7_u8; KEY_LENGTH];
        let hex = "07".repeat(KEY_LENGTH);
        let base64 = STANDARD.encode(key);
        for text in [&key[..], hex.as_bytes(), base64.as_bytes()] {
            assert_eq!(parse(text).map(|key| *key), Some(key));
        }
        assert_eq!(
            parse(format!("{hex}\n").as_bytes()).map(|key| *key),
            Some(key)
        );
        for text in [
            &b""[..],
            b"password",
            &[7; 31],
            &[7; 33],
            "0é".repeat(21).as_bytes(),
        ] {
            assert!(parse(text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn attack_a_sealing_key_that_others_may_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sealing");
        fs::write(&path, [7; KEY_LENGTH]).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(
            from_file(&path, Readers::Owner),
            Err(DataDirError::Exposed { .. })
        ));
        from_file(&path, Readers::AsGiven).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
        from_file(&path, Readers::Owner).unwrap();
    }

    #[test]
    fn a_key_in_the_environment_is_not_in_what_is_said_of_it() {
        let secret = "07".repeat(KEY_LENGTH);
        let sealing = Sealing::Variable {
            name: "SEALING".to_owned(),
            value: Secret::from(secret.clone()),
        };
        assert!(!format!("{sealing:?}").contains(&secret));
    }
}
