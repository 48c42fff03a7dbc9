//! Attacks on the verification of one chain, without TLS around it.

use std::cell::Cell;

use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose,
};

use super::*;
use crate::testing::{
    DAY, HOUR, Issued, NOW, at, authority, dns, domain, id, leaf, root, self_signed,
    uncritical_key_usage, uri, valid,
};
use crate::{Bundle, Bundles};

const ORDERS: &str = "spiffe://mesh.example/ns/shop/sa/orders";
const MESH: &str = "mesh.example";

fn check(chain: &[CertificateDer<'_>], bundles: &Bundles) -> Result<PeerSvid, Refusal> {
    check_at(chain, bundles, NOW)
}

/// Also defends, in every test: nobody is asked to authorize before the chain holds.
fn check_at(
    chain: &[CertificateDer<'_>],
    bundles: &Bundles,
    now: u64,
) -> Result<PeerSvid, Refusal> {
    let asked = Cell::new(0);
    let outcome = verify(chain, Role::Client, bundles, at(now), &|_| {
        asked.set(asked.get() + 1);
        Ok(())
    });
    assert_eq!(
        asked.get(),
        usize::from(outcome.is_ok()),
        "authorized {outcome:?}"
    );
    outcome
}

fn mesh() -> (Issued, Bundles) {
    let root = root("mesh root");
    let bundles = Bundles::from(root.bundle(MESH));
    (root, bundles)
}

/// What is said of a leaf that differs from a good one by `change`.
fn odd(change: impl FnOnce(&mut CertificateParams)) -> Refusal {
    let (root, bundles) = mesh();
    check(&root.odd_leaf(ORDERS, change).sent(), &bundles).unwrap_err()
}

#[test]
fn i1_a_leaf_under_its_root_is_its_identity() {
    let (root, bundles) = mesh();
    let leaf = root.leaf(ORDERS);
    for role in [Role::Client, Role::Server] {
        let peer = verify(&leaf.sent(), role, &bundles, at(NOW), &|_| Ok(())).unwrap();
        assert_eq!(peer.id(), &id(ORDERS));
        assert_eq!(peer.not_after(), at(NOW + HOUR));
        assert!(peer.showed(&leaf.der()));
        assert!(!peer.showed(&root.leaf(ORDERS).der()));
        assert_eq!(
            peer.leaf_fingerprint(),
            crate::certificate::sha256(&leaf.der())
        );
        assert_eq!(peer.serial(), leaf.svid().serial());
    }
}

#[test]
fn a_leaf_under_intermediates_is_verified_with_or_without_the_root_sent() {
    let (root, bundles) = mesh();
    let leaf = root.intermediate("one").intermediate("two").leaf(ORDERS);
    assert!(check(&leaf.sent(), &bundles).is_ok());
    assert!(check(&leaf.chain, &bundles).is_ok());
}

#[test]
fn dns_names_beside_the_one_uri_are_fine() {
    let (root, bundles) = mesh();
    let leaf = root.odd_leaf(ORDERS, |leaf| {
        leaf.subject_alt_names.push(dns("orders.internal"))
    });
    assert!(check(&leaf.sent(), &bundles).is_ok());
}

#[test]
fn an_empty_chain_is_nobody() {
    assert_eq!(check(&[], &mesh().1), Err(Refusal::NoCertificate));
}

#[test]
fn a_missing_intermediate_leaves_no_path() {
    let (root, bundles) = mesh();
    let leaf = root.intermediate("one").leaf(ORDERS);
    assert_eq!(check(&[leaf.der()], &bundles), Err(Refusal::UntrustedRoot));
}

#[test]
fn attack_self_signed_certificate() {
    let (_, bundles) = mesh();
    let mallory = self_signed(leaf(ORDERS));
    assert_eq!(check(&mallory.chain, &bundles), Err(Refusal::UntrustedRoot));
}

#[test]
fn attack_own_root_with_the_same_name() {
    let (_, bundles) = mesh();
    let mallory = root("mesh root").leaf(ORDERS);
    assert_eq!(
        check(&mallory.sent(), &bundles),
        Err(Refusal::UntrustedRoot)
    );
    assert_eq!(check(&mallory.chain, &bundles), Err(Refusal::UntrustedRoot));
}

#[test]
fn attack_trust_domain_confusion() {
    let (ours, mut bundles) = mesh();
    let theirs = root("partner root");
    bundles.insert(theirs.bundle("partner.example"));

    let honest = theirs.leaf("spiffe://partner.example/ns/a/sa/b");
    assert!(
        check(&honest.sent(), &bundles).is_ok(),
        "valid for its own domain"
    );

    let posing = theirs.leaf(ORDERS);
    assert_eq!(check(&posing.sent(), &bundles), Err(Refusal::UntrustedRoot));
    let reverse = ours.leaf("spiffe://partner.example/ns/a/sa/b");
    assert_eq!(
        check(&reverse.sent(), &bundles),
        Err(Refusal::UntrustedRoot)
    );
}

#[test]
fn attack_trust_domain_nobody_knows() {
    let (root, bundles) = mesh();
    let leaf = root.leaf("spiffe://evil.example/ns/shop/sa/orders");
    let refused = Refusal::ForeignTrustDomain(domain("evil.example"));
    assert_eq!(check(&leaf.sent(), &bundles), Err(refused));
    let refused = Refusal::ForeignTrustDomain(domain(MESH));
    assert_eq!(
        check(&root.leaf(ORDERS).sent(), &Bundles::new()),
        Err(refused)
    );
}

#[test]
fn attack_expired_certificate() {
    let (root, bundles) = mesh();
    let sent = root.leaf(ORDERS).sent();
    let not_after = at(NOW + HOUR);
    assert!(
        check_at(&sent, &bundles, NOW + HOUR).is_ok(),
        "the last second counts"
    );
    let now = at(NOW + HOUR + 1);
    let refusal = check_at(&sent, &bundles, NOW + HOUR + 1).unwrap_err();
    assert_eq!(refusal, Refusal::Expired { not_after, now });
    assert_eq!(
        refusal.to_string(),
        "certificate in the chain expired 1 s ago"
    );
}

#[test]
fn attack_certificate_not_yet_valid() {
    let (root, bundles) = mesh();
    let sent = root.leaf(ORDERS).sent();
    let not_before = at(NOW - HOUR);
    assert!(
        check_at(&sent, &bundles, NOW - HOUR).is_ok(),
        "the first second counts"
    );
    let now = at(NOW - HOUR - 1);
    let refusal = check_at(&sent, &bundles, NOW - HOUR - 1).unwrap_err();
    assert_eq!(refusal, Refusal::NotYetValid { not_before, now });
}

#[test]
fn attack_expired_intermediate() {
    let (root, bundles) = mesh();
    let mut old = authority("old");
    valid(&mut old, NOW - DAY, NOW - 1);
    let leaf = root.sign(old).leaf(ORDERS);
    let refusal = check(&leaf.sent(), &bundles).unwrap_err();
    assert_eq!(
        refusal,
        Refusal::Expired {
            not_after: at(NOW - 1),
            now: at(NOW)
        }
    );
}

#[test]
fn attack_expired_root() {
    let mut old = authority("mesh root");
    valid(&mut old, NOW - DAY, NOW - 1);
    let root = self_signed(old);
    let bundles = Bundles::from(root.bundle(MESH));
    assert_eq!(
        check(&root.leaf(ORDERS).sent(), &bundles),
        Err(Refusal::UntrustedRoot)
    );
}

#[test]
fn a_root_rotates_under_the_same_name_with_both_in_the_bundle() {
    let (old, new) = (root("mesh root"), root("mesh root"));
    let bundle = Bundle::new(domain(MESH), vec![old.der(), new.der()]).unwrap();
    let bundles = Bundles::from(bundle);
    for root in [old, new] {
        assert!(check(&root.intermediate("i").leaf(ORDERS).sent(), &bundles).is_ok());
    }
}

#[test]
fn attack_two_uri_names() {
    let second = "spiffe://mesh.example/ns/shop/sa/billing";
    let refusal = odd(|leaf| leaf.subject_alt_names.push(uri(second)));
    assert_eq!(refusal, Refusal::NotOneUri { found: 2 });
    let refusal = odd(|leaf| leaf.subject_alt_names.push(uri("https://example.com/")));
    assert_eq!(refusal, Refusal::NotOneUri { found: 2 });
    let refusal = odd(|leaf| leaf.subject_alt_names.push(uri(ORDERS)));
    assert_eq!(
        refusal,
        Refusal::NotOneUri { found: 2 },
        "the same one twice"
    );
}

#[test]
fn attack_no_uri_name() {
    let refusal = odd(|leaf| leaf.subject_alt_names.clear());
    assert_eq!(refusal, Refusal::NotOneUri { found: 0 });
    let refusal = odd(|leaf| leaf.subject_alt_names = vec![dns("mesh.example")]);
    assert_eq!(refusal, Refusal::NotOneUri { found: 0 });
}

#[test]
fn attack_names_in_two_extensions() {
    let mut content = vec![0x30, 0x06, 0x86, 0x04];
    content.extend(b"a://");
    let second = CustomExtension::from_oid_content(&[2, 5, 29, 17], content);
    let refusal = odd(|leaf| leaf.custom_extensions.push(second));
    assert_eq!(refusal, Refusal::Malformed(Malformed::Extension));
}

#[test]
fn attack_name_that_is_not_text() {
    // A good URI, beside a DNS name that is no text.
    let mut content = vec![0x30, 2 + 39 + 3, 0x86, 39];
    content.extend(ORDERS.as_bytes());
    content.extend([0x82, 0x01, 0xff]);
    assert_eq!(ORDERS.len(), 39);
    let names = CustomExtension::from_oid_content(&[2, 5, 29, 17], content);
    let refusal = odd(|leaf| {
        leaf.subject_alt_names.clear();
        leaf.custom_extensions.push(names);
    });
    assert_eq!(refusal, Refusal::Malformed(Malformed::Name));
}

#[test]
fn attack_uri_that_is_almost_an_identity() {
    for name in [
        "SPIFFE://mesh.example/ns/shop/sa/orders",
        "spiffe://mesh.example:443/ns/shop/sa/orders",
        "spiffe://MESH.example/ns/shop/sa/orders",
        "spiffe://mesh.example/ns/shop/../shop/sa/orders",
        "spiffe://mesh.example/ns/shop/sa/orders/",
        "spiffe://mesh.example/ns/shop/sa/orders?x",
        "spiffe://mesh.example/ns/shop/sa/%6frders",
        "https://mesh.example/ns/shop/sa/orders",
    ] {
        let refusal = odd(|leaf| leaf.subject_alt_names = vec![uri(name)]);
        assert!(
            matches!(refusal, Refusal::NotSpiffe(_)),
            "{name}: {refusal:?}"
        );
    }
}

#[test]
fn attack_trust_domain_without_a_path() {
    let refusal = odd(|leaf| leaf.subject_alt_names = vec![uri("spiffe://mesh.example")]);
    assert_eq!(refusal, Refusal::NoPath);
}

#[test]
fn attack_ca_as_a_leaf() {
    let refusal = odd(|leaf| leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    assert_eq!(refusal, Refusal::IsCa(id(ORDERS)));
}

#[test]
fn attack_no_key_usage() {
    assert_eq!(
        odd(|leaf| leaf.key_usages.clear()),
        Refusal::NoKeyUsage(id(ORDERS))
    );
}

#[test]
fn attack_key_usage_not_critical() {
    let refusal = odd(|leaf| {
        leaf.key_usages.clear();
        leaf.custom_extensions.push(uncritical_key_usage());
    });
    assert_eq!(refusal, Refusal::KeyUsageNotCritical(id(ORDERS)));
}

#[test]
fn attack_key_usage_twice() {
    let refusal = odd(|leaf| leaf.custom_extensions.push(uncritical_key_usage()));
    assert_eq!(refusal, Refusal::Malformed(Malformed::Extension));
}

#[test]
fn attack_key_usage_without_digital_signature() {
    let refusal = odd(|leaf| leaf.key_usages = vec![KeyUsagePurpose::KeyAgreement]);
    assert_eq!(refusal, Refusal::NoDigitalSignature(id(ORDERS)));
}

#[test]
fn attack_leaf_that_may_sign() {
    for usage in [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign] {
        let refusal = odd(|leaf| leaf.key_usages.push(usage));
        assert_eq!(refusal, Refusal::MaySign(id(ORDERS)));
    }
}

#[test]
fn attack_server_certificate_used_by_a_client() {
    let server_only = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let refusal = odd(|leaf| leaf.extended_key_usages = server_only);
    assert_eq!(refusal, Refusal::WrongPurpose(Role::Client));
    assert_eq!(
        refusal.to_string(),
        "certificate is not for use as a client"
    );

    let (root, bundles) = mesh();
    let client_only = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let leaf = root.odd_leaf(ORDERS, |leaf| leaf.extended_key_usages = client_only);
    assert!(check(&leaf.sent(), &bundles).is_ok());
    let refusal = verify(&leaf.sent(), Role::Server, &bundles, at(NOW), &|_| Ok(()));
    assert_eq!(refusal, Err(Refusal::WrongPurpose(Role::Server)));
}

#[test]
fn attack_leaf_as_an_intermediate() {
    let (root, bundles) = mesh();
    let mallory = root
        .leaf("spiffe://mesh.example/ns/shop/sa/mallory")
        .leaf(ORDERS);
    assert_eq!(check(&mallory.sent(), &bundles), Err(Refusal::IssuerNotCa));
}

#[test]
fn attack_intermediate_without_the_right_to_sign() {
    let (root, bundles) = mesh();
    let mut weak = authority("weak");
    weak.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let leaf = root.sign(weak).leaf(ORDERS);
    assert_eq!(check(&leaf.sent(), &bundles), Err(Refusal::IssuerNotCa));
}

#[test]
fn attack_intermediate_deeper_than_allowed() {
    let (root, bundles) = mesh();
    let mut last = authority("last");
    last.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let last = root.sign(last);
    assert!(check(&last.leaf(ORDERS).sent(), &bundles).is_ok());
    let deeper = last.intermediate("one more").leaf(ORDERS);
    assert_eq!(check(&deeper.sent(), &bundles), Err(Refusal::IssuerNotCa));
}

#[test]
fn attack_chain_too_long() {
    let (root, bundles) = mesh();
    let mut chain = root.leaf(ORDERS).sent();
    chain.resize(MAX_CHAIN, root.der());
    assert!(check(&chain, &bundles).is_ok());
    chain.push(root.der());
    assert_eq!(
        check(&chain, &bundles),
        Err(Refusal::ChainTooLong { length: 7 })
    );
}

#[test]
fn attack_huge_certificate() {
    let padding = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1], vec![0x04; 17 * 1024]);
    let refusal = odd(|leaf| leaf.custom_extensions.push(padding.clone()));
    assert!(matches!(refusal, Refusal::CertificateTooLarge { length } if length > 17 * 1024));

    let (root, bundles) = mesh();
    let mut huge = authority("huge");
    huge.custom_extensions.push(padding);
    let leaf = root.sign(huge).leaf(ORDERS);
    let refusal = check(&leaf.sent(), &bundles).unwrap_err();
    assert!(
        matches!(refusal, Refusal::CertificateTooLarge { .. }),
        "as an intermediate"
    );
}

#[test]
fn attack_critical_extension_nobody_knows() {
    let mut unknown = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 9], vec![0x05, 0x00]);
    unknown.set_criticality(true);
    let refusal = odd(|leaf| leaf.custom_extensions.push(unknown));
    assert_eq!(refusal, Refusal::UnknownCriticalExtension);
}

#[test]
fn attack_bytes_after_the_certificate() {
    let (root, bundles) = mesh();
    let mut der = root.leaf(ORDERS).der().to_vec();
    der.push(0);
    let refusal = check(&[der.into()], &bundles).unwrap_err();
    assert_eq!(refusal, Refusal::Malformed(Malformed::NotX509));
}

#[test]
fn attack_changed_certificate() {
    let (root, bundles) = mesh();
    let mut der = root.leaf(ORDERS).der().to_vec();
    let name = der.windows(6).position(|bytes| bytes == b"orders").unwrap();
    der[name..name + 6].copy_from_slice(b"ledger");
    assert_eq!(check(&[der.into()], &bundles), Err(Refusal::UntrustedRoot));
}

#[test]
fn m4_the_right_root_is_not_enough() {
    let (root, bundles) = mesh();
    let sent = root.leaf(ORDERS).sent();
    let ask = |expectation: PeerExpectation| {
        verify(&sent, Role::Server, &bundles, at(NOW), &|peer| {
            expectation.admit(peer)
        })
    };
    let billing = id("spiffe://mesh.example/ns/shop/sa/billing");
    let orders = id(ORDERS);

    assert!(ask(PeerExpectation::Verified).is_ok());
    assert!(ask(PeerExpectation::Exactly(orders.clone())).is_ok());
    assert!(
        ask(PeerExpectation::OneOf(vec![
            billing.clone(),
            orders.clone()
        ]))
        .is_ok()
    );

    let refusal = ask(PeerExpectation::Exactly(billing.clone())).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "peer is `spiffe://mesh.example/ns/shop/sa/orders`, expected `spiffe://mesh.example/ns/shop/sa/billing`"
    );
    assert!(ask(PeerExpectation::OneOf(vec![billing])).is_err());
    let refusal = ask(PeerExpectation::OneOf(Vec::new())).unwrap_err();
    assert!(
        refusal.to_string().ends_with("expected nobody"),
        "an empty list admits nobody"
    );
}

const MESSAGE: &[u8] = b"fender renew v1\0...";
const GRACE: Duration = Duration::from_secs(DAY);

fn lapsed_at(leaf: &Issued, signature: &[u8], bundles: &Bundles, now: u64) -> Option<Refusal> {
    let proof = Proof {
        chain: &leaf.sent(),
        message: MESSAGE,
        signature,
    };
    lapsed(proof, bundles, at(now), GRACE, &|_| Ok(())).err()
}

#[test]
fn an_expired_leaf_proves_itself_with_its_key_within_grace() {
    let (root, bundles) = mesh();
    let leaf = root.leaf(ORDERS);
    let signature = leaf.svid().sign(MESSAGE).unwrap();
    for now in [NOW, NOW + HOUR, NOW + HOUR + 1, NOW + HOUR + DAY] {
        assert_eq!(lapsed_at(&leaf, &signature, &bundles, now), None);
    }
    let late = lapsed_at(&leaf, &signature, &bundles, NOW + HOUR + DAY + 1);
    assert!(matches!(late, Some(Refusal::Expired { .. })));
    let early = lapsed_at(&leaf, &signature, &bundles, NOW - HOUR - 1);
    assert!(matches!(early, Some(Refusal::NotYetValid { .. })));
}

#[test]
fn attack_expired_leaf_without_its_key() {
    let (root, bundles) = mesh();
    let (leaf, mallory) = (root.leaf(ORDERS), root.leaf(ORDERS));
    let now = NOW + HOUR + 1;
    let other_key = mallory.svid().sign(MESSAGE).unwrap();
    let other_message = leaf.svid().sign(b"hello").unwrap();
    for signature in [other_key.as_slice(), &other_message, b"", &[0; 64]] {
        let refusal = lapsed_at(&leaf, signature, &bundles, now);
        assert_eq!(refusal, Some(Refusal::KeyNotProven));
    }
}

#[test]
fn attack_expired_leaf_of_another_root() {
    let (_, bundles) = mesh();
    let leaf = root("mallory").leaf(ORDERS);
    let signature = leaf.svid().sign(MESSAGE).unwrap();
    let refusal = lapsed_at(&leaf, &signature, &bundles, NOW + HOUR + 1);
    assert_eq!(refusal, Some(Refusal::UntrustedRoot));
}

#[test]
fn a_lapsed_leaf_is_authorized_last() {
    let (root, bundles) = mesh();
    let leaf = root.leaf(ORDERS);
    let signature = leaf.svid().sign(MESSAGE).unwrap();
    let proof = Proof {
        chain: &leaf.sent(),
        message: MESSAGE,
        signature: &signature,
    };
    let nobody = PeerExpectation::OneOf(Vec::new());
    let refusal = lapsed(proof, &bundles, at(NOW), GRACE, &|peer| nobody.admit(peer));
    assert!(matches!(refusal, Err(Refusal::UnexpectedPeer { .. })));
    let forged = Proof {
        signature: b"forged",
        ..proof
    };
    let refusal = lapsed(forged, &bundles, at(NOW), GRACE, &|_| {
        panic!("asked too early")
    });
    assert_eq!(refusal, Err(Refusal::KeyNotProven));
}

proptest! {
    #[test]
    fn no_bytes_are_anybody(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let (_, bundles) = mesh();
        prop_assert!(check(&[bytes.into()], &bundles).is_err());
    }

    #[test]
    fn no_certificate_with_a_changed_byte_is_anybody(place: usize, change in 1..=255u8) {
        let (root, bundles) = mesh();
        let mut der = root.leaf(ORDERS).der().to_vec();
        let place = place % der.len();
        der[place] ^= change;
        prop_assert!(check(&[der.into()], &bundles).is_err());
    }
}
