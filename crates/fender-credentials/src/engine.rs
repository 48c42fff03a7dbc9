//! Keeps what is delivered of a workload's credentials right, as files, at the socket and as certificates of ports, for as long as
//! the sidecar runs.
//!
//! At start all of them are there or none. Later each credential has a keeper of its own, so that
//! one that fails delays no other: a new value is written, an outage changes nothing, a refusal of
//! the source removes the files and is the end of handing over. When the Snapshot drops a credential its files go too, and at the
//! end all of them if [`OnExit::Wipe`] says so.
//!
//! Credentials that are delivered as environment only are not its business: an environment cannot
//! change while its process lives.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fender_config::ObjectName;
use fender_config::snapshot::{Content, CredentialSpec, Delivery, PortCertificate, Snapshot};
use fender_identity::Secret;
use fender_identity::tls::PemPair;
use fender_providers::{Generation, State};
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use tokio::sync::watch;

use crate::certificate::{self, PortCertificates};
use crate::deliver::set::SetPlace;
use crate::deliver::{DeliveryError, Place};
use crate::handover::{Audience, Handed, Handovers, Offer, Reader};
use crate::notify::Notifier;
use crate::sources::{Gathered, Sources, StartError, gather};
use crate::supervise::Hider;
use files::{Files, Holds, Work};
use keeper::Keeper;
use ledger::Ledger;

pub use ledger::{Held, Holding, Holdings};

pub(crate) mod age;
mod files;
mod keeper;
pub(crate) mod ledger;

pub use fender_config::snapshot::OnExit;

/// What the engine works with.
#[derive(Clone)]
pub struct Settings {
    pub sources: Sources,
    /// As it is when it matters: files of a process that has a successor are its successor's. Wiped is only what the document of
    /// its credential does not keep.
    pub on_exit: watch::Receiver<OnExit>,
    /// Who tells applications of changes.
    pub notifier: Notifier,
    /// What is handed over or served to whoever asks, if anybody can.
    pub handovers: Option<Handovers>,
    /// Who hides values in what the application writes, before they are delivered; if anybody is to.
    pub hider: Option<Arc<Hider>>,
    /// Where ports are given what they show, if there are any.
    pub certificates: Option<PortCertificates>,
}

/// A credential that is delivered here.
#[derive(Clone, Debug, PartialEq)]
struct Wanted {
    spec: CredentialSpec,
    /// What ports show of it.
    certificates: Vec<PortCertificate>,
}

/// What the Snapshots have said of a credential, up to now.
#[derive(Clone, Debug)]
struct Document {
    /// None: it went.
    wanted: Option<Wanted>,
    /// How often it went. Who did not hear that it did, because it is back, follows it anew all the same: nothing is
    /// kept of what was followed before.
    gone: u64,
}

/// Of a credential, what is left in place when nobody stays to keep it: its files. Nothing if it has none.
pub fn files_alone(spec: &CredentialSpec) -> Option<CredentialSpec> {
    let stays = |delivery: &&Delivery| match delivery {
        Delivery::File(..) | Delivery::Files(_) => true,
        Delivery::Environment { .. } | Delivery::Socket(_) | Delivery::Url(_) => false,
    };
    let deliver: Vec<_> = spec.deliver.iter().filter(stays).cloned().collect();
    (!deliver.is_empty()).then(|| CredentialSpec {
        deliver,
        ..spec.clone()
    })
}

/// Writes every file of what was gathered, or none, and leaves them to whoever reads them. Nobody is told, and nothing is
/// handed over.
pub async fn leave(gathered: Vec<Gathered>, settings: &Settings) -> Result<Vec<Left>, StartError> {
    let no_ports = |_: &ObjectName| Vec::new();
    let placed = deliver_all(gathered, no_ports, settings).await?;
    // The files go out of sight here, and stay where they are.
    let left = placed.into_iter().map(|placed| Left {
        generation: placed.gathered.fetched.generation,
        spec: placed.gathered.spec,
        _states: placed.gathered.states,
    });
    Ok(left.collect())
}

/// A credential that was written and is left. Its source is asked until this is dropped, so that whoever tells of the generation
/// does so while it has a name there.
pub struct Left {
    /// What was written, and where.
    pub spec: CredentialSpec,
    /// Of the value that was written.
    pub generation: Generation,
    _states: watch::Receiver<State>,
}

/// Delivers every credential of the present Snapshot within `deadline` and keeps following. Either
/// all are delivered, or an error says which was not and nothing is left behind.
///
/// Ends, and wipes, when `drain` stops; the drain is not drained before that is done.
pub async fn start(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    settings: Settings,
    deadline: Deadline,
    drain: &Drain,
) -> Result<watch::Receiver<Holdings>, StartError> {
    let wanted = delivered_here(&snapshots.borrow_and_update(), &settings);
    let specs: Vec<_> = wanted.iter().map(|wanted| wanted.spec.clone()).collect();
    settings.notifier.retain(&specs);
    // Also what others deliver for this workload.
    let all = snapshots.borrow().credentials.clone();
    settings.sources.keep_only(&all, drain).await;
    let gathered = gather(&specs, &settings.sources, deadline, drain).await?;
    let of_ports = |name: &ObjectName| {
        let mut wanted = wanted.iter();
        let wanted = wanted.find(|wanted| wanted.spec.name == *name);
        wanted.map_or_else(Vec::new, |wanted| wanted.certificates.clone())
    };
    let delivered = deliver_all(gathered, of_ports, &settings).await?;

    let (holdings, held) = watch::channel(Holdings::new());
    let mut engine = Engine {
        settings,
        holdings,
        keepers: BTreeMap::new(),
        drain: drain.clone(),
    };
    for placed in delivered {
        let wanted = Wanted {
            spec: placed.gathered.spec.clone(),
            certificates: placed.plan.certificates.clone(),
        };
        engine.keep(wanted, |keeper| keeper.holding(placed));
    }
    drain.spawn(engine.run(snapshots));
    Ok(held)
}

struct Engine {
    settings: Settings,
    holdings: watch::Sender<Holdings>,
    /// A keeper stays when its credential is dropped, so that one that comes back never has two.
    keepers: BTreeMap<ObjectName, watch::Sender<Document>>,
    drain: Drain,
}

impl Engine {
    async fn run(mut self, mut snapshots: watch::Receiver<Arc<Snapshot>>) {
        loop {
            tokio::select! {
                biased;
                () = self.drain.stopping() => return,
                // A feed that ended is stale, not empty: what there is stays until the end.
                Ok(()) = snapshots.changed() => {
                    let snapshot = snapshots.borrow_and_update().clone();
                    let sources = &self.settings.sources;
                    sources.keep_only(&snapshot.credentials, &self.drain).await;
                    let wanted = delivered_here(&snapshot, &self.settings);
                    self.follow(wanted);
                }
            }
        }
    }

    fn follow(&mut self, wanted: Vec<Wanted>) {
        let kept: BTreeSet<_> = wanted.iter().map(|one| one.spec.name.clone()).collect();
        for (_, known) in self.keepers.iter().filter(|(name, _)| !kept.contains(name)) {
            known.send_if_modified(|known| {
                let went = known.wanted.take().is_some();
                known.gone += u64::from(went);
                went
            });
        }
        for one in wanted {
            let Some(known) = self.keepers.get(&one.spec.name) else {
                self.keep(one, |keeper| keeper);
                continue;
            };
            known.send_if_modified(|known| {
                let news = known.wanted.as_ref() != Some(&one);
                known.wanted = Some(one);
                news
            });
        }
    }

    fn keep(&mut self, wanted: Wanted, prepare: impl FnOnce(Keeper) -> Keeper) {
        let name = wanted.spec.name.clone();
        let first = Document {
            wanted: Some(wanted),
            gone: 0,
        };
        let (publish, documents) = watch::channel(first);
        let ledger = Ledger::new(name.clone(), self.holdings.clone());
        let keeper = Keeper::new(documents, self.settings.clone(), ledger, self.drain.clone());
        self.keepers.insert(name, publish);
        self.drain.spawn(prepare(keeper).run());
    }
}

/// The credentials that a sidecar delivers.
fn delivered_here(snapshot: &Snapshot, settings: &Settings) -> Vec<Wanted> {
    let here = |delivery: &Delivery| match delivery {
        Delivery::File(..) | Delivery::Files(_) | Delivery::Socket(_) | Delivery::Url(_) => true,
        Delivery::Environment { .. } => false,
    };
    let ports = snapshot.inbound.iter();
    let ports = ports.filter(|_| settings.certificates.is_some());
    let shown: Vec<_> = ports.flat_map(|port| &port.certificates).collect();
    let wanted = snapshot.credentials.iter().map(|spec| {
        let of_it = shown
            .iter()
            .filter(|one| one.credential() == Some(&spec.name));
        let of_it: BTreeSet<PortCertificate> = of_it.map(|one| (*one).clone()).collect();
        Wanted {
            spec: spec.clone(),
            certificates: of_it.into_iter().collect(),
        }
    });
    let here = |one: &Wanted| !one.certificates.is_empty() || one.spec.deliver.iter().any(here);
    wanted.filter(here).collect()
}

/// What a document has done with a credential.
#[derive(Debug, Default)]
struct Plan {
    /// Of what is made of the value.
    places: Vec<(Place, Content)>,
    sets: Vec<SetPlace>,
    /// Of tokens, each with what it is to hold.
    tokens: Vec<(Place, Secret)>,
    to: Audience,
    /// What ports show of it.
    certificates: Vec<PortCertificate>,
}

impl Plan {
    /// Fails where the document may not or cannot have its way.
    fn of(
        spec: &CredentialSpec,
        certificates: Vec<PortCertificate>,
        settings: &Settings,
    ) -> Result<Self, DeliveryError> {
        let mut plan = Self {
            certificates,
            ..Self::default()
        };
        for delivery in &spec.deliver {
            match delivery {
                Delivery::File(file, content) => {
                    let place = Place::new(file, &settings.sources.allow)?;
                    plan.places.push((place, content.clone()));
                }
                Delivery::Files(set) => {
                    plan.sets.push(SetPlace::new(set, &settings.sources.allow)?);
                }
                Delivery::Socket(socket) => {
                    let doors = settings.handovers.as_ref().map(Handovers::doors);
                    if !doors.is_some_and(|doors| doors.socket) {
                        return Err(DeliveryError::NoSocket);
                    }
                    plan.to.users.push(Handed::new(socket)?);
                }
                Delivery::Url(url) => {
                    let handovers = settings.handovers.as_ref();
                    let handovers = handovers.filter(|handovers| handovers.doors().url);
                    let handovers = handovers.ok_or(DeliveryError::NoUrl)?;
                    let place = Place::new(&url.token, &settings.sources.allow)?;
                    let reader = Reader::new(url, place.user(), handovers.tokens());
                    plan.tokens.push((place, reader.token().clone()));
                    plan.to.readers.push(reader);
                }
                Delivery::Environment { .. } => {}
            }
        }
        Ok(plan)
    }

    /// What ports show of this value, if they show anything of it.
    fn certificate(
        &self,
        value: &Secret,
        settings: &Settings,
    ) -> Result<Option<Arc<PemPair>>, DeliveryError> {
        if self.certificates.is_empty() {
            return Ok(None);
        }
        let now = settings.sources.clock.now();
        Ok(Some(certificate::pair(value, &self.certificates, now)?))
    }

    /// Every file, with what it is to hold.
    fn work(&self, credential: &ObjectName, value: &Secret) -> Work {
        let places = self.places.iter().cloned();
        let made = places.map(|(place, content)| (place, Holds::Made(content)));
        let tokens = self.tokens.iter().cloned();
        let tokens = tokens.map(|(place, token)| (place, Holds::Token(token)));
        Work {
            credential: credential.clone(),
            value: value.clone(),
            files: made.chain(tokens).collect(),
            sets: self.sets.clone(),
        }
    }
}

/// A credential where it belongs.
struct Placed {
    gathered: Gathered,
    plan: Plan,
    files: Files,
    offer: Option<Offer>,
}

/// Every place of every credential, or none: what was written before a failure is removed again, unless it is a
/// predecessor's as well.
async fn deliver_all(
    gathered: Vec<Gathered>,
    of_ports: impl Fn(&ObjectName) -> Vec<PortCertificate>,
    settings: &Settings,
) -> Result<Vec<Placed>, StartError> {
    let mut planned = Vec::with_capacity(gathered.len());
    for one in gathered {
        let plan = Plan::of(&one.spec, of_ports(&one.spec.name), settings).and_then(|plan| {
            let certificate = plan.certificate(&one.fetched.value, settings)?;
            Ok((plan, certificate))
        });
        match plan {
            Ok((plan, certificate)) => planned.push((one, plan, certificate)),
            Err(error) => {
                return Err(StartError::Delivery {
                    name: one.spec.name,
                    error,
                });
            }
        }
    }
    if let (Some(hider), Some((first, _, _))) = (&settings.hider, planned.first()) {
        // What is a port's certificate alone never reaches the application, nor what hides it there.
        let values = planned
            .iter()
            .filter(|(one, _, _)| !one.spec.deliver.is_empty());
        let values = values.map(|(one, _, _)| (&one.spec.name, &one.fetched.value));
        if let Err(why) = hider.hide(values).await {
            return Err(StartError::Delivery {
                name: first.spec.name.clone(),
                error: DeliveryError::Unmasked { why },
            });
        }
    }
    let mut delivered = Vec::with_capacity(planned.len());
    for (gathered, plan, certificate) in planned {
        let name = gathered.spec.name.clone();
        let fetched = gathered.fetched.clone();
        let work = plan.work(&name, &fetched.value);
        let written = Files::default().write(work).await;
        let offer = settings.handovers.as_ref().map(|all| all.offer(&name));
        let offered = offer
            .as_ref()
            .map(|offer| offer.put(&plan.to, &fetched.value, &fetched.generation));
        if let (Some(all), Some(pair)) = (&settings.certificates, &certificate) {
            all.put(&name, &plan.certificates, pair);
        }
        let failure = written.failure.or_else(|| offered?.err());
        delivered.push(Placed {
            gathered,
            plan,
            files: written.files,
            offer,
        });
        if let Some(error) = failure {
            let ours = *settings.on_exit.borrow() == OnExit::Wipe;
            for one in delivered.into_iter().filter(|_| ours) {
                one.files.remove(&one.gathered.spec.name).await;
            }
            return Err(StartError::Delivery { name, error });
        }
    }
    if let Some(hider) = &settings.hider {
        let all = delivered.iter().map(|placed| &placed.gathered.spec);
        let hidden = all.filter(|spec| !spec.deliver.is_empty());
        hider.settled(hidden.map(|spec| &spec.name)).await;
    }
    Ok(delivered)
}

#[cfg(test)]
mod tests;
