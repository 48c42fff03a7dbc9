//! How a proxy ends, alone and beside a successor.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fender_config::snapshot::Protocol;
use fender_proxy::Limits;
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::client::TlsStream;

use crate::harness::*;
use crate::lifetime::streaming_app;

/// An app that answers when told.
pub(crate) async fn patient_app(
    tasks: &Drain,
) -> (
    std::net::SocketAddr,
    watch::Sender<bool>,
    watch::Receiver<usize>,
) {
    let (go, gone) = watch::channel(false);
    let (arrived, arrivals) = watch::channel(0);
    let arrived = Arc::new(arrived);
    let answer = move |_: Request<Incoming>| {
        let (mut gone, arrived) = (gone.clone(), arrived.clone());
        async move {
            arrived.send_modify(|count| *count += 1);
            gone.wait_for(|go| *go).await.unwrap();
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"done"))))
        }
    };
    (hyper_app(tasks, answer).await, go, arrivals)
}

/// A connection on which one request was answered, and that rests.
async fn idle(limits: Limits) -> (Drain, World, TlsStream<TcpStream>) {
    let tasks = Drain::new();
    let port = inbound(echo_app(&tasks).await, Protocol::Http);
    let world = World::start(vec![port], vec![], limits);
    let mut stream = world.web().await;
    stream.write_all(get("/first").as_bytes()).await.unwrap();
    response(&mut stream).await;
    (tasks, world, stream)
}

#[tokio::test]
async fn a_drain_finishes_the_request_in_flight_and_closes_the_idle() {
    let tasks = Drain::new();
    let (app, go, mut arrivals) = patient_app(&tasks).await;
    let limits = Limits {
        last_call: Duration::from_millis(20),
        ..Limits::default()
    };
    let world = World::start(vec![inbound(app, Protocol::Http)], vec![], limits);
    go.send_replace(true);
    let mut idle = world.web().await;
    idle.write_all(get("/idle").as_bytes()).await.unwrap();
    response(&mut idle).await;
    go.send_replace(false);
    let mut busy = world.web().await;
    busy.write_all(get("/busy").as_bytes()).await.unwrap();
    soon(arrivals.wait_for(|count| *count == 2)).await.unwrap();
    let mut client2 = world.web2().await;
    let request = Request::get("https://o/busy2")
        .body(Full::default())
        .unwrap();
    let busy2 = client2.send_request(request);
    let finish = async {
        soon(arrivals.wait_for(|count| *count == 3)).await.unwrap();
        world.inbound.stop();
        assert_eq!(rest(&mut idle).await, "");
        go.send_replace(true);
        let (head, body) = response(&mut busy).await;
        assert!(
            head.contains("connection: close") && body == "done",
            "{head}"
        );
        assert_eq!(rest(&mut busy).await, "");
    };
    let (answer, ()) = tokio::join!(soon(busy2), finish);
    let body = answer
        .unwrap()
        .into_body()
        .collect()
        .await
        .unwrap()
        .to_bytes();
    assert_eq!(&body[..], b"done");
    let again = Request::get("https://o/after")
        .body(Full::default())
        .unwrap();
    assert!(
        soon(client2.send_request(again)).await.is_err(),
        "a GOAWAY was due"
    );
    assert!(
        world.inbound.close(Deadline::after(PATIENCE)).await,
        "something had to be cut"
    );
}

#[tokio::test]
async fn a_request_on_its_way_when_a_drain_begins_is_still_answered() {
    let limits = Limits {
        last_call: PATIENCE,
        ..Limits::default()
    };
    let (_tasks, world, mut stream) = idle(limits).await;
    world.inbound.stop();
    stream.write_all(get("/last").as_bytes()).await.unwrap();
    let (head, _) = response(&mut stream).await;
    assert!(
        head.starts_with("HTTP/1.1 200") && head.contains("connection: close"),
        "{head}"
    );
    assert_eq!(rest(&mut stream).await, "");
    assert!(world.inbound.close(Deadline::after(PATIENCE)).await);
}

/// D2: an upgrade loses no request of a connection that was idle for however long.
#[tokio::test]
async fn a_connection_that_rests_while_a_successor_serves_may_still_bring_a_request() {
    let limits = Limits {
        last_call: Duration::ZERO,
        ..Limits::default()
    };
    let (_tasks, world, mut stream) = idle(limits).await;
    world.change(|snapshot| snapshot.drain = PATIENCE);
    world.inbound.retire();
    // As long as it would take to be closed, and longer.
    tokio::time::sleep(Duration::from_millis(300)).await;
    stream.write_all(get("/last").as_bytes()).await.unwrap();
    let (head, _) = response(&mut stream).await;
    assert!(
        head.starts_with("HTTP/1.1 200") && head.contains("connection: close"),
        "{head}"
    );
    assert_eq!(rest(&mut stream).await, "");
    drop(stream);
    assert!(world.inbound.close(Deadline::after(PATIENCE)).await);
}

/// It goes a little before the end of the drain, and is not cut then. How long that is says the newest snapshot.
#[tokio::test]
async fn a_connection_that_brings_nothing_while_a_successor_serves_is_closed_and_not_cut() {
    let tasks = Drain::new();
    let limits = Limits {
        last_call: Duration::ZERO,
        linger: Duration::from_millis(200),
        ..Limits::default()
    };
    let port = inbound(echo_app(&tasks).await, Protocol::Http);
    let world = World::start(vec![port], vec![], limits);
    world.change(|snapshot| snapshot.drain = Duration::from_secs(3600));
    let mut stream = world.web().await;
    stream.write_all(get("/only").as_bytes()).await.unwrap();
    response(&mut stream).await;
    world.change(|snapshot| snapshot.drain = Duration::from_millis(600));
    world.inbound.retire();
    assert_eq!(rest(&mut stream).await, "");
    assert!(world.inbound.close(Deadline::after(PATIENCE)).await);
}

#[tokio::test]
async fn a_connection_that_rests_while_a_successor_serves_goes_when_somebody_waits_for_the_end() {
    let limits = Limits {
        last_call: Duration::ZERO,
        ..Limits::default()
    };
    let (_tasks, world, mut stream) = idle(limits).await;
    world.change(|snapshot| snapshot.drain = Duration::from_secs(3600));
    world.inbound.retire();
    world.inbound.hurry();
    assert_eq!(rest(&mut stream).await, "");
    assert!(world.inbound.close(Deadline::after(PATIENCE)).await);
}

/// What a peer sends into the end of its connection is not answered by a reset.
#[tokio::test]
async fn a_request_that_crosses_the_end_of_an_idle_connection_meets_no_reset() {
    let limits = Limits {
        last_call: Duration::ZERO,
        linger: PATIENCE,
        ..Limits::default()
    };
    let (_tasks, world, mut stream) = idle(limits).await;
    world.inbound.stop();
    assert_eq!(rest(&mut stream).await, "");
    // On loopback a reset is there when the write that caused it returns, and the next one fails.
    for _ in 0..3 {
        stream.write_all(get("/crossing").as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        tokio::task::yield_now().await;
    }
    drop(stream);
    assert!(world.inbound.close(Deadline::after(PATIENCE)).await);
}

#[tokio::test]
async fn a_drain_that_runs_out_of_time_cuts() {
    let tasks = Drain::new();
    let (app, _) = streaming_app(&tasks).await;
    let world = World::http(app);
    let mut stream = world.web().await;
    stream
        .write_all(get("/cut-by-drain").as_bytes())
        .await
        .unwrap();
    head(&mut stream).await;
    assert!(
        !world
            .inbound
            .close(Deadline::after(Duration::from_millis(20)))
            .await
    );
    let mut rest_of = Vec::new();
    assert!(soon(stream.read_to_end(&mut rest_of)).await.is_err());
    assert!(
        logs_line("/cut-by-drain")
            .await
            .contains("\"outcome\":\"ours\"")
    );
    soon(world.inbound.drained()).await;
    assert!(world.outbound.close(Deadline::after(PATIENCE)).await);
}
