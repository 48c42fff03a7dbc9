//! What a document says of requests holds in the real program, and changes while it runs.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};

use fender_tests::process::PATIENCE;
use fender_tests::wait_until;
use hyper::Request;
use hyper::body::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::reload::{config, configure, reload, start};
use crate::standalone::{CALLER, Standalone};

/// Changes the configuration and has it read.
fn change(sidecar: &Standalone, text: &str) {
    configure(sidecar, text);
    let (code, out, err) = reload(sidecar);
    assert_eq!(code, 0, "{out}{err}");
}

fn padded(bytes: usize) -> Request<Bytes> {
    let request = Request::get("/public").header("host", "o");
    let padding = "x".repeat(bytes);
    request
        .header("x-padding", padding)
        .body(Bytes::new())
        .unwrap()
}

/// An app whose responses begin and do not end.
fn endless_app() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut socket = socket;
                let _ = socket.read(&mut [0; 4096]);
                let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nbegun");
                // Until it is given up.
                let _ = socket.read(&mut [0; 1]);
            });
        }
    });
    address
}

#[tokio::test]
async fn the_limits_of_a_port_are_those_of_its_document_and_change_without_a_restart() {
    let mut sidecar = start();
    let client = sidecar.client(CALLER);
    let mut open = client.open().await.unwrap();
    assert_eq!(open.send(padded(4000)).await.unwrap().status, 200);
    let before = config(&sidecar);
    let with = |limits: &str| {
        before.replace(
            "protocol: http }",
            &format!("protocol: http, limits: {{ {limits} }} }}"),
        )
    };
    change(&sidecar, &with("headBytes: 2KiB, idle: 2s"));
    // New connections at once.
    assert_eq!(
        client
            .open()
            .await
            .unwrap()
            .send(padded(4000))
            .await
            .unwrap()
            .status,
        431
    );
    // What is open with the request after the one it waits for.
    assert_eq!(open.get("/public").await.unwrap().status, 200);
    assert_eq!(open.send(padded(4000)).await.unwrap().status, 431);

    // A connection on which nothing is asked is closed, with the farewell of TLS.
    let mut idle = client.connect().await.unwrap();
    idle.write_all(b"GET /public HTTP/1.1\r\nhost: o\r\n\r\n")
        .await
        .unwrap();
    let mut all = Vec::new();
    timeout(PATIENCE, idle.read_to_end(&mut all))
        .await
        .unwrap()
        .unwrap();
    assert!(
        all.starts_with(b"HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(&all)
    );

    // A request whose response does not end in its time is cut off, and does not look whole.
    let app = endless_app();
    let nginx = format!("app: \"{}\"", sidecar.app);
    let endless = with("request: 1s").replace(&nginx, &format!("app: \"{app}\""));
    change(&sidecar, &endless);
    let mut long = client.connect().await.unwrap();
    long.write_all(b"GET /public HTTP/1.1\r\nhost: o\r\n\r\n")
        .await
        .unwrap();
    let mut all = Vec::new();
    let end = timeout(PATIENCE, long.read_to_end(&mut all)).await.unwrap();
    assert!(
        end.is_err() && all.ends_with(b"begun"),
        "{}",
        String::from_utf8_lossy(&all)
    );
    wait_until("the access log says why", PATIENCE, || {
        sidecar
            .process
            .log()
            .contains("request took longer than any may")
    });

    // What would lift a limit is refused with its place, and what was in force stays.
    configure(&sidecar, &with("request: 8d"));
    let (code, _, err) = reload(&sidecar);
    assert_eq!(code, 64, "{err}");
    for said in [
        "sidecar.yaml:6:",
        "`request` may not be `8d`",
        "between `1s` and `7d`",
    ] {
        assert!(err.contains(said), "{err}");
    }
    sidecar.process.assert_running();
}
