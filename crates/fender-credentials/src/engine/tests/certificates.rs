//! What the engine gives to ports to show.

use std::slice;

use fender_config::snapshot::{Inbound, PortCertificate};
use fender_identity::tls::Issued;

use super::*;
use crate::certificate::PortCertificates;
use crate::certificate::tests::{Made, SHOP, wanted};

const WWW: &str = "www.example.com";

fn showing() -> (Bench, PortCertificates) {
    let mut bench = Bench::new();
    let certificates = PortCertificates::default();
    bench.settings.certificates = Some(certificates.clone());
    (bench, certificates)
}

fn tls() -> ObjectName {
    ObjectName::new("shop", "tls").unwrap()
}

fn port(certificates: &[PortCertificate]) -> Inbound {
    let text = format!(
        "{SIDECAR}  inbound: [ {{ listen: '0.0.0.0:8443', app: '127.0.0.1:8080', protocol: http }} ]"
    );
    let source = Source {
        name: "sidecar.yaml".to_owned(),
        text,
    };
    let identity = "spiffe://mesh.test/ns/shop/sa/orders".parse().unwrap();
    let sidecar = standalone::parse(&[source]).unwrap();
    let mut ports = sidecar.snapshot(&identity, Bundles::default(), 1).inbound;
    let mut port = ports.remove(0);
    port.certificates = certificates.to_vec();
    port
}

fn publish(bench: &Bench, specs: Vec<CredentialSpec>, certificates: &[PortCertificate]) {
    bench.snapshots.send_replace(Arc::new(Snapshot {
        inbound: vec![port(certificates)],
        ..snapshot(specs)
    }));
}

fn is(generation: &str, text: String) -> State {
    State::Current(Fetched {
        value: Secret::from(text),
        generation: Generation::named(generation),
    })
}

/// Waits until what is shown for this is as expected.
async fn standing(
    certificates: &PortCertificates,
    of: &PortCertificate,
    expected: impl Fn(Option<&Issued>) -> bool,
) {
    let mut standings = certificates.standings();
    let reached = standings.wait_for(|all| expected(all.get(of)));
    let reached = tokio::time::timeout(Duration::from_secs(3600), reached).await;
    assert!(reached.is_ok(), "never reached");
}

fn shows(made: &Made) -> impl Fn(Option<&Issued>) -> bool {
    let leaf = made.leaf.replace("\r\n", "\n");
    move |issued| {
        let pair = issued.and_then(|issued| issued.pair.as_ref());
        pair.is_some_and(|pair| String::from_utf8_lossy(&pair.chain).starts_with(&leaf))
    }
}

#[tokio::test(start_paused = true)]
async fn a_ports_certificate_is_there_at_the_start_and_follows_its_credential() {
    let (bench, certificates) = showing();
    let (first, second) = (Made::new(&[SHOP]), Made::new(&[SHOP]));
    let shop = wanted(&tls(), &[SHOP]);
    bench.remote.says("tls", is("one", first.bundle()));
    publish(&bench, vec![bench.spec("tls", &[])], slice::from_ref(&shop));
    let mut held = bench.start().await.unwrap();
    assert!(shows(&first)(certificates.standings().borrow().get(&shop)));
    bench.remote.says("tls", is("two", second.bundle()));
    holding(&mut held, "tls", |holding| {
        holding == Some(&delivered("two"))
    })
    .await;
    assert!(shows(&second)(certificates.standings().borrow().get(&shop)));
    // A document that names it no more, and another port that does.
    let www = wanted(&tls(), &[SHOP, "*"]);
    publish(&bench, vec![bench.spec("tls", &[])], slice::from_ref(&www));
    standing(&certificates, &www, shows(&second)).await;
    assert!(!certificates.standings().borrow().contains_key(&shop));
    publish(&bench, vec![], &[]);
    standing(&certificates, &www, |issued| issued.is_none()).await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_no_certificate_reaches_nobody_and_the_one_before_is_kept() {
    let (bench, certificates) = showing();
    let (made, other) = (Made::new(&[SHOP]), Made::new(&["evil.example.com"]));
    let shop = wanted(&tls(), &[SHOP]);
    bench.remote.says("tls", is("one", made.bundle()));
    publish(
        &bench,
        vec![bench.spec("tls", &["a"])],
        slice::from_ref(&shop),
    );
    let mut held = bench.start().await.unwrap();
    let before = fs::read_to_string(bench.path("a")).unwrap();
    let wrong = [
        ("bad", "hunter2".to_owned()),
        ("mismatched", [&*other.key, &*made.leaf].concat()),
        ("another", other.bundle()),
        ("over", Made::valid(&[SHOP], 2000, 2001).bundle()),
    ];
    for (generation, value) in wrong {
        bench.remote.says("tls", is(generation, value));
        let newer = |held: &Holdings| {
            let newer = held.get(&tls()).and_then(|held| held.newer.clone());
            newer == Some(Generation::named(generation))
        };
        held.wait_for(newer).await.unwrap();
        // Proof of consumption: the old one is what is in use.
        holding(&mut held, "tls", |holding| {
            let Some(Holding::Outdated {
                generation, why, ..
            }) = holding
            else {
                return false;
            };
            *generation == Generation::named("one") && why.contains("put chain and key")
        })
        .await;
        let told = |issued: Option<&Issued>| {
            let problem = issued.and_then(|issued| issued.problem.as_deref());
            problem.is_some_and(|problem| problem.contains("the credential `shop/tls`"))
        };
        standing(&certificates, &shop, told).await;
        standing(&certificates, &shop, shows(&made)).await;
        assert_eq!(fs::read_to_string(bench.path("a")).unwrap(), before);
    }
    let right = Made::new(&[SHOP]);
    bench.remote.says("tls", is("right", right.bundle()));
    holding(&mut held, "tls", |holding| {
        holding == Some(&delivered("right"))
    })
    .await;
    standing(&certificates, &shop, |issued| {
        issued.is_some_and(|it| it.problem.is_none())
    })
    .await;
    standing(&certificates, &shop, shows(&right)).await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_start_without_the_certificate_is_none() {
    let (bench, certificates) = showing();
    let shop = wanted(&tls(), &[SHOP]);
    let made = Made::new(&["evil.example.com"]);
    bench.remote.says("tls", is("one", made.bundle()));
    publish(
        &bench,
        vec![bench.spec("tls", &["a"])],
        slice::from_ref(&shop),
    );
    let error = bench.start().await.unwrap_err();
    assert_eq!(error.exit_code(), 66, "{error}");
    assert!(error.to_string().contains("shop.example.com"), "{error}");
    bench.holds(&[]);
    assert!(certificates.standings().borrow().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_outage_takes_no_certificate_away_and_the_word_of_the_source_does() {
    let (bench, certificates) = showing();
    let made = Made::new(&[SHOP, WWW]);
    let shop = wanted(&tls(), &[SHOP]);
    bench.remote.says("tls", is("one", made.bundle()));
    publish(&bench, vec![bench.spec("tls", &[])], slice::from_ref(&shop));
    let mut held = bench.start().await.unwrap();
    let last = Fetched {
        value: Secret::from(made.bundle()),
        generation: Generation::named("one"),
    };
    let stale = State::Stale {
        last: Some(last),
        error: FetchError::Outage("away".to_owned()),
        since: None,
    };
    bench.remote.says("tls", stale);
    holding(&mut held, "tls", |holding| {
        matches!(holding, Some(Holding::Outdated { .. }))
    })
    .await;
    assert!(shows(&made)(certificates.standings().borrow().get(&shop)));
    // What a document says anew of the port is done with what is there: nobody has to be asked.
    let www = wanted(&tls(), &[SHOP, WWW]);
    publish(&bench, vec![bench.spec("tls", &[])], slice::from_ref(&www));
    standing(&certificates, &www, shows(&made)).await;
    bench
        .remote
        .says("tls", State::Withdrawn(FetchError::Denied("no".to_owned())));
    standing(&certificates, &www, |issued| {
        issued.is_some_and(|issued| issued.withdrawn && issued.pair.is_none())
    })
    .await;
    bench.remote.says("tls", is("two", made.bundle()));
    standing(&certificates, &www, shows(&made)).await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn where_there_are_no_ports_nobody_is_asked_for_their_certificates() {
    let bench = Bench::new();
    publish(
        &bench,
        vec![bench.spec("tls", &[])],
        &[wanted(&tls(), &[SHOP])],
    );
    // The source never answers.
    let held = bench.start().await.unwrap();
    assert!(held.borrow().is_empty());
    bench.end().await;
}
