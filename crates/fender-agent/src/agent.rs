//! The agent of a node: it finds out who calls its socket, tells the control plane, and hands on what comes back.
//!
//! Who a caller is is read from kernel and engine, and which identities that proves is the control plane's to say. A sidecar
//! brings the request for a key that stays with it; for everybody else the agent makes one, for this process alone.

use std::sync::Arc;
use std::time::Duration;

use fender_api::client::{AGENT_HEADER, AgentSession, CallError};
use fender_api::code::Code;
use fender_api::facts::Facts;
use fender_api::proto::agent::v1::agent_server::{Agent as AgentApi, AgentServer};
use fender_api::proto::agent::v1::{AttestRequest, IdentitiesRequest, IdentitiesResponse};
use fender_api::proto::control::v1::SvidResponse;
use fender_identity::{SpiffeId, Svid, Trust};
use fender_runtime::clock::SharedClock;
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use fender_runtime::listen::{ListenAddress, Listener};
use fender_runtime::share::{Share, Shares};
use tokio::sync::watch;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::attest::{Attestation, Host};
use crate::caller::check_kernel;
use crate::container::Engine;
use crate::holders::{Holders, Issuer};
use crate::process::Unattested;
use crate::server::{Calls, Limits, serve_routes, with_standards};
use crate::{Caller, Entitled, Identities, JwtSvid, Refused, Tokens, UnknownCaller};

/// The largest request: a certificate request.
const MAX_REQUEST: usize = 64 * 1024;
/// What one call may take, attestation included.
const CALL: Duration = Duration::from_secs(20);
/// Identities that one process gets keys for; who may be more is meant to be told apart.
const MAX_IDENTITIES: usize = 16;

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
pub struct Agent(Arc<Desk>);

impl Agent {
    /// Fails where the kernel is too old.
    pub fn new(config: AgentConfig) -> Result<Self, UnknownCaller> {
        let AgentConfig {
            session,
            engine,
            clock,
        } = config;
        check_kernel()?;
        let host = Host::new(engine, Arc::clone(&clock));
        let desk = Desk {
            session,
            host,
            clock,
            tokens: Tokens::default(),
        };
        Ok(Self(Arc::new(desk)))
    }

    /// Serves the callers of a socket until the drain stops: sidecars by the agent's own protocol, everybody by those that
    /// others made.
    pub async fn serve(self, listener: Listener, drain: Drain) {
        let Self(desk) = self;
        let clock = Arc::clone(&desk.clock);
        let limits = Limits::default();
        let issuer = Arc::clone(&desk);
        let holders = Holders::new(issuer, Arc::clone(&clock), drain.clone());
        let calls = Calls::new(Arc::new(Handed(holders)), clock, &limits, &drain);
        let api = Api {
            desk,
            shares: Arc::clone(&calls.shares),
        };
        let api = AgentServer::new(api).max_decoding_message_size(MAX_REQUEST);
        let routes = with_standards(Routes::new(api), calls);
        let greet = match listener.local_address() {
            ListenAddress::Abstract(_) => Caller::of_host,
            ListenAddress::Unix(_) | ListenAddress::Tcp(_) => Caller::of,
        };
        serve_routes(listener, routes, greet, limits, drain).await;
    }
}

/// Where a host's callers are attested, and their identities asked for.
#[derive(Debug)]
struct Desk {
    session: AgentSession,
    host: Host,
    clock: SharedClock,
    tokens: Tokens,
}

/// Identities whose keys are made here.
struct Handed(Holders<Arc<Desk>>);

impl Identities for Handed {
    async fn follow(&self, caller: &Caller) -> Result<watch::Receiver<Arc<Entitled>>, Refused> {
        self.0.follow(caller).await
    }

    async fn jwt_svid(
        &self,
        caller: &Caller,
        audience: &[String],
        id: Option<&SpiffeId>,
    ) -> Result<JwtSvid, Refused> {
        self.0.issuer().token(caller, audience, id).await
    }

    fn trust(&self) -> watch::Receiver<Trust> {
        self.0.issuer().session.trust()
    }
}

impl Issuer for Arc<Desk> {
    async fn issue(
        &self,
        caller: &Caller,
        kept: Option<&[Arc<Svid>]>,
    ) -> Result<Vec<Arc<Svid>>, Refused> {
        let deadline = Deadline::after(CALL);
        let attested = match kept {
            None => self.host.attest(caller, deadline).await?,
            Some(_) => self.host.attest_again(caller, deadline).await?,
        };
        let kept = kept.unwrap_or_default();
        let facts = attested.facts();
        let not_given = |error| not_given(facts, &error);
        let ids = self.session.entitle(facts, deadline).await;
        let mut svids = Vec::new();
        for id in ids.map_err(not_given)?.iter().take(MAX_IDENTITIES) {
            let kept = kept.iter().find(|svid| svid.id() == id);
            svids.push(match kept {
                Some(svid) => Arc::clone(svid),
                None => {
                    let issued = self.session.svid_for(id, facts, deadline).await;
                    issued.map_err(not_given)?
                }
            });
        }
        attested.confirm()?;
        Ok(svids)
    }

    fn trust(&self) -> watch::Receiver<Trust> {
        self.session.trust()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.session.changes()
    }
}

impl Desk {
    /// A token for a caller that is attested at this moment, whatever it was given before.
    async fn token(
        &self,
        caller: &Caller,
        audience: &[String],
        id: Option<&SpiffeId>,
    ) -> Result<JwtSvid, Refused> {
        let deadline = Deadline::after(CALL);
        let attested = self.host.attest(caller, deadline).await?;
        let facts = attested.facts();
        let not_given = |error| not_given(facts, &error);
        let ids = self.session.entitle(facts, deadline).await;
        let ids = ids.map_err(not_given)?;
        let chosen = match id {
            Some(id) => ids.iter().find(|may| *may == id),
            None => ids.first(),
        };
        let chosen = chosen.ok_or_else(|| Refused::Nobody {
            why: format!("it may not be the identity it asked for; {facts}"),
        })?;
        let begins = self.session.trust().borrow().denied.begins(chosen);
        let sign = self
            .session
            .sign_jwt_for(chosen, facts, audience, None, deadline);
        let given = self
            .tokens
            .give(chosen, audience, begins, &self.clock, sign)
            .await;
        attested.confirm()?;
        given.map_err(not_given)
    }
}

fn not_given(facts: &Facts, error: &CallError) -> Refused {
    let why = format!("{error}; {facts}");
    match error.code().is_passing() {
        true => Refused::Unavailable { why },
        false => Refused::Nobody { why },
    }
}

impl From<Unattested> for Refused {
    fn from(why: Unattested) -> Self {
        let text = why.to_string();
        match why.is_passing() {
            true => Self::Unavailable { why: text },
            false => Self::Nobody { why: text },
        }
    }
}

/// The protocol between an agent and the sidecars of its host.
struct Api {
    desk: Arc<Desk>,
    shares: Arc<Shares<u32>>,
}

#[tonic::async_trait]
impl AgentApi for Api {
    async fn identities(
        &self,
        request: Request<IdentitiesRequest>,
    ) -> Result<Response<IdentitiesResponse>, Status> {
        let (caller, _share) = self.admit(&request)?;
        let deadline = Deadline::after(CALL);
        let attested = self.attested(&caller, deadline).await?;
        let entitled = self.desk.session.entitle(attested.facts(), deadline).await;
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
            .desk
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

impl Api {
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
        let attested = self.desk.host.attest(caller, deadline).await;
        attested.map_err(|why| unattested(caller, &why))
    }
}

fn unattested(caller: &Caller, why: &Unattested) -> Status {
    tracing::warn!(uid = caller.uid, pid = caller.pid, error = %why, "a caller cannot be attested");
    if let Unattested::Engine(_) = why {
        return Code::Unavailable
            .status("the container engine cannot be asked; the agent's log says why");
    }
    match why.is_passing() {
        true => Code::Busy
            .status("this user, or its container, asks for more than its share: ask again"),
        false => nobody(),
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
