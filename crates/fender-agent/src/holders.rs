//! The keys of local processes: each process has its own, made for it when it first asks, with certificates that are kept
//! fresh for as long as somebody follows them.
//!
//! A process that has ended loses its keys at once; so does one whose certificate was revoked, one that may be nobody any
//! more, and one that asks as another user or program than it was: what it is now gets keys of its own. One that follows nothing loses them when they would have to be renewed, or judged anew.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fender_identity::{Serial, Svid, Trust, Validity};
use fender_runtime::backoff::Backoff;
use fender_runtime::clock::{SharedClock, UnixTime, sleep_until};
use fender_runtime::drain::Drain;
use fender_runtime::share::{Share, Shares};
use fender_runtime::sys;
use tokio::sync::{Notify, OnceCell, watch};
use tokio::time::Instant;

use crate::process::Process;
use crate::tenant::Tenant;
use crate::{Caller, Entitled, Refused};

/// Processes that hold keys at a time.
const HOLDERS: usize = 1024;
/// Those of one user in one container, or in none.
const PER_TENANT: usize = 256;
/// However odd the clocks are, and however often things change, renewals never follow each other faster.
const PAUSE: Duration = Duration::from_secs(1);

/// Where the certificates of processes come from.
pub trait Issuer: Send + Sync + 'static {
    /// All that the process may be now, the default identity first; nobody is an error. Of `kept` stays what it still may
    /// be; everything else is new, each with a key made for this process. Without `kept` the process asks itself, as often
    /// as it likes; with it, its certificates are kept fresh, at our own pace.
    fn issue(
        &self,
        caller: &Caller,
        kept: Option<&[Arc<Svid>]>,
    ) -> impl Future<Output = Result<Vec<Arc<Svid>>, Refused>> + Send;

    /// By which anybody is recognised, and who is not any more.
    fn trust(&self) -> watch::Receiver<Trust>;

    /// Changes when what processes may be may have changed.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// The processes that hold keys. Cheap to clone.
#[derive(Debug)]
pub struct Holders<I>(Arc<Inner<I>>);

impl<I> Clone for Holders<I> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Inner<I> {
    issuer: I,
    clock: SharedClock,
    drain: Drain,
    tenants: Shares<Tenant>,
    /// By process. A number is its process's as long as that has not ended.
    held: Mutex<HashMap<u32, Arc<Held>>>,
}

/// What one process has: nothing while the first certificate is under way.
#[derive(Debug)]
struct Held {
    process: Caller,
    entitled: OnceCell<watch::Sender<Arc<Entitled>>>,
    /// There is another in its place.
    replaced: Notify,
    _share: Share<Tenant>,
}

impl<I: Issuer> Holders<I> {
    pub fn new(issuer: I, clock: SharedClock, drain: Drain) -> Self {
        Self(Arc::new(Inner {
            issuer,
            clock,
            drain,
            tenants: Shares::new(PER_TENANT),
            held: Mutex::default(),
        }))
    }

    pub fn issuer(&self) -> &I {
        &self.0.issuer
    }

    /// What the process may be, now and after every change.
    pub async fn follow(&self, caller: &Caller) -> Result<watch::Receiver<Arc<Entitled>>, Refused> {
        loop {
            let held = self.0.hold(caller)?;
            let first = || self.begin(&held);
            if let Err(refused) = held.entitled.get_or_try_init(first).await {
                self.0.forget_empty(&held);
                return Err(refused);
            }
            if let Some(followed) = self.0.subscribe(&held) {
                return Ok(followed);
            }
        }
    }

    /// The first certificates of a process, and whoever keeps them fresh from then on.
    async fn begin(&self, held: &Arc<Held>) -> Result<watch::Sender<Arc<Entitled>>, Refused> {
        let inner = &self.0;
        // Before the question, so that no change falls in between.
        let mut changes = inner.issuer.changes();
        changes.mark_unchanged();
        let mut trust = inner.issuer.trust();
        let svids = inner.issuer.issue(&held.process, None).await?;
        let Caller { pid, uid, .. } = held.process;
        for svid in &svids {
            tracing::info!(pid, uid, id = %svid.id(), serial = %svid.serial(), "a certificate for a local process");
        }
        let process = held.process.process.try_clone();
        let process = process.map_err(|error| Refused::Unavailable {
            why: format!("its process cannot be watched: {error}"),
        })?;
        let mut due = Due::default();
        due.note(&svids, inner.clock.now());
        let entitled = Entitled {
            svids,
            trust: trust.borrow_and_update().clone(),
        };
        let keeper = Keeper {
            inner: Arc::clone(inner),
            held: Arc::clone(held),
            trust,
            changes,
            due,
            backoff: None,
        };
        let stop = inner.drain.clone();
        inner.drain.spawn(async move {
            let (inner, held) = (Arc::clone(&keeper.inner), Arc::clone(&keeper.held));
            tokio::select! {
                () = stop.stopping() => {}
                () = ended(process) => {}
                () = held.replaced.notified() => {}
                () = keeper.run() => {}
            }
            forget(&mut inner.lock(), &held);
        });
        Ok(watch::Sender::new(Arc::new(entitled)))
    }
}

impl<I> Inner<I> {
    /// The place of a process, made if it has none.
    fn hold(&self, caller: &Caller) -> Result<Arc<Held>, Refused> {
        // A process keeps its number when it becomes another user, or runs another program. The keys stay with what it was,
        // and who connected as that has nothing of what it is.
        let still = is_still(caller);
        let mut held = self.lock();
        if let Some(known) = held
            .get(&caller.pid)
            .filter(|known| !known.process.has_ended())
        {
            match (is_one(&known.process, caller), &still) {
                (true, Ok(())) => return Ok(Arc::clone(known)),
                (false, Err(_)) => {}
                (true, Err(_)) | (false, Ok(())) => {
                    tracing::warn!(
                        pid = caller.pid,
                        "a local process is not what it was; it loses its keys"
                    );
                    known.replaced.notify_one();
                    held.remove(&caller.pid);
                }
            }
        }
        still?;
        if held.len() >= HOLDERS {
            held.retain(|_, known| !known.process.has_ended());
        }
        let full = |who: &str, limit: usize| Refused::Unavailable {
            why: format!("{limit} processes of {who} hold a key already"),
        };
        if held.len() >= HOLDERS {
            return Err(full("this host", HOLDERS));
        }
        let share = self.tenants.take(caller.tenant.clone());
        let new = Arc::new(Held {
            process: caller.clone(),
            entitled: OnceCell::new(),
            replaced: Notify::new(),
            _share: share.ok_or_else(|| full("this user, or of its container,", PER_TENANT))?,
        });
        held.insert(caller.pid, Arc::clone(&new));
        Ok(new)
    }

    /// None if it was let go in the meantime.
    fn subscribe(&self, held: &Arc<Held>) -> Option<watch::Receiver<Arc<Entitled>>> {
        let places = self.lock();
        let current = places.get(&held.process.pid)?;
        match Arc::ptr_eq(current, held) {
            true => held.entitled.get().map(watch::Sender::subscribe),
            false => None,
        }
    }

    /// Whoever got nothing has no place either, unless somebody else is asking for the same process.
    fn forget_empty(&self, held: &Arc<Held>) {
        let mut places = self.lock();
        // One in the map, one with us.
        if held.entitled.get().is_none() && Arc::strong_count(held) <= 2 {
            forget(&mut places, held);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Arc<Held>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn forget(places: &mut HashMap<u32, Arc<Held>>, held: &Arc<Held>) {
    let pid = held.process.pid;
    if places
        .get(&pid)
        .is_some_and(|known| Arc::ptr_eq(known, held))
    {
        places.remove(&pid);
    }
}

/// Whether two connections came from one process as one user, in one place, as one program.
fn is_one(known: &Caller, caller: &Caller) -> bool {
    let what = |of: &Caller| (of.pid, of.uid, of.gid, of.seen);
    what(known) == what(caller) && known.tenant == caller.tenant
}

/// Whether the process is what it was when it connected, where that is known.
fn is_still(caller: &Caller) -> Result<(), Refused> {
    match caller.seen {
        Some(_) => Ok(Process::of(caller).map(drop)?),
        None => Ok(()),
    }
}

/// Resolves when the process is over, or cannot be watched.
async fn ended(process: OwnedFd) {
    if let Err(error) = sys::ended(process).await {
        tracing::error!(%error, "cannot watch a local process; it loses its key");
    }
}

/// When each certificate is to be renewed.
#[derive(Debug, Default)]
struct Due(HashMap<Serial, UnixTime>);

impl Due {
    /// Those of `svids` that are new were received now; others are forgotten.
    fn note(&mut self, svids: &[Arc<Svid>], now: UnixTime) {
        let known = std::mem::take(&mut self.0);
        let moment = |svid: &Arc<Svid>| {
            let serial = svid.serial().clone();
            let due = known.get(&serial).copied();
            (serial, due.unwrap_or_else(|| due_of(svid.validity(), now)))
        };
        self.0 = svids.iter().map(moment).collect();
    }

    fn next(&self, now: UnixTime) -> UnixTime {
        self.0.values().min().copied().unwrap_or(now)
    }

    /// Those that need not be renewed yet.
    fn fresh(&self, svids: &[Arc<Svid>], now: UnixTime) -> Vec<Arc<Svid>> {
        let fresh = |svid: &&Arc<Svid>| self.0.get(svid.serial()).is_some_and(|due| now < *due);
        svids.iter().filter(fresh).cloned().collect()
    }
}

/// Keeps what one process has fresh.
struct Keeper<I> {
    inner: Arc<Inner<I>>,
    held: Arc<Held>,
    trust: watch::Receiver<Trust>,
    changes: watch::Receiver<u64>,
    due: Due,
    /// Set while the last question brought no answer.
    backoff: Option<Backoff>,
}

impl<I: Issuer> Keeper<I> {
    /// Returns when the process may be nobody any more, or follows nothing.
    async fn run(mut self) {
        let held = Arc::clone(&self.held);
        let clock = Arc::clone(&self.inner.clock);
        let mut again = None;
        loop {
            let Some(entitled) = held.entitled.get() else {
                // Set as soon as whoever began this is polled again.
                tokio::task::yield_now().await;
                continue;
            };
            let due = self.due.next(clock.now());
            tokio::select! {
                changed = self.trust.changed() => {
                    if changed.is_err() || !self.believe(entitled) {
                        return;
                    }
                    continue;
                }
                changed = self.changes.changed() => if changed.is_err() { return },
                () = sleep_until(&*clock, due), if again.is_none() => {}
                () = until(again), if again.is_some() => {}
            }
            if self.is_unused() {
                return;
            }
            again = match self.ask(entitled).await {
                Ok(pause) => pause.map(|pause| Instant::now() + pause),
                Err(Gone) => return,
            };
            if !self.rest(entitled).await {
                return;
            }
        }
    }

    /// A pause in which nothing is asked, but what is learned counts.
    async fn rest(&mut self, entitled: &watch::Sender<Arc<Entitled>>) -> bool {
        let end = Instant::now() + PAUSE;
        loop {
            tokio::select! {
                changed = self.trust.changed() => {
                    if changed.is_err() || !self.believe(entitled) {
                        return false;
                    }
                }
                () = tokio::time::sleep_until(end) => return true,
            }
        }
    }

    /// False if it is among those who are not to be believed any more.
    fn believe(&mut self, entitled: &watch::Sender<Arc<Entitled>>) -> bool {
        let trust = self.trust.borrow_and_update().clone();
        let svids = entitled.borrow().svids.clone();
        if let Some(revoked) = svids.iter().find(|svid| trust.denied.denies_own(svid)) {
            let pid = self.held.process.pid;
            tracing::warn!(pid, id = %revoked.id(), serial = %revoked.serial(), "the certificate of a local process was revoked; it loses its keys");
            return false;
        }
        entitled.send_replace(Arc::new(Entitled { svids, trust }));
        true
    }

    /// What the process may be now. After how long to ask again, if there was no answer.
    async fn ask(
        &mut self,
        entitled: &watch::Sender<Arc<Entitled>>,
    ) -> Result<Option<Duration>, Gone> {
        let now = self.inner.clock.now();
        let before = Arc::clone(&entitled.borrow());
        let kept = self.due.fresh(&before.svids, now);
        let pid = self.held.process.pid;
        match self
            .inner
            .issuer
            .issue(&self.held.process, Some(&kept))
            .await
        {
            Ok(svids) => {
                self.backoff = None;
                self.due.note(&svids, self.inner.clock.now());
                let same = svids.len() == before.svids.len()
                    && svids
                        .iter()
                        .zip(&before.svids)
                        .all(|(new, old)| Arc::ptr_eq(new, old));
                if !same {
                    entitled.send_modify(|entitled| {
                        let trust = entitled.trust.clone();
                        *entitled = Arc::new(Entitled { svids, trust });
                    });
                }
                Ok(None)
            }
            Err(error @ Refused::Nobody { .. }) => {
                tracing::warn!(pid, %error, "no further certificate for a local process; it loses its keys");
                Err(Gone)
            }
            Err(error @ Refused::Unavailable { .. }) => {
                tracing::warn!(pid, %error, "the certificates of a local process are not renewed");
                let validity = before.svids.first().map(|svid| svid.validity());
                let backoff = self.backoff.get_or_insert_with(|| patience(validity));
                Ok(Some(backoff.next()))
            }
        }
    }

    /// Takes the place away if nobody follows it: whoever asks next gets another key.
    fn is_unused(&self) -> bool {
        let mut places = self.inner.lock();
        let entitled = self.held.entitled.get();
        let followed = entitled.map_or(0, watch::Sender::receiver_count);
        if followed == 0 {
            forget(&mut places, &self.held);
        }
        followed == 0
    }
}

/// The process may be nobody any more.
struct Gone;

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Half of what was left of its life when it came: an authority dates certificates back.
fn due_of(validity: Validity, received: UnixTime) -> UnixTime {
    let left = validity
        .not_after
        .as_secs()
        .saturating_sub(received.as_secs());
    UnixTime::since_unix_epoch(Duration::from_secs(
        received.as_secs().saturating_add(left / 2),
    ))
}

/// About twenty attempts in the half of its life that is left, at most one a minute.
fn patience(validity: Option<Validity>) -> Backoff {
    let life = validity.map_or(0, |validity| {
        let (from, until) = (validity.not_before, validity.not_after);
        until.as_secs().saturating_sub(from.as_secs())
    });
    let cap = Duration::from_secs(life).div_f64(40.0);
    let cap = cap.clamp(Duration::from_millis(250), Duration::from_secs(60));
    Backoff::new(cap.min(Duration::from_secs(1)), cap)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    #[test]
    fn half_of_what_is_left_counts_and_not_half_of_what_it_says() {
        let validity = Validity {
            not_before: at(0),
            not_after: at(120),
        };
        assert_eq!(due_of(validity, at(60)), at(90));
        assert_eq!(due_of(validity, at(200)), at(200));
    }
}
