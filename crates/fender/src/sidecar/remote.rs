//! Secrets that the control plane fetches, as `fender-credentials` wants to see them.

use std::sync::Arc;

use fender_api::client::{CredentialState, Session};
use fender_config::ObjectName;
use fender_credentials::RemoteSecrets;
use fender_providers::{FetchError, Fetched, Generation, State};
use fender_runtime::drain::Drain;
use tokio::sync::watch;

/// The workload's own session as a source.
pub(crate) struct ByControl {
    session: Arc<Session>,
    drain: Drain,
}

impl ByControl {
    pub(crate) fn new(session: Arc<Session>, drain: Drain) -> Self {
        Self { session, drain }
    }
}

impl RemoteSecrets for ByControl {
    fn watch(&self, name: &ObjectName) -> watch::Receiver<State> {
        let mut heard = self.session.watch_credential(name);
        let (publish, states) =
            watch::channel(translate(&State::Pending, &heard.borrow_and_update()));
        self.drain.spawn(async move {
            loop {
                tokio::select! {
                    () = publish.closed() => return,
                    changed = heard.changed() => if changed.is_err() { return },
                }
                let state = translate(&publish.borrow(), &heard.borrow_and_update());
                publish.send_replace(state);
            }
        });
        states
    }
}

fn translate(known: &State, heard: &CredentialState) -> State {
    match heard {
        CredentialState::Pending => State::Pending,
        CredentialState::Value {
            value,
            generation,
            outdated,
        } => {
            let fetched = Fetched {
                value: value.clone(),
                generation: Generation::named(generation.clone()),
            };
            match outdated {
                None => State::Current(fetched),
                Some(why) => State::Stale {
                    last: Some(fetched),
                    error: FetchError::Outage(why.clone()),
                },
            }
        }
        CredentialState::Withdrawn(why) => State::Withdrawn(FetchError::Missing(why.clone())),
        CredentialState::Unavailable(why) => State::Stale {
            last: known.value().cloned(),
            error: FetchError::Outage(why.clone()),
        },
    }
}
