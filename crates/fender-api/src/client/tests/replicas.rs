//! Several addresses: one is enough, the one that answers is kept, and a stranger at one of them is passed over.

use super::*;
use crate::addresses::Addresses;

/// Asked in this order.
fn in_order(urls: &[&ControlUrl]) -> Addresses {
    let addresses = Addresses::new(urls.iter().map(|url| (*url).clone()).collect()).unwrap();
    match urls {
        // Two are in order once the right one is first.
        [first, _] => addresses.stay(first),
        _ => panic!("of more, chance decides"),
    }
    addresses
}

/// Where nobody listens.
fn nowhere() -> ControlUrl {
    let drain = Drain::new();
    let (control, _) = Control::new();
    let url = control.start(&drain);
    drain.force();
    url
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_whose_replica_dies_goes_on_at_another_and_stays_there() {
    let mut bench = Bench::new();
    let (first, second) = (Drain::new(), Drain::new());
    let urls = [bench.control.start(&first), bench.control.start(&second)];
    let token = bench.token(&bench.control.token(1, None));
    let control = in_order(&[&urls[0], &urls[1]]);
    let config = SessionConfig {
        control: control.clone(),
        ..bench.config(Some(token), None)
    };
    let mut session = bench.open(config).await.unwrap();
    assert_eq!(control.turn()[0], &urls[0], "it stays while that answers");

    first.force();
    first.drained().await;
    session
        .link
        .wait_for(|link| matches!(link, Link::Lost { .. }))
        .await
        .unwrap();
    session
        .link
        .wait_for(|link| *link == Link::Connected)
        .await
        .unwrap();
    assert_eq!(control.turn()[0], &urls[1]);
    // What it has by number and content is not sent again; what comes next is.
    let has = |kind: &Kind| {
        if let Kind::Hello(hello) = kind
            && hello.snapshot_version == 1
        {
            Some(hello.snapshot_sha256.len())
        } else {
            None
        }
    };
    assert_eq!(bench.reported(has).await, 32);
    let next = snapshot(2, &bench.control.ca);
    bench.control.push((&next).into());
    session
        .snapshot
        .wait_for(|snapshot| snapshot.version == 2)
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_whose_replica_issues_what_it_cannot_believe_renews_at_another() {
    let bench = Bench::new();
    let drain = Drain::new();
    let urls = [bench.control.start(&drain), bench.control.start(&drain)];
    let token = bench.token(&bench.control.token(1, None));
    let control = in_order(&[&urls[0], &urls[1]]);
    let config = SessionConfig {
        control: control.clone(),
        ..bench.config(Some(token), None)
    };
    let mut session = bench.open(config).await.unwrap();
    session.svid.mark_unchanged();

    let other = id("spiffe://acme.test/ns/shop/sa/web");
    *bench.control.issue_for.lock().unwrap() = Some(other);
    let leaves = async {
        while control.turn()[0] == &urls[0] {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let hour = Duration::from_secs(3600);
    tokio::time::timeout(hour, leaves).await.unwrap();
    assert!(!session.svid.has_changed().unwrap());
    *bench.control.issue_for.lock().unwrap() = None;
    session.svid.changed().await.unwrap();
    assert_eq!(*session.svid.borrow().id(), id(ORDERS));
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_is_away_at_the_start_is_passed_over() {
    let bench = Bench::new();
    let (dead, alive) = (nowhere(), bench.url.clone());
    let token = bench.token(&bench.control.token(1, None));
    let control = in_order(&[&dead, &alive]);
    let config = SessionConfig {
        control: control.clone(),
        ..bench.config(Some(token), None)
    };
    bench.open(config).await.unwrap();
    assert_eq!(control.turn()[0], &alive);
}

#[tokio::test(start_paused = true)]
async fn attack_a_stranger_at_one_of_the_addresses_is_shown_no_token_and_stops_nobody() {
    let bench = Bench::new();
    let (stranger, mut told) = Control::new();
    let drain = Drain::new();
    let trap = stranger.start(&drain);
    let token = bench.token(&bench.control.token(1, None));
    let config = SessionConfig {
        control: in_order(&[&trap, &bench.url]),
        ..bench.config(Some(token), None)
    };
    let session = bench.open(config).await.unwrap();
    assert_eq!(session.svid.borrow().id(), &id(ORDERS));
    drain.force();
    drain.drained().await;
    assert!(told.try_recv().is_err(), "it heard nothing");
}

#[tokio::test(start_paused = true)]
async fn a_stranger_is_named_only_if_nobody_else_may_still_come() {
    let bench = Bench::new();
    let (stranger, _told) = Control::new();
    let drain = Drain::new();
    let trap = stranger.start(&drain);
    let refused = |control| {
        let config = SessionConfig {
            control,
            ..bench.config(Some(bench.token(&bench.control.token(1, None))), None)
        };
        open(config, Deadline::after(Duration::from_secs(3)))
    };
    let error = refused(Addresses::from(trap.clone())).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::CaPinMismatch));
    let error = refused(in_order(&[&trap, &nowhere()])).await.unwrap_err();
    assert_eq!(error.exit_code(), EXIT_UNAVAILABLE, "{error:?}");
}
