//! The proxy as a whole: one worker follows the SVID and the snapshot, everything else serves.
//!
//! Whenever either changes, the worker builds new [`Terms`], complete; publishes them; then opens the
//! listeners that are new and drains those that are gone. What cannot be built leaves the old in
//! place and is said. A listener that stays is never reopened: its queue would be reset.
//!
//! Policy is not the worker's: connections read it from the snapshot itself, the moment it is there.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use fender_config::ListenAddr;
use fender_config::snapshot::Snapshot;
use fender_identity::Svid;
use fender_runtime::accept::Accept;
use fender_runtime::clock::{SharedClock, UnixTime};
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use fender_runtime::lines::Lines;
use fender_runtime::listen::{ListenAddress, Listener, Listeners};
use fender_runtime::metrics::Exposition;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;

use crate::access::AccessLog;
use crate::metrics::{Counts, Metrics};
use crate::node::Node;
use crate::permit::Policy;
use crate::record::{Direction, Pace, Record, Records};
use crate::tls::{Terms, TermsError, listen_address};
use crate::trace::TracesFrom;
use crate::{Limits, inbound, outbound};

/// How often what could not be done is tried again, and idle app connections are looked through.
const TICK: Duration = Duration::from_secs(1);
/// After how long without a turn the worker counts as stuck: thirty that were missed.
const STUCK: Duration = Duration::from_secs(30);

/// What a proxy is started with.
#[derive(Debug)]
pub struct Inputs {
    pub svid: watch::Receiver<Arc<Svid>>,
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    pub clock: SharedClock,
    /// Stops before `outbound`: the app may still need its way out.
    pub inbound: Drain,
    pub outbound: Drain,
    pub listeners: Listeners,
    /// Bounded; what does not fit is counted and dropped.
    pub records: mpsc::Sender<Record>,
    /// The access log.
    pub access: Lines,
    pub traces: TracesFrom,
    pub limits: Limits,
}

/// The data plane of one sidecar.
#[derive(Debug)]
pub struct Proxy;

impl Proxy {
    /// Opens every listener of the newest snapshot and serves. When this returns, all of them accept.
    ///
    /// Must be called inside a tokio runtime. Ends with its drains.
    pub fn start(inputs: Inputs) -> Result<Running, StartError> {
        let Inputs {
            mut svid,
            mut snapshot,
            clock,
            inbound,
            outbound,
            listeners,
            records,
            access,
            traces,
            limits,
        } = inputs;
        let policy = Policy::new(snapshot.clone(), clock.clone());
        let (newest_svid, newest) = (
            svid.borrow_and_update().clone(),
            snapshot.borrow_and_update().clone(),
        );
        let terms = Terms::build(&newest_svid, &newest, None, &clock, &limits)
            .map_err(|error| StartError::Snapshot(described(&error)))?;
        let slots = || {
            Arc::new(Semaphore::new(
                limits.connections.min(Semaphore::MAX_PERMITS),
            ))
        };
        let (inbound_slots, outbound_slots) = (slots(), slots());
        let node = Arc::new(Node {
            records: Records::new(records, clock.clone()),
            access: AccessLog {
                lines: access,
                clock: clock.clone(),
            },
            terms: ArcSwap::from_pointee(terms),
            policy,
            metrics: Metrics::new(limits.metric_peers),
            traces,
            handshakes: Pace::new(limits.handshake_lines),
            clock,
            limits,
        });
        let (report, status) = watch::channel(Report::default());
        let (turn, turned) = watch::channel(Instant::now());
        let mut worker = Worker {
            svid,
            snapshot,
            node: node.clone(),
            listeners,
            inbound: Side {
                drain: inbound,
                slots: inbound_slots,
            },
            outbound: Side {
                drain: outbound,
                slots: outbound_slots,
            },
            open: BTreeMap::new(),
            report,
            turn,
            unserved: None,
            certificate: Certificate::Valid,
        };
        worker.open_all()?;
        worker.publish();
        let drain = worker.outbound.drain.clone();
        drain.spawn(worker.follow());
        Ok(Running {
            node,
            report: status,
            turned,
        })
    }
}

/// Why a proxy did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("snapshot cannot be served: {0}")]
    Snapshot(String),
    /// The error names the address.
    #[error(transparent)]
    Listen(io::Error),
}

/// A proxy that serves.
#[derive(Clone, Debug)]
pub struct Running {
    node: Arc<Node>,
    report: watch::Receiver<Report>,
    /// When the worker turned last; it does no more once the drain has stopped it.
    turned: watch::Receiver<Instant>,
}

impl Running {
    /// How it is doing.
    pub fn status(&self) -> Status {
        let terms = self.node.terms.load();
        let report = self.report.borrow();
        Status {
            snapshot: terms.version,
            svid_not_after: terms.svid.validity().not_after,
            listeners: report.listeners.clone(),
            problem: report.problem.clone(),
            counts: self.node.metrics.read(),
            records_dropped: self.node.records.dropped(),
            access_lines_dropped: self.node.access.lines.dropped(),
        }
    }

    /// Adds what a monitoring system is told of it.
    pub fn tell(&self, told: &mut Exposition) {
        self.node.metrics.tell(told);
        told.counters(
            "fender_access_lines_dropped",
            "Access lines that were lost: nobody took them in time, or they could not be written",
            vec![(vec![], self.node.access.lines.dropped())],
        );
        told.counters(
            "fender_decision_records_dropped",
            "Records of denials that nobody took in time",
            vec![(vec![], self.node.records.dropped())],
        );
        let listeners = &self.report.borrow().listeners;
        let open = [Direction::Inbound, Direction::Outbound].map(|direction| {
            let of = |listener: &&ListenerStatus| listener.direction == direction;
            let count = listeners.iter().filter(of).count() as u64;
            (vec![("direction", direction.label().into())], count)
        });
        told.gauges("fender_listeners", "Listeners that are open", open.to_vec());
        told.gauges(
            "fender_snapshot_version",
            "The version of the Snapshot that new connections are served with",
            vec![(vec![], self.node.terms.load().version)],
        );
    }

    /// What keeps it from accepting connections that it should: each as a sentence about a listener.
    pub fn missing(&self) -> Vec<String> {
        self.report.borrow().missing.clone()
    }

    /// Whether its own work goes on: it looks around at least once a second.
    pub fn is_turning(&self) -> bool {
        let seen = *self.turned.borrow();
        seen.elapsed() < STUCK
    }

    /// The address a listener is bound to, with the port the kernel chose.
    pub fn local_address(&self, listen: &ListenAddr) -> Option<ListenAddress> {
        let listen = listen_address(listen);
        let report = self.report.borrow();
        let listener = report
            .listeners
            .iter()
            .find(|listener| listener.listen == listen);
        listener.map(|listener| listener.local.clone())
    }

    /// Resolves when the listeners, the snapshot in use or the problem changed; false once they no
    /// longer can.
    pub async fn changed(&mut self) -> bool {
        self.report.changed().await.is_ok()
    }
}

/// What a proxy is doing at one moment.
#[derive(Clone, Debug)]
pub struct Status {
    /// The version new connections are served with.
    pub snapshot: u64,
    pub svid_not_after: UnixTime,
    pub listeners: Vec<ListenerStatus>,
    /// Why the newest snapshot is not, or not wholly, being served.
    pub problem: Option<String>,
    pub counts: Counts,
    /// Decision records that nobody took in time.
    pub records_dropped: u64,
    /// Access lines that could not be written in time.
    pub access_lines_dropped: u64,
}

/// An open listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerStatus {
    /// As it is configured.
    pub listen: ListenAddress,
    /// As it is bound.
    pub local: ListenAddress,
    pub direction: Direction,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Report {
    version: u64,
    listeners: Vec<ListenerStatus>,
    problem: Option<String>,
    missing: Vec<String>,
}

struct Worker {
    svid: watch::Receiver<Arc<Svid>>,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    node: Arc<Node>,
    listeners: Listeners,
    inbound: Side,
    outbound: Side,
    open: BTreeMap<ListenAddress, Open>,
    report: watch::Sender<Report>,
    turn: watch::Sender<Instant>,
    /// Why the newest terms could not be built.
    unserved: Option<String>,
    /// As it was last said.
    certificate: Certificate,
}

/// Our own certificate, by the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Certificate {
    Valid,
    Expired,
}

struct Side {
    drain: Drain,
    slots: Arc<Semaphore>,
}

struct Open {
    direction: Direction,
    local: ListenAddress,
    drain: Drain,
}

impl Worker {
    async fn follow(mut self) {
        let (mut svids, mut snapshots) = (Feed::Open, Feed::Open);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let drain = self.outbound.drain.clone();
        loop {
            tokio::select! {
                biased;
                () = drain.stopping() => return,
                changed = self.svid.changed(), if svids == Feed::Open => {
                    svids = changed.into();
                    self.swap();
                }
                changed = self.snapshot.changed(), if snapshots == Feed::Open => {
                    snapshots = changed.into();
                    self.swap();
                }
                _ = tick.tick() => {
                    self.node.terms.load().prune();
                    if self.unserved.is_some() {
                        self.swap();
                    }
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
    fn swap(&mut self) {
        let (svid, snapshot) = (
            self.svid.borrow_and_update().clone(),
            self.snapshot.borrow_and_update().clone(),
        );
        let Node {
            terms,
            clock,
            limits,
            ..
        } = &*self.node;
        match Terms::build(&svid, &snapshot, Some(&terms.load()), clock, limits) {
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
        for (listen, direction) in missing {
            match self.listeners.open(&listen) {
                Ok(listener) => {
                    tracing::info!(listen = %listen, direction = direction.label(), "listening");
                    self.serve(listen, direction, listener);
                }
                // Said in the status, and tried again with the next tick.
                Err(error) => tracing::debug!(listen = %listen, %error, "cannot listen yet"),
            }
        }
        self.publish();
    }

    /// All or nothing, at the start.
    fn open_all(&mut self) -> Result<(), StartError> {
        let mut opened = Vec::new();
        for (listen, direction) in self.missing() {
            let listener = self.listeners.open(&listen).map_err(StartError::Listen)?;
            opened.push((listen, direction, listener));
        }
        for (listen, direction, listener) in opened {
            self.serve(listen, direction, listener);
        }
        Ok(())
    }

    /// What the terms ask for and is not open.
    fn missing(&self) -> Vec<(ListenAddress, Direction)> {
        let terms = self.node.terms.load();
        let inbound = terms
            .inbound
            .keys()
            .map(|listen| (listen, Direction::Inbound));
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

    fn close_removed(&mut self) {
        let terms = self.node.terms.load();
        let grace = self.snapshot.borrow().drain;
        self.open.retain(|listen, open| {
            let wanted = match open.direction {
                Direction::Inbound => terms.inbound.contains_key(listen),
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
                drain.spawn(inbound::serve(accept, door, drain.clone()));
            }
            Direction::Outbound => {
                let door = Arc::new(outbound::Door { node, listen: key });
                drain.spawn(outbound::serve(accept, door, drain.clone()));
            }
        }
        self.open.insert(
            listen,
            Open {
                direction,
                local,
                drain,
            },
        );
    }

    fn side(&self, direction: Direction) -> &Side {
        match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        }
    }

    fn publish(&self) {
        let missing = self.missing().into_iter();
        let missing: Vec<String> = missing
            .map(|(listen, _)| format!("cannot listen on `{listen}` yet"))
            .collect();
        let listeners = self.open.iter().map(|(listen, open)| ListenerStatus {
            listen: listen.clone(),
            local: open.local.clone(),
            direction: open.direction,
        });
        let expired = (self.certificate == Certificate::Expired)
            .then(|| "our certificate has expired: new connections are refused".to_owned());
        let problem = expired
            .or_else(|| self.unserved.clone())
            .or_else(|| missing.first().cloned());
        let report = Report {
            version: self.node.terms.load().version,
            listeners: listeners.collect(),
            problem,
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
fn described(error: &TermsError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
