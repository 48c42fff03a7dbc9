use super::super::tame;
use super::*;

const NOW: i64 = 1_800_000_000;
const DAY: i64 = 24 * 3600;

fn sidecar(address: &str, acked: u64) -> proto::SidecarStatus {
    proto::SidecarStatus {
        version: "0.3.0".to_owned(),
        address: address.to_owned(),
        connected_since_unix: NOW - 5 * 3600,
        snapshot_sent: 12,
        snapshot_acked: acked,
        certificate_serial: "7f3a".to_owned(),
        certificate_not_after_unix: NOW + 43 * 60,
        ..proto::SidecarStatus::default()
    }
}

fn workload(name: &str, sidecars: Vec<proto::SidecarStatus>) -> proto::WorkloadStatus {
    proto::WorkloadStatus {
        name: name.to_owned(),
        identity: format!("spiffe://example.org/ns/{}", name.replace('/', "/sa/")),
        certificates_issued: 40 + sidecars.len() as u64,
        last_not_after_unix: NOW + 55 * 60,
        snapshot_version: 12,
        attestors: vec!["docker".to_owned(), "token".to_owned()],
        sidecars,
        refused: Vec::new(),
    }
}

fn authority(subject: &str, standing: &str, days: i64) -> proto::Authority {
    proto::Authority {
        subject: subject.to_owned(),
        serial: "4be1c5d0a7".to_owned(),
        not_after_unix: NOW + days * DAY,
        standing: standing.to_owned(),
        signs_from_unix: NOW + 3 * DAY,
        holder: match subject {
            "intermediate" => "control-a".to_owned(),
            _ => String::new(),
        },
    }
}

/// A mesh in which everything is as it should be.
fn well() -> proto::StatusResponse {
    proto::StatusResponse {
        trust_domain: "example.org".to_owned(),
        version: "0.3.0".to_owned(),
        revision: 12,
        now_unix: NOW,
        authorities: vec![
            authority("root", "signing", 3650),
            authority("intermediate", "signing", 300),
        ],
        workloads: vec![
            workload("shop/inventory", vec![sidecar("10.0.0.8:51230", 12)]),
            workload(
                "shop/orders",
                vec![
                    sidecar("10.0.0.7:41234", 12),
                    sidecar("[2001:db8::17]:41236", 12),
                ],
            ),
        ],
        unrecoverable_unix: NOW + 3650 * DAY,
        unrecoverable_because:
            "the last root certificate ends, and every workload must attest anew".to_owned(),
        ..proto::StatusResponse::default()
    }
}

/// One in which everything is wrong that can be.
fn ill() -> proto::StatusResponse {
    let mut status = well();
    status.development = true;
    status.minimum_version = "0.2.0".to_owned();
    status.minimum_version_after_unix = NOW + 40 * DAY;
    status
        .authorities
        .push(authority("root", "published", 7300));
    status.authorities[1].not_after_unix = NOW - 90;
    let inventory = &mut status.workloads[0];
    inventory.sidecars[0].snapshot_acked = 9;
    inventory.sidecars[0].nack = "listener 0.0.0.0:8443: address in use; credential shop/smtp: \
        /run/secrets/smtp/a-directory-with-a-rather-long-name is not below any --allow-dir"
        .to_owned();
    let orders = &mut status.workloads[1];
    orders.sidecars[0].version = "0.1.7".to_owned();
    orders.sidecars[0].outdated = true;
    orders.sidecars[1].certificate_not_after_unix = NOW - 600;
    orders.sidecars[1].connected_since_unix = NOW - 40;
    let mut locked = workload("shop/locked", Vec::new());
    locked.attestors.clear();
    locked.certificates_issued = 0;
    locked.last_not_after_unix = 0;
    status.workloads.push(locked);
    status
}

fn shown(status: &proto::StatusResponse, width: Option<usize>) -> String {
    status_text(&tame(&status_json(status)), width)
}

#[test]
fn a_healthy_mesh_has_nothing_in_capitals_but_headings() {
    insta::assert_snapshot!("well", shown(&well(), None));
}

#[test]
fn what_needs_somebody_is_in_capitals_and_counted() {
    insta::assert_snapshot!("ill", shown(&ill(), None));
}

#[test]
fn a_reason_is_wrapped_to_the_terminal_and_a_table_that_is_too_wide_becomes_blocks() {
    insta::assert_snapshot!("ill-wide", shown(&ill(), Some(100)));
    insta::assert_snapshot!("ill-narrow", shown(&ill(), Some(60)));
    for width in 40..140 {
        let text = shown(&ill(), Some(width));
        let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
        // One fact is never divided but in the longest word.
        assert!(widest <= width.max(80), "{width}: {widest}\n{text}");
    }
}

#[test]
fn a_sidecar_that_was_turned_away_is_a_row_with_its_reason() {
    let mut status = well();
    status.workloads[1].refused = vec![proto::RefusedSidecar {
        version: "0.0.9".to_owned(),
        address: "10.0.0.9:40022".to_owned(),
        reason: "fender 0.0.9 is older than 0.2.0".to_owned(),
        at_unix: NOW - 3 * 60,
        ..proto::RefusedSidecar::default()
    }];
    let text = shown(&status, None);
    let expected = "    TURNED AWAY 3 min ago: fender 0.0.9 is older than 0.2.0\n";
    assert!(text.contains(expected), "{text}");
    assert!(
        text.contains("3 sidecars connected, 1 turned away\n"),
        "{text}"
    );
}

#[test]
fn a_mesh_of_nobody_shows_its_authorities_and_no_empty_tables() {
    let mut status = well();
    status.workloads.clear();
    insta::assert_snapshot!("empty", shown(&status, Some(80)));
}

#[test]
fn once_the_date_is_past_older_sidecars_are_said_to_be_refused() {
    let mut status = ill();
    status.minimum_version_after_unix = NOW - 1;
    let text = shown(&status, None);
    assert!(
        text.contains("fender 0.2.0; older sidecars are REFUSED since 2027-01-15"),
        "{text}"
    );
}

#[test]
fn spans_are_told_as_a_person_would() {
    let told = [
        0, 119, 120, 7_199, 7_200, 172_799, 172_800, 63_071_999, 63_072_000,
    ]
    .map(span);
    let expected = [
        "0 s", "119 s", "2 min", "119 min", "2 h", "47 h", "2 days", "729 days", "2 years",
    ];
    assert_eq!(told, expected);
}

#[test]
fn attack_what_a_sidecar_says_of_itself_does_not_speak_to_the_terminal() {
    let status = proto::StatusResponse {
        workloads: vec![proto::WorkloadStatus {
            name: "shop/orders".to_owned(),
            sidecars: vec![proto::SidecarStatus {
                version: "1\u{1b}]52;c;aGk=\u{7}".to_owned(),
                nack: "no\nshop/ledger  fine\u{9b}2J".to_owned(),
                ..proto::SidecarStatus::default()
            }],
            ..proto::WorkloadStatus::default()
        }],
        ..proto::StatusResponse::default()
    };
    let json = status_json(&status);
    assert!(
        status_text(&json, None).contains('\u{1b}'),
        "it is shown at all"
    );
    let shown = [
        status_text(&tame(&json), None),
        format!("{:#}", tame(&json)),
    ];
    for shown in shown {
        let hostile = |c: char| c.is_control() && c != '\n';
        assert!(!shown.contains(hostile), "{shown:?}");
        assert!(!shown.contains("\nshop/ledger"), "{shown}");
    }
}
