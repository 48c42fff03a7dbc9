//! From documents to the [`Snapshot`] of one workload: its own policies, its declared destinations,
//! nobody else's.

use std::collections::BTreeMap;
use std::sync::Arc;

use fender_identity::tls::TlsProfile;
use fender_identity::{SpiffeId, Trust, TrustDomain, WorkloadName};
use fender_policy::{Condition, Policy, PolicySet, TextMatch};

use super::{
    Credential, Documents, InboundPort, OutboundTo, SelectingPolicy, TlsProfiles, Upstream, Via,
};
use crate::snapshot::{
    CredentialSource, CredentialSpec, Destination, Inbound, Mtls, Outbound, RequestLimits, Snapshot,
};

impl Documents {
    /// What the sidecar of this workload must know, and nothing more. None if there is no such
    /// workload.
    pub fn snapshot(&self, workload: &WorkloadName, version: u64) -> Option<Snapshot> {
        let (mesh, workload) = (self.mesh.as_ref()?, self.workloads.get(workload)?);
        let namespace = workload.name.namespace();
        let policies = PolicySet {
            default: workload.authorization.unwrap_or(mesh.authorization),
            policies: selected(
                self.policies_for(namespace).into_iter(),
                namespace,
                &workload.labels,
                &mesh.trust_domain,
            ),
        };
        let outbound = workload.outbound.iter().filter_map(|port| {
            let to = self.destination(&port.to, &mesh.trust_domain)?;
            Some(Outbound {
                listen: port.listen.clone(),
                to,
            })
        });
        let credentials = workload
            .credentials
            .iter()
            .filter_map(|name| self.credentials.get(name));
        let profiles = &mesh.tls_profiles;
        let tls = workload.tls.over(profiles, &mesh.tls_of(namespace));
        let limits = workload.limits.over(&mesh.limits_of(namespace));
        let ports = workload
            .inbound
            .iter()
            .map(|port| port.listener(profiles, &tls, &limits, self.mtls(workload, port)));
        Some(Snapshot {
            version,
            identity: Some(workload.spiffe_id(&mesh.trust_domain)),
            profile: mesh.profile,
            trust: Trust::default(),
            inbound: ports.collect(),
            tls,
            outbound: outbound.collect(),
            policies: Arc::new(policies),
            credentials: credentials.map(Credential::spec).collect(),
            drain: workload.drain,
            max_age: Some(mesh.snapshot_max_age),
        })
    }

    fn destination(&self, to: &OutboundTo, trust_domain: &TrustDomain) -> Option<Destination> {
        match to {
            OutboundTo::Service {
                workload,
                address,
                protocol,
            } => Some(Destination::Service {
                id: SpiffeId::for_workload(trust_domain, workload),
                addresses: vec![address.clone()],
                protocol: *protocol,
            }),
            OutboundTo::Upstream(name) => self.upstreams.get(name).map(Upstream::destination),
        }
    }
}

impl InboundPort {
    /// `tls` and `limits` are what the workload says.
    pub(crate) fn listener(
        &self,
        profiles: &TlsProfiles,
        tls: &TlsProfile,
        limits: &RequestLimits,
        mtls: Mtls,
    ) -> Inbound {
        Inbound {
            tls: self.tls.over(profiles, tls),
            listen: self.listen.clone(),
            app: self.app.clone(),
            protocol: self.protocol,
            mtls,
            certificates: self.certificates.clone(),
            paths: self.paths.clone(),
            proxy_protocol: self.proxy_protocol.clone(),
            app_proxy_protocol: self.app_proxy_protocol,
            app_protocol: self.app_protocol,
            forwarded: self.forwarded.clone(),
            limits: self.limits.over(limits),
        }
    }
}

impl Upstream {
    fn destination(&self) -> Destination {
        Destination::Upstream {
            name: self.name.clone(),
            address: self.address.clone(),
            protocol: self.protocol,
            roots: self.roots.clone(),
            certificate: self.certificate,
        }
    }
}

impl Credential {
    pub(crate) fn spec(&self) -> CredentialSpec {
        let source = match self.via {
            Via::Sidecar => CredentialSource::Direct(self.origin.clone()),
            Via::Control => CredentialSource::Control(self.origin.lifetime()),
        };
        CredentialSpec {
            name: self.name.clone(),
            source,
            max_stale: self.max_stale,
            deliver: self.deliver.clone(),
            notify: self.notify.clone(),
            on_exit: self.on_exit,
        }
    }
}

/// The policies among `all` that select this workload, as they read in this trust domain.
pub(crate) fn selected<'a>(
    all: impl Iterator<Item = &'a SelectingPolicy>,
    namespace: &str,
    labels: &BTreeMap<String, String>,
    trust_domain: &TrustDomain,
) -> Vec<Policy> {
    all.filter(|selecting| selecting.selector.selects_labels(namespace, labels))
        .map(|selecting| in_mesh(&selecting.policy, trust_domain))
        .collect()
}

/// `cluster.local` in a principal stands for the mesh's own trust domain, as in Istio.
fn in_mesh(policy: &Policy, trust_domain: &TrustDomain) -> Policy {
    let mut policy = policy.clone();
    for rule in &mut policy.rules {
        for source in &mut rule.from {
            source
                .principals
                .iter_mut()
                .chain(&mut source.not_principals)
                .for_each(|text| own(text, trust_domain));
        }
        for condition in &mut rule.when {
            if let Condition::SourcePrincipal { values, not_values } = condition {
                values
                    .iter_mut()
                    .chain(not_values)
                    .for_each(|text| own(text, trust_domain));
            }
        }
    }
    policy
}

fn own(principal: &mut TextMatch, trust_domain: &TrustDomain) {
    match principal {
        TextMatch::Exact(text) | TextMatch::Prefix(text) => {
            if let Some(path) = text.strip_prefix("cluster.local/") {
                *text = format!("{trust_domain}/{path}");
            }
        }
        TextMatch::Suffix(_) | TextMatch::Present => {}
    }
}
