//! Connections for a tonic server: accepted, their handshake finished, their peer known.
//!
//! A slow or hostile handshake holds up nobody: each runs by itself, against one deadline, as many at a time as there are
//! places; who stalls gives their place to who waits, the address with the most of them first. A connection that fails
//! its handshake is logged and gone; tonic never hears of it.
//!
//! Nobody can hold all connections: each identity has a share, the anonymous have one together and each address a part of
//! it, and an anonymous connection lives no longer than the one call it is for. Administrators have a few places that no
//! number of workloads can take.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use fender_identity::{Peer, SpiffeId};
use fender_runtime::accept::{Accept, Slot};
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use fender_runtime::listen::{ListenAddress, Listener, PeerAddr, Socket};
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use super::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, MAX_HEADER_LIST};

/// A sidecar holds one stream for itself and one for each credential it watches.
const MAX_STREAMS: u32 = 512;

/// What a client may send ahead of what is read: of one stream, and of all on one connection. Ten thousand connections may
/// all do so at once; documents, the largest there is to send, still arrive at megabytes a second across a continent.
const STREAM_WINDOW: u32 = 128 * 1024;
const CONNECTION_WINDOW: u32 = 256 * 1024;

/// The longest a call may take to be answered, its request read included. A stream is answered when it begins.
const ANSWER: Duration = Duration::from_secs(60);

/// A handshake older than this gives its place to a connection that waits for one.
const PATIENCE: Duration = Duration::from_secs(1);

/// The server half of gRPC, bounded. Services still set [`MAX_MESSAGE`](super::MAX_MESSAGE) themselves:
/// `IdentityServer::new(…).max_decoding_message_size(MAX_MESSAGE)`.
pub fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_header_list_size(MAX_HEADER_LIST)
        .http2_max_pending_accept_reset_streams(Some(32))
        .http2_max_local_error_reset_streams(Some(256))
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .concurrency_limit_per_connection(64)
        .timeout(ANSWER)
}

/// Bounds of a [`TlsIncoming`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IncomingLimits {
    /// Open connections of everybody but administrators.
    pub connections: usize,
    /// Open connections of administrators.
    pub administrators: usize,
    /// Handshakes at a time.
    pub handshakes: usize,
    /// From accepted to authenticated.
    pub handshake: Duration,
    /// Open connections of one identity.
    pub per_identity: usize,
    /// Open connections without an identity, of everybody together.
    pub anonymous: usize,
    /// Of those, from one address (of IPv6, from one network of 64 bits).
    pub anonymous_per_address: usize,
    /// How long a connection without an identity lives: enough for one call.
    pub anonymous_life: Duration,
}

impl Default for IncomingLimits {
    fn default() -> Self {
        Self {
            connections: 16_000,
            administrators: 64,
            handshakes: 512,
            handshake: Duration::from_secs(10),
            per_identity: 5_000,
            anonymous: 2_000,
            anonymous_per_address: 1_000,
            anonymous_life: Duration::from_secs(30),
        }
    }
}

/// Authenticated connections, one after the other. Ends when its [`Drain`] stops.
#[derive(Debug)]
pub struct TlsIncoming {
    address: ListenAddress,
    ready: mpsc::Receiver<ServerStream>,
}

impl TlsIncoming {
    /// Starts to accept. Every handshake uses the newest `config`, so a rotated certificate or bundle applies to the next
    /// connection.
    pub fn new(
        listener: Listener,
        config: watch::Receiver<Arc<ServerConfig>>,
        limits: IncomingLimits,
        drain: &Drain,
    ) -> Self {
        let address = listener.local_address().clone();
        let (finished, ready) = mpsc::channel(limits.handshakes.max(1));
        let gate = Gate {
            config,
            places: Arc::new(Semaphore::new(limits.handshakes.max(1))),
            under_way: VecDeque::new(),
            limits,
            shares: Shares::default(),
            finished,
            drain: drain.clone(),
        };
        // Whoever is still unknown has a place for a handshake besides.
        let slots = limits.connections + limits.administrators + limits.handshakes;
        drain.spawn(gate.run(Accept::new(listener, slots)));
        Self { address, ready }
    }

    /// Where it listens, with the port the kernel chose.
    pub fn local_address(&self) -> &ListenAddress {
        &self.address
    }
}

impl Stream for TlsIncoming {
    type Item = io::Result<ServerStream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.ready.poll_recv(cx).map(|stream| stream.map(Ok))
    }
}

struct Gate {
    config: watch::Receiver<Arc<ServerConfig>>,
    places: Arc<Semaphore>,
    /// The oldest first.
    under_way: VecDeque<UnderWay>,
    limits: IncomingLimits,
    shares: Shares,
    finished: mpsc::Sender<ServerStream>,
    drain: Drain,
}

/// A handshake; dropping this ends it.
struct UnderWay {
    began: Instant,
    from: Option<IpAddr>,
    /// Closed when the handshake is over.
    running: oneshot::Sender<()>,
}

impl Gate {
    async fn run(mut self, mut accept: Accept) {
        while let Some(place) = self.place().await {
            let Some((socket, remote, slot)) = accept.next(&self.drain).await else {
                return;
            };
            let acceptor = TlsAcceptor::from(self.config.borrow().clone());
            let handshake = Handshake {
                acceptor,
                deadline: Deadline::after(self.limits.handshake),
                superseded: self.begin(network(remote)),
                limits: self.limits,
                shares: self.shares.clone(),
            };
            let finished = self.finished.clone();
            self.drain.spawn(async move {
                match handshake.run(socket, remote, slot).await {
                    // Nobody takes it any more only when the server is gone; the connection then closes.
                    Ok(stream) => drop(finished.send(stream).await),
                    Err(error) => tracing::info!(%remote, %error, "TLS handshake failed"),
                }
                drop(place);
            });
        }
    }

    /// A place for one more handshake; if there is none, that of one who has had their time.
    async fn place(&mut self) -> Option<OwnedSemaphorePermit> {
        let mut victim = match self.places.available_permits() {
            0 => self.victim(),
            _ => None,
        };
        loop {
            let patience = victim.map(|(_, began)| began + PATIENCE);
            tokio::select! {
                biased;
                () = self.drain.stopping() => return None,
                () = self.finished.closed() => return None,
                place = self.places.clone().acquire_owned() => return place.ok(),
                // One is enough: its place is free as soon as it has noticed.
                Some(()) = until(patience) => {
                    drop(victim.take().and_then(|(at, _)| self.under_way.remove(at)));
                }
            }
        }
    }

    /// Who makes room next: of the address with the most handshakes, the oldest; where it is, and when it began.
    fn victim(&mut self) -> Option<(usize, Instant)> {
        self.under_way
            .retain(|handshake| !handshake.running.is_closed());
        let mut held: HashMap<Option<IpAddr>, usize> = HashMap::new();
        for handshake in &self.under_way {
            *held.entry(handshake.from).or_default() += 1;
        }
        let all = self.under_way.iter().enumerate();
        let victim = all.max_by_key(|(at, handshake)| (held.get(&handshake.from), Reverse(*at)));
        victim.map(|(at, handshake)| (at, handshake.began))
    }

    /// Resolves when this handshake has to make room.
    fn begin(&mut self, from: Option<IpAddr>) -> oneshot::Receiver<()> {
        if self.under_way.len() >= self.limits.handshakes {
            self.under_way
                .retain(|handshake| !handshake.running.is_closed());
        }
        let (running, superseded) = oneshot::channel();
        self.under_way.push_back(UnderWay {
            began: Instant::now(),
            from,
            running,
        });
        superseded
    }
}

/// What one peer can easily have many of, as one: of IPv6, the network of 64 bits.
fn network(remote: PeerAddr) -> Option<IpAddr> {
    remote.ip().map(|ip| match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
    })
}

async fn until(moment: Option<Instant>) -> Option<()> {
    tokio::time::sleep_until(moment?).await;
    Some(())
}

struct Handshake {
    acceptor: TlsAcceptor,
    deadline: Deadline,
    superseded: oneshot::Receiver<()>,
    limits: IncomingLimits,
    shares: Shares,
}

impl Handshake {
    async fn run(self, socket: Socket, remote: PeerAddr, slot: Slot) -> io::Result<ServerStream> {
        let tls = tokio::select! {
            biased;
            tls = self.deadline.bound(self.acceptor.accept(socket)) => {
                tls.map_err(|elapsed| io::Error::new(io::ErrorKind::TimedOut, elapsed))??
            }
            _ = self.superseded => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it stalled while others waited"));
            }
        };
        let (_, session) = tls.get_ref();
        if session.alpn_protocol() != Some(b"h2") {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the client did not offer HTTP/2",
            ));
        }
        let chain = session.peer_certificates().unwrap_or_default();
        let info = ConnectInfo {
            peer: fender_identity::tls::peer_of(session),
            remote,
            chain: chain
                .iter()
                .map(|certificate| certificate.clone().into_owned())
                .collect(),
        };
        let share = self
            .shares
            .take(&info.peer, remote, &self.limits)
            .map_err(|why| io::Error::new(io::ErrorKind::QuotaExceeded, why))?;
        let end = match &info.peer {
            Peer::Verified(_) => None,
            Peer::Anonymous => Some(Box::pin(tokio::time::sleep(self.limits.anonymous_life))),
        };
        Ok(ServerStream {
            tls,
            info,
            end,
            _share: share,
            _slot: slot,
        })
    }
}

/// How many connections each holds.
#[derive(Clone, Debug, Default)]
struct Shares(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    by_holder: HashMap<Holder, usize>,
    administrators: usize,
    strangers: usize,
    /// Everybody but administrators.
    others: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Holder {
    Administrator(SpiffeId),
    Somebody(SpiffeId),
    /// By address.
    Stranger(Option<IpAddr>),
}

/// One connection's part; dropping it gives it back.
#[derive(Debug)]
struct Share {
    shares: Shares,
    holder: Holder,
}

impl Shares {
    /// A part for one more connection, or why there is none.
    fn take(
        &self,
        peer: &Peer,
        remote: PeerAddr,
        limits: &IncomingLimits,
    ) -> Result<Share, &'static str> {
        let holder = match peer.id() {
            Some(id) if id.admin_name().is_some() => Holder::Administrator(id.clone()),
            Some(id) => Holder::Somebody(id.clone()),
            None => Holder::Stranger(network(remote)),
        };
        let mut held = self.lock();
        let (own, everybody) = match holder {
            Holder::Administrator(_) => (limits.administrators, held.administrators),
            Holder::Somebody(_) => (limits.per_identity, held.others),
            Holder::Stranger(_) => (limits.anonymous_per_address, held.others),
        };
        let most = match holder {
            Holder::Administrator(_) => limits.administrators,
            Holder::Somebody(_) | Holder::Stranger(_) => limits.connections,
        };
        if held.by_holder.get(&holder).copied().unwrap_or(0) >= own {
            return Err(match holder {
                Holder::Administrator(_) | Holder::Somebody(_) => {
                    "its identity holds too many connections already"
                }
                Holder::Stranger(_) => {
                    "its address holds too many connections without a certificate already"
                }
            });
        }
        if matches!(holder, Holder::Stranger(_)) && held.strangers >= limits.anonymous {
            return Err("too many connections without a certificate are open already");
        }
        if everybody >= most {
            return Err("too many connections are open already");
        }
        *held.by_holder.entry(holder.clone()).or_default() += 1;
        held.count(&holder, |count| *count += 1);
        Ok(Share {
            shares: self.clone(),
            holder,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Changes every sum that this holder is part of.
    fn count(&mut self, holder: &Holder, change: impl Fn(&mut usize)) {
        match holder {
            Holder::Administrator(_) => change(&mut self.administrators),
            Holder::Somebody(_) => change(&mut self.others),
            Holder::Stranger(_) => {
                change(&mut self.others);
                change(&mut self.strangers);
            }
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.shares.lock();
        match held.by_holder.get_mut(&self.holder) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) | None => drop(held.by_holder.remove(&self.holder)),
        }
        held.count(&self.holder, |count| *count = count.saturating_sub(1));
    }
}

/// Who is at the other end of a request: `request.extensions().get::<ConnectInfo>()`.
#[derive(Clone, Debug)]
pub struct ConnectInfo {
    /// As proven in the handshake.
    pub peer: Peer,
    /// From where.
    pub remote: PeerAddr,
    /// What was shown, leaf first; empty for an anonymous peer.
    pub chain: Arc<[CertificateDer<'static>]>,
}

/// One authenticated connection.
#[derive(Debug)]
pub struct ServerStream {
    tls: TlsStream<Socket>,
    info: ConnectInfo,
    /// Of an anonymous connection.
    end: Option<Pin<Box<Sleep>>>,
    _share: Share,
    _slot: Slot,
}

impl ServerStream {
    /// Fails once the connection has had its time; whoever polls for anything else is woken then.
    fn alive(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.end.as_mut().map(|end| end.as_mut().poll(cx)) {
            Some(Poll::Ready(())) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "a connection without a certificate is for one call",
            )),
            Some(Poll::Pending) | None => Ok(()),
        }
    }
}

impl Connected for ServerStream {
    type ConnectInfo = ConnectInfo;

    fn connect_info(&self) -> ConnectInfo {
        self.info.clone()
    }
}

impl AsyncRead for ServerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.alive(cx)?;
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.alive(cx)?;
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.alive(cx)?;
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.alive(cx)?;
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
