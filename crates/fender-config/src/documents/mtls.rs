//! Istio's `PeerAuthentication`: whether clients come in over TLS, in the clear, or as they like.
//!
//! The most specific one that says it wins: a port of one that selects the workload, that one as a whole, the one of the
//! namespace, the one of the mesh, which lies in the root namespace. None of them: STRICT, where Istio is permissive. An
//! inbound port that has a `clientCertificate` of its own says it itself.

use std::collections::BTreeMap;

use fender_policy::PolicyName;

use super::{Documents, InboundPort, Selector, Workload};
use crate::ListenAddr;
use crate::snapshot::{ClientCertificate, Mtls};

/// One document. What it leaves unset is as it is further out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAuthentication {
    pub name: PolicyName,
    /// Without labels: everybody in its namespace, or in the mesh.
    pub selector: Selector,
    pub mode: Option<MtlsMode>,
    /// By the port that clients reach; only with labels.
    pub ports: BTreeMap<u16, Option<MtlsMode>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MtlsMode {
    Strict,
    Permissive,
    Disable,
}

/// How far one reaches, the widest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    Mesh,
    Namespace,
    Workload,
}

impl PeerAuthentication {
    pub(crate) fn scope(&self) -> Scope {
        match (&self.selector.namespace, self.selector.labels.is_empty()) {
            (None, _) => Scope::Mesh,
            (Some(_), true) => Scope::Namespace,
            (Some(_), false) => Scope::Workload,
        }
    }
}

/// What those that select somebody come to at a port.
fn mode<'a>(
    selecting: impl Iterator<Item = &'a PeerAuthentication>,
    port: Option<u16>,
) -> MtlsMode {
    let mut selecting: Vec<_> = selecting.collect();
    selecting.sort_by_key(|one| one.scope());
    let mut mode = MtlsMode::Strict;
    for one in selecting {
        mode = one.mode.unwrap_or(mode);
        let at_port = port.and_then(|port| one.ports.get(&port));
        mode = at_port.copied().flatten().unwrap_or(mode);
    }
    mode
}

impl InboundPort {
    /// How clients come in here, given those that select the workload.
    pub(crate) fn mtls<'a>(&self, selecting: impl Iterator<Item = &'a PeerAuthentication>) -> Mtls {
        if let Some(asked) = self.client_certificate {
            return Mtls::Strict(asked);
        }
        match mode(selecting, self.number()) {
            MtlsMode::Strict => Mtls::Strict(ClientCertificate::Require),
            MtlsMode::Permissive => Mtls::Permissive,
            MtlsMode::Disable => Mtls::Disabled,
        }
    }

    /// The port that clients reach; none at a Unix socket.
    pub(crate) fn number(&self) -> Option<u16> {
        match &self.listen {
            ListenAddr::Tcp(tcp) => Some(tcp.port()),
            ListenAddr::Unix(_) => None,
        }
    }
}

impl Documents {
    /// Those that select this workload.
    pub(crate) fn peer_authentications_of<'a>(
        &'a self,
        workload: &'a Workload,
    ) -> impl Iterator<Item = &'a PeerAuthentication> {
        self.peer_authentications
            .values()
            .filter(|one| one.selector.selects(workload))
    }

    /// How clients come in at a port of this workload.
    pub fn mtls(&self, workload: &Workload, port: &InboundPort) -> Mtls {
        port.mtls(self.peer_authentications_of(workload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(
        namespace: Option<&str>,
        labelled: bool,
        mode: Option<MtlsMode>,
        ports: &[(u16, Option<MtlsMode>)],
    ) -> PeerAuthentication {
        let labels = labelled.then(|| ("app".to_owned(), "orders".to_owned()));
        PeerAuthentication {
            name: "shop/one".parse().unwrap(),
            selector: Selector {
                namespace: namespace.map(str::to_owned),
                labels: labels.into_iter().collect(),
            },
            mode,
            ports: ports.iter().copied().collect(),
        }
    }

    #[test]
    fn the_most_specific_one_that_says_it_wins() {
        use MtlsMode::{Disable, Permissive, Strict};
        let mesh = one(None, false, Some(Permissive), &[]);
        let namespace = one(Some("shop"), false, Some(Disable), &[]);
        let workload = one(
            Some("shop"),
            true,
            None,
            &[(8443, Some(Strict)), (8444, None)],
        );
        let at = |all: &[&PeerAuthentication], port| mode(all.iter().copied(), Some(port));
        assert_eq!(at(&[], 1), Strict);
        assert_eq!(at(&[&mesh], 1), Permissive);
        assert_eq!(at(&[&namespace, &mesh], 1), Disable);
        assert_eq!(at(&[&workload, &namespace, &mesh], 1), Disable);
        assert_eq!(at(&[&workload, &mesh], 8443), Strict);
        assert_eq!(at(&[&workload, &mesh], 8444), Permissive);
        assert_eq!(mode([&workload].into_iter(), None), Strict);
        let unset = one(Some("shop"), false, None, &[]);
        assert_eq!(at(&[&unset, &mesh], 1), Permissive);
    }
}
