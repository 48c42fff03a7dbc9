//! The client of a node's agent: an identity of its own, kept fresh, and questions about the processes of its host.

use std::sync::Arc;

use fender_identity::SpiffeId;
use fender_runtime::deadline::Deadline;

use super::call::{CallError, Caller, bounded};
use super::core::Core;
use super::evidence::Expected;
use super::{OpenError, SessionConfig, attest, renewal, renewed};
use crate::facts::Facts;
use crate::proto::control::v1 as proto;
use crate::proto::control::v1::nodes_client::NodesClient;
use crate::tls::MAX_MESSAGE;

/// An agent that may ask. Its certificate renews itself until the drain stops.
#[derive(Debug)]
pub struct AgentSession {
    core: Arc<Core>,
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
    Ok(AgentSession { core })
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
        let mut nodes = self.nodes(deadline).await?;
        let answer = bounded(deadline, nodes.entitle(proto::Facts::from(facts))).await?;
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
        let mut nodes = self.nodes(deadline).await?;
        let request = proto::IssueForRequest {
            csr,
            facts: Some(facts.into()),
        };
        bounded(deadline, nodes.issue_for(request)).await
    }

    /// With the certificate of this moment.
    async fn nodes(
        &self,
        deadline: Deadline,
    ) -> Result<NodesClient<tonic::transport::Channel>, CallError> {
        let (svid, trust) = (
            self.core.svid.borrow().clone(),
            self.core.trust.borrow().clone(),
        );
        let connection = self
            .core
            .caller
            .connect(svid.id(), Some(&svid), &trust, deadline)
            .await?;
        Ok(NodesClient::new(connection.channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE))
    }
}
