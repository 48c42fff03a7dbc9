//! Clients of secret stores and of authorities: whence secrets and certificates for consumers come.
//!
//! A provider answers one question, *what is the value now?* ([`Source::fetch`]), and says of a
//! failure whose it is: an outage is no reason to forget a value, a refusal is. [`watch`] turns a
//! source into a [`State`] to follow.
//!
//! It delivers nothing, decides nobody's access and keeps no secret on disk; but for what [`acme`] got, in the sidecar's own
//! state directory.

#[cfg(feature = "stores")]
mod budget;
#[cfg(feature = "client")]
#[cfg(test)]
mod exchange;
#[cfg(feature = "stores")]
mod fields;
mod hidden;
mod host;
mod known;
#[cfg(feature = "stores")]
mod said;
#[cfg(feature = "stores")]
mod schedule;
#[cfg(feature = "stores")]
mod sealed;
mod state;
#[cfg(feature = "stores")]
mod stores;
#[cfg(feature = "stores")]
mod whole;

#[cfg(feature = "acme")]
pub mod acme;
#[cfg(feature = "stores")]
pub mod age;
#[cfg(feature = "stores")]
pub mod aws;
pub mod command;
pub mod docker;
pub mod environment;
pub mod file;
#[cfg(feature = "client")]
pub mod http;
#[cfg(feature = "stores")]
pub mod kubernetes;
#[cfg(feature = "stores")]
pub mod sops;
#[cfg(feature = "stores")]
pub mod vault;

use std::fmt;
use std::time::Duration;

use fender_identity::Secret;
use fender_runtime::id::OpaqueId;

/// For `fuzz/`: what must hold for any bytes at all.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    /// A file that age or SOPS encrypted: see `sops::checks`.
    pub fn sealed(data: &[u8]) {
        crate::sops::checks::sealed(data);
    }
}

pub use host::{AtEnd, ReadFiles, Reading, Workload};
pub use state::{Confirmed, Followed, State, follow, watch};
#[cfg(feature = "stores")]
pub use stores::Stores;

/// Where one secret comes from.
pub trait Source: Send + Sync + 'static {
    /// The value as it is now. Bounded in size and time by the source itself.
    fn fetch(&self) -> impl Future<Output = Result<Fetched, FetchError>> + Send;

    /// How often it is worth asking.
    fn interval(&self) -> Duration;

    /// Whether each answer stands for itself; of others a change is believed only when it is seen twice.
    fn is_whole(&self) -> bool {
        false
    }

    /// How long ago the last value was asked for that [`Self::fetch`] gave: a source that shares its answers with others may give one
    /// that is older than the question. None: it was asked just then.
    fn age(&self) -> Option<Duration> {
        None
    }

    /// What the last answer is worth once nobody can be asked any more: asked after [`Self::fetch`] gave a value.
    fn standing(&self) -> Standing {
        Standing::Asked
    }

    /// Resolves when it is worth asking again. A source that is told of changes, or that shares what it asked with others,
    /// knows better than by its interval.
    fn due(&self) -> impl Future<Output = ()> + Send {
        async { tokio::time::sleep(self.interval()).await }
    }
}

/// For how long a value is good by itself, when its source is away.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Standing {
    /// It was the newest when it was asked for.
    Asked,
    /// It is the newest for as long as nothing else is heard: its source tells of changes.
    Told,
    /// It ends at this moment, counted from 1970, by its source's own word.
    Until(Duration),
    /// It was lent to this process, which gives it back, and is nobody else's.
    Lent,
}

/// A secret and which one of its successive values it is.
#[derive(Clone, Debug)]
pub struct Fetched {
    pub value: Secret,
    pub generation: Generation,
}

/// Names one value of a secret, so that people can ask which one is in use.
///
/// It is drawn at random when a value is first seen, never computed from it: a digest of a weak
/// password would give the password to whoever reads a status page.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Generation(String);

impl Generation {
    /// A new one, equal to no other.
    pub fn random() -> Self {
        Self(OpaqueId::random().to_string())
    }

    /// One that somebody else drew.
    pub fn named(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why there is no value. The text names the place and never holds the value.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The source cannot be asked; what it said before still holds.
    #[error("secret cannot be fetched: {0}")]
    Outage(String),
    /// The source answered: not for us (any more).
    #[error("secret is denied: {0}")]
    Denied(String),
    /// The source answered: there is no such secret (any more).
    #[error("secret is missing: {0}")]
    Missing(String),
    /// There is something, but it cannot be this secret; what was there before still holds.
    #[error("secret is malformed: {0}")]
    Malformed(String),
}

impl FetchError {
    /// Whether the source itself says that the secret is not to be used any more.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Denied(_) | Self::Missing(_) => true,
            Self::Outage(_) | Self::Malformed(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_tells_nothing_about_the_value() {
        let value = Secret::from("hunter2".to_owned());
        let one = Fetched {
            value: value.clone(),
            generation: Generation::random(),
        };
        let two = Fetched {
            value,
            generation: Generation::random(),
        };
        assert_ne!(
            one.generation, two.generation,
            "not computed from the value"
        );
        assert!(!format!("{one:?}").contains("hunter2"));
    }

    #[test]
    fn only_an_answer_of_the_source_withdraws_a_secret() {
        assert!(FetchError::Missing(String::new()).is_refusal());
        assert!(FetchError::Denied(String::new()).is_refusal());
        assert!(!FetchError::Outage(String::new()).is_refusal());
        assert!(!FetchError::Malformed(String::new()).is_refusal());
    }
}
