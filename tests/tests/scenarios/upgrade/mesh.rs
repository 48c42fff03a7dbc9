//! An upgrade of a sidecar that has a control plane: one identity, one state directory, two streams for a while.

use std::fs;

use fender_tests::process::{PATIENCE, Process, free_address, output};
use fender_tests::{Mesh, Nginx, binary, wait_until};
use rustix::process::Signal;

fn documents(listen: std::net::SocketAddr, app: std::net::SocketAddr, mesh: &str) -> String {
    Mesh::documents(
        "1h",
        &format!(
            r#"apiVersion: fender.dev/v1
kind: Workload
metadata: {{ namespace: shop, name: orders }}
spec:
  attest: [ {{ token: {{}} }} ]
  dnsNames: [ localhost ]
  drain: 2s
  inbound: [ {{ listen: "{listen}", app: "{app}", protocol: http }} ]
  credentials: [ smtp ]
---
apiVersion: fender.dev/v1
kind: Credential
metadata: {{ namespace: shop, name: smtp }}
spec:
  source: {{ file: {{ path: "{mesh}/secret", via: sidecar }} }}
  deliver: [ {{ file: {{ path: "{mesh}/delivered/smtp", storage: disk }} }} ]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ namespace: shop, name: everybody }}
spec: {{ action: ALLOW, rules: [ {{}} ] }}
"#
        ),
    )
}

/// The sidecars that the control plane sees.
fn connected(mesh: &Mesh) -> Vec<serde_json::Value> {
    let status = mesh.fender_ok(&["status", "--output", "json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    status["workloads"][0]["sidecars"]
        .as_array()
        .unwrap()
        .clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identity_state_and_credentials_pass_to_the_successor_and_nothing_is_asked_for_twice() {
    let files = tempfile::tempdir().unwrap();
    let nginx = Nginx::start(files.path());
    let listen = free_address();
    let home = files.path().to_str().unwrap();
    fs::write(files.path().join("secret"), "hunter2").unwrap();
    fs::create_dir(files.path().join("delivered")).unwrap();
    let mesh = Mesh::start_allowing(&documents(listen, nginx.address, home), files.path());
    let token = mesh.token("shop/orders", "5m");
    let state = mesh.state("shop/orders");
    let api = mesh.path("api/workload.sock");
    fs::create_dir(mesh.path("api")).unwrap();
    let mut command = mesh.sidecar_command("shop/orders", Some(&token));
    command.arg("--allow-dir").arg(files.path());
    command.arg("--workload-api").arg(&api).arg("--supervise");
    let mut process = Process::start("orders", &mut command, &mesh.path("logs/orders.log"));
    mesh.wait_ready("shop/orders", &mut process);
    let client = mesh.client(listen);
    assert_eq!(client.get("/").await.unwrap().status, 200);
    let delivered = files.path().join("delivered/smtp");
    assert_eq!(fs::read_to_string(&delivered).unwrap(), "hunter2");
    let identity = fs::read(state.join("svid.pem")).unwrap();
    let first = connected(&mesh);
    assert_eq!(first.len(), 1);

    let socket = state.join("upgrade.sock");
    let socket = socket.to_str().unwrap();
    let (code, out, err) = output(binary(), &["upgrade", "--sidecar", socket]);
    assert_eq!(code, 0, "{out}{err}\n{}", process.log());

    // The same certificate, and one issuance on record.
    assert_eq!(client.get("/").await.unwrap().status, 200);
    assert_eq!(fs::read(state.join("svid.pem")).unwrap(), identity);
    let serial = |sidecar: &serde_json::Value| sidecar["certificate_serial"].clone();
    wait_until("the control plane sees the successor", PATIENCE, || {
        connected(&mesh)
            .iter()
            .any(|it| it["instance"] != first[0]["instance"])
    });
    for sidecar in connected(&mesh) {
        assert_eq!(serial(&sidecar), serial(&first[0]), "{sidecar}");
        assert_eq!(sidecar["nack"], "", "{sidecar}");
    }
    // Both are there while the one before drains; then the successor is alone.
    wait_until("the one before is gone from the status", PATIENCE, || {
        let now = connected(&mesh);
        now.len() == 1 && now[0]["instance"] != first[0]["instance"]
    });
    let ended = || process.log().contains("the proxy before has ended");
    wait_until("the one before has ended", PATIENCE, ended);
    assert_eq!(
        fs::read_to_string(&delivered).unwrap(),
        "hunter2",
        "it is the successor's"
    );
    assert!(
        !process.log().contains("removed a credential's file"),
        "{}",
        process.log()
    );

    // What is at the socket of the Workload API is the successor.
    std::os::unix::net::UnixStream::connect(&api).unwrap();
    // The successor has the lock, and nobody else gets in.
    let mut second = mesh.start_sidecar("shop/orders", None, &[]);
    assert_eq!(second.wait(PATIENCE).code(), Some(64));
    assert!(
        second.log().contains("in use by another sidecar"),
        "{}",
        second.log()
    );

    // A successor of the successor, and an ordinary end.
    let (code, out, err) = output(binary(), &["upgrade", "--sidecar", socket]);
    assert_eq!(code, 0, "{out}{err}\n{}", process.log());
    process.signal(Signal::TERM);
    assert_eq!(process.wait(PATIENCE).code(), Some(0), "{}", process.log());
    assert!(!delivered.exists(), "the last one wipes it");
    // The state is whole: it starts from there, without a token.
    let mut command = mesh.sidecar_command("shop/orders", None);
    command.arg("--allow-dir").arg(files.path());
    let mut again = Process::start("again", &mut command, &mesh.path("logs/again.log"));
    mesh.wait_ready("shop/orders", &mut again);
}
