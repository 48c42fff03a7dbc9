//! DESIGN §14: `fender control init --root offline`, as `docs/guide/certificate-authority.md` tells it: a root on a machine
//! of its own, a request carried there, an intermediate carried back; and the next one in time (I3).

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use fender_tests::process::{PATIENCE, free_address, installed, output};
use fender_tests::{Process, binary, wait_until};
use rustix::process::Signal;
use serde_json::Value;

use crate::founding::{fender, line};
use crate::telemetry::get;

const USAGE: i32 = 64;
const REFUSED: i32 = 77;
const UNAVAILABLE: i32 = 69;

/// An intermediate is asked for at half of its life, which must be soon.
const MESH: &str = "apiVersion: fender.dev/v1\nkind: Mesh\nmetadata: { name: test }\nspec:\n  trustDomain: test.internal\n  \
                    profile: development\n  lifetimes: { leaf: 5s, renewalGrace: 5s, intermediate: 30s, root: 2h, jwtKey: 1h }\n";

/// What a person types; it must work.
fn done(home: &Path, arguments: &[&str]) -> String {
    let (code, out, err) = fender(home, arguments);
    assert_eq!(code, 0, "{arguments:?}\n{out}{err}");
    out
}

fn openssl(home: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(installed("openssl"));
    let output = command.args(arguments).current_dir(home).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{arguments:?}\n{text}");
    text
}

/// The owners of the root, on a machine without a network, and its key apart from it.
fn vault(home: &Path) {
    fs::write(home.join("sealing.key"), [7; 32]).unwrap();
    let only_me = fs::Permissions::from_mode(0o600);
    fs::set_permissions(home.join("sealing.key"), only_me).unwrap();
    let told = done(
        home,
        &[
            "ca",
            "create-root",
            "root",
            "--trust-domain",
            "test.internal",
            "--sealing-key-file",
            "sealing.key",
        ],
    );
    assert!(told.contains("CA pin sha256:"), "{told}");
}

const SIGN: [&str; 7] = [
    "ca",
    "sign-intermediate",
    "data/offline/request.pem",
    "--root",
    "root",
    "--sealing-key-file",
    "sealing.key",
];

/// Signs what waits for so long, and brings it back.
fn sign(home: &Path, out: &str, lifetime: &str) {
    let arguments = [&SIGN[..], &["--out", out, "--lifetime", lifetime]].concat();
    done(home, &arguments);
    let told = done(home, &["ca", "import", out, "--data-dir", "data"]);
    assert!(told.contains("tries it within a minute"), "{told}");
}

fn init(home: &Path) -> (i32, String, String) {
    let flags = [
        "--root",
        "offline",
        "--data-dir",
        "data",
        "--documents",
        "documents",
    ];
    fender(home, &[&["control", "init"], &flags[..]].concat())
}

#[test]
fn a_mesh_is_founded_and_goes_on_under_a_root_whose_key_is_offline() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    fs::create_dir(home.join("documents")).unwrap();
    fs::write(home.join("documents/mesh.yaml"), MESH).unwrap();
    vault(home);

    // The first start says what is missing, and where it goes.
    let (code, out, err) = init(home);
    assert_eq!((code, out.as_str()), (UNAVAILABLE, ""), "{err}");
    for said in [
        "data/offline/request.pem",
        "fender ca sign-intermediate",
        "fender ca import",
    ] {
        assert!(err.contains(said), "{err}");
    }
    sign(home, "first.pem", "60s");
    // What is signed cannot be taken back: nothing is where it could not be put.
    let again = [&SIGN[..], &["--out", "first.pem"]].concat();
    let (code, _, err) = fender(home, &again);
    assert_eq!(code, USAGE, "{err}");
    assert_eq!(fs::read_dir(home.join("root/signed")).unwrap().count(), 1);
    let (code, told, err) = init(home);
    assert_eq!(code, 0, "{told}{err}");
    let starts = line(&told, "fender control").join(" ");
    assert!(starts.contains("--root offline"), "{told}");
    assert!(!home.join("data/offline/request.pem").exists());

    // Somebody else's verifier believes it by the root alone.
    openssl(home, &["verify", "-CAfile", "root/root.pem", "first.pem"]);
    let admin = "data/admin/certificate.pem";
    openssl(
        home,
        &[
            "verify",
            "-CAfile",
            "root/root.pem",
            "-untrusted",
            admin,
            admin,
        ],
    );
    let text = openssl(home, &["x509", "-noout", "-text", "-in", "first.pem"]);
    assert!(text.contains("CA:TRUE, pathlen:0"), "{text}");

    let address = free_address().to_string();
    let mut command = Command::new(binary());
    command
        .args(["--log-format", "json", "control"])
        .args(line(&told, "fender control"))
        .args(["--listen", &address])
        .current_dir(home)
        .env_clear();
    let mut control = Process::start("control", &mut command, &home.join("control.log"));
    let url = format!("https://{address}");
    let ask = [
        "status",
        "--control",
        &url,
        "--admin",
        "data/admin",
        "--output",
        "json",
    ];
    let status = || -> Option<Value> {
        let (code, out, _) = fender(home, &ask);
        (code == 0).then(|| serde_json::from_str(&out).unwrap())
    };
    wait_until("the control plane answers", PATIENCE, || {
        control.assert_running();
        status().is_some()
    });
    let before = status().unwrap();
    let because = before["unrecoverable_because"].as_str().unwrap();
    assert!(because.contains("signed with the root's key"), "{because}");
    let left = before["unrecoverable_seconds"].as_i64().unwrap();
    assert!(left <= 60, "when a person must act: {left}");

    // At half of its life the next one waits, and the log says so while there is time.
    wait_until(
        "the next one is asked for",
        PATIENCE.saturating_mul(2),
        || {
            control.assert_running();
            home.join("data/offline/request.pem").exists()
        },
    );
    wait_until("the log says so", PATIENCE, || {
        control
            .log()
            .contains("waits to be signed with the root's key")
    });
    sign(home, "second.pem", "1year");
    // Without a certificate of the administrator's, which ended with what signed it, if this took long.
    let socket = home.join("data/admin.sock");
    let a_day_is_left = || {
        let (_, metrics) = get(&socket, "/metrics");
        let seconds = metrics
            .lines()
            .find_map(|line| line.strip_prefix("fender_unrecoverable_seconds "));
        seconds.and_then(|seconds| seconds.parse::<f64>().ok()) > Some(24.0 * 3600.0)
    };
    wait_until("it is taken", PATIENCE.saturating_mul(2), a_day_is_left);
    wait_until("the request is answered", PATIENCE, || {
        !home.join("data/offline/request.pem").exists()
    });
    // What signs ends soon: that is no reason to renew the own certificate without end.
    let own = "the control plane has a certificate of its own";
    assert!(
        control.log().matches(own).count() < 100,
        "{}",
        control.log()
    );
    control.signal(Signal::TERM);
    assert!(control.wait(PATIENCE).success(), "{}", control.log());
    // The owners have what they signed.
    assert_eq!(fs::read_dir(home.join("root/signed")).unwrap().count(), 2);
}

#[test]
fn attack_a_root_signs_for_nobody_without_its_key_and_a_control_plane_takes_no_other_root() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    fs::create_dir(home.join("documents")).unwrap();
    fs::write(home.join("documents/mesh.yaml"), MESH).unwrap();
    vault(home);
    assert_eq!(init(home).0, UNAVAILABLE);

    // Another sealing key, another root, the same root twice, no key at all.
    let other = "ff".repeat(32);
    fs::write(home.join("other.key"), other).unwrap();
    fs::set_permissions(home.join("other.key"), fs::Permissions::from_mode(0o600)).unwrap();
    let mut wrong = SIGN;
    wrong[6] = "other.key";
    let (code, out, err) = fender(home, &wrong);
    assert_eq!((code, out.as_str()), (REFUSED, ""), "{err}");
    assert!(err.contains("does not open"), "{err}");
    let (code, _, err) = fender(home, &SIGN[..5]);
    assert_eq!(code, 64, "{err}");
    let create = [
        "ca",
        "create-root",
        "root",
        "--trust-domain",
        "test.internal",
        "--sealing",
        "none-keys-in-plain",
    ];
    let (code, _, err) = fender(home, &create);
    assert_eq!(code, 64, "{err}");
    assert!(err.contains("there already"), "{err}");

    sign(home, "first.pem", "1year");
    let stolen = [
        "ca",
        "create-root",
        "stolen",
        "--trust-domain",
        "test.internal",
        "--sealing",
        "none-keys-in-plain",
    ];
    done(home, &stolen);
    let signed = [
        "ca",
        "sign-intermediate",
        "data/offline/request.pem",
        "--root",
        "stolen",
        "--sealing",
        "none-keys-in-plain",
        "--out",
        "stolen.pem",
    ];
    done(home, &signed);
    let (code, _, err) = fender(home, &["ca", "import", "stolen.pem", "--data-dir", "data"]);
    assert_eq!(code, REFUSED, "{err}");
    assert!(err.contains("--another-root"), "{err}");
    let (code, told, err) = init(home);
    assert_eq!(code, 0, "{told}{err}");
    let (code, out, _) = output(
        installed("openssl"),
        &[
            "x509",
            "-noout",
            "-subject",
            "-in",
            &home.join("data/admin/bundle.pem").to_string_lossy(),
        ],
    );
    assert_eq!(code, 0, "{out}");
    let root = openssl(
        home,
        &["x509", "-noout", "-subject", "-in", "root/root.pem"],
    );
    assert_eq!(out, root, "it is the root that came first");
}
