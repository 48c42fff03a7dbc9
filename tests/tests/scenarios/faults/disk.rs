//! A full disk under SQLite: what cannot be recorded is refused, what was answered is on record, nothing is spent for nothing.

use std::fs;
use std::path::{Path, PathBuf};

use fender_tests::process::{PATIENCE, free_address};
use fender_tests::{Mesh, Process, binary, wait_until};

use super::held;

const JOBS: &str = "apiVersion: fender.dev/v1
kind: Workload
metadata: { namespace: shop, name: jobs }
spec:
  attest: [ { token: {} } ]
";

/// Runs in a mount namespace of its own, with a disk that is soon full.
#[test]
fn a_full_disk_under_sqlite_refuses_what_it_cannot_record_and_loses_nothing_that_was_answered() {
    const TOKENS: usize = 12;
    let directory = tempfile::tempdir().unwrap();
    let (disk, admin) = (
        directory.path().join("disk"),
        directory.path().join("admin"),
    );
    let (listen, file) = (free_address(), directory.path().join("mesh.yaml"));
    fs::create_dir(&disk).unwrap();
    fs::write(&file, Mesh::documents("1h", JOBS)).unwrap();
    let fender = |arguments: &[&str]| {
        std::process::Command::new(binary())
            .env_clear()
            .env("FENDER_ADMIN", &admin)
            .env("FENDER_CONTROL", format!("https://{listen}"))
            .args(arguments)
            .output()
            .unwrap()
    };
    let mut command = std::process::Command::new("unshare");
    command
        .args(["--mount", "sh", "-ec"])
        .arg("mount -t tmpfs -o size=8m,mode=700 tmpfs \"$1\"; shift; exec \"$@\"")
        .arg("sh")
        .arg(&disk)
        .arg(binary())
        .args(["--log-format", "json", "control", "--data-dir"])
        .arg(disk.join("data"))
        .arg("--admin-dir")
        .arg(&admin)
        .arg("--documents")
        .arg(&file)
        .args(["--listen", &listen.to_string()]);
    let log = directory.path().join("control.log");
    let mut control = Process::start("control", &mut command, &log);
    wait_until("it answers", PATIENCE, || {
        control.assert_running();
        fender(&["status"]).status.success()
    });
    let tokens: Vec<_> = (0..TOKENS)
        .map(|number| {
            let token = directory.path().join(format!("token-{number}"));
            let out = token.to_string_lossy();
            let made = fender(&["token", "create", "shop/jobs", "--ttl", "1h", "--out", &out]);
            assert!(made.status.success());
            token
        })
        .collect();
    let shown = |token: &Path, patience: &str| {
        let state = token.with_extension("state");
        fender(&[
            "exec",
            "--start-timeout",
            patience,
            "--token-file",
            &token.to_string_lossy(),
            "--state",
            &state.to_string_lossy(),
            "--",
            "/bin/true",
        ])
        .status
        .success()
    };
    assert!(shown(&tokens[0], "30s"));

    // The disk as that process sees it, filled to the last byte.
    let seen = PathBuf::from(format!("/proc/{}/root{}", control.pid(), disk.display()));
    let ballast = seen.join("ballast");
    let fill = || {
        let mut file = fs::File::options()
            .create(true)
            .append(true)
            .open(&ballast)
            .unwrap();
        while std::io::Write::write_all(&mut file, &[0; 512]).is_ok() {}
    };
    fill();
    let mut refused = 0;
    for token in &tokens[1..6] {
        if !shown(token, "2s") {
            refused += 1;
        }
        // What the log of SQLite gave back when it was rolled back is taken, too.
        fill();
    }
    control.assert_running();
    fs::remove_file(&ballast).unwrap();

    // Every token buys its one certificate now, whoever showed it meanwhile with the key that is kept.
    let mut bought = 1;
    for token in &tokens[1..] {
        let state = token.with_extension("state");
        if held(&state).is_some() || shown(token, "30s") {
            bought += 1;
        }
    }
    println!(
        "{TOKENS} tokens, {refused} refused while the disk was full, {bought} bought in the end"
    );
    assert!(refused > 0, "the disk was full");
    assert_eq!(bought, TOKENS, "{}", control.log());
    let status = fender(&["status", "--workload", "shop/jobs", "--output", "json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(
        status["workloads"][0]["certificates_issued"], TOKENS as u64,
        "one for each token is on record: {status}"
    );
    assert!(fender(&["audit-log", "verify"]).status.success());
}
