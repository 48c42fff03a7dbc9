//! What documents say of the bounds of requests holds at their port (P4), from the next request on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fender_config::snapshot::{AppProtocol, Inbound, Protocol, RequestLimits};
use fender_proxy::Limits;
use fender_runtime::drain::Drain;
use http::{Request, StatusCode};
use http_body_util::{Full, StreamBody};
use hyper::body::Frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::*;

const SECOND: Option<Duration> = Some(Duration::from_secs(1));

fn port(app: std::net::SocketAddr, limits: RequestLimits) -> Inbound {
    Inbound {
        limits,
        ..inbound(app, Protocol::Http)
    }
}

fn world(port: Inbound) -> World {
    World::start(vec![port], vec![], Limits::default())
}

fn padded(path: &str, bytes: usize) -> String {
    let padding = "x".repeat(bytes);
    format!("GET {path} HTTP/1.1\r\nhost: o\r\nconnection: close\r\nx-padding: {padding}\r\n\r\n")
}

#[tokio::test]
async fn a_head_or_a_target_larger_than_its_port_takes_is_refused() {
    let tasks = Drain::new();
    let limits = RequestLimits {
        head_bytes: Some(2048),
        head_fields: Some(10),
        target_bytes: Some(256),
        ..RequestLimits::default()
    };
    let world = world(port(echo_app(&tasks).await, limits));
    let fields = "x-f: 1\r\n".repeat(10);
    for (request, status) in [
        (padded("/fits", 1024), "200"),
        (padded("/large", 2048), "431"),
        (padded(&format!("/{}", "t".repeat(256)), 0), "414"),
        (
            format!("GET /many HTTP/1.1\r\nhost: o\r\nconnection: close\r\n{fields}\r\n"),
            "431",
        ),
    ] {
        let answer = world.raw(&request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
    }
    // By HTTP/2 likewise.
    let mut client = world.web2().await;
    for (path, padding, status) in [
        ("/fits".to_owned(), 1024, StatusCode::OK),
        (
            "/large".to_owned(),
            2048,
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        ),
        (format!("/{}", "t".repeat(256)), 0, StatusCode::URI_TOO_LONG),
    ] {
        let request = Request::get(format!("https://o{path}"))
            .header("x-padding", "x".repeat(padding))
            .body(Full::default());
        let answer = soon(client.send_request(request.unwrap())).await.unwrap();
        assert_eq!(answer.status(), status, "{path}");
    }
}

#[tokio::test]
async fn a_change_holds_for_the_next_request_of_an_open_connection() {
    let tasks = Drain::new();
    let app = echo_app(&tasks).await;
    let world = world(port(app, RequestLimits::default()));
    let (mut open, mut client) = (world.web().await, world.web2().await);
    let large = |path: &str| padded(path, 4096).replace("connection: close\r\n", "");
    let large2 = || {
        let request = Request::get("https://o/large").header("x-padding", "x".repeat(4096));
        request.body(Full::<Bytes>::default()).unwrap()
    };
    open.write_all(large("/before").as_bytes()).await.unwrap();
    assert!(response(&mut open).await.0.starts_with("HTTP/1.1 200"));
    let answer = soon(client.send_request(large2())).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);

    world.change(|snapshot| snapshot.inbound[0].limits.head_bytes = Some(2048));
    world.settled().await;
    // The head that is awaited already is read by what held when the wait began; from it on the new holds.
    open.write_all(get("/awaited").as_bytes()).await.unwrap();
    assert!(response(&mut open).await.0.starts_with("HTTP/1.1 200"));
    open.write_all(large("/after").as_bytes()).await.unwrap();
    assert!(response(&mut open).await.0.starts_with("HTTP/1.1 431"));
    let answer = soon(client.send_request(large2())).await.unwrap();
    assert_eq!(answer.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    // And for new ones at once.
    assert!(
        world
            .raw(&padded("/new", 4096))
            .await
            .starts_with("HTTP/1.1 431")
    );
}

/// An app that counts who comes to it, and whose bodies end.
async fn counting_app(tasks: &Drain) -> (std::net::SocketAddr, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let (came, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (comes, ends) = (came.clone(), ended.clone());
    let app = hyper_app(tasks, move |request: Request<hyper::body::Incoming>| {
        let (comes, ends) = (comes.clone(), ends.clone());
        async move {
            comes.fetch_add(1, Ordering::SeqCst);
            let body = http_body_util::BodyExt::collect(request.into_body());
            if body.await.is_ok() {
                ends.fetch_add(1, Ordering::SeqCst);
            }
            Ok(http::Response::new(Full::new(Bytes::from_static(b"ok"))))
        }
    })
    .await;
    (app, came, ended)
}

fn of_size(bytes: u64) -> RequestLimits {
    RequestLimits {
        body_bytes: Some(bytes),
        ..RequestLimits::default()
    }
}

#[tokio::test]
async fn a_body_that_is_declared_too_large_is_refused_before_the_app_hears_of_it() {
    let tasks = Drain::new();
    let (app, came, _) = counting_app(&tasks).await;
    let world = world(port(app, of_size(1024)));
    let post = |length| {
        format!(
            "POST /size HTTP/1.1\r\nhost: o\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    // It is not even asked for, and nothing that comes all the same is a request.
    let smuggled = format!("{}GET /smuggled HTTP/1.1\r\nhost: o\r\n\r\n", post(1025));
    let answer = world.raw(&smuggled).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    let mut client = world.web2().await;
    let request = Request::post("https://o/size").body(Full::new(Bytes::from(vec![b'x'; 1025])));
    let answer = soon(client.send_request(request.unwrap())).await.unwrap();
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(came.load(Ordering::SeqCst), 0);
    logs_line_of("/size", "larger than the port's limit").await;
    // Who may not ask at all is told that, and nothing of sizes.
    world.change(|snapshot| snapshot.policies = policies(vec![]));
    assert!(world.raw(&post(1025)).await.starts_with("HTTP/1.1 403 "));
}

#[tokio::test]
async fn a_body_that_grows_too_large_is_cut_off_and_does_not_look_whole_to_the_app() {
    let tasks = Drain::new();
    let (app, came, ended) = counting_app(&tasks).await;
    let world = world(port(app, of_size(1024)));
    let chunk = |size: usize| format!("{size:x}\r\n{}\r\n", "x".repeat(size));
    let chunks = |sizes: &[usize]| {
        let chunks: String = sizes.iter().map(|size| chunk(*size)).collect();
        format!(
            "POST /grows HTTP/1.1\r\nhost: o\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n{chunks}0\r\n\r\n"
        )
    };
    assert!(
        world
            .raw(&chunks(&[512, 512]))
            .await
            .starts_with("HTTP/1.1 200 ")
    );
    assert_eq!(
        (came.load(Ordering::SeqCst), ended.load(Ordering::SeqCst)),
        (1, 1)
    );
    let answer = world.raw(&chunks(&[512, 512, 1])).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    // By HTTP/2 without a length.
    let stream = world.client(&world.authority.svid(WEB), &[b"h2"]).await;
    let executor = hyper_util::rt::TokioExecutor::new();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut client, connection) = hyper::client::conn::http2::handshake(executor, io)
        .await
        .unwrap();
    world.tasks.spawn(async move {
        let _ = connection.await;
    });
    let pieces = [Bytes::from(vec![b'x'; 1024]), Bytes::from_static(b"x")];
    let pieces = pieces.map(|piece| Ok::<_, std::convert::Infallible>(Frame::data(piece)));
    let body = StreamBody::new(futures_util::stream::iter(pieces));
    let request = Request::post("https://o/grows").body(body).unwrap();
    let answer = soon(client.send_request(request)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(
        ended.load(Ordering::SeqCst),
        1,
        "no other body ended for the app"
    );
}

#[tokio::test]
async fn an_app_that_does_not_answer_in_its_ports_time_is_not_waited_for() {
    let tasks = Drain::new();
    let app = raw_app(&tasks, |mut socket| async move {
        let _ = socket.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let limits = RequestLimits {
        response: SECOND,
        ..RequestLimits::default()
    };
    let world = world(port(app, limits));
    let answer = world.raw(&last_get("/silent")).await;
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
}

#[tokio::test]
async fn connections_lie_idle_and_streams_are_open_as_far_as_their_port_says() {
    let limits = RequestLimits {
        idle: SECOND,
        streams: Some(3),
        ..RequestLimits::default()
    };
    let world = world(Inbound {
        app_protocol: AppProtocol::H2c,
        ..port(nobody().await, limits)
    });
    // The settings say so before anything is asked.
    let mut stream = world.client(&world.authority.svid(WEB), &[b"h2"]).await;
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    const MAX_CONCURRENT_STREAMS: [u8; 6] = [0, 3, 0, 0, 0, 3];
    const GOAWAY: [u8; 9] = [0, 0, 8, 7, 0, 0, 0, 0, 0];
    let mut sent = Vec::new();
    let says = |sent: &[u8], what: &[u8]| sent.windows(what.len()).any(|part| part == what);
    // Nothing is asked, so it is told to go.
    while !says(&sent, &GOAWAY) {
        assert_ne!(soon(stream.read_buf(&mut sent)).await.unwrap(), 0);
    }
    assert!(says(&sent, &MAX_CONCURRENT_STREAMS), "{sent:?}");
    // By HTTP/1.1, between two requests.
    let mut open = world.web().await;
    open.write_all(get("/once").as_bytes()).await.unwrap();
    assert!(response(&mut open).await.0.starts_with("HTTP/1.1 503"));
    assert_eq!(rest(&mut open).await, "");
}
