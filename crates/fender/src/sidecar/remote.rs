//! Secrets that the control plane fetches, as `fender-credentials` wants to see them.

use std::sync::Arc;

use fender_api::client::{CredentialState, Session};
use fender_config::ObjectName;
use fender_credentials::RemoteSecrets;
use fender_providers::{Confirmed, FetchError, Fetched, Followed, Generation, Standing, State};
use fender_runtime::clock::SharedClock;
use fender_runtime::drain::Drain;
use tokio::sync::watch;

/// The workload's own session as a source.
#[derive(Clone)]
pub(crate) struct ByControl {
    session: Arc<Session>,
    clock: SharedClock,
    drain: Drain,
}

impl ByControl {
    pub(crate) fn new(session: Arc<Session>, clock: SharedClock, drain: Drain) -> Self {
        Self {
            session,
            clock,
            drain,
        }
    }

    /// Of the newest, for as long as the control plane would say that there is another.
    fn confirmed(&self, heard: &CredentialState) -> Option<Confirmed> {
        match heard {
            CredentialState::Value {
                generation,
                outdated: None,
                lasting,
                ..
            } => Some(Confirmed {
                generation: Generation::named(generation.clone()),
                at: self.clock.since_1970(),
                standing: match lasting {
                    true => Standing::Told,
                    false => Standing::Lent,
                },
            }),
            CredentialState::Value { .. }
            | CredentialState::Pending
            | CredentialState::Withdrawn(_)
            | CredentialState::Unavailable(_) => None,
        }
    }
}

impl RemoteSecrets for ByControl {
    fn watch(&self, name: &ObjectName) -> watch::Receiver<State> {
        self.follow(name).states
    }

    fn follow(&self, name: &ObjectName) -> Followed {
        let mut heard = self.session.watch_credential(name);
        let first = heard.borrow_and_update().clone();
        let (know, confirmed) = watch::channel(self.confirmed(&first));
        let (publish, states) = watch::channel(translate(&State::Pending, &first));
        let control = self.clone();
        self.drain.spawn(async move {
            loop {
                tokio::select! {
                    () = publish.closed() => return,
                    changed = heard.changed() => if changed.is_err() { return },
                }
                let said = heard.borrow_and_update().clone();
                if let Some(confirmed) = control.confirmed(&said) {
                    know.send_replace(Some(confirmed));
                }
                let state = translate(&publish.borrow(), &said);
                publish.send_replace(state);
            }
        });
        Followed { states, confirmed }
    }
}

fn translate(known: &State, heard: &CredentialState) -> State {
    match heard {
        CredentialState::Pending => State::Pending,
        CredentialState::Value {
            value,
            generation,
            outdated,
            ..
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
                    since: None,
                },
            }
        }
        CredentialState::Withdrawn(why) => State::Withdrawn(FetchError::Missing(why.clone())),
        CredentialState::Unavailable(why) => State::Stale {
            last: known.value().cloned(),
            error: FetchError::Outage(why.clone()),
            since: None,
        },
    }
}
