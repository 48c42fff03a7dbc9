use super::*;

#[tokio::test(start_paused = true)]
async fn a_restart_with_state_needs_no_token() {
    let bench = Bench::new();
    bench.stored().await;
    let bench = bench.reborn();
    let session = bench
        .open(bench.config(None, Some(bench.state())))
        .await
        .unwrap();
    assert_eq!(session.snapshot.borrow().version, 1);
    assert_eq!(*session.link.borrow(), Link::Connected);
}

#[tokio::test(start_paused = true)]
async fn a_restart_while_the_control_plane_is_away_serves_what_was_stored_and_keeps_trying() {
    let bench = Bench::new();
    bench.stored().await;
    bench.kill().await;

    let mut bench = bench.reborn();
    let queue = listener();
    bench.url = format!("https://{}", queue.local_address())
        .parse()
        .unwrap();
    let mut session = bench
        .open(bench.config(None, Some(bench.state())))
        .await
        .unwrap();
    assert_eq!(session.snapshot.borrow().version, 1);
    assert!(matches!(*session.link.borrow(), Link::Lost { .. }));

    bench.control.push((&snapshot(2, &bench.control.ca)).into());
    let server = Drain::new();
    bench.control.serve(queue, &server);
    session
        .link
        .wait_for(|link| *link == Link::Connected)
        .await
        .unwrap();
    session
        .snapshot
        .wait_for(|snapshot| snapshot.version == 2)
        .await
        .unwrap();
    // It says that it runs nothing yet, so that even an equal number would be sent anew.
    let hello = |kind: &Kind| match kind {
        Kind::Hello(hello) => Some(hello.snapshot_version),
        Kind::Ack(_)
        | Kind::Nack(_)
        | Kind::Decision(_)
        | Kind::Certificate(_)
        | Kind::Credential(_)
        | Kind::TrustAck(_)
        | Kind::TrustNack(_)
        | Kind::Ended(_) => None,
    };
    assert_eq!(bench.reported(hello).await, 0);
}

#[tokio::test(start_paused = true)]
async fn an_expired_certificate_renews_itself_with_its_key_within_the_grace() {
    let bench = Bench::new();
    bench.stored().await;
    let mut bench = bench.reborn();
    bench.control.clock.jump(Duration::from_secs(3 * 3600));
    let session = bench
        .open(bench.config(None, Some(bench.state())))
        .await
        .unwrap();
    let validity = session.svid.borrow().validity();
    assert!(validity.includes(bench.control.clock.now()));
    assert!(
        bench
            .hears(|heard| matches!(heard, Heard::Renew { by_proof: true }).then_some(true))
            .await
    );
}

#[tokio::test(start_paused = true)]
async fn beyond_the_grace_only_a_new_token_helps() {
    let bench = Bench::new();
    bench.stored().await;
    let bench = bench.reborn();
    bench.control.clock.jump(Duration::from_secs(26 * 3600));
    let error = bench
        .open(bench.config(None, Some(bench.state())))
        .await
        .unwrap_err();
    assert_eq!(
        (error.code(), error.exit_code()),
        (Some(Code::RenewalExpired), EXIT_REFUSED)
    );

    let token = bench.token(&bench.control.token(2, None));
    let session = bench
        .open(bench.config(Some(token), Some(bench.state())))
        .await
        .unwrap();
    assert!(
        session
            .svid
            .borrow()
            .validity()
            .includes(bench.control.clock.now())
    );
}

#[tokio::test(start_paused = true)]
async fn a_revoked_identity_does_not_serve_from_its_state() {
    let bench = Bench::new();
    bench.stored().await;
    let bench = bench.reborn();
    *bench.control.refuse_streams.lock().unwrap() = Some(Code::Revoked);
    let error = bench
        .open(bench.config(None, Some(bench.state())))
        .await
        .unwrap_err();
    assert_eq!(
        (error.code(), error.exit_code()),
        (Some(Code::Revoked), EXIT_REFUSED)
    );
}

#[tokio::test(start_paused = true)]
async fn a_token_is_not_spent_while_the_stored_identity_works() {
    let bench = Bench::new();
    bench.stored().await;
    let bench = bench.reborn();
    let file = bench.token(&bench.control.token(2, None));
    let config = bench.config(Some(file.clone()), Some(bench.state()));
    let _session = bench.open(config).await.unwrap();
    assert!(file.exists());
}

#[tokio::test(start_paused = true)]
async fn a_stranger_at_the_address_of_the_control_plane_cannot_stop_a_restart() {
    let bench = Bench::new();
    bench.stored().await;
    let mut bench = bench.reborn();
    let (stranger, mut heard) = Control::new();
    let server = Drain::new();
    bench.url = stranger.start(&server);
    let session = bench
        .open(bench.config(None, Some(bench.state())))
        .await
        .unwrap();
    assert_eq!(session.snapshot.borrow().version, 1);
    assert!(matches!(*session.link.borrow(), Link::Lost { .. }));
    assert!(heard.try_recv().is_err(), "the stranger was told something");
}
