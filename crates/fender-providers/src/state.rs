//! Following a source: what is known of its secret at every moment.

use std::time::Duration;

use fender_runtime::drain::Drain;
use tokio::sync::watch;

use crate::{FetchError, Fetched, Source};

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

/// Asks `source` at its interval until `drain` stops or nobody listens. The first answer is
/// published as it comes, a change after a second look.
pub fn watch(source: impl Source, drain: &Drain) -> watch::Receiver<State> {
    let (publish, states) = watch::channel(State::Pending);
    let stop = drain.clone();
    drain.spawn(async move {
        tokio::select! {
            () = stop.stopping() => {}
            () = publish.closed() => {}
            () = follow(&source, &publish) => {}
        }
    });
    states
}

async fn follow(source: &impl Source, publish: &watch::Sender<State>) {
    loop {
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
    async fn nobody_is_asked_once_nobody_listens() {
        let drain = Drain::new();
        drop(watch(Script::new([Ok("a")]), &drain));
        drain.drained().await;
    }
}
