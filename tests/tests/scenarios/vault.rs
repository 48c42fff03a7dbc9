//! Secrets of a Vault reach the application, by the sidecar and through the control plane, whatever becomes of the Vault
//! (DESIGN §9). The server answers as Vault's documentation says; `docs/guide/verify-vault.md` is for a real one.

use std::fs;
use std::path::Path;

use fender_tests::pki::{Authority, Template};
use fender_tests::process::{PATIENCE, binary, free_address, output};
use fender_tests::vault::{Mode, ROLE_ID, Vault};
use fender_tests::{Mesh, Process, wait_until};
use rustix::process::Signal;
use serde_json::json;

use crate::control_loss::one_service;

/// In every value, token and secret id; nothing that Fender writes may hold it.
const CANARY: &str = "canary";

struct World {
    vault: Vault,
    mesh: Mesh,
}

impl World {
    /// A workload `shop/orders` with these credentials: for each its name and what stands in `vault` beside the address.
    fn new(via: &str, credentials: &[(&str, &str)]) -> Self {
        let authority = Authority::new("vault.test");
        let vault = Vault::start(&authority);
        let mesh = Mesh::start(&one_service("1h", free_address(), free_address()));
        fs::create_dir(mesh.path("delivered")).unwrap();
        let roots = authority.write_bundle(&mesh.path("vault"));
        let secret_id = vault.write_secret_id(&mesh.path("vault"));
        let shown = authority.issue(&Template::svid("spiffe://vault.test/ns/shop/sa/orders"));
        shown.write(&mesh.path("vault"));
        let login = format!(
            "appRole: {{ roleId: {ROLE_ID}, secretIdFile: \"{}\" }}",
            secret_id.display()
        );
        let names: Vec<_> = credentials.iter().map(|(name, _)| *name).collect();
        let mut documents = fs::read_to_string(mesh.path("documents/mesh.yaml"))
            .unwrap()
            .replace(
                "  dnsNames: [ localhost ]\n",
                &format!(
                    "  dnsNames: [ localhost ]\n  credentials: [ {} ]\n",
                    names.join(", ")
                ),
            );
        for (name, rest) in credentials {
            let rest = rest.replace("LOGIN", &login).replace(
                "CERTIFICATE",
                &format!(
                    "certificate: {{ files: {{ certificate: \"{0}/certificate.pem\", key: \"{0}/key.pem\" }} }}",
                    mesh.path("vault").display()
                ),
            );
            documents += &format!(
                r#"---
apiVersion: fender.dev/v1
kind: Credential
metadata: {{ namespace: shop, name: {name} }}
spec:
  source: {{ vault: {{ address: "{}", roots: {{ file: "{}" }}, {rest}, refresh: 1s, via: {via} }} }}
  maxStale: 1s
  deliver: [ {{ file: {{ path: "{}", storage: disk }} }} ]
"#,
                vault.url(),
                roots.display(),
                mesh.path(format!("delivered/{name}")).display(),
            );
        }
        let (code, out, err) = mesh.apply(&documents);
        assert_eq!(code, 0, "{out}{err}");
        assert!(!err.contains("--allow-dir"), "{err}");
        Self { vault, mesh }
    }

    fn sidecar(&self) -> Process {
        self.mesh.sidecar("shop/orders", &[])
    }

    fn delivered(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.mesh.path("delivered").join(name)).ok()
    }

    fn wait_for(&self, name: &str, text: Option<&str>) {
        let what = format!("`{name}` holds {text:?}");
        wait_until(&what, PATIENCE, || self.delivered(name).as_deref() == text);
    }

    /// What the sidecar says of its credentials.
    fn told(&self) -> String {
        let socket = self.mesh.admin_socket("shop/orders");
        let (_, out, err) = output(
            binary(),
            &["status", "--sidecar", &socket.to_string_lossy()],
        );
        format!("{out}{err}")
    }

    fn wait_until_outdated(&self, name: &str) {
        let outdated = format!("shop/{name} outdated for ");
        wait_until("the credential is outdated", PATIENCE, || {
            self.told().contains(&outdated)
        });
    }

    /// Nothing that was written, but where it was to be written to, holds a secret.
    fn assert_nothing_is_shown(&self) {
        for log in fs::read_dir(self.mesh.path("logs")).unwrap() {
            let log = log.unwrap().path();
            let text = fs::read_to_string(&log).unwrap();
            assert!(!text.is_empty(), "{}", log.display());
            assert!(!text.contains(CANARY), "{}:\n{text}", log.display());
        }
        assert!(!self.told().contains(CANARY), "{}", self.told());
    }
}

/// Outage, wish, refusal, deletion, revocation: and the file is right each time.
fn the_file_follows_the_vault(via: &str) {
    let kv = "login: { LOGIN }, kv2: { path: shop/smtp, key: password }";
    let world = World::new(via, &[("smtp", kv)]);
    let vault = &world.vault;
    let write = |value: &str| vault.write("shop/smtp", json!({ "password": value }));
    write("canary-1");
    let mut sidecar = world.sidecar();
    assert_eq!(world.delivered("smtp").as_deref(), Some("canary-1"));

    write("canary-2");
    world.wait_for("smtp", Some("canary-2"));

    for (mode, value) in [
        (Mode::Away, "canary-3"),
        (Mode::Sealed, "canary-4"),
        (Mode::TooOften(1), "canary-5"),
        (Mode::Standby(free_address()), "canary-6"),
        (Mode::Nonsense, "canary-7"),
    ] {
        let before = world.delivered("smtp");
        vault.be(mode);
        write(value);
        world.wait_until_outdated("smtp");
        assert_eq!(world.delivered("smtp"), before, "{mode:?}");
        world.assert_nothing_is_shown();
        vault.be(Mode::Answers);
        world.wait_for("smtp", Some(value));
    }

    // A token that is known no more is no refusal.
    vault.revoke_all();
    write("canary-8");
    world.wait_for("smtp", Some("canary-8"));

    vault.deny("secret/data/shop/smtp", true);
    world.wait_for("smtp", None);
    vault.deny("secret/data/shop/smtp", false);
    world.wait_for("smtp", Some("canary-8"));
    vault.delete("shop/smtp");
    world.wait_for("smtp", None);
    write("canary-9");
    world.wait_for("smtp", Some("canary-9"));

    sidecar.assert_running();
    world.assert_nothing_is_shown();
    sidecar.signal(Signal::TERM);
    assert!(sidecar.wait(PATIENCE).success(), "{}", sidecar.log());
    assert_eq!(world.delivered("smtp"), None);
    if via == "sidecar" {
        assert_eq!(vault.tokens(), 0, "{:?}", vault.asked());
    } else {
        assert_eq!(vault.tokens(), 1, "{:?}", vault.asked());
        let World { vault, mut mesh } = world;
        mesh.stop_control();
        assert_eq!(vault.tokens(), 0, "{:?}", vault.asked());
    }
}

#[test]
fn the_file_follows_the_vault_by_the_sidecar() {
    the_file_follows_the_vault("sidecar");
}

#[test]
fn the_file_follows_the_vault_through_the_control_plane() {
    the_file_follows_the_vault("control");
}

#[test]
fn a_certificate_logs_in_and_a_namespace_is_asked_in() {
    let kv = "namespace: team/shop, login: { CERTIFICATE }, kv2: { path: smtp, key: password }";
    let world = World::new("sidecar", &[("smtp", kv)]);
    world.vault.set_namespace("team/shop");
    world.vault.write("smtp", json!({ "password": "canary-1" }));
    let _sidecar = world.sidecar();
    assert_eq!(world.delivered("smtp").as_deref(), Some("canary-1"));
    assert_eq!(world.vault.count("POST auth/cert/login"), 1);
    world.assert_nothing_is_shown();
}

/// The number that a leased value ends with.
fn number(value: &str) -> &str {
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
    let World { vault, mut mesh } = world;
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

fn exec(directory: &Path, vault: &Vault, place: &str) -> (i32, String, String) {
    let token = vault.write_token(directory);
    let config = directory.join("job.yaml");
    let documents = format!(
        "apiVersion: fender.dev/v1\nkind: Sidecar\nmetadata: {{ namespace: shop, name: job }}\nspec: {{ credentials: [ smtp ] }}\n---\n\
         apiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: smtp }}\nspec:\n  \
         source: {{ vault: {{ address: \"{}\", login: {{ token: {{ file: \"{}\" }} }}, {place} }} }}\n  \
         deliver: [ {{ environment: {{ variable: SMTP_PASSWORD }} }} ]\n",
        vault.url(),
        token.display()
    );
    fs::write(&config, documents).unwrap();
    let config = config.to_str().unwrap();
    // Backwards, so that what Fender wrote of it can be told apart.
    let script = "printf %s \"$SMTP_PASSWORD\" | rev";
    output(
        binary(),
        &[
            "--log",
            "debug",
            "exec",
            "--config",
            config,
            "--start-timeout",
            "3s",
            "--",
            "/bin/sh",
            "-c",
            script,
        ],
    )
}

#[test]
fn exec_asks_a_vault_on_this_machine_and_its_exit_code_says_what_was_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let vault = Vault::in_the_clear();
    vault.write("smtp", json!({ "password": "canary-1" }));
    let right = "kv2: { path: smtp, key: password }";
    let absent = "kv2: { path: absent, key: password }";
    let leased = "engine: { path: database/creds/orders, key: username }";
    for (mode, place, code, out) in [
        (Mode::Answers, right, 0, "1-yranac"),
        (Mode::Answers, absent, 66, ""),
        (Mode::Sealed, right, 75, ""),
        (Mode::Away, right, 75, ""),
        (Mode::Nonsense, right, 75, ""),
        (Mode::TooOften(3600), right, 75, ""),
    ] {
        vault.be(mode);
        let (ended, said, err) = exec(directory.path(), &vault, place);
        assert_eq!(
            (ended, said.as_str()),
            (code, out),
            "{mode:?} {place}: {err}"
        );
        assert!(!err.contains(CANARY), "{err}");
        // Nobody ends a token that somebody else made.
        assert_eq!(vault.count("POST auth/token/revoke-self"), 0);
    }
    vault.be(Mode::Answers);
    vault.deny("secret/data/smtp", true);
    assert_eq!(exec(directory.path(), &vault, right).0, 66);
    // What the command goes on with is left to it.
    assert_eq!(exec(directory.path(), &vault, leased).0, 0);
    assert_eq!(vault.leases().len(), 1);
}
