//! No key, token or credential in anything a run writes, and every secret file is its owner's only.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use fender_tests::process::free_address;
use fender_tests::{Mesh, Nginx, Process};

use crate::control_loss::one_service;
use crate::telemetry::get;

const CANARY: &str = "canary-5f1d9c7a-secret";

#[tokio::test]
async fn a_run_at_debug_level_writes_no_secret_anywhere_but_where_it_belongs() {
    let nginx_home = tempfile::tempdir().unwrap();
    let nginx = Nginx::start(nginx_home.path());
    let listen = free_address();
    let mesh = Mesh::start(&one_service("30s", listen, nginx.address));
    fs::write(mesh.path("source"), CANARY).unwrap();
    fs::create_dir(mesh.path("delivered")).unwrap();
    let documents = fs::read_to_string(mesh.path("documents/mesh.yaml"))
        .unwrap()
        .replace(
            "  dnsNames: [ localhost ]\n",
            "  dnsNames: [ localhost ]\n  credentials: [ canary ]\n",
        )
        + &format!(
            "---\napiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: canary }}\nspec:\n  \
         source: {{ file: {{ path: \"{}\", via: control }} }}\n  deliver: [ {{ file: {{ path: \"{}\", mode: \"0400\", storage: disk }} }} ]\n",
            mesh.path("source").display(),
            mesh.path("delivered/canary").display()
        );
    assert_eq!(mesh.apply(&documents).0, 0);
    let token = mesh.token("shop/orders", "5m");
    let token_text = fs::read_to_string(&token).unwrap();
    let token_secret = token_text.trim().rsplit_once('.').unwrap().1.to_owned();
    let mut sidecar = mesh.start_sidecar("shop/orders", Some(&token), &[]);
    mesh.wait_ready("shop/orders", &mut sidecar);

    let client = mesh.client(listen);
    assert_eq!(
        client
            .get("/page?token=query-canary-77")
            .await
            .unwrap()
            .status,
        200
    );
    let reader = mesh.fender_ok(&["status"]);
    let socket = mesh.admin_socket("shop/orders");
    let local = mesh.fender_ok(&[
        "status",
        "--sidecar",
        &socket.to_string_lossy(),
        "--output",
        "json",
    ]);

    let outputs = ["/metrics", "/livez", "/readyz", "/startupz"].map(|path| get(&socket, path).1);
    assert!(
        outputs[0].contains("fender_requests_total"),
        "metrics were looked at"
    );

    // While everything runs, so that nothing has been tidied away.
    let mut secrets: Vec<Vec<u8>> = [CANARY, &token_secret, "query-canary-77"]
        .map(|text| text.into())
        .to_vec();
    let keys: Vec<_> = files(mesh.directory.path())
        .into_iter()
        .filter(|file| is_key(file))
        .collect();
    for key in &keys {
        assert_eq!(mode(key), 0o600, "{}", key.display());
        secrets.push(key_material(&fs::read(key).unwrap()));
    }
    let names: Vec<_> = keys
        .iter()
        .map(|key| key.strip_prefix(mesh.directory.path()).unwrap().to_owned())
        .collect();
    for expected in [
        "control/admin/key.pem",
        "control/key",
        "person-tester/key.pem",
    ] {
        assert!(
            names.contains(&expected.into()),
            "{expected} was looked at: {names:?}"
        );
    }
    assert!(
        names
            .iter()
            .any(|name| name.starts_with("state-shop-orders")),
        "the sidecar's key was looked at: {names:?}"
    );
    let belongs = [mesh.path("source"), mesh.path("delivered/canary")];
    for file in files(mesh.directory.path()) {
        if belongs.contains(&file) || is_key(&file) {
            continue;
        }
        assert_free_of(
            &file.display().to_string(),
            &fs::read(&file).unwrap(),
            &secrets,
        );
    }
    assert_free_of("status", reader.as_bytes(), &secrets);
    assert_free_of("sidecar status", local.as_bytes(), &secrets);
    for output in outputs {
        assert_free_of("health and metrics", output.as_bytes(), &secrets);
    }
    assert_free_of("command line", &command_line(&sidecar), &secrets);

    for private in ["control", "control/admin", "state-shop-orders"] {
        assert_eq!(mode(&mesh.path(private)), 0o700, "{private}");
    }
    assert_eq!(mode(&mesh.path("delivered/canary")), 0o400);
}

/// Enough of a key to recognise it by, without the PEM around it.
fn key_material(bytes: &[u8]) -> Vec<u8> {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.contains("-----BEGIN PRIVATE KEY-----") => {
            let (_, key) = text.split_once("-----BEGIN PRIVATE KEY-----").unwrap();
            let body: String = key
                .lines()
                .take_while(|line| !line.starts_with("-----"))
                .collect();
            // The first bytes say only what kind of key follows.
            body.chars()
                .skip(64)
                .take(32)
                .collect::<String>()
                .into_bytes()
        }
        _ => bytes.iter().copied().take(32).collect(),
    }
}

/// The control plane's `key`, everybody's `key.pem`, and the certificate with its key that a sidecar
/// keeps in its state.
fn is_key(file: &Path) -> bool {
    let name = file
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    name.starts_with("key") || name == "svid.pem"
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn assert_free_of(what: &str, bytes: &[u8], secrets: &[Vec<u8>]) {
    for secret in secrets {
        assert!(secret.len() >= 12, "a secret worth searching for");
        let found = bytes.windows(secret.len()).any(|window| window == secret);
        assert!(!found, "{what} holds a secret of {} bytes", secret.len());
    }
}

fn command_line(process: &Process) -> Vec<u8> {
    fs::read(format!("/proc/{}/cmdline", process.pid())).unwrap()
}

/// Every regular file below a directory, links not followed.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(files(&entry.path()));
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    found
}
