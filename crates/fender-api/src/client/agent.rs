//! The client of a node's agent: an identity of its own, kept fresh, and questions about the processes of its host.

use std::sync::Arc;
use std::time::Duration;

use fender_identity::csr::NewKey;
use fender_identity::{Serial, SpiffeId, Svid, Trust};
use fender_runtime::deadline::Deadline;
use tokio::sync::{Mutex, watch};
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::call::{CallError, Caller, accept, bounded};
use super::core::Core;
use super::evidence::Expected;
use super::{OpenError, SessionConfig, SignedToken, attest, renewal, renewed, token};
use crate::facts::Facts;
use crate::proto::control::v1 as proto;
use crate::proto::control::v1::nodes_client::NodesClient;
use crate::tls::{Connection, MAX_MESSAGE};
use following::Following;

mod following;

/// An agent that may ask. Its certificate renews itself until the drain stops.
#[derive(Debug)]
pub struct AgentSession {
    line: Arc<Line>,
    changes: watch::Receiver<u64>,
}

type Nodes = NodesClient<Channel>;

/// The way to the control plane.
#[derive(Debug)]
struct Line {
    core: Arc<Core>,
    kept: Mutex<Option<Kept>>,
}

/// The connection all questions share: one handshake for as long as a certificate lives, and not one for each process that
/// asks.
#[derive(Clone, Debug)]
struct Kept {
    /// Of the certificate it was made with.
    serial: Serial,
    connection: Connection,
}

/// Whether a connection was there before the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Made {
    Before,
    Now,
}

/// Attests or resumes as the agent of a node.
pub async fn open_agent(
    config: SessionConfig,
    deadline: Deadline,
) -> Result<AgentSession, OpenError> {
    let caller = Caller {
        control: config.control.clone(),
        clock: config.clock.clone(),
        version: config.version,
    };
    let stored = match &config.state {
        Some(state) => state.load()?,
        None => None,
    };
    let identity = match stored {
        None => attest(&config, &Expected::Agent, &caller, deadline).await?,
        Some(stored) => {
            Expected::Agent.admit(stored.svid.id())?;
            match (
                renewed(&config, &caller, stored, deadline).await,
                &config.evidence,
            ) {
                (Err(OpenError::Refused(error)), Some(evidence)) if evidence.at_hand() => {
                    tracing::warn!(%error, "the stored identity is refused, attesting anew");
                    attest(&config, &Expected::Agent, &caller, deadline).await?
                }
                (renewed, _) => renewed?.0,
            }
        }
    };
    let core = Core::new(
        caller,
        identity,
        config.evidence,
        config.state,
        config.drain,
        None,
    );
    core.drain.spawn(renewal::run(core.clone()));
    let line = Arc::new(Line {
        core: Arc::clone(&core),
        kept: Mutex::default(),
    });
    let (changed, changes) = watch::channel(0);
    let following = Following {
        line: Arc::clone(&line),
        changes: changed,
    };
    core.drain.spawn(following.run());
    Ok(AgentSession { line, changes })
}

impl AgentSession {
    /// Who the agent is.
    pub fn id(&self) -> SpiffeId {
        self.line.core.svid.borrow().id().clone()
    }

    /// What it proves that with.
    #[cfg(test)]
    pub(super) fn svid(&self) -> watch::Receiver<Arc<Svid>> {
        self.line.core.svid.subscribe()
    }

    /// Who a process with these facts may be. Never nobody: that is an error.
    pub async fn entitle(
        &self,
        facts: &Facts,
        deadline: Deadline,
    ) -> Result<Vec<SpiffeId>, CallError> {
        let facts = proto::Facts::from(facts);
        let answer = self
            .line
            .ask(deadline, |mut nodes| {
                let facts = facts.clone();
                async move { nodes.entitle(facts).await }
            })
            .await?;
        answer
            .identities
            .iter()
            .map(|id| {
                id.parse::<SpiffeId>()
                    .map_err(|error| CallError::Answer(error.to_string()))
            })
            .collect()
    }

    /// A certificate for the key of a request, if these facts prove its identity.
    pub async fn issue_for(
        &self,
        csr: Vec<u8>,
        facts: &Facts,
        deadline: Deadline,
    ) -> Result<proto::SvidResponse, CallError> {
        let request = proto::IssueForRequest {
            csr,
            facts: Some(facts.into()),
        };
        let ask = |mut nodes: Nodes| {
            let request = request.clone();
            async move { nodes.issue_for(request).await }
        };
        self.line.ask(deadline, ask).await
    }

    /// A JWT-SVID of `identity` for an audience, if these facts prove the identity.
    pub async fn sign_jwt_for(
        &self,
        identity: &SpiffeId,
        facts: &Facts,
        audience: &[String],
        lifetime: Option<Duration>,
        deadline: Deadline,
    ) -> Result<SignedToken, CallError> {
        let request = proto::SignJwtForRequest {
            identity: identity.to_string(),
            facts: Some(facts.into()),
            token: Some(token::request(audience, lifetime)),
        };
        let ask = |mut nodes: Nodes| {
            let request = request.clone();
            async move { nodes.sign_jwt_for(request).await }
        };
        let answer = self.line.ask(deadline, ask).await?;
        let core = &self.line.core;
        let trust = core.trust.borrow().clone();
        token::accept(answer, identity, audience, &trust, core.caller.clock.now())
    }

    /// A certificate for a key that is made here, for somebody beside this process.
    pub async fn svid_for(
        &self,
        id: &SpiffeId,
        facts: &Facts,
        deadline: Deadline,
    ) -> Result<Arc<Svid>, CallError> {
        let key = NewKey::generate()?;
        let answer = self.issue_for(key.csr_der(id)?, facts, deadline).await?;
        let now = self.line.core.caller.clock.now();
        Ok(accept(answer, &key, id, now)?.svid)
    }

    /// By which anybody is recognised, and who is not any more, as it was last heard.
    pub fn trust(&self) -> watch::Receiver<Trust> {
        self.line.core.trust.subscribe()
    }

    /// Changes when what processes of this node may be may have changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }
}

impl Line {
    /// A connection that was kept may have ended without anybody having noticed: then it is asked once more.
    async fn ask<T, F>(&self, deadline: Deadline, call: impl Fn(Nodes) -> F) -> Result<T, CallError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        loop {
            let (kept, made) = self.connection(deadline).await?;
            let nodes = NodesClient::new(kept.connection.channel.clone())
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE);
            let answer = bounded(deadline, call(nodes)).await;
            let answer = self.core.caller.heard(&kept.connection, answer);
            match &answer {
                Err(CallError::Broken(_)) => {
                    self.forget(&kept.serial).await;
                    if made == Made::Before {
                        continue;
                    }
                }
                // Another replica may know better.
                Err(error) if error.code().is_passing() => self.forget(&kept.serial).await,
                Ok(_) | Err(_) => {}
            }
            return answer;
        }
    }

    /// With the certificate of this moment. Whoever asks meanwhile waits for the same one.
    async fn connection(&self, deadline: Deadline) -> Result<(Kept, Made), CallError> {
        let kept = deadline.bound(self.kept.lock()).await;
        let mut kept = kept.map_err(|_| CallError::Timeout)?;
        let (svid, trust) = (
            self.core.svid.borrow().clone(),
            self.core.trust.borrow().clone(),
        );
        if let Some(kept) = kept.as_ref().filter(|it| it.serial == *svid.serial()) {
            return Ok((kept.clone(), Made::Before));
        }
        let caller = &self.core.caller;
        let connection = caller
            .connect(svid.id(), Some(&svid), &trust, deadline)
            .await?;
        let new = Kept {
            serial: svid.serial().clone(),
            connection,
        };
        Ok((kept.insert(new).clone(), Made::Now))
    }

    async fn forget(&self, serial: &Serial) {
        let mut kept = self.kept.lock().await;
        if kept.as_ref().is_some_and(|it| it.serial == *serial) {
            *kept = None;
        }
    }
}
