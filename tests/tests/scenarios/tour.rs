//! Pages that are run as written: the README's tour, a sidecar before `python3 -m http.server`, called with curl; and an
//! administrator's work, in the order of the guide.
//!
//! Every fenced block marked `sh tour` is run in order, in one shell, in an empty directory.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use fender_tests::{binary, installed};

#[test]
fn the_readmes_tour_works_as_written() {
    let out = runs_as_written("README.md");
    for expected in [
        "spiffe://tour.internal/ns/shop/sa/files",
        "Verify return code: 0 (ok)",
        "Hello from Python",
        "x-fender-decision",
    ] {
        assert!(out.contains(expected), "`{expected}` is shown:\n{out}");
    }
}

#[test]
fn an_administrators_work_is_done_as_the_guide_says() {
    let out = runs_as_written("docs/guide/administration.md");
    for expected in [
        "founded the trust domain example.org",
        "spiffe://example.org/fender/admin/first",
        "+  drain: 20s",
        "applied as revision 2",
        "dry run: nothing was changed, revision 2 stays",
        "applied as revision 3",
        "* 2 ",
        "name: ben, role: operator",
        "whole",
    ] {
        assert!(out.contains(expected), "`{expected}` is shown:\n{out}");
    }
}

/// What the commands of a page print, all of which succeed.
fn runs_as_written(page: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let script = blocks(&fs::read_to_string(root.join(page)).unwrap());
    assert!(
        script.contains("fender "),
        "{page} shows commands:\n{script}"
    );
    let home = tempfile::tempdir().unwrap();
    let path = format!(
        "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        binary().parent().unwrap().display()
    );
    // A page names its ports, so it gets a network of its own.
    let prepared = format!(
        "ip link set lo up\ntrap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n{script}"
    );
    let mut command = Command::new(installed("unshare"));
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    let output = command
        .args(["--net", "/bin/bash", "-euo", "pipefail", "-c", &prepared])
        .current_dir(home.path())
        .env_clear()
        .env("PATH", path)
        .env("HOME", home.path())
        .env("USER", "alice")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{page}:\n{out}\n{err}");
    out.into_owned()
}

fn blocks(markdown: &str) -> String {
    let mut script = String::new();
    let mut inside = false;
    for line in markdown.lines() {
        match (inside, line.trim()) {
            (false, "```sh tour") => inside = true,
            (true, "```") => inside = false,
            (true, _) => {
                script.push_str(line);
                script.push('\n');
            }
            (false, _) => {}
        }
    }
    script
}
