//! Connections for a tonic server: accepted, their handshake finished, their peer known.
//!
//! A slow or hostile handshake holds up nobody: each runs by itself, against one deadline, as many at a time as there are
//! places. A connection that fails its handshake is logged and gone; tonic never hears of it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use fender_identity::Peer;
use fender_runtime::accept::{Accept, Slot};
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use fender_runtime::listen::{ListenAddress, Listener, PeerAddr, Socket};
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use super::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, MAX_HEADER_LIST};

/// A sidecar holds one stream for itself and one for each credential it watches.
const MAX_STREAMS: u32 = 512;

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
        .concurrency_limit_per_connection(64)
}

/// Bounds of a [`TlsIncoming`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IncomingLimits {
    /// Open connections.
    pub connections: usize,
    /// Handshakes at a time.
    pub handshakes: usize,
    /// From accepted to authenticated.
    pub handshake: Duration,
}

impl Default for IncomingLimits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            handshakes: 128,
            handshake: Duration::from_secs(10),
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
            limit: limits.handshake,
            finished,
            drain: drain.clone(),
        };
        drain.spawn(gate.run(Accept::new(listener, limits.connections)));
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
    limit: Duration,
    finished: mpsc::Sender<ServerStream>,
    drain: Drain,
}

impl Gate {
    async fn run(self, mut accept: Accept) {
        while let Some(place) = self.place().await {
            let Some((socket, remote, slot)) = accept.next(&self.drain).await else {
                return;
            };
            let acceptor = TlsAcceptor::from(self.config.borrow().clone());
            let finished = self.finished.clone();
            let deadline = Deadline::after(self.limit);
            self.drain.spawn(async move {
                match handshake(acceptor, socket, remote, slot, deadline).await {
                    // Nobody takes it any more only when the server is gone; the connection then closes.
                    Ok(stream) => drop(finished.send(stream).await),
                    Err(error) => tracing::info!(%remote, %error, "TLS handshake failed"),
                }
                drop(place);
            });
        }
    }

    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        tokio::select! {
            biased;
            () = self.drain.stopping() => None,
            () = self.finished.closed() => None,
            place = self.places.clone().acquire_owned() => place.ok(),
        }
    }
}

async fn handshake(
    acceptor: TlsAcceptor,
    socket: Socket,
    remote: PeerAddr,
    slot: Slot,
    deadline: Deadline,
) -> io::Result<ServerStream> {
    socket.set_nodelay()?;
    let tls = deadline
        .bound(acceptor.accept(socket))
        .await
        .map_err(|elapsed| io::Error::new(io::ErrorKind::TimedOut, elapsed))??;
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
    Ok(ServerStream {
        tls,
        info,
        _slot: slot,
    })
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
    _slot: Slot,
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
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
