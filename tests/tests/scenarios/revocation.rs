//! I4: a revocation severs what is open within a second of the push, in both directions and in every protocol.

use std::io::Read as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Instant;

use fender_tests::process::{PATIENCE, free_address, installed, wait_until};
use fender_tests::{Client, Mesh, Nginx};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn documents(
    http: SocketAddr,
    app: SocketAddr,
    tcp: SocketAddr,
    echo: SocketAddr,
    out: SocketAddr,
) -> String {
    Mesh::documents(
        "1h",
        &format!(
            r#"apiVersion: fender.dev/v1
kind: Workload
metadata: {{ namespace: shop, name: orders, labels: {{ app: orders }} }}
spec:
  attest: [ {{ token: {{}} }} ]
  dnsNames: [ localhost ]
  inbound:
    - {{ listen: "{http}", app: "{app}", protocol: http }}
    - {{ listen: "{tcp}", app: "{echo}", protocol: tcp }}
---
apiVersion: fender.dev/v1
kind: Workload
metadata: {{ namespace: shop, name: web }}
spec:
  attest: [ {{ token: {{}} }} ]
  outbound: [ {{ listen: "{out}", service: shop/orders, port: {port}, address: "{tcp}" }} ]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ namespace: shop, name: callers-of-orders }}
spec:
  selector: {{ matchLabels: {{ app: orders }} }}
  action: ALLOW
  rules:
    - from: [ {{ source: {{ namespaces: [ people, shop ] }} }} ]
"#,
            port = tcp.port(),
        ),
    )
}

/// An application that sends everything back, until this process ends.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut writer = socket.try_clone().unwrap();
                let _ = std::io::copy(&mut &socket, &mut writer);
            });
        }
    });
    address
}

/// The moment at which a plain connection ended.
fn watch_plain(mut stream: TcpStream) -> JoinHandle<Instant> {
    std::thread::spawn(move || {
        let mut byte = [0];
        while matches!(stream.read(&mut byte), Ok(1)) {}
        Instant::now()
    })
}

pub(crate) fn serial(certificate: &Path) -> String {
    let chain = fender_tests::client::certificates(certificate);
    let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
    leaf.raw_serial()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[test]
fn open_connections_of_a_revoked_peer_are_severed() {
    let nginx_home = tempfile::tempdir().unwrap();
    let nginx = Nginx::start(nginx_home.path());
    let (http, tcp, out) = (free_address(), free_address(), free_address());
    let mesh = Mesh::start(&documents(http, nginx.address, tcp, echo(), out));
    let _orders = mesh.sidecar("shop/orders", &[]);
    let _web = mesh.sidecar("shop/web", &[]);
    let runtime = tokio::runtime::Runtime::new().unwrap();

    // A person with a connection of each kind.
    let person = mesh.person("mallory");
    let client = Client::from_directory(&person, http);
    let raw = Client::from_directory(&person, tcp);
    let (mut http1, mut http2, mut bytes) = runtime.block_on(async {
        let mut http1 = client.open().await.unwrap();
        let mut http2 = client.open_http2().await.unwrap();
        let mut bytes = raw.connect().await.unwrap();
        assert_eq!(http1.get("/").await.unwrap().status, 200);
        assert_eq!(http2.get("/").await.unwrap().status, 200);
        bytes.write_all(b"ping").await.unwrap();
        let mut heard = [0; 4];
        bytes.read_exact(&mut heard).await.unwrap();
        (http1, http2, bytes)
    });
    let severed = runtime.spawn(async move {
        let mut rest = Vec::new();
        let _ = bytes.read_to_end(&mut rest).await;
        Instant::now()
    });
    let serial = serial(&person.join("certificate.pem"));
    let asked = Instant::now();
    mesh.fender_ok(&["revoke", "serial", &serial, "--reason", "laptop stolen"]);
    let pushed = Instant::now();
    let severed = runtime
        .block_on(async { tokio::time::timeout(PATIENCE, severed).await })
        .expect("TCP is severed")
        .unwrap();
    wait_until("HTTP connections are severed", PATIENCE, || {
        http1.is_closed() && http2.is_closed()
    });
    let http_after = pushed.elapsed();
    let bytes_after = severed.saturating_duration_since(pushed);
    let since_asked = severed.duration_since(asked);
    runtime.block_on(async {
        assert!(http1.get("/").await.is_err() && http2.get("/").await.is_err());
        assert!(
            client.get("/").await.is_err(),
            "a revoked person is refused"
        );
    });
    assert!(mesh.fender_ok(&["revocations"]).contains("laptop stolen"));

    // The other direction: an application's call to a workload that is revoked while it is open.
    let other = mesh.client(http);
    let call = TcpStream::connect(out).unwrap();
    std::io::Write::write_all(&mut &call, b"ping").unwrap();
    let mut heard = [0; 4];
    (&call).read_exact(&mut heard).unwrap();
    call.set_read_timeout(Some(PATIENCE)).unwrap();
    let call = watch_plain(call);
    mesh.fender_ok(&[
        "revoke",
        "workload",
        "shop/orders",
        "--reason",
        "compromised",
    ]);
    let pushed = Instant::now();
    let call_after = call.join().unwrap().saturating_duration_since(pushed);
    assert!(call_after < PATIENCE, "an outbound call is severed");
    println!(
        "TCP severed {since_asked:?} after the command began; after it had its answer: TCP severed in {bytes_after:?}, HTTP/1.1 and HTTP/2 in {http_after:?}, \
         an outbound call in {call_after:?}"
    );

    // Who is revoked comes back by attesting anew, and serves again.
    drop(_orders);
    std::fs::remove_dir_all(mesh.state("shop/orders")).unwrap();
    let _orders = mesh.sidecar("shop/orders", &[]);
    wait_until("the workload serves again", PATIENCE, || {
        let again = runtime.block_on(other.get("/"));
        again.is_ok_and(|answer| answer.status == 200)
    });
}

/// What openssl says of a person's certificate, every authority of its chain asked for a list.
fn openssl(mesh: &Mesh, person: &Path) -> String {
    let lists = mesh.path("lists");
    std::fs::create_dir_all(&lists).unwrap();
    mesh.fender_ok(&["crl", "--output", &lists.to_string_lossy()]);
    let output = Command::new(installed("openssl"))
        .args(["verify", "-crl_check_all", "-purpose", "any", "-CAfile"])
        .arg(person.join("bundle.pem"))
        .arg("-CRLfile")
        .arg(lists.join("crl.pem"))
        .arg("-untrusted")
        .arg(person.join("certificate.pem"))
        .arg(person.join("certificate.pem"))
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&said).into_owned()
}

#[test]
fn openssl_believes_the_lists_and_refuses_whom_they_name() {
    let mesh = Mesh::start(&Mesh::documents("1h", ""));
    let (kept, lost) = (mesh.person("alice"), mesh.person("mallory"));
    for person in [&kept, &lost] {
        let said = openssl(&mesh, person);
        assert!(said.trim_end().ends_with(": OK"), "{said}");
    }
    let serial = serial(&lost.join("certificate.pem"));
    mesh.fender_ok(&["revoke", "serial", &serial, "--reason", "laptop stolen"]);
    wait_until("the next list names the certificate", PATIENCE, || {
        openssl(&mesh, &lost).contains("certificate revoked")
    });
    let said = openssl(&mesh, &kept);
    assert!(said.trim_end().ends_with(": OK"), "{said}");
    // The same on standard output.
    let printed = mesh.fender_ok(&["crl"]);
    let written = std::fs::read_to_string(mesh.path("lists/crl.pem")).unwrap();
    assert_eq!(printed, written);
}
