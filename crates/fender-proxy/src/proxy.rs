//! The proxy as a whole: one worker follows the SVID and the snapshot, everything else serves.
//!
//! Whenever either changes, the worker builds new [`Terms`], complete; publishes them; then opens the
//! listeners that are new and drains those that are gone. What cannot be built leaves the old in
//! place and is said. A listener that stays is never reopened: its queue would be reset.
//!
//! Policy is not the worker's: connections read it from the snapshot itself, the moment it is there.

mod worker;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use fender_config::ListenAddr;
use fender_config::snapshot::Snapshot;
use fender_identity::Svid;
use fender_runtime::clock::{SharedClock, UnixTime};
use fender_runtime::drain::Drain;
use fender_runtime::lines::Lines;
use fender_runtime::listen::{ListenAddress, Listeners};
use fender_runtime::metrics::Exposition;
use fender_runtime::pace::Pace;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;

use worker::{Certificate, LOOK, Report, Side, Worker, described};

use crate::Limits;
use crate::access::AccessLog;
use crate::certificates::{
    self, CertificateStatus, Certificates, Given, Standings, first_look, in_files, together, wanted,
};
use crate::challenges::Challenges;
use crate::crowd::Crowd;
use crate::metrics::{Counts, Metrics, declared};
use crate::node::Node;
use crate::permit::Policy;
use crate::record::{Direction, Record, Records};
use crate::span::{Recorder, Recording};
use crate::tls::{Terms, listen_address};
use crate::trace::TracesFrom;

/// After how long without a turn the worker counts as stuck: thirty that were missed.
const STUCK: Duration = Duration::from_secs(30);

/// What a proxy is started with.
#[derive(Debug)]
pub struct Inputs {
    pub svid: watch::Receiver<Arc<Svid>>,
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    /// The certificates that somebody gets from authorities.
    pub issued: watch::Receiver<Arc<Standings>>,
    /// Those that are credentials.
    pub credentials: watch::Receiver<Arc<Standings>>,
    /// What those authorities are answered meanwhile.
    pub challenges: Arc<Challenges>,
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
    /// Without it no request has a span of ours.
    pub recording: Option<Recording>,
    pub limits: Limits,
}

/// The data plane of one sidecar.
#[derive(Debug)]
pub struct Proxy;

impl Proxy {
    /// Opens every listener of the newest snapshot and serves. When this returns, all of them accept, but for those where
    /// nothing but challenges is answered: they are for certificates that come later, and not for the work.
    ///
    /// Must be called inside a tokio runtime. Ends with its drains.
    pub fn start(inputs: Inputs) -> Result<Running, StartError> {
        let Inputs {
            mut svid,
            mut snapshot,
            mut issued,
            mut credentials,
            challenges,
            clock,
            inbound,
            outbound,
            listeners,
            records,
            access,
            traces,
            recording,
            limits,
        } = inputs;
        let limits = Arc::new(limits);
        let policy = Policy::new(snapshot.clone(), clock.clone());
        let (newest_svid, newest) = (
            svid.borrow_and_update().clone(),
            snapshot.borrow_and_update().clone(),
        );
        let mut certificates = Certificates::default();
        let given = Given {
            issued: issued.borrow_and_update().clone(),
            credentials: credentials.borrow_and_update().clone(),
        };
        let wanted = wanted(&newest);
        let (found, looking) = first_look(in_files(&wanted), LOOK);
        certificates.take(together(wanted, &found, &given), clock.now());
        let terms = Terms::build(
            &newest_svid,
            &newest,
            &certificates,
            &challenges,
            None,
            &clock,
            &limits,
        )
        .map_err(|error| StartError::Snapshot(described(&error)))?;
        let slots = |most: usize| Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
        let (inbound_slots, outbound_slots) = (slots(limits.connections), slots(limits.outbound));
        let node = Arc::new(Node {
            records: Records::new(records, clock.clone()),
            access: AccessLog {
                lines: access,
                clock: clock.clone(),
            },
            terms: ArcSwap::from_pointee(terms),
            policy,
            metrics: Metrics::new(limits.metric_peers),
            challenges,
            traces,
            recorder: Recorder::new(recording),
            windows: slots(limits.windows),
            unanswered: Semaphore::new(limits.unanswered.min(Semaphore::MAX_PERMITS)),
            handshakes: Pace::new(limits.handshake_lines),
            crowd: Arc::new(Crowd::new(&limits)),
            clock,
            limits,
        });
        let (report, status) = watch::channel(Report::default());
        let (turn, turned) = watch::channel(Instant::now());
        let mut worker = Worker {
            svid,
            snapshot,
            issued,
            credentials,
            node: node.clone(),
            listeners,
            inbound: Side {
                drain: inbound,
                slots: inbound_slots,
            },
            // Its own, so that the worker knows when all of it has ended but itself.
            outbound: Side {
                drain: outbound.child(),
                slots: outbound_slots,
            },
            open: BTreeMap::new(),
            report,
            turn,
            certificates,
            looking,
            refused: BTreeMap::new(),
            unserved: None,
            certificate: Certificate::Valid,
        };
        worker.open_all()?;
        worker.publish();
        outbound.spawn(worker.follow());
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
    /// When the worker turned last; it does no more once the outbound drain has ended.
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
            certificates: report.certificates.clone(),
            counts: self.node.metrics.read(),
            records_dropped: self.node.records.dropped(),
            access_lines_dropped: self.node.access.lines.dropped(),
            spans_dropped: self.node.recorder.dropped(),
        }
    }

    /// Adds what a monitoring system is told of it.
    pub fn tell(&self, told: &mut Exposition) {
        self.node.metrics.tell(told);
        told.number(&declared::LINES_DROPPED, self.node.access.lines.dropped());
        told.number(&declared::RECORDS_DROPPED, self.node.records.dropped());
        let report = self.report.borrow();
        certificates::tell(&report.certificates, told);
        let open = [Direction::Inbound, Direction::Outbound].map(|direction| {
            let of = |listener: &&ListenerStatus| listener.direction == direction;
            let count = report.listeners.iter().filter(of).count() as u64;
            (vec![("direction", direction.label().into())], count)
        });
        told.numbers(&declared::LISTENERS, open.to_vec());
        let version = self.node.terms.load().version;
        told.number(&declared::SNAPSHOT_VERSION, version);
    }

    /// What keeps it from accepting connections that it should: each as a sentence about a listener or a certificate.
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

    /// Resolves once new connections are served with this version of the snapshot, or a later one, at its listeners.
    pub async fn serves(&self, version: u64) {
        let mut report = self.report.clone();
        // One that has ended serves nothing any more, whatever is waited for.
        let _ = report.wait_for(|report| report.version >= version).await;
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
    /// Those that ports show beside the workload's own.
    pub certificates: Vec<CertificateStatus>,
    pub counts: Counts,
    /// Decision records that nobody took in time.
    pub records_dropped: u64,
    /// Access lines that could not be written in time.
    pub access_lines_dropped: u64,
    /// Spans that nobody took in time.
    pub spans_dropped: u64,
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
