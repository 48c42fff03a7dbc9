//! A mesh of three control planes over one PostgreSQL server: each a process, each with a wire of its own to its clients
//! and to the database.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::mesh::TRUST_DOMAIN;
use crate::postgres::{Durability, Postgres};
use crate::process::{PATIENCE, Process, binary, free_address, free_port, wait_until};
use crate::wire::Wire;

pub struct Replicas {
    pub directory: TempDir,
    pub server: Postgres,
    pub replicas: Vec<Replica>,
}

pub struct Replica {
    pub name: String,
    listen: SocketAddr,
    /// Where sidecars and administrators reach it.
    pub clients: Wire,
    /// Where it reaches the database.
    pub database: Wire,
    process: Option<Process>,
}

impl Replica {
    pub fn url(&self) -> String {
        format!("https://{}", self.clients.address)
    }
}

impl Replicas {
    /// Three of them, started at once over an empty database, and `documents` applied to the first.
    pub fn start(documents: &str) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("fender-test-")
            .tempdir()
            .expect("make a temporary directory");
        fs::create_dir(directory.path().join("logs")).expect("make the logs' directory");
        let key = directory.path().join("sealing");
        fs::write(&key, [7; 32]).expect("write the sealing key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("keep it private");
        let server = Postgres::start(Durability::Full);
        let replicas = ["control-1", "control-2", "control-3"].map(|name| {
            let listen = free_address();
            Replica {
                name: name.to_owned(),
                listen,
                clients: Wire::to(listen),
                database: Wire::to(server.address()),
                process: None,
            }
        });
        let mut mesh = Self {
            directory,
            server,
            replicas: replicas.into(),
        };
        for at in 0..mesh.replicas.len() {
            mesh.launch(at);
        }
        for at in 0..mesh.replicas.len() {
            mesh.wait_until_it_answers(at);
        }
        mesh.apply(0, documents);
        mesh
    }

    fn launch(&mut self, at: usize) {
        let replica = &self.replicas[at];
        let mut command = self.command();
        command
            .args(["--log-format", "json", "--log", "debug", "control"])
            .args(["--trust-domain", TRUST_DOMAIN, "--replica", &replica.name])
            .arg("--data-dir")
            .arg(self.path(&replica.name))
            .arg("--admin-dir")
            .arg(self.path("admin"))
            .arg("--sealing-key-file")
            .arg(self.path("sealing"))
            .args(["--listen", &replica.listen.to_string()])
            .args(["--replica-url", &replica.url()])
            .args([
                "--store",
                &format!("postgres://fender@{}/fender", replica.database.address),
            ]);
        let log = self.path(format!("logs/{}.log", replica.name));
        let process = Process::start(&replica.name, &mut command, &log);
        self.replicas[at].process = Some(process);
    }

    pub fn wait_until_it_answers(&mut self, at: usize) {
        let what = format!("{} answers", self.replicas[at].name);
        wait_until(&what, PATIENCE, || {
            if let Some(process) = &mut self.replicas[at].process {
                process.assert_running();
            }
            self.fender(at, &["status"]).0 == 0
        });
    }

    /// SIGKILL: no chance to say goodbye.
    pub fn kill(&mut self, at: usize) {
        let mut process = self.replicas[at].process.take().expect("it runs");
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
        let urls: Vec<_> = self.replicas.iter().map(Replica::url).collect();
        urls.join(",")
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(binary());
        command
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .stdin(Stdio::null());
        command
    }

    /// Runs an administrator's command against one replica; code, standard output, standard error.
    pub fn fender(&self, at: usize, arguments: &[&str]) -> (i32, String, String) {
        let output = self
            .command()
            .env("FENDER_ADMIN", self.path("admin"))
            .env("FENDER_CONTROL", self.replicas[at].url())
            .args(arguments)
            .output()
            .expect("run fender");
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

    pub fn token(&self, at: usize, workload: &str) -> PathBuf {
        let file = self.path(format!("token-{}", free_port()));
        let out = file.to_string_lossy();
        self.fender_ok(
            at,
            &["token", "create", workload, "--ttl", "1h", "--out", &out],
        );
        file
    }

    pub fn state(&self, workload: &str) -> PathBuf {
        self.path(format!("state-{}", workload.replace('/', "-")))
    }

    /// A sidecar that knows these addresses, ready.
    pub fn sidecar(&self, workload: &str, control: &str) -> Process {
        let token = self.token(0, workload);
        let mut command = self.command();
        command
            .args(["--log-format", "json", "--log", "debug", "sidecar"])
            .args(["--control", control, "--state"])
            .arg(self.state(workload))
            .arg("--token-file")
            .arg(token);
        let log = self.path(format!("logs/{}.log", workload.replace('/', "-")));
        let mut process = Process::start(workload, &mut command, &log);
        wait_until(&format!("{workload} is ready"), PATIENCE, || {
            process.assert_running();
            self.sidecar_status(workload)
                .is_some_and(|status| status["ready"] == true)
        });
        process
    }

    /// What a sidecar says of itself.
    pub fn sidecar_status(&self, workload: &str) -> Option<serde_json::Value> {
        let socket = self.state(workload).join("admin.sock");
        let output = self
            .command()
            .args(["status", "--output", "json", "--sidecar"])
            .arg(socket)
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
