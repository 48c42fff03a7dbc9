//! A body in small frames that waits for its app arrives whole and in order, however much of it was held (DESIGN §6, limits).

use std::sync::Arc;

use fender_config::snapshot::Protocol;
use fender_proxy::Limits;
use fender_runtime::drain::Drain;
use http::{HeaderMap, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

use crate::harness::*;

/// Less than the window of a stream, and more frames than h2 would hold of any connection.
const FRAMES: usize = 20_000;
const FRAME: usize = 3;

#[tokio::test]
async fn a_body_in_small_frames_that_waited_for_its_app_is_passed_on_whole_and_in_order() {
    let body: Vec<u8> = (0..FRAMES * FRAME).map(|at| (at % 251) as u8).collect();
    let (tasks, release) = (Drain::new(), Arc::new(Semaphore::new(0)));
    let (expected, released) = (body.clone(), release.clone());
    let app = raw_app(&tasks, move |mut socket| {
        let (expected, released) = (expected.clone(), released.clone());
        async move {
            if head(&mut socket).await.starts_with("GET /holds") {
                let _ = released.acquire().await;
            } else {
                let mut body = vec![0; FRAMES * FRAME];
                socket.read_exact(&mut body).await.unwrap();
                assert!(body == expected, "it arrived as something else");
            }
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            let _ = socket.write_all(answer).await;
        }
    })
    .await;
    let limits = Limits {
        links: 1,
        links_per_address: 1,
        // Longer than any test: the body waits for the only connection to the app.
        establish: PATIENCE * 10,
        ..Limits::default()
    };
    let world = World::start(vec![inbound(app, Protocol::Http)], vec![], limits);
    let mut holds = world.web().await;
    holds.write_all(get("/holds").as_bytes()).await.unwrap();

    let svid = world.authority.svid(WEB);
    let socket = tokio::net::TcpStream::connect(world.address())
        .await
        .unwrap();
    let stream = world.handshake(socket, &svid, &[b"h2"]).await.unwrap();
    let (sender, mut connection) = soon(h2::client::handshake(stream)).await.unwrap();
    let mut pings = connection.ping_pong().unwrap();
    world.tasks.spawn(async move {
        let _ = connection.await;
    });
    let request = Request::post("https://o/waits").header("content-length", body.len());
    let mut sender = soon(sender.ready()).await.unwrap();
    let (response, mut stream) = sender
        .send_request(request.body(()).unwrap(), false)
        .unwrap();
    for piece in body.chunks(FRAME) {
        stream.send_data(piece.to_vec().into(), false).unwrap();
    }
    stream.send_trailers(HeaderMap::new()).unwrap();
    // Everything that the window lets in has been read once this is answered, and the connection goes on.
    for _ in 0..2 {
        soon(pings.ping(h2::Ping::opaque())).await.unwrap();
    }
    release.add_permits(1);
    assert_eq!(soon(response).await.unwrap().status(), 200);
}
