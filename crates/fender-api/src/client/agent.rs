//! The client of a node's agent: an identity of its own, kept fresh, and questions about the processes of its host.

use std::sync::Arc;
use std::time::Duration;

use fender_identity::{Secret, Serial, SpiffeId};
use fender_runtime::clock::UnixTime;
use fender_runtime::deadline::Deadline;
use tokio::sync::Mutex;
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::call::{CallError, Caller, bounded};
use super::core::Core;
use super::evidence::Expected;
use super::{OpenError, SessionConfig, SignedToken, attest, renewal, renewed, token};
use crate::facts::Facts;
use crate::proto::control::v1 as proto;
use crate::proto::control::v1::nodes_client::NodesClient;
use crate::tls::MAX_MESSAGE;

/// An agent that may ask. Its certificate renews itself until the drain stops.
#[derive(Debug)]
pub struct AgentSession {
    core: Arc<Core>,
    kept: Mutex<Option<Kept>>,
}

/// The connection all questions share: one handshake for as long as a certificate lives, and not one for each process that
/// asks.
#[derive(Clone, Debug)]
struct Kept {
    /// Of the certificate it was made with.
    serial: Serial,
    channel: Channel,
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
        url: config.url.clone(),
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
    );
    core.drain.spawn(renewal::run(core.clone()));
    Ok(AgentSession {
        core,
        kept: Mutex::default(),
    })
}

impl AgentSession {
    /// Who the agent is.
    pub fn id(&self) -> SpiffeId {
        self.core.svid.borrow().id().clone()
    }

    /// Who a process with these facts may be. Never nobody: that is an error.
    pub async fn entitle(
        &self,
        facts: &Facts,
        deadline: Deadline,
    ) -> Result<Vec<SpiffeId>, CallError> {
        let facts = proto::Facts::from(facts);
        let answer = self
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
        self.ask(deadline, |mut nodes| {
            let request = request.clone();
            async move { nodes.issue_for(request).await }
        })
        .await
    }

    /// A JWT-SVID of `identity` for an audience, if these facts prove the identity. Whoever hands it on knows by which keys
    /// it is verified, and not this session.
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
        let ask = self.ask(deadline, |mut nodes| {
            let request = request.clone();
            async move { nodes.sign_jwt_for(request).await }
        });
        let answer = ask.await?;
        let expires = u64::try_from(answer.expires_unix)
            .map_err(|_| CallError::Answer("a token that ended before 1970".to_owned()))?;
        Ok(SignedToken {
            token: Secret::from(answer.token),
            expires: UnixTime::since_unix_epoch(Duration::from_secs(expires)),
        })
    }

    /// A connection that was kept may have ended without anybody having noticed: then it is asked once more.
    async fn ask<T, F>(
        &self,
        deadline: Deadline,
        call: impl Fn(NodesClient<Channel>) -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        loop {
            let (kept, made) = self.connection(deadline).await?;
            let nodes = NodesClient::new(kept.channel.clone())
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE);
            let answer = bounded(deadline, call(nodes)).await;
            if matches!(answer, Err(CallError::Broken(_))) {
                self.forget(&kept.serial).await;
                if made == Made::Before {
                    continue;
                }
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
            channel: connection.channel,
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
