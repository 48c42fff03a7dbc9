//! TLS that is begun again in the middle, or left without a farewell.

use fender_tests::recorder::Habit;
use fender_tests::{Recorder, openssl};
use tokio::io::AsyncWriteExt;

use super::heads::rest;
use super::{MEGABYTE, Target};
use crate::front::{EVERYBODY, Front, Port};

/// In TLS 1.2 a client may ask for a new handshake at any time, which costs it nothing and the server a
/// signature each (CVE-2011-1473): there is none (RFC 7525 §3.5).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_shakes_hands_twice_on_a_connection() {
    let target = Target::set_with(", tls: { minimum: \"1.2\" }").await;
    let caller = target.front.caller();
    let attack = async {
        for _ in 0..20 {
            let (address, caller) = (target.address, caller.clone());
            let spoken =
                tokio::task::spawn_blocking(move || openssl::renegotiate(address, &caller))
                    .await
                    .unwrap();
            assert!(spoken.said.contains("Protocol  : TLSv1.2"), "{spoken:?}");
            assert!(spoken.told.contains("RENEGOTIATING"), "{spoken:?}");
            assert!(spoken.told.contains("no renegotiation"), "{spoken:?}");
        }
    };
    target.bears(8 * MEGABYTE, attack).await;
}

/// A peer that ends TCP in the middle of a body, without the farewell of TLS, has not ended its body.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncated_upload_is_no_request() {
    let directory = tempfile::tempdir().unwrap();
    let mut recorder = Recorder::python(directory.path(), Habit::Length);
    let port = Port::http(recorder.address);
    let address = port.listen;
    let front = Front::start(directory, &[port], EVERYBODY);
    let client = front.client(address).with_alpn(&[b"http/1.1"]);
    for body in [
        "Content-Length: 10\r\n\r\nhello",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ] {
        let mut stream = client.connect().await.unwrap();
        let request = format!("POST /half HTTP/1.1\r\nHost: v\r\n{body}");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        let (mut socket, _) = stream.into_inner();
        socket.shutdown().await.unwrap();
        rest(&mut socket).await;
    }
    assert_eq!(client.get("/last").await.unwrap().status, 200);
    let targets: Vec<_> = recorder
        .taken()
        .into_iter()
        .map(|taken| taken.target)
        .collect();
    assert_eq!(targets, ["/last"]);
}
