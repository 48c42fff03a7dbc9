//! The pipeline's rules, each with what it stops.

use std::time::Duration;

use fender_identity::csr::{self, NewKey};
use fender_runtime::drain::Drain;
use tempfile::TempDir;

use super::issue::{Attested, Grant, IssueError};
use super::make::random_serial;
use super::*;
use crate::evidence::Evidence;
use crate::time::later;

const NOW: u64 = 1_800_000_000;

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

const DAY: Duration = Duration::from_secs(24 * 3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// As of a mesh that says nothing about them.
pub(super) fn lifetimes() -> Lifetimes {
    Lifetimes {
        leaf: Duration::from_secs(3600),
        renewal_grace: DAY,
        intermediate: YEAR,
        root: 10 * YEAR,
        publication: 7 * DAY,
        jwt_key: 7 * DAY,
    }
}

async fn authority() -> (TempDir, Store, Authority) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("control.db"), &Drain::new())
        .await
        .unwrap();
    let sealing = SealingKey::new(&[1; 32]).unwrap();
    let authority = Authority::open(
        &store,
        sealing,
        "acme.test".parse().unwrap(),
        "here".parse().unwrap(),
        &lifetimes(),
        at(NOW),
    )
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
async fn keys_sealed_for_one_trust_domain_replica_or_row_do_not_open_in_another() {
    let (_directory, store, _authority) = authority().await;
    let rows = authorities::all(&store).await.unwrap();
    let workshop = |trust_domain: &str| Workshop {
        trust_domain: trust_domain.parse().unwrap(),
        replica: "here".parse().unwrap(),
        sealing: SealingKey::new(&[1; 32]).unwrap(),
    };
    let (here, elsewhere) = (workshop("acme.test"), workshop("other.test"));
    here.issuer(&rows[0]).unwrap();
    assert!(matches!(
        elsewhere.issuer(&rows[0]),
        Err(CaError::Seal(SealError::Closed))
    ));
    let another = Workshop {
        replica: "there".parse().unwrap(),
        ..workshop("acme.test")
    };
    assert!(matches!(
        another.issuer(&rows[0]),
        Err(CaError::Seal(SealError::Closed))
    ));
    let moved = AuthorityRow {
        sealed_key: rows[1].sealed_key.clone(),
        ..rows[0].clone()
    };
    assert!(matches!(
        here.issuer(&moved),
        Err(CaError::Seal(SealError::Closed))
    ));
}

#[tokio::test]
async fn the_intermediate_is_replaced_at_half_its_life_while_serving_and_the_root_stays() {
    let (_directory, store, authority) = authority().await;
    let before = authority.state();
    let half = YEAR.as_secs() / 2;
    authority
        .refresh(&store, &lifetimes(), at(NOW + half - 3600))
        .await
        .unwrap();
    assert_eq!(authority.state().issuing.serial, before.issuing.serial);
    authority
        .refresh(&store, &lifetimes(), at(NOW + half + 3600))
        .await
        .unwrap();
    let after = authority.state();
    assert_ne!(after.issuing.serial, before.issuing.serial);
    assert_eq!(after.issuing.root, before.issuing.root);
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
    authority
        .refresh(&store, &lifetimes(), ahead)
        .await
        .unwrap();
    assert_ne!(authority.state().issuing.serial, right);

    let now = at(NOW + 3600);
    authority.refresh(&store, &lifetimes(), now).await.unwrap();
    assert_eq!(authority.state().issuing.serial, right);
    authority
        .issue(attested(ORDERS, 3600, Vec::new()), now)
        .unwrap();

    // After a restart as well, and when the good one has lived half its life.
    for later in [now, at(NOW + YEAR.as_secs())] {
        let sealing = SealingKey::new(&[1; 32]).unwrap();
        let again = Authority::open(
            &store,
            sealing,
            "acme.test".parse().unwrap(),
            "here".parse().unwrap(),
            &lifetimes(),
            later,
        )
        .await
        .unwrap();
        again
            .issue(attested(ORDERS, 3600, Vec::new()), later)
            .unwrap();
    }
}

#[test]
fn serials_are_positive_long_and_never_the_same() {
    let serials: BTreeSet<_> = (0..1000).map(|_| random_serial().unwrap()).collect();
    assert_eq!(serials.len(), 1000);
    assert!(
        serials
            .iter()
            .all(|serial| serial.as_bytes().len() == 16 && serial.as_bytes()[0] < 0x80)
    );
}

/// Everything a peer who knows one root can verify, as the authority presents it.
fn holds(authority: &Authority, known: &Bundle, id: &str, now: UnixTime) -> bool {
    let lifetime = Duration::from_secs(3600);
    let issued = authority.issue(attested(id, lifetime.as_secs(), Vec::new()), now);
    let chain = issued.unwrap().once_recorded().into_chain();
    let bundles = Bundles::from(known.clone());
    let role = fender_identity::verify::Role::Server;
    fender_identity::verify::verify(&chain, role, &bundles, now, &|_| Ok(())).is_ok()
}

#[tokio::test]
async fn two_roots_succeed_each_other_and_nobody_who_heard_of_them_ever_meets_a_stranger() {
    let (_directory, store, authority) = authority().await;
    // A workload that renews every hour, one that was last here when the second root was made, and the control plane
    // as both meet it: at every step of sixteen years.
    let first = authority.state().bundle.clone();
    let mut asleep = first.clone();
    let mut signed_under = BTreeSet::new();
    let mut before = first.clone();
    for week in 0..(16 * 52_u64) {
        let now = at(NOW + week * 7 * DAY.as_secs());
        authority.refresh(&store, &lifetimes(), now).await.unwrap();
        let state = authority.state();
        signed_under.insert(state.issuing.root.to_vec());
        assert!(
            holds(&authority, &before, ORDERS, now),
            "whoever renewed a week ago verifies what is signed today, week {week}"
        );
        assert!(
            holds(
                &authority,
                &asleep,
                "spiffe://acme.test/fender/control",
                now
            ),
            "and whoever was away since recognises the control plane, week {week}"
        );
        if week % (4 * 52) == 0 {
            // Away for four years at a time.
            asleep = state.bundle.clone();
        }
        assert!(state.bundle.roots().len() <= 3);
        before = state.bundle.clone();
    }
    assert!(
        signed_under.len() >= 3,
        "two rotations: {}",
        signed_under.len()
    );
    assert!(
        !before.roots().contains(&first.roots()[0]),
        "what has ended is gone"
    );
}

#[tokio::test]
async fn nothing_is_signed_under_a_root_before_its_publication_is_over() {
    let (_directory, store, authority) = authority().await;
    let half = at(NOW + 5 * YEAR.as_secs());
    authority.refresh(&store, &lifetimes(), half).await.unwrap();
    let published = authority.state();
    assert_eq!(published.bundle.roots().len(), 2);
    let first = published.issuing.root.clone();
    let last = later(half, 7 * DAY - Duration::from_secs(1));
    authority.refresh(&store, &lifetimes(), last).await.unwrap();
    assert_eq!(authority.state().issuing.root, first);
    let due = later(half, 7 * DAY);
    authority.refresh(&store, &lifetimes(), due).await.unwrap();
    let state = authority.state();
    assert_ne!(state.issuing.root, first);
    assert_eq!(
        state.serving.root, first,
        "the control plane stays known to whoever was away"
    );
}

#[tokio::test]
async fn a_control_plane_that_slept_past_the_end_of_its_root_founds_another() {
    let (_directory, store, authority) = authority().await;
    let late = at(NOW + 11 * YEAR.as_secs());
    authority.refresh(&store, &lifetimes(), late).await.unwrap();
    authority
        .issue(attested(ORDERS, 3600, Vec::new()), late)
        .unwrap();
    let state = authority.state();
    assert_eq!(state.bundle.roots().len(), 1);
    // The clock was wrong after all: what signed before signs again.
    let right = at(NOW + 3600);
    authority
        .refresh(&store, &lifetimes(), right)
        .await
        .unwrap();
    authority
        .issue(attested(ORDERS, 3600, Vec::new()), right)
        .unwrap();
    assert_ne!(authority.state().issuing.serial, state.issuing.serial);
}

#[tokio::test]
async fn a_clock_before_the_first_root_makes_no_authority_and_says_what_to_do() {
    let (_directory, store, authority) = authority().await;
    let early = at(1_000_000_000);
    let error = authority
        .refresh(&store, &lifetimes(), early)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("put it right"), "{error}");
    assert_eq!(authorities::all(&store).await.unwrap().len(), 2);
    authority
        .refresh(&store, &lifetimes(), at(NOW))
        .await
        .unwrap();
}

#[tokio::test]
async fn two_who_decide_at_once_make_one_root() {
    let (_directory, store, one) = authority().await;
    let sealing = SealingKey::new(&[1; 32]).unwrap();
    let trust_domain = "acme.test".parse().unwrap();
    let there = "there".parse().unwrap();
    let other = Authority::open(&store, sealing, trust_domain, there, &lifetimes(), at(NOW))
        .await
        .unwrap();
    assert_ne!(one.state().issuing.serial, other.state().issuing.serial);
    let half = at(NOW + 5 * YEAR.as_secs());
    let (lifetimes, other_lifetimes) = (lifetimes(), lifetimes());
    let (first, second) = tokio::join!(
        one.refresh(&store, &lifetimes, half),
        other.refresh(&store, &other_lifetimes, half)
    );
    first.and(second).unwrap();
    assert_eq!(one.state().bundle, other.state().bundle);
    assert_eq!(one.state().bundle.roots().len(), 2);
}

#[test]
fn of_too_many_roots_the_youngest_are_believed_which_sign_next() {
    let trust_domain: TrustDomain = "acme.test".parse().unwrap();
    let rows: Vec<_> = (0..bundle::MAX_ROOTS as u64 + 3)
        .map(|number| {
            make::NewRoot::make(&trust_domain, 10 * YEAR, at(NOW + number), at(NOW))
                .unwrap()
                .row
        })
        .collect();
    let bundle = bundle::living(&rows, &trust_domain, at(NOW)).unwrap();
    let believed: Vec<_> = rows[3..]
        .iter()
        .map(|row| row.certificate.clone())
        .collect();
    assert_eq!(bundle.roots(), believed);
}
