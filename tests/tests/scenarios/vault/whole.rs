//! Everything at one place in a Vault as one secret, which a template takes apart: what a file holds is of one answer, and of one lease.

use fender_tests::process::PATIENCE;
use fender_tests::wait_until;
use serde_json::json;

use super::{World, leases::number};

const WHOLE: &str = "login: { LOGIN }, kv2: { path: shop/smtp }";
const URL: &str =
    "smtp://{{ user | urlencode }}:{{ password | urlencode }}@{{ at.host }}:{{ at.port }}";

/// A workload whose file is made of everything at this place.
fn world(via: &str, place: &str, template: &str) -> World {
    let mut world = World::new(via, &[("made", place)]);
    let of_it = format!("storage: disk, template: \"{template}\" }}");
    let documents = world.documents.replace("storage: disk }", &of_it);
    assert_ne!(documents, world.documents);
    let (code, out, err) = world.mesh.apply(&documents);
    assert_eq!(code, 0, "{out}{err}");
    world.documents = documents;
    world
}

fn a_template_takes_the_whole_apart(via: &str) {
    let world = world(via, WHOLE, URL);
    let vault = &world.vault;
    let write = |user: &str, password: &str| {
        let at = json!({ "host": "mail.internal", "port": 25 });
        let data = json!({ "user": user, "password": password, "at": at, "tls": true });
        vault.write("shop/smtp", data);
    };
    write("canary-user", "canary/1");
    let mut sidecar = world.sidecar();
    let made = |user: &str, password: &str| format!("smtp://{user}:{password}@mail.internal:25");
    let first = made("canary-user", "canary%2F1");
    assert_eq!(world.delivered("made"), Some(first));

    // Both change at once, in one file.
    write("canary-other", "canary/2");
    let second = made("canary-other", "canary%2F2");
    world.wait_for("made", Some(&second));

    // What is not there is not made up: the file stays, and it is said why.
    vault.write("shop/smtp", json!({ "user": "canary-third" }));
    world.wait_until_outdated("made");
    assert_eq!(world.delivered("made"), Some(second));
    assert!(world.told().contains("password"), "{}", world.told());
    write("canary-third", "canary/3");
    world.wait_for("made", Some(&made("canary-third", "canary%2F3")));

    vault.delete("shop/smtp");
    world.wait_for("made", None);
    sidecar.assert_running();
    world.assert_nothing_is_shown();
}

#[test]
fn a_template_takes_the_whole_apart_by_the_sidecar() {
    a_template_takes_the_whole_apart("sidecar");
}

#[test]
fn a_template_takes_the_whole_apart_through_the_control_plane() {
    a_template_takes_the_whole_apart("control");
}

#[test]
fn a_user_and_its_password_are_of_one_lease_in_one_file() {
    let lease = "login: { LOGIN }, engine: { path: database/creds/orders }";
    let world = world("sidecar", lease, "{{ username }} {{ password }}");
    let vault = &world.vault;
    vault.set_lease(20, 20);
    let _sidecar = world.sidecar();
    let made = || world.delivered("made").unwrap_or_default();
    let of_one_lease = |text: &str| {
        let (user, password) = text.split_once(' ').unwrap();
        assert_eq!(number(user), number(password), "{text}");
    };
    let first = made();
    of_one_lease(&first);
    wait_until("the lease is renewed", PATIENCE, || {
        vault.count("POST sys/leases/renew") >= 1
    });
    assert_eq!(made(), first, "it is the same");
    assert_eq!(vault.count("GET database/creds/orders"), 1);
    vault.set_lease(3600, 1);
    wait_until("another lease is delivered", PATIENCE, || made() != first);
    of_one_lease(&made());
    assert_eq!(vault.count("GET database/creds/orders"), 2);
    world.assert_nothing_is_shown();
}
