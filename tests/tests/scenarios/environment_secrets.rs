//! A secret in Fender's own environment reaches the application as the document says, and in no other way (DESIGN §9, §14).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fender_tests::Mesh;
use fender_tests::pki::{Authority, Template};
use fender_tests::process::{PATIENCE, Process, binary, free_address};
use tempfile::TempDir;

use crate::control_loss::one_service;

/// The value; nothing that Fender writes may hold it.
const CANARY: &str = "canary-0d1f6c52-variable";

/// What is run: where it was put, and all of its environment.
const SHOW: &str = "env; cat \"$0/delivered\" 2>/dev/null; exit 9";

fn config(deliver: &str) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let authority = Authority::new("example.org");
    let svid = Template::svid("spiffe://example.org/ns/shop/sa/job");
    authority.issue(&svid).write(path);
    authority.write_bundle(path);
    let text = format!(
        "apiVersion: fender.dev/v1\nkind: Sidecar\nmetadata: {{ namespace: shop, name: job }}\nspec:\n  \
         identity: {{ files: {{ certificate: {0}/certificate.pem, key: {0}/key.pem, bundle: {0}/bundle.pem }} }}\n  \
         credentials: [ smtp ]\n---\n\
         apiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: smtp }}\nspec:\n  \
         source: {{ environment: {{ variable: SMTP_PASSWORD }} }}\n  deliver: [ {1} ]\n",
        path.display(),
        deliver.replace("DIR", path.to_str().unwrap())
    );
    let file = path.join("config.yaml");
    fs::write(&file, text).unwrap();
    (directory, file)
}

/// What the command printed and what Fender logged.
fn run(what: &str, config: &Path, value: Option<&str>) -> (Option<i32>, String, String) {
    let directory = config.parent().unwrap();
    let mut command = Command::new(binary());
    command
        .env("FENDER_LOG", "debug")
        .env("KEPT", "yes")
        .args([what, "--config"])
        .arg(config)
        .args(["--", "/bin/sh", "-c", SHOW])
        .arg(directory)
        .stdin(Stdio::null());
    if let Some(value) = value {
        command.env("SMTP_PASSWORD", value);
    }
    let ended = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (ended.status.code(), text(ended.stdout), text(ended.stderr))
}

#[test]
fn exec_gives_the_command_its_credential_under_the_documents_name_alone() {
    let (_directory, config) = config("{ environment: { variable: APP_PASSWORD } }");
    let (code, out, err) = run("exec", &config, Some(CANARY));
    assert_eq!(code, Some(9), "{err}");
    assert!(out.contains(&format!("APP_PASSWORD={CANARY}\n")), "{out}");
    assert!(
        out.contains("KEPT=yes") && !out.contains("SMTP_PASSWORD"),
        "{out}"
    );
    assert!(!err.contains(CANARY), "{err}");
    for nothing in [None, Some("")] {
        let (code, out, err) = run("exec", &config, nothing);
        assert_eq!((code, out.as_str()), (Some(66), ""), "{err}");
        assert!(err.contains("`SMTP_PASSWORD`"), "{err}");
    }
}

#[test]
fn an_application_beside_its_sidecar_has_the_file_and_not_the_variable() {
    let (_directory, config) = config("{ file: { path: DIR/delivered, storage: disk } }");
    let (code, out, err) = run("sidecar", &config, Some(CANARY));
    assert_eq!(code, Some(9), "{err}");
    assert!(out.ends_with(CANARY), "{out}");
    assert!(
        out.contains("KEPT=yes") && !out.contains("SMTP_PASSWORD"),
        "{out}"
    );
    assert!(!err.contains(CANARY), "{err}");
}

#[test]
fn a_document_of_the_control_plane_reads_no_variable_that_was_not_allowed() {
    let mesh = Mesh::start(&one_service("1h", free_address(), free_address()));
    fs::create_dir(mesh.path("delivered")).unwrap();
    let documents = fs::read_to_string(mesh.path("documents/mesh.yaml")).unwrap();
    let listed = "  dnsNames: [ localhost ]\n  credentials: [ smtp ]\n";
    let documents = documents.replace("  dnsNames: [ localhost ]\n", listed)
        + &format!(
            "---\napiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: smtp }}\nspec:\n  \
             source: {{ environment: {{ variable: SMTP_PASSWORD }} }}\n  \
             deliver: [ {{ file: {{ path: \"{}\", storage: disk }} }} ]\n",
            mesh.path("delivered/smtp").display()
        );
    let (code, out, err) = mesh.apply(&documents);
    assert_eq!(code, 0, "{out}{err}");
    let token = mesh.token("shop/orders", "5m");
    let mut command = mesh.sidecar_command("shop/orders", Some(&token));
    command.env("SMTP_PASSWORD", CANARY);
    let mut refused = Process::start("refused", &mut command, &mesh.path("logs/refused.log"));
    assert_eq!(refused.wait(PATIENCE).code(), Some(77), "{}", refused.log());
    assert!(
        refused.log().contains("--allow-environment"),
        "{}",
        refused.log()
    );
    assert!(!mesh.path("delivered/smtp").exists());

    let mut command = mesh.sidecar_command("shop/orders", None);
    command
        .env("SMTP_PASSWORD", CANARY)
        .args(["--allow-environment", "SMTP_PASSWORD"]);
    let mut sidecar = Process::start("allowed", &mut command, &mesh.path("logs/allowed.log"));
    mesh.wait_ready("shop/orders", &mut sidecar);
    assert_eq!(
        fs::read_to_string(mesh.path("delivered/smtp")).unwrap(),
        CANARY
    );
    assert!(!sidecar.log().contains(CANARY), "{}", sidecar.log());
}
