//! What this sidecar holds of its credentials and knows of their use, for its own status and for the control plane.
//!
//! It is put together from what was delivered, what was acknowledged and what was handed over. No value passes through here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fender_api::client::Report;
use fender_api::usage::{State, Usage, Use, UseKind};
use fender_config::ObjectName;
use fender_config::snapshot::{Delivery, Snapshot};
use fender_credentials::engine::{Held, Holding, Holdings};
use fender_credentials::handover::{Consumer, Takings};
use fender_credentials::notify::Outcomes;
use fender_providers::Generation;
use fender_runtime::clock::{SharedClock, UnixTime};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Between one round of reports and the next: what changes meanwhile is told once.
const ROUND: Duration = Duration::from_secs(1);
/// Between two reports: fewer a second than a control plane takes for good.
const PACE: Duration = Duration::from_millis(15);

/// Where all of it is known from.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) snapshot: watch::Receiver<Arc<Snapshot>>,
    pub(crate) holdings: watch::Receiver<Holdings>,
    pub(crate) notified: watch::Receiver<Outcomes>,
    /// None where nothing is handed over.
    pub(crate) taken: Option<watch::Receiver<Takings>>,
    pub(crate) clock: SharedClock,
}

/// What is known of one credential.
#[derive(Clone, Debug, PartialEq)]
struct Evidence {
    held: Held,
    files: u32,
    uses: Vec<Seen>,
}

/// A use, by the clock that is never set.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    kind: UseKind,
    who: String,
    generation: Option<Generation>,
    since: Option<Instant>,
    pending: bool,
}

impl Sources {
    /// All credentials that are held, or were to be, in the order of their names.
    pub(super) fn usages(&self) -> Vec<Usage> {
        let evidence = self.evidence();
        let usages = evidence.iter();
        usages.map(|(name, it)| self.usage(name, it)).collect()
    }

    fn evidence(&self) -> BTreeMap<ObjectName, Evidence> {
        let snapshot = self.snapshot.borrow().clone();
        let holdings = self.holdings.borrow().clone();
        let notified = self.notified.borrow().clone();
        let taken = self.taken.as_ref();
        let taken = taken.map(|taken| taken.borrow().clone());
        let all = holdings.into_iter().map(|(name, held)| {
            let mut specs = snapshot.credentials.iter();
            let spec = specs.find(|spec| spec.name == name);
            let deliver = spec.map_or(&[][..], |spec| &spec.deliver);
            let files = deliver.iter().map(files).sum();
            let told = notified.iter().filter_map(|(target, outcome)| {
                let known = outcome.knows.get(&name);
                let pending = outcome.pending.contains(&name);
                (known.is_some() || pending).then(|| Seen {
                    kind: UseKind::Told,
                    who: target.to_string(),
                    generation: known.map(|known| known.generation.clone()),
                    since: known.and_then(|known| known.acknowledged),
                    pending,
                })
            });
            let taken = taken.as_ref().and_then(|taken| taken.get(&name));
            let taken = taken.into_iter().flatten().map(|(who, taking)| {
                let (kind, who) = match who {
                    Consumer::User(user) => (UseKind::Socket, format!("uid {user}")),
                    Consumer::Reader(file) => (UseKind::Url, file.display().to_string()),
                };
                Seen {
                    kind,
                    who,
                    generation: Some(taking.generation.clone()),
                    since: Some(taking.since),
                    pending: false,
                }
            });
            let evidence = Evidence {
                files: match held.holding.generation() {
                    Some(_) => files,
                    None => 0,
                },
                uses: told.chain(taken).collect(),
                held,
            };
            (name, evidence)
        });
        all.collect()
    }

    fn usage(&self, name: &ObjectName, evidence: &Evidence) -> Usage {
        let (now, moment) = (self.clock.now(), Instant::now());
        let unix = |since: Instant| {
            let ago = moment.saturating_duration_since(since).as_secs();
            UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs().saturating_sub(ago)))
        };
        let text = |generation: &Generation| generation.as_str().to_owned();
        let Evidence { held, files, uses } = evidence;
        let generation = held.holding.generation();
        let (state, why) = describe(&held.holding);
        Usage {
            name: name.clone(),
            state,
            generation: generation.map(text),
            since: held.since.map(unix),
            newer: held.newer.as_ref().map(text),
            why: why.unwrap_or_default().to_owned(),
            files: *files,
            uses: uses
                .iter()
                .map(|seen| Use {
                    kind: seen.kind,
                    who: seen.who.clone(),
                    generation: seen.generation.as_ref().map(text),
                    at: seen.since.map(unix),
                    pending: seen.pending,
                })
                .collect(),
        }
    }

    /// Resolves when something may be another. False: nothing will be any more.
    async fn changed(&mut self) -> bool {
        let taken = async {
            match &mut self.taken {
                Some(taken) => taken.changed().await,
                None => std::future::pending().await,
            }
        };
        let changed = tokio::select! {
            changed = self.holdings.changed() => changed,
            changed = self.notified.changed() => changed,
            changed = self.snapshot.changed() => changed,
            changed = taken => changed,
        };
        changed.is_ok()
    }
}

/// Tells the control plane of everything, and of what changes.
pub(crate) async fn report(mut sources: Sources, reports: mpsc::Sender<Report>) {
    let mut reported: BTreeMap<ObjectName, Evidence> = BTreeMap::new();
    loop {
        let known = sources.evidence();
        let gone = reported.extract_if(.., |name, _| !known.contains_key(name));
        for (name, _) in gone.collect::<Vec<_>>() {
            if reports.send(Report::CredentialGone(name)).await.is_err() {
                return;
            }
        }
        for (name, evidence) in known {
            if reported.get(&name) == Some(&evidence) {
                continue;
            }
            // Room first: while the control plane is away nothing that is old by then is queued.
            let Ok(room) = reports.reserve().await else {
                return;
            };
            let usage = sources.usage(&name, &evidence);
            room.send(Report::Credential(Box::new(usage)));
            reported.insert(name, evidence);
            tokio::time::sleep(PACE).await;
        }
        if !sources.changed().await {
            return;
        }
        tokio::time::sleep(ROUND).await;
    }
}

/// How many files a delivery of the value has.
pub(crate) fn files(delivery: &Delivery) -> u32 {
    match delivery {
        Delivery::File(..) => 1,
        Delivery::Files(set) => set.entries.len() as u32,
        Delivery::Socket(_) | Delivery::Url(_) | Delivery::Environment { .. } => 0,
    }
}

fn describe(holding: &Holding) -> (State, Option<&str>) {
    match holding {
        Holding::Waiting => (State::Waiting, None),
        Holding::Delivered(_) => (State::Delivered, None),
        Holding::Outdated { why, .. } => (State::Outdated, Some(why)),
        Holding::Withdrawn { why } => (State::Withdrawn, Some(why)),
        Holding::Failed { why } => (State::Failed, Some(why)),
    }
}
