//! An intermediate with its key in files. Whoever renews it puts the new pair in their place: they are read again at every
//! look, and a pair that does not fit together is one that is being written.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use fender_identity::{Secret, certificates_from_pem, private_key_from_pem};

use super::{Brought, UpstreamError};
use crate::ca::make::AuthorityKey;

const MAX_FILE: u64 = 256 * 1024;

/// PEM files.
#[derive(Clone, Debug)]
pub struct FilesUpstream {
    /// The intermediate, then what lies between it and the root.
    pub certificate: PathBuf,
    /// PKCS#8 on P-256; nobody but its owner may read it.
    pub key: PathBuf,
    /// The root, or several.
    pub roots: PathBuf,
}

impl FilesUpstream {
    pub(super) fn read(&self) -> Result<Brought, UpstreamError> {
        let key = read(&self.key, Readers::Owner)?;
        let wrong = |path: &Path, why: String| UpstreamError::Content {
            path: path.to_owned(),
            why,
        };
        let key = private_key_from_pem(key.expose())
            .map_err(|error| wrong(&self.key, error.to_string()))?;
        let key = AuthorityKey::from_pkcs8(key.expose())
            .map_err(|_| wrong(&self.key, "not a PKCS#8 key on P-256".to_owned()))?;
        let certificates = |path: &Path| {
            let text = read(path, Readers::Everybody)?;
            certificates_from_pem(text.expose()).map_err(|error| wrong(path, error.to_string()))
        };
        Ok(Brought {
            chain: certificates(&self.certificate)?,
            roots: certificates(&self.roots)?,
            key,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readers {
    Owner,
    Everybody,
}

pub(super) fn read(path: &Path, readers: Readers) -> Result<Secret, UpstreamError> {
    let failed = |source| UpstreamError::File {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if readers == Readers::Owner && metadata.mode() & 0o077 != 0 {
        return Err(UpstreamError::Exposed {
            path: path.to_owned(),
        });
    }
    if metadata.len() > MAX_FILE {
        return Err(UpstreamError::Content {
            path: path.to_owned(),
            why: format!("larger than {MAX_FILE} bytes"),
        });
    }
    // Sized once: growing would leave copies of a secret behind.
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or_default() + 1);
    file.take(MAX_FILE)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(Secret::new(bytes))
}
