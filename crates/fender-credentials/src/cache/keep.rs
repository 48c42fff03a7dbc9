//! Between a source and whoever follows it: what is good is kept, and what is kept is given while the source is away at the start.
//!
//! Whoever follows hears of each answer before it is written down: a slow disk delays nobody. What is written is when the source
//! was asked, not when it was written; an unchanged value is written again only when that would have aged by a quarter of what its document
//! allows.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fender_config::ObjectName;
use fender_config::snapshot::{CredentialSource, CredentialSpec, Lifetime};
use fender_providers::{Confirmed, FetchError, Fetched, Followed, Generation, Standing, State};
use fender_runtime::clock::{self, SharedClock, UnixTime};
use fender_runtime::drain::Drain;
use tokio::sync::watch;
use tokio::time::Instant;

use super::format::Kept;
use super::{Cache, Follower, Refused, Removed, Rest, Said, SourceDigest, Wanted};

/// Nothing unchanged is written more often.
const SHORTEST: Duration = Duration::from_secs(10);
/// What could not be written is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// Keeps nothing of what these do not name. What cannot be removed is tried again until it can or `drain` stops: the next start
/// removes it.
pub(crate) async fn keep_only(cache: &Arc<Cache>, names: BTreeSet<ObjectName>, drain: &Drain) {
    let hand = cache.hand.changes();
    let own = Arc::clone(cache);
    let rest = blocking(move || own.retain(names)).await;
    if rest == Some(Rest::Untended) {
        drain.spawn(remove_rest(Arc::clone(cache), hand, drain.clone()));
    }
}

async fn remove_rest(cache: Arc<Cache>, mut hand: watch::Receiver<bool>, drain: Drain) {
    let mut rest = Some(Rest::Untended);
    while rest == Some(Rest::Untended) {
        tokio::select! {
            biased;
            () = drain.stopping() => return,
            () = tokio::time::sleep(RETRY) => {}
            // Now it may be ours to remove.
            Ok(()) = hand.changed() => {}
        }
        let cache = Arc::clone(&cache);
        rest = blocking(move || cache.retain_again()).await;
    }
}

/// What is known of the secret, from now on, with what is kept of it.
pub(crate) fn keep(
    cache: &Arc<Cache>,
    spec: &CredentialSpec,
    followed: Followed,
    clock: &SharedClock,
    drain: &Drain,
) -> watch::Receiver<State> {
    let (publish, states) = watch::channel(State::Pending);
    let keeping = Keeping {
        follower: cache.follow(&spec.name),
        hand: cache.hand.changes(),
        cache: Arc::clone(cache),
        wanted: Wanted {
            name: spec.name.clone(),
            source: SourceDigest::of(&spec.source),
            max_stale: spec.max_stale,
        },
        clock: Arc::clone(clock),
        drain: drain.clone(),
        followed,
        publish,
        current: None,
        served: None,
        looked: None,
        on_disk: None,
        left: false,
        unremoved: Said::default(),
        unwritten: Said::default(),
        next: None,
    };
    drain.spawn(keeping.run());
    states
}

struct Keeping {
    cache: Arc<Cache>,
    /// Whether that is this process's to change.
    hand: watch::Receiver<bool>,
    follower: Follower,
    wanted: Wanted,
    clock: SharedClock,
    drain: Drain,
    followed: Followed,
    publish: watch::Sender<State>,
    /// What the source said last, if it has it, under its own name for it and ours.
    current: Option<(Generation, Fetched)>,
    /// What is given in its stead, and since when that may not be the newest.
    served: Option<(Fetched, Instant)>,
    /// Whether what is kept has been looked at, and what was wrong with it.
    looked: Option<Option<Refused>>,
    on_disk: Option<Written>,
    /// Whether something may be left that was to be removed.
    left: bool,
    unremoved: Said,
    unwritten: Said,
    /// When to write again, or to remove.
    next: Option<Instant>,
}

/// What is in the file.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Written {
    generation: Generation,
    at: Duration,
    until: Option<Duration>,
}

impl Keeping {
    async fn run(mut self) {
        let drain = self.drain.clone();
        loop {
            let state = self.followed.states.borrow_and_update().clone();
            self.hear(state).await;
            // Until there is something to hear.
            loop {
                let over = self.over();
                tokio::select! {
                    biased;
                    () = drain.stopping() => return match self.hand.has_changed() {
                        Ok(true) => self.is_passed().await,
                        Ok(false) | Err(_) => self.write().await,
                    },
                    () = self.publish.closed() => return,
                    changed = self.followed.states.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    () = due(self.next) => self.write().await,
                    Ok(()) = self.hand.changed() => self.is_passed().await,
                    () = ends(&self.clock, over) => self.end().await,
                }
            }
        }
    }

    async fn hear(&mut self, state: State) {
        match state {
            State::Pending => {}
            State::Current(fetched) => {
                self.cache.answered(&self.wanted.name);
                let own = fetched.generation.clone();
                let fetched = self.known_again(fetched);
                self.served = None;
                self.publish.send_replace(State::Current(fetched.clone()));
                self.current = Some((own, fetched));
                self.write().await;
            }
            State::Withdrawn(error) => {
                self.cache.answered(&self.wanted.name);
                self.publish.send_replace(State::Withdrawn(error));
                (self.current, self.served) = (None, None);
                self.remove().await;
            }
            State::Stale {
                last: None, error, ..
            } => {
                if matches!(error, FetchError::Outage(_)) {
                    self.look().await;
                }
                self.publish.send_replace(self.without(error));
            }
            State::Stale {
                last: Some(fetched),
                error,
                since,
            } => {
                // As it was asked last, to the moment.
                self.write().await;
                let last = match self.current.take() {
                    Some((own, known)) if own == fetched.generation => {
                        let last = known.clone();
                        self.current = Some((own, known));
                        last
                    }
                    _ => fetched,
                };
                self.publish.send_replace(State::Stale {
                    last: Some(last),
                    error,
                    since,
                });
            }
        }
    }

    /// What came of the same value before keeps its name: for whoever took it then, it is no other.
    fn known_again(&self, fetched: Fetched) -> Fetched {
        let before = self.current.as_ref().map(|(_, known)| known);
        let before = before.or(self.served.as_ref().map(|(served, _)| served));
        match before {
            Some(before) if self.names_itself() && before.value.ct_eq(&fetched.value) => {
                before.clone()
            }
            Some(_) | None => fetched,
        }
    }

    /// Whether generations are drawn in this process. A control plane's are known to others by its names.
    fn names_itself(&self) -> bool {
        self.wanted.source != SourceDigest::of(&CredentialSource::Control(Lifetime::Lasting))
    }

    /// Looks at what is kept, once.
    async fn look(&mut self) {
        if self.looked.is_some() {
            return;
        }
        let now = self.clock.since_1970();
        let (cache, wanted) = (Arc::clone(&self.cache), self.wanted.clone());
        let follower = self.follower.clone();
        let read = blocking(move || cache.read(&follower, &wanted, now)).await;
        let (kept, refused) = match read {
            Some(Ok(kept)) => (kept, None),
            Some(Err(refused)) => {
                tracing::error!(credential = %self.wanted.name, %refused, "the credentials cache is of no use");
                // What another process has in hand is removed when that hands over.
                self.left = refused.why.is_final() && self.cache.hand.hold().is_none();
                (None, Some(refused))
            }
            None => (None, None),
        };
        self.looked = Some(refused);
        let Some(Kept {
            fetched, at, until, ..
        }) = kept
        else {
            return;
        };
        let age = now.saturating_sub(at);
        // Nobody can say when that was on a clock that began later.
        let Some(since) = Instant::now().checked_sub(age) else {
            return;
        };
        tracing::warn!(
            credential = %self.wanted.name, age_seconds = age.as_secs(),
            "the source cannot be asked: what was kept of it is used"
        );
        self.on_disk = Some(Written {
            generation: fetched.generation.clone(),
            at,
            until,
        });
        self.served = Some((fetched, since));
    }

    /// What is known while the source, which has not answered yet, does not.
    fn without(&self, error: FetchError) -> State {
        let with = |more: &str| match &error {
            FetchError::Outage(why) => FetchError::Outage(format!("{why}; {more}")),
            FetchError::Malformed(why) => FetchError::Malformed(format!("{why}; {more}")),
            FetchError::Denied(_) | FetchError::Missing(_) | _ => error.clone(),
        };
        match (&self.served, &self.looked) {
            (Some((fetched, since)), _) => State::Stale {
                last: Some(fetched.clone()),
                error: with("the value is from the credentials cache"),
                since: Some(*since),
            },
            (None, Some(Some(refused))) => State::Stale {
                last: None,
                error: with(&refused.to_string()),
                since: None,
            },
            (None, _) => State::Stale {
                last: None,
                error,
                since: None,
            },
        }
    }

    /// Brings the file to what is known, if it is worth it.
    async fn write(&mut self) {
        self.next = None;
        if self.left {
            self.remove().await;
        }
        let Some((fetched, at, until)) = self.good().await else {
            return;
        };
        let now = self.clock.since_1970();
        if now.saturating_sub(at) >= self.wanted.max_stale || until.is_some_and(|end| end <= now) {
            return;
        }
        let generation = &fetched.generation;
        // What was written by a clock that was ahead is of no use by now.
        if let Some(known) = self.on_disk.as_ref().filter(|known| known.at <= now) {
            let same = known.generation == *generation && known.until == until;
            let rest = self.rest();
            let stopping = self.drain.is_stopping();
            // Another process may have asked later.
            let older = at < known.at || (same && at == known.at);
            if older || (same && !stopping && at < known.at + rest) {
                self.next = Some(Instant::now() + rest);
                return;
            }
        }
        let written = Written {
            generation: generation.clone(),
            at,
            until,
        };
        let kept = Kept {
            fetched,
            source: self.wanted.source,
            at,
            until,
        };
        let (cache, wanted) = (Arc::clone(&self.cache), self.wanted.clone());
        let follower = self.follower.clone();
        // Never closed.
        let writer = Arc::clone(&self.cache.writers).acquire_owned().await;
        match blocking(move || cache.write(&follower, &wanted, &kept)).await {
            Some(Ok(is_written)) => {
                // If not, it is not this one's to write, at least for now.
                if is_written {
                    self.on_disk = Some(written);
                    if self.unwritten.is_over() {
                        tracing::info!(credential = %self.wanted.name, path = %self.path().display(), "a credential that could not be kept is kept again");
                    }
                }
                self.next = Some(Instant::now() + self.rest());
            }
            Some(Err(error)) => {
                self.on_disk = None;
                self.next = Some(Instant::now() + RETRY);
                let error = error.to_string();
                if self.unwritten.is_news(&error) {
                    tracing::error!(credential = %self.wanted.name, path = %self.path().display(), error, "cannot keep a credential: a start during an outage has none; it is tried again");
                }
            }
            None => {}
        }
        drop(writer);
    }

    /// What there is to keep: the value, when it was last the newest, and when it ends.
    async fn good(&mut self) -> Option<(Fetched, Duration, Option<Duration>)> {
        let (own, fetched) = self.current.clone()?;
        let confirmed = self.followed.confirmed.borrow().clone();
        let Confirmed { at, standing, .. } = confirmed.filter(|it| it.generation == own)?;
        match standing {
            Standing::Asked => Some((fetched, at, None)),
            Standing::Until(end) => Some((fetched, at, Some(end))),
            Standing::Told => {
                let answers = matches!(*self.followed.states.borrow(), State::Current(_));
                let at = match (answers, &self.on_disk) {
                    (true, _) => self.clock.since_1970(),
                    (false, Some(known)) => known.at,
                    (false, None) => at,
                };
                Some((fetched, at, None))
            }
            Standing::Lent => {
                // Of what was not lent before, nothing is to be left either.
                self.remove().await;
                None
            }
        }
    }

    /// For how long an unchanged value is not written again.
    fn rest(&self) -> Duration {
        (self.wanted.max_stale / 4).max(SHORTEST)
    }

    /// When what is kept is good for nothing any more, unless its source answers.
    fn over(&self) -> Option<Duration> {
        let known = self.on_disk.as_ref()?;
        if matches!(*self.publish.borrow(), State::Current(_)) {
            return None;
        }
        let stale = known.at.saturating_add(self.wanted.max_stale);
        Some(known.until.map_or(stale, |until| until.min(stale)))
    }

    /// It is over. Who has a value that is merely old goes on with it, as without a cache; one that has ended is taken away.
    async fn end(&mut self) {
        let until = self.on_disk.as_ref().and_then(|known| known.until);
        let ended = until.is_some_and(|until| until <= self.clock.since_1970());
        self.remove().await;
        if ended && self.served.take().is_some() {
            let why = "what was kept of it has ended, and its source cannot be asked".to_owned();
            let gone = State::Withdrawn(FetchError::Missing(why));
            self.publish.send_replace(gone);
        }
    }

    /// The cache is this process's from now on, or another's. Whoever had it may have changed what is there.
    async fn is_passed(&mut self) {
        if *self.hand.borrow_and_update() {
            let (cache, wanted) = (Arc::clone(&self.cache), self.wanted.clone());
            let follower = self.follower.clone();
            let found = blocking(move || cache.find(&follower, &wanted)).await;
            self.on_disk = found.flatten().map(|kept| Written {
                generation: kept.fetched.generation,
                at: kept.at,
                until: kept.until,
            });
        }
        self.write().await;
    }

    /// For the log.
    fn path(&self) -> PathBuf {
        self.cache.directory.path().join(self.follower.file())
    }

    /// What is in the way of that is said once for each thing that is, and when it is over.
    async fn remove(&mut self) {
        (self.on_disk, self.next, self.left) = (None, None, false);
        let (cache, follower) = (Arc::clone(&self.cache), self.follower.clone());
        let credential = &self.wanted.name;
        match blocking(move || cache.remove(&follower)).await {
            Some(Ok(Removed::Gone | Removed::Absent)) if self.unremoved.is_over() => {
                let path = self.path();
                tracing::info!(%credential, path = %path.display(), "what was kept of a credential and could not be removed is gone");
            }
            // Until it is.
            Some(Ok(Removed::NotOurs)) => self.left = true,
            Some(Err(error)) => {
                let error = error.to_string();
                if self.unremoved.is_news(&error) {
                    let path = self.path();
                    tracing::error!(%credential, path = %path.display(), error, "cannot remove what is kept of a credential; it is tried again");
                }
                self.left = true;
                self.next = Some(Instant::now() + RETRY);
            }
            Some(Ok(Removed::Gone | Removed::Absent)) | None => {}
        }
    }
}

/// None while everything ends.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}

async fn due(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

async fn ends(clock: &SharedClock, moment: Option<Duration>) {
    let Some(moment) = moment else {
        return std::future::pending().await;
    };
    let second = moment.saturating_add(Duration::from_millis(999)).as_secs();
    let second = UnixTime::since_unix_epoch(Duration::from_secs(second));
    clock::sleep_until(&**clock, second).await;
}
