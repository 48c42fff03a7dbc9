//! Tells applications that their credentials have changed.
//!
//! A document names who is told ([`Target`]). What was told is on record: for each target and credential, which value. Whatever is
//! delivered completely and is another value than the one on record has still to be told, so nothing is lost when the sidecar
//! ends in between, and nothing is told twice for the same bytes. The first value ever is on record at once: it is no change.
//!
//! Each target has a task of its own, so one that cannot be told delays no other. It waits for the time its documents ask
//! for after the first change, tells everything that changed meanwhile at once, and goes on trying with backoff
//! until it is acknowledged. One that this process can never tell is named in the log once, and is not tried again.
//!
//! The record holds no value and nothing a value could be computed from without the key that lies beside it, in a directory of the
//! sidecar's alone. Without a state directory there is none, and what was not told before the end never is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fender_config::ObjectName;
use fender_config::snapshot::{CredentialSpec, Notification, Target};
use fender_identity::Secret;
use fender_providers::Generation;
use fender_runtime::backoff::Backoff;
use fender_runtime::drain::Drain;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::Instant;

pub use record::Record;
pub use ways::{App, AppNotice, NoApp, Ways};

use record::Digest;

mod record;
mod ways;

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(5 * 60);

/// How a target is told.
pub trait Tell: Send + Sync + 'static {
    /// Tells it that these have changed. The texts of the error never hold a secret.
    fn tell<'a>(
        &'a self,
        target: &'a Target,
        changed: &'a [ObjectName],
    ) -> BoxFuture<'a, Result<(), NotTold>>;
}

/// Why somebody was not told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTold {
    /// It is tried again.
    #[error("{0}")]
    Later(String),
    /// Nobody can tell it from here, as long as this process lives.
    #[error("{0}")]
    Never(String),
}

impl From<String> for NotTold {
    fn from(why: String) -> Self {
        Self::Later(why)
    }
}

/// What became of a target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// How many times it acknowledged.
    pub acknowledged: u64,
    /// How many times it did not.
    pub failed: u64,
    /// Which credentials it has still to be told of.
    pub pending: Vec<ObjectName>,
    /// Why the last time failed, if it did.
    pub problem: Option<String>,
    /// Which generation of which credential it knows of, as far as this process knows.
    pub knows: BTreeMap<ObjectName, Known>,
}

/// What a target knows of one credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub generation: Generation,
    /// When it acknowledged; none if it was the first one there was, or the one on record before the start, so that there was
    /// nothing to tell.
    pub acknowledged: Option<Instant>,
}

/// What became of whom, since the start.
pub type Outcomes = BTreeMap<Target, Outcome>;

/// Tells whom documents name. Clones are the same one.
#[derive(Clone)]
pub struct Notifier(Arc<Inner>);

struct Inner {
    tell: Arc<dyn Tell>,
    record: Record,
    drain: Drain,
    targets: Mutex<BTreeMap<Target, watch::Sender<Wanted>>>,
    outcomes: watch::Sender<Outcomes>,
}

/// What a target should know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wanted {
    after: BTreeMap<ObjectName, Duration>,
    holds: BTreeMap<ObjectName, Latest>,
}

/// What is in every place.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Latest {
    digest: Digest,
    generation: Generation,
}

impl Wanted {
    fn after(&self) -> Duration {
        self.after.values().min().copied().unwrap_or_default()
    }
}

impl Notifier {
    /// Tells by `tell` what `record` does not have, until `drain` stops.
    pub fn new(tell: Arc<dyn Tell>, record: Record, drain: &Drain) -> Self {
        Self(Arc::new(Inner {
            tell,
            record,
            drain: drain.clone(),
            targets: Mutex::default(),
            outcomes: watch::channel(Outcomes::new()).0,
        }))
    }

    /// What becomes of whom, from now on.
    pub fn outcomes(&self) -> watch::Receiver<Outcomes> {
        self.0.outcomes.subscribe()
    }

    /// These are all the credentials there are: the record of others goes.
    pub(crate) fn retain(&self, specs: &[CredentialSpec]) {
        self.0.record.retain(|name, target| {
            let named = specs.iter().filter(|spec| spec.name == *name);
            let mut targets = named.flat_map(|spec| &spec.notify);
            targets.any(|notification| self.0.record.key(&notification.target) == target)
        });
    }

    /// `value` is in every place that the document of `name` says, and `notify` is whom it names.
    pub(crate) fn delivered(
        &self,
        name: &ObjectName,
        value: &Secret,
        generation: &Generation,
        notify: &[Notification],
    ) {
        let latest = Latest {
            digest: self.0.record.digest(value),
            generation: generation.clone(),
        };
        let mut targets = self.0.targets();
        for (target, wanted) in targets.iter() {
            if !notify.iter().any(|one| one.target == *target) {
                self.0.record.forget(target, name);
                self.0.drop_from(target, wanted, name);
            }
        }
        targets.retain(|_, wanted| !wanted.borrow().holds.is_empty());
        for Notification { target, after } in notify {
            self.0.record.begin(target, name, &latest.digest);
            let wanted = targets.entry(target.clone()).or_insert_with(|| {
                let (wanted, follow) = watch::channel(Wanted::default());
                let inner = Arc::clone(&self.0);
                let target = target.clone();
                self.0.drain.spawn(async move {
                    let drain = inner.drain.clone();
                    tokio::select! {
                        biased;
                        () = drain.stopping() => {}
                        () = inner.follow(target, follow) => {}
                    }
                });
                wanted
            });
            wanted.send_if_modified(|wanted| {
                let before = wanted.clone();
                wanted.after.insert(name.clone(), *after);
                wanted.holds.insert(name.clone(), latest.clone());
                *wanted != before
            });
            self.0.enter(target, &wanted.borrow());
        }
    }

    /// The value is gone by the word of its source: there is nothing to tell, until there is another.
    pub(crate) fn withdrawn(&self, name: &ObjectName) {
        for (target, wanted) in self.0.targets().iter() {
            self.0.drop_from(target, wanted, name);
        }
    }

    /// Its document is gone.
    pub(crate) fn dropped(&self, name: &ObjectName) {
        let mut targets = self.0.targets();
        for (target, wanted) in targets.iter() {
            self.0.record.forget(target, name);
            self.0.drop_from(target, wanted, name);
        }
        // Nobody names them any more: their tasks end.
        targets.retain(|_, wanted| !wanted.borrow().holds.is_empty());
    }
}

impl Inner {
    fn targets(&self) -> std::sync::MutexGuard<'_, BTreeMap<Target, watch::Sender<Wanted>>> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drop_from(&self, target: &Target, wanted: &watch::Sender<Wanted>, name: &ObjectName) {
        wanted.send_if_modified(|wanted| {
            wanted.after.remove(name);
            wanted.holds.remove(name).is_some()
        });
        self.enter(target, &wanted.borrow());
    }

    /// What a target has still to be told of.
    fn due(&self, target: &Target, wanted: &Wanted) -> BTreeMap<ObjectName, Latest> {
        let holds = wanted.holds.iter();
        let due = holds.filter(|(name, latest)| !self.record.has(target, name, &latest.digest));
        due.map(|(name, latest)| (name.clone(), latest.clone()))
            .collect()
    }

    /// One target, for as long as there is one.
    async fn follow(&self, target: Target, mut wanted: watch::Receiver<Wanted>) {
        let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        loop {
            let due = |wanted: &Wanted| !self.due(&target, wanted).is_empty();
            let after = match wanted.wait_for(due).await {
                Ok(wanted) => wanted.after(),
                Err(_) => return,
            };
            tokio::time::sleep(after).await;
            loop {
                let due = self.due(&target, &wanted.borrow_and_update());
                if due.is_empty() {
                    break;
                }
                let changed: Vec<_> = due.keys().cloned().collect();
                match self.tell.tell(&target, &changed).await {
                    Ok(()) => {
                        let digests = due.iter();
                        let digests = digests.map(|(name, it)| (name.clone(), it.digest.clone()));
                        self.record.acknowledge(&target, digests.collect());
                        backoff.reset();
                        let changed: Vec<_> = changed.iter().map(ToString::to_string).collect();
                        tracing::info!(%target, changed = changed.join(", "), "told of changed credentials");
                        self.note(&target, &wanted.borrow(), Ok(due));
                        break;
                    }
                    Err(NotTold::Never(why)) => {
                        tracing::warn!(%target, %why, "is not told of changed credentials, and it is not tried again");
                        self.note(&target, &wanted.borrow(), Err(why));
                        // What it should know goes on being on record, and its task ends when nobody names it any more.
                        while wanted.changed().await.is_ok() {}
                        return;
                    }
                    Err(NotTold::Later(why)) => {
                        tracing::warn!(%target, %why, "cannot be told of changed credentials, trying again");
                        self.note(&target, &wanted.borrow(), Err(why));
                        tokio::time::sleep(backoff.next()).await;
                    }
                }
            }
        }
    }

    /// What is pending.
    fn enter(&self, target: &Target, wanted: &Wanted) {
        let pending: Vec<_> = self.due(target, wanted).into_keys().collect();
        self.outcomes.send_if_modified(|outcomes| {
            if wanted.holds.is_empty() {
                return outcomes.remove(target).is_some();
            }
            let outcome = outcomes.entry(target.clone()).or_default();
            let mut news = outcome.pending != pending;
            let before = outcome.knows.len();
            outcome
                .knows
                .retain(|name, _| wanted.holds.contains_key(name));
            news |= outcome.knows.len() != before;
            for (name, latest) in &wanted.holds {
                if pending.contains(name) {
                    continue;
                }
                // The same bytes may have another name by now.
                let known = outcome.knows.entry(name.clone()).or_insert_with(|| Known {
                    generation: latest.generation.clone(),
                    acknowledged: None,
                });
                if known.generation != latest.generation {
                    known.generation = latest.generation.clone();
                    news = true;
                }
            }
            outcome.pending = pending;
            news |= outcome.knows.len() != before;
            news
        });
    }

    /// What came of telling.
    fn note(
        &self,
        target: &Target,
        wanted: &Wanted,
        told: Result<BTreeMap<ObjectName, Latest>, String>,
    ) {
        let pending: Vec<_> = self.due(target, wanted).into_keys().collect();
        self.outcomes.send_modify(|outcomes| {
            // It may be named by nobody any more.
            let Some(outcome) = outcomes.get_mut(target) else {
                return;
            };
            match told {
                Ok(told) => {
                    outcome.acknowledged += 1;
                    outcome.problem = None;
                    let moment = Some(Instant::now());
                    for (name, Latest { generation, .. }) in told {
                        if wanted.holds.contains_key(&name) {
                            let acknowledged = moment;
                            outcome.knows.insert(
                                name,
                                Known {
                                    generation,
                                    acknowledged,
                                },
                            );
                        }
                    }
                }
                Err(why) => {
                    outcome.failed += 1;
                    outcome.problem = Some(why);
                }
            }
            outcome.pending = pending;
        });
    }
}

#[cfg(test)]
mod tests;
