//! What is held of responses nobody reads is finite for each connection, and others are served meanwhile (DESIGN §6, limits).

use fender_runtime::drain::Drain;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::sync::watch;

use crate::frames::frame;
use crate::harness::*;

const STREAMS: u32 = 120;
const BODY: usize = 128 * 1024;

/// An app that answers with much, and how many it has answered.
async fn app(tasks: &Drain) -> (std::net::SocketAddr, watch::Receiver<u32>) {
    let (tell, answered) = watch::channel(0);
    let tell = std::sync::Arc::new(tell);
    let app = raw_app(tasks, move |mut socket| {
        let tell = tell.clone();
        async move {
            head(&mut socket).await;
            tell.send_modify(|answered| *answered += 1);
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {BODY}\r\n\r\n");
            let _ = socket.write_all(answer.as_bytes()).await;
            let _ = socket.write_all(&vec![b'x'; BODY]).await;
            let _ = socket.read_u8().await;
        }
    })
    .await;
    (app, answered)
}

/// CVE-2019-9517: windows as wide as they go, as many requests as may be open, and not a byte read.
#[tokio::test]
async fn attack_responses_that_a_peer_lets_in_and_does_not_read_are_not_held_for_it() {
    let tasks = Drain::new();
    let (app, mut answered) = app(&tasks).await;
    let world = World::http(app);
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let socket = socket.connect(world.address()).await.unwrap();
    let svid = world.authority.svid(WEB);
    let mut peer = world.handshake(socket, &svid, &[b"h2"]).await.unwrap();
    let (headers, settings, window_update) = (1, 4, 8);
    let mut all = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    all.extend(frame(settings, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]));
    all.extend(frame(window_update, 0, 0, &0x7fff_0000_u32.to_be_bytes()));
    let request = b"\x82\x87\x44\x07/unread\x41\x01o";
    for number in 0..STREAMS {
        all.extend(frame(headers, 5, 2 * number + 1, request));
    }
    peer.write_all(&all).await.unwrap();
    peer.flush().await.unwrap();
    soon(answered.wait_for(|answered| *answered == STREAMS))
        .await
        .unwrap();
    // Others are served meanwhile.
    for _ in 0..20 {
        let answer = world.raw(&last_get("/honest")).await;
        assert!(answer.starts_with("HTTP/1.1 200"));
    }
    // Of 15 MiB next to nothing has left the app: a request whose response was taken whole has its line.
    let ended = logged("/unread").len();
    assert!(ended < 20, "{ended} responses are held");
    // And whoever begins to read gets all of it.
    let (mut read, mut buffer) = (0, vec![0; 64 * 1024]);
    while read < STREAMS as usize * BODY {
        let count = soon(peer.read(&mut buffer)).await.unwrap();
        assert_ne!(count, 0);
        read += count;
    }
}
