//! The file of a sidecar without a control plane is followed: whole or not at all, and never a listener reopened.

use std::fs;
use std::path::Path;

use fender_tests::process::{PATIENCE, Process, binary, free_address, installed, output};
use fender_tests::wait_until;
use rustix::process::Signal;

use crate::standalone::{CALLER, Standalone};

/// With a file that can be replaced, and a socket to ask at.
pub(crate) fn start() -> Standalone {
    Standalone::start_with(|command| {
        let config = command.get_args().last().unwrap();
        let socket = Path::new(config)
            .with_file_name("private")
            .join("upgrade.sock");
        command.arg("--upgrade-socket").arg(socket);
    })
}

pub(crate) fn config(sidecar: &Standalone) -> String {
    fs::read_to_string(sidecar.directory.path().join("sidecar.yaml")).unwrap()
}

/// As an editor does, and a package manager.
pub(crate) fn configure(sidecar: &Standalone, text: &str) {
    let fresh = sidecar.directory.path().join("fresh");
    fs::write(&fresh, text).unwrap();
    fs::rename(fresh, sidecar.directory.path().join("sidecar.yaml")).unwrap();
}

pub(crate) fn reload(sidecar: &Standalone) -> (i32, String, String) {
    let socket = sidecar.directory.path().join("private/upgrade.sock");
    output(
        binary(),
        &["reload", "--sidecar", &socket.to_string_lossy()],
    )
}

#[tokio::test]
async fn what_changes_in_the_file_is_in_force_and_open_connections_stay() {
    let sidecar = start();
    let client = sidecar.client(CALLER);
    let mut open = client.open().await.unwrap();
    assert_eq!(open.get("/public").await.unwrap().status, 200);
    assert_eq!(open.get("/also").await.unwrap().status, 403);

    let second = free_address();
    let before = config(&sidecar);
    let first = format!("inbound: [ {{ listen: \"{}\"", sidecar.address);
    let both = format!(
        "inbound: [ {{ listen: \"{second}\", app: \"{}\", protocol: http }}, {{ listen: \"{}\"",
        sidecar.app, sidecar.address
    );
    configure(
        &sidecar,
        &before
            .replace(&first, &both)
            .replace("\"/public*\"", "\"/public*\", \"/also\""),
    );
    // Nobody asks: it is looked at.
    let log = || sidecar.process.log();
    wait_until("the change is in force", PATIENCE, || {
        log().contains("has changed and is in force")
    });
    assert_eq!(
        open.get("/also").await.unwrap().status,
        200,
        "on the connection from before"
    );
    wait_until("the second port is open", PATIENCE, || {
        std::net::TcpStream::connect(second).is_ok()
    });
    let opened = format!("no longer listening, draining listen={}", sidecar.address);
    assert!(!log().contains(&opened), "what stays is not touched");

    configure(&sidecar, &before);
    let (code, out, err) = reload(&sidecar);
    assert_eq!(code, 0, "{err}");
    assert!(
        out.contains("in force") || out.contains("not changed"),
        "{out}"
    );
    wait_until("the second port is closed", PATIENCE, || {
        std::net::TcpStream::connect(second).is_err()
    });
    assert_eq!(open.get("/also").await.unwrap().status, 403);
}

#[tokio::test]
async fn what_does_not_validate_is_named_with_its_place_and_leaves_the_old_in_force() {
    let mut sidecar = start();
    let client = sidecar.client(CALLER);
    let good = config(&sidecar);
    let outside = good.replace(
        "protocol: http }",
        "protocol: http }, { listen: \"unix:/run/fender-test/in.sock\", app: \"127.0.0.1:1\", protocol: tcp }",
    );
    for (wrong, said) in [
        (
            good.replace("protocol: http", "protocol: htpp"),
            "sidecar.yaml:6:",
        ),
        (
            good.replace("kind: Sidecar", "kind: Mesh"),
            "sidecar.yaml:5:3",
        ),
        ("{".to_owned(), "sidecar.yaml:1:"),
        (
            good.replace("/key.pem", "/other.pem"),
            "whose sidecar this is does not change",
        ),
        (outside, "lies outside of what this sidecar may touch"),
    ] {
        configure(&sidecar, &wrong);
        let (code, out, err) = reload(&sidecar);
        assert_eq!(code, 64, "{out}{err}");
        assert!(
            err.contains(said) && err.contains("nothing has changed"),
            "{err}"
        );
        assert!(
            sidecar.process.log().contains(said),
            "{}",
            sidecar.process.log()
        );
        // Asked again, it says the same.
        assert_eq!(reload(&sidecar).0, 64);
        assert_eq!(client.get("/public").await.unwrap().status, 200);
    }
    fs::remove_file(sidecar.directory.path().join("sidecar.yaml")).unwrap();
    assert_eq!(
        reload(&sidecar).0,
        64,
        "a file that is gone is no configuration"
    );
    assert_eq!(client.get("/public").await.unwrap().status, 200);
    configure(&sidecar, &good);
    assert_eq!(reload(&sidecar).0, 0);
    sidecar.process.assert_running();
}

#[tokio::test]
async fn the_identitys_files_are_followed_after_a_reload_as_before() {
    let sidecar = start();
    let changed = config(&sidecar).replace("\"/public*\"", "\"/public*\", \"/also\"");
    configure(&sidecar, &changed);
    assert_eq!(reload(&sidecar).0, 0);
    let identity = sidecar.directory.path().join("identity");
    let renewed = fender_tests::pki::Template::svid(crate::standalone::ORDERS);
    sidecar.authority.issue(&renewed).write(&identity);
    wait_until("the new certificate is served", PATIENCE, || {
        sidecar
            .process
            .log()
            .contains("serving the certificate found in the files")
    });
    // The snapshot that came of it is of the newest documents.
    let answer = sidecar.client(CALLER).get("/also").await.unwrap();
    assert_eq!(answer.status, 200);
}

/// A daemon's SIGHUP; one that is started from a terminal ends with it.
#[tokio::test]
async fn sighup_reads_the_file_again_where_there_is_no_terminal() {
    let mut sidecar = start();
    sidecar.process.kill();
    let mut command = std::process::Command::new(installed("setsid"));
    command
        .arg("--wait")
        .arg(binary())
        .args(["sidecar", "--config"]);
    command.arg(sidecar.directory.path().join("sidecar.yaml"));
    let log = sidecar.directory.path().join("daemon");
    let mut daemon = Process::start("daemon", &mut command, &log);
    wait_until("the daemon is ready", PATIENCE, || {
        daemon.assert_running();
        daemon.log().contains(" ready ")
    });
    daemon.signal(Signal::HUP);
    wait_until("the file was read", PATIENCE, || {
        daemon
            .log()
            .contains("reload: the configuration has not changed")
    });
    daemon.assert_running();
    assert_eq!(
        sidecar.client(CALLER).get("/public").await.unwrap().status,
        200
    );
}
