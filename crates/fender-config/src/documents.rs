//! The validated documents: what a mesh is made of.

mod attest;
mod deliveries;
mod diff;
mod mtls;
pub(crate) mod snapshot;
mod tls;
mod touched;
mod vouching;

pub use attest::{
    Attestor, DockerSelector, Image, KubernetesSelector, On, Sha256, UnixSelector, X509Selector,
};
pub(crate) use deliveries::collisions;
pub use diff::{Change, What};
pub(crate) use mtls::Scope;
pub use mtls::{MtlsMode, PeerAuthentication};
pub use tls::{TlsParameters, TlsProfiles, TlsRule};
pub use vouching::{Cluster, IssuingAuthority, KeySource, TokenReview, Vouching};

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fender_identity::tls::TlsProfile;
use fender_identity::{NodeName, SpiffeId, TrustDomain, WorkloadName};
use fender_policy::{Policy, PolicyName};

use crate::administrators::{Administrator, MinimumVersion};
use crate::memory::Memory;
use crate::objects::Objects;
use crate::problem::{Place, Report};
use crate::read::{self, Known, Loaded, Ports, ROOT_NAMESPACE, Raw, Upon, Whom};
use crate::snapshot::{
    AppProtocol, AppProxyProtocol, ClientCertificate, Delivery, Forwarded, Notification, OnExit,
    Origin, OwnCertificate, PathRules, PortCertificate, Profile, Protocol, ProxyProtocol,
    RequestLimits, UpstreamRoots,
};
use crate::yaml::Reader;
use crate::{AppAddress, HostPort, ListenAddr, ObjectName, Problem, Problems, Source};

/// Everything that was written, checked together: every reference leads somewhere.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Documents {
    pub mesh: Option<Mesh>,
    pub workloads: Objects<WorkloadName, Workload>,
    pub nodes: Objects<NodeName, Node>,
    pub upstreams: Objects<ObjectName, Upstream>,
    pub credentials: Objects<ObjectName, Credential>,
    pub policies: Objects<PolicyName, SelectingPolicy>,
    pub peer_authentications: Objects<PolicyName, PeerAuthentication>,
    /// What is allowed but probably not meant.
    pub warnings: Vec<Problem>,
}

impl Documents {
    /// Whether there is an object of this kind, and any name.
    pub(crate) fn any(&self, kind: Kind) -> bool {
        match kind {
            Kind::Mesh => self.mesh.is_some(),
            Kind::Workload => !self.workloads.is_empty(),
            Kind::Node => !self.nodes.is_empty(),
            Kind::Upstream => !self.upstreams.is_empty(),
            Kind::Credential => !self.credentials.is_empty(),
            Kind::AuthorizationPolicy => !self.policies.is_empty(),
            Kind::PeerAuthentication => !self.peer_authentications.is_empty(),
            Kind::Sidecar => false,
        }
    }

    /// Whether there is an object of this kind and name: `namespace/name`; a Mesh of any.
    pub(crate) fn has(&self, kind: Kind, name: &str) -> bool {
        match kind {
            Kind::Mesh => self.mesh.is_some(),
            Kind::Workload => self.workloads.is_named(name),
            Kind::Node => self.nodes.is_named(name),
            Kind::Upstream => self.upstreams.is_named(name),
            Kind::Credential => self.credentials.is_named(name),
            Kind::AuthorizationPolicy => self.policies.is_named(name),
            Kind::PeerAuthentication => self.peer_authentications.is_named(name),
            Kind::Sidecar => false,
        }
    }

    /// Without the objects that are gone and were not read again.
    fn leave_out(&mut self, upon: &Upon, known: &Known<'_>) {
        for (kind, name) in upon.gone.iter().filter(|gone| !known.was_read(gone)) {
            match kind {
                Kind::Workload => self.workloads.remove(name),
                Kind::Node => self.nodes.remove(name),
                Kind::Upstream => self.upstreams.remove(name),
                Kind::Credential => self.credentials.remove(name),
                Kind::AuthorizationPolicy => self.policies.remove(name),
                Kind::PeerAuthentication => self.peer_authentications.remove(name),
                Kind::Mesh | Kind::Sidecar => {}
            }
        }
    }

    /// How many documents were written.
    pub fn count(&self) -> usize {
        usize::from(self.mesh.is_some())
            + self.workloads.len()
            + self.nodes.len()
            + self.upstreams.len()
            + self.credentials.len()
            + self.policies.len()
            + self.peer_authentications.len()
    }
}

/// A policy that selects nobody.
pub(crate) const IDLE: &str = "fender::selects-nobody";

/// Reads all sources together. Either everything is right, or every problem is told.
pub fn parse(sources: &[Source]) -> Result<Documents, Problems> {
    Memory::default().parse(sources).0
}

/// What it comes to; whatever is wrong with what was loaded goes into the report.
pub(crate) fn read_upon(
    upon: &Upon,
    loaded: Loaded<'_>,
    report: &mut Report,
) -> (Documents, Arc<Whom>) {
    let Loaded {
        documents: pages,
        known,
    } = loaded;
    let mut documents = upon.documents.clone();
    let (mut workloads, mut nodes, mut policies) = (Vec::new(), Vec::new(), Vec::new());
    let mut peer_authentications = Vec::new();
    let mut vouching = read::Names::default();
    for (page, raw) in pages {
        let reader = &mut Reader { page, report };
        if let Raw::Mesh(raw) = &*raw {
            vouching.add(&raw.spec);
        }
        match Raw::clone(&raw) {
            Raw::Mesh(raw) => documents.mesh = documents.mesh.take().or(read::mesh(reader, raw)),
            Raw::Workload(raw) => workloads.extend(read::workload(page, report, &known, raw)),
            Raw::Upstream(raw) => insert(
                &mut documents.upstreams,
                read::upstream(reader, raw),
                |it| &it.name,
            ),
            Raw::Credential(raw) => insert(
                &mut documents.credentials,
                read::credential(reader, *raw),
                |it| &it.name,
            ),
            Raw::Node(raw) => nodes.extend(read::node(reader, raw).map(|read| (page, read))),
            Raw::AuthorizationPolicy(raw) => policies.push((page, raw)),
            Raw::PeerAuthentication(raw) => peer_authentications.push((page, raw)),
            Raw::Sidecar(_) => report.add(
                Problem::new(
                    page.start(),
                    "fender::wrong-place",
                    "a `Sidecar` runs without a control plane",
                )
                .help("give it to `fender sidecar --config FILE`, or describe a `Workload` here"),
            ),
        }
    }
    if !known.any(Kind::Mesh)
        && let Some(first) = workloads.first()
    {
        report.add(
            Problem::new(
                first.start(),
                "fender::no-mesh",
                "there are workloads, but no `Mesh`",
            )
            .help(
                "a Mesh names the trust domain: `kind: Mesh`, `spec: { trustDomain: example.org }`",
            ),
        );
    }
    let whom = upon.whom.clone().unwrap_or_else(|| {
        let groups = nodes.iter().flat_map(|(_, (node, _))| &node.groups);
        let groups = groups.cloned().collect();
        Arc::new(Whom { groups, vouching })
    });
    for (page, (mut node, entries)) in nodes {
        let reader = &mut Reader { page, report };
        node.attest = read::resolve_attest(reader, &known, &whom, entries);
        documents.nodes.insert(node.name.clone(), node);
    }
    let root_namespace = documents
        .mesh
        .as_ref()
        .map_or(ROOT_NAMESPACE, |mesh| &mesh.root_namespace)
        .to_owned();
    for (page, raw) in peer_authentications {
        let reader = &mut Reader { page, report };
        read::add_peer_authentication(
            reader,
            &mut documents.peer_authentications,
            raw,
            &root_namespace,
        );
    }
    let ports = Ports::of(&workloads, upon);
    let mut read_here = Vec::new();
    for unresolved in workloads {
        let workload = unresolved.resolve(&known, &ports, &whom, &documents, report);
        read_here.push(workload.name.clone());
        documents.workloads.insert(workload.name.clone(), workload);
    }
    let mut doubtful = upon.doubtful.clone();
    for (page, raw) in policies {
        let at = page.place(raw.metadata.value.name.location);
        if let Some(selecting) = read::policy(&mut Reader { page, report }, raw, &root_namespace) {
            let name = &selecting.policy.name;
            doubtful.insert(name.clone(), at);
            documents.policies.insert(name.clone(), selecting);
        }
    }
    documents.leave_out(upon, &known);
    if known.everything_was_read() {
        documents.warn_of_idle_policies(doubtful, report);
    }
    documents.refuse_deliveries_over_each_other(&read_here, report, &known);
    documents.judge_clients(&read_here, report, &known);
    (documents, whom)
}

fn insert<K: Ord + Clone, V>(all: &mut Objects<K, V>, value: Option<V>, name: impl Fn(&V) -> &K) {
    if let Some(value) = value {
        all.insert(name(&value).clone(), value);
    }
}

impl Documents {
    fn warn_of_idle_policies(&self, places: BTreeMap<PolicyName, Place>, report: &mut Report) {
        for (name, place) in places {
            let selects =
                |policy: &SelectingPolicy| self.selected_by(&policy.selector).next().is_some();
            if !self.policies.get(&name).is_some_and(selects) {
                let warning = Problem::new(
                    place,
                    IDLE,
                    format!("the policy `{name}` selects no workload"),
                );
                report.warn(warning.help(
                    "it selects by namespace, and by `selector.matchLabels` against the \
                    `metadata.labels` of Workloads",
                ));
            }
        }
    }

    /// Two secrets in one place: the app would get one of them, by chance.
    fn refuse_deliveries_over_each_other(
        &self,
        workloads: &[WorkloadName],
        report: &mut Report,
        known: &Known<'_>,
    ) {
        for workload in workloads.iter().filter_map(|name| self.workloads.get(name)) {
            let specs = workload
                .credentials
                .iter()
                .filter_map(|name| self.credentials.get(name));
            let place = known.place(Kind::Workload, &workload.name.to_string());
            let (name, ports) = (workload.name.to_string(), &workload.inbound);
            read::judge_credentials(report, &place, &name, ports, specs.clone());
            for (one, other, what) in collisions(specs) {
                let place = known.place(Kind::Credential, &other.to_string());
                let message = format!(
                    "the workload `{}` gets two credentials in one place: `{one}` and \
                        `{other}` both go to {what}",
                    workload.name
                );
                report.add(
                    Problem::new(place, "fender::same-delivery", message)
                        .help("deliver one of them elsewhere"),
                );
            }
        }
    }
}

impl Documents {
    /// How clients come in at the ports of these workloads must be possible there.
    fn judge_clients(&self, workloads: &[WorkloadName], report: &mut Report, known: &Known<'_>) {
        for workload in workloads.iter().filter_map(|name| self.workloads.get(name)) {
            let name = workload.name.to_string();
            let place = known.place(Kind::Workload, &name);
            let selecting: Vec<_> = self.peer_authentications_of(workload).collect();
            read::judge_clients(report, &place, &name, &workload.inbound, &selecting);
        }
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
    pub tls: TlsRule,
    pub tls_profiles: TlsProfiles,
    pub limits: RequestLimits,
    /// What holds in one namespace instead of everywhere, by its name.
    pub namespaces: BTreeMap<String, Namespace>,
    /// How old a Snapshot may become.
    pub snapshot_max_age: Duration,
    /// What holds for a workload that no ALLOW policy selects, unless it says otherwise itself.
    pub authorization: fender_policy::Default,
    /// None: the document does not say, which is not the same as nobody.
    pub administrators: Option<Vec<Administrator>>,
    pub minimum_version: Option<MinimumVersion>,
    /// Whose word counts for service accounts, by name.
    pub clusters: BTreeMap<String, Cluster>,
    /// Whose certificates count at attestation, by name.
    pub authorities: BTreeMap<String, IssuingAuthority>,
}

/// What holds in one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    pub tls: TlsRule,
    pub limits: RequestLimits,
}

impl Mesh {
    /// What connections of this namespace must be, unless a workload or a port says otherwise.
    pub(crate) fn tls_of(&self, namespace: &str) -> TlsProfile {
        let mesh = self.tls.over(&self.tls_profiles, &TlsProfile::default());
        match self.namespaces.get(namespace) {
            Some(namespace) => namespace.tls.over(&self.tls_profiles, &mesh),
            None => mesh,
        }
    }

    /// What requests to workloads of this namespace may take, unless a workload or a port says otherwise.
    pub fn limits_of(&self, namespace: &str) -> RequestLimits {
        match self.namespaces.get(namespace) {
            Some(namespace) => namespace.limits.over(&self.limits),
            None => self.limits,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    pub leaf: Duration,
    /// How long after expiry a certificate may still renew itself.
    pub renewal_grace: Duration,
    /// Of the authority that signs everything.
    pub intermediate: Duration,
    /// Of the root it chains to.
    pub root: Duration,
    /// How long a new root is in every bundle before anything is signed under it.
    pub publication: Duration,
    /// How long one key signs tokens before the next one does.
    pub jwt_key: Duration,
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
    /// Over the mesh's and the namespace's.
    pub tls: TlsRule,
    /// Over the mesh's and the namespace's.
    pub limits: RequestLimits,
}

/// A host whose agent may speak for what runs there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: NodeName,
    pub groups: BTreeSet<String>,
    /// How its agent proves to be this node's. Empty: nobody can.
    pub attest: BTreeSet<Attestor>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundPort {
    pub listen: ListenAddr,
    pub app: AppAddress,
    pub protocol: Protocol,
    /// Where other workloads find it, if that is known.
    pub advertise: Option<HostPort>,
    /// What is asked of clients in TLS, which is then the only way in. None: as PeerAuthentications say.
    pub client_certificate: Option<ClientCertificate>,
    /// Over the workload's.
    pub tls: TlsRule,
    pub certificates: Vec<PortCertificate>,
    pub paths: PathRules,
    pub proxy_protocol: Option<ProxyProtocol>,
    pub app_proxy_protocol: AppProxyProtocol,
    pub app_protocol: AppProtocol,
    pub forwarded: Forwarded,
    /// Over the workload's.
    pub limits: RequestLimits,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboundPort {
    pub listen: ListenAddr,
    pub to: OutboundTo,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutboundTo {
    /// Resolved already: whom to expect, where, speaking what.
    Service {
        workload: WorkloadName,
        address: HostPort,
        protocol: Protocol,
    },
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
    pub via: Via,
    pub origin: Origin,
    pub max_stale: Duration,
    pub deliver: Vec<Delivery>,
    pub notify: Vec<Notification>,
    pub on_exit: OnExit,
}

impl Credential {
    /// What the control plane asks for it, if it does.
    pub fn asked_by_control(&self) -> Option<&Origin> {
        match self.via {
            Via::Control => Some(&self.origin),
            Via::Sidecar => None,
        }
    }
}

/// Who asks for the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    Sidecar,
    /// It sends the value on the workload's stream.
    Control,
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
        self.selects_labels(workload.name.namespace(), &workload.labels)
    }

    pub(crate) fn selects_labels(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> bool {
        self.namespace.as_deref().is_none_or(|of| of == namespace)
            && self
                .labels
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value))
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
    Node,
    Upstream,
    Credential,
    AuthorizationPolicy,
    PeerAuthentication,
    Sidecar,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mesh => "Mesh",
            Self::Workload => "Workload",
            Self::Node => "Node",
            Self::Upstream => "Upstream",
            Self::Credential => "Credential",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::Sidecar => "Sidecar",
        })
    }
}
