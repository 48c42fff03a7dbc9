//! Others whose word counts at attestation: clusters and authorities.

use std::path::PathBuf;

use crate::HttpsUrl;

/// A Kubernetes cluster that vouches for its service accounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    pub name: String,
    /// Of its service-account tokens.
    pub issuer: String,
    /// The only audience a token for us may have.
    pub audience: String,
    pub vouching: Vouching,
}

/// Who verifies a cluster's tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vouching {
    /// We, by the keys its issuer publishes.
    Keys(KeySource),
    /// Its API.
    Review(TokenReview),
}

/// Where an issuer's keys are. Every file here is the control plane's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    File(PathBuf),
    Url {
        url: HttpsUrl,
        roots: PathBuf,
        /// Shown to the issuer, if it asks who wants to know.
        token: Option<PathBuf>,
    },
}

/// How a cluster's API is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenReview {
    pub api: HttpsUrl,
    pub roots: PathBuf,
    /// The control plane's own, which may create `tokenreviews`.
    pub token: PathBuf,
}

/// An authority whose certificates may be shown to become somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuingAuthority {
    pub name: String,
    /// A file of the control plane's.
    pub roots: PathBuf,
}
