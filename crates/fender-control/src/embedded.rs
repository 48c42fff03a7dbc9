//! What an agent in this very process is given: a join token for its node, made at its word.
//!
//! Whoever starts the control plane is its operator, and says which node this machine is. The token is one like every other:
//! for a node that documents describe and let join by token, recorded, spent once, and gone after a minute.
//!
//! For a node that was revoked none is made. The operator's word is that of whoever can start this program; who lets a
//! revoked node in again is an administrator, with a token of their own.

use std::time::Duration;

use fender_api::token::JoinToken;
use fender_config::Attestor;
use fender_identity::{NodeName, Secret, SpiffeId};

use crate::ca::sha256;
use crate::start::Running;
use crate::store::audit::{Action, Entry, Outcome};
use crate::store::certificates::{self, Standing};
use crate::store::{StoreError, tokens};
use crate::time::later;

const TTL: Duration = Duration::from_secs(60);

impl Running {
    /// Whether the agent of a node was revoked and nobody has let it in since.
    pub async fn is_revoked(&self, node: &NodeName) -> Result<bool, NodeTokenError> {
        let control = self.control.upgrade().ok_or(NodeTokenError::Stopped)?;
        let identity = SpiffeId::for_agent(&self.trust_domain, node);
        let newest = certificates::newest_standing(&control.store, &identity).await?;
        Ok(newest == Some(Standing::Revoked))
    }

    /// A join token for the agent of a node.
    pub async fn node_token(&self, node: &NodeName) -> Result<JoinToken, NodeTokenError> {
        let control = self.control.upgrade().ok_or(NodeTokenError::Stopped)?;
        if self.is_revoked(node).await? {
            return Err(NodeTokenError::Revoked(node.clone()));
        }
        let in_force = control.library.in_force();
        let document = in_force.documents.nodes.get(node);
        let document = document.ok_or_else(|| NodeTokenError::Unknown(node.clone()))?;
        if !document.attest.contains(&Attestor::Token) {
            return Err(NodeTokenError::NotByToken(node.clone()));
        }
        let identity = SpiffeId::for_agent(&self.trust_domain, node);
        let mut secret = vec![0; 32];
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| NodeTokenError::NoRandomness)?;
        let by = SpiffeId::control(&self.trust_domain);
        let now = control.clock.now();
        let create = tokens::Create {
            secret_sha256: sha256(&secret),
            identity: identity.clone(),
            by: by.clone(),
            through: None,
            at: now,
            expires: later(now, TTL),
            entry: Entry {
                time: now,
                actor: by,
                action: Action::CreateToken,
                subject: identity.to_string(),
                outcome: Outcome::Done,
                detail: "for the agent in this process".to_owned(),
            },
        };
        control.store.write(create).await?;
        // A revocation takes back the tokens that it finds. One that came before this token is seen now.
        if self.is_revoked(node).await? {
            return Err(NodeTokenError::Revoked(node.clone()));
        }
        let pins = control.authority.pins();
        JoinToken::new(identity, pins, Secret::new(secret))
            .map_err(|error| NodeTokenError::Token(error.to_string()))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum NodeTokenError {
    #[error("no document describes the node `{0}`: write a `Node` of that name")]
    Unknown(NodeName),
    #[error("the node `{0}` does not list `token` under `attest`")]
    NotByToken(NodeName),
    #[error("the node `{0}` was revoked: an administrator lets it in again, with a token")]
    Revoked(NodeName),
    #[error("the control plane is stopping")]
    Stopped,
    #[error("no randomness")]
    NoRandomness,
    #[error("a join token cannot be made: {0}")]
    Token(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}
