//! Credentials that the control plane fetches: their value comes over the workload's own connection.
//!
//! An outage never takes a value away; only the control plane's word does. Values are not stored.

use std::sync::Arc;
use std::time::Duration;

use fender_config::ObjectName;
use fender_identity::Secret;
use fender_runtime::backoff::Backoff;
use fender_runtime::deadline::Deadline;
use tokio::sync::watch;
use tonic::transport::Channel;

use super::call::{CALL, CallError, bounded, error_chain};
use super::core::Core;
use crate::code::Code;
use crate::proto::control::v1 as proto;
use crate::proto::control::v1::distribution_client::DistributionClient;
use crate::tls::MAX_MESSAGE;

/// The largest value that is taken.
const MAX_VALUE: usize = 1024 * 1024;

/// What is known of a credential.
#[derive(Clone, Debug)]
pub enum CredentialState {
    /// Nothing was heard yet.
    Pending,
    /// This is it.
    Value {
        /// The secret.
        value: Secret,
        /// Changes whenever the value does.
        generation: String,
        /// Why it may not be the newest, while its source or the control plane cannot be asked.
        outdated: Option<String>,
        /// Whether it is good by itself while nobody can be asked.
        lasting: bool,
    },
    /// It is gone, or not this workload's to have: withdraw it.
    Withdrawn(String),
    /// There was never a value and there is none to be had just now.
    Unavailable(String),
}

pub(crate) fn watch(core: &Arc<Core>, name: ObjectName) -> watch::Receiver<CredentialState> {
    let (state, receiver) = watch::channel(CredentialState::Pending);
    let core_here = core.clone();
    core.drain.spawn(async move {
        let work = Worker {
            name,
            state: &state,
        }
        .run(&core_here);
        tokio::select! {
            biased;
            () = core_here.drain.stopping() => {}
            () = state.closed() => {}
            () = work => {}
        }
    });
    receiver
}

pub(super) struct Worker<'a> {
    pub(super) name: ObjectName,
    pub(super) state: &'a watch::Sender<CredentialState>,
}

impl Worker<'_> {
    async fn run(self, core: &Core) {
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(15));
        let mut channels = core.channel.subscribe();
        loop {
            let current = channels.borrow_and_update().clone();
            let Some(channel) = current else {
                self.unavailable("the control plane is lost".to_owned());
                match channels.changed().await {
                    Ok(()) => continue,
                    Err(_) => return,
                }
            };
            // It moves with the connection: the old one ends with the certificate it was made with.
            let error = tokio::select! {
                error = self.follow(channel, &mut backoff) => error,
                moved = channels.changed() => match moved {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            };
            self.failed(&error);
            tokio::select! {
                moved = channels.changed() => if moved.is_err() { return },
                () = tokio::time::sleep(backoff.next()) => {}
            }
        }
    }

    /// One stream from its first to its last value.
    async fn follow(&self, channel: Channel, backoff: &mut Backoff) -> CallError {
        let mut client = DistributionClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let request = proto::CredentialRequest {
            name: self.name.to_string(),
        };
        let opened = bounded(Deadline::after(CALL), client.watch_credential(request)).await;
        let mut values = match opened {
            Ok(values) => values,
            Err(error) => return error,
        };
        loop {
            match values.message().await {
                Ok(Some(message)) => {
                    backoff.reset();
                    self.take(message);
                }
                Ok(None) => {
                    return CallError::Answered {
                        code: Code::Unavailable,
                        reason: "the stream has ended".to_owned(),
                    };
                }
                Err(status) => return status.into(),
            }
        }
    }

    fn take(&self, message: proto::CredentialValue) {
        use proto::credential_value::State;
        match message.state {
            Some(State::Value(secret)) if secret.value.len() <= MAX_VALUE => {
                let next = CredentialState::Value {
                    value: Secret::new(secret.value),
                    generation: secret.generation,
                    outdated: (!secret.outdated.is_empty()).then_some(secret.outdated),
                    lasting: secret.lasting,
                };
                self.state.send_replace(next);
            }
            Some(State::Value(_)) => self.unavailable("the value is larger than 1 MiB".to_owned()),
            Some(State::Withdrawn(why)) => {
                self.state.send_replace(CredentialState::Withdrawn(why));
            }
            Some(State::Unavailable(why)) => self.unavailable(why),
            None => self.unavailable("the answer is not understood".to_owned()),
        }
    }

    /// Only the control plane's word that it is gone or not ours takes a value away.
    pub(super) fn failed(&self, error: &CallError) {
        let because = error_chain(error);
        match error.code() {
            Code::NotFound | Code::Denied | Code::IdentityUnknown | Code::Revoked => {
                tracing::warn!(credential = %self.name, error = %because, "credential refused");
                self.state.send_replace(CredentialState::Withdrawn(because));
            }
            Code::TokenSpent
            | Code::TokenExpired
            | Code::TokenUnknown
            | Code::TokenWrongIdentity
            | Code::EvidenceRefused
            | Code::NotAttestable
            | Code::IdentityReserved
            | Code::RenewalExpired
            | Code::ProofInvalid
            | Code::NotAuthenticated
            | Code::VersionRefused
            | Code::RevisionChanged
            | Code::CutsOffAdmin
            | Code::DeletesInUse
            | Code::CsrInvalid
            | Code::BadRequest
            | Code::Busy
            | Code::Unavailable
            | Code::Internal
            | Code::Timeout
            | Code::CaPinMismatch
            | Code::ControlNotVerified
            | Code::AnswerInvalid => self.unavailable(because),
        }
    }

    fn unavailable(&self, why: String) {
        self.state.send_if_modified(|state| match state {
            CredentialState::Withdrawn(_) => false,
            CredentialState::Value { outdated, .. } => {
                let news = outdated.as_ref() != Some(&why);
                *outdated = Some(why);
                news
            }
            CredentialState::Pending | CredentialState::Unavailable(_) => {
                *state = CredentialState::Unavailable(why);
                true
            }
        });
    }
}
