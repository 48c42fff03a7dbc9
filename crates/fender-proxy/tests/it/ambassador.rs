//! The app's own calls to other workloads.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fender_config::HostPort;
use fender_config::snapshot::{Destination, OwnCertificate, Protocol, Snapshot, UpstreamRoots};
use fender_proxy::Limits;
use fender_runtime::drain::Drain;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::*;

pub(crate) fn host(address: SocketAddr) -> HostPort {
    HostPort::new(&address.ip().to_string(), address.port()).unwrap()
}

pub(crate) fn service(expected: &str, addresses: Vec<HostPort>, protocol: Protocol) -> Destination {
    Destination::Service {
        id: id(expected),
        addresses,
        protocol,
    }
}

/// Our app's side of `server`, under the same authority.
pub(crate) fn beside(server: &World, to: Destination) -> World {
    beside_with(server, to, Limits::default())
}

fn beside_with(server: &World, to: Destination, limits: Limits) -> World {
    // The authority is the server's; a second one would be another mesh.
    let world = World::with(Authority::new(), vec![], vec![outbound(to)], limits);
    world.change(|snapshot| {
        snapshot.trust.bundles = server.authority.bundles();
        snapshot.identity = Some(id(WEB));
    });
    world.svid.send_replace(server.authority.svid(WEB));
    world
}

async fn call(world: &World, request: &str) -> String {
    let mut stream = TcpStream::connect(world.address()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    rest(&mut stream).await
}

pub(crate) async fn ready(world: &World) {
    world.settled().await;
    let wanted = world.svid.borrow().validity().not_after;
    assert_eq!(world.running.status().svid_not_after, wanted);
}

#[tokio::test]
async fn a_call_reaches_the_expected_workload_with_our_identity() {
    let tasks = Drain::new();
    let server = World::http(echo_app(&tasks).await);
    let to = service(
        ORDERS,
        vec![host(nobody().await), host(server.address())],
        Protocol::Http,
    );
    let world = beside(&server, to);
    ready(&world).await;
    let seen = call(&world, &last_get("/out?x=1")).await;
    assert!(
        seen.starts_with("HTTP/1.1 200") && seen.contains("GET /out?x=1\n"),
        "{seen}"
    );
    assert!(seen.contains(&format!(";URI={WEB}\n")), "{seen}");
}

#[tokio::test]
async fn a_server_of_the_right_authority_with_the_wrong_identity_is_refused() {
    let tasks = Drain::new();
    let server = World::http(echo_app(&tasks).await);
    let inventory = "spiffe://mesh.test/ns/shop/sa/inventory";
    let address = server.address();
    let world = beside(
        &server,
        service(inventory, vec![host(address)], Protocol::Http),
    );
    ready(&world).await;
    let answer = call(&world, &last_get("/")).await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    assert!(
        answer.contains("x-fender-fault: ") && answer.contains("connection: close"),
        "{answer}"
    );
    assert!(
        !answer.contains("inventory") && !answer.contains(&address.to_string()),
        "{answer}"
    );
    let line = logs_line("expected `spiffe://mesh.test/ns/shop/sa/inventory`").await;
    assert!(line.contains("\"direction\":\"outbound\""), "{line}");
}

#[tokio::test]
async fn a_destination_that_is_down_is_503_in_http_and_an_end_in_tcp() {
    let tasks = Drain::new();
    let server = World::http(echo_app(&tasks).await);
    let down = host(nobody().await);
    let world = beside(&server, service(ORDERS, vec![down.clone()], Protocol::Http));
    ready(&world).await;
    let answer = call(&world, &get("/")).await;
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("\"fault\":\""),
        "{answer}"
    );
    assert!(!answer.contains(&down.port().to_string()), "{answer}");

    let world = beside(&server, service(ORDERS, vec![down], Protocol::Tcp));
    ready(&world).await;
    let mut stream = TcpStream::connect(world.address()).await.unwrap();
    let mut nothing = Vec::new();
    let _ = soon(stream.read_to_end(&mut nothing)).await;
    assert!(nothing.is_empty());
}

#[tokio::test]
async fn a_server_that_refuses_our_certificate_is_502_in_http() {
    let tasks = Drain::new();
    let server = World::http(echo_app(&tasks).await);
    let world = beside(
        &server,
        service(ORDERS, vec![host(server.address())], Protocol::Http),
    );
    // Signed by nobody the server knows.
    world
        .svid
        .send_replace(world.authority.svid_until(WEB, NOW + 3 * HOUR));
    soon(async {
        while world.running.status().svid_not_after != world.svid.borrow().validity().not_after {
            tokio::task::yield_now().await;
        }
    })
    .await;
    world.settled().await;
    let answer = call(&world, &get("/")).await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
}

#[tokio::test]
async fn a_destination_that_never_answers_is_given_up_at_the_deadline() {
    let tasks = Drain::new();
    let silent = raw_app(&tasks, |mut socket| async move {
        let _ = socket.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let server = World::http(echo_app(&tasks).await);
    let limits = Limits {
        establish: Duration::from_millis(50),
        ..Limits::default()
    };
    let to = service(ORDERS, vec![host(silent)], Protocol::Http);
    let world = World::with(Authority::new(), vec![], vec![outbound(to)], limits);
    let _ = &server;
    assert!(call(&world, &get("/")).await.starts_with("HTTP/1.1 504"));
}

#[tokio::test]
async fn a_half_closed_tcp_call_still_hears_the_answer() {
    let tasks = Drain::new();
    let app = raw_app(&tasks, |mut socket| async move {
        let mut heard = Vec::new();
        socket.read_to_end(&mut heard).await.unwrap();
        heard.reverse();
        socket.write_all(&heard).await.unwrap();
    })
    .await;
    let server = World::tcp(app);
    let world = beside(
        &server,
        service(ORDERS, vec![host(server.address())], Protocol::Tcp),
    );
    ready(&world).await;
    let mut stream = TcpStream::connect(world.address()).await.unwrap();
    stream.write_all(b"abc").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(rest(&mut stream).await, "cba");
}

#[tokio::test]
async fn a_rotation_reaches_the_next_call() {
    let tasks = Drain::new();
    let server = World::http(echo_app(&tasks).await);
    let world = calling(&server).await;
    let first = call(&world, &last_get("/")).await;
    world
        .svid
        .send_replace(server.authority.svid_until(WEB, NOW + 2 * HOUR));
    soon(async {
        while world.running.status().svid_not_after != world.svid.borrow().validity().not_after {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let second = call(&world, &last_get("/")).await;
    let hash = |seen: &str| seen.split(";Hash=").nth(1).unwrap()[..64].to_owned();
    assert_ne!(hash(&first), hash(&second));
}

#[tokio::test]
async fn an_external_upstream_is_verified_by_its_name_and_roots() {
    let tasks = Drain::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let app = raw_app(&tasks, move |socket| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(mut stream) = acceptor.accept(socket).await {
                let _ = stream.write_all(b"secure").await;
                let _ = stream.shutdown().await;
            }
        }
    })
    .await;
    let mut right = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut right, certificate.pem().as_bytes()).unwrap();
    let upstream = |roots| Destination::Upstream {
        name: "shop/ledger".parse().unwrap(),
        address: host(app),
        protocol: Protocol::Tcp,
        roots,
        certificate: OwnCertificate::Withhold,
    };
    let world = |roots| World::start(vec![], vec![outbound(upstream(roots))], Limits::default());

    let trusted = world(UpstreamRoots::File(right.path().to_owned()));
    let mut stream = TcpStream::connect(trusted.address()).await.unwrap();
    let heard = rest(&mut stream).await;
    let untrusted = world(UpstreamRoots::Mesh);
    let mut stream = TcpStream::connect(untrusted.address()).await.unwrap();
    let mut nothing = Vec::new();
    let _ = soon(stream.read_to_end(&mut nothing)).await;
    assert!(nothing.is_empty());
    assert_eq!(heard, "secure");
}

/// A workload whose app calls `orders` at `server`.
async fn calling(server: &World) -> World {
    let to = service(ORDERS, vec![host(server.address())], Protocol::Http);
    let world = beside(server, to);
    ready(&world).await;
    world
}

/// Calls as an app that keeps its connection.
async fn ask(stream: &mut TcpStream, request: &str) -> (String, String) {
    stream.write_all(request.as_bytes()).await.unwrap();
    response(stream).await
}

#[tokio::test]
async fn calls_of_many_connections_share_the_kept_ones_to_the_expected_workload() {
    let tasks = Drain::new();
    let server = World::http(echo_app(&tasks).await);
    let world = calling(&server).await;
    for turn in 0..5 {
        let mut stream = TcpStream::connect(world.address()).await.unwrap();
        for at in 0..5 {
            let post =
                format!("POST /{turn}/{at} HTTP/1.1\r\nhost: o\r\ncontent-length: 2\r\n\r\nhi");
            let (head, seen) = ask(&mut stream, &post).await;
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            assert!(seen.starts_with(&format!("POST /{turn}/{at}\n")), "{seen}");
            assert!(seen.ends_with("\n\nhi"), "{seen}");
            assert!(seen.contains(&format!(";URI={WEB}\n")), "{seen}");
        }
    }
    assert_eq!(server.running.status().counts.connections, 1);
    let line = logs_line_of("\"direction\":\"outbound\"", "\"path\":\"/4/4\"").await;
    assert!(
        line.contains(&format!("\"destination\":\"{ORDERS}\"")) && line.contains("\"status\":200"),
        "{line}"
    );
}

#[tokio::test]
async fn a_kept_connection_outlives_a_change_of_the_rules_and_not_one_of_its_tls() {
    let tasks = Drain::new();
    let server = World::http(echo_app(&tasks).await);
    let world = calling(&server).await;
    let mut stream = TcpStream::connect(world.address()).await.unwrap();
    let mut made = Vec::new();
    let fewer_groups = |snapshot: &mut Snapshot| snapshot.tls.groups.truncate(1);
    let changes: [fn(&mut Snapshot); 3] = [|_| (), |snapshot| snapshot.drain *= 2, fewer_groups];
    for change in changes {
        world.change(change);
        world.settled().await;
        let (head, _) = ask(&mut stream, &get("/")).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        made.push(server.running.status().counts.connections);
    }
    assert_eq!(made, [1, 1, 2]);
}

/// D2: what the app has open calls by the newest addresses and trust, until it has ended.
#[tokio::test]
async fn a_call_while_a_successor_serves_goes_where_the_newest_snapshot_says() {
    let tasks = Drain::new();
    let server = World::http(echo_app(&tasks).await);
    let world = calling(&server).await;
    let mut stream = TcpStream::connect(world.address()).await.unwrap();
    let (head, _) = ask(&mut stream, &get("/before")).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    world.outbound.retire();
    let gone = host(nobody().await);
    world.change(|snapshot| snapshot.outbound[0].to = service(ORDERS, vec![gone], Protocol::Http));
    world.settled().await;
    let (head, _) = ask(&mut stream, &get("/after")).await;
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
    // Nor does who follows the snapshot keep the drain from its end.
    drop(stream);
    soon(world.outbound.drained()).await;
}

#[tokio::test]
async fn a_kept_connection_to_a_workload_that_was_revoked_serves_nobody() {
    let tasks = Drain::new();
    let server = World::http(echo_app(&tasks).await);
    let world = calling(&server).await;
    let mut stream = TcpStream::connect(world.address()).await.unwrap();
    assert!(
        ask(&mut stream, &get("/before"))
            .await
            .0
            .starts_with("HTTP/1.1 200")
    );
    let theirs = server.svid.borrow().serial().clone();
    world.change(|snapshot| Arc::make_mut(&mut snapshot.trust.denied).deny_serial(theirs));
    let (head, body) = ask(&mut stream, &get("/after")).await;
    assert!(head.starts_with("HTTP/1.1 502"), "{head}");
    assert!(
        body.contains("could not be verified") || body.contains("failed"),
        "{body}"
    );
}

#[tokio::test]
async fn a_call_that_is_open_ends_when_its_server_is_revoked() {
    let tasks = Drain::new();
    let (app, _) = crate::lifetime::streaming_app(&tasks).await;
    let server = World::http(app);
    let world = calling(&server).await;
    let mut stream = TcpStream::connect(world.address()).await.unwrap();
    stream.write_all(get("/events").as_bytes()).await.unwrap();
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 200"));
    let theirs = server.svid.borrow().serial().clone();
    world.change(|snapshot| Arc::make_mut(&mut snapshot.trust.denied).deny_serial(theirs));
    let mut rest_of = Vec::new();
    let _ = soon(stream.read_to_end(&mut rest_of)).await;
    // Cut, not ended: no last chunk.
    assert!(!rest_of.ends_with(b"0\r\n\r\n"), "{rest_of:?}");
}

#[tokio::test]
async fn what_an_app_sends_is_held_to_the_rules_of_what_peers_send() {
    let tasks = Drain::new();
    let server = World::http(echo_app(&tasks).await);
    let world = calling(&server).await;
    let smuggled = "GET /smuggled-out HTTP/1.1\r\nhost: o\r\n\r\n";
    for fields in [
        "content-length: 4\r\ntransfer-encoding: chunked\r\n",
        "content-length: 4\r\ncontent-length: 5\r\n",
        "transfer_encoding: chunked\r\n",
        "x: a\r\n folded\r\n",
        "x: a\nsmuggled: b\r\n",
        "connection: host\r\n",
    ] {
        let request = format!("POST / HTTP/1.1\r\nhost: o\r\n{fields}\r\n0\r\n\r\n{smuggled}");
        let answer = call(&world, &request).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{fields:?}: {answer}");
        assert!(answer.contains("x-fender-fault: "), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    }
    assert!(logged("/smuggled-out").is_empty());
    // What is for this hop only stays on it; what the app says of itself it says to the other side.
    let request = "GET /hop HTTP/1.1\r\nhost: Orders\r\nconnection: close, x-hop\r\nx-hop: 1\r\n\
                   keep-alive: 5\r\nx-own: 2\r\n\r\n";
    let seen = call(&world, request).await;
    assert!(
        seen.contains("host: orders\n") && seen.contains("x-own: 2\n"),
        "{seen}"
    );
    assert!(
        !seen.contains("x-hop") && !seen.contains("keep-alive"),
        "{seen}"
    );
}

#[tokio::test]
async fn a_connection_that_its_server_closed_meanwhile_fails_no_call() {
    let tasks = Drain::new();
    // Promises keep-alive and closes at once after every second response.
    let app = raw_app(&tasks, move |mut socket| async move {
        for _ in 0..2 {
            let mut seen = Vec::new();
            while !seen.ends_with(b"\r\n\r\n") {
                match socket.read_u8().await {
                    Ok(byte) => seen.push(byte),
                    Err(_) => return,
                }
            }
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            socket.write_all(answer).await.unwrap();
        }
    })
    .await;
    let server = World::http(app);
    let world = calling(&server).await;
    let mut stream = TcpStream::connect(world.address()).await.unwrap();
    for turn in 0..100 {
        let (head, body) = ask(&mut stream, &get("/turn")).await;
        assert!(
            head.starts_with("HTTP/1.1 200") && body == "ok",
            "{turn}: {head}"
        );
    }
}

#[tokio::test]
async fn a_kept_connection_is_made_anew_when_it_is_old() {
    let tasks = Drain::new();
    let server = World::http(echo_app(&tasks).await);
    let limits = Limits {
        link_age: Duration::ZERO,
        ..Limits::default()
    };
    let to = service(ORDERS, vec![host(server.address())], Protocol::Http);
    let world = beside_with(&server, to, limits);
    ready(&world).await;
    let mut stream = TcpStream::connect(world.address()).await.unwrap();
    for _ in 0..3 {
        let (head, _) = ask(&mut stream, &get("/")).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    }
    assert_eq!(server.running.status().counts.connections, 3);
}

#[tokio::test]
async fn a_refusal_reaches_the_app_with_the_id_of_the_decision() {
    let tasks = Drain::new();
    let mut server = World::http(echo_app(&tasks).await);
    server.change(|snapshot| snapshot.policies = policies(vec![]));
    let world = calling(&server).await;
    let answer = call(&world, &last_get("/")).await;
    let record = soon(server.records.recv()).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    let id = format!("x-fender-decision: {}\r\n", record.id);
    assert!(answer.contains(&id), "{answer}");
}

#[tokio::test]
async fn a_call_that_changes_protocols_is_carried_both_ways() {
    let tasks = Drain::new();
    let app = raw_app(&tasks, |mut socket| async move {
        head(&mut socket).await;
        let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhello";
        socket.write_all(switch.as_bytes()).await.unwrap();
        let (mut read, mut write) = socket.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let server = World::http(app);
    let world = calling(&server).await;
    let mut stream = TcpStream::connect(world.address()).await.unwrap();
    let request =
        "GET /chat HTTP/1.1\r\nhost: o\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nping";
    stream.write_all(request.as_bytes()).await.unwrap();
    let answer = head(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    assert!(answer.contains("upgrade: websocket\r\n"), "{answer}");
    let mut heard = [0; 9];
    soon(stream.read_exact(&mut heard)).await.unwrap();
    assert_eq!(&heard, b"helloping");
    stream.write_all(b"more").await.unwrap();
    soon(stream.read_exact(&mut heard[..4])).await.unwrap();
    assert_eq!(&heard[..4], b"more");
}
