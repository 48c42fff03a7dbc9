//! DESIGN §5: `Mesh.snapshot.maxAge` bounds how stale a sidecar may run.

use super::*;

/// Shorter than a certificate.
const MAX_AGE: Duration = Duration::from_secs(20 * 60);
const MINUTE: Duration = Duration::from_secs(60);

/// Nobody is let in any more, and nothing out.
fn is_closed(session: &Session) -> bool {
    closed(&session.snapshot.borrow())
}

fn closed(snapshot: &Arc<Snapshot>) -> bool {
    let policies = &snapshot.policies;
    let mut names = policies.policies.iter().map(|policy| policy.name.as_str());
    names.next() == Some("fender-system/snapshot-too-old")
}

impl Bench {
    fn push_good(&self, version: u64) {
        let mut good = snapshot(version, &self.control.ca);
        good.max_age = Some(MAX_AGE);
        self.control.push((&good).into());
    }

    /// What no version can serve.
    async fn push_bad(&mut self, version: u64) {
        let mut bad = proto::Snapshot::from(&snapshot(version, &self.control.ca));
        bad.tls = None;
        self.control.push(bad);
        assert_eq!(self.nack().await.0, version);
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_refuses_what_is_newer_is_closed_in_time_and_opened_by_what_can_be_served() {
    let mut bench = Bench::new();
    bench.push_good(1);
    let mut session = bench.joined().await;
    tokio::time::sleep(MAX_AGE * 2).await;
    assert!(
        !is_closed(&session),
        "while it is connected it does not age"
    );

    bench.push_bad(2).await;
    tokio::time::sleep(MAX_AGE / 2).await;
    // Another refusal makes it no younger.
    bench.push_bad(3).await;
    tokio::time::sleep(MAX_AGE / 2 - MINUTE).await;
    assert!(!is_closed(&session));
    session.snapshot.wait_for(closed).await.unwrap();
    // Nor does what is learned of trust, which counts all the same.
    bench.control.push_trust(trust(9, &bench.control.ca));
    assert_eq!(bench.trust_ack_after(1).await, 9);
    assert!(is_closed(&session));
    assert_eq!(session.snapshot.borrow().trust.version, 9);

    bench.push_good(4);
    let open = session.snapshot.wait_for(|snapshot| snapshot.version == 4);
    open.await.unwrap();
    assert!(!is_closed(&session));
}

#[tokio::test(start_paused = true)]
async fn an_outage_ages_it_also_while_the_machine_sleeps() {
    let bench = Bench::new();
    bench.push_good(1);
    let mut session = bench.joined().await;
    bench.kill().await;
    let lost = session.link.wait_for(|link| *link != Link::Connected);
    lost.await.unwrap();
    assert!(!is_closed(&session));
    bench.control.clock.jump(MAX_AGE - MINUTE);
    session.snapshot.wait_for(closed).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_restart_does_not_make_it_younger() {
    let bench = Bench::new();
    bench.push_good(1);
    bench.stored().await;
    bench.kill().await;
    let mut bench = bench;
    for (slept, closed) in [(MAX_AGE / 2, false), (MAX_AGE / 2 + MINUTE, true)] {
        bench.control.clock.jump(slept);
        bench = bench.reborn();
        let session = bench.open(bench.config(None, Some(bench.state()))).await;
        let session = session.unwrap();
        assert_eq!(session.snapshot.borrow().version, 1);
        assert_eq!(is_closed(&session), closed);
        bench.end(session).await;
    }
}

#[tokio::test(start_paused = true)]
async fn attack_a_restart_while_it_refuses_what_is_newer_gains_no_time() {
    let mut bench = Bench::new();
    bench.push_good(1);
    bench.stored().await;
    bench.push_good(1);
    bench = bench.reborn();
    let mut session = bench
        .open(bench.config(None, Some(bench.state())))
        .await
        .unwrap();
    bench.push_bad(2).await;
    for _ in 0..3 {
        tokio::time::sleep(MAX_AGE / 4).await;
        assert!(!is_closed(&session));
        bench.end(session).await;
        bench = bench.reborn();
        session = bench
            .open(bench.config(None, Some(bench.state())))
            .await
            .unwrap();
        assert_eq!(bench.nack().await.0, 2);
    }
    tokio::time::sleep(MAX_AGE / 4 + MINUTE).await;
    assert!(is_closed(&session));
}
