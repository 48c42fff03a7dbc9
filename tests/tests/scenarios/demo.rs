//! `fender demo --check` holds what it promises and leaves nothing behind.

use std::collections::BTreeSet;
use std::process::Command;

use fender_tests::process::{PATIENCE, Process, binary};
use fender_tests::wait_until;
use rustix::process::Signal;

#[test]
fn the_check_prints_one_line_per_expectation_and_leaves_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let output = Command::new(binary())
        .args(["demo", "--check"])
        .env("TMPDIR", temporary.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert_eq!(
        text.lines().filter(|line| line.starts_with("ok  ")).count(),
        text.lines().count(),
        "{text}"
    );
    assert!(text.lines().count() >= 7, "{text}");
    assert_eq!(
        std::fs::read_dir(temporary.path()).unwrap().count(),
        0,
        "the directory is gone"
    );
    assert_eq!(processes_below(temporary.path()), BTreeSet::new());
}

#[test]
fn the_demo_stays_until_ctrl_c_and_then_leaves_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new(binary());
    command.arg("demo").env("TMPDIR", temporary.path());
    let mut demo = Process::start("demo", &mut command, log.path());
    wait_until("the story is told", 2 * PATIENCE, || {
        demo.assert_running();
        demo.log().contains("Press Ctrl-C")
    });
    assert!(!demo.log().contains("[FAIL]"), "{}", demo.log());
    demo.signal(Signal::INT);
    assert!(demo.wait(PATIENCE).success(), "{}", demo.log());
    assert_eq!(
        std::fs::read_dir(temporary.path()).unwrap().count(),
        0,
        "the directory is gone"
    );
    assert_eq!(processes_below(temporary.path()), BTreeSet::new());
}

/// Processes whose command line names a path below `directory`.
fn processes_below(directory: &std::path::Path) -> BTreeSet<String> {
    let needle = directory.to_string_lossy().into_owned();
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let lines =
        processes.filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok());
    lines
        .filter(|line| line.contains(&needle))
        .map(|line| line.replace('\0', " "))
        .collect()
}
