//! The documents people write, from text to validated types, and the [`snapshot::Snapshot`] made of
//! them.
//!
//! Text goes through two types: a raw one, close to the YAML, private, refusing unknown fields; and
//! the validated ones, which hold no string where a type exists. Everything wrong is reported
//! together, each problem with file, line, column and a way out.
//!
//! Nothing here opens a file, resolves a name or knows the time: sources come in as text, paths
//! stay paths.

mod address;
mod administrators;
mod documents;
mod memory;
mod name;
mod objects;
mod problem;
mod raw;
mod read;
#[cfg(test)]
mod schema;
pub mod snapshot;
pub mod standalone;
mod suggest;
mod texts;
mod tree;
mod yaml;

pub use address::{
    AppAddress, HostPort, HttpsUrl, InvalidAddress, ListenAddr, LoopbackAddr, StoreUrl,
};
pub use administrators::{Administrator, InvalidVersion, MinimumVersion, Reach, Role, Version};
pub use documents::{
    Attestor, Change, Cluster, Credential, DockerSelector, Documents, Image, InboundPort,
    IssuingAuthority, KeySource, Kind, KubernetesSelector, Lifetimes, Mesh, MtlsMode, Namespace,
    Node, On, OutboundPort, OutboundTo, PeerAuthentication, SelectingPolicy, Selector, Sha256,
    TlsParameters, TlsProfiles, TlsRule, TokenReview, UnixSelector, Upstream, Via, Vouching, What,
    Workload, X509Selector, parse,
};
pub use memory::Memory;
pub use name::{InvalidName, ObjectName};
pub use objects::{Difference, Differences, Objects};
pub use problem::{Problem, Problems};
pub use read::{InvalidDigest, MAX_DRAIN};
pub use texts::{DocumentName, DocumentText, texts};

/// One file of documents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// How problems call it: usually its path.
    pub name: String,
    pub text: String,
}

/// Longer files are refused before they are parsed.
pub const MAX_SOURCE_BYTES: usize = 4 * 1024 * 1024;
