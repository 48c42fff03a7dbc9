//! What Vault lends: shared, renewed, given back, and not taken by who cannot renew it.

use std::process::Stdio;

use fender_tests::process::PATIENCE;
use fender_tests::{Process, wait_until};
use rustix::process::Signal;

use super::{CANARY, World};

/// The number that a leased value ends with.
pub(super) fn number(value: &str) -> &str {
    value.rsplit('-').next().unwrap()
}

fn leases_are_shared_renewed_and_given_back(via: &str) {
    let of = |key: &str| {
        format!("login: {{ LOGIN }}, engine: {{ path: database/creds/orders, key: {key} }}")
    };
    let [user, password] = [of("username"), of("password")];
    let world = World::new(via, &[("user", &user), ("password", &password)]);
    let vault = &world.vault;
    // Long enough for a slow machine to renew it in time: after half to two thirds of that, for as long again.
    vault.set_lease(20, 20);
    let mut sidecar = world.sidecar();
    let pair = || (world.delivered("user"), world.delivered("password"));
    let (Some(user), Some(password)) = pair() else {
        panic!("{:?}", pair())
    };
    assert_eq!(number(&user), number(&password), "of one lease");
    wait_until("the lease is renewed", PATIENCE, || {
        vault.count("POST sys/leases/renew") >= 1
    });
    assert_eq!(vault.count("GET database/creds/orders"), 1);
    assert_eq!(pair(), (Some(user.clone()), Some(password)));

    // The next renewal gives less, so the greatest age is near: there is another lease, and its keys arrive together.
    vault.set_lease(3600, 1);
    wait_until("another lease is delivered", PATIENCE, || {
        let (Some(new), Some(password)) = pair() else {
            return false;
        };
        new != user && number(&new) == number(&password)
    });
    assert_eq!(vault.count("GET database/creds/orders"), 2);

    sidecar.assert_running();
    world.assert_nothing_is_shown();
    sidecar.signal(Signal::TERM);
    assert!(sidecar.wait(PATIENCE).success(), "{}", sidecar.log());
    let World {
        vault, mut mesh, ..
    } = world;
    if via == "sidecar" {
        assert_eq!(vault.leases(), Vec::<String>::new(), "{:?}", vault.asked());
    } else {
        // Another sidecar may go on with it, when the control plane is back.
        mesh.stop_control();
        assert!(!vault.leases().is_empty(), "{:?}", vault.asked());
    }
}

#[test]
fn leases_are_shared_renewed_and_given_back_by_the_sidecar() {
    leases_are_shared_renewed_and_given_back("sidecar");
}

#[test]
fn leases_are_shared_and_renewed_through_the_control_plane() {
    leases_are_shared_renewed_and_given_back("control");
}

#[test]
fn what_was_leased_stays_for_who_goes_on_with_it_when_a_successor_takes_over() {
    let lease = "login: { LOGIN }, engine: { path: database/creds/orders, key: username }";
    let world = World::new("sidecar", &[("user", lease)]);
    let (vault, mesh) = (&world.vault, &world.mesh);
    let mut first = world.sidecar();
    let before = world.delivered("user").unwrap();
    assert_eq!(vault.leases().len(), 1);
    let mut command = mesh.sidecar_command("shop/orders", None);
    command
        .arg("--take-over")
        .arg(mesh.state("shop/orders").join("upgrade.sock"));
    let mut second = Process::start("second", &mut command, &mesh.path("logs/second.log"));
    assert!(first.wait(PATIENCE).success(), "{}", first.log());
    mesh.wait_ready("shop/orders", &mut second);
    // Whatever the application opened with the user of before goes on: neither its lease nor its token was given back.
    assert_eq!(vault.count("POST auth/token/revoke-self"), 0);
    assert_eq!(vault.count("POST sys/leases/revoke"), 0);
    let of_first = format!("database/creds/orders/lease-{}", number(&before));
    assert!(vault.leases().contains(&of_first), "{:?}", vault.leases());
    let now = world.delivered("user").unwrap();
    assert_ne!(
        now, before,
        "a successor has a login and a lease of its own"
    );
    let of_second = format!("database/creds/orders/lease-{}", number(&now));
    second.signal(Signal::TERM);
    assert!(second.wait(PATIENCE).success(), "{}", second.log());
    // Its own it gives back. What the one before left ends by itself.
    assert_eq!(vault.leases(), [of_first]);
    assert!(!vault.leases().contains(&of_second));
    assert_eq!(world.delivered("user"), None);
    for log in [first.log(), second.log()] {
        assert!(!log.contains(CANARY), "{log}");
    }
}

/// Who takes it through the control plane and goes away has it revoked some minutes later: `exec` is told so and takes none.
#[test]
fn exec_takes_nothing_through_the_control_plane_that_ends_when_nobody_takes_it_any_more() {
    let lease = "login: { LOGIN }, engine: { path: database/creds/orders, key: username }";
    let world = World::new("control", &[("user", lease)]);
    let mesh = &world.mesh;
    let deliver = "  deliver: [ { environment: { variable: DB_USER } },";
    let documents = world.documents.replace("  deliver: [", deliver);
    let (code, out, err) = mesh.apply(&documents);
    assert_eq!(code, 0, "{out}{err}");
    let token = mesh.token("shop/orders", "5m");
    let run = |more: &[&str]| {
        let mut command = mesh.command();
        command.args(["exec", "--token-file"]).arg(&token);
        command.args(more).args(["--", "/bin/sh", "-c", "echo ran"]);
        command.stdin(Stdio::null()).output().unwrap()
    };
    let refused = run(&[]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(64), "{said}");
    assert!(refused.stdout.is_empty());
    assert!(
        said.contains("shop/user") && said.contains("--supervise"),
        "{said}"
    );
    assert_eq!(world.vault.count("GET database/creds"), 0);
}
