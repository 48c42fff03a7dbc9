//! The local processes that a sidecar gives its workload's identity to: its own user's, and those of the users named on
//! the command line.
//!
//! Each process receives a key of its own, made here when it first asks, with a certificate of its own from the control
//! plane; the proxy's key is never handed out. A process that has ended loses its key at once; one that follows nothing
//! any more loses it when it would have to be renewed.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use fender_agent::{Caller, Entitled, Identities, JwtSvid, Known, Limits, Refused, Tokens};
use fender_api::client::{CallError, Session, SignedToken};
use fender_identity::{SpiffeId, Svid, Trust, Validity};
use fender_runtime::backoff::Backoff;
use fender_runtime::clock::{SharedClock, UnixTime, sleep_until};
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use fender_runtime::listen::{ListenAddress, Listener};
use fender_runtime::sys;
use rustix::fs::Mode;
use tokio::sync::{OnceCell, watch};

use crate::cli;

/// Processes that hold a key at a time.
const CALLERS: usize = 256;
/// What asking the control plane for a certificate may take.
const ISSUE: Duration = Duration::from_secs(10);
/// However odd the clocks are, renewals never follow each other faster.
const PAUSE: Duration = Duration::from_secs(1);

/// Opens the socket, and serves it until the drain stops.
pub(super) fn serve(
    args: &cli::WorkloadApi,
    session: &Arc<Session>,
    clock: &SharedClock,
    drain: &Drain,
) -> Result<()> {
    let Some(path) = &args.workload_api else {
        return Ok(());
    };
    let listener = Listener::bind(&ListenAddress::Unix(path.clone()))
        .context("open the socket of the Workload API")?;
    let mut users = BTreeSet::from([rustix::process::geteuid().as_raw()]);
    if !args.workload_api_uid.is_empty() {
        // The kernel says who connects; the mode would keep out those who may.
        let everybody = Mode::from_raw_mode(0o666);
        rustix::fs::chmod(path, everybody).context("let others connect to the Workload API")?;
        users.extend(&args.workload_api_uid);
    }
    tracing::info!(socket = %path.display(), ?users, "serving the Workload API and Envoy's secret discovery");
    let callers = Arc::new(Callers {
        session: Arc::clone(session),
        clock: Arc::clone(clock),
        drain: drain.clone(),
        users,
        tokens: Tokens::default(),
        held: Mutex::default(),
    });
    drain.spawn(fender_agent::serve(
        listener,
        Arc::new(Handle(callers)),
        Arc::clone(clock),
        Limits::default(),
        drain.clone(),
    ));
    Ok(())
}

struct Callers {
    session: Arc<Session>,
    clock: SharedClock,
    drain: Drain,
    users: BTreeSet<u32>,
    tokens: Tokens,
    /// By process. A number is its process's as long as that has not ended.
    held: Mutex<HashMap<u32, Arc<Held>>>,
}

/// What one process has: nothing while the first certificate is under way.
struct Held {
    process: Caller,
    entitled: OnceCell<watch::Sender<Arc<Entitled>>>,
}

/// Shared between the server and those who keep the certificates fresh.
struct Handle(Arc<Callers>);

impl Identities for Handle {
    async fn follow(&self, caller: &Caller) -> Result<watch::Receiver<Arc<Entitled>>, Refused> {
        let callers = &self.0;
        callers.check(caller)?;
        loop {
            let held = callers.hold(caller)?;
            let first = || callers.begin(&held);
            held.entitled.get_or_try_init(first).await?;
            if let Some(followed) = callers.subscribe(&held) {
                return Ok(followed);
            }
        }
    }

    async fn jwt_svid(
        &self,
        caller: &Caller,
        audience: &[String],
        id: Option<&SpiffeId>,
    ) -> Result<JwtSvid, Refused> {
        self.0.check(caller)?;
        let own = self.0.session.svid.borrow().id().clone();
        if let Some(id) = id.filter(|id| **id != own) {
            let why = format!("it asked for `{id}`, this workload is `{own}`");
            return Err(Refused::Nobody { why });
        }
        self.0.token(own, audience).await
    }

    fn trust(&self) -> watch::Receiver<Trust> {
        self.0.session.trust()
    }
}

impl Callers {
    fn check(&self, caller: &Caller) -> Result<(), Refused> {
        if self.users.contains(&caller.uid) {
            return Ok(());
        }
        let why = format!(
            "uid {} is neither the sidecar's nor named by --workload-api-uid",
            caller.uid
        );
        Err(Refused::Nobody { why })
    }

    /// The place of a process, made if it has none.
    fn hold(&self, caller: &Caller) -> Result<Arc<Held>, Refused> {
        let mut held = self.lock();
        if let Some(known) = held.get(&caller.pid)
            && !known.process.has_ended()
        {
            return Ok(Arc::clone(known));
        }
        if held.len() >= CALLERS {
            held.retain(|_, known| !known.process.has_ended());
        }
        if held.len() >= CALLERS && !held.contains_key(&caller.pid) {
            let why = format!("{CALLERS} processes hold a key already");
            return Err(Refused::Unavailable { why });
        }
        let new = Arc::new(Held {
            process: caller.clone(),
            entitled: OnceCell::new(),
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

    /// The first certificate of a process, and whoever keeps it fresh from then on.
    async fn begin(
        self: &Arc<Self>,
        held: &Arc<Held>,
    ) -> Result<watch::Sender<Arc<Entitled>>, Refused> {
        let svid = self.issue().await.map_err(|error| refused(&error))?;
        let pid = held.process.pid;
        tracing::info!(pid, uid = held.process.uid, serial = %svid.serial(), "a certificate for a local process");
        let mut trust = self.session.trust();
        let entitled = Entitled {
            svids: vec![svid],
            trust: trust.borrow_and_update().clone(),
        };
        let process = held
            .process
            .process
            .try_clone()
            .map_err(|error| Refused::Unavailable {
                why: format!("its process cannot be watched: {error}"),
            })?;
        let keeper = Keeper {
            callers: Arc::clone(self),
            held: Arc::clone(held),
            trust,
        };
        let stop = self.drain.clone();
        self.drain.spawn(async move {
            tokio::select! {
                () = stop.stopping() => {}
                () = ended(process) => {}
                () = keeper.run() => {}
            }
            keeper.let_go();
        });
        Ok(watch::Sender::new(Arc::new(entitled)))
    }

    /// A token as this workload: one that was given before, or another.
    async fn token(&self, id: SpiffeId, audience: &[String]) -> Result<JwtSvid, Refused> {
        let begins = self.session.trust().borrow().denied.begins(&id);
        let now = self.clock.now();
        let stale = match self.tokens.find(&id, audience, begins, now) {
            Known::Fresh(token) => return Ok(JwtSvid { id, token }),
            Known::Stale(token) => Some(token),
            Known::None => None,
        };
        let signed = self
            .session
            .sign_jwt(audience, None, Deadline::after(ISSUE))
            .await;
        match (signed, stale) {
            (Ok(SignedToken { token, expires }), _) => {
                self.tokens.keep(&id, audience, token.clone(), now, expires);
                Ok(JwtSvid { id, token })
            }
            (Err(error), Some(token)) if error.code().is_passing() => {
                tracing::warn!(%error, "a token past its half life is given once more");
                Ok(JwtSvid { id, token })
            }
            (Err(error), _) => Err(refused(&error)),
        }
    }

    async fn issue(&self) -> Result<Arc<Svid>, CallError> {
        let issued = self.session.further_svid(Deadline::after(ISSUE)).await;
        issued.map(Arc::new)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Arc<Held>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused(error: &CallError) -> Refused {
    let why = error.to_string();
    match error.code().is_passing() {
        true => Refused::Unavailable { why },
        false => Refused::Nobody { why },
    }
}

/// Resolves when the process is over, or cannot be watched.
async fn ended(process: OwnedFd) {
    if let Err(error) = sys::ended(process).await {
        tracing::error!(%error, "cannot watch a local process; it loses its key");
    }
}

/// Keeps what one process has fresh.
struct Keeper {
    callers: Arc<Callers>,
    held: Arc<Held>,
    trust: watch::Receiver<Trust>,
}

impl Keeper {
    /// Returns when the process may be nobody any more, or follows nothing.
    async fn run(&self) {
        let mut trust = self.trust.clone();
        let clock = &*self.callers.clock;
        let mut received = clock.now();
        loop {
            let Some(entitled) = self.held.entitled.get() else {
                // Set as soon as whoever began this is polled again.
                tokio::task::yield_now().await;
                continue;
            };
            let Some(svid) = entitled.borrow().svids.first().cloned() else {
                return;
            };
            let due = due(svid.validity(), received);
            tokio::select! {
                changed = trust.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let trust = trust.borrow_and_update().clone();
                    entitled.send_modify(|entitled| {
                        let svids = entitled.svids.clone();
                        *entitled = Arc::new(Entitled { svids, trust });
                    });
                }
                () = sleep_until(clock, due) => {
                    if self.is_unused() {
                        return;
                    }
                    let Some(svid) = self.renew(svid.validity()).await else {
                        return;
                    };
                    received = clock.now();
                    entitled.send_modify(|entitled| {
                        let trust = entitled.trust.clone();
                        let svids = vec![svid];
                        *entitled = Arc::new(Entitled { svids, trust });
                    });
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Until it succeeds; none when there will be no other.
    async fn renew(&self, validity: Validity) -> Option<Arc<Svid>> {
        let mut backoff = patience(validity);
        loop {
            let error = match self.callers.issue().await {
                Ok(svid) => return Some(svid),
                Err(error) => error,
            };
            let pid = self.held.process.pid;
            if !error.code().is_passing() {
                tracing::warn!(pid, %error, "no further certificate for a local process");
                return None;
            }
            tracing::warn!(pid, %error, "the certificate of a local process is not renewed");
            tokio::time::sleep(backoff.next()).await;
        }
    }

    /// Takes the place away if nobody follows it: whoever asks next gets another key.
    fn is_unused(&self) -> bool {
        let mut places = self.callers.lock();
        let followed = self
            .held
            .entitled
            .get()
            .map_or(0, watch::Sender::receiver_count);
        if followed == 0 {
            forget(&mut places, &self.held);
        }
        followed == 0
    }

    fn let_go(&self) {
        forget(&mut self.callers.lock(), &self.held);
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

/// Half of what was left of its life when it came: an authority dates certificates back.
fn due(validity: Validity, received: UnixTime) -> UnixTime {
    let left = validity
        .not_after
        .as_secs()
        .saturating_sub(received.as_secs());
    UnixTime::since_unix_epoch(Duration::from_secs(
        received.as_secs().saturating_add(left / 2),
    ))
}

/// About twenty attempts in the half of its life that is left, at most one a minute.
fn patience(validity: Validity) -> Backoff {
    let life = validity
        .not_after
        .as_secs()
        .saturating_sub(validity.not_before.as_secs());
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
        assert_eq!(due(validity, at(60)), at(90));
        assert_eq!(due(validity, at(200)), at(200));
    }
}
