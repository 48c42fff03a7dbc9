//! What a port carries, between clients and apps that nobody here wrote: curl, HAProxy, nginx, Python.

mod app_side;
mod grpc;
mod proxy_protocol;
mod websocket;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use fender_tests::pki::{Authority, Template};
use fender_tests::process::{PATIENCE, Process, binary, free_address};
use fender_tests::python::script;
use fender_tests::{Client, wait_until};
use tempfile::TempDir;

const ORDERS: &str = "spiffe://example.org/ns/shop/sa/orders";
const CALLER: &str = "spiffe://example.org/ns/shop/sa/caller";

/// Everybody of the namespace may do everything.
const CALLERS: &str = r#"apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { namespace: shop, name: callers }
spec: { action: ALLOW, rules: [ { from: [ { source: { namespaces: [ shop ] } } ] } ] }
"#;

/// The same but `/denied`. On a `tcp` port this denies everything (A3).
const OPEN: &str = r#"apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { namespace: shop, name: callers }
spec: { action: ALLOW, rules: [ { from: [ { source: { namespaces: [ shop ] } } ] } ] }
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { namespace: shop, name: nobody }
spec: { action: DENY, rules: [ { to: [ { operation: { paths: [ /denied ] } } ] } ] }
"#;

/// A sidecar without a control plane, with one port.
struct Adapter {
    directory: TempDir,
    authority: Authority,
    address: SocketAddr,
    process: Process,
}

impl Adapter {
    /// `port` says how it is, beside where it listens and what the app is.
    fn start(app: impl std::fmt::Display, port: &str, policies: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new("example.org");
        let address = free_address();
        let identity = directory.path().join("identity");
        authority.issue(&Template::svid(ORDERS)).write(&identity);
        authority.write_bundle(&identity);
        let caller = directory.path().join("caller");
        authority.issue(&Template::svid(CALLER)).write(&caller);
        authority.write_bundle(&caller);
        let identity = identity.display();
        let config = format!(
            r#"apiVersion: fender.dev/v1
kind: Sidecar
metadata: {{ namespace: shop, name: orders }}
spec:
  identity: {{ files: {{ certificate: {identity}/certificate.pem, key: {identity}/key.pem, bundle: {identity}/bundle.pem }} }}
  inbound: [ {{ listen: "{address}", app: "{app}", {port} }} ]
---
{policies}"#
        );
        let file = directory.path().join("sidecar.yaml");
        fs::write(&file, config).unwrap();
        let socket = directory.path().join("admin.sock");
        let mut command = Command::new(binary());
        command.env_clear().args(["sidecar", "--admin-socket"]);
        command.arg(&socket).arg("--config").arg(file);
        let log = directory.path().join("log");
        let mut process = Process::start("adapter", &mut command, &log);
        process.wait_ready(&socket);
        Self {
            directory,
            authority,
            address,
            process,
        }
    }

    fn client(&self) -> Client {
        let issued = self.authority.issue(&Template::svid(CALLER));
        let roots = [self.authority.root()];
        Client::new(&roots, Some(issued.identity()), self.address)
    }

    /// Where the caller's certificate, key and bundle are.
    fn caller(&self) -> PathBuf {
        self.directory.path().join("caller")
    }

    /// curl with the caller's certificate, for this path of `address`.
    fn curl(&self, address: SocketAddr, path: &str) -> Command {
        let caller = self.caller();
        let mut command = Command::new(fender_tests::installed("curl"));
        command.args(["-sS", "--max-time", "60", "--noproxy", "*", "--cacert"]);
        command.arg(caller.join("bundle.pem")).arg("--cert");
        command.arg(caller.join("certificate.pem")).arg("--key");
        command.arg(caller.join("key.pem"));
        let (ip, port) = (address.ip(), address.port());
        command
            .arg("--resolve")
            .arg(format!("localhost:{port}:{ip}"));
        command.arg(format!("https://localhost:{port}{path}"));
        command
    }

    /// Waits for a line of the sidecar's log that holds all of this.
    fn logs(&self, texts: &[&str]) -> String {
        let mut found = String::new();
        wait_until(&format!("the log has {texts:?}"), PATIENCE, || {
            let log = self.process.log();
            let line = log
                .lines()
                .find(|line| texts.iter().all(|text| line.contains(text)));
            found = line.unwrap_or_default().to_owned();
            line.is_some()
        });
        found
    }
}

/// A script of ours that listens, once it does.
fn app(name: &str, arguments: &[&str], directory: &TempDir) -> Process {
    let mut command = script(name);
    command.args(arguments);
    let log = directory.path().join(format!("{}.log", arguments[0]));
    // One before it may have written to the same file.
    let listening = |log: &str| log.matches("\"listens\"").count();
    let before = fs::read_to_string(&log).map_or(0, |log| listening(&log));
    let mut process = Process::start(arguments[0], &mut command, &log);
    wait_until("the app listens", PATIENCE, || {
        process.assert_running();
        listening(&process.log()) > before
    });
    process
}

/// Standard output of a command that must succeed.
fn told(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}
