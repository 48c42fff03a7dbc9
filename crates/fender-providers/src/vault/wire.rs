//! Vault's HTTP API: what is sent, and what its answers mean. Nothing of an answer is repeated in an error but the texts
//! of `errors`, cut, printable, and without the token or whatever else we proved ourselves by.
//!
//! <https://developer.hashicorp.com/vault/api-docs>

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use fender_config::StoreUrl;
use fender_config::snapshot::VaultPath;
use fender_identity::Secret;
use fender_runtime::deadline::Deadline;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::FetchError;
use crate::fields::Fields;
use crate::hidden::Hidden;
use crate::http::{Answer, HttpClient, HttpError, Method, Question, Wish};
use crate::said::scrubbed;

/// The most an answer may weigh: a secret of a mebibyte, escaped.
pub(super) const MAX_ANSWER: usize = 2 * 1024 * 1024;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// One request.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) method: Method,
    /// Below `/v1/`, escaped.
    pub(super) path: String,
    pub(super) token: Option<Secret>,
    /// JSON.
    pub(super) body: Option<Secret>,
    /// What was read to make the body.
    pub(super) proof: Option<Secret>,
}

impl Call {
    pub(super) fn get(path: String, token: &Secret) -> Self {
        Self {
            method: Method::Get,
            path,
            token: Some(token.clone()),
            body: None,
            proof: None,
        }
    }

    pub(super) fn post(path: &str, token: &Secret, body: serde_json::Value) -> Self {
        Self {
            method: Method::Post,
            path: path.to_owned(),
            token: Some(token.clone()),
            body: Some(Secret::from(body.to_string())),
            proof: None,
        }
    }
}

pub(super) type Asked<'a> = Pin<Box<dyn Future<Output = Result<Answer, HttpError>> + Send + 'a>>;

/// The way to one server.
pub(super) trait Transport: fmt::Debug + Send + Sync + 'static {
    fn ask<'a>(&'a self, call: &'a Call) -> Asked<'a>;
}

/// Over HTTP.
#[derive(Debug)]
pub(super) struct Http {
    pub(super) client: HttpClient,
    pub(super) address: StoreUrl,
    pub(super) namespace: Option<VaultPath>,
}

impl Transport for Http {
    fn ask<'a>(&'a self, call: &'a Call) -> Asked<'a> {
        let text = |text: &str| Secret::from(text.to_owned());
        // With this no page of somebody else's can have a browser ask.
        let mut headers = vec![("x-vault-request", text("true"))];
        let namespace = self.namespace.as_ref();
        headers.extend(namespace.map(|name| ("x-vault-namespace", text(name.as_str()))));
        let token = call.token.clone();
        headers.extend(token.map(|token| ("x-vault-token", token)));
        Box::pin(async move {
            let url = self.address.join(&format!("/v1/{}", call.path));
            let question = Question {
                method: call.method,
                url: &url,
                headers: &headers,
                body: call.body.clone(),
            };
            self.client.ask(question, Deadline::after(PATIENCE)).await
        })
    }
}

/// Why there is no answer that helps.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nothing can be asked there at present.
    Away {
        why: String,
        wish: Option<Wish>,
    },
    /// This was not answered; something else may be.
    Failed(String),
    /// 403.
    Denied(String),
    /// 404.
    Missing {
        why: String,
        body: Secret,
    },
    /// Any other answer that it cannot be done as it was asked.
    Refused(String),
    Malformed(String),
}

impl Failure {
    /// Nobody could be asked.
    pub(super) fn of(error: HttpError, proofs: &[&Secret]) -> Self {
        match error {
            HttpError::Unreachable(why) => Self::Away {
                why: scrubbed(&why, proofs),
                wish: None,
            },
            HttpError::TimedOut => Self::Failed(error.to_string()),
            HttpError::TooLarge { .. } => Self::Malformed(error.to_string()),
            HttpError::Header { .. } => Self::Refused(error.to_string()),
        }
    }

    /// What an answer says, if it is not what was asked for.
    pub(super) fn in_answer(answer: &Answer, proofs: &[&Secret]) -> Option<Self> {
        let status = answer.status;
        let said = |what: &str| {
            let reason = reason(&answer.body, proofs);
            match reason.is_empty() {
                true => format!("answers with status {status}{what}"),
                false => format!("answers with status {status}{what}: {reason}"),
            }
        };
        match status {
            200..=299 => None,
            300..=399 => Some(Self::Away {
                why: format!(
                    "answers with status {status}, which sends us elsewhere, and a token is shown to nobody else: it is a standby \
                     that does not forward; name the active server, or what stands before all of them"
                ),
                wish: None,
            }),
            403 => Some(Self::Denied(said(""))),
            404 => Some(Self::Missing {
                why: said(""),
                body: answer.body.clone(),
            }),
            // 412: a replica that has not caught up. 429: a quota. 472 and 473: a secondary. 5xx: sealed, or a proxy's.
            429 | 472 | 473 | 502 | 503 | 504 => Some(Self::Away {
                why: said(match status {
                    503 => " (sealed, or being looked after)",
                    429 => " (asked too often)",
                    _ => "",
                }),
                wish: answer.wish,
            }),
            412 | 500..=599 => Some(Self::Failed(said(""))),
            _ => Some(Self::Refused(said(""))),
        }
    }

    /// What that means to whoever wants a secret. `place` names what was asked.
    pub(super) fn into_error(self, place: &str) -> FetchError {
        match self {
            Self::Away { why, .. } | Self::Failed(why) => {
                FetchError::Outage(format!("{place}: {why}"))
            }
            Self::Denied(why) => FetchError::Denied(format!("{place}: {why}")),
            Self::Missing { why, .. } => FetchError::Missing(format!("{place}: {why}")),
            Self::Refused(why) | Self::Malformed(why) => {
                FetchError::Malformed(format!("{place}: {why}"))
            }
        }
    }
}

/// In the server's own words, which come from outside: cut, and nothing in them can move a cursor or show a secret.
fn reason(body: &Secret, proofs: &[&Secret]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        #[serde(default)]
        errors: Vec<String>,
    }
    let errors: Option<Errors> = serde_json::from_slice(body.expose()).ok();
    let errors = errors.map(|errors| errors.errors).unwrap_or_default();
    scrubbed(&errors.join("; "), proofs)
}

/// What most answers consist of.
#[derive(Debug, Deserialize)]
pub(super) struct Body<D> {
    pub(super) data: Option<D>,
    pub(super) auth: Option<Auth>,
    #[serde(default)]
    pub(super) lease_id: String,
    /// In seconds.
    #[serde(default)]
    pub(super) lease_duration: u64,
    #[serde(default)]
    pub(super) renewable: bool,
}

/// What a login gives, or the renewal of a token.
#[derive(Debug, Deserialize)]
pub(super) struct Auth {
    #[serde(default)]
    pub(super) client_token: Hidden,
    /// In seconds; 0 is for ever.
    #[serde(default)]
    pub(super) lease_duration: u64,
    #[serde(default)]
    pub(super) renewable: bool,
}

/// What a token says of itself.
#[derive(Debug, Deserialize)]
pub(super) struct TokenFacts {
    /// In seconds; 0 is for ever.
    #[serde(default)]
    pub(super) ttl: u64,
    #[serde(default)]
    pub(super) renewable: bool,
}

/// A secret as version 2 of the KV engine keeps it.
#[derive(Debug, Deserialize)]
pub(super) struct Versioned {
    pub(super) data: Option<Fields>,
    pub(super) metadata: Option<VersionFacts>,
}

#[derive(Debug, Deserialize)]
pub(super) struct VersionFacts {
    #[serde(default)]
    pub(super) version: u64,
    #[serde(default)]
    pub(super) destroyed: bool,
}

/// Reads an answer; an empty one says nothing. Where it is wrong is told, and nothing of what stands there.
pub(super) fn parse<D: DeserializeOwned>(body: &Secret) -> Result<Body<D>, Failure> {
    if body.is_empty() {
        return Ok(Body {
            data: None,
            auth: None,
            lease_id: String::new(),
            lease_duration: 0,
            renewable: false,
        });
    }
    serde_json::from_slice(body.expose()).map_err(|error| {
        Failure::Malformed(format!(
            "its answer is not what Vault answers (line {}, column {})",
            error.line(),
            error.column()
        ))
    })
}

/// Something to have more than one of.
pub(super) type SharedTransport = Arc<dyn Transport>;
