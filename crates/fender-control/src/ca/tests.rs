//! The pipeline's rules, each with what it stops.

use fender_identity::csr::{self, NewKey};
use fender_runtime::drain::Drain;
use tempfile::TempDir;

use super::issue::{Attested, Evidence, Grant, IssueError};
use super::*;

const NOW: u64 = 1_800_000_000;

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

async fn authority() -> (TempDir, Store, Authority) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("control.db"), &Drain::new())
        .await
        .unwrap();
    let sealing = SealingKey::new(&[1; 32]).unwrap();
    let authority = Authority::open(&store, sealing, "acme.test".parse().unwrap(), at(NOW))
        .await
        .unwrap();
    (directory, store, authority)
}

fn attested(id: &str, lifetime: u64, dns_names: Vec<String>) -> Attested {
    let id = id.parse().unwrap();
    let request = csr::parse(&NewKey::generate().unwrap().csr_der(&id).unwrap()).unwrap();
    let grant = Grant {
        lifetime: Duration::from_secs(lifetime),
        dns_names,
    };
    Attested::new(id, request, grant, Evidence::Control).unwrap()
}

const ORDERS: &str = "spiffe://acme.test/ns/shop/sa/orders";

#[tokio::test]
async fn what_the_pipeline_refuses_whatever_was_attested() {
    let (_directory, _store, authority) = authority().await;
    let issue = |id, lifetime| authority.issue(attested(id, lifetime, Vec::new()), at(NOW));
    issue(ORDERS, 24 * 3600).unwrap();
    assert!(matches!(
        issue(ORDERS, 24 * 3600 + 1),
        Err(IssueError::Lifetime)
    ));
    assert!(matches!(issue(ORDERS, 0), Err(IssueError::Lifetime)));
    assert!(matches!(
        issue("spiffe://other.test/ns/shop/sa/orders", 60),
        Err(IssueError::ForeignTrustDomain)
    ));
    assert!(matches!(
        issue("spiffe://acme.test/fender/other", 60),
        Err(IssueError::Reserved)
    ));
    let names = (0..65)
        .map(|number| format!("name{number}.internal"))
        .collect();
    let many = authority.issue(attested(ORDERS, 60, names), at(NOW));
    assert!(matches!(many, Err(IssueError::DnsNames)));
}

#[tokio::test]
async fn a_request_for_another_identity_than_the_attested_one_goes_no_further() {
    let other = "spiffe://acme.test/ns/shop/sa/inventory".parse().unwrap();
    let request = csr::parse(
        &NewKey::generate()
            .unwrap()
            .csr_der(&ORDERS.parse().unwrap())
            .unwrap(),
    )
    .unwrap();
    let grant = Grant {
        lifetime: Duration::from_secs(60),
        dns_names: Vec::new(),
    };
    let result = Attested::new(other, request, grant, Evidence::Control);
    assert!(matches!(result, Err(IssueError::OtherIdentity)));
}

#[tokio::test]
async fn no_leaf_outlives_the_authority_that_signed_it() {
    let (_directory, _store, authority) = authority().await;
    let end = authority.state().issuing.validity.not_after.as_secs();
    let late = authority
        .issue(attested(ORDERS, 3600, Vec::new()), at(end - 60))
        .unwrap();
    assert_eq!(late.validity().not_after.as_secs(), end);
    let too_late = authority.issue(attested(ORDERS, 3600, Vec::new()), at(end));
    assert!(matches!(too_late, Err(IssueError::IssuerExpired)));
}

#[tokio::test]
async fn keys_sealed_for_one_trust_domain_or_row_do_not_open_in_another() {
    let (_directory, store, _authority) = authority().await;
    let rows = authorities::all(&store).await.unwrap();
    let sealing = SealingKey::new(&[1; 32]).unwrap();
    let (here, elsewhere) = ("acme.test".parse().unwrap(), "other.test".parse().unwrap());
    issuer(&rows[0], &sealing, &here).unwrap();
    assert!(matches!(
        issuer(&rows[0], &sealing, &elsewhere),
        Err(CaError::Seal(SealError::Closed))
    ));
    let moved = AuthorityRow {
        sealed_key: rows[1].sealed_key.clone(),
        ..rows[0].clone()
    };
    assert!(matches!(
        issuer(&moved, &sealing, &here),
        Err(CaError::Seal(SealError::Closed))
    ));
}

#[tokio::test]
async fn the_intermediate_is_replaced_at_half_its_life_while_serving_and_the_root_stays() {
    let (_directory, store, authority) = authority().await;
    let before = authority.state();
    let half = lifetimes::INTERMEDIATE.as_secs() / 2;
    authority
        .refresh(&store, at(NOW + half - 3600))
        .await
        .unwrap();
    assert_eq!(authority.state().issuing.serial, before.issuing.serial);
    authority
        .refresh(&store, at(NOW + half + 3600))
        .await
        .unwrap();
    let after = authority.state();
    assert_ne!(after.issuing.serial, before.issuing.serial);
    assert_eq!(after.root, before.root);
    authority
        .issue(attested(ORDERS, 3600, Vec::new()), at(NOW + half + 3600))
        .unwrap();
}

#[tokio::test]
async fn an_intermediate_made_while_the_clock_was_years_ahead_signs_nothing_once_it_is_right_again()
{
    let (_directory, store, authority) = authority().await;
    let right = authority.state().issuing.serial.clone();
    let ahead = at(NOW + 5 * 365 * 24 * 3600);
    authority.refresh(&store, ahead).await.unwrap();
    assert_ne!(authority.state().issuing.serial, right);

    let now = at(NOW + 3600);
    authority.refresh(&store, now).await.unwrap();
    assert_eq!(authority.state().issuing.serial, right);
    authority
        .issue(attested(ORDERS, 3600, Vec::new()), now)
        .unwrap();

    // After a restart as well, and when the good one has lived half its life.
    for later in [now, at(NOW + lifetimes::INTERMEDIATE.as_secs())] {
        let sealing = SealingKey::new(&[1; 32]).unwrap();
        let again = Authority::open(&store, sealing, "acme.test".parse().unwrap(), later)
            .await
            .unwrap();
        again
            .issue(attested(ORDERS, 3600, Vec::new()), later)
            .unwrap();
    }
}

#[test]
fn serials_are_positive_long_and_never_the_same() {
    let serials: std::collections::BTreeSet<_> =
        (0..1000).map(|_| random_serial().unwrap()).collect();
    assert_eq!(serials.len(), 1000);
    assert!(
        serials
            .iter()
            .all(|serial| serial.as_bytes().len() == 16 && serial.as_bytes()[0] < 0x80)
    );
}
