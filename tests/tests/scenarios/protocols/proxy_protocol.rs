//! PROXY headers of version 2, as HAProxy writes them and as HAProxy, nginx and Python read them.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use fender_tests::installed;
use fender_tests::process::{Process, free_address, wait_for_port};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

use super::{Adapter, CALLER, CALLERS, OPEN, app, told};

/// Another address of this machine, which is not the balancer's.
const CLIENT: &str = "127.0.0.9";

/// HAProxy with this configuration, once it listens on `address`.
fn haproxy(directory: &Path, address: SocketAddr, config: &str) -> Process {
    let file = directory.join("haproxy.cfg");
    fs::write(&file, format!("{DEFAULTS}{config}")).unwrap();
    let mut command = Command::new(installed("haproxy"));
    command.args(["-db", "-f"]).arg(file);
    let mut process = Process::start("haproxy", &mut command, &directory.join("haproxy.log"));
    wait_for_port(address, &mut process);
    process
}

const DEFAULTS: &str =
    "defaults\n  timeout connect 10s\n  timeout client 60s\n  timeout server 60s\n";

/// HAProxy that passes TLS through and says where it comes from, as `sends` has it.
fn balancer(directory: &Path, fender: SocketAddr, sends: &str) -> (SocketAddr, Process) {
    let address = free_address();
    let config = format!(
        "frontend front\n  mode tcp\n  unique-id-format %{{+X}}o\\ %ci:%cp_%Ts\n  bind {address}\n  default_backend back\n\
         backend back\n  mode tcp\n  server fender {fender} source 127.0.0.1 {sends}\n"
    );
    (address, haproxy(directory, address, &config))
}

#[test]
fn a_client_of_haproxy_is_who_it_is_for_policies_lines_and_the_app() {
    let directory = tempfile::tempdir().unwrap();
    let where_to = free_address();
    let _app = app("app.py", &["http", &where_to.to_string()], &directory);
    // Only this client may; were it judged by the balancer's address it could not.
    let policy = format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{ namespace: shop, name: one }}\nspec:\n  \
         action: ALLOW\n  rules: [ {{ from: [ {{ source: {{ remoteIpBlocks: [ {CLIENT} ], ipBlocks: [ 127.0.0.1 ] }} }} ] }} ]\n"
    );
    let port = "protocol: http, proxyProtocol: { version: v2, from: [ 127.0.0.1 ] }";
    let adapter = Adapter::start(where_to, port, &policy);
    for (turn, sends) in [
        "send-proxy-v2",
        "send-proxy-v2 proxy-v2-options crc32c,unique-id,authority",
        "send-proxy-v2-ssl-cn proxy-v2-options crc32c,ssl,cert-cn",
    ]
    .into_iter()
    .enumerate()
    {
        let home = tempfile::tempdir().unwrap();
        let (front, _haproxy) = balancer(home.path(), adapter.address, sends);
        let path = format!("/turn-{turn}");
        let from = |ip: &str| {
            adapter
                .curl(front, &path)
                .args(["--interface", ip])
                .output()
        };
        let seen: Value = serde_json::from_slice(&from(CLIENT).unwrap().stdout).unwrap();
        assert_eq!(seen["fields"]["x-forwarded-for"][0], CLIENT, "{sends}");
        let other = from("127.0.0.8").unwrap().stdout;
        assert!(
            String::from_utf8_lossy(&other).contains("denied"),
            "{sends}"
        );
        let line = adapter.logs(&["access", &path, "\"outcome\":\"ok\""]);
        let line: Value = serde_json::from_str(&line).unwrap();
        let ip = |name: &str| line[name].as_str().unwrap().rsplit_once(':').unwrap().0;
        assert_eq!((ip("source"), ip("via")), (CLIENT, "127.0.0.1"), "{line}");
    }
}

#[test]
fn a_balancer_that_says_nothing_or_says_it_in_version_1_is_refused_with_a_reason() {
    let port = "protocol: http, proxyProtocol: { version: v2, from: [ 127.0.0.1 ] }";
    let adapter = Adapter::start(free_address(), port, OPEN);
    for (sends, reason) in [
        ("", "there is no PROXY header"),
        ("send-proxy", "is of version 1, and only version 2 is read"),
    ] {
        let home = tempfile::tempdir().unwrap();
        let (front, _haproxy) = balancer(home.path(), adapter.address, sends);
        let refused = adapter.curl(front, "/").output().unwrap();
        assert!(!refused.status.success(), "{refused:?}");
        adapter.logs(&["access", reason]);
    }
}

/// The attack: past the balancer, with a header of one's own.
#[test]
fn who_is_not_listed_cannot_send_a_header_and_needs_none() {
    let directory = tempfile::tempdir().unwrap();
    let where_to = free_address();
    let _app = app("app.py", &["http", &where_to.to_string()], &directory);
    let port = "protocol: http, proxyProtocol: { version: v2, from: [ 10.0.0.0/8 ] }";
    let adapter = Adapter::start(where_to, port, OPEN);
    let (front, _haproxy) = balancer(directory.path(), adapter.address, "send-proxy-v2");
    let forged = adapter.curl(front, "/").output().unwrap();
    assert!(!forged.status.success(), "{forged:?}");
    adapter.logs(&["access", "that `proxyProtocol` does not list"]);
    let seen = told(&mut adapter.curl(adapter.address, "/"));
    let seen: Value = serde_json::from_str(&seen).unwrap();
    assert_eq!(seen["fields"]["x-forwarded-for"][0], "127.0.0.1");
}

#[tokio::test]
async fn python_is_told_who_connects_and_what_the_handshake_proved() {
    let directory = tempfile::tempdir().unwrap();
    for (place, version) in [
        (free_address().to_string(), "tcp"),
        (
            format!("unix:{}/app.sock", directory.path().display()),
            "unix",
        ),
    ] {
        let _app = app("app.py", &["told", &place], &directory);
        let adapter = Adapter::start(&place, "protocol: tcp, appProxyProtocol: v2", CALLERS);
        let mut stream = BufReader::new(adapter.client().connect().await.unwrap());
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        let told: Value = serde_json::from_str(&line).unwrap();
        let local = stream.get_ref().get_ref().0.local_addr().unwrap();
        let end = |address: SocketAddr| serde_json::json!([address.ip(), address.port()]);
        assert_eq!(told["source"], end(local), "{version}: {told}");
        assert_eq!(told["destination"], end(adapter.address), "{told}");
        assert_eq!(told["spiffe"], CALLER, "{told}");
        assert_eq!(told["authority"], "localhost", "{told}");
        assert_eq!(told["checksum"], true, "{told}");
        let ssl = &told["ssl"];
        assert_eq!(
            (&ssl["client"], &ssl["verify"]),
            (&7.into(), &0.into()),
            "{told}"
        );
        assert_eq!(
            (&ssl["version"], &ssl["common_name"]),
            (&"TLSv1.3".into(), &false.into())
        );
        assert!(
            ssl["cipher"].as_str().unwrap().starts_with("TLS_AES_"),
            "{told}"
        );

        // And then the bytes, with the half that ended first.
        stream.write_all(b"question").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "question");
    }
}

#[test]
fn haproxy_accepts_the_header_and_checks_its_checksum() {
    let directory = tempfile::tempdir().unwrap();
    let place = free_address();
    let reply = r#"lf-string "%[src] %[src_port] %[fc_pp_authority]""#;
    let config = format!(
        "frontend app\n  mode http\n  bind {place} accept-proxy\n  \
         http-request return status 200 content-type text/plain {reply}\n"
    );
    let _haproxy = haproxy(directory.path(), place, &config);
    let adapter = Adapter::start(place, "protocol: http, appProxyProtocol: v2", OPEN);
    let mut curl = adapter.curl(adapter.address, "/");
    let seen = told(curl.args(["--interface", CLIENT, "-w", "\n%{local_port}"]));
    let (answer, port) = seen.split_once('\n').unwrap();
    assert_eq!(answer, format!("{CLIENT} {port} localhost"));
}

#[test]
fn nginx_logs_the_client_of_each_connection_and_never_another() {
    let directory = tempfile::tempdir().unwrap();
    let (place, home) = (free_address(), directory.path().display());
    let config = format!(
        r#"daemon off;
worker_processes 1;
user root;
pid {home}/pid;
error_log {home}/error.log;
events {{ }}
http {{
  log_format who '$proxy_protocol_addr $proxy_protocol_port $request_uri';
  access_log {home}/access.log who;
  client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
  uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
  server {{ listen {place} proxy_protocol; location / {{ return 200 "$proxy_protocol_addr $connection_requests"; }} }}
}}
"#
    );
    let file = directory.path().join("nginx.conf");
    fs::write(&file, config).unwrap();
    let mut command = Command::new(installed("nginx"));
    command.arg("-c").arg(&file).arg("-p").arg(directory.path());
    let log = directory.path().join("out.log");
    let mut nginx = Process::start("nginx", &mut command, &log);
    wait_for_port(place, &mut nginx);
    let adapter = Adapter::start(place, "protocol: http, appProxyProtocol: v2", OPEN);
    let url = format!("https://localhost:{}/second", adapter.address.port());
    // Two requests on one connection each, one client after the other: the app keeps its connection for the first client, and
    // the second finds it idle.
    for client in [CLIENT, "127.0.0.8"] {
        let mut curl = adapter.curl(adapter.address, "/first");
        let seen = told(
            curl.args(["--http1.1", "--interface", client, "-w", "\n"])
                .arg(&url),
        );
        let answers: Vec<_> = seen.lines().collect();
        let requests = |number| format!("{client} {number}");
        assert_eq!(answers, [requests(1), requests(2)]);
    }
    let log = fs::read_to_string(directory.path().join("access.log")).unwrap();
    assert_eq!(log.matches(&format!("{CLIENT} ")).count(), 2, "{log}");
}
