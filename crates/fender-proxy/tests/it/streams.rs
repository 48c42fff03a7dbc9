//! Bodies of any size in both directions, at the speed of whoever is slower, and upgrades.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use fender_policy::Rule;
use fender_runtime::drain::Drain;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use crate::harness::*;

const MANY: usize = 32 * 1024 * 1024;

/// An app that sends every body straight back.
async fn mirror(tasks: &Drain) -> std::net::SocketAddr {
    hyper_app(tasks, |request: Request<Incoming>| async {
        Ok::<_, Infallible>(Response::new(request.into_body()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_go_both_ways_at_once_over_http1() {
    let tasks = Drain::new();
    let world = World::http(mirror(&tasks).await);
    let mut stream = world.web().await;
    let head_out = format!("POST /m HTTP/1.1\r\nhost: o\r\ncontent-length: {MANY}\r\n\r\n");
    stream.write_all(head_out.as_bytes()).await.unwrap();
    let (mut read, mut write) = tokio::io::split(stream);
    let pattern: Vec<u8> = (0..64 * 1024_u32).map(|n| (n * 7 % 253) as u8).collect();
    let send = async {
        for _ in 0..MANY / pattern.len() {
            write.write_all(&pattern).await.unwrap();
        }
        write.flush().await.unwrap();
    };
    let receive = async {
        let answer = head(&mut read).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let mut left = MANY;
        let chunked = answer.contains("chunked");
        if chunked {
            return dechunk(&mut read).await;
        }
        let mut total = 0;
        let mut buffer = vec![0; 64 * 1024];
        while left > 0 {
            let read = read.read(&mut buffer).await.unwrap();
            left -= read;
            total += read;
        }
        total
    };
    let (total, ()) = soon(async { tokio::join!(receive, send) }).await;
    assert_eq!(total, MANY);
}

async fn dechunk(read: &mut (impl AsyncReadExt + Unpin)) -> usize {
    let mut total = 0;
    loop {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.push(read.read_u8().await.unwrap());
        }
        let text = std::str::from_utf8(&line).unwrap().trim();
        let length = usize::from_str_radix(text, 16).unwrap();
        let mut chunk = vec![0; length + 2];
        read.read_exact(&mut chunk).await.unwrap();
        if length == 0 {
            return total;
        }
        total += length;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_go_both_ways_over_http2() {
    let tasks = Drain::new();
    let world = World::http(mirror(&tasks).await);
    let mut client = world.web2().await;
    let body = Full::new(Bytes::from(vec![7; MANY / 4]));
    let request = Request::post("https://o/m").body(body).unwrap();
    let response = soon(client.send_request(request)).await.unwrap();
    let echoed = soon(response.into_body().collect())
        .await
        .unwrap()
        .to_bytes();
    assert!(echoed.len() == MANY / 4 && echoed.iter().all(|byte| *byte == 7));
}

#[tokio::test]
async fn an_app_that_does_not_read_holds_the_peer_back() {
    let tasks = Drain::new();
    let (go, gone) = watch::channel(false);
    let app = hyper_app(&tasks, move |request: Request<Incoming>| {
        let mut gone = gone.clone();
        async move {
            gone.wait_for(|go| *go).await.unwrap();
            let length = request
                .into_body()
                .collect()
                .await
                .unwrap()
                .to_bytes()
                .len();
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(length.to_string()))))
        }
    })
    .await;
    let world = World::http(app);
    let stream = world.web().await;
    let (mut read, mut write) = tokio::io::split(stream);
    let sent = Arc::new(AtomicU64::new(0));
    let count = sent.clone();
    let send = async move {
        let head = format!("POST /slow HTTP/1.1\r\nhost: o\r\ncontent-length: {MANY}\r\n\r\n");
        write.write_all(head.as_bytes()).await.unwrap();
        let chunk = vec![1; 64 * 1024];
        for _ in 0..MANY / chunk.len() {
            write.write_all(&chunk).await.unwrap();
            count.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        }
        write.flush().await.unwrap();
        write
    };
    let mut send = Box::pin(send);
    // Runs until everything between us and the app is full: the kernel's buffers, and little of ours.
    let mut before = u64::MAX;
    while before != sent.load(Ordering::Relaxed) {
        before = sent.load(Ordering::Relaxed);
        let pause = std::time::Duration::from_millis(200);
        assert!(
            tokio::time::timeout(pause, &mut send).await.is_err(),
            "all was taken at once"
        );
    }
    assert!(
        before < MANY as u64 / 2,
        "{before} bytes are held by nobody's wish"
    );
    go.send_replace(true);
    let (_write, (head, body)) = tokio::join!(soon(send), response(&mut read));
    assert!(
        head.starts_with("HTTP/1.1 200") && body == MANY.to_string(),
        "{head}{body}"
    );
}

#[tokio::test]
async fn an_early_answer_reaches_a_peer_that_is_still_sending() {
    let tasks = Drain::new();
    let app = hyper_app(&tasks, |_: Request<Incoming>| async {
        let mut response = Response::new(Full::new(Bytes::from_static(b"too much")));
        *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
        Ok::<_, Infallible>(response)
    })
    .await;
    let world = World::http(app);
    let mut stream = world.web().await;
    let request = "POST /early HTTP/1.1\r\nhost: o\r\ncontent-length: 1000000\r\n\r\nsome";
    stream.write_all(request.as_bytes()).await.unwrap();
    let (head, body) = response(&mut stream).await;
    assert!(
        head.starts_with("HTTP/1.1 413") && body == "too much",
        "{head}"
    );
}

#[tokio::test]
async fn a_peer_that_leaves_ends_its_request_at_the_app() {
    let tasks = Drain::new();
    let (step, mut steps) = watch::channel("");
    let step = Arc::new(step);
    let app = raw_app(&tasks, move |mut socket| {
        let step = step.clone();
        async move {
            head(&mut socket).await;
            step.send_replace("asked");
            let _ = socket.read_to_end(&mut Vec::new()).await;
            step.send_replace("left");
        }
    })
    .await;
    let world = World::http(app);
    let mut stream = world.web().await;
    stream
        .write_all(get("/left-line").as_bytes())
        .await
        .unwrap();
    stream.flush().await.unwrap();
    soon(steps.wait_for(|step| *step == "asked")).await.unwrap();
    drop(stream);
    soon(steps.wait_for(|step| *step == "left")).await.unwrap();
    assert!(
        logs_line("/left-line")
            .await
            .contains("left before the response was complete")
    );
}

#[tokio::test]
async fn a_peer_that_leaves_in_the_middle_of_its_body_is_to_blame() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    let mut stream = world.web().await;
    let request = "POST /cut-line HTTP/1.1\r\nhost: o\r\ncontent-length: 100\r\n\r\nhalf";
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    let _ = soon(stream.read_to_end(&mut answer)).await;
    assert!(
        logs_line("/cut-line")
            .await
            .contains("\"outcome\":\"peer\"")
    );
}

#[tokio::test]
async fn an_upgraded_connection_is_carried_both_ways_until_policy_ends_it() {
    let tasks = Drain::new();
    let inner = tasks.clone();
    let app = hyper_app(&tasks, move |mut request: Request<Incoming>| {
        let inner = inner.clone();
        async move {
            let asked = request.headers()["upgrade"].clone();
            let upgrade = hyper::upgrade::on(&mut request);
            inner.spawn(async move {
                let mut io = TokioIo::new(upgrade.await.unwrap());
                io.write_all(b"hello").await.unwrap();
                let mut word = [0; 4];
                while io.read_exact(&mut word).await.is_ok() {
                    io.write_all(&word.map(|byte| byte.to_ascii_uppercase()))
                        .await
                        .unwrap();
                }
            });
            let response = Response::builder()
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header("connection", "upgrade")
                .header("upgrade", asked)
                .header("sec-websocket-accept", "x")
                .body(Full::<Bytes>::default())
                .unwrap();
            Ok::<_, Infallible>(response)
        }
    })
    .await;
    let mut world = World::http(app);
    let mut stream = world.web().await;
    let request = "GET /chat HTTP/1.1\r\nhost: o\r\nConnection: keep-alive, Upgrade\r\n\
                   Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\nping";
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(
        head.contains("upgrade: websocket\r\n") && head.contains("sec-websocket-accept"),
        "{head}"
    );
    let mut heard = [0; 9];
    soon(stream.read_exact(&mut heard)).await.unwrap();
    assert_eq!(&heard, b"helloPING");
    stream.write_all(b"more").await.unwrap();
    soon(stream.read_exact(&mut heard[..4])).await.unwrap();
    assert_eq!(&heard[..4], b"MORE");

    world.change(|snapshot| {
        snapshot.policies = policies(vec![
            allow(vec![Rule::default()]),
            deny("shop/x", &["/chat"]),
        ]);
    });
    assert!(soon(stream.read_u8()).await.is_err());
    assert_eq!(
        soon(world.records.recv())
            .await
            .unwrap()
            .facts
            .request
            .unwrap()
            .path,
        "/chat"
    );
}

#[tokio::test]
async fn an_app_that_breaks_off_is_seen_to_break_off() {
    let tasks = Drain::new();
    let app = raw_app(&tasks, |mut socket| async move {
        let mut buffer = [0; 1024];
        let _ = socket.read(&mut buffer).await;
        let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
        let _ = socket.write_all(answer).await;
    })
    .await;
    let world = World::http(app);
    let mut stream = world.web().await;
    stream
        .write_all(get("/broken-line").as_bytes())
        .await
        .unwrap();
    let mut all = Vec::new();
    assert!(
        soon(stream.read_to_end(&mut all)).await.is_err(),
        "the end looked proper"
    );
    assert!(!all.ends_with(b"0\r\n\r\n"));
    assert!(
        logs_line("/broken-line")
            .await
            .contains("\"outcome\":\"upstream\"")
    );
}
