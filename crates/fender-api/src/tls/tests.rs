use std::sync::Arc;

use fender_identity::tls::{ClientCertificate, TlsProfile, server_name};
use fender_identity::{Peer, SpiffeId, Svid};
use fender_runtime::clock::TlsClock;
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use fender_runtime::listen::ListenAddress;
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_stream::StreamExt as _;
use tonic::transport::server::Connected as _;

use super::*;
use crate::code::Code;
use crate::testing::{Authority, DOMAIN, ORDERS, TokioClock, id, listener};
use crate::url::ControlUrl;

struct Bench {
    ca: Authority,
    clock: Arc<TokioClock>,
    config: watch::Sender<Arc<ServerConfig>>,
    incoming: TlsIncoming,
    drain: Drain,
    url: ControlUrl,
    held: Vec<ServerStream>,
}

fn server_config(ca: &Authority, svid: &Svid, clock: &Arc<TokioClock>) -> Arc<ServerConfig> {
    let clock = Arc::new(TlsClock(clock.clone()));
    let mode = ClientCertificate::Accept;
    fender_identity::tls::server(
        &TlsProfile::default(),
        svid,
        ca.bundles(),
        mode,
        ALPN,
        clock,
    )
    .unwrap()
}

fn control() -> SpiffeId {
    SpiffeId::control(&DOMAIN.parse().unwrap())
}

async fn connect_from(source: [u8; 4], address: std::net::SocketAddr) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((source, 0).into()).unwrap();
    socket.connect(address).await.unwrap()
}

impl Bench {
    fn new(limits: IncomingLimits) -> Self {
        let (ca, clock, drain) = (Authority::new(), TokioClock::new(), Drain::new());
        let config = watch::Sender::new(server_config(&ca, &ca.svid(&control()), &clock));
        let incoming = TlsIncoming::new(listener(), config.subscribe(), limits, &drain);
        let url = format!("https://{}", incoming.local_address())
            .parse()
            .unwrap();
        Self {
            ca,
            clock,
            config,
            incoming,
            drain,
            url,
            held: Vec::new(),
        }
    }

    /// A client that connects in a task of its own and stays until the server ends it.
    fn dial(&self, svid: Option<&Svid>) {
        self.dial_from([127, 0, 0, 1], svid);
    }

    fn dial_from(&self, source: [u8; 4], svid: Option<&Svid>) {
        let config = fender_identity::tls::client(
            &TlsProfile::default(),
            svid,
            self.ca.bundles(),
            control(),
            ALPN,
            Arc::new(TlsClock(self.clock.clone())),
        );
        let ListenAddress::Tcp(address) = *self.incoming.local_address() else {
            unreachable!()
        };
        self.drain.spawn(async move {
            let socket = connect_from(source, address).await;
            let connector = tokio_rustls::TlsConnector::from(config.unwrap());
            let Ok(mut tls) = connector.connect(server_name(&control()), socket).await else {
                return;
            };
            while tls.read(&mut [0; 512]).await.is_ok_and(|read| read > 0) {}
        });
    }

    async fn join_and_hold(&mut self, svid: Option<&Svid>) {
        self.dial(svid);
        let stream = self.incoming.next().await.unwrap().unwrap();
        assert_eq!(stream.connect_info().peer.id(), svid.map(Svid::id));
        self.held.push(stream);
    }

    async fn refuse(&mut self, svid: Option<&Svid>) {
        self.dial(svid);
        let next = tokio::time::timeout(Duration::from_secs(5), self.incoming.next()).await;
        assert!(next.is_err(), "it reached the server");
    }

    async fn raw(&self) -> TcpStream {
        self.raw_from([127, 0, 0, 1]).await
    }

    async fn raw_from(&self, source: [u8; 4]) -> TcpStream {
        let ListenAddress::Tcp(address) = *self.incoming.local_address() else {
            unreachable!()
        };
        connect_from(source, address).await
    }

    /// Both ends of one connection.
    async fn join(&mut self, svid: Option<&Svid>) -> (Result<Connection, ConnectError>, Peer) {
        let config = fender_identity::tls::client(
            &TlsProfile::default(),
            svid,
            self.ca.bundles(),
            control(),
            ALPN,
            Arc::new(TlsClock(self.clock.clone())),
        );
        let (url, deadline) = (self.url.clone(), Deadline::after(Duration::from_secs(20)));
        let (done, mut finished) = tokio::sync::oneshot::channel();
        self.drain.spawn(async move {
            let name = server_name(&control());
            drop(done.send(connect(&url, config.unwrap(), name, deadline).await));
        });
        // The client's HTTP/2 preface waits for the server's answer only once it is asked something.
        let stream = self.incoming.next().await.unwrap().unwrap();
        let peer = stream.connect_info().peer;
        self.drain.spawn(async move {
            let (mut stream, mut buffer) = (stream, [0; 512]);
            let _ = stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await;
            while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
        });
        let connection = (&mut finished).await.unwrap();
        (connection, peer)
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_is_who_its_certificate_says_and_nobody_without_one() {
    let mut bench = Bench::new(IncomingLimits::default());
    let svid = bench.ca.svid(&id(ORDERS));
    let (connection, peer) = bench.join(Some(&svid)).await;
    assert_eq!(peer.id(), Some(&id(ORDERS)));
    let leaf = connection.unwrap().server_leaf;
    assert!(!leaf.is_empty());

    let (connection, peer) = bench.join(None).await;
    connection.unwrap();
    assert_eq!(peer, Peer::Anonymous);
}

#[tokio::test(start_paused = true)]
async fn a_rotated_certificate_is_shown_to_the_next_connection() {
    let mut bench = Bench::new(IncomingLimits::default());
    let first = bench.join(None).await.0.unwrap().server_leaf;
    let rotated = bench.ca.svid(&control());
    bench
        .config
        .send_replace(server_config(&bench.ca, &rotated, &bench.clock));
    let second = bench.join(None).await.0.unwrap().server_leaf;
    assert_ne!(first, second);
    assert_eq!(second, rotated.chain()[0]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_finishes_its_handshake_holds_up_nobody_and_is_cut() {
    let limits = IncomingLimits {
        handshakes: 2,
        ..IncomingLimits::default()
    };
    let mut bench = Bench::new(limits);
    let mut silent = bench.raw().await;
    bench.join(None).await.0.unwrap();
    let mut buffer = [0; 16];
    assert_eq!(
        silent.read(&mut buffer).await.unwrap_or(0),
        0,
        "the server gave up on it"
    );
}

#[tokio::test(start_paused = true)]
async fn attack_stalled_handshakes_in_every_place_keep_nobody_out() {
    let limits = IncomingLimits {
        handshakes: 2,
        ..IncomingLimits::default()
    };
    let mut bench = Bench::new(limits);
    let mut stalled = Vec::new();
    for _ in 0..8 {
        stalled.push(bench.raw().await);
    }
    let began = tokio::time::Instant::now();
    bench.join(None).await.0.unwrap();
    assert!(began.elapsed() < limits.handshake, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn attack_a_connection_without_a_certificate_is_not_held_for_ever() {
    let limits = IncomingLimits::default();
    let mut bench = Bench::new(limits);
    let svid = bench.ca.svid(&id(ORDERS));
    for (svid, cut) in [(None, true), (Some(&svid), false)] {
        bench.join_and_hold(svid).await;
        let mut stream = bench.held.pop().unwrap();
        let mut buffer = [0; 512];
        let read = async {
            loop {
                match stream.read(&mut buffer).await {
                    Ok(read) if read > 0 => {}
                    ended => break ended,
                }
            }
        };
        let ended = tokio::time::timeout(2 * limits.anonymous_life, read).await;
        assert_eq!(matches!(ended, Ok(Err(_))), cut, "{ended:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn attack_neither_strangers_nor_one_identity_hold_all_connections() {
    let limits = IncomingLimits {
        per_identity: 2,
        anonymous: 1,
        ..IncomingLimits::default()
    };
    let mut bench = Bench::new(limits);
    let (orders, control) = (bench.ca.svid(&id(ORDERS)), bench.ca.svid(&control()));
    bench.join_and_hold(None).await;
    bench.join_and_hold(Some(&orders)).await;
    bench.join_and_hold(Some(&orders)).await;
    bench.refuse(None).await;
    bench.refuse(Some(&orders)).await;
    bench.join_and_hold(Some(&control)).await;
    bench.held.clear();
    bench.join_and_hold(None).await;
    bench.join_and_hold(Some(&orders)).await;
}

#[tokio::test(start_paused = true)]
async fn attack_one_address_does_not_hold_all_that_strangers_may() {
    let limits = IncomingLimits {
        anonymous: 3,
        anonymous_per_address: 2,
        ..IncomingLimits::default()
    };
    let mut bench = Bench::new(limits);
    bench.join_and_hold(None).await;
    bench.join_and_hold(None).await;
    bench.refuse(None).await;
    // From elsewhere there is room, until all of it is taken.
    bench.dial_from([127, 0, 0, 2], None);
    bench
        .held
        .push(bench.incoming.next().await.unwrap().unwrap());
    bench.held.remove(0);
    bench.join_and_hold(None).await;
    bench.held.remove(0);
    bench.dial_from([127, 0, 0, 3], None);
    bench
        .held
        .push(bench.incoming.next().await.unwrap().unwrap());
    bench.refuse(None).await;
}

#[tokio::test(start_paused = true)]
async fn attack_workloads_that_hold_every_connection_do_not_keep_an_administrator_out() {
    let limits = IncomingLimits {
        connections: 2,
        administrators: 1,
        ..IncomingLimits::default()
    };
    let mut bench = Bench::new(limits);
    let orders = bench.ca.svid(&id(ORDERS));
    let admin = format!("spiffe://{DOMAIN}/fender/admin/first");
    let admin = bench.ca.svid(&id(&admin));
    bench.join_and_hold(Some(&orders)).await;
    bench.join_and_hold(None).await;
    bench.refuse(Some(&orders)).await;
    bench.refuse(None).await;
    bench.join_and_hold(Some(&admin)).await;
    bench.refuse(Some(&admin)).await;
    bench.held.clear();
    bench.join_and_hold(Some(&orders)).await;
}

#[tokio::test(start_paused = true)]
async fn attack_of_stalled_handshakes_those_of_the_address_with_the_most_go_first() {
    let limits = IncomingLimits {
        handshakes: 4,
        handshake: Duration::from_secs(600),
        ..IncomingLimits::default()
    };
    let mut bench = Bench::new(limits);
    // The slow one is older than all of the attacker's.
    let mut slow = bench.raw_from([127, 0, 0, 2]).await;
    let mut stalled = Vec::new();
    for _ in 0..6 {
        stalled.push(bench.raw().await);
    }
    bench.join(None).await.0.unwrap();
    let mut buffer = [0; 16];
    let slow = tokio::time::timeout(Duration::from_secs(1), slow.read(&mut buffer)).await;
    assert!(slow.is_err(), "the slow one was ended: {slow:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_tls_never_reaches_grpc() {
    let mut bench = Bench::new(IncomingLimits::default());
    let mut plain = bench.raw().await;
    plain
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    // The next one that arrives is the honest one.
    let (connection, peer) = bench.join(None).await;
    connection.unwrap();
    assert_eq!(peer, Peer::Anonymous);
}

#[tokio::test(start_paused = true)]
async fn stopping_ends_the_connections_to_come() {
    let mut bench = Bench::new(IncomingLimits::default());
    bench.drain.stop();
    assert!(bench.incoming.next().await.is_none());
    bench.drain.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_port_nobody_listens_on_is_unavailable() {
    let bench = Bench::new(IncomingLimits::default());
    bench.drain.stop();
    bench.drain.drained().await;
    let config = fender_identity::tls::client(
        &TlsProfile::default(),
        None,
        bench.ca.bundles(),
        control(),
        ALPN,
        Arc::new(TlsClock(bench.clock.clone())),
    );
    let deadline = Deadline::after(Duration::from_secs(5));
    let url = &bench.url;
    let error = connect(url, config.unwrap(), server_name(&control()), deadline)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
}
