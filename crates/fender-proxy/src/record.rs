//! What a denial leaves behind: a decision record.
//!
//! Records go into a bounded channel; when nobody takes them they are counted and dropped, because a flood of denials
//! must not cost memory. Query strings, header values and anything secret never get here.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use fender_identity::{Serial, SpiffeId};
use fender_policy::Explanation;
use fender_runtime::clock::{SharedClock, UnixTime};
use fender_runtime::id::OpaqueId;
use tokio::sync::mpsc;

use crate::permit::{Ask, Denied, Why};

/// One denial, for whoever asks *why was I denied?* A peer only ever learns its `id`.
#[derive(Clone, Debug)]
pub struct Record {
    pub id: OpaqueId,
    pub time: UnixTime,
    /// The workload that was called.
    pub workload: Option<SpiffeId>,
    /// The version of the snapshot that decided.
    pub snapshot: u64,
    pub facts: RecordedFacts,
    pub reason: Reason,
}

/// The facts of the denied call, without header values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedFacts {
    /// None: the peer was anonymous.
    pub peer: Option<SpiffeId>,
    pub serial: Option<Serial>,
    /// Of the connection itself.
    pub source_ip: Option<IpAddr>,
    /// Of the one it comes from: another where a balancer passed it on.
    pub remote_ip: Option<IpAddr>,
    pub port: u16,
    /// None on a `tcp` port.
    pub request: Option<RecordedRequest>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedRequest {
    pub method: String,
    pub host: String,
    /// As it was matched, without the query.
    pub path: String,
}

/// Why the call was denied.
#[derive(Clone, Debug)]
pub enum Reason {
    Policy(Explanation),
    /// The peer's certificate is on the deny list.
    Revoked,
    /// The peer's certificate expired while the connection was open.
    Expired,
}

/// The way out for decision records.
#[derive(Debug)]
pub(crate) struct Records {
    sender: mpsc::Sender<Record>,
    dropped: AtomicU64,
    clock: SharedClock,
}

impl Records {
    pub(crate) fn new(sender: mpsc::Sender<Record>, clock: SharedClock) -> Self {
        Self {
            sender,
            dropped: AtomicU64::new(0),
            clock,
        }
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Leaves the record of one denial. It is only put together when somebody has room for it.
    pub(crate) fn leave(&self, denied: &Denied, ask: &Ask) {
        match self.sender.try_reserve() {
            Ok(room) => room.send(self.record(denied, ask)),
            Err(_) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn record(&self, denied: &Denied, ask: &Ask) -> Record {
        let svid = ask.caller.peer.svid();
        let request = ask.request.as_ref().map(|request| RecordedRequest {
            method: request.method().to_owned(),
            host: request.host().to_owned(),
            path: request.path().to_owned(),
        });
        Record {
            id: denied.id,
            time: self.clock.now(),
            workload: denied.snapshot.identity.clone(),
            snapshot: denied.snapshot.version,
            facts: RecordedFacts {
                peer: svid.map(|svid| svid.id().clone()),
                serial: svid.map(|svid| svid.serial().clone()),
                source_ip: ask.source_ip(),
                remote_ip: ask.remote_ip(),
                port: ask.caller.port,
                request,
            },
            reason: match denied.why {
                Why::Policy(_) => {
                    Reason::Policy(ask.with_facts(|facts| denied.snapshot.policies.explain(facts)))
                }
                Why::Revoked => Reason::Revoked,
                Why::Expired => Reason::Expired,
            },
        }
    }
}

/// Which way a connection was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Inbound,
    Outbound,
}

impl Direction {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}
