//! The local socket: HTTP/2 without TLS, because the kernel says who is there and nobody else can listen in.
//!
//! Each connection is its caller's: who that is was asked of the kernel before a byte was read. The socket's mode says who
//! may connect; who is anybody is for [`Identities`] to say. Nobody holds all connections: each process has a share, and all those
//! of a user in one container have one.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use fender_api::proto::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryServiceServer;
use fender_api::proto::spiffe::spiffe_workload_api_server::SpiffeWorkloadApiServer;
use fender_runtime::accept::{Accept, Slot};
use fender_runtime::clock::SharedClock;
use fender_runtime::drain::Drain;
use fender_runtime::listen::{Listener, Socket};
use fender_runtime::share::{Share, Shares};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::server::Connected;

use crate::authority::Authority;
use crate::sds::SecretDiscovery;
use crate::tenant::Tenant;
use crate::workload::WorkloadApi;
use crate::{Caller, Identities, UnknownCaller};

/// The largest request: names and an audience, or a token to be validated.
pub(crate) const MAX_REQUEST: usize = 64 * 1024;

/// Bounds of the local socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open connections.
    pub connections: usize,
    /// Open connections of one user in one container, or in none.
    pub per_tenant: usize,
    /// Open connections of one process.
    pub connections_per_process: usize,
    /// Calls and streams under way of one process, over all of its connections.
    pub per_process: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            per_tenant: 256,
            connections_per_process: 32,
            per_process: 64,
        }
    }
}

/// Serves the Workload API and SDS until the drain stops, to callers that are known by their user.
pub async fn serve<I: Identities>(
    listener: Listener,
    identities: Arc<I>,
    clock: SharedClock,
    limits: Limits,
    drain: Drain,
) {
    let calls = Calls::new(identities, clock, &limits, &drain);
    let routes = Routes::default();
    let routes = with_standards(routes, calls);
    serve_routes(listener, routes, Caller::user_of, limits, drain).await;
}

/// The protocols that others made.
pub(crate) fn with_standards<I: Identities>(routes: Routes, calls: Calls<I>) -> Routes {
    let workload = SpiffeWorkloadApiServer::new(WorkloadApi::new(calls.clone()))
        .max_decoding_message_size(MAX_REQUEST);
    let secrets = SecretDiscoveryServiceServer::new(SecretDiscovery::new(calls))
        .max_decoding_message_size(MAX_REQUEST);
    routes.add_service(workload).add_service(secrets)
}

/// Who is at the other end of a connection.
pub(crate) type Greet = fn(&Socket) -> Result<Caller, UnknownCaller>;

/// Serves until the drain stops, bounded as every server of ours is.
pub(crate) async fn serve_routes(
    listener: Listener,
    routes: Routes,
    greet: Greet,
    limits: Limits,
    drain: Drain,
) {
    let (accepted, incoming) = mpsc::channel(1);
    let door = Door {
        accept: Accept::new(listener, limits.connections),
        greet,
        tenants: Shares::new(limits.per_tenant),
        processes: Shares::new(limits.connections_per_process),
        accepted,
    };
    drain.spawn(door.admit(drain.clone()));
    let served = fender_api::tls::server()
        .max_concurrent_streams(u32::try_from(limits.per_process.saturating_mul(2)).ok())
        .add_routes(routes)
        .serve_with_incoming_shutdown(ReceiverStream::new(incoming), drain.stopping());
    tokio::select! {
        served = served => {
            if let Err(error) = served {
                tracing::error!(%error, "the local socket is not served any more");
            }
        }
        () = drain.forced() => {}
    }
}

/// Lets in those whom the kernel can name, each up to its share.
struct Door {
    accept: Accept,
    greet: Greet,
    tenants: Shares<Tenant>,
    processes: Shares<u32>,
    accepted: mpsc::Sender<io::Result<Connection>>,
}

impl Door {
    async fn admit(mut self, drain: Drain) {
        while let Some((socket, _, slot)) = self.accept.next(&drain).await {
            let caller = match (self.greet)(&socket) {
                Ok(caller) => caller,
                Err(error) => {
                    tracing::warn!(%error, "refused a caller at the local socket");
                    continue;
                }
            };
            let Some(of_process) = self.processes.take(caller.pid) else {
                let Caller { uid, pid, .. } = caller;
                tracing::warn!(
                    uid,
                    pid,
                    "refused a caller: its process holds too many connections"
                );
                continue;
            };
            let Some(of_tenant) = self.tenants.take(caller.tenant.clone()) else {
                let Caller { pid, tenant, .. } = caller;
                tracing::warn!(pid, "refused a caller: {tenant} holds too many connections");
                continue;
            };
            let connection = Connection {
                socket,
                caller,
                authority: Authority::new(),
                _shares: (of_process, of_tenant),
                _slot: slot,
            };
            // Nobody takes it any more only when the server is gone; it closes then.
            if self.accepted.send(Ok(connection)).await.is_err() {
                return;
            }
        }
    }
}

/// What each call needs.
pub(crate) struct Calls<I> {
    pub(crate) identities: Arc<I>,
    pub(crate) clock: SharedClock,
    pub(crate) shares: Arc<Shares<u32>>,
    pub(crate) drain: Drain,
}

impl<I> Calls<I> {
    pub(crate) fn new(
        identities: Arc<I>,
        clock: SharedClock,
        limits: &Limits,
        drain: &Drain,
    ) -> Self {
        Self {
            identities,
            clock,
            shares: Arc::new(Shares::new(limits.per_process)),
            drain: drain.clone(),
        }
    }
}

impl<I> Clone for Calls<I> {
    fn clone(&self) -> Self {
        Self {
            identities: Arc::clone(&self.identities),
            clock: Arc::clone(&self.clock),
            shares: Arc::clone(&self.shares),
            drain: self.drain.clone(),
        }
    }
}

/// One connection and whose it is.
#[derive(Debug)]
struct Connection {
    socket: Socket,
    caller: Caller,
    authority: Authority,
    _shares: (Share<u32>, Share<Tenant>),
    _slot: Slot,
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(cx, buf))?;
        if let Some(read) = buf.filled_mut().get_mut(before..) {
            self.authority.pass(read);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
