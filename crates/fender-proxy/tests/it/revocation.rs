//! I4: a peer that is revoked is severed from what it has open, whatever that carries and whoever began it.

use std::sync::Arc;

use fender_config::snapshot::{Protocol, Snapshot};
use fender_identity::{DenyList, Svid};
use fender_proxy::Reason;
use fender_runtime::clock::UnixTime;
use fender_runtime::drain::Drain;
use http::Request;
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::ambassador::{beside, host, ready, service};
use crate::harness::*;

const OTHER: &str = "spiffe://mesh.test/ns/shop/sa/other";

/// Changes nothing but who is denied.
fn deny(world: &World, change: impl FnOnce(&mut DenyList)) {
    world.snapshot.send_modify(|snapshot| {
        let snapshot: &mut Snapshot = Arc::make_mut(snapshot);
        change(Arc::make_mut(&mut snapshot.trust.denied));
    });
}

/// One second after the certificate began.
fn after(svid: &Svid) -> UnixTime {
    let begins = svid.validity().not_before.as_secs();
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(begins + 1))
}

/// An app that answers every byte with the same, after whatever head HTTP wants first.
async fn echo_of_bytes(tasks: &Drain, greeting: &'static str) -> std::net::SocketAddr {
    raw_app(tasks, move |mut socket| async move {
        if !greeting.is_empty() {
            head(&mut socket).await;
            socket.write_all(greeting.as_bytes()).await.unwrap();
        }
        let (mut read, mut write) = socket.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await
}

async fn echoes(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin)) -> bool {
    let mut heard = [0; 4];
    stream.write_all(b"ping").await.is_ok()
        && soon(stream.read_exact(&mut heard)).await.is_ok()
        && &heard == b"ping"
}

/// It ends, and nothing more comes.
async fn is_severed(stream: &mut (impl AsyncReadExt + Unpin)) -> bool {
    soon(stream.read_u8()).await.is_err()
}

async fn is_refused(world: &World, svid: &Svid) -> bool {
    match world.try_client(svid, &[]).await {
        Ok(mut stream) => is_severed(&mut stream).await,
        Err(_) => true,
    }
}

#[tokio::test]
async fn a_tcp_connection_of_a_revoked_workload_is_severed_and_no_other() {
    let tasks = Drain::new();
    let mut world = World::tcp(echo_of_bytes(&tasks, "").await);
    let (revoked, other) = (world.authority.svid(WEB), world.authority.svid(OTHER));
    let mut one = world.client(&revoked, &[]).await;
    let mut two = world.client(&other, &[]).await;
    assert!(echoes(&mut one).await && echoes(&mut two).await);

    deny(&world, |list| {
        list.deny_identity_before(id(WEB), after(&revoked))
    });
    assert!(is_severed(&mut one).await);
    let record = soon(world.records.recv()).await.unwrap();
    assert!(matches!(record.reason, Reason::Revoked));
    assert!(echoes(&mut two).await);
    assert!(is_refused(&world, &revoked).await);
    assert!(echoes(&mut world.client(&other, &[]).await).await);
}

#[tokio::test]
async fn every_connection_opened_with_a_certificate_issued_before_a_moment_is_severed() {
    let tasks = Drain::new();
    let world = World::tcp(echo_of_bytes(&tasks, "").await);
    let old = world.authority.svid(WEB);
    let mut one = world.client(&old, &[]).await;
    assert!(echoes(&mut one).await);
    deny(&world, |list| {
        list.deny_workloads_before("mesh.test".parse().unwrap(), after(&old));
    });
    assert!(is_severed(&mut one).await);
    assert!(is_refused(&world, &old).await);
}

#[tokio::test]
async fn an_upgraded_connection_of_a_revoked_workload_is_severed() {
    let tasks = Drain::new();
    let greeting =
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let world = World::http(echo_of_bytes(&tasks, greeting).await);
    let revoked = world.authority.svid(WEB);
    let mut stream = world.client(&revoked, &[b"http/1.1"]).await;
    let request =
        "GET /chat HTTP/1.1\r\nhost: o\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 101 "));
    assert!(echoes(&mut stream).await);
    deny(&world, |list| list.deny_serial(revoked.serial().clone()));
    assert!(is_severed(&mut stream).await);
}

#[tokio::test]
async fn the_open_streams_of_http2_end_with_their_peers_certificate() {
    let tasks = Drain::new();
    let (app, _) = crate::lifetime::streaming_app(&tasks).await;
    let world = World::http(app);
    let mut client = world.web2().await;
    let request = Request::get("https://o/events")
        .body(Full::default())
        .unwrap();
    let mut body = soon(client.send_request(request))
        .await
        .unwrap()
        .into_body();
    assert!(soon(body.frame()).await.unwrap().is_ok());
    deny(&world, |list| {
        let moment = UnixTime::since_unix_epoch(std::time::Duration::from_secs(NOW));
        list.deny_identity_before(id(WEB), moment);
    });
    assert!(soon(body.frame()).await.is_none_or(|frame| frame.is_err()));
    let again = Request::get("https://o/events")
        .body(Full::default())
        .unwrap();
    assert!(soon(client.send_request(again)).await.is_err());
}

#[tokio::test]
async fn a_call_to_a_revoked_workload_is_severed_and_the_next_one_is_refused() {
    let tasks = Drain::new();
    let server = World::tcp(echo_of_bytes(&tasks, "").await);
    let to = service(ORDERS, vec![host(server.address())], Protocol::Tcp);
    let world = beside(&server, to);
    ready(&world).await;
    let mut call = TcpStream::connect(world.address()).await.unwrap();
    assert!(echoes(&mut call).await);

    let theirs = server.svid.borrow().serial().clone();
    deny(&world, |list| list.deny_serial(theirs));
    let mut rest = Vec::new();
    let _ = soon(call.read_to_end(&mut rest)).await;
    assert!(rest.is_empty());
    let mut again = TcpStream::connect(world.address()).await.unwrap();
    let _ = again.write_all(b"ping").await;
    let mut heard = Vec::new();
    let _ = soon(again.read_to_end(&mut heard)).await;
    assert!(heard.is_empty(), "{heard:?}");
}
