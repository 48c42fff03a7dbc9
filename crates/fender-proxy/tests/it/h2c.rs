//! Apps of HTTP/2 without TLS, as `h2` itself plays them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fender_config::snapshot::{AppProtocol, Inbound, Protocol};
use fender_policy::Rule;
use fender_proxy::Limits;
use fender_runtime::drain::Drain;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, Response, StatusCode};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use crate::harness::*;

pub(crate) fn port(app: SocketAddr) -> Inbound {
    Inbound {
        app_protocol: AppProtocol::H2c,
        ..inbound(app, Protocol::Http)
    }
}

pub(crate) fn world(app: SocketAddr) -> World {
    World::start(vec![port(app)], vec![], Limits::default())
}

/// An app; what serves a stream is told on which of the app's connections it came.
pub(crate) async fn app<F, R>(tasks: &Drain, serve: F) -> SocketAddr
where
    F: Fn(usize, Request<RecvStream>, SendResponse<Bytes>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let connections = Arc::new(AtomicUsize::new(0));
    let inner = tasks.clone();
    raw_app(tasks, move |socket| {
        let number = connections.fetch_add(1, Ordering::Relaxed);
        let (serve, tasks) = (serve.clone(), inner.clone());
        async move {
            let mut connection = h2::server::handshake(socket).await.unwrap();
            while let Some(Ok((request, respond))) = connection.accept().await {
                tasks.spawn(serve(number, request, respond));
            }
        }
    })
    .await
}

/// All of a body, and its trailers.
pub(crate) async fn collect(
    body: &mut RecvStream,
) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        let _ = body.flow_control().release_capacity(data.len());
        all.extend_from_slice(&data);
    }
    Ok((all, body.trailers().await?))
}

/// Answers with what it saw, then with trailers.
pub(crate) async fn echo(
    number: usize,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let (parts, mut body) = request.into_parts();
    let mut seen = format!("connection {number}\n{} {}\n", parts.method, parts.uri);
    for (name, value) in &parts.headers {
        seen.push_str(&format!(
            "{name}: {}\n",
            String::from_utf8_lossy(value.as_bytes())
        ));
    }
    let (data, trailers) = collect(&mut body).await.unwrap();
    seen.push_str(&format!(
        "trailers: {trailers:?}\n\n{}",
        String::from_utf8_lossy(&data)
    ));
    let mut stream = respond.send_response(Response::new(()), false).unwrap();
    stream.send_data(seen.into(), false).unwrap();
    let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), "42".parse().unwrap())]);
    stream.send_trailers(trailers).unwrap();
}

/// A peer of HTTP/2 without anything in between.
pub(crate) async fn peer(world: &World) -> SendRequest<Bytes> {
    let stream = world.client(&world.authority.svid(WEB), &[b"h2"]).await;
    // Room for many bodies that are not read.
    let mut builder = h2::client::Builder::new();
    builder.initial_connection_window_size(4 << 20);
    let (sender, connection) = builder.handshake(stream).await.unwrap();
    world.tasks.spawn(async move {
        let _ = connection.await;
    });
    sender
}

pub(crate) fn post(path: &str) -> Request<()> {
    Request::post(format!("https://orders{path}"))
        .body(())
        .unwrap()
}

pub(crate) fn get2(path: &str) -> Request<()> {
    Request::get(format!("https://orders{path}"))
        .body(())
        .unwrap()
}

#[tokio::test]
async fn a_request_of_http1_reaches_it_whole_with_trailers_both_ways() {
    let tasks = Drain::new();
    let world = world(app(&tasks, echo).await);
    let request = "POST /a/%41?q=1 HTTP/1.1\r\nhost: Orders:80\r\nconnection: close, x-mine\r\nx-mine: 1\r\nte: trailers\r\n\
                   x-kept: 2\r\nupgrade: x\r\ntrailer: x-end\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-end: 7\r\n\r\n";
    let seen = world.raw(request).await;
    assert!(seen.starts_with("HTTP/1.1 200"), "{seen}");
    for expected in [
        "POST http://orders:80/a/A?q=1\n",
        "x-kept: 2\n",
        "te: trailers\n",
        "x-forwarded-client-cert: By=",
        "trailers: Some({\"x-end\": \"7\"})",
        "\n\nhi",
        "x-sum: 42\r\n",
    ] {
        assert!(seen.contains(expected), "{expected}: {seen}");
    }
    let (_, seen) = seen.split_once("\r\n\r\n").unwrap();
    for absent in [
        "x-mine",
        "\nconnection:",
        "\ntransfer-encoding:",
        "\nhost:",
        "upgrade",
    ] {
        assert!(!seen.contains(absent), "{absent}: {seen}");
    }
    let options = "OPTIONS * HTTP/1.1\r\nhost: o\r\nconnection: close\r\n\r\n";
    let seen = world.raw(options).await;
    assert!(seen.contains("OPTIONS ") && seen.contains('*'), "{seen}");
}

#[tokio::test]
async fn requests_of_a_peer_share_a_connection_and_two_peers_never_do() {
    let tasks = Drain::new();
    let world = world(app(&tasks, echo).await);
    let mut peers = [peer(&world).await, peer(&world).await];
    for _ in 0..3 {
        for (number, peer) in peers.iter_mut().enumerate() {
            let mut open = Vec::new();
            for _ in 0..5 {
                open.push(peer.send_request(get2("/"), true).unwrap().0);
            }
            for response in open {
                let mut response = soon(response).await.unwrap();
                let (seen, trailers) = soon(collect(response.body_mut())).await.unwrap();
                let seen = String::from_utf8(seen).unwrap();
                assert!(
                    seen.starts_with(&format!("connection {number}\n")),
                    "{seen}"
                );
                assert_eq!(trailers.unwrap()["x-sum"], "42");
            }
        }
    }
}

#[tokio::test]
async fn each_message_passes_before_the_next_is_sent() {
    let tasks = Drain::new();
    let app = app(&tasks, |_, request, mut respond| async move {
        let mut body = request.into_body();
        let mut stream = respond.send_response(Response::new(()), false).unwrap();
        while let Some(Ok(data)) = body.data().await {
            let _ = body.flow_control().release_capacity(data.len());
            stream.send_data(data, false).unwrap();
        }
        stream.send_data(Bytes::new(), true).unwrap();
    })
    .await;
    let world = world(app);
    let (response, mut sending) = peer(&world).await.send_request(post("/"), false).unwrap();
    let mut body = soon(response).await.unwrap().into_body();
    for turn in 0..10u8 {
        sending.send_data(Bytes::from(vec![turn]), false).unwrap();
        let answer = soon(body.data()).await.unwrap().unwrap();
        assert_eq!(answer, [turn][..]);
        let _ = body.flow_control().release_capacity(1);
    }
    sending.send_data(Bytes::new(), true).unwrap();
    assert_eq!(soon(collect(&mut body)).await.unwrap().0, b"");
}

/// RFC 9113 §8.7: what the app refused it has not processed.
#[tokio::test]
async fn a_refused_stream_is_sent_once_more_and_no_more_than_that() {
    let tasks = Drain::new();
    let turns = Arc::new(AtomicUsize::new(0));
    let seen = turns.clone();
    let app = app(&tasks, move |number, request, mut respond| {
        let turn = seen.fetch_add(1, Ordering::Relaxed);
        async move {
            match request.uri().path() == "/never" || turn == 0 {
                true => respond.send_reset(Reason::REFUSED_STREAM),
                false => echo(number, request, respond).await,
            }
        }
    })
    .await;
    let world = world(app);
    // It is not idempotent, and nothing of it was processed.
    let mut peer = peer(&world).await;
    let (response, _) = peer.send_request(post("/once"), true).unwrap();
    assert_eq!(soon(response).await.unwrap().status(), StatusCode::OK);
    assert_eq!(turns.load(Ordering::Relaxed), 2);
    let (response, _) = peer.send_request(get2("/never"), true).unwrap();
    assert_eq!(
        soon(response).await.unwrap().status(),
        StatusCode::BAD_GATEWAY
    );
    assert_eq!(turns.load(Ordering::Relaxed), 4);
}

/// The attack, or the accident: a purchase that is made twice.
#[tokio::test]
async fn a_request_that_may_have_been_processed_is_not_sent_again() {
    let tasks = Drain::new();
    let turns = Arc::new(AtomicUsize::new(0));
    let seen = turns.clone();
    let app = app(&tasks, move |_, _, mut respond| {
        seen.fetch_add(1, Ordering::Relaxed);
        async move { respond.send_reset(Reason::INTERNAL_ERROR) }
    })
    .await;
    let world = world(app);
    for request in [post("/buy"), get2("/look")] {
        let (response, _) = peer(&world).await.send_request(request, true).unwrap();
        assert_eq!(
            soon(response).await.unwrap().status(),
            StatusCode::BAD_GATEWAY
        );
    }
    assert_eq!(turns.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn an_app_that_goes_away_loses_no_request() {
    let tasks = Drain::new();
    let connections = Arc::new(AtomicUsize::new(0));
    let app = raw_app(&tasks, move |socket| {
        let number = connections.fetch_add(1, Ordering::Relaxed);
        async move {
            let mut connection = h2::server::handshake(socket).await.unwrap();
            while let Some(Ok((request, respond))) = connection.accept().await {
                // Each connection serves one request, and says so.
                connection.graceful_shutdown();
                let served = echo(number, request, respond);
                tokio::select! {
                    biased;
                    () = served => {}
                    _ = std::future::poll_fn(|cx| connection.poll_closed(cx)) => {}
                }
            }
        }
    })
    .await;
    let world = world(app);
    let mut peer = peer(&world).await;
    for _ in 0..10 {
        let (response, _) = peer.send_request(post("/"), true).unwrap();
        let mut response = soon(response).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        soon(collect(response.body_mut())).await.unwrap();
    }
}

#[tokio::test]
async fn an_app_hears_that_nobody_waits_any_more() {
    let tasks = Drain::new();
    let (tell, mut told) = mpsc::channel(2);
    let app = app(&tasks, move |_, request, mut respond| {
        let tell = tell.clone();
        async move {
            let _body = request.into_body();
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            tell.send(None).await.unwrap();
            let reset = std::future::poll_fn(|cx| stream.poll_reset(cx)).await;
            tell.send(reset.ok()).await.unwrap();
        }
    })
    .await;
    let world = world(app);
    let mut peer = peer(&world).await;
    // The peer gives up.
    let (response, mut sending) = peer.send_request(post("/"), false).unwrap();
    let body = soon(response).await.unwrap().into_body();
    assert_eq!(soon(told.recv()).await, Some(None));
    sending.send_reset(Reason::CANCEL);
    drop(body);
    assert_eq!(soon(told.recv()).await, Some(Some(Reason::CANCEL)));
    // The permission ends (A8).
    let (response, _sending) = peer.send_request(post("/"), false).unwrap();
    let mut body = soon(response).await.unwrap().into_body();
    assert_eq!(soon(told.recv()).await, Some(None));
    world.change(|snapshot| snapshot.policies = policies(vec![]));
    assert_eq!(soon(told.recv()).await, Some(Some(Reason::CANCEL)));
    assert!(soon(body.data()).await.unwrap().is_err());
}

/// What is taken of a body that nobody reads, at most: the windows on the way, and a piece in between.
const HELD: usize = 1024 * 1024;

#[tokio::test]
async fn a_body_that_the_app_does_not_read_holds_the_peer_back() {
    let tasks = Drain::new();
    let app = app(&tasks, |_, request, respond| async move {
        let _unread = (request, respond);
        std::future::pending::<()>().await;
    })
    .await;
    let world = world(app);
    let (_response, mut sending) = peer(&world).await.send_request(post("/"), false).unwrap();
    let mut sent = 0;
    loop {
        sending.reserve_capacity(16 * 1024);
        let room = std::future::poll_fn(|cx| match sending.capacity() {
            0 => sending.poll_capacity(cx).map(|_| ()),
            _ => std::task::Poll::Ready(()),
        });
        if tokio::time::timeout(Duration::from_secs(1), room)
            .await
            .is_err()
        {
            break;
        }
        let room = sending.capacity();
        sending.send_data(vec![0; room].into(), false).unwrap();
        sent += room;
        assert!(sent < HELD, "nobody reads and {sent} bytes were taken");
    }
    assert!(sent > 0);
}

#[tokio::test]
async fn a_body_that_the_peer_does_not_read_holds_the_app_back_and_no_other_stream() {
    let tasks = Drain::new();
    let (tell, mut told) = mpsc::channel(1);
    let app = app(&tasks, move |number, request, mut respond| {
        let tell = tell.clone();
        async move {
            if request.uri().path() != "/endless" {
                return echo(number, request, respond).await;
            }
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            let mut sent = 0;
            loop {
                stream.reserve_capacity(16 * 1024);
                let room = std::future::poll_fn(|cx| match stream.capacity() {
                    0 => stream.poll_capacity(cx).map(|_| ()),
                    _ => std::task::Poll::Ready(()),
                });
                if tokio::time::timeout(Duration::from_secs(1), room)
                    .await
                    .is_err()
                {
                    break;
                }
                let room = stream.capacity();
                stream.send_data(vec![0; room].into(), false).unwrap();
                sent += room;
                if sent >= HELD {
                    break;
                }
            }
            tell.send(sent).await.unwrap();
            std::future::pending::<()>().await;
        }
    })
    .await;
    let world = world(app);
    let mut peer = peer(&world).await;
    // More than the window of a connection would hold, if it were as large as that of a few streams.
    let mut unread = Vec::new();
    for _ in 0..20 {
        let (response, _) = peer.send_request(get2("/endless"), true).unwrap();
        unread.push(soon(response).await.unwrap().into_body());
    }
    for _ in 0..20 {
        let sent = soon(told.recv()).await.unwrap();
        assert!(
            sent > 0 && sent < HELD,
            "nobody reads and {sent} bytes were taken"
        );
    }
    let (response, _) = peer.send_request(get2("/"), true).unwrap();
    let mut response = soon(response).await.unwrap();
    assert!(
        !soon(collect(response.body_mut()))
            .await
            .unwrap()
            .0
            .is_empty()
    );
}

#[tokio::test]
async fn a_grpc_client_is_denied_in_its_own_words() {
    let tasks = Drain::new();
    let world = world(app(&tasks, echo).await);
    world.change(|snapshot| {
        snapshot.policies = policies(vec![
            allow(vec![Rule::default()]),
            deny("shop/d", &["/no/*"]),
        ]);
    });
    let mut peer = peer(&world).await;
    let mut request = post("/no/Way");
    let kind = "application/grpc".parse().unwrap();
    request.headers_mut().insert("content-type", kind);
    let (response, _) = peer.send_request(request, true).unwrap();
    let response = soon(response).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["grpc-status"], "7");
    let id = response.headers()["x-fender-decision"].to_str().unwrap();
    let message = response.headers()["grpc-message"].to_str().unwrap();
    assert_eq!(message, format!("denied (decision {id})"));
    assert!(response.body().is_end_stream(), "trailers only");
    assert_eq!(response.headers()["cache-control"], "no-store");
}

/// A5: a refusal that a cache or a browser would take for a success.
#[tokio::test]
async fn a_refusal_is_a_success_to_nobody_who_does_not_ask_as_grpc_does() {
    let tasks = Drain::new();
    let world = world(app(&tasks, echo).await);
    world.change(|snapshot| snapshot.policies = policies(vec![]));
    let mut peer = peer(&world).await;
    for method in ["GET", "HEAD", "PUT", "OPTIONS"] {
        let mut request = get2("/no/Way");
        *request.method_mut() = method.parse().unwrap();
        let kind = "application/grpc".parse().unwrap();
        request.headers_mut().insert("content-type", kind);
        let (response, _) = peer.send_request(request, true).unwrap();
        let response = soon(response).await.unwrap();
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{method}");
        assert_eq!(response.headers()["cache-control"], "no-store", "{method}");
        assert!(!response.headers().contains_key("grpc-status"), "{method}");
    }
}

#[tokio::test]
async fn an_app_that_speaks_only_http1_is_a_bad_gateway() {
    let tasks = Drain::new();
    let app = raw_app(&tasks, |mut socket| async move {
        let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    })
    .await;
    let answer = world(app).raw(&last_get("/")).await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
}
