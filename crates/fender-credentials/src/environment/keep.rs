//! Keeps the environment of a supervised application right, for each of its starts.
//!
//! An environment cannot change while its process lives: a new value is what the next start gets. Whether there is a next
//! start because of it is what the document's `notify` says: whoever it names is told once the environment has the value.
//!
//! An outage changes nothing. A value that is withdrawn leaves the running application what it has, and there is no other
//! start before it is back. A value that fits no environment is as one that does not come. Documents whose variables cannot
//! be set together leave those before in force.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Arc;

use fender_config::ObjectName;
use fender_config::snapshot::{CredentialSource, CredentialSpec, Delivery, Snapshot};
use fender_identity::Secret;
use fender_providers::{Fetched, State};
use fender_runtime::drain::Drain;
use futures_util::future::select_all;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{AppEnvironment, EnvironmentError, Inherit, build, check_names, value};
use crate::engine::age::Age;
use crate::engine::ledger::Ledger;
use crate::engine::{Holding, Holdings};
use crate::mask::{Held, Masks};
use crate::notify::Notifier;
use crate::sources::{Gathered, Sources};

/// What it works with.
pub struct Keep {
    pub sources: Sources,
    /// Who tells of changes.
    pub notifier: Notifier,
    /// What the application inherits beside its credentials.
    pub inherited: Vec<(OsString, OsString)>,
    /// What is hidden in what it writes, if anything is: values are, before it can get them.
    pub masks: Option<Masks>,
}

/// What is kept.
#[derive(Debug)]
pub struct Kept {
    /// The whole environment; nothing while a credential of it is withdrawn.
    pub environment: watch::Receiver<Option<Arc<AppEnvironment>>>,
    /// What is in it of each credential.
    pub holdings: watch::Receiver<Holdings>,
}

/// The credentials of a Snapshot that are put into the environment.
pub fn for_environment(snapshot: &Snapshot) -> Vec<CredentialSpec> {
    let specs = snapshot.credentials.iter();
    let specs = specs.filter(|spec| variables(spec).next().is_some());
    specs.cloned().collect()
}

/// Makes the environment of what was gathered for the present Snapshot, or says why it cannot be made, and keeps following until
/// `drain` stops.
pub fn keep(
    gathered: Vec<Gathered>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    settings: Keep,
    drain: &Drain,
) -> Result<Kept, EnvironmentError> {
    let (publish, environment) = watch::channel(None);
    let (holdings, held) = watch::channel(Holdings::new());
    let mut keeper = Keeper {
        settings,
        entries: BTreeMap::new(),
        publish,
        holdings,
        drain: drain.clone(),
    };
    for Gathered {
        spec,
        fetched,
        states,
    } in gathered
    {
        let ledger = Ledger::new(spec.name.clone(), keeper.holdings.clone());
        let state = states.borrow().clone();
        let generation = fetched.generation.clone();
        let mut entry = Entry {
            ledger,
            states: Some(states),
            value: Some(fetched),
            held: None,
            age: Age::of(spec.max_stale),
            spec,
        };
        match state {
            State::Stale { error, since, .. } => {
                entry.age.not_newest_since(since);
                entry.fail(error.to_string());
            }
            // The run begins with what has changed since.
            State::Pending | State::Current(_) | State::Withdrawn(_) => {
                entry.ledger.enter(Holding::Delivered(generation), None);
            }
        }
        keeper.entries.insert(entry.spec.name.clone(), entry);
    }
    let values = keeper.entries.iter();
    let values = values.filter_map(|(name, entry)| Some((name, &entry.value.as_ref()?.value)));
    let hidden = keeper.settings.hide(values)?;
    for (entry, held) in keeper.entries.values_mut().zip(hidden) {
        entry.held = Some(held);
    }
    let made = keeper.build()?;
    keeper.publish.send_replace(Some(Arc::new(made)));
    keeper.tell();
    drain.spawn(keeper.run(snapshots));
    Ok(Kept {
        environment,
        holdings: held,
    })
}

struct Keeper {
    settings: Keep,
    entries: BTreeMap<ObjectName, Entry>,
    publish: watch::Sender<Option<Arc<AppEnvironment>>>,
    holdings: watch::Sender<Holdings>,
    drain: Drain,
}

struct Entry {
    spec: CredentialSpec,
    /// What is known of it; nothing when the feed ended or may not be followed.
    states: Option<watch::Receiver<State>>,
    /// What the next start gets.
    value: Option<Fetched>,
    /// Has it hidden.
    held: Option<Held>,
    age: Age,
    ledger: Ledger,
}

enum Event {
    Stop,
    Documents,
    Known(ObjectName),
    /// Nothing more is said of it.
    Silent(ObjectName),
    /// What is in the environment has become older than its document allows.
    TooOld(ObjectName),
}

impl Keeper {
    async fn run(mut self, mut snapshots: watch::Receiver<Arc<Snapshot>>) {
        loop {
            match self.next(&mut snapshots).await {
                Event::Stop => return,
                Event::Documents => {
                    let snapshot = snapshots.borrow_and_update().clone();
                    self.adopt(&snapshot).await;
                }
                Event::Known(name) => self.settle(&name),
                Event::Silent(name) => {
                    if let Some(entry) = self.entries.get_mut(&name) {
                        entry.states = None;
                    }
                }
                Event::TooOld(name) => {
                    if let Some(entry) = self.entries.get_mut(&name) {
                        entry.age.say(&name);
                    }
                }
            }
        }
    }

    async fn next(&mut self, snapshots: &mut watch::Receiver<Arc<Snapshot>>) -> Event {
        let due = self.entries.iter().filter_map(|(name, entry)| {
            let due = entry.age.due().filter(|_| entry.value.is_some())?;
            Some((due, name.clone()))
        });
        let due = due.min();
        let known = self.entries.iter_mut().filter_map(|(name, entry)| {
            let states = entry.states.as_mut()?;
            Some(Box::pin(async move {
                match states.changed().await {
                    Ok(()) => Event::Known(name.clone()),
                    Err(_) => Event::Silent(name.clone()),
                }
            }))
        });
        let known: Vec<_> = known.collect();
        let known = async {
            match known.is_empty() {
                true => std::future::pending().await,
                false => select_all(known).await.0,
            }
        };
        tokio::select! {
            biased;
            () = self.drain.stopping() => Event::Stop,
            // A feed that ended is stale, not empty.
            Ok(()) = snapshots.changed() => Event::Documents,
            event = known => event,
            event = too_old(due) => event,
        }
    }

    /// Follows changed documents.
    async fn adopt(&mut self, snapshot: &Snapshot) {
        let specs = for_environment(snapshot);
        if let Err(error) = check_names(specs.iter().flat_map(variables)) {
            tracing::error!(%error, "the environment of the application stays as it was: the documents are not followed");
            return;
        }
        // Those whose documents stay in force go on being kept.
        let sources = &self.settings.sources;
        sources.keep_only(&snapshot.credentials, &self.drain).await;
        let dropped = |name: &ObjectName| !specs.iter().any(|spec| spec.name == *name);
        for (name, entry) in self.entries.extract_if(.., |name, _| dropped(name)) {
            sources.unfollow(&name);
            self.settings.notifier.dropped(&name);
            entry.ledger.close();
        }
        for spec in specs {
            let name = spec.name.clone();
            let known = self.entries.get(&name);
            if known.is_some_and(|known| known.spec == spec) {
                continue;
            }
            // What a control plane has it from does not travel: it may be another source each time.
            let direct = matches!(spec.source, CredentialSource::Direct(_));
            // Whoever follows it knows how old a value may be.
            let same = known.is_some_and(|known| {
                let before = &known.spec;
                direct && before.source == spec.source && before.max_stale == spec.max_stale
            });
            let entry = self.entries.entry(name.clone()).or_insert_with(|| Entry {
                spec: spec.clone(),
                states: None,
                value: None,
                held: None,
                age: Age::of(spec.max_stale),
                ledger: Ledger::new(name, self.holdings.clone()),
            });
            entry.age.allow(spec.max_stale);
            entry.spec = spec;
            if same && entry.states.is_some() {
                continue;
            }
            match self.settings.sources.follow(&entry.spec, &self.drain) {
                Ok(mut states) => {
                    states.mark_changed();
                    entry.states = Some(states);
                    if entry.value.is_none() {
                        entry.ledger.enter(Holding::Waiting, None);
                    }
                }
                Err(error) => {
                    entry.states = None;
                    entry.fail(format!("source {error}"));
                }
            }
        }
        self.publish();
    }

    /// Takes what is known of one credential.
    fn settle(&mut self, name: &ObjectName) {
        let Some(entry) = self.entries.get_mut(name) else {
            return;
        };
        let Some(states) = &mut entry.states else {
            return;
        };
        let state = states.borrow_and_update().clone();
        let (fetched, stale) = match state {
            State::Pending => return,
            State::Current(fetched) => (fetched, None),
            State::Stale {
                last: Some(fetched),
                error,
                since,
            } => {
                entry.age.not_newest_since(since);
                (fetched, Some(error))
            }
            State::Stale {
                last: None, error, ..
            } => return entry.fail(error.to_string()),
            State::Withdrawn(error) => {
                tracing::warn!(credential = %name, %error, "credential withdrawn: the application keeps what it was started with, and is not started again without it");
                (entry.value, entry.held) = (None, None);
                entry.age.forget();
                let why = error.to_string();
                entry.ledger.enter(Holding::Withdrawn { why }, None);
                self.settings.notifier.withdrawn(name);
                return self.publish();
            }
        };
        let known = entry.value.as_ref().map(|known| &known.generation);
        let news = known != Some(&fetched.generation);
        // Who is followed anew may give the same bytes another name.
        let same = |known: &Fetched| known.value.ct_eq(&fetched.value);
        let is_other = !entry.value.as_ref().is_some_and(same);
        if news {
            let hidden = self.settings.hide([(name, &fetched.value)]);
            match hidden.and_then(|held| fits(&entry.spec, &fetched.value).map(|()| held)) {
                Ok(mut held) => entry.held = held.pop(),
                Err(error) => return entry.fail(error.to_string()),
            }
            if is_other {
                tracing::info!(credential = %name, generation = %fetched.generation, "credential changed: the next start of the application gets it");
            }
            entry.value = Some(fetched.clone());
        }
        match stale {
            Some(error) => entry.fail(error.to_string()),
            None => {
                entry.age.is_newest(name, &fetched.generation, is_other);
                let holding = Holding::Delivered(fetched.generation);
                entry.ledger.enter(holding, None);
            }
        }
        if news {
            self.publish();
        }
    }

    /// What the next start gets. Nothing as long as something of it is not there.
    fn publish(&mut self) {
        let whole = self.entries.values().all(|entry| entry.value.is_some());
        let made = match whole {
            true => match self.build() {
                Ok(made) => Some(made),
                Err(error) => {
                    tracing::error!(%error, "the environment of the application stays as it was");
                    return;
                }
            },
            false => None,
        };
        self.publish.send_if_modified(|known| {
            // The same is not another: nobody has to be started again for it.
            if known.as_deref() == made.as_ref() {
                return false;
            }
            *known = made.map(Arc::new);
            true
        });
        if whole {
            self.tell();
        }
    }

    /// All of it is in the environment.
    fn tell(&self) {
        let notifier = &self.settings.notifier;
        for (name, entry) in &self.entries {
            if let Some(fetched) = &entry.value {
                let notify = &entry.spec.notify;
                notifier.delivered(name, &fetched.value, &fetched.generation, notify);
            }
        }
    }

    fn build(&self) -> Result<AppEnvironment, EnvironmentError> {
        let credentials = self.entries.values().flat_map(|entry| {
            let value = entry.value.as_ref();
            let value = value.into_iter().map(|fetched| &fetched.value);
            value.flat_map(|value| variables(&entry.spec).map(move |name| (name, value)))
        });
        let inherited = self.settings.inherited.iter().cloned();
        let variables = build(inherited, &Inherit::All, credentials)?;
        let held = self.entries.values().filter_map(|it| it.held.clone());
        Ok(AppEnvironment::holding(variables, held.collect()))
    }
}

impl Keep {
    /// What holds them, one for each, where anything is hidden.
    fn hide<'a>(
        &self,
        values: impl IntoIterator<Item = (&'a ObjectName, &'a Secret)>,
    ) -> Result<Vec<Held>, EnvironmentError> {
        let learnt = self.masks.as_ref().map(|masks| masks.learn(values));
        Ok(learnt.transpose()?.unwrap_or_default())
    }
}

impl Entry {
    /// Something is wrong; what there was stays. Said once for each thing that is.
    fn fail(&mut self, why: String) {
        let holding = match &self.value {
            Some(fetched) => Holding::Outdated {
                generation: fetched.generation.clone(),
                why: why.clone(),
                since: self.age.since(),
                too_old: self.age.too_old(),
            },
            None => Holding::Failed { why: why.clone() },
        };
        if self.ledger.enter(holding, None) {
            tracing::warn!(credential = %self.spec.name, %why, "credential cannot be refreshed");
        }
    }
}

async fn too_old(due: Option<(Instant, ObjectName)>) -> Event {
    match due {
        Some((moment, name)) => {
            tokio::time::sleep_until(moment).await;
            Event::TooOld(name)
        }
        None => std::future::pending().await,
    }
}

/// The variables that a document has a credential put into.
pub fn variables(spec: &CredentialSpec) -> impl Iterator<Item = &str> {
    spec.deliver.iter().filter_map(|delivery| match delivery {
        Delivery::Environment { variable } => Some(variable.as_str()),
        Delivery::File(..) | Delivery::Files(_) | Delivery::Socket(_) | Delivery::Url(_) => None,
    })
}

/// Whether every variable of a document can hold the value.
fn fits(spec: &CredentialSpec, secret: &Secret) -> Result<(), EnvironmentError> {
    variables(spec).try_for_each(|name| {
        let text = value(name, secret)?;
        drop(AppEnvironment::new(vec![(OsString::new(), text)]));
        Ok(())
    })
}

#[cfg(test)]
mod tests;
