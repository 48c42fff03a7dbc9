//! What one peer may take, and what becomes of those for whom there is no room (DESIGN §6, limits).

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fender_config::snapshot::{AppProtocol, Inbound, Protocol};
use fender_proxy::Limits;
use fender_runtime::drain::Drain;
use http::Request;
use http_body_util::Full;
use hyper::client::conn::http2::SendRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;

use crate::harness::*;

/// The connection is closed, or reset, at once: nobody is left waiting.
async fn is_turned_away(world: &World) {
    let mut stream = TcpStream::connect(world.address()).await.unwrap();
    match soon(stream.read(&mut [0; 1])).await {
        Ok(read) => assert_eq!(read, 0),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}

#[tokio::test]
async fn one_address_has_its_connections_and_no_more_and_others_have_theirs() {
    let tasks = Drain::new();
    let limits = Limits {
        connections_per_address: 2,
        ..Limits::default()
    };
    let port = inbound(echo_app(&tasks).await, Protocol::Http);
    let world = World::start(vec![port], vec![], limits);
    let (first, mut second) = (world.web().await, world.web().await);
    is_turned_away(&world).await;
    logs_line("too many connections from its address").await;
    // Those it has are not disturbed.
    second.write_all(get("/second").as_bytes()).await.unwrap();
    response(&mut second).await;
    // Elsewhere there is room.
    let mut elsewhere = connect_from_elsewhere(&world).await;
    elsewhere.write_all(b"no TLS at all").await.unwrap();
    let mut alert = Vec::new();
    soon(elsewhere.read_to_end(&mut alert)).await.unwrap();
    assert_eq!(alert.first(), Some(&21), "an alert of TLS: {alert:?}");
    // And here, once one has ended.
    drop(first);
    comes_in(&world).await;
}

#[tokio::test]
async fn when_every_connection_is_taken_who_comes_is_turned_away_and_who_is_there_stays() {
    let tasks = Drain::new();
    let limits = Limits {
        connections: 1,
        full: Duration::from_millis(20),
        ..Limits::default()
    };
    let port = inbound(echo_app(&tasks).await, Protocol::Http);
    let world = World::start(vec![port], vec![], limits);
    let mut first = world.web().await;
    is_turned_away(&world).await;
    is_turned_away(&world).await;
    logs_line("every connection is taken").await;
    first
        .write_all(get("/still-there").as_bytes())
        .await
        .unwrap();
    let (head, _) = response(&mut first).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
}

/// A connection to a `tcp` port holds two descriptors, whatever the port was when its listener was opened.
#[tokio::test]
async fn a_port_that_becomes_tcp_takes_two_slots_for_each_of_its_connections_and_one_again_as_http()
{
    let tasks = Drain::new();
    let (app, mut ends) = app_that_reads(&tasks).await;
    let limits = Limits {
        connections: 3,
        full: Duration::from_millis(20),
        ..Limits::default()
    };
    let world = World::start(vec![inbound(app, Protocol::Http)], vec![], limits);
    let protocol = |protocol| {
        world.change(|snapshot| snapshot.inbound[0].protocol = protocol);
        world.settled()
    };
    protocol(Protocol::Tcp).await;
    let mut first = world.client(&world.authority.svid(WEB), &[]).await;
    assert_eq!(soon(first.read_u8()).await.unwrap(), b'.');
    is_turned_away(&world).await;
    logs_line("every connection is taken").await;
    // There is room for one of HTTP: who waits for two slots asks again.
    protocol(Protocol::Http).await;
    let _one = comes_in(&world).await;
    is_turned_away(&world).await;
    // And the first gives both back.
    first.shutdown().await.unwrap();
    soon(ends.recv()).await.unwrap();
    let _others = (comes_in(&world).await, comes_in(&world).await);
    is_turned_away(&world).await;
}

/// Tries until there is room.
async fn comes_in(world: &World) -> TlsStream<TcpStream> {
    let svid = world.authority.svid(WEB);
    soon(async {
        loop {
            if let Ok(stream) = world.try_client(&svid, &[b"http/1.1"]).await {
                return stream;
            }
        }
    })
    .await
}

/// Half of the room is half of the slots.
#[tokio::test]
async fn an_address_has_half_as_many_connections_of_tcp() {
    let tasks = Drain::new();
    let (app, _ends) = app_that_reads(&tasks).await;
    let limits = Limits {
        connections_per_address: 3,
        ..Limits::default()
    };
    let world = World::start(vec![inbound(app, Protocol::Tcp)], vec![], limits);
    let mut first = world.client(&world.authority.svid(WEB), &[]).await;
    assert_eq!(soon(first.read_u8()).await.unwrap(), b'.');
    is_turned_away(&world).await;
    logs_line("too many connections from its address").await;
}

/// An app that answers to nobody but those who ask for `/honest`; and how many others it has in hand.
async fn app_that_hangs(tasks: &Drain) -> (SocketAddr, watch::Receiver<usize>) {
    let (hang, hanging) = watch::channel(0);
    let hang = Arc::new(hang);
    let app = raw_app(tasks, move |mut socket| {
        let hang = hang.clone();
        async move {
            let head = head(&mut socket).await;
            if head.starts_with("GET /honest") {
                let _ = socket
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                    .await;
                return;
            }
            hang.send_modify(|hanging| *hanging += 1);
            let _ = socket.read_to_end(&mut Vec::new()).await;
            hang.send_modify(|hanging| *hanging -= 1);
        }
    })
    .await;
    (app, hanging)
}

async fn connect_from_elsewhere(world: &World) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    socket.connect(world.address()).await.unwrap()
}

/// The same caller at another address.
async fn web_from_elsewhere(world: &World) -> TlsStream<TcpStream> {
    let stream = connect_from_elsewhere(world).await;
    let svid = world.authority.svid(WEB);
    world
        .handshake(stream, &svid, &[b"http/1.1"])
        .await
        .unwrap()
}

/// Requests on one connection that the app does not answer, and what becomes of them.
fn twenty_that_hang(
    client: &SendRequest<Full<Bytes>>,
) -> JoinSet<hyper::Result<hyper::StatusCode>> {
    let ask = |mut client: SendRequest<Full<Bytes>>| async move {
        let request = Request::get("https://o/hangs").body(Full::default());
        let response = client.send_request(request.unwrap()).await;
        response.map(|response| response.status())
    };
    (0..20).map(|_| ask(client.clone())).collect()
}

/// Each request that waits holds its head, which costs its sender next to nothing (HPACK).
#[tokio::test]
async fn attack_requests_that_wait_for_the_app_are_few() {
    let tasks = Drain::new();
    let (app, mut hanging) = app_that_hangs(&tasks).await;
    let limits = Limits {
        links: 4,
        links_per_address: 1,
        unanswered: 4,
        unanswered_per_address: 3,
        ..Limits::default()
    };
    let world = World::start(vec![inbound(app, Protocol::Http)], vec![], limits);
    let client = world.web2().await;
    let mut greedy = twenty_that_hang(&client);
    // One is with the app and two wait.
    for _ in 0..17 {
        let refused = soon(greedy.join_next()).await.unwrap().unwrap();
        assert_eq!(refused.unwrap(), 503);
    }
    soon(hanging.wait_for(|hanging| *hanging == 1))
        .await
        .unwrap();

    // Others are served, as far as there is room for all together.
    let (mut one, mut other) = (
        web_from_elsewhere(&world).await,
        web_from_elsewhere(&world).await,
    );
    one.write_all(get("/honest").as_bytes()).await.unwrap();
    assert!(response(&mut one).await.0.starts_with("HTTP/1.1 200"));
    one.write_all(get("/hangs").as_bytes()).await.unwrap();
    soon(hanging.wait_for(|hanging| *hanging == 2))
        .await
        .unwrap();
    other.write_all(get("/honest").as_bytes()).await.unwrap();
    assert!(response(&mut other).await.0.starts_with("HTTP/1.1 503"));
    drop((greedy, one));
    soon(async {
        loop {
            other.write_all(get("/honest").as_bytes()).await.unwrap();
            if response(&mut other).await.0.starts_with("HTTP/1.1 200") {
                break;
            }
        }
    })
    .await;
}

/// Many requests of one address, each of which the app keeps, take no more than its share of the way to the app: by streams
/// of one connection as by connections.
#[tokio::test]
async fn attack_one_address_leaves_room_to_the_app_for_others() {
    let tasks = Drain::new();
    let (app, mut hanging) = app_that_hangs(&tasks).await;
    let limits = Limits {
        links: 4,
        links_per_address: 2,
        ..Limits::default()
    };
    let world = World::start(vec![inbound(app, Protocol::Http)], vec![], limits);
    let client = world.web2().await;
    let greedy = twenty_that_hang(&client);
    let mut also = Vec::new();
    for _ in 0..3 {
        let mut stream = world.web().await;
        stream.write_all(get("/hangs").as_bytes()).await.unwrap();
        also.push(stream);
    }
    soon(hanging.wait_for(|hanging| *hanging == 2))
        .await
        .unwrap();
    // Another address is served, again and again.
    let mut honest = web_from_elsewhere(&world).await;
    for _ in 0..5 {
        honest.write_all(get("/honest").as_bytes()).await.unwrap();
        assert!(response(&mut honest).await.0.starts_with("HTTP/1.1 200"));
        assert_eq!(*hanging.borrow(), 2);
    }
    // What is given up makes room for what waits.
    drop(greedy);
    also.truncate(1);
    soon(hanging.wait_for(|hanging| *hanging == 1))
        .await
        .unwrap();
}

/// Of an app of HTTP/2 each connection has one to itself, whether or not anything is asked on it.
#[tokio::test]
async fn attack_nor_do_the_idle_connections_to_an_app_of_http2_that_it_had_made() {
    let tasks = Drain::new();
    let app = crate::h2c::app(&tasks, crate::h2c::echo).await;
    let port = Inbound {
        app_protocol: AppProtocol::H2c,
        ..inbound(app, Protocol::Http)
    };
    let limits = Limits {
        links: 4,
        links_per_address: 2,
        // Longer than any test.
        pool_idle: PATIENCE * 10,
        ..Limits::default()
    };
    let world = World::start(vec![port], vec![], limits);
    let mut greedy = [world.web().await, world.web().await, world.web().await];
    for (number, stream) in greedy.iter_mut().enumerate() {
        stream.write_all(get("/greedy").as_bytes()).await.unwrap();
        if number < 2 {
            let head = head(stream).await;
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        }
    }
    let mut honest = web_from_elsewhere(&world).await;
    honest.write_all(get("/honest").as_bytes()).await.unwrap();
    assert!(head(&mut honest).await.starts_with("HTTP/1.1 200"));
    let [first, _second, mut third] = greedy;
    drop(first);
    let head = head(&mut third).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
}

#[tokio::test]
async fn a_body_that_stops_coming_ends_its_request() {
    let tasks = Drain::new();
    let limits = Limits {
        stall: Duration::from_millis(50),
        ..Limits::default()
    };
    let port = inbound(echo_app(&tasks).await, Protocol::Http);
    let world = World::start(vec![port], vec![], limits);
    let slow = "POST /slow-body HTTP/1.1\r\nhost: o\r\ncontent-length: 10\r\n\r\nx";
    let answer = world.raw(slow).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}

#[tokio::test]
async fn a_request_that_trickles_for_ever_ends() {
    let tasks = Drain::new();
    let app = raw_app(&tasks, |mut socket| async move {
        let _ = socket.read(&mut [0; 1024]).await;
        let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        let _ = socket.write_all(head).await;
        while socket.write_all(b"1\r\nx\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let limits = Limits {
        request: Duration::from_millis(200),
        ..Limits::default()
    };
    let world = World::start(vec![inbound(app, Protocol::Http)], vec![], limits);
    let mut stream = world.web().await;
    stream
        .write_all(get("/trickle-1").as_bytes())
        .await
        .unwrap();
    // It breaks off, and is seen to.
    let mut all = Vec::new();
    soon(stream.read_to_end(&mut all)).await.unwrap_err();
    logs_line_of("/trickle-1", "took longer than any may").await;
    // A stream of HTTP/2 likewise.
    let mut client = world.web2().await;
    let request = Request::get("https://o/trickle-2").body(Full::default());
    let response = soon(client.send_request(request.unwrap())).await.unwrap();
    let body = http_body_util::BodyExt::collect(response.into_body());
    assert!(soon(body).await.is_err());
    logs_line_of("/trickle-2", "took longer than any may").await;
}

/// An app that says a byte, and how its connections ended with what came before.
async fn app_that_reads(
    tasks: &Drain,
) -> (
    SocketAddr,
    mpsc::UnboundedReceiver<(String, Option<ErrorKind>)>,
) {
    let (told, ends) = mpsc::unbounded_channel();
    let app = raw_app(tasks, move |mut socket| {
        let told = told.clone();
        async move {
            let mut all = Vec::new();
            // Whichever call meets the reset first is the only one that is told.
            let end = match socket.write_all(b".").await {
                Ok(()) => socket.read_to_end(&mut all).await.map(drop),
                Err(error) => Err(error),
            };
            let _ = told.send((
                String::from_utf8(all).unwrap(),
                end.err().map(|error| error.kind()),
            ));
        }
    })
    .await;
    (app, ends)
}

#[tokio::test]
async fn a_peer_of_a_tcp_port_that_is_cut_off_does_not_look_to_the_app_as_if_it_had_ended() {
    let tasks = Drain::new();
    let (app, mut ends) = app_that_reads(&tasks).await;
    let world = World::tcp(app);
    // With a farewell it is an end.
    let mut whole = world.client(&world.authority.svid(WEB), &[]).await;
    whole.write_all(b"whole").await.unwrap();
    whole.shutdown().await.unwrap();
    assert_eq!(soon(ends.recv()).await.unwrap(), ("whole".to_owned(), None));
    // Without one it is none (truncation).
    let mut half = world.client(&world.authority.svid(WEB), &[]).await;
    half.write_all(b"half").await.unwrap();
    half.flush().await.unwrap();
    let (mut socket, _) = half.into_inner();
    socket.shutdown().await.unwrap();
    let (_, end) = soon(ends.recv()).await.unwrap();
    assert_eq!(end, Some(ErrorKind::ConnectionReset));
    // Nor when it is us who cut it off.
    let mut cut = world.client(&world.authority.svid(WEB), &[]).await;
    cut.write_all(b"cut").await.unwrap();
    assert_eq!(soon(cut.read_u8()).await.unwrap(), b'.');
    world.change(|snapshot| snapshot.policies = policies(vec![]));
    let (_, end) = soon(ends.recv()).await.unwrap();
    assert_eq!(end, Some(ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn an_app_of_a_tcp_port_that_is_cut_off_does_not_look_to_the_peer_as_if_it_had_ended() {
    let tasks = Drain::new();
    let app = raw_app(&tasks, |mut socket| async move {
        let _ = socket.write_all(b"half").await;
        let _ = socket.read_u8().await;
        #[expect(deprecated, reason = "it blocks for no time at all")]
        socket.set_linger(Some(Duration::ZERO)).unwrap();
    })
    .await;
    let world = World::tcp(app);
    let mut stream = world.client(&world.authority.svid(WEB), &[]).await;
    let mut half = [0; 4];
    soon(stream.read_exact(&mut half)).await.unwrap();
    stream.write_all(b"!").await.unwrap();
    let end = soon(stream.read(&mut half)).await;
    assert_eq!(end.unwrap_err().kind(), ErrorKind::UnexpectedEof);
}
