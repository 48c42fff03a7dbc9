//! An application that ends by itself is started again if that was asked for, and nothing of Fender's own is in what it inherits
//! (DESIGN §9).

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use fender_tests::pki::{Authority, Template};
use fender_tests::process::{PATIENCE, Process, binary, is_ready, output};
use fender_tests::wait_until;
use rustix::process::Signal;
use tempfile::TempDir;

/// The value; nothing that an application inherits may hold it.
const FIRST: &str = "canary-7d20e4-first";

/// A sidecar from a file, with one credential.
struct Berth(TempDir);

impl Berth {
    fn new() -> Self {
        let berth = Self(tempfile::tempdir().unwrap());
        let authority = Authority::new("example.org");
        let svid = Template::svid("spiffe://example.org/ns/shop/sa/job");
        authority.issue(&svid).write(&berth.path("identity"));
        authority.write_bundle(&berth.path("identity"));
        fs::write(berth.path("source"), FIRST).unwrap();
        let text = format!(
            "apiVersion: fender.dev/v1\nkind: Sidecar\nmetadata: {{ namespace: shop, name: job }}\nspec:\n  \
             identity: {{ files: {{ certificate: {0}/identity/certificate.pem, key: {0}/identity/key.pem, bundle: {0}/identity/bundle.pem }} }}\n  \
             credentials: [ smtp ]\n---\n\
             apiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: smtp }}\nspec:\n  \
             source: {{ file: {{ path: {0}/source }} }}\n  \
             deliver: [ {{ file: {{ path: {0}/delivered, storage: disk }} }} ]\n",
            berth.0.path().display(),
        );
        fs::write(berth.path("sidecar.yaml"), text).unwrap();
        berth
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, flags: &[&str], script: &str) -> Command {
        let mut command = Command::new(binary());
        command
            .args(["sidecar", "--config"])
            .arg(self.path("sidecar.yaml"))
            .arg("--state")
            .arg(self.path("state"))
            .args(flags)
            .args(["--", "/bin/sh", "-c", script])
            .current_dir(self.0.path());
        command
    }

    fn sidecar(&self, flags: &[&str], script: &str) -> Process {
        let mut command = self.command(flags, script);
        Process::start("sidecar", &mut command, &self.path("log"))
    }

    fn ready(&self) -> bool {
        is_ready(&self.path("state/admin.sock"))
    }
}

#[test]
fn an_application_that_fails_is_started_again_and_the_sidecar_is_not_ready_meanwhile() {
    let berth = Berth::new();
    let script = "echo x >> starts; [ \"$(wc -l < starts)\" -ge 3 ] && exec sleep 1000; exit 9";
    let mut sidecar = berth.sidecar(&["--restart", "on-failure"], script);
    wait_until("it runs at the third attempt", PATIENCE, || {
        sidecar.assert_running();
        fs::read_to_string(berth.path("starts")).is_ok_and(|it| it.lines().count() == 3)
    });
    wait_until("it is ready", PATIENCE, || berth.ready());
    sidecar.signal(Signal::TERM);
    assert_eq!(sidecar.wait(PATIENCE).code(), Some(128 + 15));

    // Given up: its own code.
    let berth = Berth::new();
    let mut sidecar = berth.sidecar(&["--restart", "always:1"], "echo x >> starts; exit 9");
    assert_eq!(sidecar.wait(PATIENCE).code(), Some(9));
    assert_eq!(fs::read_to_string(berth.path("starts")).unwrap(), "x\nx\n");

    // It rests longer each time.
    let berth = Berth::new();
    let mut sidecar = berth.sidecar(&["--restart", "always"], "exit 9");
    let socket = berth.path("state/admin.sock");
    wait_until("it is not ready", PATIENCE, || {
        sidecar.assert_running();
        let asked = ["status", "--sidecar", socket.to_str().unwrap(), "--ready"];
        let (code, _, err) = output(binary(), &asked);
        code == 69 && err.contains("its application has ended")
    });
    sidecar.signal(Signal::INT);
    // It was resting, or was just ending once more.
    let code = sidecar.wait(PATIENCE).code();
    assert!(matches!(code, Some(130 | 9)), "{code:?}");
}

/// In what it inherits: its environment, arguments, descriptors, and what `/proc` shows of it to itself.
#[test]
fn attack_an_application_looks_for_what_is_fenders_and_finds_nothing() {
    for flags in [&[][..], &["--restart", "on-failure:1"]] {
        let berth = Berth::new();
        let script = "{ tr '\\0' '\\n' < /proc/$$/environ; tr '\\0' ' ' < /proc/$$/cmdline; echo; } > found; \
                      ls /proc/$$/fd > descriptors; exit 4";
        let mut command = berth.command(flags, script);
        command
            .env("FENDER_LOG", "debug")
            .env("FENDER_TOKEN", "s3cret-token")
            .env("KEPT", "yes");
        let mut sidecar = Process::start("sidecar", &mut command, &berth.path("log"));
        assert_eq!(sidecar.wait(PATIENCE).code(), Some(4), "{}", sidecar.log());
        let found = fs::read_to_string(berth.path("found")).unwrap();
        assert!(found.contains("KEPT=yes"), "{found}");
        for foreign in ["FENDER_", "s3cret-token", "--state", "--supervised", FIRST] {
            assert!(!found.contains(foreign), "{foreign}: {found}");
        }
        let descriptors = || fs::read_to_string(berth.path("descriptors")).unwrap();
        let beside_fender = descriptors();
        // The same without Fender: the shell's own, and those of whoever runs the tests.
        let mut alone = Command::new("/bin/sh");
        alone.args(["-c", script]).current_dir(berth.0.path());
        let mut alone = Process::start("alone", &mut alone, &berth.path("log"));
        assert_eq!(alone.wait(PATIENCE).code(), Some(4));
        assert_eq!(beside_fender, descriptors());
    }
}
