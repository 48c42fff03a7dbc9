//! What an app of HTTP/2 or a peer of one can make us do and hold: nothing is done twice, and neither makes us
//! hold more than a bound.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use fender_policy::Rule;
use fender_proxy::Limits;
use fender_runtime::drain::Drain;
use h2::Reason;
use http::{Response, StatusCode};
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, oneshot, watch};

use crate::frames::*;
use crate::h2c::*;
use crate::harness::*;

/// RFC 9113 §6.5.2: from the first request on.
#[tokio::test]
async fn the_settings_of_the_app_are_kept_to() {
    let tasks = Drain::new();
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let peak = most.clone();
    let connections = Arc::new(AtomicUsize::new(0));
    let made = connections.clone();
    let inner = tasks.clone();
    let app = raw_app(&tasks, move |socket| {
        let (now, peak, tasks) = (now.clone(), peak.clone(), inner.clone());
        made.fetch_add(1, Ordering::SeqCst);
        async move {
            let mut builder = h2::server::Builder::new();
            builder.max_concurrent_streams(2).initial_window_size(100);
            let mut connection = builder.handshake::<_, Bytes>(socket).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let (now, peak) = (now.clone(), peak.clone());
                tasks.spawn(async move {
                    peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    let (body, _) = collect(&mut request.into_body()).await.unwrap();
                    assert_eq!(body.len(), 1000);
                    now.fetch_sub(1, Ordering::SeqCst);
                    let _ = respond.send_response(Response::new(()), true);
                });
            }
        }
    })
    .await;
    let world = world(app);
    let mut peer = peer(&world).await;
    let mut open = Vec::new();
    for _ in 0..20 {
        let (response, mut sending) = peer.send_request(post("/"), false).unwrap();
        sending.send_data(vec![0; 1000].into(), true).unwrap();
        open.push(response);
    }
    for response in open {
        assert_eq!(soon(response).await.unwrap().status(), StatusCode::OK);
    }
    assert_eq!(most.load(Ordering::SeqCst), 2);
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

/// CVE-2023-44487, aimed at what we hold for an app that has stopped reading.
#[tokio::test]
async fn requests_that_are_given_up_wait_for_the_app_like_others() {
    let tasks = Drain::new();
    let (go_on, goes_on) = watch::channel(false);
    let (tell, mut told) = mpsc::unbounded_channel();
    let app = raw_app(&tasks, move |mut socket| {
        let (mut goes_on, tell) = (goes_on.clone(), tell.clone());
        async move {
            greet(&mut socket).await;
            goes_on.wait_for(|goes_on| *goes_on).await.unwrap();
            while let Some((kind, _, _, _)) = next(&mut socket).await {
                if kind == HEADERS {
                    tell.send(true).unwrap();
                }
            }
            tell.send(false).unwrap();
        }
    })
    .await;
    let limits = Limits {
        streams: 4,
        establish: Duration::from_millis(500),
        given_up: 10_000,
        ..Limits::default()
    };
    let world = World::start(vec![port(app)], vec![], limits);
    world.change(|snapshot| {
        let here = deny("shop/here", &["/here"]);
        snapshot.policies = policies(vec![allow(vec![Rule::default()]), here]);
    });
    let peer = peer(&world).await;
    #[expect(
        clippy::async_yields_async,
        reason = "whether the answer is waited for is what differs"
    )]
    let ask = async |path: &str, large: usize| {
        let mut request = get2(path);
        let large = "x".repeat(large).parse().unwrap();
        request.headers_mut().insert("x-large", large);
        let mut peer = soon(peer.clone().ready()).await.unwrap();
        peer.send_request(request, true).unwrap().0
    };
    // What was asked before has been begun, or waits, once we have answered what comes after it.
    let ask_and_give_up = async || {
        let given_up = ask("/", LARGE).await;
        let answer = soon(ask("/here", 0).await).await.unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
        drop(given_up);
    };
    // Until the way to the app is full: who still waits then is told so.
    let mut asked = 0;
    loop {
        for _ in 0..100 {
            ask_and_give_up().await;
        }
        asked += 101;
        match tokio::time::timeout(Duration::from_secs(2), ask("/", LARGE).await).await {
            Ok(answer) => {
                assert_eq!(answer.unwrap().status(), StatusCode::GATEWAY_TIMEOUT);
                break;
            }
            // It has been begun.
            Err(_) => assert!(asked < 4000, "nobody reads and {asked} requests were taken"),
        }
    }
    // From here on nothing is begun.
    for _ in 0..100 {
        ask_and_give_up().await;
    }
    go_on.send(true).unwrap();
    assert!(soon(told.recv()).await.unwrap());
    drop(peer);
    let mut reached = 1;
    while soon(told.recv()).await.unwrap() {
        reached += 1;
    }
    assert!(reached < asked, "{reached} of {asked}, and 100 more");
}

/// CVE-2023-44487, aimed at the app: each request is given up once the app has it, so none waits for another to end.
#[tokio::test]
async fn a_peer_that_gives_up_request_after_request_is_sent_away() {
    let tasks = Drain::new();
    let (tell, mut told) = mpsc::unbounded_channel();
    let app = app(&tasks, move |_, request, mut respond| {
        let tell = tell.clone();
        async move {
            if request.uri().path() == "/answered" {
                // Its body never ends.
                let mut stream = respond.send_response(Response::new(()), false).unwrap();
                let _ = poll_fn(|cx| stream.poll_reset(cx)).await;
                return;
            }
            tell.send(()).unwrap();
            let _ = poll_fn(|cx| respond.poll_reset(cx)).await;
            tell.send(()).unwrap();
        }
    })
    .await;
    let limits = Limits {
        given_up: 10,
        streams: 4,
        ..Limits::default()
    };
    for uploads in [false, true] {
        let world = World::start(vec![port(app)], vec![], limits.clone());
        let stream = world.client(&world.authority.svid(WEB), &[b"h2"]).await;
        let (peer, connection) = h2::client::handshake(stream).await.unwrap();
        let (end, mut ends) = oneshot::channel();
        world.tasks.spawn(async move {
            let _ = end.send(connection.await);
        });
        // To be content with the beginning of a response is no offence, however often.
        for _ in 0..50 {
            let mut peer = soon(peer.clone().ready()).await.unwrap();
            let (response, _) = peer.send_request(get2("/answered"), true).unwrap();
            assert_eq!(soon(response).await.unwrap().status(), StatusCode::OK);
        }
        let mut given_up = 0;
        let error = loop {
            assert!(given_up < 1000, "all of them were taken");
            let ready = tokio::select! {
                biased;
                ended = &mut ends => break ended.unwrap().unwrap_err(),
                ready = soon(peer.clone().ready()) => ready,
            };
            let Ok(mut peer) = ready else { continue };
            let Ok((response, sending)) = peer.send_request(post("/"), !uploads) else {
                continue;
            };
            tokio::select! {
                _ = response => continue,
                told = soon(told.recv()) => told.unwrap(),
            }
            drop(sending);
            given_up += 1;
            // Until the app has heard of it, so that we have counted it.
            soon(told.recv()).await.unwrap();
        };
        assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM), "{error}");
        assert!(given_up >= 10, "{given_up}");
        // Others are not concerned.
        let mut other = crate::h2c::peer(&world).await;
        let (response, _) = other.send_request(get2("/answered"), true).unwrap();
        assert_eq!(soon(response).await.unwrap().status(), StatusCode::OK);
    }
}

/// A field of a request that fills the way to an app soon.
const LARGE: usize = 30 * 1024;

/// What an app has from us when it stops reading is ours again when nobody needs it.
#[tokio::test]
async fn an_app_that_reads_nothing_holds_no_place_of_those_who_left() {
    const WINDOW_UPDATE: u8 = 8;
    let tasks = Drain::new();
    let connections = Arc::new(AtomicUsize::new(0));
    let inner = tasks.clone();
    let app = raw_app(&tasks, move |mut socket| {
        let first = connections.fetch_add(1, Ordering::SeqCst) == 0;
        let tasks = inner.clone();
        async move {
            if first {
                greet(&mut socket).await;
                // It says that it takes all there is, and reads nothing.
                let window = frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
                socket.write_all(&window).await.unwrap();
                let window = frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0, 0, 0]);
                socket.write_all(&window).await.unwrap();
                return std::future::pending().await;
            }
            let mut connection = h2::server::handshake(socket).await.unwrap();
            while let Some(Ok((request, respond))) = connection.accept().await {
                tasks.spawn(echo(1, request, respond));
            }
        }
    })
    .await;
    let limits = Limits {
        links: 1,
        linger: Duration::from_millis(100),
        ..Limits::default()
    };
    let world = World::start(vec![port(app)], vec![], limits);
    let mut peer = peer(&world).await;
    let (response, mut sending) = peer.send_request(post("/endless"), false).unwrap();
    // Until nothing more is taken.
    loop {
        sending.reserve_capacity(64 * 1024);
        let room = poll_fn(|cx| match sending.capacity() {
            0 => sending.poll_capacity(cx).map(|_| ()),
            _ => Poll::Ready(()),
        });
        match tokio::time::timeout(Duration::from_secs(1), room).await {
            Ok(()) => {
                let room = sending.capacity();
                sending.send_data(vec![0; room].into(), false).unwrap();
            }
            Err(_) => break,
        }
    }
    drop((response, sending, peer));
    let answer = world.raw(&last_get("/")).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

/// An app whose connections answer nothing, and end as they are told: what is written after the first request,
/// and whether the connection is then closed.
async fn app_that_goes<F>(tasks: &Drain, seen: Arc<AtomicUsize>, end: F) -> SocketAddr
where
    F: Fn(usize, u32) -> (Vec<u8>, bool) + Clone + Send + Sync + 'static,
{
    raw_app(tasks, move |mut socket| {
        let (seen, end) = (seen.clone(), end.clone());
        async move {
            greet(&mut socket).await;
            while let Some((kind, _, stream, _)) = next(&mut socket).await {
                if kind != HEADERS {
                    continue;
                }
                let (said, closes) = end(seen.fetch_add(1, Ordering::SeqCst), stream);
                socket.write_all(&said).await.unwrap();
                if closes {
                    socket.shutdown().await.unwrap();
                    while next(&mut socket).await.is_some() {}
                    return;
                }
            }
        }
    })
    .await
}

fn goaway(last: u32) -> Vec<u8> {
    let mut payload = last.to_be_bytes().to_vec();
    payload.extend(0_u32.to_be_bytes());
    frame(GOAWAY, 0, 0, &payload)
}

fn ok(stream: u32) -> Vec<u8> {
    headers(END_STREAM, stream, &block([(":status", "200")]))
}

/// RFC 9113 §6.8, RFC 9110 §9.2.2: a purchase that may have been made is not made again.
#[tokio::test]
async fn only_what_the_app_says_it_has_not_begun_is_sent_again() {
    // Method, what the app names as the last it took up, how often the request arrives, and what becomes of it.
    let (took_it, did_not) = (1, 0);
    for (method, last, times, status) in [
        ("POST", took_it, 1, StatusCode::BAD_GATEWAY),
        ("GET", took_it, 1, StatusCode::BAD_GATEWAY),
        ("POST", did_not, 2, StatusCode::OK),
        ("GET", did_not, 2, StatusCode::OK),
    ] {
        let tasks = Drain::new();
        let seen = Arc::new(AtomicUsize::new(0));
        let app = app_that_goes(&tasks, seen.clone(), move |turn, stream| match turn {
            0 => (goaway(last), true),
            _ => (ok(stream), false),
        })
        .await;
        let world = world(app);
        let mut request = get2("/");
        *request.method_mut() = method.parse().unwrap();
        let (response, _) = peer(&world).await.send_request(request, true).unwrap();
        let answer = soon(response).await.unwrap();
        assert_eq!(answer.status(), status, "{method} {last}");
        assert_eq!(seen.load(Ordering::SeqCst), times, "{method} {last}");
    }
}

/// A connection that was there may have been about to end; one that was made for the request ended because of it.
#[tokio::test]
async fn what_ends_a_new_connection_is_not_tried_on_another() {
    let tasks = Drain::new();
    let seen = Arc::new(AtomicUsize::new(0));
    let app = app_that_goes(&tasks, seen.clone(), |turn, stream| match turn {
        1 => (ok(stream), false),
        3 => (ok(stream), false),
        _ => (vec![], true),
    })
    .await;
    let world = world(app);
    let mut peer = peer(&world).await;
    let mut ask = async |request| {
        let (response, _) = peer.send_request(request, true).unwrap();
        soon(response).await.unwrap().status()
    };
    assert_eq!(ask(get2("/new")).await, StatusCode::BAD_GATEWAY);
    assert_eq!(ask(get2("/answered")).await, StatusCode::OK);
    // Turns 2 and 3.
    assert_eq!(ask(get2("/kept")).await, StatusCode::OK);
    assert_eq!(seen.load(Ordering::SeqCst), 4);
    assert_eq!(ask(post("/buy")).await, StatusCode::BAD_GATEWAY);
    assert_eq!(seen.load(Ordering::SeqCst), 5);
}

/// Half of a body that went elsewhere cannot be sent again.
#[tokio::test]
async fn a_request_whose_body_has_begun_is_sent_once() {
    let tasks = Drain::new();
    let inner = tasks.clone();
    let seen = Arc::new(AtomicUsize::new(0));
    let counted = seen.clone();
    let app = raw_app(&tasks, move |mut socket| {
        let (first, tasks) = (counted.fetch_add(1, Ordering::SeqCst) == 0, inner.clone());
        async move {
            if first {
                greet(&mut socket).await;
                while let Some((kind, _, _, payload)) = next(&mut socket).await {
                    if kind == DATA && !payload.is_empty() {
                        socket.write_all(&goaway(0)).await.unwrap();
                        socket.shutdown().await.unwrap();
                    }
                }
                return;
            }
            let mut connection = h2::server::handshake(socket).await.unwrap();
            while let Some(Ok((request, respond))) = connection.accept().await {
                tasks.spawn(echo(1, request, respond));
            }
        }
    })
    .await;
    let world = world(app);
    let mut peer = peer(&world).await;
    let (response, mut sending) = peer.send_request(post("/"), false).unwrap();
    sending.send_data("first half".into(), false).unwrap();
    let answer = soon(response).await.unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(seen.load(Ordering::SeqCst), 1);
    // The peer may ask again, and is answered.
    let (response, _) = peer.send_request(post("/"), true).unwrap();
    assert_eq!(soon(response).await.unwrap().status(), StatusCode::OK);
}

/// Connections that an app leaves half open count like others.
#[tokio::test]
async fn connections_to_an_app_that_goes_away_and_stays_are_bounded() {
    let tasks = Drain::new();
    let (tell, mut told) = mpsc::unbounded_channel();
    let app = raw_app(&tasks, move |mut socket| {
        let tell = tell.clone();
        async move {
            greet(&mut socket).await;
            // It takes one request up, does not answer it, and wants the next on another connection.
            while let Some((kind, _, stream, _)) = next(&mut socket).await {
                if kind == HEADERS && stream == 1 {
                    socket.write_all(&goaway(stream)).await.unwrap();
                    tell.send(()).unwrap();
                }
            }
        }
    })
    .await;
    let limits = Limits {
        links: 2,
        establish: Duration::from_millis(300),
        ..Limits::default()
    };
    let world = World::start(vec![port(app)], vec![], limits);
    let mut peer = peer(&world).await;
    let mut open = Vec::new();
    for _ in 0..2 {
        open.push(peer.send_request(post("/"), true).unwrap().0);
        soon(told.recv()).await.unwrap();
    }
    let (response, _) = peer.send_request(post("/"), true).unwrap();
    let answer = soon(response).await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(told.try_recv().is_err(), "there was no room for a third");
}

/// The attack: many streams on few connections, each with a response that is not taken, hold more than there is room for.
#[tokio::test]
async fn the_streams_of_all_peers_hold_no_more_than_connections_would() {
    const ROOM: usize = 3;
    let tasks = Drain::new();
    let app = app(&tasks, |_, _, mut respond| async move {
        let mut stream = respond.send_response(Response::new(()), false).unwrap();
        stream.send_data(vec![0; 16 * 1024].into(), false).unwrap();
        let _ = poll_fn(|cx| stream.poll_reset(cx)).await;
    })
    .await;
    let limits = Limits {
        links: ROOM,
        establish: Duration::from_secs(2),
        ..Limits::default()
    };
    let world = World::start(vec![port(app)], vec![], limits);
    let (mut first, mut second) = (peer(&world).await, peer(&world).await);
    let mut unread = Vec::new();
    for _ in 0..ROOM {
        let (response, _) = first.send_request(get2("/"), true).unwrap();
        let response = soon(response).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        unread.push(response);
    }
    let more = [&mut first, &mut second].map(|peer| {
        let (response, _) = peer.send_request(get2("/"), true).unwrap();
        response
    });
    for response in more {
        let status = soon(response).await.unwrap().status();
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    }
    // One ends, whichever it is, and one more has its room: of the connection itself, and of the others.
    for at in [0, 1] {
        drop(unread.remove(at));
        let (response, _) = first.send_request(get2("/"), true).unwrap();
        let response = soon(response).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        unread.push(response);
    }
}

/// A crowd of peers that asked once and stay keeps no connection to the app from others.
#[tokio::test]
async fn a_peer_that_rests_holds_no_connection_to_the_app() {
    let tasks = Drain::new();
    let (tell, mut told) = mpsc::unbounded_channel();
    let connections = AtomicUsize::new(0);
    let inner = tasks.clone();
    let app = raw_app(&tasks, move |socket| {
        let number = connections.fetch_add(1, Ordering::SeqCst);
        let (tasks, tell) = (inner.clone(), tell.clone());
        async move {
            let mut connection = h2::server::handshake(socket).await.unwrap();
            while let Some(Ok((request, respond))) = connection.accept().await {
                tasks.spawn(echo(number, request, respond));
            }
            tell.send(number).unwrap();
        }
    })
    .await;
    let limits = Limits {
        pool_idle: Duration::from_millis(100),
        ..Limits::default()
    };
    let world = World::start(vec![port(app)], vec![], limits);
    let mut peer = peer(&world).await;
    for number in 0..3 {
        let (response, _) = peer.send_request(post("/"), true).unwrap();
        let mut response = soon(response).await.unwrap();
        let (seen, _) = soon(collect(response.body_mut())).await.unwrap();
        assert!(
            seen.starts_with(
                format!(
                    "connection {number}
"
                )
                .as_bytes()
            )
        );
        assert_eq!(soon(told.recv()).await, Some(number));
    }
}
