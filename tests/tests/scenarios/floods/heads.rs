//! Those who dawdle, and those who send too much of a head or take too little of a body.

use std::time::Duration;

use fender_tests::process::PATIENCE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{MEGABYTE, Target};

/// Everything until the end, whichever way it comes.
pub(super) async fn rest(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut heard = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut heard))
        .await
        .expect("an end");
    String::from_utf8_lossy(&heard).into_owned()
}

/// Slow loris: in the handshake, and in the head, a byte at a time. Each is ended by its deadline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_dawdle_are_ended_by_their_deadlines() {
    let target = Target::set().await;
    let attack = async {
        let mut crowd = JoinSet::new();
        for number in 0..200 {
            let (client, address) = (target.client().with_alpn(&[b"http/1.1"]), target.address);
            crowd.spawn(async move {
                if number % 2 == 0 {
                    let mut socket = TcpStream::connect(address).await.unwrap();
                    // The beginning of a ClientHello, and no more.
                    socket
                        .write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
                        .await
                        .unwrap();
                    assert_eq!(rest(&mut socket).await, "");
                    return;
                }
                let stream = client.connect().await.unwrap();
                let (mut read, mut write) = tokio::io::split(stream);
                let dawdle = async {
                    let head = b"GET /slow HTTP/1.1\r\nHost: v\r\nX: ";
                    let endless = head.iter().copied().chain(std::iter::repeat(b'a'));
                    for byte in endless {
                        if write.write_all(&[byte]).await.is_err() || write.flush().await.is_err() {
                            break;
                        }
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                };
                let heard = tokio::select! {
                    heard = rest(&mut read) => heard,
                    () = dawdle => rest(&mut read).await,
                };
                assert!(
                    heard.is_empty() || heard.starts_with("HTTP/1.1 408 "),
                    "{heard}"
                );
            });
        }
        while let Some(ended) = crowd.join_next().await {
            ended.unwrap();
        }
    };
    target.bears(24 * MEGABYTE, attack).await;
}

/// As large as a head may be, and never complete: the limit on a head is what each can make us hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_that_are_large_and_never_complete_cost_their_limit() {
    let target = Target::set().await;
    let attack = async {
        let mut open = Vec::new();
        for _ in 0..200 {
            let mut stream = target
                .client()
                .with_alpn(&[b"http/1.1"])
                .connect()
                .await
                .unwrap();
            let head = format!("GET / HTTP/1.1\r\nHost: v\r\nX: {}", "a".repeat(32_000));
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            open.push(stream);
        }
        for mut stream in open {
            let heard = rest(&mut stream).await;
            assert!(heard.starts_with("HTTP/1.1 408 "), "{heard}");
        }
    };
    target.bears(48 * MEGABYTE, attack).await;
}

/// Many fields, large fields: refused, and the connection closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn header_bombs_are_refused() {
    let target = Target::set().await;
    let attack = async {
        let many = "a: b\r\n".repeat(100_000);
        let large = format!("a: {}\r\n", "b".repeat(1_000_000));
        for fields in [many, large] {
            for _ in 0..20 {
                let stream = target
                    .client()
                    .with_alpn(&[b"http/1.1"])
                    .connect()
                    .await
                    .unwrap();
                let (mut read, mut write) = tokio::io::split(stream);
                let head = format!("GET / HTTP/1.1\r\nHost: v\r\n{fields}\r\n");
                let send = async {
                    let _ = write.write_all(head.as_bytes()).await;
                };
                let (heard, ()) = tokio::join!(rest(&mut read), send);
                assert!(heard.starts_with("HTTP/1.1 431 "), "{heard}");
            }
        }
    };
    target.bears(24 * MEGABYTE, attack).await;
}

/// Slow read: a large response that is never taken costs what may be in flight, not what it is large.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn responses_that_nobody_reads_cost_little() {
    let target = Target::set().await;
    let attack = async {
        let mut open = Vec::new();
        for _ in 0..100 {
            let mut stream = target
                .client()
                .with_alpn(&[b"http/1.1"])
                .connect()
                .await
                .unwrap();
            let head = "GET /file/large HTTP/1.1\r\nHost: v\r\n\r\n".repeat(20);
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            // The response is on its way.
            stream.read_exact(&mut [0; 64]).await.unwrap();
            open.push(stream);
        }
        target.settles().await;
    };
    target.bears(48 * MEGABYTE, attack).await;
}
