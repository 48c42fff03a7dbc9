//! Following a source: what is known of its secret at every moment.

use std::time::Duration;

use fender_runtime::clock::SharedClock;
use fender_runtime::drain::Drain;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::{FetchError, Fetched, Generation, Source, Standing};

/// Unless an answer is whole ([`Source::is_whole`]), a change is believed when two looks this far apart agree: somebody who writes a file in place,
/// or removes it first, is not caught halfway.
const SETTLE: Duration = Duration::from_millis(100);

/// What is known of a secret.
#[derive(Clone, Debug, Default)]
pub enum State {
    /// Nobody has answered yet.
    #[default]
    Pending,
    /// The value, from a source that answers.
    Current(Fetched),
    /// The source cannot be asked or makes no sense; the last value still holds, if there was one.
    Stale {
        last: Option<Fetched>,
        error: FetchError,
        /// Since when that may not be the newest; none: since this was first heard.
        since: Option<Instant>,
    },
    /// The source says that the secret is not, or no longer, to be had.
    Withdrawn(FetchError),
}

impl State {
    /// The value to use, if any may be used.
    pub fn value(&self) -> Option<&Fetched> {
        match self {
            Self::Current(fetched) => Some(fetched),
            Self::Stale { last, .. } => last.as_ref(),
            Self::Pending | Self::Withdrawn(_) => None,
        }
    }

    /// What is wrong at present.
    pub fn error(&self) -> Option<&FetchError> {
        match self {
            Self::Stale { error, .. } | Self::Withdrawn(error) => Some(error),
            Self::Pending | Self::Current(_) => None,
        }
    }

    /// What is known after the source has been asked once more.
    pub fn after(&self, answer: Result<Fetched, FetchError>) -> Self {
        match answer {
            Ok(fetched) => Self::Current(fetched),
            Err(error) if error.is_refusal() => Self::Withdrawn(error),
            Err(error) => Self::Stale {
                last: self.value().cloned(),
                error,
                since: match self {
                    Self::Stale { since, .. } => *since,
                    Self::Pending | Self::Current(_) | Self::Withdrawn(_) => None,
                },
            },
        }
    }

    /// Whether `answer` would tell nothing new.
    fn agrees_with(&self, answer: &Result<Fetched, FetchError>) -> bool {
        match (self, answer) {
            (Self::Current(known), Ok(fetched)) => known.generation == fetched.generation,
            (Self::Stale { error, .. } | Self::Withdrawn(error), Err(again)) => error == again,
            _ => false,
        }
    }
}

/// When a source last gave the value that it is known by.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Confirmed {
    pub generation: Generation,
    /// When it was asked, counted from 1970.
    pub at: Duration,
    pub standing: Standing,
}

/// A secret as it changes, and how well it is known.
#[derive(Clone, Debug)]
pub struct Followed {
    pub states: watch::Receiver<State>,
    /// What is in force; whoever waits for a change of it is not woken.
    pub confirmed: watch::Receiver<Option<Confirmed>>,
}

/// Asks `source` at its interval until `drain` stops or nobody listens. The first answer is
/// published as it comes, a change after a second look.
pub fn watch(source: impl Source, drain: &Drain) -> watch::Receiver<State> {
    let (publish, states) = watch::channel(State::Pending);
    ask_on(source, publish, None, drain);
    states
}

/// The same, with when it was asked last.
pub fn follow(source: impl Source, clock: &SharedClock, drain: &Drain) -> Followed {
    let (publish, states) = watch::channel(State::Pending);
    let (known, confirmed) = watch::channel(None);
    let clock = clock.clone();
    ask_on(source, publish, Some(Note { clock, known }), drain);
    Followed { states, confirmed }
}

fn ask_on(source: impl Source, publish: watch::Sender<State>, note: Option<Note>, drain: &Drain) {
    let stop = drain.clone();
    drain.spawn(async move {
        tokio::select! {
            () = stop.stopping() => {}
            () = publish.closed() => {}
            () = ask_again_and_again(&source, &publish, note.as_ref()) => {}
        }
    });
}

/// Where it is written down when a source was asked.
struct Note {
    clock: SharedClock,
    known: watch::Sender<Option<Confirmed>>,
}

impl Note {
    /// `at` is when the asking began: the answer may be as old.
    fn confirm(&self, at: Duration, fetched: &Fetched, standing: Standing) {
        self.known.send_if_modified(|known| {
            *known = Some(Confirmed {
                generation: fetched.generation.clone(),
                at,
                standing,
            });
            false
        });
    }
}

async fn ask_again_and_again(
    source: &impl Source,
    publish: &watch::Sender<State>,
    note: Option<&Note>,
) {
    loop {
        let began = note.map(|note| note.clock.since_1970());
        let mut answer = source.fetch().await;
        let settled = {
            let known = publish.borrow();
            source.is_whole() || matches!(*known, State::Pending) || known.agrees_with(&answer)
        };
        if !settled {
            tokio::time::sleep(SETTLE).await;
            let again = source.fetch().await;
            if !same(&answer, &again) {
                continue;
            }
            answer = again;
        }
        if let (Some(note), Some(began), Ok(fetched)) = (note, began, &answer) {
            let asked = source
                .age()
                .map(|age| note.clock.since_1970().saturating_sub(age));
            let asked = asked.map_or(began, |asked| asked.min(began));
            note.confirm(asked, fetched, source.standing());
        }
        publish.send_if_modified(|state| {
            let news = !state.agrees_with(&answer);
            if news {
                *state = state.after(answer);
            }
            news
        });
        source.due().await;
    }
}

fn same(one: &Result<Fetched, FetchError>, other: &Result<Fetched, FetchError>) -> bool {
    match (one, other) {
        (Ok(one), Ok(other)) => one.generation == other.generation,
        (Err(one), Err(other)) => one == other,
        (Ok(_), Err(_)) | (Err(_), Ok(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use fender_identity::Secret;
    use fender_runtime::clock::{TestClock, UnixTime};

    use super::*;
    use crate::Generation;

    struct Script(Mutex<VecDeque<Result<&'static str, FetchError>>>);

    impl Script {
        fn new(answers: impl IntoIterator<Item = Result<&'static str, FetchError>>) -> Self {
            Self(Mutex::new(answers.into_iter().collect()))
        }
    }

    impl Source for Script {
        async fn fetch(&self) -> Result<Fetched, FetchError> {
            let mut answers = self.0.lock().unwrap();
            let answer = if answers.len() > 1 {
                answers.pop_front()
            } else {
                answers.front().cloned()
            };
            answer.unwrap().map(|name| Fetched {
                value: Secret::from(name.to_owned()),
                generation: Generation::named(name),
            })
        }

        fn interval(&self) -> Duration {
            Duration::from_secs(1)
        }
    }

    fn outage() -> Result<&'static str, FetchError> {
        Err(FetchError::Outage("away".to_owned()))
    }

    fn missing() -> Result<&'static str, FetchError> {
        Err(FetchError::Missing("gone".to_owned()))
    }

    fn shown(state: &State) -> String {
        let value = state
            .value()
            .map_or("nothing", |fetched| fetched.generation.as_str());
        let error = state.error().map(ToString::to_string).unwrap_or_default();
        format!("{value} {error}")
    }

    async fn story(answers: impl IntoIterator<Item = Result<&'static str, FetchError>>) -> String {
        let drain = Drain::new();
        let mut states = watch(Script::new(answers), &drain);
        let mut story = Vec::new();
        while let Ok(Ok(())) = tokio::time::timeout(Duration::from_secs(60), states.changed()).await
        {
            story.push(shown(&states.borrow_and_update()).trim_end().to_owned());
        }
        drain.stop();
        drain.drained().await;
        story.join(" | ")
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_keeps_the_value_and_a_refusal_withdraws_it() {
        let told = story([
            Ok("a"),
            outage(),
            outage(),
            Ok("a"),
            Ok("a"),
            missing(),
            missing(),
        ]);
        let expected = "a | a secret cannot be fetched: away | a | nothing secret is missing: gone";
        assert_eq!(told.await, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_secret_seen_halfway_through_its_writing_is_never_published() {
        let told = story([
            Ok("whole"),
            Ok("ha"),
            Ok("half"),
            missing(),
            Ok("next"),
            Ok("next"),
        ]);
        assert_eq!(told.await, "whole | next");
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_from_the_start_has_no_value_to_keep() {
        let told = story([outage(), Ok("a")]);
        assert_eq!(told.await, "nothing secret cannot be fetched: away | a");
    }

    #[tokio::test(start_paused = true)]
    async fn when_it_was_asked_is_known_for_each_answer_and_for_no_failure() {
        let drain = Drain::new();
        let clock = TestClock::new(UnixTime::since_unix_epoch(Duration::from_secs(1000)));
        let shared: SharedClock = clock.clone();
        let script = Script::new([Ok("a"), Ok("a"), outage(), outage()]);
        let followed = follow(script, &shared, &drain);
        let confirmed = || {
            let known = followed.confirmed.borrow().clone();
            known.map(|it| (it.generation.to_string(), it.at.as_secs(), it.standing))
        };
        assert_eq!(confirmed(), None);
        let mut states = followed.states.clone();
        states.changed().await.unwrap();
        assert_eq!(confirmed(), Some(("a".to_owned(), 1000, Standing::Asked)));
        clock.advance(Duration::from_secs(7));
        // The second answer wakes nobody, the third is a failure.
        states.changed().await.unwrap();
        assert!(states.borrow().error().is_some());
        assert_eq!(confirmed(), Some(("a".to_owned(), 1007, Standing::Asked)));
        drain.stop();
        drain.drained().await;
    }

    /// Gives what somebody else asked for.
    struct Shared(Script, Option<Duration>);

    impl Source for Shared {
        async fn fetch(&self) -> Result<Fetched, FetchError> {
            self.0.fetch().await
        }

        fn interval(&self) -> Duration {
            self.0.interval()
        }

        fn age(&self) -> Option<Duration> {
            self.1
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_was_there_already_is_as_old_as_it_is() {
        for (age, at) in [(None, 1000), (Some(0), 1000), (Some(300), 700)] {
            let drain = Drain::new();
            let clock = TestClock::new(UnixTime::since_unix_epoch(Duration::from_secs(1000)));
            let shared: SharedClock = clock;
            let source = Shared(Script::new([Ok("a")]), age.map(Duration::from_secs));
            let followed = follow(source, &shared, &drain);
            followed.states.clone().changed().await.unwrap();
            let known = followed.confirmed.borrow().clone();
            assert_eq!(known.unwrap().at, Duration::from_secs(at));
            drain.stop();
            drain.drained().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_asked_once_nobody_listens() {
        let drain = Drain::new();
        drop(watch(Script::new([Ok("a")]), &drain));
        drain.drained().await;
    }
}
