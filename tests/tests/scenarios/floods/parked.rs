//! Bodies in frames of one byte that nobody takes, each with company that is thrown away: h2 would hold a buffer for each byte.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{MEGABYTE, Target, pair};
use crate::frames::{
    ACK, DATA, END_HEADERS, END_STREAM, Frames, HEADERS, PING, SETTINGS, block, written,
};
use crate::front::Port;

/// Bytes of a body.
const BYTES: u32 = 4000;
/// What is thrown away beside each: a frame of a kind that nobody knows (RFC 9113, 5.5).
const COMPANY: (u8, [u8; 16_000]) = (0xbb, [0; 16_000]);
/// Of 64 MB that were sent.
const BOUND: u64 = 16 * MEGABYTE;

/// An app of HTTP/2 that takes no body.
struct Stubborn {
    address: SocketAddr,
    /// How many responses were written.
    answered: watch::Receiver<u32>,
    _serving: JoinSet<()>,
}

impl Stubborn {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (answered, seen) = watch::channel(0);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                connections.spawn(serve(socket, answered.clone()));
            }
        });
        Self {
            address,
            answered: seen,
            _serving: serving,
        }
    }
}

async fn serve(mut socket: TcpStream, answered: watch::Sender<u32>) {
    let no_window = written(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let (mut reads, mut writes) = socket.split();
    writes.write_all(&no_window).await.unwrap();
    reads.read_exact(&mut [0; 24]).await.unwrap();
    let mut head = [0; 9];
    while reads.read_exact(&mut head).await.is_ok() {
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        reads.read_exact(&mut payload).await.unwrap();
        let stream = u32::from_be_bytes(stream);
        let answer = match kind {
            SETTINGS if flags & ACK == 0 => written(SETTINGS, ACK, 0, &[]),
            PING if flags & ACK == 0 => written(PING, ACK, 0, &payload),
            // A request without a body is answered.
            HEADERS if flags & END_STREAM != 0 => {
                let mut answer = written(HEADERS, END_HEADERS, stream, &[0x88]);
                for _ in 0..BYTES {
                    answer.extend(written(DATA, 0, stream, b"x"));
                    answer.extend(written(COMPANY.0, 0, 0, &COMPANY.1));
                }
                answer
            }
            _ => continue,
        };
        writes.write_all(&answer).await.unwrap();
        if kind == HEADERS {
            answered.send_modify(|answered| *answered += 1);
        }
    }
}

async fn target(app: &Stubborn) -> (Target, SocketAddr) {
    let port = Port::http_with(app.address, ", appProtocol: h2c");
    let address = port.listen;
    (Target::set_beside(port).await, address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_in_small_frames_costs_its_bytes_while_the_app_does_not_take_it() {
    let app = Stubborn::start().await;
    let (target, address) = target(&app).await;
    let attack = async {
        let mut frames = Frames::begin(&target.front.client(address)).await.unwrap();
        let request = block(&[
            pair(":method POST"),
            pair(":scheme https"),
            pair(":authority v"),
            pair(":path /parked"),
        ]);
        frames.frame(HEADERS, END_HEADERS, 1, &request);
        for number in 0..BYTES {
            frames.frame(DATA, 0, 1, b"x");
            frames.frame(COMPANY.0, 0, 0, &COMPANY.1);
            if number % 100 == 99 {
                frames.send().await.unwrap();
            }
        }
        // All of it was read once this is answered.
        frames.frame(PING, 0, 0, &[7; 8]);
        while frames.next().await.unwrap().kind != PING {}
        frames
    };
    drop(target.bears(BOUND, attack).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_in_small_frames_costs_its_bytes_while_the_peer_does_not_take_it() {
    let mut app = Stubborn::start().await;
    let (target, address) = target(&app).await;
    let attack = async {
        let mut frames = Frames::begin(&target.front.client(address)).await.unwrap();
        frames.frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]); // a window of nothing
        frames.frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            1,
            &block(&super::request()),
        );
        frames.send().await.unwrap();
        app.answered
            .wait_for(|answered| *answered == 1)
            .await
            .unwrap();
        frames
    };
    drop(target.bears(BOUND, attack).await);
}
