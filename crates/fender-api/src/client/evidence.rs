//! What somebody proves themselves with who has no certificate, or none that is taken any more.
//!
//! Evidence that can be shown again (a token that was made anew counts) is shown again by itself, at the start and while a
//! session runs: nobody has to start a sidecar anew because its certificate has been refused.

use fender_identity::csr::NewKey;
use fender_identity::tls::CaPin;
use fender_identity::{SpiffeId, WorkloadName};
use fender_runtime::deadline::Deadline;

use super::OpenError;
use super::call::{CallError, Caller, Identity};
use super::state::StateDir;
use crate::proto::control::v1 as proto;
use crate::proto::control::v1::attest_request;
use crate::token::TokenFile;

/// How a workload proves who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// A join token. It works once, and is deleted then.
    Token(TokenFile),
}

/// Who it must be that the evidence speaks for.
#[derive(Clone, Debug)]
pub(crate) enum Expected {
    Anybody,
    /// As the operator says.
    Workload(WorkloadName),
    /// Whoever it was before.
    Exactly(SpiffeId),
}

/// Evidence on its way to the control plane.
pub(crate) struct Showing {
    pub(crate) identity: SpiffeId,
    /// The roots to expect there: at first contact there is no bundle.
    pub(crate) pins: Vec<CaPin>,
    pub(crate) evidence: attest_request::Evidence,
}

/// Evidence about to be shown, with the key it is to be shown for.
pub(crate) struct Attempt<'a> {
    evidence: &'a Evidence,
    showing: Showing,
    key: NewKey,
}

impl Evidence {
    /// Whether there is something to show.
    pub(crate) fn at_hand(&self) -> bool {
        match self {
            Self::Token(file) => file.exists(),
        }
    }

    /// Makes ready to become somebody. Nothing is shown yet.
    pub(crate) fn prepare(
        &self,
        expected: &Expected,
        state: Option<&StateDir>,
    ) -> Result<Attempt<'_>, OpenError> {
        let showing = self.show()?;
        expected.admit(&showing.identity)?;
        Ok(Attempt {
            evidence: self,
            showing,
            key: pending_key(state)?,
        })
    }

    fn show(&self) -> Result<Showing, OpenError> {
        match self {
            Self::Token(file) => {
                let token = file.read()?;
                let secret = token.secret().expose().to_vec();
                Ok(Showing {
                    identity: token.identity().clone(),
                    pins: token.pins().to_vec(),
                    evidence: attest_request::Evidence::JoinToken(proto::JoinTokenEvidence {
                        secret,
                    }),
                })
            }
        }
    }

    fn used(&self) {
        match self {
            Self::Token(file) => file.consume(),
        }
    }
}

impl Attempt<'_> {
    /// May be made again: the key stays the same.
    pub(crate) async fn make(
        &self,
        caller: &Caller,
        deadline: Deadline,
    ) -> Result<Identity, CallError> {
        caller.attest(&self.showing, &self.key, deadline).await
    }

    /// What came of it is kept: the evidence has served.
    pub(crate) fn done(self, state: Option<&StateDir>) -> Result<(), OpenError> {
        if let Some(state) = state {
            state.forget_pending_key()?;
        }
        self.evidence.used();
        Ok(())
    }
}

/// The key is kept before it is shown: asking again with the same key is no second use of a token.
fn pending_key(state: Option<&StateDir>) -> Result<NewKey, OpenError> {
    let generate = || NewKey::generate().map_err(CallError::from);
    let Some(state) = state else {
        return Ok(generate()?);
    };
    if let Some(key) = state.pending_key()? {
        return Ok(key);
    }
    let key = generate()?;
    state.save_pending_key(&key)?;
    Ok(key)
}

impl Expected {
    pub(crate) fn admit(&self, found: &SpiffeId) -> Result<(), OpenError> {
        let expected = match self {
            Self::Anybody => return Ok(()),
            Self::Workload(workload) if found.workload().as_ref() == Some(workload) => {
                return Ok(());
            }
            Self::Exactly(id) if id == found => return Ok(()),
            Self::Workload(workload) => workload.to_string(),
            Self::Exactly(id) => id.to_string(),
        };
        Err(OpenError::WrongIdentity {
            expected,
            found: found.to_string(),
        })
    }
}

impl From<Option<&WorkloadName>> for Expected {
    fn from(workload: Option<&WorkloadName>) -> Self {
        workload.map_or(Self::Anybody, |workload| Self::Workload(workload.clone()))
    }
}
