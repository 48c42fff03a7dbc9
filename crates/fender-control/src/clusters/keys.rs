//! The keys that an issuer publishes, kept at hand.
//!
//! From a file that somebody else writes, or from a URL: asked at the start and then every ten minutes, so that nobody
//! who attests waits for it. While the URL does not answer, the last keys count for a day and no longer; those of a file, as
//! long as anything that is [`Followed`]. A token with a key that is not among them makes us ask once more, but not more often
//! than every half minute: anybody can make up a key's name.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fender_config::{HttpsUrl, KeySource};
use fender_identity::Secret;
use fender_identity::jwt::{Keys, MAX_SET, Purpose};
use fender_providers::http::{HttpClient, Method, Question};
use fender_runtime::backoff::Backoff;
use fender_runtime::clock::{SharedClock, UnixTime};
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::credentials::Sources;
use crate::followed::Followed;
use crate::time::later;

const REFRESH: Duration = Duration::from_secs(10 * 60);
/// How long keys count that could not be asked for anew.
const OLDEST: Duration = Duration::from_secs(24 * 60 * 60);
/// Between two questions, whoever makes us ask.
const PAUSE: Duration = Duration::from_secs(30);
/// What one question may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The keys of one issuer, from wherever its cluster's document says.
pub(super) enum PublishedKeys {
    File(Followed<Keys>),
    Url {
        known: watch::Receiver<Known>,
        ask: Arc<Notify>,
    },
}

#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    keys: Option<Arc<Keys>>,
    /// Until when they count.
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
        match source {
            KeySource::File(path) => Self::File(Followed::begin(
                format!("keys of the cluster `{cluster}`"),
                sources.watch_file(path),
                parse,
                clock,
                drain,
            )),
            KeySource::Url { url, roots, token } => {
                let (publish, known) = watch::channel(Known::default());
                let ask = Arc::new(Notify::new());
                let follow = |what, path: &Path| {
                    let what = format!("{what} for the issuer of the cluster `{cluster}`");
                    Followed::bytes(what, sources.watch_file(path), clock, drain)
                };
                let issuer = Issuer {
                    cluster: cluster.to_owned(),
                    url: url.clone(),
                    roots: follow("roots", roots),
                    token: token.as_ref().map(|path| follow("token", path)),
                    clock: clock.clone(),
                };
                let asked = Arc::clone(&ask);
                let stop = drain.clone();
                drain.spawn(async move {
                    tokio::select! {
                        () = stop.stopping() => {}
                        () = publish.closed() => {}
                        () = issuer.keep_asking(&publish, &asked) => {}
                    }
                });
                Self::Url { known, ask }
            }
        }
    }

    /// The keys to verify with, as soon as there was a first answer of whatever kind; or why there are none.
    pub(super) async fn keys(
        &self,
        now: UnixTime,
        deadline: Deadline,
    ) -> Result<Arc<Keys>, String> {
        let known = match self {
            Self::File(file) => return file.value(now, deadline).await,
            Self::Url { known, .. } => known,
        };
        let answered = |known: &Known| known.keys.is_some() || known.problem.is_some();
        // Without one, there are no keys, which is said below.
        let _ = deadline.bound(known.clone().wait_for(answered)).await;
        let known = known.borrow();
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
        let Self::Url { known, ask } = self else {
            return Asked::Nobody;
        };
        let mut known = known.clone();
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

/// Who is asked for keys over the network.
struct Issuer {
    cluster: String,
    url: HttpsUrl,
    roots: Followed<Secret>,
    token: Option<Followed<Secret>>,
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
        let now = self.clock.now();
        let roots = self.roots.value(now, deadline).await?;
        let client = HttpClient::new(roots.expose(), MAX_SET, self.clock.clone())
            .map_err(|error| error.to_string())?;
        let headers = match &self.token {
            Some(token) => vec![bearer(&*token.value(now, deadline).await?)?],
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
