//! An administrator's identity, as it lies in a directory. A key that others may read is refused.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use fender_identity::{Bundle, Svid};
use zeroize::Zeroizing;

use super::AdminError;

const MAX_FILE: u64 = 1024 * 1024;

/// An administrator's identity: a directory with `certificate.pem`, `key.pem` and `bundle.pem`.
#[derive(Clone, Debug)]
pub struct AdminIdentity {
    svid: Svid,
    bundle: Bundle,
}

impl AdminIdentity {
    /// Reads the directory. A key that others may read is refused.
    pub fn load(directory: &Path) -> Result<Self, AdminError> {
        let certificate = directory.join("certificate.pem");
        let pem = read(&certificate)?;
        let key = directory.join("key.pem");
        let mode = fs::metadata(&key)
            .map_err(|source| AdminError::Read {
                path: key.clone(),
                source,
            })?
            .mode();
        if mode & 0o077 != 0 {
            return Err(AdminError::Exposed {
                path: key,
                mode: mode & 0o7777,
            });
        }
        let svid = Svid::from_pem(&pem, &read(&key)?).map_err(|source| AdminError::Svid {
            path: certificate,
            source,
        })?;
        let path = directory.join("bundle.pem");
        let bundle = Bundle::from_pem(svid.id().trust_domain().clone(), &read(&path)?)
            .map_err(|source| AdminError::Bundle { path, source })?;
        Ok(Self { svid, bundle })
    }

    /// Who it is.
    pub fn svid(&self) -> &Svid {
        &self.svid
    }

    /// Whom it believes.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, AdminError> {
    let failed = |source| AdminError::Read {
        path: path.to_owned(),
        source,
    };
    let metadata = fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        let error = io::Error::new(io::ErrorKind::InvalidData, "not a small regular file");
        return Err(failed(error));
    }
    fs::read(path).map(Zeroizing::new).map_err(failed)
}
