//! The validated documents: what a mesh is made of.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use fender_identity::tls::TlsProfile;
use fender_identity::{Bundles, SpiffeId, TrustDomain, WorkloadName};
use fender_policy::{Policy, PolicyName};

use crate::snapshot::{
    ClientCertificate, Delivery, OwnCertificate, PathRules, Profile, Protocol, Snapshot, UpstreamRoots,
};
use crate::{AppAddress, HostPort, ListenAddr, ObjectName, Problem, Problems, Source};

/// Everything that was written, checked together: every reference leads somewhere.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Documents {
    pub mesh: Option<Mesh>,
    pub workloads: BTreeMap<WorkloadName, Workload>,
    pub upstreams: BTreeMap<ObjectName, Upstream>,
    pub credentials: BTreeMap<ObjectName, Credential>,
    pub policies: BTreeMap<PolicyName, SelectingPolicy>,
    /// What is allowed but probably not meant.
    pub warnings: Vec<Problem>,
}

/// Reads all sources together. Either everything is right, or every problem is told.
pub fn parse(sources: &[Source]) -> Result<Documents, Problems> {
    let _ = sources;
    todo!()
}

/// JSON Schema of all kinds, for editors.
pub fn schema() -> serde_json::Value {
    todo!()
}

impl Documents {
    /// What the sidecar of this workload must know, and nothing more. None if there is no such workload.
    pub fn snapshot(&self, workload: &WorkloadName, version: u64, bundles: Bundles) -> Option<Snapshot> {
        let _ = (workload, version, bundles);
        todo!()
    }

    /// What applying `new` over `old` would change, in the order of kinds and names.
    pub fn diff(old: &Self, new: &Self) -> Vec<Change> {
        let _ = (old, new);
        todo!()
    }
}

/// What holds for everyone.
#[derive(Clone, Debug, PartialEq)]
pub struct Mesh {
    pub name: String,
    pub trust_domain: TrustDomain,
    pub profile: Profile,
    /// Policies in this namespace select workloads of every namespace.
    pub root_namespace: String,
    pub lifetimes: Lifetimes,
    pub tls: TlsProfile,
    /// What holds for a workload that no ALLOW policy selects, unless it says otherwise itself.
    pub authorization: fender_policy::Default,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    pub leaf: Duration,
    /// How long after expiry a certificate may still renew itself.
    pub renewal_grace: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    pub name: WorkloadName,
    pub labels: BTreeMap<String, String>,
    /// Who may attest to it. Empty: nobody.
    pub attest: BTreeSet<Attestor>,
    /// Names in the certificate besides the SPIFFE ID.
    pub dns_names: Vec<String>,
    pub inbound: Vec<InboundPort>,
    pub outbound: Vec<OutboundPort>,
    pub credentials: Vec<ObjectName>,
    pub drain: Duration,
    /// Instead of the mesh's.
    pub authorization: Option<fender_policy::Default>,
}

/// A way to prove being a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Attestor {
    /// A join token.
    Token,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundPort {
    pub listen: ListenAddr,
    pub app: AppAddress,
    pub protocol: Protocol,
    /// Where other workloads find it, if that is known.
    pub advertise: Option<HostPort>,
    pub client_certificate: ClientCertificate,
    pub paths: PathRules,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboundPort {
    pub listen: ListenAddr,
    pub to: OutboundTo,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutboundTo {
    /// Resolved already: whom to expect, where, speaking what.
    Service { workload: WorkloadName, address: HostPort, protocol: Protocol },
    Upstream(ObjectName),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    pub name: ObjectName,
    pub protocol: Protocol,
    pub address: HostPort,
    pub roots: UpstreamRoots,
    pub certificate: OwnCertificate,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    pub name: ObjectName,
    pub source: CredentialFrom,
    pub deliver: Vec<Delivery>,
}

/// Where the value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialFrom {
    SidecarFile(PathBuf),
    /// The control plane reads it and sends it on the workload's stream.
    ControlFile(PathBuf),
}

/// A policy and whom it selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectingPolicy {
    pub policy: Policy,
    pub selector: Selector,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    /// None: every namespace.
    pub namespace: Option<String>,
    /// All of them must be on the workload.
    pub labels: BTreeMap<String, String>,
}

impl Selector {
    pub fn selects(&self, workload: &Workload) -> bool {
        self.namespace.as_deref().is_none_or(|namespace| namespace == workload.name.namespace())
            && self.labels.iter().all(|(key, value)| workload.labels.get(key) == Some(value))
    }
}

impl Workload {
    pub fn spiffe_id(&self, trust_domain: &TrustDomain) -> SpiffeId {
        SpiffeId::for_workload(trust_domain, &self.name)
    }
}

/// The kinds of documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Mesh,
    Workload,
    Upstream,
    Credential,
    AuthorizationPolicy,
    Sidecar,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mesh => "Mesh",
            Self::Workload => "Workload",
            Self::Upstream => "Upstream",
            Self::Credential => "Credential",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::Sidecar => "Sidecar",
        })
    }
}

/// One line of a difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub kind: Kind,
    pub name: String,
    pub what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum What {
    Added,
    Changed,
    Removed,
}
