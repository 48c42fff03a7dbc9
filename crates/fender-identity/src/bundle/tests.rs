//! What may be a root, and for whom.

use super::*;
use crate::testing::{authority, domain, root, self_signed};

const MESH: &str = "mesh.example";

fn bundle(roots: Vec<CertificateDer<'static>>) -> Result<Bundle, BundleError> {
    Bundle::new(domain(MESH), roots)
}

#[test]
fn a_bundle_survives_pem() {
    let bundle = bundle(vec![root("one").der(), root("two").der()]).unwrap();
    let back = Bundle::from_pem(domain(MESH), bundle.to_pem().as_bytes()).unwrap();
    assert_eq!(back, bundle);
    assert_eq!(back.roots().len(), 2);
}

#[test]
fn a_root_given_twice_counts_once() {
    let root = root("one").der();
    assert_eq!(bundle(vec![root.clone(), root]).unwrap().roots().len(), 1);
}

#[test]
fn an_empty_bundle_is_none() {
    assert_eq!(
        bundle(Vec::new()),
        Err(BundleError::Empty {
            trust_domain: domain(MESH)
        })
    );
    let error = Bundle::from_pem(domain(MESH), b"nothing here").unwrap_err();
    assert!(matches!(error, BundleError::Pem { .. }));
}

#[test]
fn attack_leaf_as_a_root() {
    let root = root("one");
    let leaf = root.leaf("spiffe://mesh.example/ns/shop/sa/orders");
    let error = bundle(vec![root.der(), leaf.der()]).unwrap_err();
    assert_eq!(
        error,
        BundleError::NotACa {
            trust_domain: domain(MESH),
            number: 2
        }
    );
    assert_eq!(
        error.to_string(),
        "root 2 in the trust bundle of `mesh.example` is not a CA"
    );
}

#[test]
fn attack_root_without_the_right_to_sign() {
    let mut weak = authority("weak");
    weak.key_usages = vec![rcgen::KeyUsagePurpose::CrlSign];
    let error = bundle(vec![self_signed(weak).der()]).unwrap_err();
    assert_eq!(
        error,
        BundleError::NotACa {
            trust_domain: domain(MESH),
            number: 1
        }
    );
}

#[test]
fn junk_among_roots_is_named_by_its_place() {
    let error = bundle(vec![root("one").der(), vec![1, 2, 3].into()]).unwrap_err();
    assert!(matches!(error, BundleError::Malformed { number: 2, .. }));
}

#[test]
fn the_number_of_roots_is_capped() {
    let root = root("one").der();
    let error = bundle(vec![root; MAX_ROOTS + 1]).unwrap_err();
    assert!(matches!(error, BundleError::TooManyRoots { count: 65, .. }));
}

#[test]
fn bundles_are_found_by_trust_domain_only() {
    let (one, two) = (root("one"), root("two"));
    let mut bundles = Bundles::from(one.bundle("a.example"));
    bundles.insert(two.bundle("b.example"));
    assert_eq!(bundles.len(), 2);
    assert_eq!(
        bundles.get(&domain("a.example")),
        Some(&one.bundle("a.example"))
    );
    assert_eq!(bundles.get(&domain("c.example")), None);
    bundles.insert(two.bundle("a.example"));
    assert_eq!(
        bundles.get(&domain("a.example")),
        Some(&two.bundle("a.example"))
    );
}
