//! How old a Snapshot may become (`Mesh.snapshot.maxAge`, DESIGN §5).
//!
//! A Snapshot is fresh while the control plane can be heard and nothing newer was refused. From the moment that ends it
//! ages, also across restarts and while the machine sleeps; one that is too old closes the sidecar
//! ([`Snapshot::closed`]) until it is confirmed or replaced. A certificate bounds an outage already, but who refuses every
//! new Snapshot goes on renewing it, and would run on old rules without end.
//!
//! Nothing else is decided here: what is served, and who is denied, arrives and goes on as it does otherwise.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fender_config::snapshot::Snapshot;
use fender_identity::Trust;
use fender_runtime::clock::{SharedClock, UnixTime, sleep_until};
use tokio::sync::{Notify, watch};

use super::core::Core;

/// How often, within the age that is allowed, it is written down that the Snapshot is fresh: what a process that is killed
/// may forget.
const NOTED: u32 = 16;
const LONGEST_UNNOTED: Duration = Duration::from_secs(3600);
const SHORTEST_UNNOTED: Duration = Duration::from_secs(1);

/// What is known of a Snapshot's being the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Confirmed {
    Now,
    /// It was, the last time at this moment.
    Until(UnixTime),
}

/// The newest Snapshot that could be taken, and what is served of it.
#[derive(Debug)]
pub(crate) struct Freshness {
    clock: SharedClock,
    newest: Mutex<Newest>,
    serve: watch::Sender<Arc<Snapshot>>,
    /// Something to look at was changed.
    changed: Notify,
}

#[derive(Clone, Debug)]
struct Newest {
    snapshot: Arc<Snapshot>,
    confirmed: Confirmed,
    /// What is served is what is left of it.
    closed: bool,
}

impl Newest {
    /// When it becomes too old; never, while it is fresh or where its age is not bounded.
    fn too_old_from(&self) -> Option<UnixTime> {
        match (self.confirmed, self.snapshot.max_age) {
            (Confirmed::Until(moment), Some(age)) => Some(later(moment, age)),
            (Confirmed::Now, _) | (Confirmed::Until(_), None) => None,
        }
    }

    /// What to serve of it, which is said when it begins to be another thing.
    fn judge(&mut self, now: UnixTime) -> Arc<Snapshot> {
        let closed = self.too_old_from().is_some_and(|from| from <= now);
        if closed != self.closed {
            self.closed = closed;
            tell(&self.snapshot, closed);
        }
        match closed {
            true => Arc::new(self.snapshot.closed()),
            false => Arc::clone(&self.snapshot),
        }
    }
}

impl Freshness {
    pub(crate) fn new(
        clock: SharedClock,
        snapshot: Snapshot,
        confirmed: Confirmed,
    ) -> (Arc<Self>, watch::Receiver<Arc<Snapshot>>) {
        let mut newest = Newest {
            snapshot: Arc::new(snapshot),
            confirmed,
            closed: false,
        };
        let (serve, served) = watch::channel(newest.judge(clock.now()));
        let this = Self {
            clock,
            newest: Mutex::new(newest),
            serve,
            changed: Notify::new(),
        };
        (Arc::new(this), served)
    }

    /// Serves what arrived, which is the newest.
    pub(crate) fn put(&self, snapshot: Arc<Snapshot>) {
        self.change(|newest| {
            newest.snapshot = snapshot;
            newest.confirmed = Confirmed::Now;
        });
    }

    /// Serves it under another trust.
    pub(crate) fn believe(&self, trust: &Trust) {
        self.change(|newest| Arc::make_mut(&mut newest.snapshot).trust = trust.clone());
    }

    /// It is the newest, as far as anybody can say; or it was, until now.
    pub(crate) fn confirm(&self, is_newest: bool) {
        let now = self.clock.now();
        self.change(|newest| {
            newest.confirmed = match (is_newest, newest.confirmed) {
                (true, _) => Confirmed::Now,
                (false, Confirmed::Now) => Confirmed::Until(now),
                (false, since @ Confirmed::Until(_)) => since,
            };
        });
    }

    /// In force when this returns.
    fn change(&self, change: impl FnOnce(&mut Newest)) {
        {
            let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut newest);
            let next = newest.judge(self.clock.now());
            self.serve.send_if_modified(|served| {
                let differs = !Arc::ptr_eq(served, &next) && **served != *next;
                *served = next;
                differs
            });
        }
        self.changed.notify_one();
    }

    /// Closes in time, and keeps account of when it was fresh.
    pub(crate) async fn run(self: Arc<Self>, core: Arc<Core>) {
        let mut noted = None;
        loop {
            let (newest, now) = {
                let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
                (newest.clone(), self.clock.now())
            };
            if !newest.closed && newest.too_old_from().is_some_and(|from| from <= now) {
                self.change(|_| {});
            }
            let next = match (newest.confirmed, newest.snapshot.max_age) {
                (Confirmed::Now, Some(age)) => {
                    let pause = (age / NOTED).clamp(SHORTEST_UNNOTED, LONGEST_UNNOTED);
                    let last = match noted {
                        Some(last) if now < later(last, pause) => last,
                        Some(_) | None => {
                            core.note_fresh(now).await;
                            now
                        }
                    };
                    noted = Some(last);
                    Some(later(last, pause))
                }
                (Confirmed::Until(moment), Some(_)) => {
                    if noted != Some(moment) {
                        noted = Some(moment);
                        core.note_fresh(moment).await;
                    }
                    newest.too_old_from().filter(|from| *from > now)
                }
                (_, None) => None,
            };
            let due = async {
                match next {
                    Some(next) => sleep_until(&*self.clock, next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = core.drain.stopping() => return,
                () = self.changed.notified() => {}
                () = due => {}
            }
        }
    }
}

fn tell(snapshot: &Snapshot, closed: bool) {
    let version = snapshot.version;
    match closed {
        true => tracing::error!(
            version,
            "the snapshot is older than the mesh allows (`Mesh.snapshot.maxAge`): nobody is let in, and nothing out, until the \
             control plane is reached and what it sends can be served"
        ),
        false => tracing::info!(version, "the snapshot may be used again"),
    }
}

fn later(moment: UnixTime, by: Duration) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(moment.as_secs()).saturating_add(by))
}
