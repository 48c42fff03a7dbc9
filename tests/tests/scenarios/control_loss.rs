//! The control plane may die; sidecars keep serving and come back to it by themselves (DESIGN §5).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use fender_tests::process::PATIENCE;
use fender_tests::{Client, Mesh, Nginx, wait_until};
use hyper::StatusCode;

use crate::telemetry::get;

const KEPT_OPEN: usize = 32;
const MADE_ANEW: usize = 32;

/// A mesh of one service that any person may call.
pub(crate) fn one_service(leaf: &str, listen: SocketAddr, app: SocketAddr) -> String {
    Mesh::documents(
        leaf,
        &format!(
            r#"apiVersion: fender.dev/v1
kind: Workload
metadata: {{ namespace: shop, name: orders, labels: {{ app: orders }} }}
spec:
  attest: [ {{ token: {{}} }} ]
  dnsNames: [ localhost ]
  inbound: [ {{ listen: "{listen}", app: "{app}", protocol: http }} ]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ namespace: shop, name: people-may-call-orders }}
spec:
  selector: {{ matchLabels: {{ app: orders }} }}
  action: ALLOW
  rules:
    - from: [ {{ source: {{ namespaces: [ people ] }} }} ]
"#
        ),
    )
}

/// Callers, 64 unless it is said otherwise: half keep their connection, half make a new one for each request.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    failures: Arc<Mutex<Vec<String>>>,
    thread: JoinHandle<()>,
}

pub(crate) struct Done {
    pub(crate) answered: u64,
    pub(crate) failures: Vec<String>,
}

impl Load {
    pub(crate) fn start(client: Client) -> Self {
        Self::of(client, KEPT_OPEN, MADE_ANEW)
    }

    pub(crate) fn of(client: Client, kept: usize, anew: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let failures = Arc::new(Mutex::new(Vec::new()));
        let caller = Caller {
            client,
            stop: stop.clone(),
            answered: answered.clone(),
            failures: failures.clone(),
        };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let mut tasks = tokio::task::JoinSet::new();
                for _ in 0..kept {
                    tasks.spawn(caller.clone().keep());
                }
                for _ in 0..anew {
                    tasks.spawn(caller.clone().renew());
                }
                while let Some(ended) = tasks.join_next().await {
                    ended.unwrap();
                }
            });
        });
        Self {
            stop,
            answered,
            failures,
            thread,
        }
    }

    pub(crate) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    pub(crate) fn finish(self) -> Done {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        let failures = std::mem::take(&mut *self.failures.lock().unwrap());
        Done {
            answered: self.answered.load(Ordering::Relaxed),
            failures,
        }
    }
}

#[derive(Clone)]
struct Caller {
    client: Client,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    failures: Arc<Mutex<Vec<String>>>,
}

impl Caller {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// One connection until an answer says that it is the last; its loss is a failure.
    async fn keep(self) {
        while !self.stopped() {
            if let Err(error) = self.keep_one().await {
                return self.failed(format!("kept connection: {error:#}"));
            }
        }
    }

    async fn keep_one(&self) -> anyhow::Result<()> {
        let mut connection = self.client.open().await?;
        while !self.stopped() {
            let answer = connection.get("/kept").await?;
            match answer.status {
                StatusCode::OK => self.count(),
                status => self.failed(format!("kept connection answered {status}")),
            }
            if answer.header("connection") == Some("close") {
                break;
            }
            // A paced caller: the machine is shared with everything it calls.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn renew(self) {
        while !self.stopped() {
            match self.client.get("/fresh").await {
                Ok(answer) if answer.status == 200 => self.count(),
                Ok(answer) => self.failed(format!("new connection answered {}", answer.status)),
                Err(error) => self.failed(format!("new connection: {error:#}")),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn count(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    fn failed(&self, what: String) {
        let mut failures = self.failures.lock().unwrap();
        if failures.len() < 20 {
            failures.push(what);
        }
    }
}

#[test]
fn killing_and_restarting_the_control_plane_under_load_loses_no_request() {
    let nginx_home = tempfile::tempdir().unwrap();
    let nginx = Nginx::start(nginx_home.path());
    let listen = fender_tests::process::free_address();
    let mut mesh = Mesh::start(&one_service("2m", listen, nginx.address));
    let _sidecar = mesh.sidecar("shop/orders", &[]);
    let load = Load::start(mesh.client(listen));

    for _ in 0..2 {
        mesh.kill_control();
        let socket = mesh.admin_socket("shop/orders");
        wait_until("the sidecar notices", PATIENCE, || {
            link(&mesh, &socket) != "connected"
        });
        let before = load.answered();
        wait_until("the load goes on without a control plane", PATIENCE, || {
            load.answered() > before + 500
        });
        mesh.start_control();
        wait_until("the sidecar reconnects by itself", PATIENCE, || {
            link(&mesh, &socket) == "connected"
        });
    }
    let done = load.finish();
    assert_eq!(
        done.failures,
        Vec::<String>::new(),
        "of {} requests",
        done.answered
    );
    println!(
        "{} requests over two deaths of the control plane, none failed",
        done.answered
    );
}

#[test]
fn a_sidecar_restarted_while_the_control_plane_is_away_serves_from_its_state() {
    let nginx_home = tempfile::tempdir().unwrap();
    let nginx = Nginx::start(nginx_home.path());
    let listen = fender_tests::process::free_address();
    let mut mesh = Mesh::start(&one_service("1h", listen, nginx.address));
    let sidecar = mesh.sidecar("shop/orders", &[]);
    let client = mesh.client(listen);
    mesh.kill_control();
    drop(sidecar);

    let mut again = mesh.start_sidecar("shop/orders", None, &[]);
    mesh.wait_ready("shop/orders", &mut again);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let answer = runtime.block_on(client.get("/")).unwrap();
    assert_eq!(answer.status, 200);
}

/// DESIGN §5: `Mesh.snapshot.maxAge`. Its certificate would be good for an hour.
#[test]
fn a_sidecar_that_has_not_heard_for_too_long_lets_nobody_in_until_it_hears_again() {
    let nginx_home = tempfile::tempdir().unwrap();
    let nginx = Nginx::start(nginx_home.path());
    let listen = fender_tests::process::free_address();
    let documents = one_service("1h", listen, nginx.address);
    let documents = documents.replace("lifetimes:", "snapshot: { maxAge: 10s }\n  lifetimes:");
    let mut mesh = Mesh::start(&documents);
    let sidecar = mesh.sidecar("shop/orders", &[]);
    let client = mesh.client(listen);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let answer = || runtime.block_on(client.get("/"));
    let status = || answer().unwrap().status;
    assert_eq!(status(), 200);

    mesh.kill_control();
    wait_until("nobody is let in any more", PATIENCE, || {
        // A response that has begun by then is cut.
        answer().is_ok_and(|answer| answer.status == 403)
    });
    // Neither by a restart.
    drop(sidecar);
    let mut again = mesh.start_sidecar("shop/orders", None, &[]);
    let socket = mesh.admin_socket("shop/orders");
    wait_until("it has started", PATIENCE, || {
        again.assert_running();
        get(&socket, "/startupz").0 == "200"
    });
    assert_eq!(status(), 403);
    let (code, why) = get(&socket, "/readyz");
    assert!(code == "503" && why.contains("too old"), "{code}: {why}");

    mesh.start_control();
    wait_until("the snapshot is confirmed", PATIENCE, || status() == 200);
    mesh.wait_ready("shop/orders", &mut again);
}

/// What the sidecar says of its link to the control plane.
fn link(mesh: &Mesh, socket: &std::path::Path) -> String {
    let status = mesh.fender_ok(&[
        "status",
        "--sidecar",
        &socket.to_string_lossy(),
        "--output",
        "json",
    ]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    status["link"].as_str().unwrap_or_default().to_owned()
}
