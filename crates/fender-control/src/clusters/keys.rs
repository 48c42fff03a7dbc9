//! The keys that an issuer publishes, kept at hand.
//!
//! From a file that somebody else writes, or from a URL: asked at the start and then every ten minutes, so that nobody
//! who attests waits for it. While the URL does not answer, the last keys count for a day and no longer; from a file that
//! can no longer be read or understood, for an hour. One that is gone is taken at its word. A token with a
//! key that is not among them makes us ask once more, but not more often than every half minute: anybody can make up a
//! key's name.

use std::sync::Arc;
use std::time::Duration;

use fender_config::{HttpsUrl, KeySource};
use fender_identity::Secret;
use fender_identity::jwt::{Keys, MAX_SET, Purpose};
use fender_providers::State;
use fender_providers::http::{HttpClient, Method, Question};
use fender_runtime::backoff::Backoff;
use fender_runtime::clock::{SharedClock, UnixTime, sleep_until};
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::credentials::{Sources, Watched, read};
use crate::time::later;

const REFRESH: Duration = Duration::from_secs(10 * 60);
/// How long keys count that could not be asked for anew.
const OLDEST: Duration = Duration::from_secs(24 * 60 * 60);
/// How long the keys of a file count that has become unreadable or no set of keys, to put it right.
const BROKEN: Duration = Duration::from_secs(60 * 60);
/// Between two questions, whoever makes us ask.
const PAUSE: Duration = Duration::from_secs(30);
/// What one question may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The keys of one issuer, from wherever its cluster's document says.
pub(super) struct PublishedKeys {
    known: watch::Receiver<Known>,
    ask: Option<Arc<Notify>>,
}

#[derive(Clone, Debug, Default)]
struct Known {
    keys: Option<Arc<Keys>>,
    /// Until when they count; keys from a file count while it is well.
    until: Option<UnixTime>,
    /// Of the last attempt.
    problem: Option<String>,
    asked: Option<Instant>,
}

/// What came of asking for newer keys.
pub(super) enum Asked {
    Answered,
    TooSoon,
    /// A file says what it says.
    Nobody,
}

impl PublishedKeys {
    /// Begins to follow them, until this is dropped.
    pub(super) fn follow(
        cluster: &str,
        source: &KeySource,
        sources: &Sources,
        clock: &SharedClock,
        drain: &Drain,
    ) -> Self {
        let (publish, known) = watch::channel(Known::default());
        let cluster = cluster.to_owned();
        let stop = drain.clone();
        let ask = match source {
            KeySource::File(path) => {
                let file = sources.watch(path);
                let clock = clock.clone();
                drain.spawn(async move {
                    tokio::select! {
                        () = stop.stopping() => {}
                        () = publish.closed() => {}
                        () = from_file(&cluster, &file, &clock, &publish) => {}
                    }
                });
                None
            }
            KeySource::Url { url, roots, token } => {
                let ask = Arc::new(Notify::new());
                let issuer = Issuer {
                    cluster,
                    url: url.clone(),
                    roots: sources.watch(roots),
                    token: token.as_ref().map(|path| sources.watch(path)),
                    clock: clock.clone(),
                };
                let asked = Arc::clone(&ask);
                drain.spawn(async move {
                    tokio::select! {
                        () = stop.stopping() => {}
                        () = publish.closed() => {}
                        () = issuer.keep_asking(&publish, &asked) => {}
                    }
                });
                Some(ask)
            }
        };
        Self { known, ask }
    }

    /// Waits for the first answer of whatever kind.
    pub(super) async fn answered(&self, deadline: Deadline) {
        let mut known = self.known.clone();
        let answered = |known: &Known| known.keys.is_some() || known.problem.is_some();
        // Without one, there are no keys, and that is said by whoever asks for them.
        let _ = deadline.bound(known.wait_for(answered)).await;
    }

    /// The keys to verify with, or why there are none.
    pub(super) fn keys(&self, now: UnixTime) -> Result<Arc<Keys>, String> {
        let known = self.known.borrow();
        let why = |otherwise: &str| {
            known
                .problem
                .clone()
                .unwrap_or_else(|| otherwise.to_owned())
        };
        let keys = known.keys.clone();
        let keys = keys.ok_or_else(|| why("the issuer's keys have not been read yet"))?;
        match known.until {
            Some(until) if now > until => Err(why("the issuer's keys are too old")),
            Some(_) | None => Ok(keys),
        }
    }

    /// Asks for newer keys, and waits until there was an answer of whatever kind.
    pub(super) async fn ask(&self, deadline: Deadline) -> Asked {
        let Some(ask) = &self.ask else {
            return Asked::Nobody;
        };
        let mut known = self.known.clone();
        let last = known.borrow_and_update().asked;
        if last.is_some_and(|last| last.elapsed() < PAUSE) {
            return Asked::TooSoon;
        }
        ask.notify_one();
        // Without an answer, what was known is what is known.
        let _ = deadline.bound(known.changed()).await;
        Asked::Answered
    }
}

async fn from_file(
    cluster: &str,
    file: &Watched,
    clock: &SharedClock,
    publish: &watch::Sender<Known>,
) {
    let mut states = (**file).clone();
    loop {
        let state = states.borrow_and_update().clone();
        match &state {
            State::Pending => {}
            State::Current(fetched) => match parse(fetched.value.expose()) {
                Ok(keys) => {
                    tracing::info!(cluster, keys = keys.len(), "keys of the issuer read");
                    publish.send_replace(Known {
                        keys: Some(Arc::new(keys)),
                        ..Known::default()
                    });
                }
                Err(problem) => broken(cluster, problem, clock, publish),
            },
            State::Stale { last, error } => {
                // The first that is seen of a file may be what it held before.
                let first = last
                    .as_ref()
                    .filter(|_| publish.borrow().keys.is_none())
                    .and_then(|fetched| parse(fetched.value.expose()).ok());
                if let Some(keys) = first {
                    publish.send_modify(|known| known.keys = Some(Arc::new(keys)));
                }
                broken(cluster, error.to_string(), clock, publish);
            }
            State::Withdrawn(error) => {
                let problem = error.to_string();
                tracing::error!(
                    cluster,
                    problem,
                    "keys of the issuer are gone: nothing is vouched for any more"
                );
                publish.send_replace(Known {
                    problem: Some(problem),
                    ..Known::default()
                });
            }
        }
        let until = publish.borrow().until;
        tokio::select! {
            changed = states.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = ends(clock, until) => {
                let problem = publish.borrow().problem.clone().unwrap_or_default();
                tracing::error!(cluster, problem, "keys of the issuer have been unusable for too long: nothing is vouched for any more");
                publish.send_modify(|known| (known.keys, known.until) = (None, None));
            }
        }
    }
}

/// The keys of before count for a while, from the first time that something was wrong.
fn broken(cluster: &str, problem: String, clock: &SharedClock, publish: &watch::Sender<Known>) {
    publish.send_modify(|known| {
        if known.keys.is_some() && known.until.is_none() {
            known.until = Some(later(clock.now(), BROKEN));
        }
        let until = known.until.map(|until| until.as_secs());
        tracing::error!(
            cluster,
            problem,
            keys_count_until = until,
            "keys of the issuer cannot be used"
        );
        known.problem = Some(problem);
    });
}

async fn ends(clock: &SharedClock, until: Option<UnixTime>) {
    match until {
        Some(until) => sleep_until(&**clock, until).await,
        None => std::future::pending().await,
    }
}

/// Who is asked for keys over the network.
struct Issuer {
    cluster: String,
    url: HttpsUrl,
    roots: Watched,
    token: Option<Watched>,
    clock: SharedClock,
}

impl Issuer {
    async fn keep_asking(&self, publish: &watch::Sender<Known>, ask: &Notify) {
        let mut backoff = Backoff::new(Duration::from_secs(1), REFRESH);
        loop {
            let answer = self.fetch().await;
            let wait = match &answer {
                Ok(_) => {
                    backoff.reset();
                    REFRESH
                }
                Err(_) => backoff.next(),
            };
            self.publish(answer, publish);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = ask.notified() => {}
            }
        }
    }

    fn publish(&self, answer: Result<Keys, String>, publish: &watch::Sender<Known>) {
        let asked = Some(Instant::now());
        let cluster = self.cluster.as_str();
        match answer {
            Ok(keys) => {
                let until = later(self.clock.now(), OLDEST);
                tracing::debug!(cluster, keys = keys.len(), "keys of the issuer fetched");
                publish.send_replace(Known {
                    keys: Some(Arc::new(keys)),
                    until: Some(until),
                    problem: None,
                    asked,
                });
            }
            Err(problem) => {
                tracing::warn!(cluster, url = %self.url, problem, "keys of the issuer cannot be fetched");
                publish.send_modify(|known| {
                    known.problem = Some(problem);
                    known.asked = asked;
                });
            }
        }
    }

    async fn fetch(&self) -> Result<Keys, String> {
        let deadline = Deadline::after(PATIENCE);
        let roots = read(&self.roots, deadline).await?;
        let client = HttpClient::new(roots.expose(), MAX_SET, self.clock.clone())
            .map_err(|error| error.to_string())?;
        let headers = match &self.token {
            Some(token) => vec![bearer(&read(token, deadline).await?)?],
            None => Vec::new(),
        };
        let question = Question {
            method: Method::Get,
            url: &self.url,
            headers: &headers,
            body: None,
        };
        let answer = client
            .ask(question, deadline)
            .await
            .map_err(|error| error.to_string())?;
        if !answer.is_success() {
            return Err(format!("it answers with status {}", answer.status));
        }
        parse(answer.body.expose())
    }
}

fn parse(text: &[u8]) -> Result<Keys, String> {
    Keys::parse(text, Purpose::Signatures).map_err(|error| error.to_string())
}

/// A token from a file as a header, without the line end that editors leave.
pub(super) fn bearer(token: &Secret) -> Result<(&'static str, Secret), String> {
    let token = token.expose_str().ok_or("a token file is not text")?;
    let value = Secret::from(format!("Bearer {}", token.trim_ascii_end()));
    Ok(("authorization", value))
}
