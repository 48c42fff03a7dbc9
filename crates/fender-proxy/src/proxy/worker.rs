//! The one task that follows the SVID, the snapshot and the certificates of ports, and makes terms and listeners of them.
//!
//! It never decides about a connection, and ends when nothing is open any more that its terms serve.

use std::collections::BTreeMap;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use fender_config::snapshot::{PortCertificate, Snapshot};
use fender_identity::Svid;
use fender_runtime::accept::Accept;
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use fender_runtime::listen::{ListenAddress, Listener, Listeners};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{ListenerStatus, StartError};
use crate::certificates::{
    self, CertificateStatus, Certificates, Given, Standings, find_files, in_files, together, wanted,
};
use crate::fault::OurFault;
use crate::node::Node;
use crate::record::Direction;
use crate::tls::{Terms, TermsError};
use crate::{inbound, outbound};

/// How often what could not be done is tried again, and idle app connections are looked through.
const TICK: Duration = Duration::from_secs(1);
/// How long the files of certificates are waited for.
pub(super) const LOOK: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) version: u64,
    pub(super) listeners: Vec<ListenerStatus>,
    pub(super) problem: Option<String>,
    pub(super) certificates: Vec<CertificateStatus>,
    pub(super) missing: Vec<String>,
}

pub(super) struct Worker {
    pub(super) svid: watch::Receiver<Arc<Svid>>,
    pub(super) snapshot: watch::Receiver<Arc<Snapshot>>,
    pub(super) issued: watch::Receiver<Arc<Standings>>,
    pub(super) credentials: watch::Receiver<Arc<Standings>>,
    pub(super) node: Arc<Node>,
    pub(super) listeners: Listeners,
    pub(super) inbound: Side,
    pub(super) outbound: Side,
    pub(super) open: BTreeMap<ListenAddress, Open>,
    pub(super) report: watch::Sender<Report>,
    pub(super) turn: watch::Sender<Instant>,
    pub(super) certificates: Certificates,
    /// The look at their files that is under way.
    pub(super) looking: Option<JoinHandle<certificates::Found>>,
    /// Why a listener is not open, as it was last said.
    pub(super) refused: BTreeMap<ListenAddress, String>,
    /// Why the newest terms could not be built.
    pub(super) unserved: Option<String>,
    /// As it was last said.
    pub(super) certificate: Certificate,
}

/// Our own certificate, by the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Certificate {
    Valid,
    Expired,
}

pub(super) struct Side {
    pub(super) drain: Drain,
    pub(super) slots: Arc<Semaphore>,
}

pub(super) struct Open {
    direction: Direction,
    local: ListenAddress,
    drain: Drain,
}

impl Worker {
    pub(super) async fn follow(mut self) {
        let (mut svids, mut snapshots) = (Feed::Open, Feed::Open);
        let (mut issued, mut credentials) = (Feed::Open, Feed::Open);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let drain = self.outbound.drain.clone();
        // A stopped drain opens nothing, but what is open still calls by the newest terms.
        let mut over = pin!(async {
            drain.stopping().await;
            tokio::select! {
                () = drain.drained() => {}
                () = drain.forced() => {}
            }
        });
        loop {
            tokio::select! {
                biased;
                () = &mut over => return,
                changed = self.svid.changed(), if svids == Feed::Open => {
                    svids = changed.into();
                    self.swap().await;
                }
                changed = self.snapshot.changed(), if snapshots == Feed::Open => {
                    snapshots = changed.into();
                    self.swap().await;
                }
                changed = self.issued.changed(), if issued == Feed::Open => {
                    issued = changed.into();
                    self.look_and_build().await;
                }
                changed = self.credentials.changed(), if credentials == Feed::Open => {
                    credentials = changed.into();
                    self.look_and_build().await;
                }
                _ = tick.tick() => {
                    self.node.terms.load().prune();
                    self.node.crowd.prune();
                    self.look_and_build().await;
                }
            }
            self.turn.send_replace(Instant::now());
            self.look_at_certificate();
            self.settle();
        }
    }

    /// Without a valid certificate nothing new is opened, and that must not go unheard.
    fn look_at_certificate(&mut self) {
        let found = match self.node.terms.load().has_expired(&*self.node.clock) {
            true => Certificate::Expired,
            false => Certificate::Valid,
        };
        match (self.certificate, found) {
            (Certificate::Valid, Certificate::Expired) => tracing::error!(
                "OUR CERTIFICATE HAS EXPIRED and was not renewed: every new connection is refused until it is"
            ),
            (Certificate::Expired, Certificate::Valid) => {
                tracing::info!("our certificate is valid again");
            }
            (Certificate::Valid, Certificate::Valid)
            | (Certificate::Expired, Certificate::Expired) => {}
        }
        self.certificate = found;
    }

    /// Builds and publishes the terms of the newest SVID and snapshot, or keeps the old ones.
    async fn swap(&mut self) {
        self.look_at_certificates().await;
        self.build();
    }

    /// Builds where there is a reason to.
    async fn look_and_build(&mut self) {
        if self.look_at_certificates().await || self.unserved.is_some() {
            self.build();
        }
    }

    /// Finds the certificates that ports show beside the workload's own. Whether others are served now.
    async fn look_at_certificates(&mut self) -> bool {
        let wanted = wanted(&self.snapshot.borrow());
        let found = self.look_at_files(in_files(&wanted)).await;
        let given = Given {
            issued: self.issued.borrow_and_update().clone(),
            credentials: self.credentials.borrow_and_update().clone(),
        };
        let now = self.node.clock.now();
        self.certificates
            .take(together(wanted, &found, &given), now)
    }

    /// Files may lie on a network: whoever hangs there holds up nothing else, and is not joined by another.
    async fn look_at_files(&mut self, files: Vec<PortCertificate>) -> certificates::Found {
        loop {
            if files.is_empty() {
                return certificates::Found::new();
            }
            // One that was begun before is for other files, maybe.
            let begun = self.looking.is_some();
            let asked = files.clone();
            let looking = self
                .looking
                .get_or_insert_with(|| tokio::task::spawn_blocking(move || find_files(asked)));
            let Ok(found) = tokio::time::timeout(LOOK, looking).await else {
                tracing::warn!("the files of certificates are not read in time: those known go on");
                return certificates::Found::new();
            };
            self.looking = None;
            // If it did not end well, the process is about to end.
            let found = found.unwrap_or_default();
            if !begun || files.iter().all(|file| found.contains_key(file)) {
                return found;
            }
        }
    }

    fn build(&mut self) {
        let (svid, snapshot) = (
            self.svid.borrow_and_update().clone(),
            self.snapshot.borrow_and_update().clone(),
        );
        let Node {
            terms,
            clock,
            limits,
            challenges,
            ..
        } = &*self.node;
        let files = &self.certificates;
        match Terms::build(
            &svid,
            &snapshot,
            files,
            challenges,
            Some(&terms.load()),
            clock,
            limits,
        ) {
            Ok(built) => {
                terms.store(Arc::new(built));
                self.unserved = None;
            }
            Err(error) => {
                let problem = described(&error);
                if self.unserved.as_ref() != Some(&problem) {
                    tracing::error!(
                        snapshot = snapshot.version,
                        problem,
                        "snapshot cannot be served, keeping the one before"
                    );
                }
                self.unserved = Some(problem);
            }
        }
    }

    /// Makes the listeners those of the terms.
    fn settle(&mut self) {
        self.close_removed();
        let missing = self.missing();
        let is_missing = |listen: &ListenAddress| missing.iter().any(|(one, _)| one == listen);
        self.refused.retain(|listen, _| is_missing(listen));
        for (listen, direction) in missing {
            match self.listeners.open(&listen) {
                Ok(listener) => {
                    tracing::info!(listen = %listen, direction = direction.label(), "listening");
                    self.serve(listen, direction, listener);
                }
                // Said in the status, and tried again with the next tick.
                Err(error) => self.refuse(listen, &error),
            }
        }
        self.publish();
    }

    /// Says once why a listener cannot be opened.
    fn refuse(&mut self, listen: ListenAddress, error: &io::Error) {
        let problem = error.to_string();
        if self.refused.get(&listen) != Some(&problem) {
            tracing::error!(listen = %listen, problem, "cannot listen yet");
            self.refused.insert(listen, problem);
        }
    }

    /// All or nothing, at the start; but where nothing but challenges is answered no work is done, and none waits for it.
    pub(super) fn open_all(&mut self) -> Result<(), StartError> {
        let mut opened = Vec::new();
        for (listen, direction) in self.missing() {
            match self.listeners.open(&listen) {
                Ok(listener) => opened.push((listen, direction, listener)),
                Err(error) if self.is_for_challenges(&listen) => self.refuse(listen, &error),
                Err(error) => return Err(StartError::Listen(error)),
            }
        }
        for (listen, direction, listener) in opened {
            self.serve(listen, direction, listener);
        }
        Ok(())
    }

    /// What the terms ask for and is not open.
    fn missing(&self) -> Vec<(ListenAddress, Direction)> {
        let terms = self.node.terms.load();
        let inbound = terms.entrances().map(|listen| (listen, Direction::Inbound));
        let outbound = terms
            .outbound
            .keys()
            .map(|listen| (listen, Direction::Outbound));
        let is_missing = |(listen, direction): &(&ListenAddress, Direction)| {
            !self.open.contains_key(*listen) && !self.side(*direction).drain.is_stopping()
        };
        inbound
            .chain(outbound)
            .filter(is_missing)
            .map(|(listen, direction)| (listen.clone(), direction))
            .collect()
    }

    fn is_for_challenges(&self, listen: &ListenAddress) -> bool {
        self.node.terms.load().challenges.contains_key(listen)
    }

    fn close_removed(&mut self) {
        let terms = self.node.terms.load();
        let grace = self.snapshot.borrow().drain;
        self.open.retain(|listen, open| {
            let wanted = match open.direction {
                Direction::Inbound => terms.entrances().any(|known| known == listen),
                Direction::Outbound => terms.outbound.contains_key(listen),
            };
            if !wanted {
                tracing::info!(listen = %listen, "no longer listening, draining");
                let (drain, parent) = (
                    open.drain.clone(),
                    match open.direction {
                        Direction::Inbound => &self.inbound.drain,
                        Direction::Outbound => &self.outbound.drain,
                    },
                );
                drain.stop();
                parent.spawn(async move {
                    drain.close(Deadline::after(grace)).await;
                });
            }
            wanted
        });
    }

    fn serve(&mut self, listen: ListenAddress, direction: Direction, listener: Listener) {
        let local = listener.local_address().clone();
        let side = self.side(direction);
        let drain = side.drain.child();
        let accept = Accept::sharing(listener, side.slots.clone());
        let (node, key) = (self.node.clone(), Arc::new(listen.clone()));
        match direction {
            Direction::Inbound => {
                let port = match &local {
                    ListenAddress::Tcp(address) => address.port(),
                    ListenAddress::Unix(_) | ListenAddress::Abstract(_) => 0,
                };
                let door = Arc::new(inbound::Door {
                    node,
                    listen: key,
                    port,
                    slots: side.slots.clone(),
                });
                let accept = self.inbound_accept(accept, &door, &drain);
                drain.spawn(inbound::serve(accept, door, drain.clone()));
            }
            Direction::Outbound => {
                let door = Arc::new(outbound::Door { node, listen: key });
                drain.spawn(outbound::serve(accept, door, drain.clone()));
            }
        }
        self.refused.remove(&listen);
        self.open.insert(
            listen,
            Open {
                direction,
                local,
                drain,
            },
        );
    }

    /// How peers are taken in: as many descriptors as the port's protocol needs each, and none of those for
    /// whom there is no room.
    fn inbound_accept(&self, accept: Accept, door: &Arc<inbound::Door>, drain: &Drain) -> Accept {
        let (asked, door, drain) = (door.clone(), door.clone(), drain.clone());
        accept
            .taking(move || asked.node.terms.load().weight(&asked.listen))
            .turning_away(self.node.limits.full, move |from| {
                inbound::turn_away(&door, &drain, from, OurFault::Full);
            })
    }

    fn side(&self, direction: Direction) -> &Side {
        match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        }
    }

    /// Where an authority that asks finds somebody by now.
    fn tell_who_is_answered(&self) {
        let terms = self.node.terms.load();
        let answered = terms.challenges.keys();
        let answered = answered.filter(|listen| self.open.contains_key(*listen));
        self.node.challenges.listen_at(answered.cloned().collect());
    }

    pub(super) fn publish(&self) {
        let closed = self.missing().into_iter();
        let closed: Vec<(ListenAddress, String)> = closed
            .map(|(listen, _)| {
                let why = format!("cannot listen on `{listen}` yet");
                (listen, why)
            })
            .collect();
        // A certificate waits for what answers an authority; the work does not.
        let missing = closed.iter();
        let missing = missing.filter(|(listen, _)| !self.is_for_challenges(listen));
        let missing = missing.map(|(_, why)| why.clone());
        let missing = missing.chain(self.certificates.missing()).collect();
        self.tell_who_is_answered();
        let listeners = self.open.iter().map(|(listen, open)| ListenerStatus {
            listen: listen.clone(),
            local: open.local.clone(),
            direction: open.direction,
        });
        let expired = (self.certificate == Certificate::Expired)
            .then(|| "our certificate has expired: new connections are refused".to_owned());
        let certificates = self.certificates.status(self.node.clock.now());
        let wrong = certificates.iter().find_map(|one| one.problem.clone());
        let problem = expired
            .or_else(|| self.unserved.clone())
            .or(wrong)
            .or_else(|| closed.first().map(|(_, why)| why.clone()));
        let report = Report {
            version: self.node.terms.load().version,
            listeners: listeners.collect(),
            problem,
            certificates,
            missing,
        };
        self.report.send_if_modified(|old| {
            let modified = *old != report;
            *old = report;
            modified
        });
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Feed {
    Open,
    /// Nothing comes any more: what is there is stale, not revoked.
    Closed,
}

impl From<Result<(), watch::error::RecvError>> for Feed {
    fn from(changed: Result<(), watch::error::RecvError>) -> Self {
        match changed {
            Ok(()) => Self::Open,
            Err(_) => Self::Closed,
        }
    }
}

/// With its causes.
pub(super) fn described(error: &TermsError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
