//! Who may administer a mesh, and how old what runs in it may be, as its `Mesh` says.
//!
//! Only what was written; who is whom, and what happened until anybody was named, is the control plane's to know.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use rustls_pki_types::UnixTime;

/// What an administrator may do. Each may all that the one before may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Reads status and decisions.
    Viewer,
    /// Applies documents and makes tokens.
    Operator,
    /// Decides who anybody is: `Mesh`, attestation, revocation, administrators.
    Security,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Security => "security",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a role holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    Everywhere,
    Namespaces(BTreeSet<String>),
}

impl Reach {
    pub fn includes(&self, namespace: &str) -> bool {
        match self {
            Self::Everywhere => true,
            Self::Namespaces(names) => names.contains(namespace),
        }
    }
}

/// One line of a mesh's administrators. Several may name the same person: all of them hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Administrator {
    /// `spiffe://TRUST/fender/admin/NAME`
    pub name: String,
    pub role: Role,
    pub reach: Reach,
}

/// What sidecars must at least be, from a moment on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MinimumVersion {
    pub version: Version,
    pub after: UnixTime,
}

impl MinimumVersion {
    /// Whether something is older than this, or does not say what it is.
    pub fn exceeds(&self, version: &str) -> bool {
        version
            .parse::<Version>()
            .map_or(true, |version| version.is_older_than(&self.version))
    }
}

/// A version of Fender, by [Semantic Versioning](https://semver.org/#spec-item-11).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version(semver::Version);

impl Version {
    /// Builds of one version are as old as each other.
    pub fn is_older_than(&self, other: &Self) -> bool {
        self.0.cmp_precedence(&other.0).is_lt()
    }
}

/// The text is not a version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a version")]
pub struct InvalidVersion(String);

impl FromStr for Version {
    type Err = InvalidVersion;

    fn from_str(text: &str) -> Result<Self, InvalidVersion> {
        semver::Version::parse(text)
            .map(Self)
            .map_err(|_| InvalidVersion(text.to_owned()))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
