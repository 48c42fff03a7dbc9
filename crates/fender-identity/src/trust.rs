//! Whom to believe, and whom not any more.
//!
//! A [`Trust`] is the same for every workload of a mesh: the bundles by which anybody is recognised,
//! and the [`DenyList`] of those who are refused although their certificate has not expired. It says
//! nothing about what anybody may do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use rustls_pki_types::{CertificateRevocationListDer, UnixTime};

use crate::jwt::JwtBundles;
use crate::{Bundles, PeerSvid, Serial, SpiffeId, Svid, TrustDomain};

/// Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trust {
    /// Grows with every change; 0 where no control plane numbers it.
    pub version: u64,
    pub bundles: Arc<Bundles>,
    pub denied: Arc<DenyList>,
    /// What the deny list says, for verifiers that are not ours: one list of each authority.
    pub crls: Arc<[CertificateRevocationListDer<'static>]>,
    /// By which JWT-SVIDs are verified.
    pub jwt: Arc<JwtBundles>,
}

impl From<Bundles> for Trust {
    fn from(bundles: Bundles) -> Self {
        Arc::new(bundles).into()
    }
}

/// Nobody is refused.
impl From<Arc<Bundles>> for Trust {
    fn from(bundles: Arc<Bundles>) -> Self {
        Self {
            bundles,
            ..Self::default()
        }
    }
}

/// Certificates refused although they have not expired: some by their serial, others because they
/// were issued before a moment.
///
/// What is issued counts from the beginning of its validity, which nobody dates back behind a moment
/// that is listed here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DenyList {
    serials: BTreeSet<Serial>,
    identities: BTreeMap<SpiffeId, UnixTime>,
    workloads: BTreeMap<TrustDomain, UnixTime>,
}

impl DenyList {
    /// More of each kind are refused by whoever makes the list and by whoever reads it.
    pub const MAX_SERIALS: usize = 10_000;
    pub const MAX_RULES: usize = 10_000;

    pub fn deny_serial(&mut self, serial: Serial) {
        self.serials.insert(serial);
    }

    /// Denies what this identity was issued before a moment; of two moments the later one counts.
    pub fn deny_identity_before(&mut self, id: SpiffeId, moment: UnixTime) {
        let known = self.identities.entry(id).or_insert(moment);
        *known = moment.max(*known);
    }

    /// The same for every workload of a trust domain. The control plane and its administrators are
    /// no workloads.
    pub fn deny_workloads_before(&mut self, trust_domain: TrustDomain, moment: UnixTime) {
        let known = self.workloads.entry(trust_domain).or_insert(moment);
        *known = moment.max(*known);
    }

    pub fn denies(&self, peer: &PeerSvid) -> bool {
        self.serials.contains(peer.serial()) || self.begins(peer.id()) > Some(peer.not_before())
    }

    /// The same of a certificate that is our own.
    pub fn denies_own(&self, svid: &Svid) -> bool {
        self.serials.contains(svid.serial())
            || self.begins(svid.id()) > Some(svid.validity().not_before)
    }

    /// The same of a token, by when it was issued: a second is the finest it says, so what was issued in the moment's own
    /// second may be older and is denied. One that does not say it counts as older than everything.
    pub fn denies_token(&self, id: &SpiffeId, issued: Option<UnixTime>) -> bool {
        let moment = self.begins(id);
        moment.is_some_and(|moment| issued.is_none_or(|issued| issued <= moment))
    }

    /// From when on a certificate of this identity must be valid, if from any moment.
    pub fn begins(&self, id: &SpiffeId) -> Option<UnixTime> {
        let everybody = match id.is_reserved() {
            true => None,
            false => self.workloads.get(id.trust_domain()),
        };
        everybody.max(self.identities.get(id)).copied()
    }

    /// Denies what the other one denies as well.
    pub fn extend(&mut self, other: Self) {
        self.serials.extend(other.serials);
        for (id, moment) in other.identities {
            self.deny_identity_before(id, moment);
        }
        for (trust_domain, moment) in other.workloads {
            self.deny_workloads_before(trust_domain, moment);
        }
    }

    pub fn serials(&self) -> impl Iterator<Item = &Serial> {
        self.serials.iter()
    }

    pub fn identities(&self) -> impl Iterator<Item = (&SpiffeId, UnixTime)> {
        self.identities.iter().map(|(id, moment)| (id, *moment))
    }

    pub fn workloads(&self) -> impl Iterator<Item = (&TrustDomain, UnixTime)> {
        self.workloads
            .iter()
            .map(|(domain, moment)| (domain, *moment))
    }
}

/// What a chain is verified with.
#[derive(Clone, Copy, Debug)]
pub struct Believed<'a> {
    pub(crate) bundles: &'a Bundles,
    pub(crate) denied: &'a DenyList,
}

impl<'a> From<&'a Trust> for Believed<'a> {
    fn from(trust: &'a Trust) -> Self {
        Self {
            bundles: &trust.bundles,
            denied: &trust.denied,
        }
    }
}

/// Bundles alone: nobody is refused.
impl<'a> From<&'a Bundles> for Believed<'a> {
    fn from(bundles: &'a Bundles) -> Self {
        static NOBODY: LazyLock<DenyList> = LazyLock::new(DenyList::default);
        Self {
            bundles,
            denied: &NOBODY,
        }
    }
}

impl<'a> From<&'a Arc<Bundles>> for Believed<'a> {
    fn from(bundles: &'a Arc<Bundles>) -> Self {
        Self::from(&**bundles)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{NOW, at, id, root};
    use crate::verify::{Refusal, Role, verify};

    const ORDERS: &str = "spiffe://mesh.example/ns/shop/sa/orders";
    const ADMIN: &str = "spiffe://mesh.example/fender/admin/first";

    /// What is said of a certificate under a deny list.
    fn judged(name: &str, deny: impl FnOnce(&mut DenyList, &PeerSvid)) -> Result<(), Refusal> {
        let root = root("mesh root");
        let chain = root.leaf(name).sent();
        let mut trust = Trust::from(root.bundles("mesh.example"));
        let peer = verify(&chain, Role::Client, &trust, at(NOW), &|_| Ok(())).unwrap();
        deny(Arc::make_mut(&mut trust.denied), &peer);
        verify(&chain, Role::Client, &trust, at(NOW), &|_| Ok(())).map(drop)
    }

    fn domain() -> TrustDomain {
        "mesh.example".parse().unwrap()
    }

    #[test]
    fn a_certificate_is_denied_by_its_serial_its_identity_or_its_age() {
        let revoked = Err(Refusal::Revoked(id(ORDERS)));
        let later = |peer: &PeerSvid| at(peer.not_before().as_secs() + 1);
        assert_eq!(
            judged(ORDERS, |list, peer| list.deny_serial(peer.serial().clone())),
            revoked
        );
        assert_eq!(
            judged(ORDERS, |list, peer| list
                .deny_identity_before(id(ORDERS), later(peer))),
            revoked
        );
        assert_eq!(
            judged(ORDERS, |list, peer| list
                .deny_workloads_before(domain(), later(peer))),
            revoked
        );
    }

    #[test]
    fn attack_a_token_of_the_moments_own_second_is_denied() {
        let mut list = DenyList::default();
        assert!(!list.denies_token(&id(ORDERS), None));
        list.deny_identity_before(id(ORDERS), at(NOW));
        assert!(list.denies_token(&id(ORDERS), None));
        assert!(list.denies_token(&id(ORDERS), Some(at(NOW - 1))));
        assert!(list.denies_token(&id(ORDERS), Some(at(NOW))));
        assert!(!list.denies_token(&id(ORDERS), Some(at(NOW + 1))));
        assert!(!list.denies_token(&id(ADMIN), Some(at(NOW))));
    }

    #[test]
    fn what_begins_at_the_moment_itself_and_what_is_anothers_is_not_denied() {
        let judged = judged(ORDERS, |list, peer| {
            list.deny_identity_before(id(ORDERS), peer.not_before());
            list.deny_workloads_before(domain(), peer.not_before());
            list.deny_identity_before(id("spiffe://mesh.example/ns/shop/sa/web"), at(NOW));
            list.deny_workloads_before("other.example".parse().unwrap(), at(NOW));
            list.deny_serial("7f".parse().unwrap());
        });
        assert_eq!(judged, Ok(()));
    }

    #[test]
    fn a_rule_for_every_workload_leaves_the_administrators_in() {
        let judged = judged(ADMIN, |list, _| {
            list.deny_workloads_before(domain(), at(NOW))
        });
        assert_eq!(judged, Ok(()));
    }

    #[test]
    fn of_two_moments_the_later_one_counts() {
        let mut list = DenyList::default();
        list.deny_identity_before(id(ORDERS), at(NOW));
        list.deny_identity_before(id(ORDERS), at(NOW - 9));
        assert_eq!(list.begins(&id(ORDERS)), Some(at(NOW)));
        let mut other = DenyList::default();
        other.deny_workloads_before(domain(), at(NOW + 9));
        list.extend(other);
        assert_eq!(list.begins(&id(ORDERS)), Some(at(NOW + 9)));
    }
}
