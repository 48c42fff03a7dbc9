//! The agent of a node: it finds out who calls its socket, tells the control plane, and hands on what comes back.
//!
//! A caller chooses nothing but the key: who it is is read from kernel and engine with every call, and which identities
//! that proves is the control plane's to say. The private key stays with the caller.

use std::sync::Arc;
use std::time::Duration;

use fender_api::client::{AGENT_HEADER, AgentSession, CallError};
use fender_api::code::Code;
use fender_api::facts::Facts;
use fender_api::proto::agent::v1::agent_server::{Agent as AgentApi, AgentServer};
use fender_api::proto::agent::v1::{AttestRequest, IdentitiesRequest, IdentitiesResponse};
use fender_api::proto::control::v1::SvidResponse;
use fender_runtime::clock::SharedClock;
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use fender_runtime::listen::Listener;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::attest::{Attestation, Host};
use crate::caller::check_kernel;
use crate::container::Engine;
use crate::process::Unattested;
use crate::server::{Limits, serve_routes};
use crate::share::{Share, Shares};
use crate::{Caller, UnknownCaller};

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
    pub clock: SharedClock,
}

/// An agent on a kernel that can tell it who calls.
#[derive(Debug)]
pub struct Agent {
    session: AgentSession,
    host: Host,
}

impl Agent {
    /// Fails where the kernel is too old.
    pub fn new(config: AgentConfig) -> Result<Self, UnknownCaller> {
        check_kernel()?;
        Ok(Self {
            session: config.session,
            host: Host::new(config.engine, config.clock),
        })
    }

    /// Serves the callers of a socket until the drain stops.
    pub async fn serve(self, listener: Listener, drain: Drain) {
        let limits = Limits::default();
        let desk = Desk {
            agent: Arc::new(self),
            shares: Shares::new(limits.per_process),
        };
        let api = AgentServer::new(desk).max_decoding_message_size(MAX_REQUEST);
        serve_routes(listener, Routes::new(api), Caller::of, limits, drain).await;
    }
}

/// The protocol between an agent and the sidecars of its host.
struct Desk {
    agent: Arc<Agent>,
    shares: Shares<u32>,
}

#[tonic::async_trait]
impl AgentApi for Desk {
    async fn identities(
        &self,
        request: Request<IdentitiesRequest>,
    ) -> Result<Response<IdentitiesResponse>, Status> {
        let (caller, _share) = self.admit(&request)?;
        let deadline = Deadline::after(CALL);
        let attested = self.attested(&caller, deadline).await?;
        let entitled = self.agent.session.entitle(attested.facts(), deadline).await;
        let identities = entitled.map_err(|error| refused(&caller, attested.facts(), &error))?;
        attested
            .confirm()
            .map_err(|why| unattested(&caller, &why))?;
        Ok(Response::new(IdentitiesResponse {
            identities: identities.iter().map(ToString::to_string).collect(),
        }))
    }

    async fn attest(
        &self,
        request: Request<AttestRequest>,
    ) -> Result<Response<SvidResponse>, Status> {
        let (caller, _share) = self.admit(&request)?;
        let csr = request.into_inner().csr;
        let deadline = Deadline::after(CALL);
        let attested = self.attested(&caller, deadline).await?;
        let issued = self
            .agent
            .session
            .issue_for(csr, attested.facts(), deadline)
            .await;
        let issued = issued.map_err(|error| refused(&caller, attested.facts(), &error))?;
        attested
            .confirm()
            .map_err(|why| unattested(&caller, &why))?;
        tracing::info!(pid = caller.pid, facts = %attested.facts(), "a caller was attested");
        Ok(Response::new(issued))
    }
}

impl Desk {
    /// Who calls, if they mean to and have not too many calls under way.
    fn admit<T>(&self, request: &Request<T>) -> Result<(Caller, Share<u32>), Status> {
        let meant = request.metadata().get(AGENT_HEADER);
        if meant.is_none_or(|value| value.as_bytes() != b"true") {
            return Err(
                Code::BadRequest.status(format!("the metadata `{AGENT_HEADER}: true` is missing"))
            );
        }
        let caller = request.extensions().get::<Caller>().cloned();
        let caller =
            caller.ok_or_else(|| Code::NotAuthenticated.status("nobody knows who calls"))?;
        let share = self.shares.take(caller.pid);
        let share =
            share.ok_or_else(|| Code::Busy.status("this process has too many calls under way"))?;
        Ok((caller, share))
    }

    async fn attested(&self, caller: &Caller, deadline: Deadline) -> Result<Attestation, Status> {
        let attested = self.agent.host.attest(caller, deadline).await;
        attested.map_err(|why| unattested(caller, &why))
    }
}

fn unattested(caller: &Caller, why: &Unattested) -> Status {
    tracing::warn!(uid = caller.uid, pid = caller.pid, error = %why, "a caller cannot be attested");
    match why {
        Unattested::Engine(_) => Code::Unavailable
            .status("the container engine cannot be asked; the agent's log says why"),
        Unattested::Late(_) | Unattested::TooOften => {
            Code::Busy.status("this user asks for more than its share: ask again")
        }
        Unattested::Ended
        | Unattested::Changed
        | Unattested::Rewritten
        | Unattested::Unreadable(_)
        | Unattested::NoContainer(_)
        | Unattested::Restarted(_)
        | Unattested::NotInContainer(_) => nobody(),
    }
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
