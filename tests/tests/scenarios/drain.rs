//! SIGTERM drains: what is in flight is finished, nothing new is taken, and then it ends (D1).

use std::net::TcpStream;

use fender_tests::process::{PATIENCE, Process};
use fender_tests::{client::Connection, wait_until};
use rustix::process::Signal;

use crate::standalone::{CALLER, Standalone};

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

async fn assert_closed(connection: &Connection) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !connection.is_closed() {
        assert!(
            std::time::Instant::now() < deadline,
            "the connection is closed"
        );
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}
