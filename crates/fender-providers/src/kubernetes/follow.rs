//! Following one Secret: it is listed, and then what happens to it is watched from there on.
//!
//! What is wrong with a watch is no news of the Secret: it is listed anew, and that answer counts. Only that a watch is not
//! allowed counts as well, because without one nobody would learn that the Secret has changed.

use std::sync::Arc;
use std::time::Duration;

use fender_config::snapshot::KubernetesName;
use fender_runtime::backoff::{Backoff, spread};
use fender_runtime::deadline::Deadline;
use tokio::sync::watch;
use tokio::time::Instant;

use super::api::{Api, Failure};
use super::wire::{self, Event, Listed, Object, Reading, Version};
use crate::FetchError;
use crate::http::Streamed;

const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// Those who wait for the same moment come within this time after it.
const SPREAD: Duration = Duration::from_secs(1);
/// How long a watch is wished for; up to a fourth more, so that not all of them end together. It is also how long the API
/// goes on with one that it would not begin any more.
const WATCH: Duration = Duration::from_secs(240);
/// How much longer it is listened to.
const GRACE: Duration = Duration::from_secs(30);
/// A watch that lasted this long was one.
const LASTING: Duration = Duration::from_secs(2);
/// How far apart events are looked at, on average, after so many at once: a Secret does not change more often.
const GAP: Duration = Duration::from_millis(100);
const BURST: u32 = 50;

/// The last word of the API, and which of its words it is.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) number: u64,
    pub(super) answer: Option<Result<Arc<Reading>, FetchError>>,
}

#[derive(Debug)]
pub(super) struct Follower {
    pub(super) api: Arc<Api>,
    /// None: that of the pod.
    pub(super) namespace: Option<KubernetesName>,
    pub(super) name: KubernetesName,
    pub(super) publish: watch::Sender<Seen>,
}

/// How a watch ended.
enum Ended {
    /// The API, after a while: it may go on from here.
    ThereAndThen(Version),
    /// In any other way.
    Otherwise,
}

impl Follower {
    /// Until nobody listens.
    pub(super) async fn run(self) {
        tokio::select! {
            () = self.publish.closed() => {}
            () = self.follow() => {}
        }
    }

    async fn follow(&self) {
        let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        loop {
            let begun = Instant::now();
            if let Err(error) = self.once(&mut backoff).await {
                self.publish(Err(error));
            }
            if begun.elapsed() >= LASTING {
                backoff.reset();
            }
            let retry = Instant::now() + backoff.next();
            let open = self.api.retry_at();
            let retry = open.map_or(retry, |open| retry.max(open + spread(SPREAD)));
            tokio::time::sleep_until(retry).await;
        }
    }

    /// Lists, and watches until that ends. The error is what is known from then on.
    async fn once(&self, backoff: &mut Backoff) -> Result<(), FetchError> {
        let namespace = match &self.namespace {
            Some(name) => name.clone(),
            None => self.api.own_namespace().await?,
        };
        let name = self.name.clone();
        let object = Object { namespace, name };
        let Listed {
            reading,
            mut version,
        } = self.api.list(&object).await?;
        let mut answer = Some(reading.ok_or_else(|| missing(&object)));
        loop {
            let begun = Instant::now();
            let wished = WATCH + spread(WATCH / 4);
            let opened = self.api.watch(&object, &version, wished).await;
            if let Err(Failure::Error(error @ FetchError::Denied(_))) = opened {
                return Err(error);
            }
            if let Some(listed) = answer.take() {
                self.publish(listed);
            }
            let streamed = match opened {
                Ok(streamed) => streamed,
                Err(Failure::Expired) => return Ok(()),
                Err(Failure::Error(error)) => {
                    tracing::warn!(secret = %object, %error, "a Secret is not watched yet");
                    return Ok(());
                }
            };
            let deadline = Deadline::after(wished + GRACE);
            match self
                .watch(streamed, &object, version, deadline, backoff)
                .await
            {
                Ended::ThereAndThen(last) if begun.elapsed() >= LASTING => {
                    backoff.reset();
                    tokio::time::sleep(spread(SPREAD)).await;
                    version = last;
                }
                Ended::ThereAndThen(_) | Ended::Otherwise => return Ok(()),
            }
        }
    }

    async fn watch(
        &self,
        mut streamed: Streamed,
        object: &Object,
        mut version: Version,
        deadline: Deadline,
        backoff: &mut Backoff,
    ) -> Ended {
        let mut next = rested();
        loop {
            let line = match streamed.line(deadline).await {
                Ok(Some(line)) => line,
                Ok(None) => return Ended::ThereAndThen(version),
                Err(error) => {
                    tracing::info!(secret = %object, %error, "a watch has ended");
                    return Ended::Otherwise;
                }
            };
            tokio::time::sleep_until(next).await;
            next = next.max(rested()) + GAP;
            if line.is_empty() {
                continue;
            }
            match wire::event(&line, object) {
                Ok(Event::Changed(reading, now)) => {
                    backoff.reset();
                    self.publish(Ok(reading));
                    version = now;
                }
                Ok(Event::Deleted(now)) => {
                    self.publish(Err(missing(object)));
                    version = now;
                }
                Ok(Event::Bookmark(now)) => version = now,
                Ok(Event::Foreign) => {}
                Ok(Event::Expired) => return Ended::Otherwise,
                Ok(Event::Failed(status)) => {
                    tracing::info!(secret = %object, status, "a watch has ended");
                    return Ended::Otherwise;
                }
                Err(error) => {
                    tracing::warn!(secret = %object, %error, "a watch makes no sense");
                    return Ended::Otherwise;
                }
            }
        }
    }

    fn publish(&self, answer: Result<Reading, FetchError>) {
        self.publish.send_if_modified(|seen| {
            let news = match (&seen.answer, &answer) {
                (Some(Ok(known)), Ok(reading)) => !known.equals(reading),
                (Some(Err(known)), Err(error)) => known != error,
                _ => true,
            };
            if news {
                seen.number += 1;
                seen.answer = Some(answer.map(Arc::new));
            }
            news
        });
    }
}

fn missing(object: &Object) -> FetchError {
    FetchError::Missing(format!("there is no {object}"))
}

/// Where the next moment stands after a quiet time: so many of them lie behind.
fn rested() -> Instant {
    let now = Instant::now();
    now.checked_sub(GAP * (BURST - 1)).unwrap_or(now)
}
