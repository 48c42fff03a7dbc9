//! What an administrator may do, and what it takes to change the documents. Pure: who asks, what is in force and what is
//! proposed go in, and what is missing comes out.
//!
//! A proposal is always the whole set of documents, and is judged by its difference to what is in force, by meaning. A
//! change takes the role `operator` in its namespace; one that decides who anybody *is*, or reaches beyond its namespace,
//! takes `security`. What is not known here takes `security` too. Since the `Mesh` says who may do what, and only
//! `security` may change it, nobody can give a role that they lack.

use std::collections::BTreeMap;

use fender_config::snapshot::{ClientCertificate, Mtls, RequestLimits};
use fender_config::{
    Change, Documents, Kind, ListenAddr, Mesh, ObjectName, Reach, Role, TlsParameters, What,
    Workload,
};
use fender_identity::WorkloadName;

/// The administrator that every data directory begins with. Until a `Mesh` says who may administer, it is this one.
pub(crate) const FIRST: &str = "first";

/// What one administrator may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rights(Vec<(Role, Reach)>);

impl Rights {
    /// What the mesh gives to the administrator of this name.
    pub(crate) fn of(mesh: &Mesh, name: &str) -> Self {
        match &mesh.administrators {
            Some(named) => Self(
                named
                    .iter()
                    .filter(|admin| admin.name == name)
                    .map(|admin| (admin.role, admin.reach.clone()))
                    .collect(),
            ),
            None if name == FIRST => Self(vec![(Role::Security, Reach::Everywhere)]),
            None => Self(Vec::new()),
        }
    }

    /// The highest role, wherever it holds. None: not an administrator, or not any more.
    pub(crate) fn highest(&self) -> Option<Role> {
        self.0.iter().map(|(role, _)| *role).max()
    }

    /// Whether the role holds in this namespace.
    pub(crate) fn hold(&self, role: Role, namespace: &str) -> bool {
        self.0
            .iter()
            .any(|(held, reach)| *held >= role && reach.includes(namespace))
    }

    /// Whether the role holds at all.
    pub(crate) fn hold_somewhere(&self, role: Role) -> bool {
        self.highest().is_some_and(|highest| highest >= role)
    }

    pub(crate) fn security(&self) -> bool {
        self.hold_somewhere(Role::Security)
    }
}

/// Everybody with the role `security`.
pub(crate) fn security(mesh: &Mesh) -> Vec<&str> {
    match &mesh.administrators {
        None => vec![FIRST],
        Some(named) => {
            let mut names: Vec<_> = named
                .iter()
                .filter(|admin| admin.role == Role::Security)
                .map(|admin| admin.name.as_str())
                .collect();
            names.sort_unstable();
            names.dedup();
            names
        }
    }
}

/// Whether a certificate may be made for the administrator of this name: somebody says that there is one.
pub(crate) fn is_named(mesh: &Mesh, name: &str) -> bool {
    Rights::of(mesh, name).highest().is_some()
}

/// A change that the administrator may not make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Missing {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    pub(crate) role: Role,
    /// What about it takes the role.
    pub(crate) why: &'static str,
}

/// Every change that takes more than the administrator holds.
pub(crate) fn missing(
    rights: &Rights,
    before: &Documents,
    after: &Documents,
    changes: &[Change],
) -> Vec<Missing> {
    changes
        .iter()
        .filter_map(|change| {
            let (role, why) = takes(change, before, after);
            let held = match role {
                Role::Security => rights.security(),
                Role::Viewer | Role::Operator => rights.hold(role, namespace(change)),
            };
            (!held).then(|| Missing {
                kind: change.kind,
                name: change.name.clone(),
                role,
                why,
            })
        })
        .collect()
}

/// The namespace of what is changed; empty for what belongs to none.
pub(crate) fn namespace(change: &Change) -> &str {
    change.name.split_once('/').map_or("", |(of, _)| of)
}

fn takes(change: &Change, before: &Documents, after: &Documents) -> (Role, &'static str) {
    let operator = (
        Role::Operator,
        "documents are changed by the operators of their namespace",
    );
    let security = |why| (Role::Security, why);
    match change.kind {
        Kind::Mesh => security("the `Mesh` holds for everybody"),
        Kind::Workload => match change.name.parse::<WorkloadName>() {
            Ok(name) => match identity_changes(&name, before, after) {
                Some(why) => security(why),
                None => operator,
            },
            Err(_) => security("it has no name"),
        },
        Kind::Credential => match change.name.parse::<ObjectName>() {
            Ok(name) => {
                let asks = |documents: &Documents| {
                    let credential = documents.credentials.get(&name)?;
                    credential.asked_by_control().cloned()
                };
                match (asks(before), asks(after)) {
                    (_, None) => operator,
                    (Some(one), Some(other)) if one == other => operator,
                    (_, Some(_)) => security("it has the control plane read a file"),
                }
            }
            Err(_) => security("it has no name"),
        },
        Kind::AuthorizationPolicy => match is_root(change, before, after) {
            true => security("a policy of the root namespace selects workloads of every namespace"),
            false => operator,
        },
        Kind::PeerAuthentication => {
            if is_root(change, before, after) {
                return security("a PeerAuthentication of the root namespace is for everybody");
            }
            let concerned = after.workloads.values();
            let mut concerned = concerned.filter(|one| one.name.namespace() == namespace(change));
            match concerned.any(|one| opens(&one.name, before, after)) {
                true => security(OPENED),
                false => operator,
            }
        }
        Kind::Upstream => operator,
        Kind::Node => security("a `Node` says which host may speak for whom"),
        Kind::Sidecar => security("it belongs to no control plane"),
    }
}

/// What of a workload's identity differs, of how its callers prove theirs, or of what they may take. To take a workload away is not to say who
/// it is.
fn identity_changes(
    name: &WorkloadName,
    all_before: &Documents,
    all_after: &Documents,
) -> Option<&'static str> {
    let before = all_before.workloads.get(name);
    let after = all_after.workloads.get(name)?;
    let attest = before.map(|workload| &workload.attest);
    if attest.map_or(!after.attest.is_empty(), |attest| *attest != after.attest) {
        return Some("`attest` says who gets this identity");
    }
    let names = before.map_or(&[][..], |workload| &workload.dns_names);
    if after.dns_names.iter().any(|name| !names.contains(name)) {
        return Some(
            "`dnsNames` go into the certificate, and are believed by clients that verify names",
        );
    }
    if believes_more(before, after) {
        return Some("`proxyProtocol` says who is believed to come from anywhere");
    }
    if opens(name, all_before, all_after) {
        return Some(OPENED);
    }
    let raised_before = raised(name, all_before);
    let mut raised = raised(name, all_after).into_iter();
    if raised.any(|(place, limits)| raised_before.get(&place) != Some(&limits)) {
        return Some("`limits` take more than the `Mesh` says for its namespace");
    }
    let written_before = before.map(written_out).unwrap_or_default();
    let written = written_out(after)
        .into_iter()
        .any(|(place, parameters)| written_before.get(&place) != Some(&parameters));
    written.then_some(
        "TLS parameters that are written out may be weaker than any profile; naming one of the Mesh's `tlsProfiles` takes less",
    )
}

/// The TLS parameters that it writes out itself, for everything or at one port.
fn written_out(workload: &Workload) -> BTreeMap<Option<&ListenAddr>, &TlsParameters> {
    let ports = workload.inbound.iter();
    let ports = ports.map(|port| (Some(&port.listen), &port.tls.parameters));
    std::iter::once((None, &workload.tls.parameters))
        .chain(ports)
        .filter(|(_, parameters)| **parameters != TlsParameters::default())
        .collect()
}

/// Where it lets requests take more than the mesh says, for everybody or for its namespace.
fn raised<'a>(
    name: &WorkloadName,
    documents: &'a Documents,
) -> BTreeMap<Option<&'a ListenAddr>, &'a RequestLimits> {
    let both = documents.mesh.as_ref().zip(documents.workloads.get(name));
    let Some((mesh, workload)) = both else {
        return BTreeMap::new();
    };
    let around = mesh.limits_of(name.namespace());
    let ports = workload.inbound.iter();
    let ports = ports.map(|port| (Some(&port.listen), &port.limits));
    std::iter::once((None, &workload.limits))
        .chain(ports)
        .filter(|(_, limits)| limits.exceed(&around))
        .collect()
}

const OPENED: &str = "it lets callers in who prove nothing";

/// Whether callers get in at any port of this workload who proved something before, or did not get in.
fn opens(name: &WorkloadName, before: &Documents, after: &Documents) -> bool {
    let open_before = open_ports(name, before);
    let mut open = open_ports(name, after).into_iter();
    open.any(|(listen, mtls)| open_before.get(listen) != Some(&mtls))
}

/// Whether a sender of PROXY headers is named that was not one on the same port.
fn believes_more(before: Option<&Workload>, after: &Workload) -> bool {
    let senders = |workload: &'_ Workload, listen: &ListenAddr| {
        let mut ports = workload.inbound.iter();
        let port = ports.find(|port| port.listen == *listen);
        port.and_then(|port| port.proxy_protocol.clone())
    };
    after.inbound.iter().any(|port| {
        let was = before.and_then(|before| senders(before, &port.listen));
        let is_new = |block| !was.as_ref().is_some_and(|was| was.from.contains(block));
        port.proxy_protocol
            .as_ref()
            .is_some_and(|senders| senders.from.iter().any(is_new))
    })
}

/// Ports that do not require a certificate of their clients.
fn open_ports<'a>(name: &WorkloadName, documents: &'a Documents) -> BTreeMap<&'a ListenAddr, Mtls> {
    let Some(workload) = documents.workloads.get(name) else {
        return BTreeMap::new();
    };
    workload
        .inbound
        .iter()
        .map(|port| (&port.listen, documents.mtls(workload, port)))
        .filter(|(_, mtls)| *mtls != Mtls::Strict(ClientCertificate::Require))
        .collect()
}

/// Whether what changes lies in the root namespace, now or before.
fn is_root(change: &Change, before: &Documents, after: &Documents) -> bool {
    [before, after]
        .iter()
        .filter_map(|documents| documents.mesh.as_ref())
        .any(|mesh| mesh.root_namespace == namespace(change))
}

/// Workloads that nobody can be any more: their document is gone, or nobody may attest to it.
pub(crate) fn orphaned<'a>(
    before: &'a Documents,
    after: &Documents,
    changes: &[Change],
) -> Vec<&'a WorkloadName> {
    changes
        .iter()
        .filter(|change| change.kind == Kind::Workload && change.what != What::Added)
        .filter_map(|change| before.workloads.get(&change.name.parse().ok()?))
        .filter(|was| match after.workloads.get(&was.name) {
            None => true,
            Some(is) => is.attest.is_empty() && !was.attest.is_empty(),
        })
        .map(|was| &was.name)
        .collect()
}

#[cfg(test)]
mod tests;
