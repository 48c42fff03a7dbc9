//! The [`Snapshot`]: everything one sidecar must know, immutable and numbered, and nothing another
//! workload owns.
//!
//! A private key or the value of a secret is never in it. The control plane makes it from the
//! documents and streams it; a standalone sidecar makes the same from its file.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fender_identity::tls::TlsProfile;
use fender_identity::{SpiffeId, Trust};
use fender_policy::{Action, Policy, PolicySet, Rule};
use ipnet::IpNet;

use crate::address::{AppAddress, HostPort, ListenAddr};
use crate::name::ObjectName;

/// What one sidecar runs on.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    pub version: u64,
    pub identity: SpiffeId,
    pub profile: Profile,
    /// Travels apart from all the rest, which does not change with it. The control plane leaves it empty:
    /// it is filled in where it arrives.
    pub trust: Trust,
    /// For what it calls.
    pub tls: TlsProfile,
    pub inbound: Vec<Inbound>,
    pub outbound: Vec<Outbound>,
    /// Only those that select this workload.
    pub policies: Arc<PolicySet>,
    pub credentials: Vec<CredentialSpec>,
    /// How long open connections may take to end once asked.
    pub drain: Duration,
    /// How long it may be used after it was last known to be the newest. None where there is nobody to know.
    pub max_age: Option<Duration>,
}

impl Snapshot {
    /// What is left of one that has become too old: its ports, at which nobody is let in. The app's own way out is closed.
    pub fn closed(&self) -> Self {
        let policies = TOO_OLD.parse().map(|name| Policy {
            name,
            action: Action::Deny,
            rules: vec![Rule::default()],
        });
        Self {
            outbound: Vec::new(),
            policies: Arc::new(PolicySet {
                default: fender_policy::Default::Deny,
                policies: policies.into_iter().collect(),
            }),
            ..self.clone()
        }
    }

    /// Whether it is what is left of one that has become too old.
    pub fn is_closed(&self) -> bool {
        let mut names = self.policies.policies.iter().map(|policy| &policy.name);
        names.any(|name| name.as_str() == TOO_OLD)
    }
}

/// As the policy is called that denies everybody then, so that each denial says why.
const TOO_OLD: &str = "fender-system/snapshot-too-old";

/// What a mesh may relax.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Profile {
    #[default]
    Production,
    /// Certificates of seconds, for demonstrations and tests.
    Development,
}

/// A port of the workload: TLS outside, unless it says otherwise, the app on loopback inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbound {
    pub listen: ListenAddr,
    pub app: AppAddress,
    pub protocol: Protocol,
    pub mtls: Mtls,
    pub tls: TlsProfile,
    pub paths: PathRules,
    /// Who passes connections on and says whom for.
    pub proxy_protocol: Option<ProxyProtocol>,
    pub app_proxy_protocol: AppProxyProtocol,
}

/// The senders whose PROXY headers are believed. A connection from one of them begins with a header, one from anybody else
/// does not: either is refused otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyProtocol {
    /// Never empty.
    pub from: Vec<IpNet>,
}

impl ProxyProtocol {
    /// Whether the one who connects from this address is a sender.
    pub fn lists(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.from.iter().any(|block| block.contains(&ip))
    }
}

/// Whether the app is told by a PROXY header, before the first byte, who a connection comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AppProxyProtocol {
    #[default]
    Absent,
    V2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1 and HTTP/2.
    Http,
    /// Bytes both ways; only facts of the connection are authorized.
    Tcp,
}

/// M1: how clients come in at a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mtls {
    /// Over TLS only; what is asked of them there.
    Strict(ClientCertificate),
    /// Over TLS, with a certificate that is right or with none; or in the clear. Without a certificate they are nobody.
    Permissive,
    /// In the clear only, and nobody.
    Disabled,
}

/// What is asked of a client in the TLS handshake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ClientCertificate {
    /// No certificate, no connection.
    #[default]
    Require,
    /// Without one the peer is anonymous; with one it must be right.
    Accept,
    /// Not asked for: every peer is anonymous.
    Ignore,
}

/// P1: how paths are brought into one form before they are matched and forwarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PathRules {
    pub escaped_slash: EscapedSlash,
    pub merge_slashes: bool,
}

/// What becomes of `%2F` and `%5C` in a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum EscapedSlash {
    #[default]
    Reject,
    Keep,
    Decode,
}

/// A local listener through which the app reaches something outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outbound {
    pub listen: ListenAddr,
    pub to: Destination,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A workload of the mesh: it must prove to be exactly `id` (M4).
    Service {
        id: SpiffeId,
        addresses: Vec<HostPort>,
        protocol: Protocol,
    },
    /// An external service, verified by its DNS name.
    Upstream {
        name: ObjectName,
        address: HostPort,
        protocol: Protocol,
        roots: UpstreamRoots,
        certificate: OwnCertificate,
    },
}

/// Who may vouch for an upstream. Never the operating system's roots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamRoots {
    /// The mesh's own.
    Mesh,
    /// PEM certificates in a file beside the sidecar.
    File(PathBuf),
}

/// Whether the workload shows its certificate to an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OwnCertificate {
    Present,
    #[default]
    Withhold,
}

/// A secret the workload may have, by reference: where from, and how it reaches the app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialSpec {
    pub name: ObjectName,
    pub source: CredentialSource,
    pub deliver: Vec<Delivery>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialSource {
    /// A file beside the sidecar, inside the directories it was locally allowed.
    File { path: PathBuf },
    /// Fetched on the workload's own stream; where the control plane has it from does not travel.
    Control,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    File(FileDelivery),
    /// For `fender exec`.
    Environment {
        variable: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileDelivery {
    pub path: PathBuf,
    /// Permission bits, no more than `0o777`.
    pub mode: u32,
    /// A name or a number; the sidecar's own if none is given.
    pub owner: Option<String>,
    pub group: Option<String>,
    pub storage: Storage,
}

/// What kind of file system a secret may be written to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Storage {
    /// tmpfs; a disk is refused.
    #[default]
    Memory,
    Disk,
}
