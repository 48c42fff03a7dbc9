//! The Workload API and Envoy's SDS at the agent's socket: every process of a host gets what it is, with a key of its own,
//! and nothing when it is nobody any more (DESIGN I2, I4, I5, I6).

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use fender_tests::client::certificates;
use fender_tests::docker::Engine;
use fender_tests::process::{PATIENCE, Process, free_address, installed};
use fender_tests::python::script;
use fender_tests::{Client, Mesh, Nginx, wait_until};
use serde_json::Value;

use crate::agent::{Host, ORDERS, REFUSED, STRANGER, image, node, node_token, sha256, workload};
use crate::envoy::{Envoy, get};
use crate::workload_api::{alone, only, said};

const ORDERS_ID: &str = "spiffe://test.internal/ns/shop/sa/orders";

fn orders() -> String {
    workload("orders", "{ unix: { node: edge-1, uid: 4301 } }")
}

/// The application in Python, as a user.
fn asking(host: &Host, uid: u32, arguments: &[&str]) -> Command {
    let mut command = script("workload.py");
    command
        .arg(host.socket())
        .args(arguments)
        .env("AS_USER", uid.to_string());
    command
}

#[test]
fn an_application_in_python_is_who_its_user_is_and_sees_its_certificate_rotate() {
    let host = Host::start_with("10s", &orders(), &[]);
    let svid = only(&mut asking(&host, ORDERS, &["svid"]));
    assert_eq!(svid["id"], ORDERS_ID, "{}", host.agent.log());
    let rotations = said(&mut asking(&host, ORDERS, &["rotations", "3"]));
    let serials: Vec<_> = rotations
        .iter()
        .map(|line| line["serial"].as_str().unwrap())
        .collect();
    assert_eq!(serials.len(), 3, "{rotations:?}\n{}", host.agent.log());
    println!("the stream brought {serials:?}");
}

#[test]
fn an_application_in_python_has_tokens_as_what_it_is_attested_to_be() {
    let host = Host::start(&orders(), &[]);
    let token = only(&mut asking(&host, ORDERS, &["token", "ledger"]));
    assert_eq!(token["id"], ORDERS_ID, "{token}\n{}", host.agent.log());
    assert_eq!(token["claims"]["sub"], ORDERS_ID, "{token}");
    assert_eq!(token["refused"].as_array().unwrap().len(), 3, "{token}");
    let refused = asking(&host, STRANGER, &["token", "ledger"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert!(!out.contains("claims"), "{out}");
    assert!(host.agent.log().contains("its uid is 4302, not 4301"));
}

#[test]
fn attack_another_user_and_another_program_get_nothing_and_both_logs_say_why() {
    let shell = fs::canonicalize(installed("sh")).unwrap();
    let attest = format!(
        "{{ unix: {{ node: edge-1, uid: 4303, sha256: {} }} }}",
        sha256(&shell)
    );
    let mut host = Host::start(&[orders(), workload("shell", &attest)].concat(), &[]);
    for (uid, why) in [
        (STRANGER, "its uid is 4302, not 4301"),
        (4303, "the sha256 of its program is "),
    ] {
        let refused = only(&mut asking(&host, uid, &["svid"]));
        assert_eq!(refused["error"], "PERMISSION_DENIED", "{refused}");
        assert!(!refused.to_string().contains("uid"), "{refused}");
        let (agent, control) = (host.agent.log(), host.mesh.control_process().log());
        assert!(agent.contains(why), "{agent}");
        assert!(control.contains(why), "{control}");
    }
    let bare = only(&mut asking(&host, ORDERS, &["bare"]));
    assert_eq!(bare["error"], "INVALID_ARGUMENT");
}

/// What an application hears on its stream.
struct Follower {
    child: Child,
    lines: BufReader<ChildStdout>,
    last: Value,
}

impl Follower {
    fn start(host: &Host, uid: u32) -> Self {
        let mut child = asking(host, uid, &["follow"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            lines,
            last: Value::Null,
        }
    }

    /// The next thing it hears of itself; a new list of the revoked is none.
    fn next(&mut self) -> Value {
        loop {
            let mut line = String::new();
            self.lines.read_line(&mut line).unwrap();
            let heard: Value =
                serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
            if heard != self.last {
                self.last = heard.clone();
                return heard;
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_documents_and_revocations_say_reaches_an_open_stream() {
    let host = Host::start(&orders(), &[]);
    let mut follower = Follower::start(&host, ORDERS);
    let first = follower.next();
    assert_eq!(first["ids"], serde_json::json!([ORDERS_ID]), "{first}");

    let more = workload("web", "{ unix: { node: edge-1, uid: 4301 } }");
    let nodes = [node("edge-1"), node("edge-2")].concat();
    let documents = |rest: &[String]| Mesh::documents("1h", &[&nodes, &*rest.concat()].concat());
    let (code, out, err) = host.mesh.apply(&documents(&[orders(), more.clone()]));
    assert_eq!(code, 0, "{out}{err}");
    let second = follower.next();
    let web = "spiffe://test.internal/ns/shop/sa/web";
    assert_eq!(
        second["ids"],
        serde_json::json!([ORDERS_ID, web]),
        "{second}"
    );
    assert_eq!(
        second["serials"][0], first["serials"][0],
        "it is good still"
    );

    host.mesh
        .fender_ok(&["revoke", "workload", "shop/web", "--reason", "stolen"]);
    let third = follower.next();
    assert_eq!(third["error"], "PERMISSION_DENIED", "{third}");

    // Whoever asks now is attested anew; then there is nobody left to be.
    let mut follower = Follower::start(&host, ORDERS);
    let again = follower.next();
    assert_ne!(again["serials"], second["serials"], "{again}");
    let elsewhere = workload("orders", "{ unix: { node: edge-2, uid: 4301 } }");
    let more = workload("web", "{ unix: { node: edge-2, uid: 4301 } }");
    let (code, out, err) = host.mesh.apply(&documents(&[elsewhere, more]));
    assert_eq!(code, 0, "{out}{err}");
    let last = follower.next();
    assert_eq!(last["error"], "PERMISSION_DENIED", "{last}");
}

#[test]
fn attack_a_request_that_somebody_is_made_to_send_is_not_answered_by_the_agents_own_protocol() {
    let host = Host::start(&orders(), &[]);
    let ask = |headers: &[&str]| {
        let mut command = Command::new(installed("curl"));
        command
            .args(["-s", "-S", "-i", "--http2-prior-knowledge", "--unix-socket"])
            .arg(host.socket())
            .args(["-H", "content-type: application/grpc", "-H", "te: trailers"]);
        for header in headers {
            command.args(["-H", header]);
        }
        let mut child = command
            .args(["--data-binary", "@-"])
            .arg("http://localhost/fender.agent.v1.Agent/Identities")
            .uid(ORDERS)
            .gid(ORDERS)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // One empty message.
        child
            .stdin
            .take()
            .unwrap()
            .write_all(b"\0\0\0\0\0")
            .unwrap();
        let output = child.wait_with_output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let without = ask(&[]);
    assert!(without.contains("agent.fender.dev"), "{without}");
    assert!(!without.contains(ORDERS_ID), "{without}");
    let with = ask(&["agent.fender.dev: true"]);
    assert!(with.contains(ORDERS_ID), "{with}");
}

#[test]
fn a_real_envoy_has_its_secrets_from_the_agent_and_does_mutual_tls_with_a_sidecar() {
    let orders = free_address();
    let caller = free_address();
    let directory = tempfile::tempdir().unwrap();
    let nginx = Nginx::start(directory.path());
    let documents = format!(
        r#"---
apiVersion: fender.dev/v1
kind: Workload
metadata: {{ namespace: shop, name: orders }}
spec:
  attest: [ {{ token: {{}} }} ]
  inbound: [ {{ listen: "{orders}", app: "{}", protocol: http }} ]
---
apiVersion: fender.dev/v1
kind: Workload
metadata: {{ namespace: shop, name: envoy }}
spec: {{ attest: [ {{ unix: {{ node: edge-1, uid: 0, path: "{}" }} }} ], dnsNames: [ localhost ] }}
---
apiVersion: fender.dev/v1
kind: Workload
metadata: {{ namespace: shop, name: caller }}
spec: {{ attest: [ {{ unix: {{ node: edge-1, uid: 0, path: "{}" }} }} ] }}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ namespace: shop, name: envoy-may-call-orders }}
spec: {{ action: ALLOW, rules: [ {{ from: [ {{ source: {{ serviceAccounts: [ shop/envoy ] }} }} ] }} ] }}
"#,
        nginx.address,
        fs::canonicalize(fender_tests::python::envoy())
            .unwrap()
            .display(),
        fs::canonicalize(fender_tests::process::binary())
            .unwrap()
            .display(),
    );
    let host = Host::start_with("20s", &documents, &[]);
    let mesh = &host.mesh;
    let _sidecar = mesh.sidecar("shop/orders", &[]);
    let envoy = Envoy::start(mesh, &host.socket(), orders, nginx.address);
    let spec = format!(
        "  identity: {{ workloadApi: \"unix:{}\" }}\n  outbound: [ {{ listen: \"{caller}\", connect: \"{}\", expect: \"spiffe://test.internal/ns/shop/sa/envoy\", protocol: http }} ]\n",
        host.socket().display(),
        envoy.inbound,
    );
    let _ambassador = alone(mesh.directory.path(), "ambassador", &spec);
    // Envoy calls a sidecar, and a sidecar calls Envoy; each over several certificates.
    let began = std::time::Instant::now();
    let (mut answered, mut rotations) = (0, 0);
    while rotations < 3 {
        assert!(
            began.elapsed() < PATIENCE,
            "{rotations} certificates reached Envoy"
        );
        for (way, address) in [("out", envoy.outbound), ("in", caller)] {
            let (status, answer) = get(address, "/").unwrap();
            assert_eq!(status, 200, "{way}: {answer}\n{}", host.agent.log());
            answered += 1;
        }
        rotations = envoy.count("sds.default.update_success");
    }
    println!("{answered} requests answered over {rotations} certificates, none failed");
    // Without a certificate of the mesh, Envoy lets nobody in.
    let roots = certificates(&mesh.person("reader").join("bundle.pem"));
    let anonymous = Client::new(&roots, None, envoy.inbound);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    assert!(runtime.block_on(anonymous.get("/")).is_err());
}

#[test]
fn a_container_has_its_identity_by_the_workload_api_and_a_copied_label_does_not() {
    let engine = Engine::start();
    let flag = format!("unix://{}", engine.socket().display());
    let mut host = Host::start("", &["--docker", &flag]);
    let meant = image(&engine, &host.mesh, "meant");
    image(&engine, &host.mesh, "other");
    let attest = format!(
        "{{ docker: {{ node: edge-1, image: '{meant}', labels: {{ service: orders }} }} }}"
    );
    let documents = [
        Mesh::documents("1h", ""),
        node("edge-1"),
        node("edge-2"),
        workload("orders", &attest),
    ];
    let (code, out, err) = host.mesh.apply(&documents.concat());
    assert_eq!(code, 0, "{out}{err}");
    let config = "apiVersion: fender.dev/v1\nkind: Sidecar\nmetadata: { namespace: shop, name: orders }\n\
                  spec: { identity: { workloadApi: 'unix:///run/fender/agent.sock' } }\n";
    fs::write(host.mesh.path("run/alone.yaml"), config).unwrap();
    let volume = format!("{}:/run/fender", host.mesh.path("run").display());
    let run = |image: &str, name: &str| {
        let arguments = [
            "run",
            "--detach",
            "--name",
            name,
            "--volume",
            &volume,
            "--label",
            "service=orders",
            image,
            "sidecar",
            "--config",
            "/run/fender/alone.yaml",
            "--admin-socket",
            "/admin.sock",
            "--start-timeout",
            "15s",
        ];
        let (code, out, err) = engine.docker(&arguments);
        assert_eq!(code, 0, "{out}{err}");
    };
    let logs = |name: &str| {
        let (_, out, err) = engine.docker(&["logs", name]);
        out + &err
    };
    run("meant", "one");
    wait_until("the container has its identity", PATIENCE, || {
        logs("one").contains(ORDERS_ID)
    });
    run("other", "two");
    let (code, out, err) = engine.docker(&["wait", "two"]);
    assert_eq!(code, 0, "{err}");
    let text = logs("two");
    assert_eq!(out.trim(), REFUSED.to_string(), "{text}");
    assert!(!text.contains(ORDERS_ID), "{text}");
    for log in [host.agent.log(), host.mesh.control_process().log()] {
        assert!(log.contains("its image is"), "{log}");
    }
    let (code, out, err) = engine.docker(&["rm", "--force", "one", "two"]);
    assert_eq!(code, 0, "{out}{err}");
}

#[test]
fn one_process_is_control_plane_and_agent_of_one_machine() {
    let mesh = Mesh::start(&Mesh::documents("1h", &[node("edge-1"), orders()].concat()));
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(mesh.directory.path(), open).unwrap();
    let mut mesh = mesh;
    mesh.stop_control();
    let socket = mesh.path("agent.sock");
    let start = |mesh: &Mesh, node: &str| {
        let mut command = mesh.command();
        command
            .args(["--log-format", "json", "control", "--data-dir"])
            .arg(mesh.path("control"))
            .args(["--listen", &mesh.control.to_string(), "--node", node])
            .arg("--agent-socket")
            .arg(&socket);
        Process::start("control", &mut command, &mesh.path("logs/embedded.log"))
    };
    let ask = |path: &Path| {
        let mut command = script("workload.py");
        command
            .arg(path)
            .arg("svid")
            .env("AS_USER", ORDERS.to_string());
        only(&mut command)
    };
    for _ in 0..2 {
        let mut process = start(&mesh, "edge-1");
        wait_until("the agent is ready", PATIENCE, || {
            process.assert_running();
            socket.exists()
        });
        assert_eq!(ask(&socket)["id"], ORDERS_ID, "{}", process.log());
        process.signal(rustix::process::Signal::TERM);
        assert!(process.wait(PATIENCE).success(), "{}", process.log());
        fs::remove_file(&socket).unwrap();
    }
    // The second time it was who it had been.
    let mut process = start(&mesh, "edge-1");
    wait_until("the control plane answers", PATIENCE, || {
        process.assert_running();
        mesh.fender(&["status"]).0 == 0
    });
    let log = mesh.fender_ok(&["audit-log", "list"]);
    assert_eq!(log.matches("create-token").count(), 1, "{log}");
    drop(process);
    // Another machine is another agent.
    let mut other = start(&mesh, "edge-2");
    assert_eq!(other.wait(PATIENCE).code(), Some(64), "{}", other.log());
}

#[test]
fn the_service_of_the_guide_needs_no_more_than_the_capabilities_it_names() {
    let guide = include_str!("../../../docs/guide/agent.md");
    let value = |key: &str| {
        let line = guide.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_else(|| panic!("the service has no `{key}`"))
    };
    let kept: String = value("CapabilityBoundingSet=")
        .split(' ')
        .map(|name| format!(",+{}", name.strip_prefix("CAP_").unwrap().to_lowercase()))
        .collect();
    let directory = tempfile::tempdir().unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(directory.path(), open).unwrap();
    // Readable by nobody but its own user.
    let program = directory.path().join("orders");
    fender_tests::process::put_program(&fender_tests::process::binary(), &program);
    let closed = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(&program, closed).unwrap();
    std::os::unix::fs::chown(&program, Some(ORDERS), Some(ORDERS)).unwrap();
    let attest = format!(
        "{{ unix: {{ node: edge-2, uid: 4301, path: {}, sha256: {} }} }}",
        program.display(),
        sha256(&program)
    );
    let host = Host::start(&workload("orders", &attest), &[]);
    let mesh = &host.mesh;
    let socket = mesh.path("run/service.sock");
    let mut command = Command::new(installed("setpriv"));
    command
        .env_clear()
        .arg(format!("--bounding-set=-all{kept}"))
        .args(["--inh-caps=-all", "--no-new-privs", "--"]);
    for word in value("ExecStart=").split(' ') {
        command.arg(match word {
            "/usr/local/bin/fender" => fender_tests::process::binary(),
            "https://fender.internal:7443" => mesh.url().into(),
            "/etc/fender/edge-1.token" => node_token(mesh, "edge-2"),
            "/var/lib/fender/agent" => mesh.path("service"),
            "/run/fender/agent.sock" => socket.clone(),
            other => other.into(),
        });
    }
    let mut service = Process::start("service", &mut command, &mesh.path("logs/service.log"));
    wait_until("the agent is ready", PATIENCE, || {
        service.assert_running();
        socket.exists()
    });
    let output = Command::new(&program)
        .env_clear()
        .env("FENDER_CONTROL", mesh.url())
        .args(["exec", "--start-timeout", "60s", "--agent"])
        .arg(&socket)
        .args(["--", "/bin/true"])
        .uid(ORDERS)
        .gid(ORDERS)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}\n{}", service.log());
}
