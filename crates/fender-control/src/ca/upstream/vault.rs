//! HashiCorp Vault or OpenBao, by the HTTP API of their PKI engine: it signs a request of ours, and our key never leaves.
//!
//! The server is verified by the roots given for it and by no others. The token is read from its file with every call, so
//! that whoever renews it (Vault's own agent, say) puts the next one in its place; while it is renewable it is renewed
//! from here as well. Neither the token nor what the server says beyond its errors reaches a log.
//!
//! <https://developer.hashicorp.com/vault/api-docs/secret/pki#sign-intermediate>

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fender_config::HttpsUrl;
use fender_identity::jwt::{Object, Value, parse_object};
use fender_identity::{Secret, certificates_from_pem};
use fender_providers::http::{Answer, HttpClient, Method, Question};
use fender_runtime::clock::SharedClock;
use fender_runtime::deadline::Deadline;
use rustls::pki_types::CertificateDer;
use tokio::time::Instant;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::files::{Readers, read};
use super::{Brought, UpstreamError};
use crate::ca::make::{AuthorityKey, Workshop};

const CALL: Duration = Duration::from_secs(20);
const MAX_ANSWER: usize = 256 * 1024;
/// How often the token is looked after, at most and at least.
const SOONEST: Duration = Duration::from_secs(60);
const LATEST: Duration = Duration::from_secs(3600);
/// How much of an error's text is kept.
const MAX_REASON: usize = 512;

/// Where Vault is, and as whom we ask.
#[derive(Clone, Debug)]
pub struct VaultUpstream {
    pub url: HttpsUrl,
    /// Where the PKI engine is mounted.
    pub mount: String,
    /// Which of its issuers signs; the default one otherwise.
    pub issuer: Option<String>,
    pub namespace: Option<String>,
    /// Nobody but its owner may read it.
    pub token: PathBuf,
    /// Who vouches for the server.
    pub server_roots: PathBuf,
    /// The only roots the intermediate may chain to; the one Vault names otherwise.
    pub roots: Option<PathBuf>,
}

/// When the token is to be renewed next.
#[derive(Debug, Default)]
pub(super) struct Lease(Mutex<Option<Instant>>);

impl Lease {
    fn is_due(&self) -> bool {
        let next = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        next.is_none_or(|next| Instant::now() >= next)
    }

    fn next(&self, after: Duration) {
        let after = after.clamp(SOONEST, LATEST);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + after);
    }
}

impl VaultUpstream {
    /// An intermediate for a key that was made just now.
    pub(super) async fn sign(
        &self,
        workshop: &Workshop,
        lifetime: Duration,
        clock: &SharedClock,
    ) -> Result<Brought, UpstreamError> {
        let key = AuthorityKey::generate().map_err(|error| UpstreamError::Key(Box::new(error)))?;
        let request = workshop
            .request(&key)
            .map_err(|error| UpstreamError::Key(Box::new(error)))?;
        let body = serde_json::json!({
            "csr": request,
            "common_name": format!("Fender intermediate {}", workshop.replica),
            "organization": "Fender",
            "uri_sans": format!("spiffe://{}", workshop.trust_domain),
            "ttl": format!("{}s", lifetime.as_secs()),
            "max_path_length": 0,
            "format": "pem",
        });
        let path = match &self.issuer {
            Some(issuer) => format!("/v1/{}/issuer/{issuer}/sign-intermediate", self.mount),
            None => format!("/v1/{}/root/sign-intermediate", self.mount),
        };
        let answer = self.ask(&path, body, clock).await?;
        let data = answer.get("data").and_then(Value::as_object);
        let data = data.ok_or_else(|| server("answers without `data`"))?;
        let (chain, root) = chain(data)?;
        let roots = match &self.roots {
            Some(path) => {
                let text = read(path, Readers::Everybody)?;
                certificates_from_pem(text.expose()).map_err(|error| UpstreamError::Content {
                    path: path.clone(),
                    why: error.to_string(),
                })?
            }
            None => root.into_iter().collect(),
        };
        Ok(Brought { chain, roots, key })
    }

    /// Renews the token if it is time. That it could not be is told, and no more: it may be another's to renew.
    pub(super) async fn keep_token(&self, lease: &Lease, clock: &SharedClock) {
        if !lease.is_due() {
            return;
        }
        let answer = self
            .ask("/v1/auth/token/renew-self", serde_json::json!({}), clock)
            .await;
        match answer {
            Ok(answer) => {
                let auth = answer.get("auth");
                let seconds = auth.and_then(|auth| auth.member("lease_duration"));
                let seconds = match seconds {
                    Some(Value::Integer(seconds)) => u64::try_from(*seconds).unwrap_or_default(),
                    Some(_) | None => 0,
                };
                // A token that never ends has no lease.
                let half = match seconds {
                    0 => LATEST,
                    seconds => Duration::from_secs(seconds / 2),
                };
                lease.next(half);
            }
            Err(error) => {
                tracing::warn!(%error, "the token for the upstream authority was not renewed");
                lease.next(SOONEST);
            }
        }
    }

    async fn ask(
        &self,
        path: &str,
        body: serde_json::Value,
        clock: &SharedClock,
    ) -> Result<Object, UpstreamError> {
        let roots = read(&self.server_roots, Readers::Everybody)?;
        let client = HttpClient::new(roots.expose(), MAX_ANSWER, clock.clone())
            .map_err(|error| server(&error.to_string()))?;
        let token = read(&self.token, Readers::Owner)?;
        let token = Secret::new(token.expose().trim_ascii().to_vec());
        let mut headers = vec![
            ("x-vault-token", token),
            ("x-vault-request", Secret::from("true".to_owned())),
        ];
        if let Some(namespace) = &self.namespace {
            headers.push(("x-vault-namespace", Secret::from(namespace.clone())));
        }
        let question = Question {
            method: Method::Post,
            url: &self.url.join(path),
            headers: &headers,
            body: Some(Secret::from(body.to_string())),
        };
        let answer = client
            .ask(question, Deadline::after(CALL))
            .await
            .map_err(|error| server(&error.to_string()))?;
        if !answer.is_success() {
            return Err(server(&refusal(&answer)));
        }
        parse_object(answer.body.expose())
            .map_err(|why| server(&format!("its answer cannot be used: {why}")))
    }
}

fn server(why: &str) -> UpstreamError {
    UpstreamError::Server(why.to_owned())
}

/// In its own words, which come from outside: cut, and nothing in them can move a cursor.
fn refusal(answer: &Answer) -> String {
    let errors = parse_object(answer.body.expose()).ok();
    let errors = errors.as_ref().and_then(|answer| answer.get("errors"));
    let texts: Vec<_> = match errors {
        Some(Value::List(errors)) => errors.iter().filter_map(Value::as_text).collect(),
        Some(_) | None => Vec::new(),
    };
    let texts = texts.join("; ");
    let texts: String = texts
        .chars()
        .filter(|c| !c.is_control())
        .take(MAX_REASON)
        .collect();
    format!("answers with status {}: {texts}", answer.status)
}

/// The intermediate and what lies between it and the root; and the root, if it is among them.
fn chain(
    data: &Object,
) -> Result<
    (
        Vec<CertificateDer<'static>>,
        Option<CertificateDer<'static>>,
    ),
    UpstreamError,
> {
    let pem = |text: &str| {
        certificates_from_pem(text.as_bytes())
            .map_err(|error| server(&format!("its answer cannot be used: {error}")))
    };
    let text = |name: &str| data.get(name).and_then(Value::as_text);
    let mut chain =
        pem(text("certificate").ok_or_else(|| server("answers without `certificate`"))?)?;
    chain.truncate(1);
    let above: Vec<&str> = match data.get("ca_chain") {
        Some(Value::List(above)) if !above.is_empty() => {
            above.iter().filter_map(Value::as_text).collect()
        }
        Some(_) | None => text("issuing_ca").into_iter().collect(),
    };
    let mut root = None;
    for text in above {
        for certificate in pem(text)? {
            // The first that vouches for itself ends the chain.
            if is_self_issued(&certificate) {
                root = root.or(Some(certificate));
            } else if root.is_none() && !chain.contains(&certificate) {
                chain.push(certificate);
            }
        }
    }
    Ok((chain, root))
}

fn is_self_issued(certificate: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(certificate)
        .is_ok_and(|(_, read)| read.subject().as_raw() == read.issuer().as_raw())
}
