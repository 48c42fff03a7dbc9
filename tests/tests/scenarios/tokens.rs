//! A join token works once, in time, for its identity, at its control plane (DESIGN §14).
//!
//! Each refusal has its own code in the error and leaves by exit code 77.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use fender_tests::Mesh;
use fender_tests::process::{PATIENCE, free_address};

use crate::control_loss::one_service;

const REFUSED: i32 = 77;

fn mesh() -> Mesh {
    let other = r#"---
apiVersion: fender.dev/v1
kind: Workload
metadata: { namespace: shop, name: inventory }
spec:
  attest: [ { token: {} } ]
---
apiVersion: fender.dev/v1
kind: Workload
metadata: { namespace: shop, name: closed }
spec:
  attest: []
"#;
    Mesh::start(&(one_service("1h", free_address(), free_address()) + other))
}

/// Runs a sidecar that is expected to be refused; its exit code and what it wrote.
fn refused(mesh: &Mesh, workload: &str, state: &str, token: &Path) -> (i32, String) {
    let log = mesh.path(format!("logs/{state}.log"));
    let mut command = mesh.command();
    command
        .args([
            "sidecar",
            "--start-timeout",
            "60s",
            "--workload",
            workload,
            "--state",
        ])
        .arg(mesh.path(state))
        .arg("--token-file")
        .arg(token);
    let mut process = fender_tests::Process::start(state, &mut command, &log);
    let status = process.wait(PATIENCE);
    (status.code().unwrap_or(-1), process.log())
}

fn assert_refused(outcome: (i32, String), code: &str) {
    let (exit, text) = outcome;
    assert_eq!(exit, REFUSED, "{text}");
    assert!(
        text.contains(&format!("error[{code}]")),
        "the error names `{code}`:\n{text}"
    );
}

/// A copy that only its owner reads, because the first use deletes the file.
fn copy(token: &Path) -> PathBuf {
    let copy = token.with_extension("copy");
    fs::write(&copy, fs::read(token).unwrap()).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o600)).unwrap();
    copy
}

#[test]
fn a_token_used_twice_is_refused() {
    let mesh = mesh();
    let token = mesh.token("shop/orders", "5m");
    let again = copy(&token);
    let mut first = mesh.start_sidecar("shop/orders", Some(&token), &[]);
    mesh.wait_ready("shop/orders", &mut first);
    assert!(!token.exists(), "a used token is deleted");
    assert_refused(
        refused(&mesh, "shop/orders", "thief", &again),
        "token-spent",
    );
}

#[test]
fn no_token_is_made_for_a_file_that_cannot_be_written() {
    let mesh = mesh();
    for (out, said) in [(".", "is a directory"), ("nowhere/token", "nowhere")] {
        let out = mesh.path(out).to_string_lossy().into_owned();
        let (code, _, err) = mesh.fender(&["token", "create", "shop/orders", "--out", &out]);
        assert_eq!(code, 64, "{err}");
        assert!(err.contains(said), "{err}");
    }
    let (_, listed, _) = mesh.fender(&["token", "list"]);
    assert_eq!(listed, "no join token is waiting to be used\n");
}

#[test]
fn an_expired_token_is_refused() {
    let mesh = mesh();
    let token = mesh.token("shop/orders", "1s");
    // The only thing to wait for is time itself: two seconds after the token was made it is over.
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_refused(
        refused(&mesh, "shop/orders", "late", &token),
        "token-expired",
    );
}

#[test]
fn a_token_for_another_identity_is_refused() {
    let mesh = mesh();
    let token = mesh.token("shop/orders", "5m");
    assert_refused(
        refused(&mesh, "shop/inventory", "other", &token),
        "token-wrong-identity",
    );
    assert!(token.exists(), "a token that was not spent is kept");
}

#[test]
fn a_token_of_another_control_plane_is_refused_by_the_sidecar_before_it_shows_the_secret() {
    let (ours, theirs) = (mesh(), mesh());
    let token = theirs.token("shop/orders", "5m");
    assert_refused(
        refused(&ours, "shop/orders", "misled", &token),
        "ca-pin-mismatch",
    );
    // It was not spent: where it belongs, it still works.
    let state = theirs.start_sidecar("shop/orders", Some(&token), &[]);
    let mut state = state;
    theirs.wait_ready("shop/orders", &mut state);
}

#[test]
fn an_unknown_token_is_refused() {
    let mesh = mesh();
    let token = mesh.token("shop/orders", "5m");
    let text = fs::read_to_string(&token).unwrap();
    let (head, secret) = text.trim().rsplit_once('.').unwrap();
    let flipped: String = secret
        .chars()
        .enumerate()
        .map(|(at, c)| {
            if at == 3 {
                if c == 'A' { 'B' } else { 'A' }
            } else {
                c
            }
        })
        .collect();
    fs::write(&token, format!("{head}.{flipped}\n")).unwrap();
    assert_refused(
        refused(&mesh, "shop/orders", "guesser", &token),
        "token-unknown",
    );
}

#[test]
fn a_token_that_others_can_read_is_not_used() {
    let mesh = mesh();
    let token = mesh.token("shop/orders", "5m");
    assert_eq!(
        fs::metadata(&token).unwrap().permissions().mode() & 0o777,
        0o600
    );
    fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).unwrap();
    let (exit, text) = refused(&mesh, "shop/orders", "careless", &token);
    assert_eq!(exit, 64, "{text}");
    assert!(text.contains("chmod 0400"), "the way out is named:\n{text}");
}

#[test]
fn no_token_is_made_for_a_workload_that_does_not_exist_or_accepts_none() {
    let mesh = mesh();
    for workload in ["shop/nobody", "shop/closed"] {
        let (code, _, err) = mesh.fender(&["token", "create", workload]);
        assert_ne!(code, 0, "{workload}");
        assert!(err.contains(workload), "{err}");
    }
}
