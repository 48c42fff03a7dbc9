//! DESIGN I3: whatever the clocks do and however long one side is away, both find together again by themselves, or say who
//! must act. The sidecar is the real client, with state on disk; only the clock and the timers are moved by hand.

use std::os::unix::fs::PermissionsExt as _;

use fender_api::client::{Evidence, OpenError, Session, SessionConfig, StateDir, open};
use fender_api::token::{JoinToken, TokenFile};
use fender_identity::Secret;

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

impl World {
    /// Lays a fresh token where the sidecar looks for one.
    async fn lay_token(&self) -> TokenFile {
        let token = self.token("shop/orders", 3600).await.unwrap();
        let pins = token
            .ca_pins
            .iter()
            .map(|pin| <[u8; 32]>::try_from(pin.as_slice()).unwrap().into());
        let text = JoinToken::new(
            token.identity.parse().unwrap(),
            pins.collect(),
            Secret::new(token.secret),
        );
        let file = self.path("token");
        fs::write(&file, text.unwrap().to_text().expose()).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        TokenFile::new(&file)
    }

    async fn sidecar(&self, drain: &Drain) -> Result<Session, OpenError> {
        let config = SessionConfig {
            url: format!("https://{}", self.running.address).parse().unwrap(),
            evidence: Some(Evidence::Token(TokenFile::new(self.path("token")))),
            state: Some(StateDir::open(self.path("state")).unwrap()),
            clock: self.clock.clone(),
            drain: drain.clone(),
            version: "0.1.0",
            workload: None,
        };
        open(config, Deadline::after(Duration::from_secs(20))).await
    }

    /// Time passes on both sides, and every timer of either is looked at.
    async fn pass(&self, by: Duration) {
        self.clock.advance(by);
        self.tick().await;
    }

    async fn tick(&self) {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(61)).await;
        tokio::time::resume();
    }

    /// Until the sidecar's certificate is good at this moment.
    async fn renewed(&self, session: &Session) {
        let good = || session.svid.borrow().validity().includes(self.clock.now());
        for _ in 0..60 {
            if good() {
                return;
            }
            self.tick().await;
            // What the timers woke needs real time on real sockets.
            let soon = Deadline::after(Duration::from_secs(1));
            let mut svid = session.svid.clone();
            let _ = soon.bound(svid.changed()).await;
        }
        panic!(
            "the certificate was not renewed: {:?}",
            session.link.borrow()
        );
    }
}

async fn end(session: Session, drain: Drain) {
    drop(session);
    drain.close(Deadline::after(Duration::from_secs(5))).await;
}

#[tokio::test]
async fn a_machine_that_slept_for_half_a_day_on_both_sides_goes_on_by_itself() {
    let world = World::new().await;
    world.lay_token().await;
    let drain = Drain::new();
    let session = world.sidecar(&drain).await.unwrap();
    world.pass(DAY / 2).await;
    world.renewed(&session).await;
    end(session, drain).await;
}

#[tokio::test]
async fn beyond_its_grace_a_sidecar_goes_on_when_it_is_given_new_evidence_and_says_so_before() {
    let world = World::new().await;
    world.lay_token().await;
    let drain = Drain::new();
    let session = world.sidecar(&drain).await.unwrap();
    let limit = session.unrecoverable().as_secs();
    assert_eq!(limit, NOW + 3600 + DAY.as_secs());
    world.pass(3 * DAY).await;
    assert!(world.now() > limit);
    // A person acts, and nothing is started anew.
    eventually(|| async { world.try_as_peer(&world.admin_svid()).await.ok().map(drop) }).await;
    world.lay_token().await;
    world.renewed(&session).await;
    end(session, drain).await;
}

#[tokio::test]
async fn a_clock_that_is_minutes_behind_or_ahead_and_is_put_right_costs_nothing() {
    let world = World::new().await;
    world.lay_token().await;
    let drain = Drain::new();
    let session = world.sidecar(&drain).await.unwrap();
    for jump in [NOW + 300, NOW - 20, NOW + 600, NOW + 60] {
        world.clock.set(at(jump));
        world.tick().await;
        world.renewed(&session).await;
    }
    end(session, drain).await;
}

#[tokio::test]
async fn a_control_plane_suspended_past_its_own_certificate_serves_again_at_once() {
    let world = World::new().await;
    let svid = world.attested("shop/orders").await;
    world.advance(10 * DAY).await;
    assert!(svid.validity().not_after < world.clock.now());
    // Somebody new, over a certificate that is new as well.
    world.attested("shop/orders").await;
}
