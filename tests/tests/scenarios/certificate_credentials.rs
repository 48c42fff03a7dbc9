//! A credential as the certificate of a port: from a file, from a Vault and through the control plane from Kubernetes, rotated under
//! load, kept while what replaces it does not fit, refused once it is withdrawn (DESIGN §9). Clients are real: openssl and curl.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use fender_tests::kubernetes::Api;
use fender_tests::pki::{Authority, Issued, Template};
use fender_tests::process::{PATIENCE, Process, binary, free_address, installed, output};
use fender_tests::vault::{Mode, ROLE_ID, Vault};
use fender_tests::{Client, Mesh, Nginx, wait_until};
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;

use crate::control_loss::{Load, one_service};
use crate::standalone::ORDERS;
use crate::telemetry::get;

const SHOP: &str = "shop.example.com";
const EVIL: &str = "evil.example.com";
/// By this the load asks.
const LOCAL: &str = "localhost";

/// The certificate that openssl is shown for a name; none if it is refused.
pub(crate) fn shown(port: SocketAddr, name: &str) -> Option<String> {
    let address = port.to_string();
    let options = ["s_client", "-connect", &address, "-servername", name];
    let (_, said, _) = output(installed("openssl"), &options);
    let (_, rest) = said.split_once("-----BEGIN CERTIFICATE-----")?;
    let (body, _) = rest.split_once("-----END CERTIFICATE-----")?;
    Some(body.split_whitespace().collect())
}

fn body(issued: &Issued) -> Option<String> {
    let lines = issued.pem().lines().filter(|line| !line.starts_with("---"));
    Some(lines.flat_map(str::split_whitespace).collect())
}

fn wait_for(port: SocketAddr, name: &str, expected: Option<&Issued>) {
    let what = format!("`{name}` is shown what it should be");
    let expected = expected.map(body);
    wait_until(&what, PATIENCE, || {
        shown(port, name) == expected.clone().flatten()
    });
}

/// What curl gets who believes the authority in this bundle: an HTTP status, or its own exit code.
fn curl(port: SocketAddr, name: &str, roots: &Path) -> Result<String, i32> {
    let (resolve, url) = (
        format!("{name}:{}:{}", port.port(), port.ip()),
        format!("https://{name}:{}/", port.port()),
    );
    let roots = roots.to_string_lossy();
    let options = [
        "--silent",
        "--output",
        "/dev/null",
        "--write-out",
        "%{http_code}",
    ];
    let options = [
        &options[..],
        &["--resolve", &resolve, "--cacert", &roots, &url],
    ]
    .concat();
    let (code, out, _) = output(installed("curl"), &options);
    match code {
        0 => Ok(out),
        code => Err(code),
    }
}

/// A sidecar alone, for consumers, with a credential for its certificate.
struct Consumer {
    directory: TempDir,
    port: SocketAddr,
    nginx: Nginx,
    /// Whom consumers believe.
    public: Authority,
}

impl Consumer {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new("example.org");
        let identity = directory.path().join("identity");
        authority.issue(&Template::svid(ORDERS)).write(&identity);
        authority.write_bundle(&identity);
        let public = Authority::new("public.test");
        public.write_bundle(&directory.path().join("public"));
        let nginx = Nginx::start(directory.path());
        Self {
            directory,
            port: free_address(),
            nginx,
            public,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn roots(&self) -> PathBuf {
        self.path("public/bundle.pem")
    }

    fn issue(&self, names: &[&str]) -> Issued {
        self.public.issue_for_names(names)
    }

    /// `source` is that of the credential `tls`.
    fn configure(&self, source: &str) {
        let (listen, app) = (self.port, self.nginx.address);
        let identity = self.path("identity");
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
      certificates: [ {{ credential: tls, names: [ {SHOP}, {LOCAL} ] }} ]
  credentials: [ tls ]
---
apiVersion: fender.dev/v1
kind: Credential
metadata: {{ namespace: shop, name: tls }}
spec:
  source: {{ {source} }}
  maxStale: 1s
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ namespace: shop, name: everybody }}
spec: {{ action: ALLOW, rules: [ {{}} ] }}
"#
        );
        fs::write(self.path("sidecar.yaml"), text).unwrap();
    }

    fn command(&self) -> Command {
        let mut command = Command::new(binary());
        command
            .env_clear()
            .args([
                "--log-format",
                "json",
                "--log",
                "debug",
                "sidecar",
                "--config",
            ])
            .arg(self.path("sidecar.yaml"))
            .arg("--state")
            .arg(self.path("state"));
        command
    }

    fn start(&self) -> Process {
        let mut process = Process::start("web", &mut self.command(), &self.path("log"));
        process.wait_ready(&self.socket());
        process
    }

    fn socket(&self) -> PathBuf {
        self.path("state/admin.sock")
    }

    fn status(&self) -> String {
        let socket = self.socket();
        let (_, out, err) = output(
            binary(),
            &["status", "--sidecar", &socket.to_string_lossy()],
        );
        format!("{out}{err}")
    }

    fn is_ready(&self) -> bool {
        get(&self.socket(), "/readyz").0 == "200"
    }

    fn wait_until_told(&self, what: &str) {
        wait_until(&format!("`{what}` is told"), PATIENCE, || {
            self.status().contains(what)
        });
    }

    /// Whether a monitoring system is told that something is wrong about the certificate.
    fn is_a_problem(&self) -> bool {
        let metrics = get(&self.socket(), "/metrics").1;
        let mut lines = metrics.lines();
        let line = lines.find(|line| line.starts_with("fender_port_certificate_problem{"));
        let line = line.unwrap_or_else(|| panic!("{metrics}"));
        line.ends_with(" 1")
    }

    fn replace(&self, value: &str) {
        fs::write(self.path("fresh"), value).unwrap();
        fs::rename(self.path("fresh"), self.path("tls.pem")).unwrap();
    }

    fn configure_file(&self) {
        let file = self.path("tls.pem");
        self.configure(&format!("file: {{ path: \"{}\" }}", file.display()));
    }

    /// No key is in anything that was written.
    fn assert_no_key_is_told(&self, keys: &[&Issued]) {
        let mut told = vec![self.status(), get(&self.socket(), "/metrics").1];
        told.push(fs::read_to_string(self.path("log")).unwrap());
        for issued in keys {
            let pem = issued.key.serialize_pem();
            for line in pem
                .lines()
                .filter(|line| line.len() > 20 && !line.contains("--"))
            {
                assert!(
                    told.iter().all(|text| !text.contains(line)),
                    "a key is told"
                );
            }
        }
    }
}

#[test]
fn a_certificate_from_a_file_is_rotated_under_load_kept_while_wrong_and_refused_once_withdrawn() {
    let consumer = Consumer::new();
    let first = consumer.issue(&[SHOP, LOCAL]);
    consumer.replace(&first.bundle());
    consumer.configure_file();
    let mut sidecar = consumer.start();
    wait_for(consumer.port, SHOP, Some(&first));
    assert_eq!(
        curl(consumer.port, SHOP, &consumer.roots()).as_deref(),
        Ok("200")
    );
    let own = shown(consumer.port, "elsewhere.example.com");
    assert!(own.is_some() && own != body(&first));

    // Ten times, under load: half of it makes a new connection for each request.
    let load = Load::of(
        Client::new(&[consumer.public.root()], None, consumer.port),
        4,
        4,
    );
    let mut last = first;
    for _ in 0..10 {
        last = consumer.issue(&[SHOP, LOCAL]);
        consumer.replace(&last.bundle());
        wait_for(consumer.port, SHOP, Some(&last));
    }
    wait_until("the load went on", PATIENCE, || load.answered() > 200);
    let done = load.finish();
    println!(
        "{} requests across ten certificates, {} failed",
        done.answered,
        done.failures.len()
    );
    assert_eq!(done.failures, Vec::<String>::new());
    assert!(consumer.is_ready() && !consumer.is_a_problem());

    // Attacks and accidents: nothing of it is shown, the one before is, and what is wrong is told, as is where.
    let evil = consumer.issue(&[EVIL]);
    let other = consumer.issue(&[SHOP, LOCAL]);
    let over = consumer.public.issue(&Template {
        uris: Vec::new(),
        dns: vec![SHOP.to_owned(), LOCAL.to_owned()],
        begins: -3000,
        ends: -60,
        is_ca: false,
    });
    let mismatched = format!("{}{}", other.key.serialize_pem(), last.pem());
    for (value, why) in [
        ("no PEM at all".to_owned(), "no certificate in the PEM text"),
        (last.pem().to_owned(), "no private key"),
        (mismatched, "does not belong to the certificate"),
        // Whoever may write the secret cannot take another name, nor give up one.
        (evil.bundle(), "is not for the name `shop.example.com`"),
        (over.bundle(), "has expired"),
        (
            format!("{}{}", other.bundle(), "\n".repeat(300_000)),
            "at most 262144",
        ),
    ] {
        consumer.replace(&value);
        consumer.wait_until_told(why);
        wait_until("it is a problem", PATIENCE, || consumer.is_a_problem());
        assert_eq!(shown(consumer.port, SHOP), body(&last), "{why}");
        assert_eq!(shown(consumer.port, EVIL), own, "{why}");
        // For longer than `maxStale`: as for every credential.
        wait_until("it is not ready", PATIENCE, || !consumer.is_ready());
        let told = sidecar.log();
        assert!(
            told.contains(why) && told.contains("shop/tls"),
            "{why}: {told}"
        );
    }
    // A value of more than any secret may have does not even get here; the certificate stays.
    consumer.replace(&"x".repeat(2 * 1024 * 1024));
    wait_until("it is said", PATIENCE, || {
        consumer.status().contains("shop/tls outdated for ")
    });
    assert_eq!(shown(consumer.port, SHOP), body(&last));
    let right = consumer.issue(&[SHOP, LOCAL]);
    consumer.replace(&right.bundle());
    wait_for(consumer.port, SHOP, Some(&right));
    wait_until("it is ready", PATIENCE, || {
        consumer.is_ready() && !consumer.is_a_problem()
    });

    // A successor has it before it takes the ports.
    let mut command = consumer.command();
    command
        .arg("--take-over")
        .arg(consumer.path("state/upgrade.sock"));
    let mut successor = Process::start("web", &mut command, &consumer.path("successor.log"));
    assert!(sidecar.wait(PATIENCE).success(), "{}", sidecar.log());
    successor.assert_running();
    assert_eq!(shown(consumer.port, SHOP), body(&right));
    let after = consumer.issue(&[SHOP, LOCAL]);
    consumer.replace(&after.bundle());
    wait_for(consumer.port, SHOP, Some(&after));

    // Taken back: refused, and nothing else is shown for it.
    fs::remove_file(consumer.path("tls.pem")).unwrap();
    wait_for(consumer.port, SHOP, None);
    // 35: the handshake failed.
    assert_eq!(curl(consumer.port, SHOP, &consumer.roots()), Err(35));
    assert_eq!(shown(consumer.port, "elsewhere.example.com"), own);
    consumer.wait_until_told("withdrawn");
    assert!(consumer.is_a_problem() && consumer.is_ready());
    consumer.replace(&right.bundle());
    wait_for(consumer.port, SHOP, Some(&right));
    consumer.assert_no_key_is_told(&[&last, &evil, &other, &over, &right, &after]);
    successor.signal(Signal::TERM);
    assert!(successor.wait(PATIENCE).success(), "{}", successor.log());
}

#[test]
fn a_sidecar_does_not_start_without_the_certificate() {
    let consumer = Consumer::new();
    consumer.configure_file();
    let ends = |code: i32, why: &str| {
        let mut process = Process::start("web", &mut consumer.command(), &consumer.path("log"));
        let status = process.wait(PATIENCE);
        let log = process.log();
        assert_eq!(status.code(), Some(code), "{log}");
        assert!(log.contains(why) && log.contains("shop/tls"), "{log}");
        assert_eq!(shown(consumer.port, SHOP), None);
    };
    ends(66, "tls.pem");
    consumer.replace(&consumer.issue(&[EVIL]).bundle());
    ends(66, "is not for the name `shop.example.com`");
}

#[test]
fn a_certificate_that_vault_issued_is_shown_and_follows_it() {
    let consumer = Consumer::new();
    let authority = Authority::new("vault.test");
    let vault = Vault::start(&authority);
    let roots = authority.write_bundle(&consumer.path("vault"));
    let secret_id = vault.write_secret_id(&consumer.path("vault"));
    let issued = |issued: &Issued| {
        let key = issued.key.serialize_pem();
        let root = fs::read_to_string(consumer.roots()).unwrap();
        let data = json!({ "certificate": issued.pem(), "private_key": key, "ca_chain": [ root ],
            "serial_number": "39:dd:2e", "private_key_type": "ec" });
        json!({ "issued": data.to_string() })
    };
    let first = consumer.issue(&[SHOP, LOCAL]);
    vault.write("web/tls", issued(&first));
    consumer.configure(&format!(
        "vault: {{ address: \"{}\", roots: {{ file: \"{}\" }}, login: {{ appRole: {{ roleId: {ROLE_ID}, secretIdFile: \"{}\" }} }}, \
         kv2: {{ path: web/tls, key: issued }}, refresh: 1s }}",
        vault.url(),
        roots.display(),
        secret_id.display(),
    ));
    let mut sidecar = consumer.start();
    wait_for(consumer.port, SHOP, Some(&first));
    let second = consumer.issue(&[SHOP, LOCAL]);
    vault.write("web/tls", issued(&second));
    wait_for(consumer.port, SHOP, Some(&second));

    // An outage for longer than `maxStale`: the certificate is shown for as long as it is valid, and readiness says it.
    vault.be(Mode::Away);
    wait_until("it is not ready", PATIENCE, || !consumer.is_ready());
    assert_eq!(shown(consumer.port, SHOP), body(&second));
    assert!(
        !consumer.is_a_problem(),
        "nothing is wrong about the certificate itself"
    );
    vault.be(Mode::Answers);
    wait_until("it is ready", PATIENCE, || consumer.is_ready());

    // Half a pair is no certificate.
    let half = json!({ "certificate": first.pem() }).to_string();
    vault.write("web/tls", json!({ "issued": half }));
    consumer.wait_until_told("no field `private_key`");
    assert_eq!(shown(consumer.port, SHOP), body(&second));
    vault.write("web/tls", issued(&first));
    wait_for(consumer.port, SHOP, Some(&first));

    vault.deny("secret/data/web/tls", true);
    wait_for(consumer.port, SHOP, None);
    vault.deny("secret/data/web/tls", false);
    wait_for(consumer.port, SHOP, Some(&first));
    consumer.assert_no_key_is_told(&[&first, &second]);
    sidecar.signal(Signal::TERM);
    assert!(sidecar.wait(PATIENCE).success(), "{}", sidecar.log());
}

#[test]
fn a_tls_secret_of_kubernetes_is_shown_through_the_control_plane() {
    let authority = Authority::new("cluster.test");
    let public = Authority::new("public.test");
    let api = Api::start(&authority);
    let port = free_address();
    let mesh = Mesh::start(&one_service("1h", port, free_address()));
    let roots = authority.write_bundle(&mesh.path("access"));
    api.write_token(&mesh.path("access/token"));
    api.allow("web-tls", true);
    let issue = || {
        let issued = public.issue_for_names(&[SHOP]);
        let key = issued.key.serialize_pem();
        let data = [
            ("tls.crt", issued.pem().as_bytes()),
            ("tls.key", key.as_bytes()),
        ];
        api.write("shop", "web-tls", &data);
        issued
    };
    let first = issue();
    let documents = fs::read_to_string(mesh.path("documents/mesh.yaml")).unwrap();
    let documents = documents
        .replace("  dnsNames: [ localhost ]\n", "  dnsNames: [ localhost ]\n  credentials: [ tls ]\n")
        .replace(
            "protocol: http }",
            &format!(
                "protocol: http, clientCertificate: accept, certificates: [ {{ credential: tls, names: [ {SHOP} ] }} ] }}"
            ),
        );
    let documents = format!(
        r#"{documents}---
apiVersion: fender.dev/v1
kind: Credential
metadata: {{ namespace: shop, name: tls }}
spec:
  source:
    kubernetesSecret:
      name: web-tls
      namespace: shop
      cluster: {{ api: "{}", roots: {{ file: "{}" }}, token: {{ file: "{}" }} }}
      via: control
"#,
        api.url(),
        roots.display(),
        mesh.path("access/token").display(),
    );
    let (code, out, err) = mesh.apply(&documents);
    assert_eq!(code, 0, "{out}{err}");
    let mut sidecar = mesh.sidecar("shop/orders", &[]);
    wait_for(port, SHOP, Some(&first));
    let second = issue();
    wait_for(port, SHOP, Some(&second));

    // A document gives it another name: those that stay are shown throughout, the new one is refused until there is one for it.
    let more = documents.replace(
        &format!("names: [ {SHOP} ]"),
        &format!("names: [ {SHOP}, api.example.com ]"),
    );
    let (code, out, err) = mesh.apply(&more);
    assert_eq!(code, 0, "{out}{err}");
    wait_for(port, "api.example.com", None);
    assert_eq!(shown(port, SHOP), body(&second));
    let both = public.issue_for_names(&[SHOP, "api.example.com"]);
    let key = both.key.serialize_pem();
    api.write(
        "shop",
        "web-tls",
        &[
            ("tls.crt", both.pem().as_bytes()),
            ("tls.key", key.as_bytes()),
        ],
    );
    wait_for(port, "api.example.com", Some(&both));
    wait_for(port, SHOP, Some(&both));

    api.delete("shop", "web-tls");
    wait_for(port, SHOP, None);
    // No key went anywhere but to the workload: neither into the store nor into a log.
    for file in [
        "control/control.db",
        "logs/control.log",
        "logs/shop-orders.log",
    ] {
        let text = fs::read(mesh.path(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        let line = key.lines().nth(1).unwrap().as_bytes();
        assert!(!text.windows(line.len()).any(|part| part == line), "{file}");
    }
    sidecar.signal(Signal::TERM);
    assert!(sidecar.wait(PATIENCE).success(), "{}", sidecar.log());
}
