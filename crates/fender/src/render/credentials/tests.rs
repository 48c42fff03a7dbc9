use proto::{CredentialRoute, CredentialState, CredentialUseKind};

use super::*;

const NOW: i64 = 1_800_000_000;

fn used(generation: &str, current: &str) -> proto::CredentialInUse {
    proto::CredentialInUse {
        name: "shop/smtp".to_owned(),
        generation: generation.to_owned(),
        state: CredentialState::Delivered.into(),
        since_unix: NOW - 180,
        files: 1,
        current: current.to_owned(),
        ..Default::default()
    }
}

fn by(kind: CredentialUseKind, who: &str, generation: &str, pending: bool) -> proto::CredentialUse {
    proto::CredentialUse {
        kind: kind.into(),
        who: who.to_owned(),
        generation: generation.to_owned(),
        at_unix: NOW - 300,
        pending,
    }
}

fn held(route: CredentialRoute, reports: Vec<Option<proto::CredentialInUse>>) -> HeldCredentials {
    let holders = reports.into_iter().enumerate();
    let holders = holders.map(|(at, reported)| proto::CredentialHolder {
        instance: format!("{at:032x}"),
        address: format!("10.0.0.{at}:5000"),
        replica: "one".to_owned(),
        reported,
        ended_unix: 0,
    });
    HeldCredentials {
        head: proto::CredentialsHead {
            now_unix: NOW,
            revision: 7,
            replicas: Vec::new(),
        },
        holders: vec![proto::CredentialHolders {
            name: "shop/smtp".to_owned(),
            workload: "shop/orders".to_owned(),
            route: route.into(),
            holders: holders.collect(),
        }],
    }
}

fn counts(told: &HeldCredentials) -> (u64, u64, u64) {
    let json = credentials_json(told);
    let credential = &json["credentials"][0];
    let number = |field: &str| credential[field].as_u64().unwrap();
    (
        number("instances"),
        number("hold_newest"),
        number("old_in_use"),
    )
}

#[test]
fn what_the_control_plane_gives_is_the_newest_whatever_a_sidecar_says_of_itself() {
    let told = held(
        CredentialRoute::Control,
        vec![
            Some(used("bbbb", "bbbb")),
            // It says that all is well, and has the one before.
            Some(used("aaaa", "bbbb")),
            // Nobody knows what it would be given.
            Some(used("bbbb", "")),
            None,
        ],
    );
    assert_eq!(counts(&told), (4, 1, 2));
}

#[test]
fn who_asks_the_source_itself_is_compared_with_itself() {
    let mut stuck = used("cccc", "");
    (stuck.state, stuck.newer) = (CredentialState::Outdated.into(), "dddd".to_owned());
    let direct = |reports| counts(&held(CredentialRoute::Direct, reports));
    let reports = vec![Some(used("aaaa", "")), Some(used("bbbb", "")), Some(stuck)];
    assert_eq!(direct(reports), (3, 2, 1));
}

#[test]
fn an_old_one_is_in_use_by_whoever_took_it_last_or_was_not_told_though_the_sidecar_has_the_newest()
{
    let mut one = used("bbbb", "bbbb");
    one.uses = vec![
        by(CredentialUseKind::Told, "HUP nginx", "bbbb", false),
        by(CredentialUseKind::Socket, "uid 1000", "bbbb", false),
    ];
    let right = held(CredentialRoute::Control, vec![Some(one.clone())]);
    assert_eq!(counts(&right), (1, 1, 0));
    for behind in [
        by(CredentialUseKind::Told, "HUP nginx", "aaaa", true),
        by(CredentialUseKind::Told, "HUP nginx", "", true),
        by(CredentialUseKind::Url, "/run/token", "aaaa", false),
    ] {
        let mut one = one.clone();
        one.uses.push(behind);
        let told = held(CredentialRoute::Control, vec![Some(one)]);
        assert_eq!(counts(&told), (1, 1, 1));
    }
    // Withdrawn: who took it has it all the same.
    let mut gone = used("", "");
    gone.state = CredentialState::Withdrawn.into();
    gone.uses = vec![by(CredentialUseKind::Socket, "uid 1000", "aaaa", false)];
    let told = held(CredentialRoute::Control, vec![Some(gone)]);
    assert_eq!(counts(&told), (1, 0, 1));
}

#[test]
fn a_person_sees_the_sum_first_and_who_it_is() {
    let mut behind = used("aaaaaaaaaaaa", "bbbbbbbbbbbb");
    behind.state = CredentialState::Outdated.into();
    behind.newer = "bbbbbbbbbbbb".to_owned();
    behind.why = "`/run/smtp`: permission denied".to_owned();
    behind.uses = vec![
        by(
            CredentialUseKind::Told,
            "HUP to the process in /run/nginx.pid",
            "",
            true,
        ),
        by(CredentialUseKind::Socket, "uid 1000", "999999999999", false),
    ];
    let mut right = used("bbbbbbbbbbbb", "bbbbbbbbbbbb");
    right.uses = vec![by(
        CredentialUseKind::Url,
        "/run/token",
        "bbbbbbbbbbbb",
        false,
    )];
    let mut told = held(
        CredentialRoute::Control,
        vec![Some(right), Some(behind), None],
    );
    told.holders.push(proto::CredentialHolders {
        name: "shop/ledger".to_owned(),
        workload: "shop/books".to_owned(),
        route: CredentialRoute::Direct.into(),
        holders: Vec::new(),
    });
    insta::assert_snapshot!(credentials_text(&credentials_json(&told), None));
    insta::assert_snapshot!(credentials_text(&credentials_json(&told), Some(80)));
}

#[test]
fn what_a_process_left_that_has_ended_is_compared_where_somebody_asks_on_and_else_not_known() {
    let ended = |route, used, ago| {
        let mut told = held(route, vec![Some(used)]);
        told.holders[0].holders[0].ended_unix = NOW - ago;
        told
    };
    let control = |used| counts(&ended(CredentialRoute::Control, used, 60));
    assert_eq!(control(used("bbbb", "bbbb")), (1, 1, 0));
    assert_eq!(control(used("aaaa", "bbbb")), (1, 0, 1));
    // Nobody asks, or it asked itself: neither is claimed.
    let unknown = [
        ended(CredentialRoute::Control, used("bbbb", ""), 60),
        ended(CredentialRoute::Direct, used("bbbb", ""), 60),
    ];
    for told in &unknown {
        assert_eq!(counts(told), (1, 0, 0));
        let credential = &credentials_json(told)["credentials"][0];
        assert_eq!(credential["not_compared"], 1);
        assert_eq!(credential["holders"][0]["compared"], false);
    }
    let mut told = ended(
        CredentialRoute::Control,
        used("bbbbbbbbbbbb", "bbbbbbbbbbbb"),
        60,
    );
    for (used, ago) in [
        (used("aaaaaaaaaaaa", "bbbbbbbbbbbb"), 3_600),
        (used("cccccccccccc", ""), 20 * 3_600),
    ] {
        let mut more = ended(CredentialRoute::Control, used, ago);
        told.holders[0].holders.append(&mut more.holders[0].holders);
    }
    insta::assert_snapshot!(credentials_text(&credentials_json(&told), None));
}

#[test]
fn where_not_all_are_shown_nothing_is_said_of_all() {
    let replica = |name: &str, problem: &str, untold| proto::ReplicaStatus {
        name: name.to_owned(),
        problem: problem.to_owned(),
        untold,
        ..Default::default()
    };
    let shown = |told: &HeldCredentials| credentials_text(&credentials_json(told), None);
    let mut told = held(CredentialRoute::Control, vec![Some(used("bbbb", "bbbb"))]);
    told.head.replicas = vec![replica("one", "", 0)];
    assert!(!shown(&told).contains("NOT"), "{}", shown(&told));
    for (missing, line) in [
        (
            replica("two", "silent for 30 s", 0),
            "REPLICA two: ITS SIDECARS ARE NOT SHOWN: silent for 30 s",
        ),
        (
            replica("two", "3 of them are more than fits into its answer", 3),
            "REPLICA two: NOT ALL OF ITS SIDECARS ARE SHOWN: 3 of them are more",
        ),
    ] {
        told.head.replicas = vec![replica("one", "", 0), missing];
        let text = shown(&told);
        assert!(text.contains(line), "{text}");
        let unknown =
            "none is known to use an old one; of instances that are not shown it is NOT KNOWN";
        assert!(text.contains(unknown), "{text}");
        let mut nobody = told.clone();
        nobody.holders[0].holders.clear();
        let text = shown(&nobody);
        assert!(
            text.contains("it is NOT KNOWN whether an instance of shop/orders is connected"),
            "{text}"
        );
    }
}
