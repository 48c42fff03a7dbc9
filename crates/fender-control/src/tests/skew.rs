//! Clocks that differ by five minutes, between the control plane and its sidecars, and between two sidecars.

use fender_api::addresses::Addresses;
use fender_api::client::{Evidence, Session, SessionConfig, open};
use fender_api::token::{JoinToken, TokenFile};
use fender_identity::Secret;
use fender_identity::verify::{self, Role};

use super::*;

const FIVE_MINUTES: i64 = 300;

impl World {
    /// A sidecar whose clock is ahead by so many seconds, or behind.
    async fn skewed(&self, workload: &str, ahead: i64) -> (Session, Arc<TestClock>, Drain) {
        let token = self.token(workload, 600).await.unwrap();
        let token = JoinToken::new(
            token.identity.parse().unwrap(),
            self.running.ca_pins.clone(),
            Secret::new(token.secret),
        );
        let file = self.path(&format!("token{ahead}"));
        fs::write(&file, token.unwrap().to_text().expose()).unwrap();
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let clock = TestClock::new(at(NOW.checked_add_signed(ahead).unwrap()));
        let drain = Drain::new();
        let config = SessionConfig {
            control: Addresses::parse(&[format!("https://{}", self.running.address)]).unwrap(),
            evidence: Some(Evidence::Token(TokenFile::new(&file))),
            state: None,
            clock: clock.clone(),
            drain: drain.clone(),
            version: "0.1.0",
            workload: None,
        };
        let session = open(config, Deadline::after(Duration::from_secs(20)))
            .await
            .unwrap();
        (session, clock, drain)
    }
}

#[tokio::test]
async fn sidecars_five_minutes_ahead_and_behind_attest_serve_each_other_and_renew() {
    let world = World::new().await;
    let (ahead, fast, first) = world.skewed("shop/orders", FIVE_MINUTES).await;
    let (behind, slow, second) = world.skewed("shop/inventory", -FIVE_MINUTES).await;
    // Each believes the other's fresh certificate by its own clock: ten minutes apart.
    let believes = |clock: &TestClock, other: &Session| {
        let (svid, trust) = (other.svid.borrow().clone(), other.trust().borrow().clone());
        for role in [Role::Client, Role::Server] {
            verify::verify(svid.chain(), role, &trust.bundles, clock.now(), &|_| Ok(())).unwrap();
        }
    };
    believes(&fast, &behind);
    believes(&slow, &ahead);
    // And a further one, as at a renewal.
    for session in [&ahead, &behind] {
        let soon = Deadline::after(Duration::from_secs(60));
        session.further_svid(soon).await.unwrap();
    }
    for drain in [first, second] {
        drain.close(Deadline::after(Duration::from_secs(60))).await;
    }
}

#[tokio::test]
async fn a_clock_that_is_further_off_than_certificates_begin_in_the_past_is_noticed_and_not_believed()
 {
    let world = World::new().await;
    let svid = world.attested("shop/orders").await;
    let bundles = Bundles::from(world.bundle());
    let verified = |seconds| {
        let now = at(NOW - seconds);
        verify::verify(svid.chain(), Role::Server, &bundles, now, &|_| Ok(()))
    };
    verified(359).unwrap();
    verified(361).unwrap_err();
}
