//! A file that documents name, understood, for as long as what it held may count.
//!
//! Somebody else writes it, and we decide by it whom to believe. An outage is no withdrawal: while the file cannot be read,
//! or makes no sense, what it held before counts, but for an hour and no longer, so that a broken file does not keep alive
//! what the next one was to end. A file that is gone is taken at its word. What has never been read counts for nothing.

use std::sync::Arc;
use std::time::Duration;

use fender_identity::Secret;
use fender_providers::State;
use fender_runtime::clock::{SharedClock, UnixTime, sleep_until};
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use tokio::sync::watch;

use crate::credentials::Watched;
use crate::time::later;

/// How long what a file held counts once it has become unreadable or senseless, to put it right.
pub(crate) const BROKEN: Duration = Duration::from_secs(60 * 60);

/// One file, followed until this is dropped.
#[derive(Debug)]
pub(crate) struct Followed<T> {
    known: watch::Receiver<Known<T>>,
}

#[derive(Debug)]
struct Known<T> {
    value: Option<Arc<T>>,
    /// Until when it counts, if something is wrong.
    until: Option<UnixTime>,
    /// What is wrong.
    problem: Option<String>,
}

/// How bytes become what they mean.
type Understand<T> = fn(&[u8]) -> Result<T, String>;

impl<T: Send + Sync + 'static> Followed<T> {
    /// `what` names it in the log.
    pub(crate) fn begin(
        what: String,
        file: Watched,
        understand: Understand<T>,
        clock: &SharedClock,
        drain: &Drain,
    ) -> Self {
        let (publish, known) = watch::channel(Known {
            value: None,
            until: None,
            problem: None,
        });
        let following = Following {
            what,
            understand,
            clock: clock.clone(),
            publish,
        };
        let stop = drain.clone();
        drain.spawn(async move {
            tokio::select! {
                () = stop.stopping() => {}
                () = following.publish.closed() => {}
                () = following.run(&file) => {}
            }
        });
        Self { known }
    }

    /// What counts now, as soon as the file has been looked at for the first time; or why nothing does.
    pub(crate) async fn value(&self, now: UnixTime, deadline: Deadline) -> Result<Arc<T>, String> {
        let mut known = self.known.clone();
        let looked = |known: &Known<T>| known.value.is_some() || known.problem.is_some();
        // Without a look there is no value, which is said below.
        let _ = deadline.bound(known.wait_for(looked)).await;
        let known = self.known.borrow();
        let why = |otherwise: &str| {
            known
                .problem
                .clone()
                .unwrap_or_else(|| otherwise.to_owned())
        };
        let value = known.value.clone();
        let value = value.ok_or_else(|| why("a file took too long to read"))?;
        match known.until {
            Some(until) if now > until => Err(why("a file has been unusable for too long")),
            Some(_) | None => Ok(value),
        }
    }
}

impl Followed<Secret> {
    /// What is taken as it is.
    pub(crate) fn bytes(what: String, file: Watched, clock: &SharedClock, drain: &Drain) -> Self {
        let understand = |bytes: &[u8]| Ok(Secret::new(bytes.to_vec()));
        Self::begin(what, file, understand, clock, drain)
    }
}

/// The side that looks.
struct Following<T> {
    what: String,
    understand: Understand<T>,
    clock: SharedClock,
    publish: watch::Sender<Known<T>>,
}

impl<T> Following<T> {
    async fn run(&self, file: &Watched) {
        let mut states = (**file).clone();
        loop {
            let state = states.borrow_and_update().clone();
            self.look(&state);
            let until = self.publish.borrow().until;
            tokio::select! {
                changed = states.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = ends(&self.clock, until) => self.end(),
            }
        }
    }

    fn look(&self, state: &State) {
        match state {
            State::Pending => {}
            State::Current(fetched) => match (self.understand)(fetched.value.expose()) {
                Ok(value) => {
                    tracing::info!(what = self.what, "read");
                    self.put(Some(value), None);
                }
                Err(problem) => self.broken(problem),
            },
            State::Stale { last, error, .. } => {
                // The first that is seen of a file may be what it held before; what has had its hour is not taken again.
                let unseen = {
                    let known = self.publish.borrow();
                    known.value.is_none() && known.problem.is_none()
                };
                let first = last.as_ref().filter(|_| unseen);
                if let Some(Ok(value)) =
                    first.map(|fetched| (self.understand)(fetched.value.expose()))
                {
                    self.put(Some(value), None);
                }
                self.broken(error.to_string());
            }
            State::Withdrawn(error) => {
                let problem = error.to_string();
                tracing::error!(
                    what = self.what,
                    problem,
                    "gone: nothing is vouched for any more"
                );
                self.put(None, Some(problem));
            }
        }
    }

    fn put(&self, value: Option<T>, problem: Option<String>) {
        self.publish.send_replace(Known {
            value: value.map(Arc::new),
            until: None,
            problem,
        });
    }

    /// What was known counts for a while, from the first time that something was wrong.
    fn broken(&self, problem: String) {
        self.publish.send_modify(|known| {
            if known.value.is_some() && known.until.is_none() {
                known.until = Some(later(self.clock.now(), BROKEN));
            }
            let counts_until = known.until.map(|until| until.as_secs());
            tracing::error!(what = self.what, problem, counts_until, "cannot be used");
            known.problem = Some(problem);
        });
    }

    fn end(&self) {
        let problem = self.publish.borrow().problem.clone().unwrap_or_default();
        tracing::error!(
            what = self.what,
            problem,
            "unusable for too long: nothing is vouched for any more"
        );
        self.put(None, Some(problem));
    }
}

async fn ends(clock: &SharedClock, until: Option<UnixTime>) {
    match until {
        Some(until) => sleep_until(&**clock, until).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use fender_providers::{FetchError, Fetched, Generation};
    use fender_runtime::clock::{Clock as _, TestClock};

    use super::*;

    fn fetched(text: &str) -> Fetched {
        Fetched {
            value: Secret::from(text.to_owned()),
            generation: Generation::random(),
        }
    }

    fn number(text: &[u8]) -> Result<u32, String> {
        let text = std::str::from_utf8(text).map_err(|error| error.to_string())?;
        text.parse().map_err(|_| format!("`{text}` is no number"))
    }

    /// A file that says what a test has it say, and the number in it.
    struct File {
        says: watch::Sender<State>,
        followed: Followed<u32>,
        clock: Arc<TestClock>,
        _drain: Drain,
    }

    impl File {
        fn new(first: State) -> Self {
            let (says, states) = watch::channel(first);
            let start = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
            let clock = TestClock::new(start);
            let shared: SharedClock = clock.clone();
            let drain = Drain::new();
            let what = "a number".to_owned();
            let followed = Followed::begin(what, Arc::new(states), number, &shared, &drain);
            Self {
                says,
                followed,
                clock,
                _drain: drain,
            }
        }

        async fn value(&self) -> Result<u32, String> {
            // Under a paused clock this lets everybody else go as far as they can.
            tokio::time::sleep(Duration::from_secs(60)).await;
            let deadline = Deadline::after(Duration::from_secs(5));
            self.followed
                .value(self.clock.now(), deadline)
                .await
                .map(|value| *value)
        }

        fn outage(last: Option<&str>) -> State {
            State::Stale {
                last: last.map(fetched),
                error: FetchError::Outage("away".to_owned()),
                since: None,
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_cannot_be_read_counts_for_an_hour_and_not_for_another_one() {
        let file = File::new(State::Current(fetched("1")));
        assert_eq!(file.value().await, Ok(1));
        file.says.send_replace(File::outage(Some("1")));
        assert_eq!(file.value().await, Ok(1));
        file.clock.advance(BROKEN);
        for _ in 0..3 {
            file.clock.advance(Duration::from_secs(1));
            file.value().await.unwrap_err();
        }
        // More of the same is no new hour.
        file.says.send_replace(File::outage(Some("1")));
        file.value().await.unwrap_err();
        file.says.send_replace(State::Current(fetched("2")));
        assert_eq!(file.value().await, Ok(2));
    }

    #[tokio::test(start_paused = true)]
    async fn trouble_of_another_kind_does_not_begin_another_hour() {
        let file = File::new(State::Current(fetched("1")));
        assert_eq!(file.value().await, Ok(1));
        for trouble in [File::outage(Some("1")), State::Current(fetched("one"))] {
            file.says.send_replace(trouble);
            assert_eq!(file.value().await, Ok(1));
            file.clock.advance(Duration::from_secs(40 * 60));
        }
        file.value().await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_gone_or_was_never_read_counts_for_nothing() {
        let file = File::new(State::Current(fetched("1")));
        assert_eq!(file.value().await, Ok(1));
        let gone = FetchError::Missing("no such file".to_owned());
        file.says.send_replace(State::Withdrawn(gone));
        file.value().await.unwrap_err();

        let never = File::new(File::outage(None));
        never.value().await.unwrap_err();
        let pending = File::new(State::Pending);
        pending.value().await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn what_others_saw_before_counts_for_whoever_comes_while_it_is_away() {
        let file = File::new(File::outage(Some("1")));
        assert_eq!(file.value().await, Ok(1));
        file.clock.advance(BROKEN + Duration::from_secs(1));
        file.value().await.unwrap_err();
    }
}
