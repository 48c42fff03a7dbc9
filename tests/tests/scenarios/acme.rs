//! Certificates from an ACME authority (RFC 8555), by a real one: got, renewed, kept, and asked for by nobody else's leave.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use fender_tests::pebble::{CUSTOMER, CUSTOMER_KEY, Offer, Pebble};
use fender_tests::pki::{Authority, Template};
use fender_tests::process::{
    PATIENCE, Process, binary, free_address, free_port, installed, output,
};
use fender_tests::{Nginx, openssl, wait_until};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinSet, block_in_place};

use crate::standalone::ORDERS;

const SHOP: &str = "shop.example.com";
const API: &str = "api.example.com";
const NEW: &str = "new.example.com";

/// Stands before a port, and lets nobody through before it is opened.
struct Gate {
    address: SocketAddr,
    open: watch::Sender<bool>,
    _task: JoinSet<()>,
}

impl Gate {
    async fn before(port: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (open, opened) = watch::channel(false);
        let let_through = async move {
            let mut through = JoinSet::new();
            while let Ok((mut from, _)) = listener.accept().await {
                let mut opened = opened.clone();
                through.spawn(async move {
                    opened.wait_for(|open| *open).await.unwrap();
                    let mut to = TcpStream::connect(port).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
                });
            }
        };
        Self {
            address,
            open,
            _task: JoinSet::from_iter([let_through]),
        }
    }

    fn open(&self) {
        self.open.send_replace(true);
    }
}

/// A sidecar for consumers, which gets its certificate from an authority.
struct Consumer {
    directory: TempDir,
    listen: SocketAddr,
    nginx: Nginx,
}

impl Consumer {
    fn new(listen: SocketAddr) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new("example.org");
        let identity = directory.path().join("identity");
        authority.issue(&Template::svid(ORDERS)).write(&identity);
        authority.write_bundle(&identity);
        let nginx = Nginx::start(directory.path());
        Self {
            directory,
            listen,
            nginx,
        }
    }

    /// `acme` is what the certificate's document says of its authority.
    fn start(&self, acme: &str) -> Process {
        self.write(&[SHOP, API], acme);
        self.start_as_written()
    }

    /// Whatever runs follows it.
    fn write(&self, names: &[&str], acme: &str) {
        let (listen, app, names) = (self.listen, self.nginx.address, names.join(", "));
        let home = self.directory.path();
        let identity = home.join("identity");
        let identity = identity.display();
        let text = format!(
            r#"apiVersion: fender.dev/v1
kind: Sidecar
metadata: {{ namespace: shop, name: web }}
spec:
  identity: {{ files: {{ certificate: {identity}/certificate.pem, key: {identity}/key.pem, bundle: {identity}/bundle.pem }} }}
  inbound:
    - listen: "{listen}"
      app: "{app}"
      protocol: http
      clientCertificate: accept
      certificates:
        - names: [ {names} ]
          acme: {{ termsOfService: agreed, {acme} }}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ namespace: shop, name: everybody }}
spec: {{ action: ALLOW, rules: [ {{}} ] }}
"#
        );
        // Never to be seen half written.
        let (config, beside) = (home.join("sidecar.yaml"), home.join("sidecar.new"));
        fs::write(&beside, text).unwrap();
        fs::rename(beside, config).unwrap();
    }

    fn start_as_written(&self) -> Process {
        self.start_with(&[])
    }

    fn start_with(&self, more: &[&str]) -> Process {
        let home = self.directory.path();
        let mut command = Command::new(binary());
        command
            .env_clear()
            .args(["--log", "debug", "sidecar", "--config"]);
        command.arg(home.join("sidecar.yaml"));
        command.arg("--state").arg(home.join("state")).args(more);
        let mut process = Process::start("web", &mut command, &home.join("log"));
        process.wait_ready(&self.socket());
        process
    }

    fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("state/admin.sock")
    }

    fn status(&self) -> String {
        let socket = self.socket();
        let socket = socket.to_str().unwrap();
        let (code, out, err) = output(binary(), &["status", "--sidecar", socket]);
        assert_eq!(code, 0, "{err}");
        out
    }

    /// What a consumer gets who believes these roots.
    fn get(&self, roots: &Path, name: &str) -> openssl::Spoken {
        let roots = roots.to_str().unwrap();
        let options = [
            "-CAfile",
            roots,
            "-servername",
            name,
            "-verify_hostname",
            name,
        ];
        openssl::get_as(
            self.listen,
            &self.directory.path().join("identity"),
            &options,
        )
    }

    /// The certificate shown for a name, whoever vouches for it.
    fn leaf(&self, name: &str) -> String {
        let address = self.listen.to_string();
        let options = ["s_client", "-connect", &address, "-servername", name];
        let (_, said, err) = output(installed("openssl"), &options);
        let begin = said.find("-----BEGIN CERTIFICATE-----");
        let end = said.find("-----END CERTIFICATE-----");
        let (Some(begin), Some(end)) = (begin, end) else {
            panic!("nothing is shown for {name}: {said}{err}")
        };
        said[begin..end].to_owned()
    }

    /// Whether the port proves to an authority that the name is ours.
    fn proves(&self, name: &str) -> bool {
        let address = self.listen.to_string();
        let options = [
            "s_client",
            "-connect",
            &address,
            "-servername",
            name,
            "-alpn",
            "acme-tls/1",
        ];
        let (_, said, _) = output(installed("openssl"), &options);
        said.contains("ALPN protocol: acme-tls/1")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Whether an order was placed of which nothing has come yet.
    fn has_pending_order(&self) -> bool {
        let entries = fs::read_dir(self.directory.path().join("state/acme"));
        let mut paths = entries.into_iter().flatten().flatten();
        paths.any(|entry| entry.path().extension().is_some_and(|end| end == "order"))
    }

    /// The files that hold keys.
    fn kept(&self) -> Vec<std::path::PathBuf> {
        let entries = fs::read_dir(self.directory.path().join("state/acme")).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths
            .filter(|path| !path.to_string_lossy().contains("/attempts-"))
            .collect()
    }
}

fn acme(pebble: &Pebble, more: &str) -> String {
    let roots = pebble.roots();
    format!(
        "directory: \"{}\", roots: {{ file: {} }}{more}",
        pebble.directory(),
        roots.display()
    )
}

fn offer(tls: u16, lifetime: u32) -> Offer {
    Offer {
        tls,
        http: free_port(),
        lifetime,
        customers_only: false,
    }
}

#[test]
fn a_certificate_is_got_by_tls_alpn_renewed_and_kept_over_restarts() {
    let consumer = Consumer::new(free_address());
    let mut pebble = Pebble::new(&offer(consumer.listen.port(), 30));
    pebble.up();
    let root = consumer.directory.path().join("issuing.pem");
    pebble.write_issuing_root(&root);
    let mut sidecar = consumer.start(&acme(&pebble, ""));
    for name in [SHOP, API] {
        wait_until("it is served", PATIENCE, || {
            consumer.get(&root, name).answered(200)
        });
    }
    let status = consumer.status();
    assert!(
        status.contains(&format!("shown          {SHOP} {API} until")),
        "{status}"
    );

    // Nobody asks now, and the port knows no such protocol (RFC 8737).
    let probe = consumer.get(&root, SHOP);
    assert!(probe.answered(200));
    let probe = openssl::get_as(
        consumer.listen,
        &consumer.directory.path().join("identity"),
        &["-servername", SHOP, "-alpn", "acme-tls/1"],
    );
    assert!(!probe.answered(200), "{probe:?}");
    assert!(
        probe.told.contains("alert no application protocol"),
        "{probe:?}"
    );

    // It goes live without a restart, long before the one before it ends.
    let first = consumer.leaf(SHOP);
    wait_until("it is renewed", PATIENCE, || consumer.leaf(SHOP) != first);
    assert!(consumer.get(&root, SHOP).answered(200));
    sidecar.assert_running();
    assert!(
        pebble.log().contains("nonce"),
        "nonces were refused on the way"
    );

    // Attack: what is kept is nobody else's to read.
    let kept = consumer.kept();
    assert_eq!(kept.len(), 2, "{kept:?}");
    for path in kept {
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", path.display());
    }

    // The authority is away, and a new process shows what the one before it got.
    let second = consumer.leaf(SHOP);
    pebble.down();
    drop(sidecar);
    let mut sidecar = consumer.start(&acme(&pebble, ""));
    let shown = consumer.leaf(SHOP);
    assert!(shown == second, "not the one that was kept");
    wait_until("that it cannot be renewed is said", PATIENCE, || {
        consumer.status().contains("PROBLEM")
    });
    assert!(
        consumer
            .status()
            .contains("the directory cannot be used now"),
        "{}",
        consumer.status()
    );

    // It comes back, knows nobody any more, and has another root.
    pebble.up();
    pebble.write_issuing_root(&root);
    wait_until("the authority's new root is served", PATIENCE, || {
        consumer.get(&root, SHOP).answered(200)
    });
    wait_until("all is well", PATIENCE, || {
        !consumer.status().contains("PROBLEM")
    });
    sidecar.assert_running();
}

#[test]
fn a_certificate_is_got_by_http_at_a_port_that_does_nothing_else() {
    let consumer = Consumer::new(free_address());
    let challenge = free_address();
    let mut pebble = Pebble::new(&Offer {
        tls: free_port(),
        http: challenge.port(),
        lifetime: 3600,
        customers_only: true,
    });
    let key = consumer.directory.path().join("hmac");
    fs::write(&key, CUSTOMER_KEY).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let more = format!(
        ", httpChallenge: \"{challenge}\", externalAccount: {{ keyId: {CUSTOMER}, key: {} }}",
        key.display()
    );

    // The authority is not there yet: the sidecar serves all the same, and says what is missing.
    let mut sidecar = consumer.start(&acme(&pebble, &more));
    wait_until("it is said", PATIENCE, || {
        consumer
            .status()
            .contains("the directory cannot be used now")
    });
    let own = consumer.leaf("elsewhere.example.com");
    assert_eq!(consumer.leaf(SHOP), own, "the workload's own stands in");
    pebble.up();
    let root = consumer.directory.path().join("issuing.pem");
    pebble.write_issuing_root(&root);
    for name in [SHOP, API] {
        wait_until("it is served", PATIENCE, || {
            consumer.get(&root, name).answered(200)
        });
    }

    // What else is asked there: a token of nobody's, other paths, other hosts.
    let ask = |host: &str, path: &str| {
        let url = format!("http://{challenge}{path}");
        let host = format!("Host: {host}");
        let form = "%{http_code} %{redirect_url}";
        let options = ["-s", "-o", "/dev/null", "-w", form, "-H", &host, &url];
        output(installed("curl"), &options).1
    };
    let token = "/.well-known/acme-challenge/0123456789abcdefghijklmnopqrstuvwxyzABCDEFG";
    assert_eq!(ask(SHOP, token), "404 ");
    assert_eq!(ask(SHOP, "/.well-known/acme-challenge/"), "404 ");
    assert_eq!(ask(SHOP, "/buy?x=1"), format!("308 https://{SHOP}/buy?x=1"));
    assert_eq!(ask("attacker.example.net", "/buy"), "404 ");
    sidecar.assert_running();
}

#[test]
fn when_names_change_the_ones_that_stay_are_served_until_the_new_certificate_is_there() {
    let consumer = Consumer::new(free_address());
    let mut pebble = Pebble::new(&offer(consumer.listen.port(), 3600));
    pebble.up();
    let acme = acme(&pebble, "");
    let sidecar = consumer.start(&acme);
    let own = consumer.leaf("elsewhere.example.com");
    wait_until("it is served", PATIENCE, || consumer.leaf(SHOP) != own);
    let first = consumer.leaf(SHOP);
    assert_eq!(consumer.leaf(API), first);

    // The authority is away as one name is dropped and another is wanted.
    pebble.down();
    consumer.write(&[SHOP, NEW], &acme);
    wait_until("that is followed", PATIENCE, || consumer.leaf(API) == own);
    assert_eq!(consumer.leaf(SHOP), first);
    assert_eq!(consumer.leaf(NEW), own, "nobody vouches for it yet");
    wait_until("it is said", PATIENCE, || {
        let status = consumer.status();
        status.contains(&format!("the one before stands in for {SHOP}"))
    });

    // One that starts so finds what the one before it got.
    drop(sidecar);
    let mut sidecar = consumer.start_as_written();
    assert_eq!(consumer.leaf(SHOP), first);
    assert_eq!(consumer.leaf(NEW), own);

    pebble.up();
    wait_until("the new one is served", PATIENCE, || {
        consumer.leaf(NEW) != own
    });
    assert_eq!(consumer.leaf(SHOP), consumer.leaf(NEW));
    assert_ne!(consumer.leaf(SHOP), first);
    assert_eq!(consumer.leaf(API), own);
    wait_until("all is well", PATIENCE, || {
        !consumer.status().contains("PROBLEM")
    });
    sidecar.assert_running();
}

const TAKEN_UP: &str = "taking up an order that was not finished";

/// Places an order whose authority has no answer yet to what it asks. Whoever is there after `changed` must go on with it.
async fn an_order_is_pending(more: &[&str], changed: impl FnOnce(&Consumer, Process) -> Process) {
    let consumer = Consumer::new(free_address());
    let gate = Gate::before(consumer.listen).await;
    let mut pebble = Pebble::new(&offer(gate.address.port(), 3600));
    block_in_place(|| {
        pebble.up();
        consumer.write(&[SHOP, API], &acme(&pebble, ""));
        let sidecar = consumer.start_with(more);
        let own = consumer.leaf("elsewhere.example.com");
        let proves = || consumer.proves(SHOP) && consumer.proves(API);
        wait_until("an order is pending", PATIENCE, || {
            consumer.has_pending_order() && proves()
        });
        let mut sidecar = changed(&consumer, sidecar);
        wait_until("it is taken up", PATIENCE, || {
            consumer.log().contains(TAKEN_UP) && proves()
        });
        assert_eq!(consumer.leaf(SHOP), own);
        gate.open();
        wait_until("it is served", PATIENCE, || consumer.leaf(SHOP) != own);
        assert_eq!(consumer.leaf(SHOP), consumer.leaf(API));
        wait_until("all is well", PATIENCE, || {
            !consumer.has_pending_order() && !consumer.status().contains("PROBLEM")
        });
        let log = pebble.log();
        assert_eq!(log.matches("Added order").count(), 1, "{log}");
        assert_eq!(log.matches("Issued certificate").count(), 1, "{log}");
        sidecar.assert_running();
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_is_pending_at_an_upgrade_is_finished_by_the_successor() {
    an_order_is_pending(&["--supervise"], |consumer, sidecar| {
        let socket = consumer.directory.path().join("state/upgrade.sock");
        let asked = ["upgrade", "--sidecar", socket.to_str().unwrap()];
        let (code, _, err) = output(binary(), &asked);
        assert_eq!(code, 0, "{err}");
        sidecar
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_is_pending_as_its_process_dies_is_finished_by_the_next() {
    an_order_is_pending(&[], |consumer, mut sidecar| {
        sidecar.kill();
        consumer.start_as_written()
    })
    .await;
}

#[test]
fn a_port_for_challenges_that_is_taken_keeps_nobody_from_being_served_and_its_certificate_waits() {
    let consumer = Consumer::new(free_address());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let challenge = taken.local_addr().unwrap();
    let mut pebble = Pebble::new(&Offer {
        tls: free_port(),
        http: challenge.port(),
        lifetime: 3600,
        customers_only: false,
    });
    pebble.up();
    let more = format!(", httpChallenge: \"{challenge}\"");
    let mut sidecar = consumer.start(&acme(&pebble, &more));
    let own = consumer.leaf(SHOP);
    wait_until("it is said", PATIENCE, || {
        consumer.status().contains(&format!(
            "nobody listens yet where it would ask: on `{challenge}`"
        ))
    });
    assert!(
        !pebble.log().contains("calling handler"),
        "{}",
        pebble.log()
    );
    let said = format!("cannot listen on `{challenge}`");
    assert_eq!(consumer.log().matches(&said).count(), 1);
    drop(taken);
    wait_until("it is served", PATIENCE, || consumer.leaf(SHOP) != own);
    wait_until("all is well", PATIENCE, || {
        !consumer.status().contains("PROBLEM")
    });
    sidecar.assert_running();
}

#[test]
fn attack_a_directory_that_no_given_root_vouches_for_is_told_nothing() {
    let consumer = Consumer::new(free_address());
    let mut pebble = Pebble::new(&offer(consumer.listen.port(), 3600));
    pebble.up();
    let bundle = consumer.directory.path().join("identity/bundle.pem");
    let acme = format!(
        "directory: \"{}\", roots: {{ file: {} }}",
        pebble.directory(),
        bundle.display()
    );
    let mut sidecar = consumer.start(&acme);
    wait_until("it is said", PATIENCE, || {
        consumer
            .status()
            .contains("the directory cannot be used now")
    });
    // It heard how the handshake ended, and no word more.
    let log = pebble.log();
    assert!(log.contains("TLS handshake error"), "{log}");
    assert!(!log.contains("calling handler"), "{log}");
    assert_eq!(consumer.kept(), Vec::<std::path::PathBuf>::new());
    sidecar.assert_running();
}
