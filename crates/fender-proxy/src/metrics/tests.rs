use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::access::Preamble;
use crate::fault::PeerFault;

/// A request that took so many microseconds.
fn ended(
    metrics: &Metrics,
    meter: &Meter,
    status: Option<u16>,
    microseconds: u64,
    allowed: Option<&Allowed>,
) {
    let line = RequestLine {
        protocol: "h2",
        preamble: &Preamble::default(),
        server: None,
        destination: None,
        asked: None,
        status,
        allowed,
        received: 3,
        sent: 5,
        took: Duration::from_micros(microseconds),
        first_byte: None,
    };
    metrics.request(Direction::Inbound, meter, &line, Ok(()));
}

fn by_policy() -> Allowed {
    Allowed {
        by: By::Policy {
            name: "shop/web".parse().unwrap(),
            action: fender_policy::Action::Allow,
            rule: 0,
        },
        audits: vec!["shop/watch".parse().unwrap()],
    }
}

fn told(metrics: &Metrics) -> String {
    let mut told = Exposition::default();
    metrics.tell(&mut told);
    told.text()
}

fn assert_told(text: &str, line: &str) {
    assert!(text.lines().any(|told| told == line), "{line}\n{text}");
}

#[test]
fn no_number_of_identities_makes_more_series_than_there_are_labels() {
    let metrics = Metrics::new(2);
    let meter = |name: &str| metrics.meter(Direction::Inbound, Some(name));
    let (first, second) = (meter("spiffe://m/a"), meter("spiffe://m/b"));
    for stranger in 0..1000 {
        let other = meter(&format!("spiffe://m/stranger-{stranger}"));
        ended(&metrics, &other, Some(200), 0, None);
    }
    // Who came first keeps the label, and is found again.
    assert!(Arc::ptr_eq(&first, &meter("spiffe://m/a")));
    assert!(!Arc::ptr_eq(&first, &second));
    let anonymous = metrics.meter(Direction::Inbound, None);
    ended(&metrics, &anonymous, Some(404), 0, None);

    let text = told(&metrics);
    let peers: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.split_once("peer=\"")?.1.split('"').next())
        .collect();
    assert_eq!(
        peers.into_iter().collect::<Vec<_>>(),
        ["anonymous", "other", "spiffe://m/a", "spiffe://m/b"]
    );
    assert_told(
        &text,
        "fender_requests_total{direction=\"inbound\",peer=\"other\",status=\"2xx\"} 1000",
    );
    assert_told(
        &text,
        "fender_requests_total{direction=\"inbound\",peer=\"anonymous\",status=\"4xx\"} 1",
    );
    // The other direction has labels of its own.
    assert!(!Arc::ptr_eq(
        &first,
        &metrics.meter(Direction::Outbound, Some("spiffe://m/a"))
    ));
    assert_eq!(metrics.read().requests, 1001);
}

#[test]
fn a_request_is_counted_with_its_bytes_and_in_the_bucket_that_holds_its_duration() {
    let metrics = Metrics::new(8);
    let meter = metrics.meter(Direction::Inbound, Some("spiffe://m/a"));
    for microseconds in [500, 501, 10_000_000, 10_000_001] {
        ended(&metrics, &meter, None, microseconds, Some(&by_policy()));
    }
    let text = told(&metrics);
    let labels = "direction=\"inbound\",peer=\"spiffe://m/a\"";
    for (suffix, value) in [
        (format!("_bucket{{le=\"0.0005\",{labels}}}"), "1"),
        (format!("_bucket{{le=\"0.001\",{labels}}}"), "2"),
        (format!("_bucket{{le=\"10.0\",{labels}}}"), "3"),
        (format!("_bucket{{le=\"+Inf\",{labels}}}"), "4"),
        (format!("_count{{{labels}}}"), "4"),
        (format!("_sum{{{labels}}}"), "20.001002"),
    ] {
        assert_told(
            &text,
            &format!("fender_request_duration_seconds{suffix} {value}"),
        );
    }
    assert_told(
        &text,
        &format!("fender_requests_total{{{labels},status=\"none\"}} 4"),
    );
    assert_told(&text, &format!("fender_request_bytes_total{{{labels}}} 12"));
    assert_told(
        &text,
        &format!("fender_response_bytes_total{{{labels}}} 20"),
    );
    assert_told(
        &text,
        "fender_decisions_total{verdict=\"allow\",by=\"policy\"} 4",
    );
    assert_told(&text, "fender_audited_total 4");
}

#[test]
fn a_failed_handshake_is_counted_by_its_reason_and_a_connection_is_open_until_it_ends() {
    let metrics = Metrics::new(8);
    let open = metrics.opened(Direction::Inbound);
    let gauge = |value| format!("fender_connections_open{{direction=\"inbound\"}} {value}");
    assert_told(&told(&metrics), &gauge(1));
    let fault = PeerFault::EstablishesTooSlowly.into();
    metrics.connection(Direction::Inbound, None, Err(&fault));
    drop(open);
    let text = told(&metrics);
    assert_told(&text, &gauge(0));
    assert_told(&text, "fender_connections_total{direction=\"inbound\"} 1");
    assert_told(
        &text,
        "fender_handshakes_failed_total{reason=\"too_slow\"} 1",
    );
    let fault =
        "fender_faults_total{direction=\"inbound\",blame=\"peer\",reason=\"establish_timeout\"} 1";
    assert_told(&text, fault);
    assert_eq!(metrics.read().peer_faults, 1);
}

#[test]
fn every_name_is_another() {
    let reasons: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.label()).collect();
    assert_eq!(reasons.len(), Reason::ALL.len());
    let failures: BTreeSet<_> = HandshakeFailure::ALL
        .iter()
        .map(|failure| failure.label())
        .collect();
    assert_eq!(failures.len(), HandshakeFailure::ALL.len());
    let verdicts: BTreeSet<_> = Verdict::ALL
        .iter()
        .map(|verdict| verdict.labels())
        .collect();
    assert_eq!(verdicts.len(), Verdict::ALL.len());
}
