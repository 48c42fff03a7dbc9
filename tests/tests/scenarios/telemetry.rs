//! DESIGN §11: the control plane's own health and metrics, at a socket that is its owner's.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use fender_tests::postgres::Durability;
use fender_tests::process::{PATIENCE, free_address, output};
use fender_tests::{Postgres, Process, binary, installed, wait_until};

/// What curl gets there: the status code and the body.
pub(crate) fn get(socket: &Path, path: &str) -> (String, String) {
    let socket = socket.to_string_lossy();
    let url = format!("http://localhost{path}");
    let (_, out, _) = output(
        installed("curl"),
        &[
            "--silent",
            "--max-time",
            "10",
            "--write-out",
            "\n%{http_code}",
            "--unix-socket",
            &socket,
            &url,
        ],
    );
    let (body, code) = out.rsplit_once('\n').unwrap();
    (code.to_owned(), body.to_owned())
}

#[test]
fn a_control_plane_whose_database_is_away_lives_and_is_not_ready() {
    let server = Postgres::start(Durability::None);
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(binary());
    command
        .args([
            "control",
            "--trust-domain",
            "test.internal",
            "--store",
            &server.url("fender"),
        ])
        .args(["--listen", &free_address().to_string()])
        .current_dir(home.path())
        .env_clear();
    let mut control = Process::start("control", &mut command, &home.path().join("control.log"));
    let socket = home.path().join("fender-data/admin.sock");
    let ready = |wanted: &str| get(&socket, "/readyz").0 == wanted;
    wait_until("it is ready", PATIENCE, || {
        control.assert_running();
        ready("200")
    });
    let mode = fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(get(&socket, "/startupz").0, "200");
    assert_eq!(get(&socket, "/status").0, "404");
    let (code, metrics) = get(&socket, "/metrics");
    assert_eq!(code, "200");
    for line in [
        "fender_ready 1\n",
        "fender_control_audit_entries ",
        "# EOF\n",
    ] {
        assert!(metrics.contains(line), "{line}{metrics}");
    }

    server.down();
    wait_until("it is not ready", PATIENCE, || ready("503"));
    assert_eq!(
        get(&socket, "/livez"),
        ("200".to_owned(), "ok\n".to_owned())
    );
    let (code, metrics) = get(&socket, "/metrics");
    assert_eq!(code, "200", "what it knows itself is told");
    assert!(metrics.contains("fender_ready 0\n"), "{metrics}");
    assert!(
        metrics.contains("fender_unrecoverable_seconds "),
        "{metrics}"
    );
    assert!(
        !metrics.contains("fender_control_audit_entries"),
        "{metrics}"
    );
    server.up();
    wait_until("it is ready again", PATIENCE, || {
        control.assert_running();
        ready("200")
    });
}
