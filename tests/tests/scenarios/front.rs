//! A sidecar without a control plane before any number of applications: what attacks are aimed at.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use fender_tests::pki::{Authority, Template};
use fender_tests::process::{PATIENCE, Process, binary, free_address, output};
use fender_tests::{Client, installed, wait_until};
use tempfile::TempDir;

use crate::standalone::{CALLER, ORDERS};

/// Lets everybody of the mesh in.
pub(crate) const EVERYBODY: &str = r#"
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { namespace: shop, name: everybody }
spec: { action: ALLOW, rules: [ {} ] }
"#;

/// But to `/denied` and below. On a `tcp` port this denies everything (A3).
pub(crate) const BUT_DENIED: &str = r#"
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { namespace: shop, name: nobody }
spec:
  action: DENY
  rules: [ { to: [ { operation: { paths: [ "/denied", "/denied/*" ] } } ] } ]
"#;

/// One port of the sidecar.
pub(crate) struct Port {
    pub(crate) listen: SocketAddr,
    /// The rest of its entry in the document, after `listen`.
    pub(crate) rest: String,
}

impl Port {
    pub(crate) fn http(app: SocketAddr) -> Self {
        Self::http_with(app, "")
    }

    pub(crate) fn tcp(app: SocketAddr) -> Self {
        Self {
            listen: free_address(),
            rest: format!("app: \"{app}\", protocol: tcp"),
        }
    }

    /// `more` are further fields, as `, paths: { mergeSlashes: true }`.
    pub(crate) fn http_with(app: SocketAddr, more: &str) -> Self {
        Self {
            listen: free_address(),
            rest: format!("app: \"{app}\", protocol: http{more}"),
        }
    }
}

pub(crate) struct Front {
    authority: Authority,
    pub(crate) process: Process,
    directory: TempDir,
}

impl Front {
    /// Starts it in `directory`, with the policies in `documents`.
    pub(crate) fn start(directory: TempDir, ports: &[Port], documents: &str) -> Self {
        Self::start_by(
            std::process::Command::new(binary()),
            directory,
            ports,
            documents,
        )
    }

    /// The same under a limit on open descriptors.
    pub(crate) fn start_with_descriptors(
        directory: TempDir,
        ports: &[Port],
        documents: &str,
        descriptors: u64,
    ) -> Self {
        let mut limited = std::process::Command::new(installed("prlimit"));
        limited
            .arg(format!("--nofile={descriptors}:{descriptors}"))
            .arg(binary());
        Self::start_by(limited, directory, ports, documents)
    }

    fn start_by(
        mut command: std::process::Command,
        directory: TempDir,
        ports: &[Port],
        documents: &str,
    ) -> Self {
        let home = directory.path();
        let authority = Authority::new("example.org");
        let identity = home.join("identity");
        authority.issue(&Template::svid(ORDERS)).write(&identity);
        authority.write_bundle(&identity);
        let inbound: Vec<_> = ports
            .iter()
            .map(|port| format!("    - {{ listen: \"{}\", {} }}\n", port.listen, port.rest))
            .collect();
        let text = format!(
            r#"apiVersion: fender.dev/v1
kind: Sidecar
metadata: {{ namespace: shop, name: orders }}
spec:
  identity: {{ files: {{ certificate: {0}/certificate.pem, key: {0}/key.pem, bundle: {0}/bundle.pem }} }}
  inbound:
{1}{documents}"#,
            identity.display(),
            inbound.concat(),
        );
        let config = home.join("sidecar.yaml");
        fs::write(&config, text).unwrap();
        let socket = home.join("admin.sock").to_string_lossy().into_owned();
        command
            .env_clear()
            .args(["sidecar", "--admin-socket", &socket, "--config"]);
        let mut process = Process::start("sidecar", command.arg(config), &home.join("log"));
        wait_until("the sidecar is ready", PATIENCE, || {
            process.assert_running();
            output(binary(), &["status", "--sidecar", &socket, "--ready"]).0 == 0
        });
        Self {
            authority,
            process,
            directory,
        }
    }

    /// A workload of the mesh that calls `address`.
    pub(crate) fn client(&self, address: SocketAddr) -> Client {
        let issued = self.authority.issue(&Template::svid(CALLER));
        Client::new(&[self.authority.root()], Some(issued.identity()), address)
    }

    /// The same workload's certificate, key and roots as files.
    pub(crate) fn caller(&self) -> PathBuf {
        let caller = self.directory.path().join("caller");
        let issued = self.authority.issue(&Template::svid(CALLER));
        issued.write(&caller);
        self.authority.write_bundle(&caller);
        caller
    }
}
