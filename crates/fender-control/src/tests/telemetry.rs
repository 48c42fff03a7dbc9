//! DESIGN §11 and I3: what a monitoring system is told, and that nobody outside can make it more.

use std::collections::BTreeMap;

use super::*;
use fender_api::proto::control::v1::report::Kind;

impl World {
    /// Every series with its value.
    async fn metrics(&self) -> BTreeMap<String, String> {
        let text = self.running.metrics().await;
        assert!(text.ends_with("# EOF\n"), "{text}");
        let series = text.lines().filter(|line| !line.starts_with('#'));
        series
            .map(|line| {
                let (name, value) = line.rsplit_once(' ').unwrap();
                (name.to_owned(), value.to_owned())
            })
            .collect()
    }
}

fn issued(kind: &str, result: &str) -> String {
    format!("fender_control_issuances_total{{kind=\"{kind}\",result=\"{result}\"}}")
}

#[tokio::test]
async fn what_happens_is_counted_by_kind_and_result() {
    let world = World::new().await;
    let orders = world.attested("shop/orders").await;
    let key = NewKey::generate().unwrap();
    let guess = world.attest(&[7; 32], &key, ORDERS).await;
    assert_eq!(refused(guess), Code::TokenUnknown);
    let mut sidecar = world.subscribe(&orders, 0).await;
    let snapshot = sidecar.next().await.unwrap();
    sidecar
        .report(Kind::Nack(proto::Nack {
            version: snapshot.version,
            reason: "no such upstream".to_owned(),
        }))
        .await;
    let refusing = "fender_control_sidecars_refusing";
    eventually(|| async { (world.metrics().await[refusing] == "1").then_some(()) }).await;
    let wrong = world.apply(MESH.replace("spec", "sepc")).await;
    assert_ne!(wrong.problems, []);

    let told = world.metrics().await;
    let expected = [
        (issued("token", "issued"), "1"),
        (issued("token", "refused"), "1"),
        (issued("token", "failed"), "0"),
        (issued("renewal", "issued"), "0"),
        (
            "fender_control_issuances_refused_total{reason=\"token-unknown\"}".to_owned(),
            "1",
        ),
        (
            "fender_control_answers_total{of=\"snapshot\",answer=\"nack\"}".to_owned(),
            "1",
        ),
        (
            "fender_control_applies_total{result=\"refused\"}".to_owned(),
            "1",
        ),
        ("fender_control_sidecars".to_owned(), "1"),
        ("fender_control_revision".to_owned(), "1"),
        ("fender_control_revocations".to_owned(), "0"),
        ("fender_control_workloads".to_owned(), "3"),
        ("fender_control_trust_version".to_owned(), "1"),
        ("fender_ready".to_owned(), "1"),
        (
            "fender_control_store_transactions_failed_total".to_owned(),
            "0",
        ),
    ];
    for (series, value) in expected {
        assert_eq!(
            told.get(&series).map(String::as_str),
            Some(value),
            "{series}: {told:#?}"
        );
    }
    let number = |series: &str| told[series].parse::<u64>().unwrap();
    assert_eq!(
        number("fender_control_store_transactions_total"),
        world.running.commits()
    );
    assert!(number("fender_control_store_transaction_seconds_count") > 0);
    assert!(number("fender_control_audit_entries") >= 2);
    let authorities = told
        .keys()
        .filter(|series| series.starts_with("fender_control_authority_expiry_seconds{"));
    assert_eq!(authorities.count(), 2, "a root and an intermediate");
}

#[tokio::test]
async fn time_runs_down_to_what_nobody_can_recover_from() {
    let world = World::new().await;
    let left = async || -> i64 {
        world.metrics().await["fender_unrecoverable_seconds"]
            .parse()
            .unwrap()
    };
    let before = left().await;
    assert_eq!(before, 3650 * 24 * 3600, "of the root");
    world.clock.advance(Duration::from_secs(24 * 3600));
    assert_eq!(left().await, before - 24 * 3600);
}

#[tokio::test]
async fn attack_nobody_outside_adds_a_series_or_reads_a_name() {
    let world = World::new().await;
    let guess = async |secret: u8, name: &str| {
        let key = NewKey::generate().unwrap();
        let id = format!("spiffe://acme.test/ns/shop/sa/{name}");
        world.attest(&[secret; 32], &key, &id).await.unwrap_err();
    };
    guess(0, "orders").await;
    let before: Vec<_> = world.metrics().await.into_keys().collect();
    for secret in 1..40 {
        guess(secret, &format!("guess-{secret}")).await;
    }
    let after: Vec<_> = world.metrics().await.into_keys().collect();
    assert_eq!(before, after);
    // The series alone: what they are for is said in words of ours, one of which may well be a name of somebody's.
    for series in after {
        for name in ["guess", "orders", "127.0.0.1", "first", "acme"] {
            assert!(!series.contains(name), "{name} is told: {series}");
        }
    }
}

#[tokio::test]
async fn it_is_ready_while_it_can_sign_and_no_longer() {
    let world = World::new().await;
    assert!(world.running.is_ready().await);
    // Nothing has renewed the intermediate yet: timers stand still.
    world.clock.set(at(NOW + 400 * 24 * 3600));
    assert!(!world.running.is_ready().await);
    assert_eq!(world.metrics().await["fender_ready"], "0");
    world.clock.set(at(NOW));
    assert!(world.running.is_ready().await);

    let running = world.running.clone();
    world
        .drain
        .close(Deadline::after(Duration::from_secs(60)))
        .await;
    assert!(!running.is_ready().await);
    assert!(!running.metrics().await.contains("fender_ready"));
}
