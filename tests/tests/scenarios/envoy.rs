//! A real Envoy, as `examples/envoy` has it: key, certificate and roots by Fender's secret discovery, mutual TLS with Fender
//! both ways, over rotations and under load.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fender_tests::client::certificates;
use fender_tests::pki::{Authority, Template};
use fender_tests::process::{PATIENCE, Process, free_address};
use fender_tests::{Client, Mesh, Nginx, python, wait_until};
use tempfile::TempDir;

use crate::workload_api::{alone, serving};

const ENVOY: &str = "spiffe://test.internal/ns/shop/sa/envoy";
const ORDERS: &str = "spiffe://test.internal/ns/shop/sa/orders";
const CALLER: &str = "spiffe://test.internal/ns/shop/sa/caller";

const EXAMPLE: &str = include_str!("../../../examples/envoy/envoy.yaml");

/// Envoy with the identity of `shop/envoy`; `shop/orders` behind Fender, whom it calls; `shop/caller` behind Fender, who
/// calls it.
struct World {
    mesh: Mesh,
    nginx: Nginx,
    orders: SocketAddr,
    orders_sidecar: Process,
    envoy: Envoy,
    /// Where the application of `shop/caller` reaches Envoy, in plain HTTP.
    caller: SocketAddr,
    _processes: Vec<Process>,
    /// Goes last: the processes live in it.
    _home: TempDir,
}

pub(crate) struct Envoy {
    pub(crate) inbound: SocketAddr,
    pub(crate) outbound: SocketAddr,
    admin: SocketAddr,
    process: Process,
}

impl World {
    fn start(leaf: &str) -> Self {
        let orders = free_address();
        let caller = free_address();
        let home = tempfile::tempdir().unwrap();
        let nginx = Nginx::start(home.path());
        let documents = format!(
            r#"apiVersion: fender.dev/v1
kind: Workload
metadata: {{ namespace: shop, name: orders }}
spec:
  attest: [ {{ token: {{}} }} ]
  inbound: [ {{ listen: "{orders}", app: "{}", protocol: http }} ]
---
apiVersion: fender.dev/v1
kind: Workload
metadata: {{ namespace: shop, name: envoy }}
spec: {{ attest: [ {{ token: {{}} }} ], dnsNames: [ localhost ] }}
---
apiVersion: fender.dev/v1
kind: Workload
metadata: {{ namespace: shop, name: caller }}
spec: {{ attest: [ {{ token: {{}} }} ] }}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ namespace: shop, name: envoy-may-call-orders }}
spec: {{ action: ALLOW, rules: [ {{ from: [ {{ source: {{ serviceAccounts: [ shop/envoy ] }} }} ] }} ] }}
"#,
            nginx.address
        );
        let mesh = Mesh::start(&Mesh::documents(leaf, &documents));
        fs::create_dir(mesh.path("run")).unwrap();
        let orders_sidecar = mesh.sidecar("shop/orders", &[]);
        let api = serving(&mesh, "shop/envoy", &mesh.path("run/envoy.sock"), &[]);
        let envoy = Envoy::start(&mesh, &mesh.path("run/envoy.sock"), orders, nginx.address);
        let callers_api = serving(&mesh, "shop/caller", &mesh.path("run/caller.sock"), &[]);
        let spec = format!(
            "  identity: {{ workloadApi: \"unix:{}\" }}\n  outbound: [ {{ listen: \"{caller}\", connect: \"{}\", expect: \"{ENVOY}\", protocol: http }} ]\n",
            mesh.path("run/caller.sock").display(),
            envoy.inbound,
        );
        let ambassador = alone(mesh.directory.path(), "ambassador", &spec);
        Self {
            mesh,
            nginx,
            orders,
            orders_sidecar,
            envoy,
            caller,
            _processes: vec![ambassador, api, callers_api],
            _home: home,
        }
    }

    /// Somebody who means to call Envoy with this certificate.
    fn client(&self, issued: &fender_tests::pki::Issued) -> Client {
        let roots = certificates(&self.mesh.person("reader").join("bundle.pem"));
        Client::new(&roots, Some(issued.identity()), self.envoy.inbound)
    }
}

impl Envoy {
    pub(crate) fn start(mesh: &Mesh, socket: &Path, orders: SocketAddr, app: SocketAddr) -> Self {
        let [inbound, outbound, admin] = [(); 3].map(|()| free_address());
        let port = |address: SocketAddr| format!("port_value: {} }}", address.port());
        let mut config = EXAMPLE.to_owned();
        for (written, meant) in [
            ("spiffe://example.org", "spiffe://test.internal"),
            (
                "path: /run/fender/workload.sock",
                &format!("path: {}", socket.display()),
            ),
            ("port_value: 9901 }", &port(admin)),
            ("port_value: 8443 }", &port(inbound)),
            ("port_value: 9000 }", &port(outbound)),
            ("port_value: 18443 }", &port(orders)),
            ("port_value: 8080 }", &port(app)),
            // A handshake for each request: each shows the certificate of its moment.
            (
                "max_requests_per_connection: 1000",
                "max_requests_per_connection: 1",
            ),
        ] {
            assert!(config.contains(written), "{written}");
            config = config.replace(written, meant);
        }
        let file = mesh.path("envoy.yaml");
        fs::write(&file, config).unwrap();
        let mut command = Command::new(python::envoy());
        command
            .env_clear()
            .args([
                "--disable-hot-restart",
                "--concurrency",
                "1",
                "-l",
                "info",
                "-c",
            ])
            .arg(&file);
        let mut process = Process::start("envoy", &mut command, &mesh.path("logs/envoy.log"));
        wait_until("Envoy is ready", PATIENCE, || {
            process.assert_running();
            get(admin, "/ready").is_ok_and(|(status, _)| status == 200)
        });
        Self {
            inbound,
            outbound,
            admin,
            process,
        }
    }

    /// A counter of its own.
    pub(crate) fn count(&self, name: &str) -> u64 {
        let (_, text) = get(self.admin, "/stats").unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name}: ")));
        line.unwrap_or_else(|| panic!("Envoy counts no `{name}`"))
            .parse()
            .unwrap()
    }
}

/// One request in plain HTTP: the status, and the answer as it came.
pub(crate) fn get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    Ok((status.unwrap_or(0), text))
}

/// One caller without a pause.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: JoinHandle<Vec<String>>,
}

impl Load {
    fn start(address: SocketAddr, expected: &'static str) -> Self {
        let (stop, answered) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stopped, count) = (stop.clone(), answered.clone());
        let thread = std::thread::spawn(move || {
            let mut failures = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                match get(address, "/public") {
                    Ok((200, text)) if text.contains(expected) => {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    other => failures.push(format!("{other:?}")),
                }
            }
            failures
        });
        Self {
            stop,
            answered,
            thread,
        }
    }

    fn finish(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let failures = self.thread.join().unwrap();
        (self.answered.load(Ordering::Relaxed), failures)
    }
}

#[test]
fn envoy_and_fender_speak_mutual_tls_both_ways_over_rotations_under_load() {
    let world = World::start("20s");
    // Fender tells the application who called: Envoy, as its certificate says. And Envoy tells who called it.
    let out = Load::start(
        world.envoy.outbound,
        "URI=spiffe://test.internal/ns/shop/sa/envoy",
    );
    let into = Load::start(world.caller, "URI=spiffe://test.internal/ns/shop/sa/caller");
    let begun = Instant::now();
    let rotations = 4;
    wait_until(
        "Envoy takes the certificates that follow",
        2 * PATIENCE,
        || world.envoy.count("sds.default.update_success") > rotations,
    );
    let took = begun.elapsed();
    let (out, out_failures) = out.finish();
    let (into, into_failures) = into.finish();
    assert_eq!(
        out_failures,
        Vec::<String>::new(),
        "of {out} requests from Envoy to Fender"
    );
    assert_eq!(
        into_failures,
        Vec::<String>::new(),
        "of {into} requests from Fender to Envoy"
    );
    assert!(out > 0 && into > 0);
    // No certificate lives as long as this took: without the rotations there would have been failures.
    assert!(took > Duration::from_secs(20), "{took:?}");
    for secret in ["default", "spiffe_test.internal"] {
        assert_eq!(
            world.envoy.count(&format!("sds.{secret}.update_rejected")),
            0
        );
    }
    println!(
        "{out} requests from Envoy to Fender, {into} from Fender to Envoy, over {rotations} rotations in {took:?}, none failed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_envoy_refuses_whom_the_mesh_does_not_vouch_for_and_whom_it_was_not_told() {
    let world = World::start("1h");
    assert_eq!(get(world.caller, "/").unwrap().0, 200);
    // The right name, from another authority.
    let foreign = Authority::new("test.internal");
    let client = world.client(&foreign.issue(&Template::svid(CALLER)));
    assert!(client.get("/").await.is_err());
    // The right authority, another name.
    assert!(
        world
            .mesh
            .client(world.envoy.inbound)
            .get("/")
            .await
            .is_err()
    );
    // Nobody.
    let roots = certificates(&world.mesh.person("reader").join("bundle.pem"));
    let anonymous = Client::new(&roots, None, world.envoy.inbound);
    assert!(anonymous.get("/").await.is_err());
    let failed = world.envoy.count(&format!(
        "listener.0.0.0.0_{}.ssl.fail_verify_error",
        world.envoy.inbound.port()
    ));
    let without = world.envoy.count(&format!(
        "listener.0.0.0.0_{}.ssl.fail_verify_no_cert",
        world.envoy.inbound.port()
    ));
    let names = world.envoy.count(&format!(
        "listener.0.0.0.0_{}.ssl.fail_verify_san",
        world.envoy.inbound.port()
    ));
    assert_eq!((failed + names, without), (2, 1));
    assert_eq!(get(world.caller, "/").unwrap().0, 200);
}

#[test]
fn attack_envoy_refuses_a_revoked_caller_after_the_push_and_nobody_else() {
    let world = World::start("1h");
    assert_eq!(get(world.caller, "/").unwrap().0, 200);
    world.mesh.fender_ok(&[
        "revoke",
        "workload",
        "shop/caller",
        "--reason",
        "host taken over",
    ]);
    let refused = format!(
        "listener.0.0.0.0_{}.ssl.fail_verify_error",
        world.envoy.inbound.port()
    );
    wait_until("Envoy refuses the revoked caller", PATIENCE, || {
        get(world.caller, "/").is_ok_and(|(status, _)| status != 200)
            && world.envoy.count(&refused) > 0
    });
    // It took the list, and lets in and calls whom it did before.
    assert_eq!(
        world
            .envoy
            .count("sds.spiffe_test.internal.update_rejected"),
        0
    );
    assert_eq!(get(world.envoy.outbound, "/public").unwrap().0, 200);
}

#[test]
fn attack_a_server_from_another_authority_in_the_place_of_the_right_one_hears_nothing() {
    let mut world = World::start("1h");
    assert_eq!(get(world.envoy.outbound, "/").unwrap().0, 200);
    world.orders_sidecar.kill();
    let foreign = Authority::new("test.internal");
    let identity = world.mesh.path("foreign");
    foreign.issue(&Template::svid(ORDERS)).write(&identity);
    // Its own bundle, or it would not start.
    foreign.write_bundle(&identity);
    let spec = format!(
        "  identity: {{ files: {{ certificate: {0}/certificate.pem, key: {0}/key.pem, bundle: {0}/bundle.pem }} }}\n  \
         inbound: [ {{ listen: \"{1}\", app: \"{2}\", protocol: http }} ]\n  authorization: {{ default: allow }}\n",
        identity.display(),
        world.orders,
        world.nginx.address,
    );
    let _impostor = alone(world.mesh.directory.path(), "impostor", &spec);
    let (status, text) = get(world.envoy.outbound, "/").unwrap();
    assert_eq!(status, 503, "{text}");
    // Envoy knows its name, and not who vouches for it.
    assert!(world.envoy.count("cluster.orders.ssl.fail_verify_error") > 0);
    world.envoy.process.assert_running();
}

#[test]
fn the_guide_shows_the_configuration_that_was_run() {
    let guide = include_str!("../../../docs/guide/envoy.md");
    assert!(
        guide.contains(EXAMPLE),
        "docs/guide/envoy.md does not show examples/envoy/envoy.yaml as it is"
    );
}
