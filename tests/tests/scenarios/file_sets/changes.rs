//! What happens to a set: values that do not fit, withdrawal, starts, successors, ends.

use std::fs;
use std::process::Command;

use fender_tests::process::{PATIENCE, binary, is_ready, output};
use fender_tests::{Process, wait_until};
use rustix::process::Signal;

use super::{Quay, generation};

/// A value that no longer has what the documents want changes nothing, and one that is gone takes the set away.
#[test]
fn a_set_stays_through_a_value_that_does_not_fit_and_goes_with_a_withdrawal() {
    let quay = Quay::new();
    quay.configure(&quay.set(""));
    let mut sidecar = quay.start();
    let socket = quay.path("run/admin.sock");
    let status = || {
        output(
            binary(),
            &["status", "--sidecar", &socket.to_string_lossy()],
        )
        .1
    };
    quay.replace(r#"{"n": "hunter2-canary"}"#);
    wait_until("the credential is outdated", PATIENCE, || {
        status().contains("the secret has no field `pad`")
    });
    assert_eq!(generation(&quay.read().unwrap()), 0);
    assert!(!status().contains("hunter2") && !sidecar.log().contains("hunter2"));
    quay.rotate(1);
    wait_until("the next one is delivered", PATIENCE, || {
        generation(&quay.read().unwrap()) == 1
    });
    fs::remove_file(quay.path("sources/db")).unwrap();
    wait_until("the set is withdrawn", PATIENCE, || {
        quay.names("set").is_empty()
    });
    assert!(is_ready(&socket));
    quay.rotate(2);
    wait_until("it is there again", PATIENCE, || {
        quay.read().is_ok_and(|files| generation(&files) == 2)
    });
    sidecar.assert_running();
}

#[test]
fn a_start_that_misses_a_field_ends_with_its_name_and_nothing_is_left() {
    let quay = Quay::new();
    quay.configure(&quay.set(""));
    quay.replace(r#"{"n": "hunter2-canary"}"#);
    let mut sidecar = quay.begin();
    let status = sidecar.wait(PATIENCE);
    let log = sidecar.log();
    assert_eq!(status.code(), Some(66), "{log}");
    assert!(
        log.contains("the secret has no field `pad`") && !log.contains("hunter2"),
        "{log}"
    );
    assert!(!fs::exists(quay.path("set/..data")).unwrap());
}

/// A successor takes the set over as it is, and the one before leaves it.
#[test]
fn an_upgrade_and_an_exit_that_keeps_leave_the_set_where_it_is() {
    let mut quay = Quay::new();
    quay.more = "  onExit: keep\n".to_owned();
    quay.configure(&quay.set(""));
    let mut one = quay.start();
    let data = fs::read_link(quay.path("set/..data")).unwrap();
    let mut command = Command::new(binary());
    command
        .args(["sidecar", "--config"])
        .arg(quay.path("sidecar.yaml"))
        .arg("--admin-socket")
        .arg(quay.path("run/admin.sock"))
        .arg("--upgrade-socket")
        .arg(quay.path("private/upgrade.sock"))
        .arg("--take-over")
        .arg(quay.path("private/upgrade.sock"));
    let mut two = Process::start("successor", &mut command, &quay.path("log-2"));
    one.wait(PATIENCE);
    two.assert_running();
    assert_eq!(fs::read_link(quay.path("set/..data")).unwrap(), data);
    quay.rotate(1);
    wait_until("the successor delivers", PATIENCE, || {
        generation(&quay.read().unwrap()) == 1
    });
    two.signal(Signal::TERM);
    two.wait(PATIENCE);
    assert_eq!(generation(&quay.read().unwrap()), 1);
    assert!(quay.is_tidy(), "{:?}", quay.names("set"));
    // The next one finds it right, and writes nothing.
    let data = fs::read_link(quay.path("set/..data")).unwrap();
    let _three = quay.start();
    assert_eq!(fs::read_link(quay.path("set/..data")).unwrap(), data);
}
