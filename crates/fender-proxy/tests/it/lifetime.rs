//! What changes while connections are open: certificates, policy, listeners, the process itself.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fender_config::snapshot::Protocol;
use fender_identity::tls::CaPin;
use fender_policy::Rule;
use fender_proxy::{Limits, Reason};
use fender_runtime::drain::Drain;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;

use crate::drains::patient_app;
use crate::harness::*;

fn server_pin(stream: &TlsStream<TcpStream>) -> CaPin {
    CaPin::of(&stream.get_ref().1.peer_certificates().unwrap()[0])
}

#[tokio::test]
async fn a_rotation_leaves_open_connections_alone_and_serves_new_ones_with_the_new_certificate() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    let before = world.svid.borrow().clone();
    let mut kept = world.web().await;
    kept.write_all(get("/1").as_bytes()).await.unwrap();
    assert!(response(&mut kept).await.0.starts_with("HTTP/1.1 200"));

    let after = world.authority.svid_until(ORDERS, NOW + 2 * HOUR);
    world.svid.send_replace(after.clone());
    let mut running = world.running.clone();
    soon(async {
        while running.status().svid_not_after != after.validity().not_after {
            tokio::task::yield_now().await;
        }
    })
    .await;
    kept.write_all(get("/2").as_bytes()).await.unwrap();
    assert!(response(&mut kept).await.0.starts_with("HTTP/1.1 200"));
    let new = world.web().await;
    assert_eq!(server_pin(&kept), CaPin::of(&before.chain()[0]));
    assert_eq!(server_pin(&new), CaPin::of(&after.chain()[0]));
    let _ = &mut running;
}

#[tokio::test]
async fn a_connection_retires_politely_before_its_peers_certificate_expires() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    let mut stream = world.web().await;
    stream.write_all(get("/young").as_bytes()).await.unwrap();
    assert!(!response(&mut stream).await.0.contains("connection: close"));
    world.clock.advance(Duration::from_secs(HOUR * 4 / 5));
    stream.write_all(get("/old").as_bytes()).await.unwrap();
    assert!(response(&mut stream).await.0.contains("connection: close"));
    assert_eq!(rest(&mut stream).await, "");
}

#[tokio::test]
async fn a_connection_outlives_the_certificate_it_was_served_with() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    let peer = world.authority.svid_until(WEB, NOW + 10 * HOUR);
    let mut kept = world.client(&peer, &[]).await;
    kept.write_all(get("/before").as_bytes()).await.unwrap();
    response(&mut kept).await;
    let after = world.authority.svid_until(ORDERS, NOW + 10 * HOUR);
    world.svid.send_replace(after);
    world.clock.advance(Duration::from_secs(HOUR * 2));
    kept.write_all(get("/after").as_bytes()).await.unwrap();
    let (head, _) = response(&mut kept).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(!head.contains("connection: close"), "{head}");
}

#[tokio::test]
async fn an_expired_certificate_of_ours_opens_no_connection_and_a_renewed_one_does() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    let peer = world.authority.svid_until(WEB, NOW + 10 * HOUR);
    world.clock.advance(Duration::from_secs(HOUR + 2));
    // Closed before a word of TLS: whether the client would have noticed is not asked.
    let mut refused = TcpStream::connect(world.address()).await.unwrap();
    assert_eq!(soon(refused.read(&mut [0])).await.unwrap(), 0);
    world
        .svid
        .send_replace(world.authority.svid_until(ORDERS, NOW + 10 * HOUR));
    soon(async {
        while world.running.status().svid_not_after.as_secs() < NOW + 2 * HOUR {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut stream = world.client(&peer, &[]).await;
    stream.write_all(get("/again").as_bytes()).await.unwrap();
    assert!(response(&mut stream).await.0.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_tcp_connection_opened_with_a_valid_certificate_outlives_it() {
    let tasks = Drain::new();
    let app = raw_app(&tasks, |mut socket| async move {
        let (mut read, mut write) = socket.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let world = World::tcp(app);
    let mut stream = world.client(&world.authority.svid(WEB), &[]).await;
    let mut pong = [0; 4];
    stream.write_all(b"ping").await.unwrap();
    soon(stream.read_exact(&mut pong)).await.unwrap();
    world.clock.advance(Duration::from_secs(HOUR * 2));
    // A change that asks every permit again: time alone does not take one away.
    world.change(|snapshot| snapshot.drain = Duration::from_secs(6));
    stream.write_all(b"pong").await.unwrap();
    soon(stream.read_exact(&mut pong)).await.unwrap();
    assert_eq!(&pong, b"pong");
}

#[tokio::test]
async fn a_peer_whose_certificate_expired_while_connected_is_denied() {
    let tasks = Drain::new();
    let mut world = World::http(echo_app(&tasks).await);
    let mut stream = world.web().await;
    stream.write_all(get("/young").as_bytes()).await.unwrap();
    response(&mut stream).await;
    world.clock.advance(Duration::from_secs(HOUR + 2));
    stream.write_all(get("/expired").as_bytes()).await.unwrap();
    assert!(response(&mut stream).await.0.starts_with("HTTP/1.1 403"));
    assert!(matches!(
        soon(world.records.recv()).await.unwrap().reason,
        Reason::Expired
    ));
}

/// An app that sends one line and then whatever the test sends, for ever.
pub(crate) async fn streaming_app(tasks: &Drain) -> (std::net::SocketAddr, watch::Receiver<usize>) {
    let (opened, open) = watch::channel(0);
    let opened = Arc::new(opened);
    let answer = move |_: Request<Incoming>| {
        let opened = opened.clone();
        async move {
            opened.send_modify(|open| *open += 1);
            let (sender, mut receiver) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
            sender
                .send(Ok(Frame::data(Bytes::from_static(b"first\n"))))
                .await
                .unwrap();
            let body = StreamBody::new(futures_util::stream::poll_fn(move |cx| {
                // Keeps the sender, so the body never ends.
                let _ = &sender;
                receiver.poll_recv(cx)
            }));
            Ok::<_, Infallible>(Response::new(body))
        }
    };
    (hyper_app(tasks, answer).await, open)
}

#[tokio::test]
async fn a_policy_change_cuts_an_open_stream_of_http1() {
    let tasks = Drain::new();
    let (app, _) = streaming_app(&tasks).await;
    let mut world = World::http(app);
    let mut stream = world.web().await;
    stream.write_all(get("/events").as_bytes()).await.unwrap();
    head(&mut stream).await;
    let mut first = [0; 11];
    soon(stream.read_exact(&mut first)).await.unwrap();
    assert_eq!(&first, b"6\r\nfirst\n\r\n");

    // Still allowed by other words: nothing happens.
    world.change(|snapshot| {
        snapshot.policies = policies(vec![allow(vec![Rule::default()]), deny("shop/x", &["/no"])]);
    });
    world.settled().await;
    world.change(|snapshot| snapshot.policies = policies(vec![]));
    let mut last = Vec::new();
    // Cut, not ended: no last chunk, no close_notify.
    assert!(soon(stream.read_to_end(&mut last)).await.is_err());
    assert!(last.is_empty(), "{last:?}");
    let record = soon(world.records.recv()).await.unwrap();
    assert_eq!(
        (record.snapshot, record.facts.request.unwrap().path.as_str()),
        (3, "/events")
    );
}

#[tokio::test]
async fn a_policy_change_resets_an_open_stream_of_http2_and_no_other() {
    let tasks = Drain::new();
    let (app, _) = streaming_app(&tasks).await;
    let mut world = World::http(app);
    let mut client = world.web2().await;
    let open = |path: &str| {
        Request::get(format!("https://o{path}"))
            .body(Full::default())
            .unwrap()
    };
    let denied = soon(client.send_request(open("/denied"))).await.unwrap();
    let kept = soon(client.send_request(open("/kept"))).await.unwrap();
    let (mut denied, mut kept) = (denied.into_body(), kept.into_body());
    assert!(soon(denied.frame()).await.unwrap().is_ok());
    assert!(soon(kept.frame()).await.unwrap().is_ok());

    world.change(|snapshot| {
        snapshot.policies = policies(vec![
            allow(vec![Rule::default()]),
            deny("shop/x", &["/denied"]),
        ]);
    });
    assert!(soon(denied.frame()).await.unwrap().is_err());
    soon(world.records.recv()).await.unwrap();
    let still = tokio::time::timeout(Duration::from_millis(20), kept.frame()).await;
    assert!(still.is_err(), "the other stream ended");
}

#[tokio::test]
async fn a_policy_change_ends_streams_that_wait_for_the_app_and_for_room_to_reach_it() {
    let tasks = Drain::new();
    let (app, _go, mut arrivals) = patient_app(&tasks).await;
    let limits = Limits {
        links: 1,
        establish: Duration::from_secs(3600),
        ..Limits::default()
    };
    let port = inbound(app, Protocol::Http);
    let mut world = World::start(vec![port], vec![], limits);
    world.change(|snapshot| {
        let refused = deny("shop/x", &["/refused"]);
        snapshot.policies = policies(vec![allow(vec![Rule::default()]), refused]);
    });
    world.settled().await;
    let client = world.web2().await;
    let ask = |path: &str| {
        let request = Request::get(format!("https://o{path}"));
        let request = request.body(Full::default()).unwrap();
        let mut client = client.clone();
        async move { client.send_request(request).await.unwrap().status() }
    };
    let mut waiting = JoinSet::new();
    waiting.spawn(ask("/one"));
    soon(arrivals.wait_for(|count| *count == 1)).await.unwrap();
    waiting.spawn(ask("/two"));
    // Streams are taken up in turn.
    tokio::task::yield_now().await;
    assert_eq!(soon(ask("/refused")).await, StatusCode::FORBIDDEN);
    soon(world.records.recv()).await.unwrap();

    world.change(|snapshot| {
        let then = deny("shop/x", &["/one", "/two"]);
        snapshot.policies = policies(vec![allow(vec![Rule::default()]), then]);
    });
    while let Some(status) = soon(waiting.join_next()).await {
        assert_eq!(status.unwrap(), StatusCode::FORBIDDEN);
        let record = soon(world.records.recv()).await.unwrap();
        assert_eq!(record.snapshot, 3);
    }
    assert_eq!(*arrivals.borrow(), 1);
}

#[tokio::test]
async fn a_policy_change_cuts_an_open_tcp_connection() {
    let tasks = Drain::new();
    let app = raw_app(&tasks, |mut socket| async move {
        let (mut read, mut write) = socket.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let mut world = World::tcp(app);
    let mut stream = world.client(&world.authority.svid(WEB), &[]).await;
    stream.write_all(b"ping").await.unwrap();
    let mut pong = [0; 4];
    soon(stream.read_exact(&mut pong)).await.unwrap();
    world.change(|snapshot| snapshot.policies = policies(vec![]));
    assert!(soon(stream.read_exact(&mut pong)).await.is_err());
    assert!(soon(world.records.recv()).await.is_some());
}

#[tokio::test]
async fn a_revoked_peer_is_severed_and_refused_anew() {
    let tasks = Drain::new();
    let (app, _) = streaming_app(&tasks).await;
    let mut world = World::http(app);
    let svid = world.authority.svid(WEB);
    let mut one = world.client(&svid, &[b"http/1.1"]).await;
    one.write_all(get("/events").as_bytes()).await.unwrap();
    head(&mut one).await;
    let mut idle = world.client(&svid, &[b"http/1.1"]).await;
    let mut other = world.web().await;

    world.change(|snapshot| {
        let denied = Arc::make_mut(&mut snapshot.trust.denied);
        denied.deny_serial(svid.serial().clone());
    });
    let mut rest_of = Vec::new();
    assert!(soon(one.read_to_end(&mut rest_of)).await.is_err());
    assert!(soon(idle.read_u8()).await.is_err());
    assert!(matches!(
        soon(world.records.recv()).await.unwrap().reason,
        Reason::Revoked
    ));
    let mut again = world.client(&svid, &[b"http/1.1"]).await;
    assert!(soon(again.read_u8()).await.is_err());
    other.write_all(get("/events").as_bytes()).await.unwrap();
    assert!(head(&mut other).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_removed_listener_drains_and_an_added_one_accepts() {
    let tasks = Drain::new();
    let (app, go, mut arrivals) = patient_app(&tasks).await;
    let world = World::http(app);
    let mut busy = world.web().await;
    busy.write_all(get("/busy").as_bytes()).await.unwrap();
    soon(arrivals.wait_for(|count| *count == 1)).await.unwrap();
    let address = world.address();

    let mut next = inbound(app, Protocol::Http);
    next.listen = "127.0.0.2:0".parse().unwrap();
    world.change(|snapshot| snapshot.inbound = vec![next.clone()]);
    soon(async {
        while world.running.local_address(&next.listen).is_none() {
            tokio::task::yield_now().await;
        }
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    go.send_replace(true);
    let (head, body) = response(&mut busy).await;
    assert!(
        head.contains("connection: close") && body == "done",
        "{head}"
    );
    assert_eq!(world.running.status().listeners.len(), 1);
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_served_leaves_the_old_in_place_and_says_so() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    world.change(|snapshot| snapshot.trust.bundles = Arc::new(fender_identity::Bundles::new()));
    let mut running = world.running.clone();
    soon(async {
        while running.status().problem.is_none() {
            running.changed().await;
        }
    })
    .await;
    assert_eq!(running.status().snapshot, 1);
    assert!(world.raw(&last_get("/")).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_closed_feed_is_stale_and_not_revoked() {
    let tasks = Drain::new();
    let mut world = World::http(echo_app(&tasks).await);
    let mut stream = world.web().await;
    let svid = world.authority.svid(WEB);
    let (snapshot, _) = watch::channel(world.snapshot.borrow().clone());
    let (own, _) = watch::channel(world.svid.borrow().clone());
    world.snapshot = snapshot;
    world.svid = own;
    stream.write_all(get("/").as_bytes()).await.unwrap();
    assert!(response(&mut stream).await.0.starts_with("HTTP/1.1 200"));
    let mut new = world.client(&svid, &[b"http/1.1"]).await;
    new.write_all(get("/").as_bytes()).await.unwrap();
    assert!(response(&mut new).await.0.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn an_app_that_closes_idle_connections_fails_no_request() {
    let tasks = Drain::new();
    let served = Arc::new(AtomicUsize::new(0));
    let count = served.clone();
    // Promises keep-alive and closes at once after every second response.
    let app = raw_app(&tasks, move |mut socket| {
        let count = count.clone();
        async move {
            for _ in 0..2 {
                let mut seen = Vec::new();
                while !seen.ends_with(b"\r\n\r\n") {
                    match socket.read_u8().await {
                        Ok(byte) => seen.push(byte),
                        Err(_) => return,
                    }
                }
                count.fetch_add(1, Ordering::Relaxed);
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                socket.write_all(answer).await.unwrap();
            }
        }
    })
    .await;
    let world = World::http(app);
    let mut stream = world.web().await;
    for turn in 0..200 {
        stream.write_all(get("/turn").as_bytes()).await.unwrap();
        let (head, body) = response(&mut stream).await;
        assert!(
            head.starts_with("HTTP/1.1 200") && body == "ok",
            "{turn}: {head}"
        );
    }
    assert!(served.load(Ordering::Relaxed) >= 200);
}

#[tokio::test]
async fn connections_to_the_app_are_kept_and_used_again() {
    let tasks = Drain::new();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    let app = raw_app(&tasks, move |socket| {
        count.fetch_add(1, Ordering::Relaxed);
        async move {
            let service = hyper::service::service_fn(|request: Request<Incoming>| async {
                request.into_body().collect().await.unwrap();
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"ok"))))
            });
            let io = hyper_util::rt::TokioIo::new(socket);
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(io, service)
                .await;
        }
    })
    .await;
    let world = World::http(app);
    let mut stream = world.web().await;
    for _ in 0..20 {
        let post = "POST /x HTTP/1.1\r\nhost: o\r\ncontent-length: 2\r\n\r\nhi";
        stream.write_all(post.as_bytes()).await.unwrap();
        response(&mut stream).await;
        stream.write_all(get("/y").as_bytes()).await.unwrap();
        response(&mut stream).await;
    }
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn more_connections_than_slots_wait_and_are_served_later() {
    let tasks = Drain::new();
    let limits = Limits {
        connections: 1,
        ..Limits::default()
    };
    let port = inbound(echo_app(&tasks).await, Protocol::Http);
    let world = World::start(vec![port], vec![], limits);
    let mut first = world.web().await;
    let request = last_get("/second");
    let second = world.raw(&request);
    let free = async {
        first
            .write_all(last_get("/first").as_bytes())
            .await
            .unwrap();
        rest(&mut first).await
    };
    let (second, first) = tokio::join!(second, free);
    assert!(first.starts_with("HTTP/1.1 200") && second.starts_with("HTTP/1.1 200"));
}
