//! The agent of a node: it finds out who calls its socket, tells the control plane, and hands on what comes back.
//!
//! A caller chooses nothing but the key: who it is is read from kernel and engine with every call, and which identities
//! that proves is the control plane's to say. The private key stays with the caller.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use fender_api::client::{AgentSession, CallError};
use fender_api::code::Code;
use fender_api::facts::Facts;
use fender_api::proto::agent::v1::agent_server::{Agent as AgentApi, AgentServer};
use fender_api::proto::agent::v1::{AttestRequest, IdentitiesRequest, IdentitiesResponse};
use fender_api::proto::control::v1::SvidResponse;
use fender_runtime::accept::{Accept, Slot};
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use fender_runtime::listen::{Listener, Socket};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status};

use crate::Caller;
use crate::container::Engine;
use crate::process::{Process, Unattested};
use crate::share::{Share, Shares};

/// Connections that may be open at once.
const CONNECTIONS: usize = 1024;
/// Connections of one user.
const PER_USER: usize = 256;
/// Calls one connection may have under way.
const CALLS: u32 = 8;
/// Programs that are read at once: each may be large.
const READING: usize = 4;
/// The largest request: a certificate request.
const MAX_REQUEST: usize = 64 * 1024;
/// What one call may take, attestation included.
const CALL: Duration = Duration::from_secs(20);

/// What an agent needs.
#[derive(Debug)]
pub struct AgentConfig {
    pub session: AgentSession,
    /// Without one, containers are not told from each other, and nobody in one gets anything.
    pub engine: Option<Engine>,
}

/// Serves the callers of a socket until the drain stops.
pub async fn serve_agent(listener: Listener, config: AgentConfig, drain: Drain) {
    let agent = Arc::new(Agent {
        session: config.session,
        engine: config.engine,
        reading: Semaphore::new(READING),
    });
    let (accepted, incoming) = mpsc::channel(1);
    let accept = Accept::new(listener, CONNECTIONS);
    drain.spawn(admit(accept, accepted, drain.clone()));
    let api = AgentServer::new(Desk(agent)).max_decoding_message_size(MAX_REQUEST);
    let served = Server::builder()
        .max_concurrent_streams(CALLS)
        .add_service(api)
        .serve_with_incoming_shutdown(ReceiverStream::new(incoming), drain.stopping());
    tokio::select! {
        served = served => {
            if let Err(error) = served {
                tracing::error!(%error, "the agent's socket is not served any more");
            }
        }
        () = drain.forced() => {}
    }
}

/// Lets in those whom the kernel can name.
async fn admit(mut accept: Accept, accepted: mpsc::Sender<io::Result<Connection>>, drain: Drain) {
    let shares = Shares::new(PER_USER);
    while let Some((socket, _, slot)) = accept.next(&drain).await {
        let caller = match Caller::of(&socket) {
            Ok(caller) => caller,
            Err(error) => {
                tracing::warn!(%error, "refused a caller at the agent's socket");
                continue;
            }
        };
        let Some(share) = shares.take(caller.uid) else {
            tracing::warn!(
                uid = caller.uid,
                pid = caller.pid,
                "refused a caller: its user holds too many connections"
            );
            continue;
        };
        let connection = Connection {
            socket,
            caller,
            _share: share,
            _slot: slot,
        };
        // Nobody takes it any more only when the server is gone; it closes then.
        if accepted.send(Ok(connection)).await.is_err() {
            return;
        }
    }
}

#[derive(Debug)]
struct Agent {
    session: AgentSession,
    engine: Option<Engine>,
    reading: Semaphore,
}

impl Agent {
    /// What is known of a caller at this moment.
    async fn facts(self: &Arc<Self>, caller: &Caller) -> Result<Facts, Unattested> {
        let _turn = self.reading.acquire().await;
        let read = caller.clone();
        // A program may be large, and its disk slow.
        let reading = tokio::task::spawn_blocking(move || {
            let process = Process::of(&read)?;
            let facts = process.facts(&read)?;
            Ok::<_, Unattested>((process, facts))
        });
        let (process, of_process) = reading.await.map_err(|_| Unattested::Ended)??;
        let container = match &self.engine {
            Some(engine) => engine.facts(&process).await?,
            None => None,
        };
        // What was read is of this process only if it is still there.
        if caller.has_ended() {
            return Err(Unattested::Ended);
        }
        Ok(Facts {
            process: of_process,
            container,
        })
    }
}

struct Desk(Arc<Agent>);

#[tonic::async_trait]
impl AgentApi for Desk {
    async fn identities(
        &self,
        request: Request<IdentitiesRequest>,
    ) -> Result<Response<IdentitiesResponse>, Status> {
        let caller = caller(&request)?;
        let facts = self.attested(&caller).await?;
        let entitled = self.0.session.entitle(&facts, Deadline::after(CALL)).await;
        let identities = entitled.map_err(|error| refused(&caller, &facts, &error))?;
        Ok(Response::new(IdentitiesResponse {
            identities: identities.iter().map(ToString::to_string).collect(),
        }))
    }

    async fn attest(
        &self,
        request: Request<AttestRequest>,
    ) -> Result<Response<SvidResponse>, Status> {
        let caller = caller(&request)?;
        let csr = request.into_inner().csr;
        let facts = self.attested(&caller).await?;
        let issued = self
            .0
            .session
            .issue_for(csr, &facts, Deadline::after(CALL))
            .await;
        let issued = issued.map_err(|error| refused(&caller, &facts, &error))?;
        tracing::info!(pid = caller.pid, %facts, "a caller was attested");
        Ok(Response::new(issued))
    }
}

impl Desk {
    async fn attested(&self, caller: &Caller) -> Result<Facts, Status> {
        self.0.facts(caller).await.map_err(|error| {
            tracing::warn!(uid = caller.uid, pid = caller.pid, %error, "a caller cannot be attested");
            match error {
                Unattested::Engine(_) => {
                    Code::Unavailable.status("the container engine cannot be asked; the agent's log says why")
                }
                Unattested::Ended
                | Unattested::Changed
                | Unattested::Unreadable(_)
                | Unattested::NoContainer(_)
                | Unattested::NotInContainer(_) => nobody(),
            }
        })
    }
}

fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| Code::NotAuthenticated.status("nobody knows who calls"))
}

/// The caller hears that it is nobody; which selector failed on which fact is for whoever reads the log.
fn refused(caller: &Caller, facts: &Facts, error: &CallError) -> Status {
    tracing::warn!(pid = caller.pid, %facts, code = %error.code(), %error, "a caller gets no identity");
    let code = error.code();
    if code.is_passing() {
        return code.status("the control plane cannot be asked; the agent's log says why");
    }
    match matches!(code, Code::CsrInvalid | Code::BadRequest) {
        true => code.status("the request is malformed"),
        false => nobody(),
    }
}

fn nobody() -> Status {
    Code::NotAttestable
        .status("no identity is meant for this process; the logs of the agent and the control plane say which selector failed")
}

/// One connection and whose it is.
#[derive(Debug)]
struct Connection {
    socket: Socket,
    caller: Caller,
    _share: Share<u32>,
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
        Pin::new(&mut self.socket).poll_read(cx, buf)
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

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
