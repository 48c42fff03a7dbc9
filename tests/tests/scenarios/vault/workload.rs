//! A workload that logs in to Vault as itself.

use std::fs;

use fender_tests::process::PATIENCE;
use fender_tests::wait_until;
use rustix::process::Signal;
use serde_json::json;

use super::World;

/// As whom the sidecar logs in that has an identity.
const ORDERS: &str = "spiffe://test.internal/ns/shop/sa/orders";

#[test]
fn the_workload_logs_in_by_its_own_certificate_and_again_when_it_has_another() {
    let kv = "login: { certificate: { svid: {} } }, kv2: { path: smtp, key: password }";
    let world = World::of("sidecar", "40s", "1s", &[("smtp", kv)]);
    let vault = &world.vault;
    vault.bind_to(ORDERS);
    vault.write("smtp", json!({ "password": "canary-1" }));
    let mut sidecar = world.sidecar();
    assert_eq!(world.delivered("smtp").as_deref(), Some("canary-1"));
    let shown = vault.shown();
    assert!(
        shown
            .iter()
            .all(|shown| shown.starts_with(&format!("{ORDERS} "))),
        "{shown:?}"
    );
    assert_eq!(shown.len(), 1);
    // What was shown is in no file but the sidecar's own state.
    wait_until("another certificate has logged in", PATIENCE, || {
        vault.shown().iter().any(|later| *later != shown[0])
    });
    vault.write("smtp", json!({ "password": "canary-2" }));
    world.wait_for("smtp", Some("canary-2"));
    let later = vault.shown();
    assert!(
        later
            .iter()
            .all(|shown| shown.starts_with(&format!("{ORDERS} "))),
        "{later:?}"
    );
    // Attack: Vault's role is bound to another workload, and this one is no other.
    vault.bind_to("spiffe://test.internal/ns/shop/sa/ledger");
    let before = vault.shown().len();
    vault.revoke_all();
    vault.write("smtp", json!({ "password": "canary-3" }));
    wait_until("the login is refused", PATIENCE, || {
        vault.shown().len() > before
    });
    assert_ne!(world.delivered("smtp").as_deref(), Some("canary-3"));
    vault.bind_to(ORDERS);
    world.wait_for("smtp", Some("canary-3"));
    sidecar.assert_running();
    world.assert_nothing_is_shown();
    sidecar.signal(Signal::TERM);
    assert!(sidecar.wait(PATIENCE).success(), "{}", sidecar.log());
    assert_eq!(vault.tokens(), 0, "{:?}", vault.asked());
}

#[test]
fn the_workload_logs_in_by_a_token_that_its_control_plane_signs() {
    let kv = "login: { jwt: { role: orders, svid: { audience: vault } } }, kv2: { path: smtp, key: password }";
    let world = World::of("sidecar", "1h", "1s", &[("smtp", kv)]);
    let vault = &world.vault;
    vault.bind_to(ORDERS);
    vault.write("smtp", json!({ "password": "canary-1" }));
    let _sidecar = world.sidecar();
    assert_eq!(world.delivered("smtp").as_deref(), Some("canary-1"));
    assert_eq!(vault.shown(), [format!("{ORDERS} vault")]);
    vault.revoke_all();
    vault.write("smtp", json!({ "password": "canary-2" }));
    world.wait_for("smtp", Some("canary-2"));
    assert_eq!(vault.shown().len(), 2);
    world.assert_nothing_is_shown();
    // No token of ours is in what was written either.
    for log in fs::read_dir(world.mesh.path("logs")).unwrap() {
        let text = fs::read_to_string(log.unwrap().path()).unwrap();
        assert!(!text.contains("eyJ"), "{text}");
    }
}
