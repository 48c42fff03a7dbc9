//! A credential reaches the application as a file and by `fender exec`, and a change at the source
//! follows (DESIGN §9).

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Instant;

use fender_tests::process::{PATIENCE, binary, free_address, output};
use fender_tests::{Mesh, wait_until};

use crate::control_loss::one_service;

fn mesh(via: &str) -> Mesh {
    // Where the source lies is known only once the mesh has a directory: documents follow.
    let mesh = Mesh::start(&one_service("1h", free_address(), free_address()));
    replace(&mesh.path("source"), "first secret");
    fs::create_dir(mesh.path("delivered")).unwrap();
    let documents = fs::read_to_string(mesh.path("documents/mesh.yaml"))
        .unwrap()
        .replace(
            "  dnsNames: [ localhost ]\n",
            "  dnsNames: [ localhost ]\n  credentials: [ smtp ]\n",
        )
        + &format!(
            r#"---
apiVersion: fender.dev/v1
kind: Credential
metadata: {{ namespace: shop, name: smtp }}
spec:
  source: {{ file: {{ path: "{}", via: {via} }} }}
  maxStale: 1s
  deliver:
    - file: {{ path: "{}", mode: "0440", storage: disk }}
    - environment: {{ variable: SMTP_PASSWORD }}
"#,
            mesh.path("source").display(),
            mesh.path("delivered/smtp").display(),
        );
    let (code, out, err) = mesh.apply(&documents);
    assert_eq!(code, 0, "{out}{err}");
    mesh
}

fn replace(path: &Path, text: &str) {
    let fresh = path.with_extension("fresh");
    fs::write(&fresh, text).unwrap();
    fs::rename(fresh, path).unwrap();
}

fn a_change_reaches_the_file(via: &str) {
    let mesh = mesh(via);
    let _sidecar = mesh.sidecar("shop/orders", &[]);
    let file = mesh.path("delivered/smtp");
    assert_eq!(
        fs::read_to_string(&file).unwrap(),
        "first secret",
        "there before the sidecar is ready"
    );
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o7777,
        0o440
    );

    replace(&mesh.path("source"), "second secret, longer");
    let changed = Instant::now();
    wait_until("the change reaches the file", PATIENCE, || {
        // A reader sees the old one or the new one, never a part.
        let text = fs::read_to_string(&file).unwrap();
        assert!(
            text == "first secret" || text == "second secret, longer",
            "a reader saw `{text}`"
        );
        text == "second secret, longer"
    });
    println!("via {via}: {} ms", changed.elapsed().as_millis());
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o7777,
        0o440
    );
}

#[test]
fn a_change_at_the_source_reaches_the_file_by_the_sidecar() {
    a_change_reaches_the_file("sidecar");
}

#[test]
fn a_change_at_the_source_reaches_the_file_through_the_control_plane() {
    a_change_reaches_the_file("control");
}

#[test]
fn an_outage_of_the_source_leaves_the_file_alone_and_equal_bytes_are_not_rewritten() {
    let mesh = mesh("sidecar");
    let _sidecar = mesh.sidecar("shop/orders", &[]);
    let file = mesh.path("delivered/smtp");
    let inode = fs::metadata(&file).unwrap().ino();
    replace(&mesh.path("source"), "first secret");
    replace(&mesh.path("marker"), "x");
    // The next change is seen after the unchanged one, so waiting for it waits for both.
    replace(&mesh.path("source"), "third secret");
    wait_until("the change reaches the file", PATIENCE, || {
        fs::read_to_string(&file).unwrap() == "third secret"
    });
    assert_ne!(fs::metadata(&file).unwrap().ino(), inode);
}

/// A value that is outdated for too long ends the readiness of its sidecar and nothing else.
fn a_stale_value_is_used_and_ends_readiness_after_its_time(via: &str) {
    let mesh = mesh(via);
    let mut sidecar = mesh.sidecar("shop/orders", &[]);
    let socket = mesh.state("shop/orders").join("admin.sock");
    let socket = socket.to_string_lossy();
    let told = |what: &str| output(binary(), &["status", "--sidecar", &socket, what]);
    assert_eq!(told("--ready").0, 0);
    // There is something, but no secret is that large.
    replace(&mesh.path("source"), &"x".repeat(2 * 1024 * 1024));
    wait_until("the sidecar is not ready", PATIENCE, || {
        told("--ready").0 != 0
    });
    let (_, out, err) = told("--ready");
    assert!(
        format!("{out}{err}")
            .contains("`shop/smtp` has been outdated for longer than its `maxStale`"),
        "{out}{err}"
    );
    sidecar.assert_running();
    let (code, out, err) = output(binary(), &["status", "--sidecar", &socket]);
    assert!(
        code == 0 && out.contains("shop/smtp outdated for "),
        "{out}{err}"
    );
    let file = mesh.path("delivered/smtp");
    assert_eq!(fs::read_to_string(&file).unwrap(), "first secret");
    replace(&mesh.path("source"), "second secret");
    wait_until("the sidecar is ready again", PATIENCE, || {
        told("--ready").0 == 0
    });
    assert_eq!(fs::read_to_string(&file).unwrap(), "second secret");
}

#[test]
fn a_value_that_the_sidecar_cannot_refresh_ends_its_readiness() {
    a_stale_value_is_used_and_ends_readiness_after_its_time("sidecar");
}

#[test]
fn a_value_that_the_control_plane_cannot_refresh_ends_readiness() {
    a_stale_value_is_used_and_ends_readiness_after_its_time("control");
}

#[test]
fn exec_gives_the_command_its_credential_and_nothing_of_fenders() {
    let mesh = mesh("control");
    let token = mesh.token("shop/orders", "5m");
    let seen = mesh.path("environment");
    let mut command = mesh.command();
    command
        .env("FENDER_LOG", "info")
        .env("KEPT", "yes")
        .args(["exec", "--token-file"])
        .arg(&token)
        .arg("--allow-dir")
        .arg(mesh.directory.path())
        .args(["--", "/bin/sh", "-c"])
        .arg(format!(
            "env > {}; ls -l /proc/$$/fd >> {0}; exit 9",
            seen.display()
        ));
    let status = command.status().unwrap();
    assert_eq!(status.code(), Some(9), "the command's own code");
    let text = fs::read_to_string(&seen).unwrap();
    assert!(text.contains("SMTP_PASSWORD=first secret"), "{text}");
    assert!(text.contains("KEPT=yes"), "{text}");
    assert!(
        !text.contains("FENDER_"),
        "nothing of Fender's own reaches the command:\n{text}"
    );
    assert!(
        !text.contains("socket:"),
        "no descriptor of Fender's reaches the command:\n{text}"
    );
}

#[test]
fn a_missing_credential_ends_the_start_with_its_own_exit_code() {
    let mesh = mesh("sidecar");
    fs::remove_file(mesh.path("source")).unwrap();
    let token = mesh.token("shop/orders", "5m");
    let mut command = mesh.sidecar_command("shop/orders", Some(&token));
    command.args(["--start-timeout", "60s", "--", "/bin/sh", "-c", "exit 0"]);
    let mut process =
        fender_tests::Process::start("missing", &mut command, &mesh.path("logs/missing.log"));
    assert_eq!(process.wait(PATIENCE).code(), Some(66), "{}", process.log());
    assert!(
        process.log().contains("shop/smtp") || process.log().contains("smtp"),
        "{}",
        process.log()
    );
}

#[test]
fn documents_from_the_control_plane_write_only_where_the_sidecar_was_told_they_may() {
    let mesh = mesh("control");
    let token = mesh.token("shop/orders", "5m");
    let mut command = mesh.command();
    command
        .args(["sidecar", "--start-timeout", "60s", "--state"])
        .arg(mesh.state("shop/orders"))
        .arg("--token-file")
        .arg(&token);
    let mut process =
        fender_tests::Process::start("unallowed", &mut command, &mesh.path("logs/unallowed.log"));
    let code = process.wait(PATIENCE).code();
    assert_eq!(code, Some(77), "{}", process.log());
    assert!(
        process.log().contains("--allow-dir"),
        "the way out is named:\n{}",
        process.log()
    );
    assert!(!mesh.path("delivered/smtp").exists());
}

#[test]
fn exec_runs_without_a_control_plane() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source");
    fs::write(&source, "standalone secret").unwrap();
    let config = directory.path().join("config.yaml");
    fs::write(
        &config,
        format!(
            "apiVersion: fender.dev/v1\nkind: Sidecar\nmetadata: {{ namespace: shop, name: job }}\nspec:\n  credentials: [ smtp ]\n---\n\
             apiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: smtp }}\nspec:\n  source: {{ file: {{ path: \"{}\" }} }}\n  \
             deliver: [ {{ environment: {{ variable: SMTP_PASSWORD }} }} ]\n",
            source.display()
        ),
    )
    .unwrap();
    let (code, out, err) = output(
        binary(),
        &[
            "exec",
            "--config",
            &config.to_string_lossy(),
            "--",
            "/bin/sh",
            "-c",
            "printf %s \"$SMTP_PASSWORD\"",
        ],
    );
    assert_eq!((code, out.as_str()), (0, "standalone secret"), "{err}");
}
