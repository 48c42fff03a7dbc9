use super::*;
use crate::usage::{State, Usage};

#[tokio::test(start_paused = true)]
async fn a_new_snapshot_is_published_and_acknowledged() {
    let mut bench = Bench::new();
    let mut session = bench.joined().await;
    assert_eq!(bench.ack().await, 1);
    bench.control.push((&snapshot(2, &bench.control.ca)).into());
    session
        .snapshot
        .wait_for(|snapshot| snapshot.version == 2)
        .await
        .unwrap();
    assert_eq!(bench.ack().await, 2);
}

#[tokio::test(start_paused = true)]
async fn an_invalid_snapshot_is_refused_with_its_reason_and_trust_applies_beside_it() {
    let mut bench = Bench::new();
    let session = bench.joined().await;

    let mut bad = proto::Snapshot::from(&snapshot(2, &bench.control.ca));
    bad.tls = None;
    bad.drain_millis = 1;
    bench.control.push(bad);
    let (version, reason) = bench.nack().await;
    assert_eq!(version, 2);
    assert!(reason.contains("`tls`"), "{reason}");

    bench.control.push_trust(changed(&bench, 2));
    assert_eq!(bench.trust_ack_after(1).await, 2);
    let snapshot = session.snapshot.borrow().clone();
    assert_eq!(snapshot.version, 1, "the old one stays");
    assert_eq!(snapshot.drain, Duration::from_secs(10));
    assert_eq!(serials(&snapshot), ["2a"]);
    assert_eq!(roots(&snapshot), 2);
    assert_eq!(snapshot.trust.version, 2);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_comes_later_is_under_the_newest_trust() {
    let mut bench = Bench::new();
    let mut session = bench.joined().await;
    bench.control.push_trust(changed(&bench, 2));
    assert_eq!(bench.trust_ack_after(1).await, 2);
    bench.control.push((&snapshot(2, &bench.control.ca)).into());
    let later = session
        .snapshot
        .wait_for(|snapshot| snapshot.version == 2)
        .await
        .unwrap();
    assert_eq!((serials(&later), roots(&later)), (vec!["2a".to_owned()], 2));
}

#[tokio::test(start_paused = true)]
async fn a_trust_without_our_own_roots_is_refused_but_for_those_it_denies_and_forgives_nobody() {
    let mut bench = Bench::new();
    let session = bench.joined().await;
    bench.control.push_trust(changed(&bench, 2));
    assert_eq!(bench.trust_ack_after(1).await, 2);

    let mut bad = changed(&bench, 3);
    bad.bundles.clear();
    bad.denials.as_mut().unwrap().serials = vec![vec![0x2b]];
    bench.control.push_trust(bad);
    let (version, reason) = bench.trust_nack().await;
    assert_eq!(version, 3);
    assert!(reason.contains("`bundles`"), "{reason}");
    let snapshot = session.snapshot.borrow().clone();
    assert_eq!(serials(&snapshot), ["2a", "2b"]);
    assert_eq!((roots(&snapshot), snapshot.trust.version), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn whom_not_to_believe_is_remembered_without_a_control_plane() {
    let bench = Bench::new();
    bench.control.push_trust(changed(&bench, 7));
    bench.stored().await;
    bench.kill().await;
    let bench = bench.reborn();
    let session = bench
        .open(bench.config(None, Some(bench.state())))
        .await
        .unwrap();
    let snapshot = session.snapshot.borrow().clone();
    assert_eq!(serials(&snapshot), ["2a"]);
    assert_eq!((roots(&snapshot), snapshot.trust.version), (2, 7));
}

/// One more root, and one certificate denied.
fn changed(bench: &Bench, version: u64) -> proto::Trust {
    let mut trust = trust(version, &bench.control.ca);
    trust.bundles[0].roots.push(Authority::new().root.to_vec());
    trust.denials.as_mut().unwrap().serials = vec![vec![0x2a]];
    trust
}

fn serials(snapshot: &Snapshot) -> Vec<String> {
    let serials = snapshot.trust.denied.serials();
    serials.map(ToString::to_string).collect()
}

fn roots(snapshot: &Snapshot) -> usize {
    let own = snapshot.trust.bundles.get(&"acme.test".parse().unwrap());
    own.unwrap().roots().len()
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_of_another_workload_is_refused() {
    let mut bench = Bench::new();
    let session = bench.joined().await;
    let mut other = proto::Snapshot::from(&snapshot(2, &bench.control.ca));
    other.identity = "spiffe://acme.test/ns/shop/sa/web".to_owned();
    bench.control.push(other);
    let (_, reason) = bench.nack().await;
    assert!(reason.contains("identity"), "{reason}");
    assert_eq!(session.snapshot.borrow().version, 1);
}

#[tokio::test(start_paused = true)]
async fn without_any_usable_snapshot_nothing_starts_and_the_reason_is_told() {
    let bench = Bench::new();
    let mut bad = proto::Snapshot::from(&snapshot(1, &bench.control.ca));
    bad.policies = None;
    bench.control.push(bad);
    let file = bench.token(&bench.control.token(1, None));
    let error = bench
        .open(bench.config(Some(file), None))
        .await
        .unwrap_err();
    assert_eq!(error.exit_code(), EXIT_UNAVAILABLE);
    assert!(format!("{error:?}").contains("policies"), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_comes_back_is_found_and_told_again_what_is_in_use() {
    let mut bench = Bench::new();
    let queue = listener();
    let (first, second) = (Drain::new(), Drain::new());
    // Two lives of one address: the descriptor outlives the first server.
    let again = fender_runtime::listen::Listener::from_fd(duplicate(&queue)).unwrap();
    bench.url = bench.control.serve(queue, &first);
    let mut session = bench.joined().await;
    let report = Report::Credential(Box::new(Usage {
        name: "shop/smtp".parse().unwrap(),
        state: State::Delivered,
        generation: Some("g1".to_owned()),
        since: None,
        newer: None,
        why: String::new(),
        files: 1,
        uses: Vec::new(),
    }));
    session.reports.try_send(report).unwrap();
    let in_use = |kind: &Kind| {
        if let Kind::Credential(used) = kind {
            Some(used.generation.clone())
        } else {
            None
        }
    };
    assert_eq!(bench.reported(in_use).await, "g1");

    first.force();
    first.drained().await;
    session
        .link
        .wait_for(|link| matches!(link, Link::Lost { .. }))
        .await
        .unwrap();
    assert_eq!(
        session.snapshot.borrow().version,
        1,
        "an outage changes nothing"
    );

    bench.control.serve(again, &second);
    session
        .link
        .wait_for(|link| *link == Link::Connected)
        .await
        .unwrap();
    let hello =
        |kind: &Kind| matches!(kind, Kind::Hello(it) if it.snapshot_version == 1).then_some(());
    bench.reported(hello).await;
    assert_eq!(bench.reported(in_use).await, "g1");
}

/// What a process leaves is told until it is taken; and a control plane that never that never takes it holds nobody up for longer than was asked.
#[tokio::test(start_paused = true)]
async fn what_is_left_is_told_until_it_is_taken_and_no_longer_than_there_is_time() {
    let mut bench = Bench::new();
    let session = bench.joined().await;
    let usage = Usage {
        name: "shop/smtp".parse().unwrap(),
        state: State::Delivered,
        generation: Some("g1".to_owned()),
        since: None,
        newer: None,
        why: String::new(),
        files: 1,
        uses: Vec::new(),
    };
    let limit = Deadline::after(Duration::from_secs(7));
    let untaken = session.leave(vec![usage.clone()], limit).await;
    assert!(matches!(untaken, Err(CallError::Timeout)), "{untaken:?}");
    assert!(limit.remaining().is_zero());
    let told = |kind: &Kind| {
        if let Kind::Credential(used) = kind {
            return Some(used.generation.clone());
        }
        matches!(kind, Kind::Ended(_)).then(|| "ended".to_owned())
    };
    assert_eq!(bench.reported(told).await, "g1");
    assert_eq!(bench.reported(told).await, "ended");

    bench
        .control
        .takes_ends
        .store(true, std::sync::atomic::Ordering::Relaxed);
    let limit = Deadline::after(Duration::from_secs(7));
    session.leave(vec![usage], limit).await.unwrap();
}

fn duplicate(listener: &fender_runtime::listen::Listener) -> std::os::fd::OwnedFd {
    use std::os::fd::AsFd as _;
    listener.as_fd().try_clone_to_owned().unwrap()
}
