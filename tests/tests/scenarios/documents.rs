//! Wrong documents: everything wrong is reported together, and nothing is applied.

use std::fs;

use fender_tests::Mesh;
use fender_tests::process::free_address;

use crate::control_loss::one_service;

const BAD_INPUT: i32 = 64;

fn revision(mesh: &Mesh) -> u64 {
    let status: serde_json::Value =
        serde_json::from_str(&mesh.fender_ok(&["status", "--output", "json"])).unwrap();
    status["revision"].as_u64().unwrap()
}

#[test]
fn every_problem_of_every_document_is_reported_and_nothing_is_applied() {
    let mesh = Mesh::start(&one_service("1h", free_address(), free_address()));
    let before = revision(&mesh);
    let directory = mesh.path("wrong");
    fs::create_dir(&directory).unwrap();
    let files = [
        (
            "a-unknown-field.yaml",
            "apiVersion: fender.dev/v1\nkind: Workload\nmetadata: { namespace: shop, name: a }\nspec:\n  atest: [ { token: {} } ]\n",
        ),
        (
            "b-cidr.yaml",
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: { namespace: shop, name: b }\nspec:\n  rules:\n    - from: [ { source: { ipBlocks: [ \"10.0.0.0/33\" ] } } ]\n",
        ),
        (
            "c-reference.yaml",
            "apiVersion: fender.dev/v1\nkind: Workload\nmetadata: { namespace: shop, name: c }\nspec:\n  attest: [ { token: {} } ]\n  outbound: [ { listen: \"127.0.0.1:9999\", service: shop/nowhere } ]\n  credentials: [ nothing ]\n",
        ),
        (
            "d-yaml.yaml",
            "apiVersion: fender.dev/v1\nkind: [ Workload\n",
        ),
    ];
    for (name, text) in files {
        fs::write(directory.join(name), text).unwrap();
    }
    let (code, out, err) = mesh.fender(&["apply", "-f", &directory.to_string_lossy()]);
    let text = out + &err;
    assert_eq!(code, BAD_INPUT, "{text}");
    for expected in [
        "a-unknown-field.yaml:5",
        "atest",
        "b-cidr.yaml:6",
        "10.0.0.0/33",
        "c-reference.yaml:6",
        "shop/nowhere",
        "nothing",
        "d-yaml.yaml:",
    ] {
        assert!(text.contains(expected), "`{expected}` is reported:\n{text}");
    }
    assert_eq!(revision(&mesh), before, "nothing was applied");
}

#[test]
fn ten_megabytes_of_document_are_refused_by_name() {
    let mesh = Mesh::start(&one_service("1h", free_address(), free_address()));
    let before = revision(&mesh);
    let file = mesh.path("huge.yaml");
    fs::write(&file, "# ".repeat(5 * 1024 * 1024)).unwrap();
    let (code, out, err) = mesh.fender(&["apply", "-f", &file.to_string_lossy()]);
    let text = out + &err;
    assert_eq!(code, BAD_INPUT, "{text}");
    assert!(
        text.contains("huge.yaml") && text.contains("4 MiB"),
        "{text}"
    );
    assert_eq!(revision(&mesh), before);
}

#[test]
fn a_dry_run_shows_the_difference_and_changes_nothing() {
    let mesh = Mesh::start(&one_service("1h", free_address(), free_address()));
    let before = revision(&mesh);
    let current = fs::read_to_string(mesh.path("documents/mesh.yaml")).unwrap();
    let wanted = format!(
        "{current}---\napiVersion: fender.dev/v1\nkind: Workload\nmetadata: {{ namespace: shop, name: fresh }}\nspec:\n  attest: [ {{ token: {{}} }} ]\n"
    );
    let file = mesh.path("wanted.yaml");
    fs::write(&file, wanted).unwrap();
    let file = file.to_string_lossy().into_owned();
    let shown = mesh.fender_ok(&["apply", "-f", &file, "--dry-run"]);
    assert!(shown.contains("shop/fresh"), "{shown}");
    assert_eq!(revision(&mesh), before);
    mesh.fender_ok(&["apply", "-f", &file]);
    assert_eq!(revision(&mesh), before + 1);
    mesh.fender_ok(&["token", "create", "shop/fresh"]);
}

#[test]
fn a_control_plane_does_not_start_on_wrong_documents() {
    let directory = tempfile::tempdir().unwrap();
    let documents = directory.path().join("documents");
    fs::create_dir(&documents).unwrap();
    fs::write(
        documents.join("mesh.yaml"),
        "apiVersion: fender.dev/v1\nkind: Mehs\nmetadata: { name: x }\n",
    )
    .unwrap();
    let data = directory.path().join("data");
    let (code, _, err) = fender_tests::process::output(
        fender_tests::binary(),
        &[
            "control",
            "--data-dir",
            &data.to_string_lossy(),
            "--documents",
            &documents.to_string_lossy(),
        ],
    );
    assert_eq!(code, BAD_INPUT, "{err}");
    assert!(err.contains("Mehs") && err.contains("Mesh"), "{err}");
}
