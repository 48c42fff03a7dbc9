//! The sidecar's own client against the real control plane.

use super::*;
use fender_api::addresses::Addresses;
use fender_api::client::{Evidence, SessionConfig, open};
use fender_api::token::{JoinToken, TokenFile};
use fender_identity::Secret;

#[tokio::test]
async fn a_session_attests_receives_its_snapshot_and_follows_changes() {
    let world = World::new().await;
    fs::write(world.path("ledger"), "hunter2").unwrap();
    let token = world.token("shop/inventory", 600).await.unwrap();
    let token = JoinToken::new(
        token.identity.parse().unwrap(),
        world.running.ca_pins.clone(),
        Secret::new(token.secret),
    );
    let file = world.path("token");
    fs::write(&file, token.unwrap().to_text().expose()).unwrap();
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();

    let drain = Drain::new();
    let config = SessionConfig {
        control: Addresses::parse(&[format!("https://{}", world.running.address)]).unwrap(),
        evidence: Some(Evidence::Token(TokenFile::new(&file))),
        state: None,
        clock: world.clock.clone(),
        drain: drain.clone(),
        version: "0.1.0",
        workload: None,
    };
    let mut session = open(config, Deadline::after(Duration::from_secs(60)))
        .await
        .unwrap();
    assert_eq!(session.svid.borrow().id().as_str(), INVENTORY);
    assert_eq!(session.snapshot.borrow_and_update().version, 1);

    world.apply(documents(world.directory.path(), "web")).await;
    session.snapshot.changed().await.unwrap();
    assert_eq!(session.snapshot.borrow().version, 2);

    let mut value = session.watch_credential(&"shop/ledger".parse().unwrap());
    let seen = value
        .wait_for(|state| format!("{state:?}").contains("Value"))
        .await
        .map(|state| format!("{state:?}"));
    assert!(!seen.unwrap().contains("hunter2"));
    drain.close(Deadline::after(Duration::from_secs(60))).await;
}
