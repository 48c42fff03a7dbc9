//! One sidecar with every provider that runs here and every delivery: a canary goes through all of them, from its source to the
//! application or to the clients of a port, and is found in nothing else that is written (DESIGN §9). And whoever runs as the sidecar's
//! own user cannot look into it, nor does it leave a core file.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use fender_tests::process::{PATIENCE, Process, binary, free_address, installed, output};
use fender_tests::{Mesh, wait_until};

use crate::certificate_credentials::shown;
use crate::control_loss::one_service;
use crate::telemetry::get;

use providers::{CERTIFICATE, PROVIDERS, SHOP, Sources};
use search::{Needles, descendants, files};

mod look;
mod providers;
mod search;

/// What every value begins with; a number and the provider follow.
const CANARY: &str = "canary-d17c52ab";

/// A mesh in which `shop/orders` has a credential of each provider, delivered in each way, and one that its port shows.
struct World {
    mesh: Mesh,
    sources: Sources,
    url: String,
    port: SocketAddr,
}

impl World {
    fn new() -> Self {
        let programs = Sources::plug_in();
        let port = free_address();
        let documents = one_service("1h", port, free_address());
        let mesh = Mesh::start_running(&documents, &[Sources::program(&programs)]);
        for own in ["delivered", "sets", "tokens"] {
            fs::create_dir(mesh.path(own)).unwrap();
        }
        let world = Self {
            sources: Sources::new(programs, mesh.directory.path()),
            mesh,
            url: free_address().to_string(),
            port,
        };
        let (code, out, err) = world.mesh.apply(&world.documents());
        assert_eq!(code, 0, "{out}{err}");
        assert!(!err.contains("--allow"), "{err}");
        world
    }

    fn documents(&self) -> String {
        let names = PROVIDERS
            .each_ref()
            .map(|provider| provider.name)
            .join(", ");
        let documents = fs::read_to_string(self.mesh.path("documents/mesh.yaml")).unwrap();
        let listed = "  dnsNames: [ localhost ]\n";
        let shown = format!(
            "protocol: http, clientCertificate: accept, certificates: [ {{ credential: {CERTIFICATE}, names: [ {SHOP} ] }} ] }}"
        );
        let mut documents = documents
            .replace(
                listed,
                &format!("{listed}  credentials: [ {names}, {CERTIFICATE} ]\n"),
            )
            .replace("protocol: http }", &shown);
        let own = self.mesh.directory.path().display().to_string();
        documents += &format!(
            "---\napiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: {CERTIFICATE} }}\nspec: {{ source: {{ {} }}, maxStale: 1h }}\n",
            self.sources.certificate_source()
        );
        for provider in &PROVIDERS {
            let (name, source) = (provider.name, self.sources.source(provider));
            documents += &format!(
                r#"---
apiVersion: fender.dev/v1
kind: Credential
metadata: {{ namespace: shop, name: {name} }}
spec:
  source: {{ {source} }}
  maxStale: 1h
  deliver:
    - file: {{ path: "{own}/delivered/{name}", storage: disk }}
    - files:
        directory: "{own}/sets/{name}"
        storage: disk
        entries: [ {{ name: raw }}, {{ name: filled, template: "{{{{ value }}}}" }} ]
    - socket: {{ users: [ 0 ] }}
    - url: {{ token: {{ path: "{own}/tokens/{name}", storage: disk }} }}
    - environment: {{ variable: {} }}
"#,
                provider.variable()
            );
        }
        documents
    }

    fn socket(&self) -> PathBuf {
        self.mesh.path("credentials.sock")
    }

    /// A sidecar, or a command with its credentials in the environment.
    fn command(&self, what: &str) -> Command {
        let mut command = self.mesh.command();
        command
            .env_remove("FENDER_ADMIN")
            .env("CANARY", format!("{CANARY}-1-variable"))
            .env("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
            .env("AWS_SECRET_ACCESS_KEY", format!("{CANARY}-aws-key"))
            .env("AWS_ENDPOINT_URL", self.sources.aws.url())
            .args(["--log-format", "json", "--log", "trace", what, "--state"])
            .arg(self.mesh.state("shop/orders"))
            .args([
                "--allow-environment",
                "CANARY",
                "--allow-aws",
                "secretsmanager:aws",
            ])
            .arg("--allow-dir")
            .arg(self.mesh.directory.path());
        command
            .arg("--allow-command")
            .arg(self.sources.allowed_program());
        command
    }

    fn sidecar(&self) -> Process {
        let token = self.mesh.token("shop/orders", "5m");
        let mut command = self.command("sidecar");
        command
            .arg("--token-file")
            .arg(token)
            .arg("--credentials-socket")
            .arg(self.socket())
            .args(["--credentials-url", &self.url])
            .args([
                "--",
                "/bin/sh",
                "-c",
                "trap 'exit 0' TERM; while :; do sleep 1; done",
            ]);
        let log = self.mesh.path("logs/sidecar.log");
        let mut process = Process::start("sidecar", &mut command, &log);
        self.mesh.wait_ready("shop/orders", &mut process);
        process
    }

    fn token(&self, name: &str) -> String {
        fs::read_to_string(self.mesh.path("tokens").join(name)).unwrap()
    }

    /// What a consumer of each kind has: of the file, of two of a set, of the socket, of the URL.
    fn had(&self, name: &str) -> [String; 5] {
        let set = self.mesh.path("sets").join(name);
        let [raw, filled] =
            ["raw", "filled"].map(|file| fs::read_to_string(set.join(file)).unwrap_or_default());
        let file = fs::read_to_string(self.mesh.path("delivered").join(name)).unwrap_or_default();
        let socket = self.socket();
        let told = output(
            binary(),
            &["get", name, "--socket", &socket.to_string_lossy()],
        );
        assert!(!told.2.contains(CANARY), "{}", told.2);
        let header = format!("Authorization: Bearer {}", self.token(name));
        let url = format!("http://{}/v1/credentials/{name}", self.url);
        let served = output(
            installed("curl"),
            &["--silent", "--max-time", "20", "--header", &header, &url],
        );
        [file, raw, filled, told.1, served.1]
    }

    fn wait_for(&self, number: u32) {
        for provider in &PROVIDERS {
            let value = provider.value(number);
            let what = format!("every delivery of `{}` is number {number}", provider.name);
            wait_until(&what, PATIENCE, || {
                self.had(provider.name).iter().all(|had| *had == value)
            });
        }
        let expected = Some(self.sources.shown());
        wait_until("the port shows its certificate", PATIENCE, || {
            shown(self.port, SHOP) == expected
        });
    }

    /// What whoever may ask is told, as `(who asked, answer)`.
    fn told(&self) -> Vec<(String, String)> {
        let socket = self.mesh.admin_socket("shop/orders");
        let local = socket.to_string_lossy().into_owned();
        let mut told = Vec::new();
        for arguments in [
            vec!["status"],
            vec!["status", "--output", "json"],
            vec!["status", "credentials"],
            vec!["status", "--sidecar", &local],
            vec!["status", "--sidecar", &local, "--output", "json"],
            vec!["audit-log", "list"],
        ] {
            let (code, out, err) = self.mesh.fender(&arguments);
            assert_eq!(code, 0, "{arguments:?}: {out}{err}");
            told.push((arguments.join(" "), format!("{out}{err}")));
        }
        for path in ["/metrics", "/readyz", "/livez", "/startupz"] {
            told.push((path.to_owned(), get(&socket, path).1));
        }
        told
    }

    /// Nothing that anybody wrote or says holds a value, a piece of one, a key of the port, a token of a consumer or what is computed
    /// of them; but for where they belong.
    fn assert_found_nowhere(&self, sidecar: &Process) {
        let mut needles = Needles::default();
        needles.add(CANARY);
        self.sources.add_to(&mut needles);
        for provider in &PROVIDERS {
            needles.add(&self.token(provider.name));
        }
        let belongs =
            ["sources", "delivered", "sets", "tokens", "login"].map(|own| self.mesh.path(own));
        let mut looked_at = 0;
        for file in files(self.mesh.directory.path()) {
            if !belongs.iter().any(|own| file.starts_with(own)) {
                let what = file.display().to_string();
                needles.assert_absent(&what, &fs::read(&file).unwrap());
                looked_at += 1;
            }
        }
        assert!(looked_at > 8, "logs, state and database were looked at");
        for (who, answer) in self.told() {
            needles.assert_absent(&who, answer.as_bytes());
        }
        for pid in descendants(sidecar.pid()) {
            let proc = |what: &str| fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
            needles.assert_absent(&format!("command line of {pid}"), &proc("cmdline"));
            // What Fender was started with stays to be seen by root and its own user; its application has none of it.
            let is_fender = proc("cmdline").windows(6).any(|part| part == b"fender");
            if !is_fender {
                needles.assert_absent(&format!("environment of {pid}"), &proc("environ"));
            }
        }
    }
}

#[test]
fn a_canary_through_every_provider_and_delivery_is_found_where_it_belongs_and_nowhere_else() {
    let world = World::new();
    let sidecar = world.sidecar();
    world.wait_for(1);
    world.sources.become_number(2);
    world.wait_for(2);
    world.assert_found_nowhere(&sidecar);

    // Sources that answer nonsense, with the secret in it: said everywhere, by errors that hold nothing of it.
    world.sources.spoil();
    let socket = world.mesh.admin_socket("shop/orders");
    let changing = PROVIDERS.iter().filter(|provider| provider.can_change());
    let changing = changing.map(|provider| provider.name);
    for name in changing.chain([CERTIFICATE]) {
        let outdated = format!("shop/{name} outdated for ");
        wait_until(&outdated, PATIENCE, || {
            let told = output(
                binary(),
                &["status", "--sidecar", &socket.to_string_lossy()],
            );
            told.1.contains(&outdated)
        });
    }
    world.wait_for(2);
    world.assert_found_nowhere(&sidecar);

    // The environment of a command, and what is said when it is not to be had.
    drop(sidecar);
    world.sources.become_number(1);
    let run = || {
        let mut exec = world.command("exec");
        exec.args(["--", "/usr/bin/env"]);
        let ended = exec.stdin(Stdio::null()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (ended.status.code(), text(ended.stdout), text(ended.stderr))
    };
    let (code, out, err) = run();
    assert_eq!(code, Some(0), "{err}");
    for provider in &PROVIDERS {
        let line = format!("{}={}\n", provider.variable(), provider.value(1));
        assert!(out.contains(&line), "{line}");
    }
    assert!(!out.contains("AWS_SECRET_ACCESS_KEY"), "{out}");
    assert!(
        !out.contains("\nCANARY=") && !out.starts_with("CANARY="),
        "{out}"
    );
    assert!(!err.contains(CANARY), "{err}");
    world.sources.spoil();
    let (code, out, err) = run();
    assert_ne!(code, Some(0), "{out}{err}");
    assert!(!out.contains(CANARY) && !err.contains(CANARY), "{out}{err}");
    let logs = fs::read_dir(world.mesh.path("logs")).unwrap();
    for log in logs.map(|log| log.unwrap().path()) {
        let text = fs::read_to_string(&log).unwrap();
        assert!(
            !text.is_empty() && !text.contains(CANARY),
            "{}",
            log.display()
        );
    }
}
