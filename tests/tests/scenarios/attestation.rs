//! Whom others vouch for, with real processes: a cluster's service accounts by its keys and by its API, and the holders of
//! another authority's certificates; workloads and agents alike (DESIGN I5). And what an administrator takes back.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use fender_tests::mesh::TRUST_DOMAIN;
use fender_tests::pki::{Authority, Template};
use fender_tests::process::{PATIENCE, Process};
use fender_tests::{Mesh, python, wait_until};

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
const UNAVAILABLE: i32 = 69;
const REFUSED: i32 = 77;

/// A mesh whose documents refer to files beside it, which are there before it starts.
struct World {
    mesh: Mesh,
    files: tempfile::TempDir,
}

/// A cluster, by a directory with its key.
struct Cluster(PathBuf);

impl Cluster {
    fn new(directory: PathBuf) -> Self {
        fs::create_dir(&directory).unwrap();
        let cluster = Self(directory);
        cluster.run(&["keys"]);
        cluster
    }

    fn run(&self, arguments: &[&str]) -> String {
        let mut command = python::script("cluster.py");
        let output = command.arg(&self.0).args(arguments).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    fn token(&self, file: &Path, changes: &[&str]) -> PathBuf {
        let token = self.run(&[&["token"], changes].concat());
        fs::write(file, token).unwrap();
        file.to_owned()
    }
}

/// A cluster's API as a process, until it is dropped.
struct Api {
    process: Child,
    port: u16,
}

impl Api {
    fn start(cluster: &Cluster, directory: &Path) -> (Self, Authority) {
        let authority = Authority::new("cluster.internal");
        let mut template = Template::svid("spiffe://cluster.internal/api");
        template.dns = vec!["localhost".to_owned()];
        authority.issue(&template).write(directory);
        let mut process = python::script("cluster.py")
            .arg(&cluster.0)
            .arg("serve")
            .arg(directory.join("certificate.pem"))
            .arg(directory.join("key.pem"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        let port = line.trim().parse().unwrap();
        (Self { process, port }, authority)
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn documents(vouching: &str, rest: &str) -> String {
    format!(
        "apiVersion: fender.dev/v1\nkind: Mesh\nmetadata: {{ name: test }}\nspec:\n  trustDomain: {TRUST_DOMAIN}\n{vouching}\n{rest}"
    )
}

fn workload(name: &str, attest: &str) -> String {
    format!(
        "---\napiVersion: fender.dev/v1\nkind: Workload\nmetadata: {{ namespace: shop, name: {name} }}\nspec: {{ attest: [ {attest} ] }}\n"
    )
}

fn by_file(cluster: &Cluster) -> String {
    format!(
        "  kubernetes: [ {{ name: east, issuer: {ISSUER}, audience: fender, jwks: {{ file: {} }} }} ]",
        cluster.0.join("jwks.json").display()
    )
}

const ORDERS: &str = "{ kubernetes: { cluster: east, namespace: shop, serviceAccount: orders } }";

impl World {
    fn start(documents: impl FnOnce(&Path) -> String) -> Self {
        let files = tempfile::Builder::new()
            .prefix("fender-test-")
            .tempdir()
            .unwrap();
        let text = documents(files.path());
        Self {
            mesh: Mesh::start_allowing(&text, files.path()),
            files,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// `fender exec` as `shop/orders`, with this evidence; its exit code and all it wrote.
    fn exec(&self, flags: &[&str], patience: &str) -> (i32, String) {
        self.run("exec", flags, patience)
    }

    /// The same by `fender sidecar`, which sees no file but those it is told of.
    fn confined(&self, flags: &[&str]) -> (i32, String) {
        self.run("sidecar", flags, "60s")
    }

    fn run(&self, command: &str, flags: &[&str], patience: &str) -> (i32, String) {
        let bundle = self.mesh.path("control/admin/bundle.pem");
        let output = self
            .mesh
            .command()
            .env_remove("FENDER_ADMIN")
            .args([
                command,
                "--workload",
                "shop/orders",
                "--trust-domain",
                TRUST_DOMAIN,
            ])
            .arg("--bundle")
            .arg(bundle)
            .args(["--start-timeout", patience])
            .args(flags)
            .args(["--", "/bin/true"])
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.code().unwrap_or(-1),
            String::from_utf8_lossy(&text).into_owned(),
        )
    }

    fn with_token(&self, token: &Path) -> (i32, String) {
        self.exec(
            &["--kubernetes-token-file", &token.to_string_lossy()],
            "60s",
        )
    }

    fn with_certificate(&self, directory: &Path) -> (i32, String) {
        let file = |name: &str| directory.join(name).to_string_lossy().into_owned();
        let (certificate, key) = (file("certificate.pem"), file("key.pem"));
        self.exec(
            &["--x509-certificate", &certificate, "--x509-key", &key],
            "60s",
        )
    }
}

#[track_caller]
fn assert_refused((code, text): (i32, String), why: &str) {
    assert_eq!(code, REFUSED, "{why}: {text}");
    assert!(text.contains("error[evidence-refused]"), "{why}: {text}");
}

#[test]
fn a_service_account_attests_by_its_clusters_keys_and_nobody_else_does() {
    let world = World::start(|files| {
        let cluster = Cluster::new(files.join("east"));
        documents(&by_file(&cluster), &workload("orders", ORDERS))
    });
    let east = Cluster(world.path("east"));
    let file = world.path("token");
    let (code, text) = world.with_token(&east.token(&file, &[]));
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("spiffe://test.internal/ns/shop/sa/orders"),
        "{text}"
    );
    let token = file.to_string_lossy();
    let (code, text) = world.confined(&["--kubernetes-token-file", &token]);
    assert_eq!(code, 0, "{text}");
    for (changes, why) in [
        (&["audience=vault"], "another audience"),
        (&["expires=-120"], "expired"),
        (&["account=shop:inventory"], "another service account"),
        (&["account=web:orders"], "another namespace"),
    ] {
        assert_refused(world.with_token(&east.token(&file, changes)), why);
    }
    let west = Cluster::new(world.path("west"));
    assert_refused(world.with_token(&west.token(&file, &[])), "another cluster");
}

#[test]
fn a_service_account_attests_by_its_clusters_api_which_knows_of_deleted_pods() {
    let mut api = None;
    let world = World::start(|files| {
        let cluster = Cluster::new(files.join("east"));
        let (started, authority) = Api::start(&cluster, &files.join("api"));
        let roots = authority.write_bundle(&files.join("api-roots"));
        fs::write(files.join("reviewer"), "reviewer\n").unwrap();
        let vouching = format!(
            "  kubernetes: [ {{ name: east, issuer: {ISSUER}, audience: fender, tokenReview: {{ \
             api: \"https://localhost:{}\", roots: {{ file: {} }}, token: {{ file: {} }} }} }} ]",
            started.port,
            roots.display(),
            files.join("reviewer").display()
        );
        api = Some(started);
        documents(&vouching, &workload("orders", ORDERS))
    });
    let east = Cluster(world.path("east"));
    let token = east.token(&world.path("token"), &[]);
    let (code, text) = world.with_token(&token);
    assert_eq!(code, 0, "{text}");
    let other = east.token(&world.path("other"), &["account=shop:inventory"]);
    assert_refused(world.with_token(&other), "another service account");
    fs::write(world.path("east/deleted"), "orders-7d9").unwrap();
    assert_refused(world.with_token(&token), "its pod is deleted");
    // Without an answer nobody is vouched for, and it is asked again until there is no time left.
    drop(api);
    let flags = ["--kubernetes-token-file", &token.to_string_lossy()];
    let (code, text) = world.exec(&flags, "3s");
    assert_eq!(code, UNAVAILABLE, "{text}");
    assert!(text.contains("error[unavailable]"), "{text}");
}

#[test]
fn the_holder_of_another_authoritys_certificate_attests_and_nobody_else_does() {
    let corporate = Authority::new("corporate.internal");
    let world = World::start(|files| {
        let roots = corporate.write_bundle(&files.join("roots"));
        let vouching = format!(
            "  x509: [ {{ name: corporate, roots: {{ file: {} }} }} ]",
            roots.display()
        );
        let attest = "{ x509: { authority: corporate, uri: \"urn:acme:orders\" } }";
        documents(&vouching, &workload("orders", attest))
    });
    let held = |name: &str, authority: &Authority, template: &Template| {
        let directory = world.path(name);
        authority.issue(template).write(&directory);
        directory
    };
    let orders = Template::svid("urn:acme:orders");
    let good = held("good", &corporate, &orders);
    let (code, text) = world.with_certificate(&good);
    assert_eq!(code, 0, "{text}");
    let file = |name: &str| good.join(name).to_string_lossy().into_owned();
    let (certificate, key) = (file("certificate.pem"), file("key.pem"));
    let (code, text) = world.confined(&["--x509-certificate", &certificate, "--x509-key", &key]);
    assert_eq!(code, 0, "{text}");
    let other = Authority::new("corporate.internal");
    let expired = Template {
        begins: -7200,
        ends: -60,
        ..orders.clone()
    };
    let web = Template::svid("urn:acme:web");
    for (name, authority, template, why) in [
        (
            "other",
            &other,
            &orders,
            "another authority of the same name",
        ),
        ("expired", &corporate, &expired, "expired"),
        ("web", &corporate, &web, "another subject"),
    ] {
        assert_refused(
            world.with_certificate(&held(name, authority, template)),
            why,
        );
    }
}

#[test]
fn an_agent_attests_by_its_pods_token_on_its_node_and_is_revoked_with_all_it_obtained() {
    let world = World::start(|files| {
        let cluster = Cluster::new(files.join("east"));
        let node = "---\napiVersion: fender.dev/v1\nkind: Node\nmetadata: { name: edge-1 }\nspec:\n  attest: \
                    [ { kubernetes: { cluster: east, namespace: fender, serviceAccount: agent, node: node-a } } ]\n";
        let rest = [
            node.to_owned(),
            workload("orders", "{ unix: { node: edge-1, uid: 0 } }"),
        ];
        documents(&by_file(&cluster), &rest.concat())
    });
    let mesh = &world.mesh;
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(mesh.directory.path(), open).unwrap();
    fs::create_dir(mesh.path("run")).unwrap();
    let socket = mesh.path("run/agent.sock");
    let east = Cluster(world.path("east"));
    let agent = |name: &str, token: &Path| {
        let mut command = mesh.command();
        command
            .env_remove("FENDER_ADMIN")
            .args(["--log-format", "json", "agent", "--node", "edge-1"])
            .args(["--trust-domain", TRUST_DOMAIN, "--bundle"])
            .arg(mesh.path("control/admin/bundle.pem"))
            .arg("--kubernetes-token-file")
            .arg(token)
            .arg("--state")
            .arg(mesh.path(name))
            .arg("--socket")
            .arg(&socket);
        Process::start(name, &mut command, &mesh.path(format!("logs/{name}.log")))
    };
    // The agents of all nodes are one service account: the node in the token tells them apart.
    let account = "account=fender:agent";
    let elsewhere = east.token(&world.path("token-b"), &[account, "node=node-b"]);
    let mut posing = agent("posing", &elsewhere);
    assert_eq!(
        posing.wait(PATIENCE).code(),
        Some(REFUSED),
        "{}",
        posing.log()
    );

    let here = east.token(&world.path("token-a"), &[account]);
    let mut running = agent("agent", &here);
    wait_until("the agent is ready", PATIENCE, || {
        running.assert_running();
        socket.exists()
    });
    let become_orders = || {
        let output = mesh
            .command()
            .env_remove("FENDER_ADMIN")
            .args(["exec", "--start-timeout", "60s", "--agent"])
            .arg(&socket)
            .args(["--", "/bin/true"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code().unwrap_or(-1), text)
    };
    let (code, text) = become_orders();
    assert_eq!(code, 0, "{text}\n{}", running.log());

    let revoked = mesh.fender_ok(&["revoke", "node", "edge-1", "--reason", "host broken into"]);
    assert!(revoked.starts_with("revoked: node edge-1"), "{revoked}");
    assert!(revoked.contains("2 certificates"), "{revoked}");
    let listed = mesh.fender_ok(&["revocations"]);
    assert!(
        listed.contains("node edge-1") && listed.contains("host broken into"),
        "{listed}"
    );
    let (code, text) = become_orders();
    assert_ne!(code, 0, "{text}");
    let again = mesh.fender(&["revoke", "node", "edge-1", "--reason", "twice"]);
    assert_eq!(again.0, 66, "{again:?}");
}

#[test]
fn an_administrator_sees_which_tokens_are_out_and_takes_them_back() {
    let mesh = Mesh::start(&Mesh::documents(
        "1h",
        &workload("orders", "{ token: {} }").replacen("---\n", "", 1),
    ));
    assert_eq!(
        mesh.fender_ok(&["token", "list"]),
        "no join token is waiting to be used\n"
    );
    let (one, two) = (
        mesh.token("shop/orders", "5m"),
        mesh.token("shop/orders", "5m"),
    );
    let listed = mesh.fender_ok(&[
        "token",
        "list",
        "--workload",
        "shop/orders",
        "--output",
        "json",
    ]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let ids: Vec<_> = listed["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| token["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids.len(), 2);
    for file in [&one, &two] {
        let secret = fs::read_to_string(file).unwrap();
        assert!(!listed.to_string().contains(secret.trim()));
    }
    let taken = mesh.fender_ok(&["token", "revoke", &ids[0]]);
    assert_eq!(taken, "1 join token revoked\n");
    let (code, _, text) = mesh.fender(&["token", "revoke", &ids[0]]);
    assert_eq!(code, 66, "{text}");
    let (code, _, text) = mesh.fender(&["token", "revoke"]);
    assert_eq!(code, 64, "{text}");
    let rest = mesh.fender_ok(&["token", "revoke", "--workload", "shop/orders"]);
    assert_eq!(rest, "1 join token revoked\n");
    for token in [&one, &two] {
        let mut sidecar = mesh.start_sidecar("shop/orders", Some(token), &[]);
        assert_eq!(sidecar.wait(PATIENCE).code(), Some(REFUSED));
        assert!(sidecar.log().contains("revoked"), "{}", sidecar.log());
    }
}
