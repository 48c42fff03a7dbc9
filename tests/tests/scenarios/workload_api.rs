//! `fender sidecar --workload-api PATH`: local processes get the workload's identity by the SPIFFE standard, from a client
//! nobody here wrote; and a sidecar gets its own from such a socket.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use fender_tests::process::{PATIENCE, Process, binary, free_address, installed, output};
use fender_tests::python::script;
use fender_tests::vault::Vault;
use fender_tests::{Client, Mesh, Nginx, wait_until};
use serde_json::{Value, json};

pub(crate) const ORDERS: &str = "spiffe://test.internal/ns/shop/sa/orders";
const STRANGER: u32 = 4242;

const WORKLOADS: &str = "apiVersion: fender.dev/v1
kind: Workload
metadata: { namespace: shop, name: orders }
spec: { attest: [ { token: {} } ], dnsNames: [ localhost ] }
";

/// A sidecar that serves its identity at a socket others may reach.
pub(crate) struct Host {
    pub(crate) mesh: Mesh,
    pub(crate) sidecar: Process,
}

impl Host {
    fn start(leaf: &str, flags: &[&str]) -> Self {
        Self::over(&Mesh::documents(leaf, WORKLOADS), flags)
    }

    fn over(documents: &str, flags: &[&str]) -> Self {
        let mesh = Mesh::start(documents);
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(mesh.directory.path(), open).unwrap();
        fs::create_dir(mesh.path("api")).unwrap();
        let sidecar = serving(&mesh, "shop/orders", &mesh.path("api/workload.sock"), flags);
        Self { mesh, sidecar }
    }

    fn socket(&self) -> PathBuf {
        self.mesh.path("api/workload.sock")
    }

    fn ask(&self, arguments: &[&str]) -> Command {
        let mut command = script("workload.py");
        command.arg(self.socket()).args(arguments);
        command
    }
}

/// A sidecar of `workload` that serves the Workload API at `socket`, ready.
pub(crate) fn serving(mesh: &Mesh, workload: &str, socket: &Path, flags: &[&str]) -> Process {
    let token = mesh.token(workload, "5m");
    let mut command = mesh.sidecar_command(workload, Some(&token));
    command.arg("--workload-api").arg(socket).args(flags);
    let log = mesh.path(format!("logs/{}.log", workload.replace('/', "-")));
    let mut process = Process::start(workload, &mut command, &log);
    mesh.wait_ready(workload, &mut process);
    process
}

/// What a script said, in order.
pub(crate) fn said(command: &mut Command) -> Vec<Value> {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{out}{err}");
    out.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

pub(crate) fn only(command: &mut Command) -> Value {
    let mut said = said(command);
    assert_eq!(said.len(), 1, "{said:?}");
    said.remove(0)
}

#[test]
fn an_application_in_python_gets_a_verified_identity_and_sees_it_rotate() {
    let host = Host::start("10s", &[]);
    let svid = only(&mut host.ask(&["svid"]));
    assert_eq!(svid["id"], ORDERS);
    let rotations = said(&mut host.ask(&["rotations", "3"]));
    let serials: Vec<_> = rotations
        .iter()
        .map(|line| line["serial"].as_str().unwrap())
        .collect();
    assert_eq!(serials.len(), 3, "{rotations:?}");
    println!("the stream brought {serials:?}");
}

#[test]
fn an_application_in_python_gets_a_token_and_validates_it_and_nobody_else_takes_it() {
    let host = Host::start("1h", &[]);
    let token = only(&mut host.ask(&["token", "ledger", "mail"]));
    assert_eq!(token["id"], ORDERS);
    assert_eq!(token["header"]["alg"], "ES256");
    let claims = &token["claims"];
    let lives = claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
    assert_eq!(lives, 300, "{claims}");
    let mut audience: Vec<_> = claims["aud"].as_array().unwrap().clone();
    audience.sort_by_key(ToString::to_string);
    assert_eq!(audience, ["ledger", "mail"]);
    // By its own reading, by the API's, and another's identity.
    let refused = token["refused"].as_array().unwrap();
    assert_eq!(refused.len(), 3, "{refused:?}");
}

#[test]
fn whoever_follows_the_keys_of_tokens_sees_them_rotate() {
    let documents =
        Mesh::documents("10s", WORKLOADS).replace("leaf: 10s", "leaf: 10s, jwtKey: 10s");
    let host = Host::over(&documents, &[]);
    let keys = said(&mut host.ask(&["keys", "3"]));
    let keys: Vec<_> = keys
        .iter()
        .filter_map(|line| line["kid"].as_str())
        .collect();
    assert_eq!(keys.len(), 3, "{keys:?}");
    // What signs now is among them, however many there were.
    assert_eq!(only(&mut host.ask(&["token", "ledger"]))["id"], ORDERS);
    println!("the stream brought {keys:?}");
}

/// A process that has its identity and stays.
struct Holder {
    child: Child,
    svid: Value,
}

impl Holder {
    fn start(host: &Host) -> Self {
        let mut child = host
            .ask(&["hold"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let svid = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
        Self { child, svid }
    }

    fn end(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

#[test]
fn every_process_has_a_key_of_its_own_and_none_has_the_proxys() {
    let host = Host::start("1h", &[]);
    let (one, other) = (Holder::start(&host), Holder::start(&host));
    assert_eq!(one.svid["id"], other.svid["id"]);
    assert_ne!(one.svid["key"], other.svid["key"]);
    assert_ne!(one.svid["serial"], other.svid["serial"]);
    let socket = host.mesh.admin_socket("shop/orders");
    let status = host.mesh.fender_ok(&[
        "status",
        "--sidecar",
        &socket.to_string_lossy(),
        "--output",
        "json",
    ]);
    for holder in [&one, &other] {
        let serial = holder.svid["serial"].as_str().unwrap();
        assert!(!status.contains(serial), "{status}");
    }
    one.end();
    other.end();
}

#[test]
fn attack_a_call_without_the_header_is_refused() {
    let host = Host::start("1h", &[]);
    let refused = only(&mut host.ask(&["bare"]));
    assert_eq!(refused["error"], "INVALID_ARGUMENT");
}

/// The roots by Envoy's secret discovery, asked for by curl as another user: its answer, headers and all.
fn as_stranger(host: &Host) -> String {
    let mut child = Command::new(installed("curl"))
        .args(["-s", "-S", "-i", "--http2-prior-knowledge", "--unix-socket"])
        .arg(host.socket())
        .args([
            "-H",
            "content-type: application/grpc",
            "-H",
            "te: trailers",
            "--data-binary",
            "@-",
        ])
        .arg("http://localhost/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets")
        .uid(STRANGER)
        .gid(STRANGER)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One message: the third field, a name.
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"\0\0\0\0\x08\x1a\x06ROOTCA")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
fn attack_another_user_gets_nothing_and_one_that_is_named_does() {
    let host = Host::start("1h", &[]);
    // The socket is its owner's alone.
    let answer = as_stranger(&host);
    assert!(
        answer.contains("Could not connect")
            || answer.contains("Couldn't connect")
            || answer.contains("Failed to connect"),
        "{answer}"
    );
    let mode = fs::metadata(host.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(host);

    // Where others may connect, the kernel still says who they are.
    let host = Host::start("1h", &["--workload-api-uid", "4243"]);
    let answer = as_stranger(&host);
    assert!(
        answer.contains("grpc-status: 7") && !answer.contains("CERTIFICATE"),
        "{answer}"
    );
    assert!(
        host.sidecar.log().contains("uid 4242 is neither"),
        "{}",
        host.sidecar.log()
    );
    assert_eq!(only(&mut host.ask(&["svid"]))["id"], ORDERS);
    drop(host);
    let host = Host::start(
        "1h",
        &["--workload-api-uid", "4243", "--workload-api-uid", "4242"],
    );
    let answer = as_stranger(&host);
    assert!(
        answer.contains("grpc-status: 0") && answer.contains("BEGIN CERTIFICATE"),
        "{answer}"
    );
}

#[test]
fn a_sidecar_from_a_file_does_not_hand_out_its_one_key() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let config = file.path().to_string_lossy().into_owned();
    let (code, _, err) = output(
        binary(),
        &[
            "sidecar",
            "--config",
            &config,
            "--workload-api",
            "/tmp/never.sock",
        ],
    );
    assert_eq!(code, 64, "{err}");
    assert!(err.contains("a key of its own"), "{err}");
}

/// A sidecar alone, whose identity comes from a Workload API.
pub(crate) fn alone(directory: &Path, name: &str, spec: &str) -> Process {
    let config = directory.join(format!("{name}.yaml"));
    let text = format!(
        "apiVersion: fender.dev/v1\nkind: Sidecar\nmetadata: {{ namespace: shop, name: {name} }}\nspec:\n{spec}"
    );
    fs::write(&config, text).unwrap();
    let mut command = Command::new(binary());
    command
        .env_clear()
        .args(["--log", "debug", "sidecar", "--config"])
        .arg(&config);
    let socket = directory.join(format!("{name}-admin.sock"));
    command.arg("--admin-socket").arg(&socket);
    let mut process = Process::start(name, &mut command, &directory.join(format!("{name}.log")));
    process.wait_ready(&socket);
    process
}

fn consumer(host: &Host, listen: SocketAddr, app: SocketAddr) -> Process {
    let spec = format!(
        "  identity: {{ workloadApi: \"unix://{}\" }}\n  inbound: [ {{ listen: \"{listen}\", app: \"{app}\", protocol: http }} ]\n  \
         authorization: {{ default: allow }}\n",
        host.socket().display()
    );
    alone(host.mesh.directory.path(), "consumer", &spec)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_takes_its_identity_from_a_workload_api_and_follows_it_over_an_outage() {
    let home = tempfile::tempdir().unwrap();
    let nginx = Nginx::start(home.path());
    let mut host = Host::start("30s", &[]);
    let listen = free_address();
    let consumer = consumer(&host, listen, nginx.address);
    let client = host.mesh.client(listen);
    let first = leaf(&client).await;
    assert_eq!(client.get("/").await.unwrap().status, 200);
    changed(&client, &first).await;

    // The API goes away; the certificate stays in use, and the next one comes when it is back.
    host.sidecar.kill();
    wait_until("the loss is noticed", PATIENCE, || {
        consumer.log().contains("keeping the certificate in use")
    });
    let kept = leaf(&client).await;
    assert_eq!(client.get("/").await.unwrap().status, 200);
    let mut command = host.mesh.sidecar_command("shop/orders", None);
    command.arg("--workload-api").arg(host.socket());
    let log = host.mesh.path("logs/again.log");
    host.sidecar = Process::start("again", &mut command, &log);
    changed(&client, &kept).await;
    assert!(
        consumer.log().contains("answers again"),
        "{}",
        consumer.log()
    );
}

#[test]
fn a_sidecar_without_a_control_plane_logs_in_to_vault_by_a_token_of_its_workload_api() {
    let mut host = Host::start("1h", &[]);
    let directory = host.mesh.directory.path();
    let vault = Vault::in_the_clear();
    vault.bind_to(ORDERS);
    vault.write("smtp", json!({ "password": "canary-1" }));
    let delivered = host.mesh.path("smtp");
    let spec = format!(
        "  identity: {{ workloadApi: \"unix://{}\" }}\n  credentials: [ smtp ]\n---\n\
         apiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: smtp }}\nspec:\n  \
         source: {{ vault: {{ address: \"{}\", login: {{ jwt: {{ role: orders, svid: {{ audience: vault }} }} }}, \
         kv2: {{ path: smtp, key: password }}, refresh: 1s }} }}\n  maxStale: 1h\n  \
         deliver: [ {{ file: {{ path: \"{}\", storage: disk }} }} ]\n",
        host.socket().display(),
        vault.url(),
        delivered.display()
    );
    let consumer = alone(directory, "tokens", &spec);
    let holds = |value: &str| fs::read_to_string(&delivered).is_ok_and(|it| it == value);
    assert!(holds("canary-1"));
    assert_eq!(vault.shown(), [format!("{ORDERS} vault")]);

    // Nobody signs another: what is delivered stays, and is followed again when somebody does.
    crate::vault::wait_until_grown_up(&vault, "GET secret/data/smtp");
    host.sidecar.kill();
    vault.revoke_all();
    vault.write("smtp", json!({ "password": "canary-2" }));
    wait_until("the loss is noticed", PATIENCE, || {
        consumer.log().contains("a JWT-SVID for a login")
    });
    assert!(holds("canary-1"));
    let mut command = host.mesh.sidecar_command("shop/orders", None);
    command.arg("--workload-api").arg(host.socket());
    let log = host.mesh.path("logs/again.log");
    host.sidecar = Process::start("again", &mut command, &log);
    wait_until("the secret is followed again", PATIENCE, || {
        holds("canary-2")
    });
    assert_eq!(vault.shown().len(), 2);
    let log = consumer.log();
    assert!(!log.contains("canary") && !log.contains("eyJ"), "{log}");
}

#[test]
fn a_sidecar_never_takes_another_identity_than_it_was_told() {
    let host = Host::start("1h", &[]);
    let config = host.mesh.path("other.yaml");
    let text = format!(
        "apiVersion: fender.dev/v1\nkind: Sidecar\nmetadata: {{ namespace: shop, name: other }}\nspec: {{ identity: {{ workloadApi: \"unix://{}\", spiffeId: \"spiffe://test.internal/ns/shop/sa/ledger\" }} }}\n",
        host.socket().display()
    );
    fs::write(&config, text).unwrap();
    let arguments = [
        "sidecar",
        "--start-timeout",
        "1s",
        "--config",
        &config.to_string_lossy(),
    ];
    let (code, _, err) = output(binary(), &arguments);
    assert_eq!(code, 69, "{err}");
    assert!(err.contains(ORDERS) && err.contains("sa/ledger"), "{err}");
}

async fn leaf(client: &Client) -> Vec<u8> {
    let stream = client.connect().await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

async fn changed(client: &Client, before: &[u8]) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while leaf(client).await == before {
        assert!(
            std::time::Instant::now() < deadline,
            "another certificate is served"
        );
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}
