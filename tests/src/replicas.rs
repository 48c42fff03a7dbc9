//! A mesh of three control planes over one PostgreSQL server, and of three services that call each other in a ring: each of
//! them, the database and the people are on hosts of their own, whose network can be cut and whose clocks can be wrong.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use tempfile::TempDir;

use crate::app::Nginx;
use crate::mesh::{Mesh, TRUST_DOMAIN};
use crate::network::{Host, Network};
use crate::postgres::{Durability, Postgres};
use crate::process::{PATIENCE, Process, binary, free_port, wait_until};

/// The control planes, each on a host of its name.
pub const CONTROLS: [&str; 3] = ["control-1", "control-2", "control-3"];

/// The services `shop/NAME`, each on a host of its name. Each may call the next one, the last the first.
pub const SERVICES: [&str; 3] = ["one", "two", "three"];

pub const DATABASE: &str = "database";

/// Where people and whoever has a join token are.
pub const PEOPLE: &str = "people";

/// Where an application is found by its sidecar, on any host.
const APP: &str = "127.0.0.1:8080";

/// Where a service is found by others, and where it finds the next one.
pub const INBOUND: u16 = 8443;
pub const OUTBOUND: u16 = 9000;

const CONTROL: u16 = 7443;

pub struct Replicas {
    // Stopped before their directory is removed: fields are dropped in this order.
    replicas: Vec<Option<Process>>,
    _apps: Vec<Nginx>,
    pub server: Postgres,
    pub directory: TempDir,
    pub network: Arc<Network>,
}

impl Replicas {
    /// Three of them, started at once over an empty database.
    pub fn start() -> Self {
        Self::start_over(|network, _| network)
    }

    /// The same on hosts whose clocks are wrong by so many seconds.
    pub fn start_with_clocks(wrong: &[(&str, i64)]) -> Self {
        Self::start_over(|network, directory| {
            let network = network.with_clocks(directory);
            for (host, seconds) in wrong {
                network.host(host).set_clock_wrong_by(*seconds);
            }
            network
        })
    }

    fn start_over(prepare: impl FnOnce(Network, &Path) -> Network) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("fender-test-")
            .tempdir()
            .expect("make a temporary directory");
        for own in ["logs", "sources"] {
            fs::create_dir(directory.path().join(own)).expect("make a directory");
        }
        let key = directory.path().join("sealing");
        fs::write(&key, [7; 32]).expect("write the sealing key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("keep it private");
        let hosts = [&CONTROLS[..], &SERVICES, &[DATABASE, PEOPLE]].concat();
        let network = prepare(Network::new(&hosts), directory.path());
        let database = network.host(DATABASE);
        let server = database.run(|| Postgres::start_at(database.address.into(), Durability::Full));
        let app = |service: &&str| {
            let home = directory.path().join(service);
            let address = APP.parse().expect("an address");
            network.host(service).run(|| Nginx::at(address, &home))
        };
        let mut mesh = Self {
            replicas: CONTROLS.map(|_| None).into(),
            _apps: SERVICES.iter().map(app).collect(),
            server,
            directory,
            network: Arc::new(network),
        };
        for at in 0..CONTROLS.len() {
            mesh.launch(at);
        }
        for at in 0..CONTROLS.len() {
            mesh.wait_until_it_answers(at);
        }
        mesh
    }

    /// The services, one workload `shop/jobs` that only attests, and more.
    ///
    /// Services and whoever is in one of the namespaces in `callers` may call the services.
    pub fn documents(&self, leaf: &str, callers: &str, more: &str) -> String {
        let mut rest = String::new();
        for (service, next) in SERVICES.iter().zip(SERVICES.iter().cycle().skip(1)) {
            let next_address = self.network.host(next).at(INBOUND);
            rest.push_str(&format!(
                r#"apiVersion: fender.dev/v1
kind: Workload
metadata: {{ namespace: shop, name: {service}, labels: {{ app: service }} }}
spec:
  attest: [ {{ token: {{}} }} ]
  dnsNames: [ localhost ]
  inbound: [ {{ listen: "0.0.0.0:{INBOUND}", app: "{APP}", protocol: http }} ]
  outbound: [ {{ listen: "127.0.0.1:{OUTBOUND}", service: shop/{next}, address: "{next_address}" }} ]
---
"#
            ));
        }
        rest.push_str(&format!(
            r#"apiVersion: fender.dev/v1
kind: Workload
metadata: {{ namespace: shop, name: jobs }}
spec:
  attest: [ {{ token: {{}} }} ]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ namespace: shop, name: callers }}
spec:
  selector: {{ matchLabels: {{ app: service }} }}
  action: ALLOW
  rules:
    - from: [ {{ source: {{ namespaces: [ shop, {callers} ] }} }} ]
{more}"#
        ));
        Mesh::documents(leaf, &rest)
    }

    fn control(&self, at: usize) -> &Host {
        self.network.host(CONTROLS[at])
    }

    pub fn url(&self, at: usize) -> String {
        format!("https://{}", self.control(at).at(CONTROL))
    }

    fn launch(&mut self, at: usize) {
        let (host, url) = (self.control(at), self.url(at));
        let mut command = host.fender();
        command
            .args(["--log-format", "json", "--log", "debug", "control"])
            .args(["--trust-domain", TRUST_DOMAIN, "--replica", &host.name])
            .arg("--data-dir")
            .arg(self.path(&host.name))
            .arg("--admin-dir")
            .arg(self.path("admin"))
            .arg("--sealing-key-file")
            .arg(self.path("sealing"))
            .arg("--allow-dir")
            .arg(self.path("sources"))
            .args(["--listen", &host.at(CONTROL).to_string()])
            .args(["--replica-url", &url])
            .args(["--store", &self.server.url("fender")])
            .arg("--store-roots")
            .arg(self.server.roots());
        let log = self.path(format!("logs/{}.log", host.name));
        let process = host.run(|| Process::start(&host.name, &mut command, &log));
        self.replicas[at] = Some(process);
    }

    pub fn wait_until_it_answers(&mut self, at: usize) {
        let what = format!("{} answers", CONTROLS[at]);
        wait_until(&what, PATIENCE, || {
            if let Some(process) = &mut self.replicas[at] {
                process.assert_running();
            }
            self.answers(at)
        });
    }

    /// Whether people are answered by it.
    pub fn answers(&self, at: usize) -> bool {
        self.fender(at, &["status"]).0 == 0
    }

    /// SIGKILL: no chance to say goodbye.
    pub fn kill(&mut self, at: usize) {
        let mut process = self.replicas[at].take().expect("it runs");
        process.kill();
    }

    pub fn restart(&mut self, at: usize) {
        self.launch(at);
        self.wait_until_it_answers(at);
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(name)
    }

    /// All of them, as `--control` takes it.
    pub fn urls(&self) -> String {
        let urls: Vec<_> = (0..CONTROLS.len()).map(|at| self.url(at)).collect();
        urls.join(",")
    }

    /// Runs an administrator's command against one replica; code, standard output, standard error.
    pub fn fender(&self, at: usize, arguments: &[&str]) -> (i32, String, String) {
        let people = self.network.host(PEOPLE);
        let mut command = people.fender();
        command
            .env("FENDER_ADMIN", self.path("admin"))
            .env("FENDER_CONTROL", self.url(at))
            .args(arguments);
        let output = people.run(|| command.output().expect("run fender"));
        (
            output.status.code().unwrap_or(-1),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }

    /// The same, and it must succeed.
    pub fn fender_ok(&self, at: usize, arguments: &[&str]) -> String {
        let (code, out, err) = self.fender(at, arguments);
        assert_eq!(code, 0, "`fender {}`:\n{out}{err}", arguments.join(" "));
        out
    }

    pub fn apply(&self, at: usize, documents: &str) {
        let file = self.path("apply.yaml");
        fs::write(&file, documents).expect("write documents");
        self.fender_ok(at, &["apply", "-f", &file.to_string_lossy()]);
    }

    /// The same, until each replica has it in force: whom it describes is known at all of them then.
    pub fn apply_everywhere(&self, at: usize, documents: &str) {
        self.apply(at, documents);
        let in_force = |at| self.status(at)["revision"].clone();
        let applied = in_force(at);
        for other in 0..CONTROLS.len() {
            wait_until("each replica has the documents", PATIENCE, || {
                in_force(other) == applied
            });
        }
    }

    /// The status that one replica answers.
    pub fn status(&self, at: usize) -> serde_json::Value {
        let status = self.fender_ok(at, &["status", "--output", "json"]);
        serde_json::from_str(&status).expect("a status is JSON")
    }

    pub fn token(&self, at: usize, workload: &str, ttl: &str) -> PathBuf {
        let file = self.path(format!("token-{}", free_port()));
        let out = file.to_string_lossy();
        self.fender_ok(
            at,
            &["token", "create", workload, "--ttl", ttl, "--out", &out],
        );
        file
    }

    pub fn state(&self, service: &str) -> PathBuf {
        self.path(format!("state-{service}"))
    }

    /// The sidecar of a service, which knows these addresses of control planes, ready.
    pub fn sidecar(&self, service: &str, control: &str) -> Process {
        let token = self.token(0, &format!("shop/{service}"), "1h");
        let host = self.network.host(service);
        let mut command = host.fender();
        command
            .args(["--log-format", "json", "--log", "debug", "sidecar"])
            .args(["--control", control, "--state"])
            .arg(self.state(service))
            .arg("--token-file")
            .arg(token);
        let log = self.path(format!("logs/{service}.log"));
        let mut process = host.run(|| Process::start(service, &mut command, &log));
        wait_until(&format!("{service} is ready"), PATIENCE, || {
            process.assert_running();
            self.sidecar_status(service)
                .is_some_and(|status| status["ready"] == true)
        });
        process
    }

    /// What a sidecar says of itself.
    pub fn sidecar_status(&self, service: &str) -> Option<serde_json::Value> {
        let mut command = self.network.host(service).fender();
        let output = command
            .args(["status", "--output", "json", "--sidecar"])
            .arg(self.state(service).join("admin.sock"))
            .output()
            .expect("run fender");
        serde_json::from_slice(&output.stdout).ok()
    }

    /// A person's certificate, key and roots.
    pub fn person(&self, name: &str) -> PathBuf {
        let directory = self.path(format!("person-{name}"));
        let to = directory.to_string_lossy();
        self.fender_ok(0, &["svid", "write", &to, "--name", name, "--ttl", "1h"]);
        directory
    }
}

impl Host {
    /// The binary with an empty environment, to be started by [`run`](Self::run).
    pub fn fender(&self) -> Command {
        let mut command = self.command(&binary());
        command
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .stdin(Stdio::null());
        command
    }
}
