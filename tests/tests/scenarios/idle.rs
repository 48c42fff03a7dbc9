//! Many connections that do nothing cost little, do not slow those that do something, and have an end:
//! who comes when every place is taken is turned away at once.
//!
//! `FENDER_TEST_IDLE=10000` holds as many as the limits are made for; the default is what every test run can
//! afford.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use fender_tests::process::{PATIENCE, chosen};
use fender_tests::{Client, Nginx};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;

use crate::front::{EVERYBODY, Front, Port};

/// Callers that go on meanwhile, and what each of them asks for.
const BUSY: usize = 64;
const CALLS: usize = 100;

/// Handshakes at a time, while the crowd gathers.
const AT_ONCE: usize = 32;

/// As many descriptors as the hard limit allows, here and in what is started from here.
fn raise_descriptors() -> u64 {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
    maximum.unwrap_or(u64::MAX)
}

/// A connection from one of several addresses of this host: no address may have them all.
async fn connect(number: usize, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    let last = u8::try_from(10 + number % 8).unwrap();
    socket.bind((Ipv4Addr::new(127, 0, 0, last), 0).into())?;
    socket.connect(to).await
}

/// Opens `count` connections, each of which has been answered once, and leaves them be.
async fn gather(client: &Client, to: SocketAddr, count: usize) -> Vec<TlsStream<TcpStream>> {
    let (mut crowd, mut tasks) = (Vec::with_capacity(count), JoinSet::new());
    for number in 0..count {
        if tasks.len() >= AT_ONCE {
            crowd.push(tasks.join_next().await.unwrap().unwrap());
        }
        let client = client.clone();
        tasks.spawn(async move {
            let socket = connect(number, to).await.unwrap();
            let mut stream = client.handshake(socket).await.unwrap();
            ask(&mut stream).await;
            stream
        });
    }
    crowd.extend(tasks.join_all().await);
    crowd
}

/// One request, which must be answered.
async fn ask(stream: &mut TlsStream<TcpStream>) {
    let request = b"HEAD /idle HTTP/1.1\r\nHost: v\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut heard = Vec::new();
    let answer = async {
        while !heard.ends_with(b"\r\n\r\n") {
            assert!(stream.read_buf(&mut heard).await.unwrap() > 0, "an answer");
        }
    };
    tokio::time::timeout(PATIENCE, answer).await.unwrap();
    assert!(
        heard.starts_with(b"HTTP/1.1 200 "),
        "{}",
        heard.escape_ascii()
    );
}

/// The slowest hundredth of the calls of those who are busy.
async fn p99(client: &Client) -> Duration {
    let mut tasks = JoinSet::new();
    for _ in 0..BUSY {
        let client = client.clone();
        tasks.spawn(async move {
            let mut connection = client.open().await.unwrap();
            let mut times = Vec::with_capacity(CALLS);
            for _ in 0..CALLS {
                let began = Instant::now();
                assert_eq!(connection.get("/busy").await.unwrap().status, 200);
                times.push(began.elapsed());
            }
            times
        });
    }
    let mut times: Vec<_> = tasks.join_all().await.concat();
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_cost_little_and_disturb_nobody() {
    let (descriptors, count) = (raise_descriptors(), chosen("FENDER_TEST_IDLE", 500));
    assert!(
        descriptors as usize > count + 1000,
        "{descriptors} descriptors are too few"
    );
    let directory = tempfile::tempdir().unwrap();
    let nginx = Nginx::start(directory.path());
    let ports = [Port::http(nginx.address), Port::tcp(nginx.address)];
    let (http, tcp) = (ports[0].listen, ports[1].listen);
    let front = Front::start(directory, &ports, EVERYBODY);
    let busy = front.client(http);
    let before = p99(&busy).await;
    for (name, to, count) in [("http", http, count), ("tcp", tcp, count / 2)] {
        let client = front.client(to).with_alpn(&[b"http/1.1"]);
        let empty = front.process.memory().resident;
        let mut crowd = gather(&client, to, count).await;
        let grown = front.process.memory().resident.saturating_sub(empty);
        let during = p99(&busy).await;
        let each = grown / count as u64;
        println!(
            "{name}: {count} idle hold {each} bytes each; p99 of {BUSY} busy {before:?}, then {during:?}"
        );
        // A connection of which the sidecar holds this much is idle in name only.
        assert!(each <= 40 * 1024, "{each} bytes each");
        // None of them was let go.
        for stream in &mut crowd {
            ask(stream).await;
        }
    }
}

/// The places of a sidecar with few descriptors, and one caller more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_when_every_place_is_taken_is_turned_away_and_said_to_be() {
    let directory = tempfile::tempdir().unwrap();
    let nginx = Nginx::start(directory.path());
    let port = Port::http(nginx.address);
    let to = port.listen;
    let front = Front::start_with_descriptors(directory, &[port], EVERYBODY, 512);
    let client = front.client(to).with_alpn(&[b"http/1.1"]);
    // 12,288 of 20,000 descriptors are for peers.
    let places = 12_288 * 512 / 20_000;
    let mut crowd = gather(&client, to, places).await;
    let mut refused = connect(0, to).await.unwrap();
    let end = tokio::time::timeout(PATIENCE, refused.read(&mut [0; 1]))
        .await
        .unwrap();
    assert!(!matches!(end, Ok(1..)), "{end:?}");
    fender_tests::wait_until("the log says so", PATIENCE, || {
        front.process.log().contains("every connection is taken")
    });
    // Those who are there are served, and where one leaves another comes.
    for stream in &mut crowd {
        ask(stream).await;
    }
    crowd.pop();
    let deadline = Instant::now() + PATIENCE;
    while client.get("/next").await.is_err() {
        assert!(Instant::now() < deadline, "a place became free");
    }
}
