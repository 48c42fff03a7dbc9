//! DESIGN §5 and §14: `fender control init` founds once, and what it says to type next works.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use fender_tests::postgres::Durability;
use fender_tests::process::{PATIENCE, free_address};
use fender_tests::{Postgres, Process, binary, wait_until};
use rustix::process::Signal;

/// Code and both outputs of the binary, in a directory and with an empty environment.
pub(crate) fn fender(home: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(binary())
        .args(arguments)
        .current_dir(home)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// A line of what `init` told, as the shell would split it; without the program's name.
pub(crate) fn line<'a>(told: &'a str, begins: &str) -> Vec<&'a str> {
    let line = told
        .lines()
        .find_map(|line| line.trim().strip_prefix(begins));
    line.unwrap_or_else(|| panic!("`{begins}` is told:\n{told}"))
        .split_whitespace()
        .collect()
}

/// Starts what the line says, asks for the status as the next line says, and stops it.
fn serves(home: &Path, told: &str) {
    let address = free_address().to_string();
    let mut command = Command::new(binary());
    command
        .arg("control")
        .args(line(told, "fender control"))
        .args(["--listen", &address])
        .current_dir(home)
        .env_clear();
    let mut control = Process::start("control", &mut command, &home.join("control.log"));
    let url = format!("https://{address}");
    let mut status = vec!["status", "--control", &url];
    status.extend(line(told, "fender status"));
    wait_until("the control plane answers", PATIENCE, || {
        control.assert_running();
        fender(home, &status).0 == 0
    });
    let (_, out, _) = fender(home, &status);
    assert!(out.contains("test.internal"), "{out}");
    control.signal(Signal::TERM);
    assert!(control.wait(PATIENCE).success(), "{}", control.log());
}

fn everything_below(directory: &Path) -> Vec<(String, u32, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(everything_below(&path));
        } else if path.is_file() && !path.to_string_lossy().contains("control.db") {
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            all.push((path.display().to_string(), mode, fs::read(&path).unwrap()));
        }
    }
    all.sort();
    all
}

#[test]
fn what_is_founded_once_serves_and_is_not_founded_again() {
    let home = tempfile::tempdir().unwrap();
    let init = ["control", "init", "--trust-domain", "test.internal"];
    let (code, told, err) = fender(home.path(), &init);
    assert_eq!(code, 0, "{told}{err}");
    for expected in [
        "founded the trust domain test.internal",
        "CA pin         sha256:",
        "spiffe://test.internal/fender/admin/first",
        "fender-data/key",
    ] {
        assert!(told.contains(expected), "`{expected}` is told:\n{told}");
    }
    let data = home.path().join("fender-data");
    let made = everything_below(&data);
    assert!(made.iter().all(|(_, mode, _)| *mode == 0o600), "{made:?}");
    let key = fs::read_to_string(data.join("admin/key.pem")).unwrap();
    let secret = key.lines().nth(1).unwrap();
    assert!(!told.contains(secret) && !err.contains(secret));

    serves(home.path(), &told);
    let (code, out, err) = fender(home.path(), &init);
    assert_eq!((code, out.as_str()), (64, ""), "{err}");
    assert!(err.contains("founded here already"), "{err}");
    let changed = everything_below(&data);
    let names = |files: &[(String, u32, Vec<u8>)]| -> Vec<String> {
        files.iter().map(|(name, ..)| name.clone()).collect()
    };
    assert_eq!(names(&made), names(&changed));
    assert!(made == changed, "nothing of it is written anew");

    let (code, _, err) = fender(home.path(), &["control", "--data-dir", "other", "init"]);
    assert_eq!(code, 64, "flags belong behind `init`: {err}");
    assert!(!home.path().join("other").exists());
}

#[test]
fn in_postgresql_too_a_control_plane_is_founded_once_and_its_administrators_files_are_made_anew() {
    let server = Postgres::start(Durability::None);
    let home = tempfile::tempdir().unwrap();
    let store = server.url("fender");
    let flags = [
        "--data-dir",
        "data",
        "--admin-dir",
        "ada",
        "--store",
        &store,
    ];
    let init = [
        &["control", "init", "--trust-domain", "test.internal"],
        &flags[..],
    ]
    .concat();
    let (code, told, err) = fender(home.path(), &init);
    assert_eq!(code, 0, "{told}{err}");
    serves(home.path(), &told);

    let (code, _, err) = fender(home.path(), &init);
    assert_eq!(code, 64, "{err}");
    assert!(err.contains("founded here already"), "{err}");
    let before = fs::read(home.path().join("ada/key.pem")).unwrap();
    let again = [&["control", "--reissue-admin"], &flags[..]].concat();
    let (code, out, err) = fender(home.path(), &again);
    assert_eq!((code, out.trim_end()), (0, "ada"), "{err}");
    assert_ne!(fs::read(home.path().join("ada/key.pem")).unwrap(), before);
    serves(home.path(), &told);
}
