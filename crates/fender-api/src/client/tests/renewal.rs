use super::*;

#[tokio::test(start_paused = true)]
async fn the_certificate_is_renewed_at_half_of_its_life_and_never_expires() {
    let bench = Bench::new();
    *bench.control.life.lock().unwrap() = Duration::from_secs(100);
    let mut session = bench.joined().await;
    for _ in 0..5 {
        let old = session.svid.borrow_and_update().clone();
        session.svid.changed().await.unwrap();
        let now = bench.control.clock.now().as_secs();
        let used = now - old.validity().not_before.as_secs();
        assert!((44..=57).contains(&used), "renewed after {used} s");
        assert_ne!(session.svid.borrow().serial(), old.serial());
    }
    // Every renewal moves the stream to a connection with the new certificate.
    assert_eq!(*session.link.borrow(), Link::Connected);
}

#[tokio::test(start_paused = true)]
async fn the_old_certificate_stays_while_renewal_fails_and_its_key_renews_it_after_expiry() {
    let mut bench = Bench::new();
    *bench.control.life.lock().unwrap() = Duration::from_secs(100);
    let mut session = bench.joined().await;
    *bench.control.refuse_renewals.lock().unwrap() = Some(Code::Unavailable);
    let first = session.svid.borrow_and_update().serial().clone();

    for by_proof in [false, true] {
        bench
            .hears(|heard| {
                matches!(heard, Heard::Renew { by_proof: seen } if *seen == by_proof).then_some(())
            })
            .await;
        assert_eq!(*session.svid.borrow().serial(), first);
    }
    *bench.control.refuse_renewals.lock().unwrap() = None;
    session.svid.changed().await.unwrap();
    assert!(
        session
            .svid
            .borrow()
            .validity()
            .includes(bench.control.clock.now())
    );
    session
        .link
        .wait_for(|link| *link == Link::Connected)
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_jump_of_the_wall_clock_renews_within_half_a_minute() {
    let bench = Bench::new();
    let mut session = bench.joined().await;
    let began = tokio::time::Instant::now();
    bench.control.clock.jump(Duration::from_secs(45 * 60));
    session.svid.borrow_and_update();
    session.svid.changed().await.unwrap();
    assert!(
        began.elapsed() <= Duration::from_secs(31),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_certificate_the_server_refuses_in_tls_is_told_apart_from_an_answer() {
    let bench = Bench::new();
    let caller = Caller {
        control: bench.url.clone().into(),
        clock: bench.control.clock.clone(),
        version: "0.0.0-test",
    };
    let ca = &bench.control.ca;
    let (from, life) = (bench.control.clock.now(), Duration::from_secs(60));
    let svid = ca.svid_for(&id(ORDERS), from, life, false);
    bench.control.clock.jump(Duration::from_secs(120));
    let soon = Deadline::after(Duration::from_secs(10));
    let connected = caller
        .connect(svid.id(), Some(&svid), &ca.bundles().into(), soon)
        .await;
    let error = match connected {
        // In TLS 1.3 a client hears only afterwards that it was refused.
        Ok(connection) => {
            let mut client =
                proto::identity_client::IdentityClient::new(connection.channel.clone());
            bounded(soon, client.renew(proto::RenewRequest::default()))
                .await
                .unwrap_err()
        }
        Err(error) => error,
    };
    assert_eq!(error.code(), Code::Unavailable);
    assert!(
        error_chain(&error).contains("alert"),
        "{}",
        error_chain(&error)
    );
}

#[tokio::test(start_paused = true)]
async fn whoever_was_away_beyond_the_grace_comes_back_by_itself_with_new_evidence() {
    let bench = Bench::new();
    let file = bench.token(&bench.control.token(1, None));
    let state = bench.state();
    let config = bench.config(Some(file), Some(state));
    let mut session = bench.open(config).await.unwrap();
    let before = session.svid.borrow_and_update().serial().clone();

    // Suspended for days: neither the certificate nor its key is worth anything now.
    bench.control.clock.jump(Duration::from_secs(48 * 3600));
    session
        .link
        .wait_for(|link| *link != Link::Connected)
        .await
        .unwrap();
    assert_eq!(*session.svid.borrow().serial(), before);
    bench.token(&bench.control.token(2, None));
    session.svid.changed().await.unwrap();
    assert_ne!(*session.svid.borrow().serial(), before);
    session
        .link
        .wait_for(|link| *link == Link::Connected)
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn whoever_is_not_admitted_any_more_by_what_was_attested_attests_anew_by_itself() {
    let bench = Bench::new();
    let file = bench.token(&bench.control.token(1, None));
    let mut session = bench.open(bench.config(Some(file), None)).await.unwrap();
    let before = session.svid.borrow_and_update().clone();
    *bench.control.refuse_renewals.lock().unwrap() = Some(Code::NotAttestable);
    // Nothing is at hand at first: the certificate stays, and is asked for again and again.
    let wait = Duration::from_secs(40 * 60);
    let changed = tokio::time::timeout(wait, session.svid.changed()).await;
    assert!(changed.is_err());
    assert_eq!(session.svid.borrow().serial(), before.serial());
    let file = bench.token(&bench.control.token(2, None));
    session.svid.changed().await.unwrap();
    assert_ne!(session.svid.borrow().serial(), before.serial());
    assert!(!file.exists(), "it has served");
}

#[tokio::test(start_paused = true)]
async fn attack_new_evidence_for_another_identity_changes_nobody() {
    let bench = Bench::new();
    let file = bench.token(&bench.control.token(1, None));
    let mut session = bench.open(bench.config(Some(file), None)).await.unwrap();
    let other = bench
        .control
        .token_for("spiffe://acme.test/ns/shop/sa/web", 2);
    let file = bench.token(&other);
    *bench.control.refuse_renewals.lock().unwrap() = Some(Code::Revoked);
    session.svid.borrow_and_update();
    assert!(
        tokio::time::timeout(Duration::from_secs(3600), session.svid.changed())
            .await
            .is_err()
    );
    assert!(file.exists(), "the token of another was spent");
}
