//! One secret or parameter, read once for all credentials that name it: several keys of it are of one answer.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use fender_config::snapshot::{AwsParameterVersion, AwsPlace, AwsSecretVersion};
use fender_identity::Secret;
use fender_runtime::backoff::{Backoff, spread};
use fender_runtime::random;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use super::desk::Desk;
use crate::FetchError;
use crate::hidden::Hidden;
use crate::vault::wire::{Field, Fields, scrubbed};

const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// Those who wait for the same moment come within this time after it.
const SPREAD: Duration = Duration::from_secs(1);
/// A day, in milliseconds: as long as a document may want.
const LONGEST_REFRESH: u64 = 24 * 60 * 60 * 1000;

/// What was read.
#[derive(Debug)]
pub(super) struct Reading {
    value: Secret,
    /// How AWS calls this one of the values. Harmless, and for people.
    version: String,
}

/// The answers of `GetSecretValue` and `GetParameter`, as far as they matter.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SecretAnswer {
    version_id: Option<String>,
    secret_string: Option<Hidden>,
    secret_binary: Option<Hidden>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ParameterAnswer {
    parameter: Parameter,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Parameter {
    value: Hidden,
    version: Option<u64>,
}

pub(super) struct Place {
    desk: Arc<Desk>,
    at: AwsPlace,
    /// In milliseconds: the shortest that somebody wants.
    refresh: AtomicU64,
    known: Mutex<Known>,
    schedule: watch::Sender<Schedule>,
}

#[derive(Debug)]
struct Known {
    answer: Option<Result<Arc<Reading>, FetchError>>,
    /// When it was asked for the last answer that it gave.
    asked: Instant,
    /// When it is to be asked again.
    next: Instant,
    backoff: Backoff,
    number: u64,
}

/// What whoever follows a place waits for.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    /// Of the answer; another one is news.
    number: u64,
    asked: Instant,
    next: Instant,
}

impl Place {
    pub(super) fn new(desk: Arc<Desk>, at: AwsPlace) -> Self {
        let next = Instant::now();
        Self {
            desk,
            at,
            refresh: AtomicU64::new(LONGEST_REFRESH),
            known: Mutex::new(Known {
                answer: None,
                asked: next,
                next,
                backoff: Backoff::new(FIRST_RETRY, LONGEST_RETRY),
                number: 0,
            }),
            schedule: watch::Sender::new(Schedule {
                number: 0,
                asked: next,
                next,
            }),
        }
    }

    /// Somebody wants to know of changes within this time.
    pub(super) fn at_least_every(&self, refresh: Duration) {
        let refresh = u64::try_from(refresh.as_millis()).unwrap_or(u64::MAX);
        self.refresh.fetch_min(refresh, Ordering::Relaxed);
    }

    pub(super) fn refresh(&self) -> Duration {
        Duration::from_millis(self.refresh.load(Ordering::Relaxed))
    }

    /// How long ago it was asked for the last answer that it gave.
    pub(super) fn age(&self) -> Duration {
        self.schedule.borrow().asked.elapsed()
    }

    /// What is there, and the number of the answer. Asks only if it is time.
    pub(super) async fn read(&self) -> (u64, Result<Arc<Reading>, FetchError>) {
        let mut known = self.known.lock().await;
        if let Some(answer) = &known.answer
            && Instant::now() < known.next
        {
            return (known.number, answer.clone());
        }
        let began = Instant::now();
        let mut answer = self.ask().await.map(Arc::new);
        if answer.is_ok() {
            known.asked = began;
        }
        known.next = self.next(&mut known, &answer);
        match (&known.answer, &answer) {
            (Some(Ok(one)), Ok(other))
                if one.value.ct_eq(&other.value) && one.version == other.version =>
            {
                answer = Ok(Arc::clone(one));
            }
            (Some(Err(one)), Err(other)) if one == other => {}
            _ => {
                if let Ok(reading) = &answer {
                    tracing::info!(place = %self.name(), version = %reading.version, "read");
                }
                known.number += 1;
                known.answer = Some(answer.clone());
            }
        }
        self.schedule.send_replace(Schedule {
            number: known.number,
            asked: known.asked,
            next: known.next,
        });
        (known.number, answer)
    }

    /// Resolves when there is news for who has seen answer `seen`, or when it is time to ask.
    pub(super) async fn due(&self, seen: u64) {
        let mut schedule = self.schedule.subscribe();
        loop {
            let now = *schedule.borrow_and_update();
            if now.number != seen {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(now.next) => return,
                Ok(()) = schedule.changed() => {}
            }
        }
    }

    fn next(&self, known: &mut Known, answer: &Result<Arc<Reading>, FetchError>) -> Instant {
        let now = Instant::now();
        let refreshed = now + self.refresh().mul_f64(0.9 + 0.2 * random::unit());
        match answer {
            Err(FetchError::Outage(_)) => {
                let retry = now + known.backoff.next();
                match self.desk.retry_at() {
                    Some(at) if at > now => retry.max(at + spread(SPREAD)),
                    Some(_) | None => retry,
                }
            }
            Ok(_) => {
                known.backoff.reset();
                refreshed
            }
            Err(_) => refreshed,
        }
    }

    async fn ask(&self) -> Result<Reading, FetchError> {
        let place = self.name();
        let malformed = |why: &str| FetchError::Malformed(format!("{place}: {why}"));
        let unlike = |error: serde_json::Error| {
            let (line, column) = (error.line(), error.column());
            malformed(&format!(
                "its answer is not what AWS answers (line {line}, column {column})"
            ))
        };
        match &self.at {
            AwsPlace::Secret { id, version } => {
                let question = match version {
                    AwsSecretVersion::Stage(stage) => {
                        json!({ "SecretId": id.as_str(), "VersionStage": stage })
                    }
                    AwsSecretVersion::Id(version) => {
                        json!({ "SecretId": id.as_str(), "VersionId": version })
                    }
                };
                let body = self
                    .desk
                    .ask("secretsmanager.GetSecretValue", &question, &place);
                let body = body.await?;
                let read: SecretAnswer = serde_json::from_slice(body.expose()).map_err(unlike)?;
                let value = match (read.secret_string, read.secret_binary) {
                    (Some(text), None) => text.0,
                    (None, Some(binary)) => {
                        let bytes = BASE64_STANDARD.decode(binary.0.expose());
                        Secret::new(bytes.map_err(|_| malformed("its binary is not Base64"))?)
                    }
                    _ => return Err(malformed("its answer has no value, or two")),
                };
                Ok(Reading {
                    value,
                    version: scrubbed(&read.version_id.unwrap_or_default(), &[]),
                })
            }
            AwsPlace::Parameter { name, version } => {
                let name = match version {
                    AwsParameterVersion::Newest => name.to_string(),
                    AwsParameterVersion::Number(number) => format!("{name}:{number}"),
                    AwsParameterVersion::Label(label) => format!("{name}:{label}"),
                };
                let question = json!({ "Name": name, "WithDecryption": true });
                let body = self.desk.ask("AmazonSSM.GetParameter", &question, &place);
                let body = body.await?;
                let read: ParameterAnswer =
                    serde_json::from_slice(body.expose()).map_err(unlike)?;
                let version = read.parameter.version.unwrap_or_default();
                Ok(Reading {
                    value: read.parameter.value.0,
                    version: version.to_string(),
                })
            }
        }
    }

    fn name(&self) -> String {
        let store = match &self.at {
            AwsPlace::Secret { .. } => "Secrets Manager",
            AwsPlace::Parameter { .. } => "Parameter Store",
        };
        format!("`{}` in {store} ({})", self.at, self.desk.region())
    }

    /// The whole, or one value of the JSON object that it is.
    pub(super) fn value(&self, reading: &Reading, key: Option<&str>) -> Result<Secret, FetchError> {
        let place = self.name();
        let malformed = |why: &str| FetchError::Malformed(format!("{place} {why}"));
        let Some(key) = key else {
            return match reading.value.is_empty() {
                true => Err(malformed("is empty")),
                false => Ok(reading.value.clone()),
            };
        };
        let fields = serde_json::from_slice::<Fields>(reading.value.expose());
        let fields =
            fields.map_err(|_| malformed(&format!("is no JSON object, so it has no `{key}`")))?;
        match fields.get(key) {
            Some(Field::Text(value)) if value.is_empty() => {
                Err(malformed(&format!("has nothing in `{key}`")))
            }
            Some(Field::Text(value)) => Ok(value.clone()),
            Some(Field::Other) => Err(malformed(&format!(
                "has in `{key}` neither text nor a whole number nor true or false"
            ))),
            None => Err(FetchError::Missing(format!("{place} has no `{key}`"))),
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Place").field(&self.at).finish()
    }
}
