//! Ways to prove being somebody, and what is asked of whoever takes them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use fender_identity::NodeName;

use super::Node;

/// A way to prove being a workload, or the agent of a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Attestor {
    /// A join token.
    Token,
    /// A process, by what the kernel of its host says of it.
    Unix(UnixSelector),
    /// A container, by what the engine of its host says of it.
    Docker(DockerSelector),
    /// A service account, by a token its cluster vouches for.
    Kubernetes(KubernetesSelector),
    /// The holder of another authority's certificate.
    X509(X509Selector),
}

impl Attestor {
    /// As documents write it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Unix(_) => "unix",
            Self::Docker(_) => "docker",
            Self::Kubernetes(_) => "kubernetes",
            Self::X509(_) => "x509",
        }
    }
}

/// Whose agent may say so.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum On {
    Node(NodeName),
    /// Any node that lists the group.
    Group(String),
}

impl On {
    pub fn includes(&self, node: &Node) -> bool {
        match self {
            Self::Node(name) => *name == node.name,
            Self::Group(group) => node.groups.contains(group),
        }
    }
}

/// All that is given must hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixSelector {
    pub on: On,
    pub uid: u32,
    pub gid: Option<u32>,
    /// Of the program, as the process itself sees the file system.
    pub path: Option<PathBuf>,
    /// Of the program's file.
    pub sha256: Option<Sha256>,
}

/// All that is given must hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DockerSelector {
    pub on: On,
    pub image: Image,
    /// They narrow, they do not prove: whoever starts a container writes them.
    pub labels: BTreeMap<String, String>,
}

/// All that is given must hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KubernetesSelector {
    /// Of the mesh's document.
    pub cluster: String,
    pub namespace: String,
    pub service_account: String,
    pub pod: Option<String>,
    pub node: Option<String>,
}

/// All that is given must hold, and something besides the authority is given.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct X509Selector {
    /// Of the mesh's document.
    pub authority: String,
    /// As RFC 4514 writes it.
    pub subject: Option<String>,
    /// In lower case.
    pub dns_name: Option<String>,
    pub uri: Option<String>,
    pub sha256: Option<Sha256>,
}

/// An image that cannot be exchanged for another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Image {
    /// As the engine calls it.
    Id(Sha256),
    /// As a registry calls it.
    Digest { repository: String, digest: Sha256 },
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "sha256:{id}"),
            Self::Digest { repository, digest } => write!(f, "{repository}@sha256:{digest}"),
        }
    }
}

/// 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha256(pub [u8; 32]);

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
