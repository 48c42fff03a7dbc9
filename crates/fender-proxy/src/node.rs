//! What all connections of one proxy share.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use fender_runtime::clock::{Clock, SharedClock, UnixTime, sleep_until};
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use fender_runtime::pace::Pace;
use tokio::sync::Semaphore;

use crate::Limits;
use crate::access::AccessLog;
use crate::challenges::Challenges;
use crate::crowd::Crowd;
use crate::metrics::Metrics;
use crate::permit::Policy;
use crate::record::Records;
use crate::span::Recorder;
use crate::tls::Terms;
use crate::trace::TracesFrom;

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) limits: Arc<Limits>,
    pub(crate) clock: SharedClock,
    pub(crate) records: Records,
    pub(crate) access: AccessLog,
    /// What new connections are served with.
    pub(crate) terms: ArcSwap<Terms>,
    /// Where each connection begins to follow policy.
    pub(crate) policy: Policy,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) traces: TracesFrom,
    pub(crate) recorder: Recorder,
    pub(crate) handshakes: Pace,
    /// What authorities are answered.
    pub(crate) challenges: Arc<Challenges>,
    /// What the windows of HTTP/2 connections may be together, in bytes.
    pub(crate) windows: Arc<Semaphore>,
    /// Room for requests whose response has not begun.
    pub(crate) unanswered: Semaphore,
    /// Where inbound connections come from.
    pub(crate) crowd: Arc<Crowd>,
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
    /// whenever it is closed, a request may be on its way. So during a drain it may still bring one, for
    /// `last_call`, or where a successor takes new connections meanwhile, for almost all of the time that the
    /// drain takes by `policy` when it begins, unless somebody is in a hurry; it goes before it would be cut.
    /// One that merely retires is not closed while it is idle.
    ///
    /// Cancel safe.
    pub(crate) async fn last_call(&self, limits: &Limits, policy: &Policy) {
        self.drain.stopping().await;
        if self.drain.is_retiring() {
            let at_end = limits.linger * 2 + limits.last_call;
            let rests = policy.drain().saturating_sub(at_end);
            // Boxed: no connection has room for it before.
            let _ = Box::pin(Deadline::after(rests).bound(self.drain.hurried())).await;
        }
        tokio::time::sleep(limits.last_call).await;
    }
}

async fn retire(clock: &dyn Clock, moment: Option<UnixTime>) {
    match moment {
        Some(moment) => sleep_until(clock, moment).await,
        None => std::future::pending().await,
    }
}
