//! A sidecar alone: `fender sidecar --config FILE`, no control plane.
//!
//! The file holds one `Sidecar`, and the `AuthorizationPolicy` and `Credential` documents it needs. Who the sidecar is
//! comes from its certificate, so a [`Snapshot`] can be made only once that was read.

use std::path::PathBuf;

use fender_identity::{Bundles, SpiffeId};

use crate::snapshot::Snapshot;
use crate::{Problem, Problems, Source};

/// Where key and certificates lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub bundle: PathBuf,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Standalone {
    pub identity_files: IdentityFiles,
    pub warnings: Vec<Problem>,
}

/// Reads all sources together, as [`crate::parse`] does.
pub fn parse(sources: &[Source]) -> Result<Standalone, Problems> {
    let _ = sources;
    todo!()
}

impl Standalone {
    /// The same Snapshot a control plane would have sent.
    pub fn snapshot(&self, identity: &SpiffeId, bundles: Bundles, version: u64) -> Snapshot {
        let _ = (identity, bundles, version);
        todo!()
    }
}
