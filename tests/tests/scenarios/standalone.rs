//! `fender sidecar --config FILE`: certificates from files, no control plane (the Ghostunnel use).

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use fender_tests::pki::{Authority, Template};
use fender_tests::process::{PATIENCE, Process, binary, free_address, output};
use fender_tests::{Client, Nginx, wait_until};
use tempfile::TempDir;

pub(crate) const ORDERS: &str = "spiffe://example.org/ns/shop/sa/orders";
pub(crate) const CALLER: &str = "spiffe://example.org/ns/shop/sa/caller";

/// A standalone sidecar before nginx that lets `shop/caller` in, and the authority behind both.
pub(crate) struct Standalone {
    pub(crate) directory: TempDir,
    pub(crate) authority: Authority,
    pub(crate) address: SocketAddr,
    pub(crate) app: SocketAddr,
    pub(crate) process: Process,
    _nginx: Nginx,
}

impl Standalone {
    pub(crate) fn start() -> Self {
        Self::start_with(|_| {})
    }

    pub(crate) fn start_with(adjust: impl FnOnce(&mut std::process::Command)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let nginx = Nginx::start(directory.path());
        let authority = Authority::new("example.org");
        let address = free_address();
        let identity = directory.path().join("identity");
        authority.issue(&Template::svid(ORDERS)).write(&identity);
        authority.write_bundle(&identity);
        let config = write_config(directory.path(), &identity, address, nginx.address);
        let mut command = std::process::Command::new(binary());
        command
            .env_clear()
            .args(["--log", "debug", "sidecar", "--admin-socket"])
            .arg(directory.path().join("admin.sock"));
        command.arg("--config").arg(config);
        adjust(&mut command);
        let mut process = Process::start("standalone", &mut command, &directory.path().join("log"));
        let socket = directory
            .path()
            .join("admin.sock")
            .to_string_lossy()
            .into_owned();
        wait_until("the standalone sidecar is ready", PATIENCE, || {
            process.assert_running();
            output(binary(), &["status", "--sidecar", &socket, "--ready"]).0 == 0
        });
        Self {
            directory,
            authority,
            address,
            app: nginx.address,
            process,
            _nginx: nginx,
        }
    }

    pub(crate) fn client(&self, uri: &str) -> Client {
        let issued = self.authority.issue(&Template::svid(uri));
        Client::new(
            &[self.authority.root()],
            Some(issued.identity()),
            self.address,
        )
    }
}

fn write_config(directory: &Path, identity: &Path, listen: SocketAddr, app: SocketAddr) -> PathBuf {
    let config = directory.join("sidecar.yaml");
    let identity = identity.display();
    let text = format!(
        r#"apiVersion: fender.dev/v1
kind: Sidecar
metadata: {{ namespace: shop, name: orders }}
spec:
  identity: {{ files: {{ certificate: {identity}/certificate.pem, key: {identity}/key.pem, bundle: {identity}/bundle.pem }} }}
  inbound: [ {{ listen: "{listen}", app: "{app}", protocol: http }} ]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ namespace: shop, name: callers }}
spec:
  action: ALLOW
  rules:
    - from: [ {{ source: {{ serviceAccounts: [ shop/caller ] }} }} ]
      to: [ {{ operation: {{ methods: [ GET ], paths: [ "/public*" ] }} }} ]
"#
    );
    fs::write(&config, text).unwrap();
    config
}

#[tokio::test]
async fn a_file_is_enough_for_mtls_and_authorization() {
    let sidecar = Standalone::start();
    let answer = sidecar.client(CALLER).get("/public/x").await.unwrap();
    assert_eq!(answer.status, 200);
    assert!(
        answer.text().contains(&format!("URI={CALLER}")),
        "{}",
        answer.text()
    );

    let denied = sidecar
        .client("spiffe://example.org/ns/shop/sa/stranger")
        .get("/public/x")
        .await
        .unwrap();
    assert_eq!(denied.status, 403);
    let id = denied.header("x-fender-decision").unwrap().to_owned();
    let socket = sidecar
        .directory
        .path()
        .join("admin.sock")
        .to_string_lossy()
        .into_owned();
    let (code, out, err) = output(binary(), &["explain", &id, "--sidecar", &socket]);
    assert_eq!(code, 0, "{err}");
    assert!(
        out.contains("sa/stranger") && out.contains("/public/x"),
        "{out}"
    );

    let other_path = sidecar.client(CALLER).get("/private").await.unwrap();
    assert_eq!(other_path.status, 403);
    let http2 = sidecar
        .client(CALLER)
        .open_http2()
        .await
        .unwrap()
        .get("/public/2")
        .await
        .unwrap();
    assert_eq!(http2.status, 200);
}

#[tokio::test]
async fn new_certificate_files_are_served_without_a_restart_and_without_a_lost_connection() {
    let sidecar = Standalone::start();
    let client = sidecar.client(CALLER);
    let mut open = client.open().await.unwrap();
    assert_eq!(open.get("/public").await.unwrap().status, 200);
    let before = leaf(&client).await;

    sidecar
        .authority
        .issue(&Template::svid(ORDERS))
        .write(&sidecar.directory.path().join("identity"));
    let deadline = std::time::Instant::now() + PATIENCE;
    while leaf(&client).await == before {
        assert!(
            std::time::Instant::now() < deadline,
            "the new certificate is served"
        );
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(
        open.get("/public").await.unwrap().status,
        200,
        "the old connection lives on"
    );
}

async fn leaf(client: &Client) -> Vec<u8> {
    let stream = client.connect().await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[test]
fn a_certificate_without_a_spiffe_id_is_a_clear_error() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new("example.org");
    let identity = directory.path().join("identity");
    let template = Template {
        uris: vec![],
        ..Template::svid(ORDERS)
    };
    authority.issue(&template).write(&identity);
    authority.write_bundle(&identity);
    let config = write_config(directory.path(), &identity, free_address(), free_address());
    let (code, _, err) = output(
        binary(),
        &["sidecar", "--config", &config.to_string_lossy()],
    );
    assert_eq!(code, 64, "{err}");
    assert!(
        err.contains("certificate.pem") && err.contains("URI"),
        "{err}"
    );
}
