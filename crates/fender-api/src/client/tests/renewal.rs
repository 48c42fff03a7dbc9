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
