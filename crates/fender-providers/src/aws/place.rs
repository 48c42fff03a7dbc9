//! One secret or parameter, read once for all credentials that name it: several keys of it are of one answer.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use fender_config::snapshot::{AwsParameterVersion, AwsPlace, AwsSecretVersion};
use fender_identity::Secret;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::desk::Desk;
use crate::FetchError;
use crate::fields::Fields;
use crate::hidden::Hidden;
use crate::said::scrubbed;
use crate::schedule::{Answer, Known, Schedule};

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
    schedule: Schedule,
    known: Mutex<Known<Reading>>,
}

impl Place {
    pub(super) fn new(desk: Arc<Desk>, at: AwsPlace) -> Self {
        Self {
            desk,
            at,
            schedule: Schedule::new(),
            known: Mutex::new(Known::new()),
        }
    }

    /// When it is asked.
    pub(super) fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// What is there, and the number of the answer. Asks only if it is time.
    pub(super) async fn read(&self) -> (u64, Answer<Reading>) {
        let mut known = self.known.lock().await;
        if let Some(standing) = known.standing() {
            return standing;
        }
        let began = Instant::now();
        let answer = self.ask().await.map(Arc::new);
        let retry_at = || self.desk.retry_at();
        known.next = self.schedule.after(&mut known, &answer, retry_at);
        let told = known.answered(began, answer, |one, other| {
            one.value.ct_eq(&other.value) && one.version == other.version
        });
        if let (true, Ok(reading)) = (told.is_news, &told.answer) {
            tracing::info!(place = %self.name(), version = %reading.version, "read");
        }
        self.schedule.tell(&known);
        (told.number, told.answer)
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
        fields.value(key, &place)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Place").field(&self.at).finish()
    }
}
