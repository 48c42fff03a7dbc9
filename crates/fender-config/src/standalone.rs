//! A sidecar alone: `fender sidecar --config FILE`, no control plane.
//!
//! The file holds one `Sidecar`, and the `AuthorizationPolicy`, `PeerAuthentication` and `Credential` documents it needs.
//! Who the sidecar is comes from its certificate, so a [`Snapshot`] can be made only once that was
//! read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fender_identity::{SpiffeId, Trust};
use fender_policy::{Policy, PolicyName, PolicySet};

use crate::documents::snapshot::selected;
use crate::documents::{Credential, Kind, PeerAuthentication, SelectingPolicy, Via, collisions};
use crate::objects::Objects;
use crate::problem::{Place, Report};
use crate::read::{self, Alone, DirectPort, Loaded, ROOT_NAMESPACE, Raw, Upon};
use crate::snapshot::{CredentialSpec, Destination, Outbound, PortCertificate, Profile, Snapshot};
use crate::yaml::{Page, Reader};
use crate::{InboundPort, ListenAddr, ObjectName, Problem, Problems, Source};

/// Where key and certificates lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub bundle: PathBuf,
}

/// Whence a sidecar alone has its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    Files(IdentityFiles),
    /// A SPIFFE Workload API.
    WorkloadApi(WorkloadApi),
}

/// A SPIFFE Workload API, and who to be among those it offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadApi {
    pub socket: PathBuf,
    /// Who must listen there. None: root, or the user that asks.
    pub uid: Option<u32>,
    /// None: whoever it names first.
    pub id: Option<SpiffeId>,
}

/// What such a file says, checked together.
#[derive(Clone, Debug, PartialEq)]
pub struct Standalone {
    /// None of what only delivers credentials: then it has no ports.
    pub identity: Option<Identity>,
    /// What is allowed but probably not meant.
    pub warnings: Vec<Problem>,
    sidecar: Alone,
    policies: Vec<SelectingPolicy>,
    peer_authentications: Objects<PolicyName, PeerAuthentication>,
    credentials: Vec<Credential>,
}

/// Reads all sources together, as [`crate::parse`] does.
pub fn parse(sources: &[Source]) -> Result<Standalone, Problems> {
    let mut report = Report::default();
    let read = read_all(sources, &mut report);
    if read.is_none() && report.is_clean() {
        let place = Place::whole_file(sources.first().map_or("", |source| &source.name));
        let problem = Problem::new(
            place,
            "fender::no-sidecar",
            "there is no `Sidecar` document",
        );
        report
            .add(problem.help("a sidecar without a control plane is described by `kind: Sidecar`"));
    }
    let (warnings, (sidecar, policies, peer_authentications, credentials)) =
        report.finish(sources, read)?;
    Ok(Standalone {
        identity: sidecar.identity.clone(),
        warnings,
        sidecar,
        policies,
        peer_authentications,
        credentials,
    })
}

type Parts = (
    Alone,
    Vec<SelectingPolicy>,
    Objects<PolicyName, PeerAuthentication>,
    Vec<Credential>,
);

fn read_all(sources: &[Source], report: &mut Report) -> Option<Parts> {
    let nothing = Upon::default();
    let structure = |page: &Page<'_>| read::read(page).map(Arc::new);
    let Loaded { documents, known } = read::load(sources, &nothing, structure, report);
    let (mut sidecar, mut policies, mut all) = (None, Vec::new(), BTreeMap::new());
    let mut peer_authentications = Objects::default();
    for (page, raw) in documents {
        let kind = raw.kind();
        let reader = &mut Reader { page, report };
        match Raw::clone(&raw) {
            Raw::Sidecar(raw) => sidecar = sidecar.or(read::sidecar(reader, &known, raw)),
            Raw::AuthorizationPolicy(raw) => {
                let place = page.place(raw.metadata.value.name.location);
                policies.extend(
                    read::policy(reader, raw, ROOT_NAMESPACE).map(|policy| (place, policy)),
                );
            }
            Raw::PeerAuthentication(raw) => {
                let all = &mut peer_authentications;
                read::add_peer_authentication(reader, all, raw, ROOT_NAMESPACE);
            }
            Raw::Credential(raw) => {
                let credential = read::credential(reader, *raw);
                all.extend(credential.map(|credential| (credential.name.clone(), credential)));
            }
            Raw::Mesh(_) | Raw::Workload(_) | Raw::Node(_) | Raw::Upstream(_) => report.add(
                Problem::new(
                    page.start(),
                    "fender::wrong-place",
                    format!("a `{kind}` belongs to a control plane"),
                )
                .help(
                    "a sidecar alone has one `Sidecar`, and the `AuthorizationPolicy`, `PeerAuthentication` \
                        and `Credential` documents it needs",
                ),
            ),
        }
    }
    let sidecar = sidecar?;
    let idle = |policy: &SelectingPolicy| {
        !policy
            .selector
            .selects_labels(sidecar.name.namespace(), &sidecar.labels)
    };
    for (place, policy) in policies.iter().filter(|(_, policy)| idle(policy)) {
        let message = format!(
            "the policy `{}` does not select this sidecar",
            policy.policy.name
        );
        report.warn(
            Problem::new(place.clone(), "fender::selects-nobody", message).help(
                "it selects by namespace, and by `selector.matchLabels` against the \
                    `metadata.labels` of the Sidecar",
            ),
        );
    }
    let selects = |one: &PeerAuthentication| {
        one.selector
            .selects_labels(sidecar.name.namespace(), &sidecar.labels)
    };
    let selecting: Vec<_> = peer_authentications
        .values()
        .filter(|one| selects(one))
        .collect();
    let (place, name) = (known.place(Kind::Sidecar, ""), sidecar.name.to_string());
    read::judge_clients(report, &place, &name, &sidecar.inbound, &selecting);
    let mut credentials = Vec::new();
    for credential in sidecar
        .credentials
        .iter()
        .filter_map(|name| all.remove(name))
    {
        if credential.via == Via::Control {
            let place = known.place(Kind::Credential, &credential.name.to_string());
            let message = format!(
                "the credential `{}` comes `via: control`, and there is no control plane here",
                credential.name
            );
            report.add(
                Problem::new(place, "fender::wrong-place", message).help("write `via: sidecar`"),
            );
        }
        credentials.push(credential);
    }
    read::judge_credentials(report, &place, &name, &sidecar.inbound, credentials.iter());
    for (one, other, what) in collisions(credentials.iter()) {
        let place = known.place(Kind::Credential, &other.to_string());
        let message =
            format!("two credentials go to one place: `{one}` and `{other}` both go to {what}");
        report.add(
            Problem::new(place, "fender::same-delivery", message)
                .help("deliver one of them elsewhere"),
        );
    }
    Some((
        sidecar,
        policies.into_iter().map(|(_, policy)| policy).collect(),
        peer_authentications,
        credentials,
    ))
}

impl Standalone {
    /// Name of the `Sidecar`, for logs.
    pub fn name(&self) -> &ObjectName {
        &self.sidecar.name
    }

    /// The credentials it may have.
    pub fn credentials(&self) -> impl Iterator<Item = CredentialSpec> {
        self.credentials.iter().map(Credential::spec)
    }

    /// The files of certificates and keys that its ports show beside its own.
    pub fn certificate_files(&self) -> impl Iterator<Item = &Path> {
        let ports = self.sidecar.inbound.iter();
        let certificates = ports.flat_map(|port| &port.certificates);
        certificates.flat_map(PortCertificate::files)
    }

    /// The Unix sockets it listens on.
    pub fn listening_sockets(&self) -> impl Iterator<Item = &Path> {
        let inbound = self.sidecar.inbound.iter().map(|port| &port.listen);
        let outbound = self.sidecar.outbound.iter().map(|port| &port.listen);
        inbound.chain(outbound).filter_map(|listen| match listen {
            ListenAddr::Unix(path) => Some(path.as_path()),
            ListenAddr::Tcp(_) => None,
        })
    }

    /// The same Snapshot a control plane would have sent.
    pub fn snapshot(&self, identity: &SpiffeId, trust: impl Into<Trust>, version: u64) -> Snapshot {
        let sidecar = &self.sidecar;
        let policies = selected(
            self.policies.iter(),
            sidecar.name.namespace(),
            &sidecar.labels,
            identity.trust_domain(),
        );
        Snapshot {
            identity: Some(identity.clone()),
            trust: trust.into(),
            ..self.of_nobody(policies, version)
        }
    }

    /// The Snapshot of one without an identity: nothing but its credentials, because who has ports has one.
    pub fn nameless_snapshot(&self, version: u64) -> Snapshot {
        self.of_nobody(Vec::new(), version)
    }

    fn of_nobody(&self, policies: Vec<Policy>, version: u64) -> Snapshot {
        let sidecar = &self.sidecar;
        let policies = PolicySet {
            default: sidecar.authorization,
            policies,
        };
        let listener = |port: &InboundPort| {
            let selecting = self.peer_authentications.values().filter(|one| {
                let selector = &one.selector;
                selector.selects_labels(sidecar.name.namespace(), &sidecar.labels)
            });
            let mtls = port.mtls(selecting);
            port.listener(&sidecar.tls_profiles, &sidecar.tls, &sidecar.limits, mtls)
        };
        let inbound = sidecar.inbound.iter().map(listener);
        Snapshot {
            version,
            identity: None,
            profile: Profile::Production,
            trust: Trust::default(),
            tls: sidecar.tls.clone(),
            inbound: inbound.collect(),
            outbound: sidecar.outbound.iter().map(DirectPort::outbound).collect(),
            policies: Arc::new(policies),
            credentials: self.credentials.iter().map(Credential::spec).collect(),
            drain: sidecar.drain,
            max_age: None,
        }
    }
}

impl DirectPort {
    fn outbound(&self) -> Outbound {
        Outbound {
            listen: self.listen.clone(),
            to: Destination::Service {
                id: self.expect.clone(),
                addresses: vec![self.connect.clone()],
                protocol: self.protocol,
            },
        }
    }
}
