//! `fender watch`: files kept fresh without a port of any kind, from a file without an identity and from a control plane; and
//! the sidecar without an identity, which is the same (DESIGN §9).

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fender_tests::process::{PATIENCE, Process, binary, free_address, installed, is_ready, output};
use fender_tests::wait_until;
use rustix::process::Signal;

use crate::deliverers::{alone, by_control, file, replace, write_alone};

/// The value; nothing that Fender writes may hold it, but the file.
const CANARY: &str = "canary-77a1d3c0-watch";

/// One that keeps what `alone` has made, and its admin socket.
fn start(what: &str, config: &Path) -> (Process, PathBuf) {
    let directory = config.parent().unwrap();
    let socket = directory.join("admin.sock");
    // Belongs to no terminal, as a service: SIGHUP means to read the file again.
    let mut command = Command::new(installed("setsid"));
    command
        .arg(binary())
        .args(["--log", "debug", what, "--config"])
        .arg(config)
        .arg("--admin-socket")
        .arg(&socket)
        .arg("--upgrade-socket")
        .arg(directory.join("private/upgrade.sock"));
    let mut process = Process::start(what, &mut command, &directory.join("log"));
    process.wait_ready(&socket);
    (process, socket)
}

/// From readiness to the end, the same whichever command it is.
fn keeps_files_without_an_identity(what: &str) {
    let (directory, config) = alone(&[file("smtp")]);
    let path = |name: &str| directory.path().join(name);
    replace(&path("smtp"), CANARY);
    let (mut process, socket) = start(what, &config);
    let delivered = |name: &str| fs::read_to_string(path(&format!("out/{name}")));
    assert_eq!(
        delivered("smtp").unwrap(),
        CANARY,
        "there before it is ready"
    );
    replace(&path("smtp"), "second");
    wait_until("the change reaches the file", PATIENCE, || {
        delivered("smtp").unwrap() == "second"
    });

    let status = |more: &[&str]| {
        let socket = socket.to_str().unwrap();
        let arguments = [&["status", "--sidecar", socket], more].concat();
        let (_, out, err) = output(binary(), &arguments);
        out + &err
    };
    let text = status(&[]);
    assert!(text.contains("without an identity: ready"), "{text}");
    assert!(!text.contains("certificate "), "{text}");
    let json: serde_json::Value = serde_json::from_str(&status(&["--output", "json"])).unwrap();
    assert!(
        json["identity"].is_null() && json["serial"].is_null(),
        "{json}"
    );

    // SIGHUP: another credential, and the one before it dropped with its file.
    replace(&path("ledger"), "of the ledger");
    write_alone(directory.path(), &[file("ledger")]);
    process.signal(Signal::HUP);
    wait_until("the new document is in force", PATIENCE, || {
        process.assert_running();
        delivered("ledger").is_ok_and(|text| text == "of the ledger") && delivered("smtp").is_err()
    });
    let reload = || {
        let socket = path("private/upgrade.sock");
        output(binary(), &["reload", "--sidecar", socket.to_str().unwrap()])
    };
    let (code, out, err) = reload();
    assert_eq!(code, 0, "{out}{err}");
    let good = fs::read_to_string(&config).unwrap();
    replace(&config, "kind: Nonsense\n");
    let (code, out, err) = reload();
    assert_eq!(code, 64, "{out}{err}");
    replace(&config, &good);
    process.assert_running();

    // No secret is that large: what there is stays, and readiness ends after `maxStale`.
    replace(&path("ledger"), &"x".repeat(2 * 1024 * 1024));
    wait_until("it is not ready", PATIENCE, || !is_ready(&socket));
    assert_eq!(delivered("ledger").unwrap(), "of the ledger");
    replace(&path("ledger"), "of the ledger");
    wait_until("it is ready again", PATIENCE, || is_ready(&socket));

    process.signal(Signal::TERM);
    assert!(process.wait(PATIENCE).success(), "{}", process.log());
    assert!(delivered("ledger").is_err(), "its files go with it");
    assert!(!process.log().contains(CANARY), "{}", process.log());
}

#[test]
fn watch_keeps_files_fresh_without_an_identity() {
    keeps_files_without_an_identity("watch");
}

#[test]
fn a_sidecar_that_only_delivers_credentials_needs_no_identity() {
    keeps_files_without_an_identity("sidecar");
}

#[test]
fn an_application_is_started_beside_a_sidecar_without_an_identity() {
    let (directory, config) = alone(&[file("smtp")]);
    fs::write(directory.path().join("smtp"), "of smtp").unwrap();
    let output = Command::new(binary())
        .args(["sidecar", "--config"])
        .arg(&config)
        .args(["--", "/bin/sh", "-c", "cat \"$0/out/smtp\"; exit 9"])
        .arg(directory.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(9), "{log}");
    assert_eq!(output.stdout, b"of smtp", "{log}");
}

#[test]
fn nobody_takes_over_from_what_cannot_prove_who_it_is() {
    let (directory, config) = alone(&[file("smtp")]);
    fs::write(directory.path().join("smtp"), "of smtp").unwrap();
    let (mut process, socket) = start("watch", &config);
    let upgrade = directory.path().join("private/upgrade.sock");
    let (code, out, err) = output(
        binary(),
        &[
            "watch",
            "--config",
            config.to_str().unwrap(),
            "--take-over",
            upgrade.to_str().unwrap(),
        ],
    );
    assert_eq!(code, 69, "{out}{err}");
    assert!(err.contains("it has no identity"), "{err}");
    // The one before goes on, and its files with it.
    process.assert_running();
    assert!(is_ready(&socket));
    assert_eq!(
        fs::read_to_string(directory.path().join("out/smtp")).unwrap(),
        "of smtp"
    );
}

/// An environment is what `fender exec` has, and an application is what `-- CMD` starts.
#[test]
fn what_a_watch_does_not_do_is_said_at_its_start_and_not_tried_again_and_again() {
    let (smtp, spec) = file("smtp");
    let more = "{ environment: { variable: SMTP } } ], notify: [ { restart: {} }, { signal: { signal: HUP } } ]";
    let spec = spec.replace(
        "storage: disk } } ]",
        &format!("storage: disk }} }}, {more}"),
    );
    let (directory, config) = alone(&[(smtp, spec), file("ledger")]);
    let path = |name: &str| directory.path().join(name);
    replace(&path("smtp"), "first");
    replace(&path("ledger"), "of the ledger");
    let (mut process, socket) = start("watch", &config);
    let log = process.log();
    let lines = |log: &str, said: &str| {
        let lines = log.lines().filter(|line| line.contains(said));
        lines.map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    for said in [
        "is to be delivered into an environment, which is what `fender exec` does, and not this process",
        "its application is to be told of changes, and this process supervises none: it was started without `-- CMD`",
    ] {
        let said = lines(&log, said);
        assert_eq!(said.len(), 1, "{log}");
        assert!(said[0].contains("shop/smtp"), "{said:?}");
    }
    let never = "is not told of changed credentials, and it is not tried again";
    assert_eq!(lines(&log, never).len(), 0, "{log}");
    for (value, written) in [("second", "second"), ("third", "third")] {
        replace(&path("smtp"), value);
        wait_until("the change reaches the file", PATIENCE, || {
            process.assert_running();
            fs::read_to_string(path("out/smtp")).unwrap() == written
        });
        // Of each of the two, once.
        wait_until("it is said that nobody is told", PATIENCE, || {
            lines(&process.log(), never).len() == 2
        });
    }
    assert!(!process.log().contains("trying again"), "{}", process.log());

    // Each at the other's socket, and where there is none.
    let admin = "which is what its own --admin-socket says, or admin.sock in its --state";
    let upgrade = "which is what its own --upgrade-socket says, or upgrade.sock in its --state";
    let own = [socket, path("private/upgrade.sock"), path("none.sock")];
    let [at_admin, at_upgrade, nowhere] = own.each_ref().map(|path| path.to_str().unwrap());
    for (command, socket, way_out) in [
        ("reload", at_admin, upgrade),
        ("upgrade", at_admin, upgrade),
        ("reload", nowhere, upgrade),
        ("status", at_upgrade, admin),
        ("status", nowhere, admin),
    ] {
        let (code, out, err) = output(binary(), &[command, "--sidecar", socket]);
        assert_eq!(code, 69, "{command}: {out}{err}");
        assert!(err.contains(&format!("`{socket}`")), "{command}: {err}");
        assert!(err.contains(way_out), "{command}: {err}");
    }
    process.signal(Signal::TERM);
    assert!(process.wait(PATIENCE).success(), "{}", process.log());
}

#[test]
fn ports_without_an_identity_are_refused_with_their_place_in_the_file() {
    let (directory, config) = alone(&[file("smtp")]);
    let text = fs::read_to_string(&config).unwrap().replacen(
        "spec: { credentials: [ smtp ] }",
        "spec: { credentials: [ smtp ], inbound: [ { listen: '127.0.0.1:18443', app: '127.0.0.1:1', protocol: http } ] }",
        1,
    );
    fs::write(&config, text).unwrap();
    for what in ["sidecar", "watch", "init"] {
        let (code, _, err) = output(binary(), &[what, "--config", config.to_str().unwrap()]);
        assert_eq!(code, 64, "{what}: {err}");
        assert!(
            err.contains("a sidecar with listeners needs an `identity`"),
            "{err}"
        );
    }
    drop(directory);
}

#[test]
fn watch_from_a_control_plane_opens_no_port_and_reports_what_it_delivered() {
    let listen = free_address();
    let mesh = by_control(listen, CANARY);
    let token = mesh.token("shop/orders", "5m");
    let mut command = mesh.command();
    command
        .env_remove("FENDER_ADMIN")
        .args(["--log", "debug", "watch", "--token-file"])
        .arg(token)
        .arg("--state")
        .arg(mesh.state("shop/orders"))
        .arg("--allow-dir")
        .arg(mesh.directory.path());
    let mut process = Process::start("watch", &mut command, &mesh.path("logs/watch.log"));
    mesh.wait_ready("shop/orders", &mut process);
    let out = mesh.path("out/smtp");
    assert_eq!(fs::read_to_string(&out).unwrap(), CANARY);
    assert!(TcpStream::connect(listen).is_err(), "a port is open");
    replace(&mesh.path("source"), "second");
    wait_until("the change reaches the file", PATIENCE, || {
        fs::read_to_string(&out).unwrap() == "second"
    });
    wait_until("the control plane knows of it", PATIENCE, || {
        let status = mesh.fender_ok(&["status", "--output", "json"]);
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        let held = &status["workloads"][0]["sidecars"][0]["credentials"][0];
        held["name"] == "shop/smtp" && held["generation"].is_string()
    });
    process.signal(Signal::TERM);
    assert!(process.wait(PATIENCE).success(), "{}", process.log());
    assert!(!out.exists());
    assert!(!process.log().contains(CANARY), "{}", process.log());
}
