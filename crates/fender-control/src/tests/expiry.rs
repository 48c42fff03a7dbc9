//! DESIGN I3: whatever the clocks do and however long one side is away, both find together again by themselves, or say who
//! must act. The sidecar is the real client, with state on disk; only the clock and the timers are moved by hand.

use fender_api::addresses::Addresses;
use std::os::unix::fs::PermissionsExt as _;

use fender_api::client::{
    ControlRoots, Evidence, FirstContact, Link, OpenError, Session, SessionConfig, StateDir, open,
};
use fender_api::token::{JoinToken, TokenFile};
use fender_identity::Secret;
use fender_identity::verify::{PeerExpectation, Role, verify};

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

impl World {
    /// Lays a fresh token where the sidecar of a workload looks for one.
    async fn lay_token(&self, workload: &str) {
        let token = self.token(workload, 3600).await.unwrap();
        let pins = token
            .ca_pins
            .iter()
            .map(|pin| <[u8; 32]>::try_from(pin.as_slice()).unwrap().into());
        let text = JoinToken::new(
            token.identity.parse().unwrap(),
            pins.collect(),
            Secret::new(token.secret),
        );
        let file = self.token_file(workload);
        fs::write(&file, text.unwrap().to_text().expose()).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// The administrator's certificate ends with the intermediate that signed it, which is soon where those are short-lived.
    async fn reissue_admin(&self) {
        let (data, sealing) = (self.path("data"), crate::Sealing::DataDirectory);
        let place = crate::StorePlace::DataDir;
        crate::reissue_admin(&data, None, &sealing, &place, None, self.clock.clone())
            .await
            .unwrap();
    }

    fn token_file(&self, workload: &str) -> PathBuf {
        self.path(&format!("{}.token", workload.replace('/', "-")))
    }

    async fn sidecar(&self, workload: &str, drain: &Drain) -> Result<Session, OpenError> {
        let evidence = Evidence::Token(TokenFile::new(self.token_file(workload)));
        self.sidecar_with(workload, evidence, drain).await
    }

    async fn sidecar_with(
        &self,
        workload: &str,
        evidence: Evidence,
        drain: &Drain,
    ) -> Result<Session, OpenError> {
        let state = self.path(&format!("{}.state", workload.replace('/', "-")));
        let config = SessionConfig {
            control: Addresses::parse(&[format!("https://{}", self.running.address)]).unwrap(),
            evidence: Some(evidence),
            state: Some(StateDir::open(state).unwrap()),
            clock: self.clock.clone(),
            drain: drain.clone(),
            version: "0.1.0",
            workload: None,
        };
        open(config, Deadline::after(Duration::from_secs(20))).await
    }

    async fn joined(&self, workload: &str, drain: &Drain) -> Session {
        self.lay_token(workload).await;
        self.sidecar(workload, drain).await.unwrap()
    }

    /// Time passes on both sides, and every timer of either is looked at.
    async fn pass(&self, by: Duration) {
        self.clock.advance(by);
        self.tick().await;
    }

    async fn tick(&self) {
        tick().await;
    }

    /// Until the sidecar's certificate is good at this moment.
    async fn renewed(&self, session: &Session) {
        let good = || session.svid.borrow().validity().includes(self.clock.now());
        for round in 0..60 {
            if good() {
                return;
            }
            self.tick().await;
            // What the timers woke needs real time on real sockets, and more of it on a busy machine: a minute that passes
            // meanwhile ends it.
            let soon = Deadline::after(Duration::from_secs(1 + round / 4));
            let mut svid = session.svid.clone();
            let _ = soon.bound(svid.changed()).await;
        }
        panic!(
            "the certificate was not renewed: {:?}",
            session.link.borrow()
        );
    }
}

/// A minute of every timer, second by second: what a timer woke is done before the next one, so that no peer seems to
/// have been silent for a minute.
async fn tick() {
    tokio::time::pause();
    for _ in 0..61 {
        tokio::time::advance(Duration::from_secs(1)).await;
        for _ in 0..TURNS {
            tokio::task::yield_now().await;
        }
    }
    tokio::time::resume();
}

/// In which sockets are looked at between one second of the timers and the next.
const TURNS: usize = 30;

async fn end(session: Session, drain: Drain) {
    drop(session);
    drain.close(Deadline::after(Duration::from_secs(60))).await;
}

#[tokio::test]
async fn a_machine_that_slept_for_half_a_day_on_both_sides_goes_on_by_itself() {
    let world = World::new().await;
    let drain = Drain::new();
    let session = world.joined("shop/orders", &drain).await;
    world.pass(DAY / 2).await;
    world.renewed(&session).await;
    end(session, drain).await;
}

#[tokio::test]
async fn beyond_its_grace_a_sidecar_goes_on_when_it_is_given_new_evidence_and_says_so_before() {
    let world = World::new().await;
    let drain = Drain::new();
    let session = world.joined("shop/orders", &drain).await;
    let limit = session.unrecoverable().as_secs();
    assert_eq!(limit, NOW + 3600 + DAY.as_secs());
    world.pass(3 * DAY).await;
    assert!(world.now() > limit);
    // A person acts, and nothing is started anew.
    eventually(|| async { world.try_as_peer(&world.admin_svid()).await.ok().map(drop) }).await;
    world.lay_token("shop/orders").await;
    world.renewed(&session).await;
    end(session, drain).await;
}

#[tokio::test]
async fn a_clock_that_is_minutes_behind_or_ahead_and_is_put_right_costs_nothing() {
    let world = World::new().await;
    let drain = Drain::new();
    let session = world.joined("shop/orders", &drain).await;
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

/// Authorities that succeed each other within hours. A root lives two of them, and its successor is published a quarter of
/// an hour before it signs.
fn short_lived(directory: &TempDir) -> String {
    let lifetimes = "profile: development, lifetimes: { leaf: 5m, renewalGrace: 5m, intermediate: 30m, root: 2h }";
    documents(directory.path(), "shop").replacen(
        "trustDomain: acme.test",
        &format!("trustDomain: acme.test, {lifetimes}"),
        1,
    )
}

/// What a peer that knows what `session` knows says of its certificate, in either role.
fn recognised(session: &Session, peer: &Session, now: UnixTime) -> Result<(), String> {
    let (svid, trust) = (session.svid.borrow().clone(), peer.trust().borrow().clone());
    for role in [Role::Client, Role::Server] {
        verify(svid.chain(), role, &trust.bundles, now, &|found| {
            PeerExpectation::Exactly(svid.id().clone()).admit(found)
        })
        .map_err(|refusal| format!("{role:?}: {refusal}"))?;
    }
    Ok(())
}

/// Which root vouches for a certificate.
fn vouching(svid: &Svid, trust: &Bundle, now: UnixTime) -> Option<Vec<u8>> {
    let vouches = |root: &&rustls::pki_types::CertificateDer<'static>| {
        let alone = Bundle::new(svid.id().trust_domain().clone(), vec![(*root).clone()]).unwrap();
        verify(
            svid.chain(),
            Role::Client,
            &Bundles::from(alone),
            now,
            &|_| Ok(()),
        )
        .is_ok()
    };
    trust.roots().iter().find(vouches).map(|root| root.to_vec())
}

fn bundle_of(session: &Session) -> Bundle {
    let trust = session.trust().borrow().clone();
    trust
        .bundles
        .get(&"acme.test".parse().unwrap())
        .unwrap()
        .clone()
}

#[tokio::test]
async fn sidecars_that_stay_connected_pass_three_roots_and_recognise_each_other_at_every_moment() {
    let directory = tempfile::tempdir().unwrap();
    let documents = short_lived(&directory);
    let world = World::with(directory, documents).await;
    let drain = Drain::new();
    let sessions = [
        world.joined("shop/orders", &drain).await,
        world.joined("shop/inventory", &drain).await,
    ];
    let mut vouched = Vec::new();
    for minute in 0..240 {
        world.pass(Duration::from_secs(60)).await;
        for session in &sessions {
            world.renewed(session).await;
        }
        let now = world.clock.now();
        let [orders, inventory] = &sessions;
        for (session, peer) in [(orders, inventory), (inventory, orders)] {
            let recognised = recognised(session, peer, now);
            assert_eq!(recognised, Ok(()), "minute {minute}");
        }
        let root = vouching(&orders.svid.borrow(), &bundle_of(orders), now).unwrap();
        if !vouched.contains(&root) {
            vouched.push(root);
        }
        if vouched.len() == 3
            && !bundle_of(orders)
                .roots()
                .iter()
                .any(|root| root.to_vec() == vouched[0])
        {
            assert_eq!(*orders.link.borrow(), Link::Connected);
            end_all(sessions, drain).await;
            return;
        }
    }
    panic!("{} roots in four hours", vouched.len());
}

async fn end_all(sessions: [Session; 2], drain: Drain) {
    drop(sessions);
    drain.close(Deadline::after(Duration::from_secs(60))).await;
}

#[tokio::test]
async fn a_control_plane_that_was_away_past_the_expiry_of_every_certificate_is_found_again() {
    let world = World::new().await;
    let drain = Drain::new();
    let session = world.joined("shop/orders", &drain).await;
    let stopped = world.stop().await;
    for _ in 0..12 {
        stopped.clock.advance(Duration::from_secs(3600));
        tick().await;
    }
    let expired = session.svid.borrow().validity().not_after;
    assert!(expired < stopped.clock.now());
    assert!(matches!(*session.link.borrow(), Link::Lost { .. }));
    assert!(stopped.clock.now() < session.unrecoverable());

    let world = stopped.start(None).await.unwrap();
    world.renewed(&session).await;
    end(session, drain).await;
}

/// Hours in which the second root is made, published and begins to sign; the first one still lives.
const SECOND_ROOT: u64 = 80 * 60;

#[tokio::test]
async fn a_sidecar_that_was_off_while_a_root_was_succeeded_comes_back_by_what_it_knew() {
    let directory = tempfile::tempdir().unwrap();
    let documents = short_lived(&directory);
    let world = World::with(directory, documents).await;
    let drain = Drain::new();
    let session = world.joined("shop/orders", &drain).await;
    let first = bundle_of(&session);
    end(session, drain).await;

    let awake = Drain::new();
    let watching = world.joined("shop/inventory", &awake).await;
    for _ in 0..SECOND_ROOT / 60 {
        world.pass(Duration::from_secs(60)).await;
        world.renewed(&watching).await;
    }
    let (now, inventory) = (world.clock.now(), watching.svid.borrow().clone());
    assert_eq!(vouching(&inventory, &first, now), None, "a new root signs");

    world.reissue_admin().await;
    // Its grace is over: it needs a new token, and recognises the control plane all the same by the root of before.
    world.lay_token("shop/orders").await;
    let drain = Drain::new();
    let back = world.sidecar("shop/orders", &drain).await.unwrap();
    assert_eq!(recognised(&watching, &back, now), Ok(()));
    assert_eq!(recognised(&back, &watching, now), Ok(()));
    end(back, drain).await;
    end(watching, awake).await;
}

#[tokio::test]
async fn a_sidecar_cut_off_until_every_root_it_knew_has_ended_goes_on_with_a_new_token_alone() {
    let directory = tempfile::tempdir().unwrap();
    let documents = short_lived(&directory);
    let world = World::with(directory, documents).await;
    let drain = Drain::new();
    let session = world.joined("shop/orders", &drain).await;
    let known = bundle_of(&session);
    let stopped = world.stop().await;
    stopped.clock.advance(Duration::from_secs(3 * 3600));
    tick().await;
    assert!(stopped.clock.now() > session.unrecoverable());

    let world = stopped.start(None).await.unwrap();
    world.reissue_admin().await;
    world.lay_token("shop/orders").await;
    world.renewed(&session).await;
    let (now, fresh) = (world.clock.now(), session.svid.borrow().clone());
    assert_eq!(vouching(&fresh, &known, now), None);
    assert!(vouching(&fresh, &bundle_of(&session), now).is_some());
    end(session, drain).await;
}

#[tokio::test]
async fn beyond_every_grace_whoever_has_evidence_that_lasts_comes_back_by_itself() {
    let (world, cluster) = kubernetes::world().await;
    let token = world.path("service-account");
    let project = |serial: u32, now: u64| {
        let mut claims = kubernetes::claims(now);
        claims["jti"] = serial.to_string().into();
        fs::write(&token, cluster.token(&claims)).unwrap();
    };
    project(1, world.now());
    let evidence = Evidence::Kubernetes {
        token: token.clone(),
        contact: FirstContact {
            identity: ORDERS.parse().unwrap(),
            roots: ControlRoots::Pins(world.running.ca_pins.clone()),
        },
    };
    let drain = Drain::new();
    let session = world
        .sidecar_with("shop/orders", evidence, &drain)
        .await
        .unwrap();
    let before = session.svid.borrow().serial().clone();

    let stopped = world.stop().await;
    stopped.clock.advance(60 * DAY);
    tick().await;
    project(2, stopped.clock.now().as_secs());
    let world = stopped.start(None).await.unwrap();
    world.renewed(&session).await;
    assert_ne!(*session.svid.borrow().serial(), before);
    end(session, drain).await;
}
