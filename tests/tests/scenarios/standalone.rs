//! `fender sidecar --config FILE`: certificates from files, no control plane (the Ghostunnel use).

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use fender_tests::pki::{Authority, Template};
use fender_tests::process::{PATIENCE, Process, binary, free_address, installed, output};
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
        process.wait_ready(&directory.path().join("admin.sock"));
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

#[tokio::test]
async fn a_certificate_that_is_not_valid_now_never_replaces_one_that_is() {
    let sidecar = Standalone::start();
    let client = sidecar.client(CALLER);
    let before = leaf(&client).await;
    let template = Template {
        begins: -7200,
        ends: -3600,
        ..Template::svid(ORDERS)
    };
    let identity = sidecar.directory.path().join("identity");
    sidecar.authority.issue(&template).write(&identity);
    wait_until("the expired certificate is refused", PATIENCE, || {
        sidecar.process.log().contains("not valid now")
    });
    assert_eq!(leaf(&client).await, before);
}

#[test]
fn an_identity_behind_links_and_a_unix_listener_work_although_the_proxy_is_confined() {
    let sidecar = Standalone::start_with(|command| {
        let config = PathBuf::from(command.get_args().last().unwrap());
        let directory = config.parent().unwrap();
        let links = directory.join("links");
        fs::create_dir(&links).unwrap();
        fs::create_dir(directory.join("sockets")).unwrap();
        for file in ["certificate.pem", "key.pem", "bundle.pem"] {
            let target = directory.join("identity").join(file);
            std::os::unix::fs::symlink(target, links.join(file)).unwrap();
        }
        let listener = format!(
            "  inbound: [ {{ listen: \"unix:{}\", app: \"127.0.0.1:1\", protocol: tcp }}, {{",
            directory.join("sockets/in.sock").display()
        );
        let text = fs::read_to_string(&config)
            .unwrap()
            .replace("/identity/", "/links/")
            .replace("  inbound: [ {", &listener);
        fs::write(&config, text).unwrap();
    });
    assert!(sidecar.directory.path().join("sockets/in.sock").exists());
}

#[test]
fn a_listener_of_systemds_is_served_and_its_queue_is_kept() {
    let mut sidecar = Standalone::start();
    sidecar.process.kill();
    let listener = std::net::TcpListener::bind(sidecar.address).unwrap();
    let waiting = std::net::TcpStream::connect(sidecar.address).unwrap();
    let mut command = std::process::Command::new("/bin/sh");
    command
        .args([
            "-c",
            r#"exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@""#,
        ])
        .arg(binary())
        .args(["sidecar", "--config"])
        .arg(sidecar.directory.path().join("sidecar.yaml"))
        .stdin(std::os::fd::OwnedFd::from(listener))
        .stderr(fs::File::create(sidecar.directory.path().join("activated")).unwrap());
    let mut child = command.spawn().unwrap();
    wait_until("the activated sidecar is ready", PATIENCE, || {
        fs::read_to_string(sidecar.directory.path().join("activated"))
            .unwrap()
            .contains(" ready ")
    });
    // What waited is taken, and told that it speaks no TLS.
    use std::io::{Read, Write};
    waiting.set_read_timeout(Some(PATIENCE)).unwrap();
    (&waiting).write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = (&waiting).read_to_end(&mut answer);
    assert!(!answer.is_empty(), "somebody accepted");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_standalone_sidecar_supervises_whatever_control_plane_the_environment_names() {
    let mut sidecar = Standalone::start();
    sidecar.process.kill();
    let ended = std::process::Command::new(binary())
        .env("FENDER_CONTROL", "https://127.0.0.1:1")
        .args(["sidecar", "--config"])
        .arg(sidecar.directory.path().join("sidecar.yaml"))
        .args(["--", "/bin/sh", "-c", "exit 42"])
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(42), "{log}");
}

#[test]
fn an_idle_sidecar_ends_at_once() {
    let mut sidecar = Standalone::start();
    let began = std::time::Instant::now();
    sidecar.process.signal(rustix::process::Signal::TERM);
    assert_eq!(sidecar.process.wait(PATIENCE).code(), Some(0));
    let took = began.elapsed();
    // A drain that waited for nothing would take its 30 s.
    assert!(took < std::time::Duration::from_secs(20), "{took:?}");
}

#[test]
fn a_supervisor_passes_systemds_listener_to_the_proxy_and_never_to_the_application() {
    let mut sidecar = Standalone::start();
    sidecar.process.kill();
    let listener = std::net::TcpListener::bind(sidecar.address).unwrap();
    let script = r#"test ! -e /proc/self/fd/3 && test -z "$LISTEN_FDS$LISTEN_PID""#;
    let ended = std::process::Command::new("/bin/sh")
        .args([
            "-c",
            r#"exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@""#,
        ])
        .arg(binary())
        .args(["sidecar", "--config"])
        .arg(sidecar.directory.path().join("sidecar.yaml"))
        .args(["--", "/bin/sh", "-c", script])
        .stdin(std::os::fd::OwnedFd::from(listener))
        .output()
        .unwrap();
    // Were it not passed on, the proxy could not listen: the address is in use.
    let log = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(0), "{log}");
    assert!(log.contains(" ready "), "{log}");
}

#[test]
fn a_supervised_sidecar_whose_network_was_taken_away_ends_with_its_application() {
    let mut sidecar = Standalone::start();
    sidecar.process.kill();
    installed("ip");
    let script = r#"
        ip link set lo up && ip link add here type veth peer name there || exit 1
        "$0" sidecar --config "$1" -- /bin/sh -c 'ip link del here; exec sleep 100'
    "#;
    let ended = std::process::Command::new(installed("unshare"))
        .args(["--net", "/bin/sh", "-c", script])
        .arg(binary())
        .arg(sidecar.directory.path().join("sidecar.yaml"))
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(69), "{log}");
    assert!(log.contains("interface"), "{log}");
}

#[test]
fn a_certificate_that_the_bundle_does_not_vouch_for_is_refused_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let identity = directory.path().join("identity");
    Authority::new("example.org")
        .issue(&Template::svid(ORDERS))
        .write(&identity);
    Authority::new("example.org").write_bundle(&identity);
    let config = write_config(directory.path(), &identity, free_address(), free_address());
    let (code, _, err) = output(
        binary(),
        &["sidecar", "--config", &config.to_string_lossy()],
    );
    assert_eq!(code, 64, "{err}");
    assert!(
        err.contains("bundle.pem") && err.contains("vouches"),
        "{err}"
    );
}
