//! The roots that everybody believes, as the operating system keeps them.

use std::path::Path;

use fender_runtime::file::{self, Others};

/// The largest file of roots that is read.
const LIMIT: u64 = 1024 * 1024;

/// Where they lie: Debian, Fedora, Alpine, openSUSE.
const PLACES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];

/// This system keeps none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this system has none; name a file: `roots: {{ file: /path.pem }}`")]
pub(crate) struct NoSystemRoots;

/// In PEM, read anew: they are replaced like everything else.
pub(crate) fn system_roots() -> Result<Vec<u8>, NoSystemRoots> {
    let mut known = PLACES.iter().map(Path::new);
    known
        .find_map(|path| file::read(path, LIMIT, Others::Whoever).ok())
        .ok_or(NoSystemRoots)
}
