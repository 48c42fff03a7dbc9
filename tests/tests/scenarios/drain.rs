//! SIGTERM drains: what is in flight is finished, nothing new is taken, and then it ends (D1).

use std::net::TcpStream;

use fender_tests::pki::Template;
use fender_tests::process::{PATIENCE, Process, binary, free_address, installed, output};
use fender_tests::{Load, client::Connection, wait_until};
use rustix::process::Signal;

use crate::berth::{Berth, Tunnel};
use crate::standalone::{CALLER, ORDERS, Standalone};

#[tokio::test]
async fn an_idle_connection_is_closed_and_the_process_ends_with_zero() {
    let mut sidecar = Standalone::start();
    let mut open = sidecar.client(CALLER).open().await.unwrap();
    assert_eq!(open.get("/public").await.unwrap().status, 200);
    sidecar.process.signal(Signal::TERM);
    assert_closed(&open).await;
    assert_eq!(end(&mut sidecar.process), Some(0));
    assert!(
        TcpStream::connect(sidecar.address).is_err(),
        "nobody listens any more"
    );
}

#[tokio::test]
async fn http2_is_told_to_go_away_and_the_process_ends_with_zero() {
    let mut sidecar = Standalone::start();
    let mut open = sidecar.client(CALLER).open_http2().await.unwrap();
    assert_eq!(open.get("/public").await.unwrap().status, 200);
    sidecar.process.signal(Signal::TERM);
    assert_closed(&open).await;
    assert_eq!(end(&mut sidecar.process), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_in_flight_is_finished() {
    let mut sidecar = Standalone::start_with(|_| {});
    let client = sidecar.client(CALLER);
    // A body that is announced and not yet sent keeps the request in flight.
    let mut stream = client.with_alpn(&[b"http/1.1"]).connect().await.unwrap();
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    stream
        .write_all(b"GET /public HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n\r\nab")
        .await
        .unwrap();
    stream.flush().await.unwrap();
    wait_until("the request has reached the sidecar", PATIENCE, || {
        sidecar.process.log().contains("/public") || established(&sidecar)
    });
    sidecar.process.signal(Signal::TERM);
    wait_until("the sidecar drains", PATIENCE, || {
        sidecar.process.log().contains("drain")
    });
    stream.write_all(b"cde").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(end(&mut sidecar.process), Some(0));
}

/// Readiness first: whoever balances load stops sending before anybody is refused; then, one by one, what is open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_unready_while_what_is_open_goes_on_and_a_websocket_is_cut_only_at_the_deadline() {
    let berth = Berth::new("15s");
    let mut process = berth.start(&mut berth.command());
    berth.wait_ready(&mut process);
    let mut tunnel = Tunnel::open(&berth).await;
    let mut kept = berth.client().open().await.unwrap();
    let first = kept.get("/public").await.unwrap();
    assert_eq!(first.header("connection"), None);
    process.signal(Signal::TERM);
    tokio::task::block_in_place(|| {
        wait_until("it is not ready any more", PATIENCE, || !berth.is_ready());
    });
    // Not ready, and yet it answers at its admin socket and on what is open.
    let socket = berth.admin_socket();
    assert_eq!(output(binary(), &["status", "--sidecar", &socket]).0, 0);
    tunnel.echoes().await;
    let wait = || TcpStream::connect(berth.address).is_err();
    tokio::task::block_in_place(|| wait_until("nothing new is accepted", PATIENCE, wait));
    process.assert_running();
    tunnel.echoes().await;
    tunnel.end().await;
    assert_eq!(tokio::task::block_in_place(|| end(&mut process)), Some(0));
    let log = berth.log();
    assert_eq!(
        log.matches("connections were cut at the end of the drain")
            .count(),
        1,
        "{log}"
    );
    let lines = berth.access_log();
    let line = lines.lines().find(|line| line.contains("/chat"));
    let line = line.expect("the WebSocket has a line");
    assert!(
        line.contains("\"status\":101") && line.contains("drain"),
        "{line}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_connection_is_told_to_close_with_its_next_answer() {
    let berth = Berth::new("30s");
    let mut process = berth.start(&mut berth.command());
    berth.wait_ready(&mut process);
    let load = Load::start(&berth.client(), "/public", 8, 8);
    load.goes_on_for(200).await;
    process.signal(Signal::TERM);
    // With a request always under way there is no moment at which it could be closed instead.
    let status = tokio::task::block_in_place(|| end(&mut process));
    assert_eq!(status, Some(0));
    let tally = load.finish().await;
    let refused = |failure: &&String| !failure.contains("connect: ");
    let lost: Vec<_> = tally.failures.iter().filter(refused).collect();
    assert!(lost.is_empty(), "{lost:#?}");
    assert!(
        !berth.log().contains("connections were cut"),
        "{}",
        berth.log()
    );
}

/// The application's last words reach whom they are meant for.
#[tokio::test]
async fn outbound_works_until_the_application_has_exited() {
    let orders = Standalone::start();
    let berth = Berth::new("20s");
    let way_out = free_address();
    let identity = berth.path("caller");
    orders
        .authority
        .issue(&Template::svid(CALLER))
        .write(&identity);
    orders.authority.write_bundle(&identity);
    let identity = identity.display();
    berth.configure(&format!(
        r#"apiVersion: fender.dev/v1
kind: Sidecar
metadata: {{ namespace: shop, name: caller }}
spec:
  drain: 20s
  identity: {{ files: {{ certificate: {identity}/certificate.pem, key: {identity}/key.pem, bundle: {identity}/bundle.pem }} }}
  inbound: [ {{ listen: "{}", app: "127.0.0.1:1", protocol: http }} ]
  outbound: [ {{ listen: "{way_out}", connect: "{}", expect: "{ORDERS}", protocol: http }} ]
"#,
        berth.address, orders.address
    ));
    let curl = installed("curl");
    let ready = berth.path("ready");
    // Told to stop, it waits until inbound is closed, and then still has something to say.
    let script = format!(
        "say() {{ while {curl} -ks https://{inbound}/ >/dev/null; [ $? != 7 ]; do sleep 0.05; done; {curl} -fsS http://{way_out}/public && exit 7; exit 8; }}; trap say TERM; touch {ready}; while :; do sleep 0.05; done",
        curl = curl.display(),
        inbound = berth.address,
        ready = ready.display(),
    );
    let mut process = berth.start(berth.command().args(["--", "/bin/sh", "-c", &script]));
    wait_until("the application runs", PATIENCE, || {
        process.assert_running();
        ready.exists()
    });
    process.signal(Signal::TERM);
    assert_eq!(end(&mut process), Some(7), "{}", berth.log());
}

/// The application sees a connection of the sidecar's: the request was passed on.
fn established(sidecar: &Standalone) -> bool {
    let connections = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let port = format!(":{:04X}", sidecar.app.port());
    connections.lines().any(|line| {
        line.split_whitespace()
            .nth(2)
            .is_some_and(|remote| remote.ends_with(&port))
            && line.contains(" 01 ")
    })
}

fn end(process: &mut Process) -> Option<i32> {
    process.wait(PATIENCE).code()
}

pub(crate) async fn assert_closed(connection: &Connection) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !connection.is_closed() {
        assert!(
            std::time::Instant::now() < deadline,
            "the connection is closed"
        );
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}
