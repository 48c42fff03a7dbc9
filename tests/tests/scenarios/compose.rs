//! `examples/compose` on a real engine: it comes up as its README says, the rules hold, and
//! restarting any part of it, or stopping and starting all of it, leaves it working.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fender_tests::docker::Engine;
use fender_tests::process::{PATIENCE, binary, installed};
use fender_tests::wait_until;
use tempfile::TempDir;

/// A restart on a busy machine: stop, start, join, first answer.
const RECOVERY: Duration = Duration::from_secs(90);

#[test]
fn the_compose_example_works_and_survives_the_restart_of_any_part() {
    let shop = Shop::open();

    // As the README says: a person, by their certificate, through orders to inventory.
    shop.wait_until_it_answers("it was started");
    let (code, out, err) = shop.call("https://localhost:8443/cgi-bin/order", &[]);
    assert!(code == 0 && out.contains("rope-12mm"), "{code} {out} {err}");

    // Nobody without a certificate, and nobody past the rules.
    let bundle = shop.path("me/bundle.pem");
    let bundle = bundle.to_str().unwrap();
    let (code, out, _) = shop.engine.on_host(
        "curl",
        &[
            "--silent",
            "--cacert",
            bundle,
            "https://localhost:8443/stock.json",
        ],
    );
    assert!(
        code != 0 && out.is_empty(),
        "answered without a certificate: {out}"
    );
    let (code, out, _) = shop.call(
        "https://localhost:8443/stock.json",
        &["--request", "DELETE", "--include"],
    );
    assert!(
        code == 0 && out.contains(" 403 ") && out.contains("x-fender-decision: "),
        "{code} {out}"
    );

    // The app is reachable through its sidecar only.
    let (code, _, _) = shop.engine.on_host(
        "curl",
        &["--silent", "--max-time", "2", "http://127.0.0.1:8080/"],
    );
    assert_ne!(code, 0);

    for part in [
        "control",
        "orders-fender",
        "inventory-fender",
        "orders",
        "inventory",
    ] {
        shop.compose(&["restart", part]);
        shop.wait_until_it_answers(&format!("{part} was restarted"));
    }
    // Everything, in the order of dependencies; then as new containers, which know only their volumes.
    shop.compose(&["stop"]);
    shop.compose(&["start"]);
    shop.wait_until_it_answers("everything was stopped and started");
    shop.compose(&["down"]);
    shop.compose(&["up", "--detach"]);
    shop.wait_until_it_answers("every container was made anew");

    // Starting what runs changes nothing and asks for no new token to work.
    shop.compose(&["up", "--detach"]);
    shop.wait_until_it_answers("it was started again");
}

#[test]
fn the_image_holds_one_static_binary_that_runs_from_nothing() {
    let shop = Shop::prepare();
    shop.compose(&["build", "control"]);
    let run = |arguments: &[&str]| {
        shop.engine
            .docker(&[&["run", "--rm", "fender:local"], arguments].concat())
    };
    let (code, out, err) = run(&["--version"]);
    assert!(
        code == 0 && out.starts_with("fender "),
        "{code} {out} {err}"
    );
    let (code, _, err) = run(&["sidecar", "--config", "/no-such-file.yaml"]);
    assert!(code == 64 || code == 66, "{code} {err}");
    assert!(err.contains("/no-such-file.yaml"), "{err}");
}

/// The example in a directory of its own, on an engine of its own.
struct Shop {
    engine: Engine,
    directory: TempDir,
}

impl Shop {
    fn prepare() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("fender-compose-")
            .tempdir()
            .unwrap();
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/compose");
        copy(&example, directory.path());
        for (from, to) in [
            (binary(), "image/fender"),
            (installed("busybox"), "app/busybox"),
        ] {
            let to = directory.path().join(to);
            fs::copy(&from, &to).unwrap();
            fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self {
            engine: Engine::start(),
            directory,
        }
    }

    /// Up, with a certificate for a person in `me`.
    fn open() -> Self {
        let shop = Self::prepare();
        shop.compose(&["build"]);
        shop.compose(&["up", "--detach"]);
        shop.compose(&[
            "run", "--rm", "-T", "admin", "svid", "write", "/me", "--name", "ada",
        ]);
        shop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn compose(&self, arguments: &[&str]) -> String {
        let (code, out, err) = self.engine.compose(self.directory.path(), arguments);
        assert_eq!(
            code,
            0,
            "docker-compose {}: {out}{err}\n{}",
            arguments.join(" "),
            self.logs()
        );
        out
    }

    /// curl, as Ada.
    fn call(&self, url: &str, more: &[&str]) -> (i32, String, String) {
        let file = |name: &str| self.path("me").join(name).to_str().unwrap().to_owned();
        let (bundle, certificate, key) =
            (file("bundle.pem"), file("certificate.pem"), file("key.pem"));
        let identity = ["--cacert", &bundle, "--cert", &certificate, "--key", &key];
        let arguments = [
            &["--silent", "--show-error", "--max-time", "5"],
            &identity[..],
            more,
            &[url],
        ]
        .concat();
        self.engine.on_host("curl", &arguments)
    }

    fn wait_until_it_answers(&self, since: &str) {
        let mut last = (0, String::new(), String::new());
        let started = std::time::Instant::now();
        wait_until("an answer", RECOVERY + PATIENCE, || {
            last = self.call("https://localhost:8443/cgi-bin/order", &[]);
            assert!(
                started.elapsed() < RECOVERY,
                "no answer within {RECOVERY:?} after {since}: {last:?}\n{}",
                self.logs()
            );
            last.1.contains("rope-12mm")
        });
        println!(
            "answered {:.1} s after {since}",
            started.elapsed().as_secs_f64()
        );
    }

    fn logs(&self) -> String {
        let (_, state, _) = self.engine.compose(self.directory.path(), &["ps", "--all"]);
        let (_, out, err) = self
            .engine
            .compose(self.directory.path(), &["logs", "--no-color", "--tail=60"]);
        format!("{state}\n{out}{err}")
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        self.engine.compose(
            self.directory.path(),
            &["down", "--volumes", "--timeout", "5"],
        );
    }
}

pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}
