//! What all connections of one proxy share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use fender_runtime::clock::{Clock, SharedClock, UnixTime, sleep_until};
use fender_runtime::drain::Drain;

use crate::Limits;
use crate::access::AccessLog;
use crate::fault::Blame;
use crate::permit::Policy;
use crate::record::{Pace, Records};
use crate::tls::Terms;

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) limits: Limits,
    pub(crate) clock: SharedClock,
    pub(crate) records: Records,
    pub(crate) access: AccessLog,
    /// What new connections are served with.
    pub(crate) terms: ArcSwap<Terms>,
    /// Where each connection begins to follow policy.
    pub(crate) policy: Policy,
    pub(crate) counters: Counters,
    pub(crate) handshakes: Pace,
}

/// Counts since the start, for status.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    connections: AtomicU64,
    plaintext: AtomicU64,
    requests: AtomicU64,
    peer: AtomicU64,
    upstream: AtomicU64,
    policy: AtomicU64,
    ours: AtomicU64,
    outbound: AtomicU64,
}

/// A copy of the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub connections: u64,
    /// Of them, from peers that came without TLS.
    pub plaintext: u64,
    pub requests: u64,
    /// Faults by blame; `denied` is policy's.
    pub peer_faults: u64,
    pub upstream_faults: u64,
    pub denied: u64,
    pub own_faults: u64,
    /// Grows with every connection of the app's and whenever bytes move on one. What stands still is
    /// idle.
    pub outbound_activity: u64,
}

impl Counters {
    pub(crate) fn connection(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn plaintext(&self) {
        self.plaintext.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn fault(&self, blame: Blame) {
        let counter = match blame {
            Blame::Peer => &self.peer,
            Blame::Upstream => &self.upstream,
            Blame::Policy => &self.policy,
            Blame::Ours => &self.ours,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// The app used its way out.
    pub(crate) fn outbound(&self) {
        self.outbound.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            connections: read(&self.connections),
            plaintext: read(&self.plaintext),
            requests: read(&self.requests),
            peer_faults: read(&self.peer),
            upstream_faults: read(&self.upstream),
            denied: read(&self.policy),
            own_faults: read(&self.ours),
            outbound_activity: read(&self.outbound),
        }
    }
}

/// When a kept connection should take no further request: at a drain, or well before the peer's
/// certificate expires, so that the refusal that follows never meets a request. Our own certificate
/// plays no part: it was renewed long before, and the peer has believed it already.
#[derive(Clone, Debug)]
pub(crate) struct Closing {
    drain: Drain,
    clock: SharedClock,
    /// Never for an anonymous peer.
    retires: Option<UnixTime>,
}

impl Closing {
    /// `expires` is the moment from which the peer is refused.
    pub(crate) fn new(drain: Drain, clock: SharedClock, expires: Option<UnixTime>) -> Self {
        let now = clock.now().as_secs();
        let retires = expires.map(|expires| {
            let left = expires.as_secs().saturating_sub(now);
            let retires = now.saturating_add(left / 4 * 3 + left % 4 * 3 / 4);
            UnixTime::since_unix_epoch(Duration::from_secs(retires))
        });
        Self {
            drain,
            clock,
            retires,
        }
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.drain.is_stopping()
            || self
                .retires
                .is_some_and(|moment| moment <= self.clock.now())
    }

    /// Resolves when it begins: the moment for GOAWAY, which loses nothing.
    ///
    /// Cancel safe.
    pub(crate) async fn begins(&self) {
        tokio::select! {
            () = self.drain.stopping() => {}
            () = retire(&*self.clock, self.retires) => {}
        }
    }

    /// Resolves when an idle HTTP/1 connection should not be waited for any more. It has no GOAWAY:
    /// closed at once, it would meet the request that is just on its way. So during a drain it may
    /// still bring one for `grace`; one that merely retires is not closed while it is idle.
    ///
    /// Cancel safe.
    pub(crate) async fn last_call(&self, grace: Duration) {
        self.drain.stopping().await;
        tokio::time::sleep(grace).await;
    }
}

async fn retire(clock: &dyn Clock, moment: Option<UnixTime>) {
    match moment {
        Some(moment) => sleep_until(clock, moment).await,
        None => std::future::pending().await,
    }
}
