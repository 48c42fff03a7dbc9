//! What all HTTP/2 connections together may have on its way here is finite, taken or not (DESIGN §6, limits).

use bytes::Bytes;
use fender_config::snapshot::Protocol;
use fender_proxy::Limits;
use fender_runtime::drain::Drain;
use h2::client::SendRequest;
use h2::{Ping, PingPong, SendStream};
use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::harness::*;

const STREAM: usize = 128 * 1024;
const LEAST: usize = 65_535;
const HONEST: usize = 3 * STREAM;

struct Client {
    sender: SendRequest<Bytes>,
    pings: PingPong,
}

async fn client(world: &World, from: &str) -> Client {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    let socket: TcpStream = socket.connect(world.address()).await.unwrap();
    let svid = world.authority.svid(WEB);
    let stream = world.handshake(socket, &svid, &[b"h2"]).await.unwrap();
    let (sender, mut connection) = soon(h2::client::handshake(stream)).await.unwrap();
    let pings = connection.ping_pong().unwrap();
    world.tasks.spawn(async move {
        let _ = connection.await;
    });
    Client { sender, pings }
}

impl Client {
    /// Begins a request and sends as much of its body as is let in; how much that was.
    async fn fill(&mut self) -> (usize, SendStream<Bytes>) {
        self.fill_by(Request::post("https://o/waits").body(()).unwrap())
            .await
    }

    async fn fill_by(&mut self, request: Request<()>) -> (usize, SendStream<Bytes>) {
        let mut sender = soon(self.sender.clone().ready()).await.unwrap();
        let (_, mut stream) = sender.send_request(request, false).unwrap();
        (self.go_on(&mut stream).await, stream)
    }

    /// Sends as much more as is let in.
    async fn go_on(&mut self, stream: &mut SendStream<Bytes>) -> usize {
        let mut sent = 0;
        loop {
            stream.reserve_capacity(8 * STREAM);
            // What was said before the answer to the second has been heard, and been answered.
            for _ in 0..2 {
                soon(self.pings.ping(Ping::opaque())).await.unwrap();
            }
            let room = stream.capacity();
            if room == 0 {
                return sent;
            }
            stream.send_data(vec![b'x'; room].into(), false).unwrap();
            sent += room;
        }
    }
}

/// What is gathered for one write and what the write left are within the window: it opens when something was written.
#[tokio::test]
async fn of_a_body_that_the_app_does_not_read_no_more_is_held_than_the_window_of_its_stream() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("app.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let mut port = inbound(nobody().await, Protocol::Http);
    port.app = fender_config::AppAddress::Unix(socket);
    let world = World::start(vec![port], vec![], Limits::default());
    let mut client = client(&world, "127.0.0.1").await;
    let request = Request::post("https://o/").header("content-length", u32::MAX);
    let filling = client.fill_by(request.body(()).unwrap());
    let asked = async {
        let (mut app, _) = listener.accept().await.unwrap();
        let _ = head(&mut app).await;
        app
    };
    let ((mut sent, mut stream), app) = soon(async { tokio::join!(filling, asked) }).await;
    // The app may have been reached only when the first window was full.
    sent += client.go_on(&mut stream).await;
    // Nobody else runs meanwhile: it is what the kernel holds.
    let (mut written, mut room) = (0, vec![0; 64 * 1024]);
    app.readable().await.unwrap();
    while let Ok(read) = app.try_read(&mut room) {
        written += read;
    }
    assert!(written > 0);
    let held = sent - written;
    assert!((1..=STREAM).contains(&held), "{held} of {sent}");
}

#[tokio::test]
async fn attack_bodies_without_end_are_let_in_as_far_as_all_windows_reach_and_others_are_served() {
    let tasks = Drain::new();
    let app = raw_app(&tasks, |mut socket| async move {
        if head(&mut socket).await.starts_with("GET /hangs") {
            std::future::pending::<()>().await;
        }
        let mut body = vec![0; HONEST];
        socket.read_exact(&mut body).await.unwrap();
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        let _ = socket.write_all(answer).await;
    })
    .await;
    let limits = Limits {
        windows: 3 * STREAM,
        links: 2,
        links_per_address: 1,
        // Longer than any test: the bodies of those who wait for the app are not taken.
        establish: PATIENCE * 10,
        ..Limits::default()
    };
    let world = World::start(vec![inbound(app, Protocol::Http)], vec![], limits);
    let mut hangs = world.web().await;
    hangs.write_all(get("/hangs").as_bytes()).await.unwrap();

    let (mut held, mut let_in) = (Vec::new(), Vec::new());
    // One connection with two bodies, and then one for each.
    let mut first = client(&world, "127.0.0.1").await;
    for _ in 0..2 {
        let (sent, stream) = first.fill().await;
        let_in.push(sent);
        held.push(stream);
    }
    assert_eq!(let_in, [STREAM, STREAM]);
    let_in.clear();
    let mut others = Vec::new();
    for _ in 0..5 {
        let mut other = client(&world, "127.0.0.1").await;
        let (sent, stream) = other.fill().await;
        let_in.push(sent);
        held.push(stream);
        others.push(other);
    }
    // One still had its share of all; the others have what nobody can do without.
    assert_eq!(let_in, [STREAM, LEAST, LEAST, LEAST, LEAST]);

    // Who comes now is served, whatever stands still: more slowly, and whole.
    let Client { sender, .. } = client(&world, "127.0.0.2").await;
    let request = Request::post("https://o/honest").header("content-length", HONEST);
    let mut sender = soon(sender.ready()).await.unwrap();
    let (response, mut stream) = sender
        .send_request(request.body(()).unwrap(), false)
        .unwrap();
    stream.send_data(vec![b'x'; HONEST].into(), true).unwrap();
    assert_eq!(soon(response).await.unwrap().status(), 200);

    // What a connection had is free again once it has ended.
    drop((held, first, others));
    loop {
        let (sent, _stream) = client(&world, "127.0.0.1").await.fill().await;
        if sent == STREAM {
            break;
        }
    }
}
