//! Secrets of a Vault reach the application, by the sidecar and through the control plane, whatever becomes of the Vault
//! (DESIGN §9). The server answers as Vault's documentation says; `docs/guide/verify-vault.md` is for a real one.

mod exec;
mod leases;
mod whole;
mod workload;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

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
    documents: String,
}

impl World {
    /// A workload `shop/orders` with these credentials: for each its name and what stands in `vault` beside the address.
    fn new(via: &str, credentials: &[(&str, &str)]) -> Self {
        Self::of(via, "1h", "1s", credentials)
    }

    /// The same with certificates of this lifetime, and with this for `refresh`. The authority of the mesh is one of Vault's.
    fn of(via: &str, leaf: &str, refresh: &str, credentials: &[(&str, &str)]) -> Self {
        let authority = Authority::new("vault.test");
        let mesh = Mesh::start(&one_service(leaf, free_address(), free_address()));
        let vault = Vault::start_believing(&authority, &mesh.path("control/admin/bundle.pem"));
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
  source: {{ vault: {{ address: "{}", roots: {{ file: "{}" }}, {rest}, refresh: {refresh}, via: {via} }} }}
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
        Self {
            vault,
            mesh,
            documents,
        }
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
        let World {
            vault, mut mesh, ..
        } = world;
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

/// A Vault that comes and goes, one that does not answer for longer than anybody waits, and one that takes its time: all the while the
/// application has the file it had, the very same, and has the next value as soon as there is one.
#[test]
fn a_vault_that_flaps_hangs_or_is_slow_leaves_the_file_as_it_is() {
    let kv = "login: { LOGIN }, kv2: { path: shop/smtp, key: password }";
    let other = "login: { LOGIN }, kv2: { path: shop/other, key: password }";
    let world = World::new("sidecar", &[("smtp", kv), ("other", other)]);
    let vault = &world.vault;
    let write = |path: &str, value: &str| vault.write(path, json!({ "password": value }));
    write("shop/smtp", "canary-1");
    write("shop/other", "canary-1");
    let mut sidecar = world.sidecar();
    let inode = || {
        fs::metadata(world.mesh.path("delivered/smtp"))
            .unwrap()
            .ino()
    };
    let first = inode();
    for round in 0..8 {
        vault.be(if round % 2 == 0 {
            Mode::Away
        } else {
            Mode::Sealed
        });
        world.wait_until_outdated("smtp");
        vault.be(Mode::Answers);
        wait_until("the credential is current again", PATIENCE, || {
            !world.told().contains("shop/smtp outdated for ")
        });
        assert_eq!(world.delivered("smtp").as_deref(), Some("canary-1"));
        assert_eq!(inode(), first, "equal bytes are not written again");
    }

    // One secret is not answered: it is outdated when the patience for one answer is over, and the other goes on.
    vault.hang("secret/data/shop/smtp");
    write("shop/smtp", "canary-2");
    write("shop/other", "canary-2");
    world.wait_for("other", Some("canary-2"));
    world.wait_until_outdated("smtp");
    assert!(!world.told().contains("shop/other outdated"));
    assert_eq!(inode(), first);
    vault.mend();
    world.wait_for("smtp", Some("canary-2"));

    // So slow that nobody waits for it: an outage, of both.
    vault.take_time(Duration::from_secs(30));
    write("shop/smtp", "canary-3");
    let second = inode();
    for name in ["smtp", "other"] {
        world.wait_until_outdated(name);
        assert_eq!(world.delivered(name).as_deref(), Some("canary-2"));
    }
    assert_eq!(inode(), second);
    // Slow, and not too slow.
    vault.take_time(Duration::from_secs(3));
    world.wait_for("smtp", Some("canary-3"));
    sidecar.assert_running();
    world.assert_nothing_is_shown();
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

/// Until the token of now is older than ten seconds: one that is younger and not known is not made anew once more. It is asked
/// with at most every nine tenths of a second.
pub(crate) fn wait_until_grown_up(vault: &Vault, place: &str) {
    let before = vault.count(place);
    wait_until("the token is no new one any more", PATIENCE, || {
        vault.count(place) >= before + 15
    });
}

#[test]
fn a_login_that_is_refused_for_a_moment_takes_nothing_away() {
    let kv = "login: { LOGIN }, kv2: { path: shop/smtp, key: password }";
    let world = World::new("sidecar", &[("smtp", kv)]);
    let vault = &world.vault;
    vault.write("shop/smtp", json!({ "password": "canary-1" }));
    let _sidecar = world.sidecar();
    wait_until_grown_up(vault, "GET secret/data/shop/smtp");
    vault.refuse_logins(true);
    vault.revoke_all();
    world.wait_until_outdated("smtp");
    assert_eq!(world.delivered("smtp").as_deref(), Some("canary-1"));
    assert!(world.told().contains("invalid role"), "{}", world.told());
    vault.write("shop/smtp", json!({ "password": "canary-2" }));
    vault.refuse_logins(false);
    world.wait_for("smtp", Some("canary-2"));
    world.assert_nothing_is_shown();
}

#[test]
fn five_hundred_secrets_of_one_vault_are_no_stampede_and_two_that_fail_delay_nobody() {
    const MANY: usize = 500;
    /// As the guide has it: so many at once, and then so many a second.
    const AT_ONCE: usize = 8;
    const BURST: u64 = 25;
    const PER_SECOND: u64 = 50;
    let names: Vec<_> = (0..MANY).map(|number| format!("s{number}")).collect();
    let places: Vec<_> = names
        .iter()
        .map(|name| format!("login: {{ LOGIN }}, kv2: {{ path: {name}, key: password }}"))
        .collect();
    let credentials: Vec<_> = names
        .iter()
        .zip(&places)
        .map(|(name, place)| (name.as_str(), place.as_str()))
        .collect();
    let world = World::of("sidecar", "1h", "15s", &credentials);
    let vault = &world.vault;
    let write_all = |round: &str| {
        for name in &names {
            vault.write(
                name,
                json!({ "password": format!("canary-{round}-{name}") }),
            );
        }
    };
    write_all("one");
    // Long enough for many to wait at once, if they were let.
    vault.take_time(Duration::from_millis(30));
    let began = Instant::now();
    let mut sidecar = world.sidecar();
    let took = began.elapsed();
    for name in &names {
        let expected = format!("canary-one-{name}");
        assert_eq!(world.delivered(name), Some(expected));
    }
    // It cannot have been quicker, and no machine is too slow for that.
    let least = Duration::from_secs((MANY as u64 - BURST) / PER_SECOND);
    assert!(took >= least, "{took:?} for {MANY} questions");
    assert_eq!(vault.count("POST auth/approle/login"), 1);
    assert!(vault.most_at_once() <= AT_ONCE, "{}", vault.most_at_once());
    println!(
        "{MANY} secrets in {took:?}, {} at once",
        vault.most_at_once()
    );

    let (failing, hanging) = ("s17", "s170");
    vault.fail(&format!("secret/data/{failing}"));
    vault.hang(&format!("secret/data/{hanging}"));
    write_all("two");
    let others = || {
        names
            .iter()
            .filter(|name| ![failing, hanging].contains(&name.as_str()))
    };
    // The two are never answered meanwhile: nobody waits for them.
    wait_until("all others have their next value", PATIENCE, || {
        others().all(|name| world.delivered(name) == Some(format!("canary-two-{name}")))
    });
    for name in [failing, hanging] {
        assert_eq!(world.delivered(name), Some(format!("canary-one-{name}")));
        world.wait_until_outdated(name);
    }
    vault.mend();
    for name in [failing, hanging] {
        world.wait_for(name, Some(&format!("canary-two-{name}")));
    }
    assert_eq!(vault.count("POST auth/approle/login"), 1);
    assert!(vault.most_at_once() <= AT_ONCE, "{}", vault.most_at_once());
    sidecar.assert_running();
    world.assert_nothing_is_shown();
}
