//! What is sent to AWS and to the endpoints of its machines, and what answers mean. Nothing of an answer is repeated in an error but
//! the code and the text of one, cut, printable, and without whatever we proved ourselves by.
//!
//! <https://docs.aws.amazon.com/secretsmanager/latest/apireference/CommonErrors.html>

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fender_config::StoreUrl;
use fender_identity::Secret;
use fender_runtime::clock::SharedClock;
use fender_runtime::deadline::Deadline;
use serde::Deserialize;

use crate::file::FileSource;
use crate::host::ReadFiles;
use crate::http::{Answer, HttpClient, HttpError, Method, Question, Url, Wish, system_roots};
use crate::said::scrubbed;
use crate::{FetchError, Source as _};

/// The most an answer may weigh: 64 KiB of a secret, escaped.
const MAX_ANSWER: usize = 512 * 1024;
/// The largest file of roots.
const MAX_ROOTS: u64 = 1024 * 1024;
/// Who is asked in the clear beside loopback: addresses of the link, where a machine's own cloud answers it.
const OF_THE_MACHINE: [IpAddr; 5] = [
    // Instances.
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    // Containers of ECS.
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    // Pods of EKS.
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
];

/// Where something is asked: over TLS, on loopback, or at one of the machine's own addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    text: String,
    /// As the `Host` header has it.
    pub(super) authority: String,
    clear: bool,
}

impl Address {
    /// The root of an API of AWS.
    pub(super) fn of_store(url: &StoreUrl) -> Self {
        Self {
            text: url.join("/").to_string(),
            authority: url.authority(),
            clear: matches!(url, StoreUrl::Loopback { .. }),
        }
    }

    /// Where the machine's own credentials are served.
    pub(super) fn of_machine(text: &str) -> Result<Self, String> {
        let parsed = reqwest::Url::parse(text).map_err(|error| error.to_string())?;
        let plain = parsed.username().is_empty() && parsed.password().is_none();
        if !plain || parsed.fragment().is_some() {
            return Err("it names a user or a fragment".to_owned());
        }
        let host = parsed.host_str().unwrap_or_default();
        let ip = host.trim_matches(['[', ']']).parse::<IpAddr>();
        let clear = match (parsed.scheme(), ip) {
            ("https", _) => false,
            ("http", Ok(ip)) if ip.is_loopback() || OF_THE_MACHINE.contains(&ip) => true,
            _ => {
                return Err(
                    "without TLS only loopback and the addresses of AWS's own machines are asked, by their numbers"
                        .to_owned(),
                );
            }
        };
        let port = parsed.port().map(|port| format!(":{port}"));
        Ok(Self {
            authority: format!("{host}{}", port.unwrap_or_default()),
            text: parsed.to_string(),
            clear,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Url for Address {}

/// One request.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) to: Address,
    pub(super) headers: Vec<(&'static str, Secret)>,
    pub(super) body: Option<Secret>,
    /// How long the answer may take.
    pub(super) patience: Duration,
    /// The roots that a document names.
    pub(super) roots: Option<PathBuf>,
}

pub(super) type Asked<'a> = Pin<Box<dyn Future<Output = Result<Answer, HttpError>> + Send + 'a>>;

/// The way to all servers. Only tests have another.
pub(super) trait Wire: fmt::Debug + Send + Sync + 'static {
    fn ask<'a>(&'a self, request: &'a Request) -> Asked<'a>;
}

/// Over HTTP.
pub(super) struct Http {
    files: Arc<dyn ReadFiles>,
    /// Where no document names any.
    roots: Option<PathBuf>,
    clock: SharedClock,
    /// By the roots that are named.
    clients: Mutex<HashMap<(bool, Option<PathBuf>), HttpClient>>,
}

impl Http {
    /// `roots`: whom this machine believes, if somebody says so.
    pub(super) fn new(
        files: Arc<dyn ReadFiles>,
        roots: Option<PathBuf>,
        clock: SharedClock,
    ) -> Self {
        let clients = Mutex::default();
        Self {
            files,
            roots,
            clock,
            clients,
        }
    }

    async fn client(&self, request: &Request) -> Result<HttpClient, HttpError> {
        let key = (request.to.clear, request.roots.clone());
        let known = |key| self.clients().get(key).cloned();
        if let Some(client) = known(&key) {
            return Ok(client);
        }
        let clock = Arc::clone(&self.clock);
        let made = match key {
            (true, _) => HttpClient::in_the_clear(MAX_ANSWER, clock),
            (false, _) => {
                let roots = self.read_roots(request.roots.as_deref()).await;
                let roots = roots.map_err(|why| unreachable(&why))?;
                HttpClient::new(&roots, MAX_ANSWER, clock)
            }
        };
        let client = made.map_err(|error| unreachable(&error.to_string()))?;
        self.clients().insert(key, client.clone());
        Ok(client)
    }

    async fn read_roots(&self, named: Option<&Path>) -> Result<Vec<u8>, String> {
        let read = match (named, &self.roots) {
            (Some(path), _) => self.files.read(path, MAX_ROOTS).await,
            (None, Some(path)) => own_file(path, MAX_ROOTS).await,
            (None, None) => return system_roots().map_err(|error| format!("roots: {error}")),
        };
        let read = read.map_err(|error| format!("roots: {error}"))?;
        Ok(read.expose().to_vec())
    }

    fn clients(&self) -> std::sync::MutexGuard<'_, HashMap<(bool, Option<PathBuf>), HttpClient>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wire for Http {
    fn ask<'a>(&'a self, request: &'a Request) -> Asked<'a> {
        Box::pin(async move {
            let client = self.client(request).await?;
            let question = Question {
                method: request.method,
                url: &request.to,
                headers: &request.headers,
                body: request.body.clone(),
            };
            let answered = client.ask(question, Deadline::after(request.patience));
            let answered = answered.await;
            if let Err(HttpError::Unreachable(_)) = &answered {
                // Perhaps by other roots than those of then.
                let key = (request.to.clear, request.roots.clone());
                self.clients().remove(&key);
            }
            answered
        })
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").finish_non_exhaustive()
    }
}

fn unreachable(why: &str) -> HttpError {
    HttpError::Unreachable(why.to_owned())
}

/// A file that this machine's operator named.
pub(super) async fn own_file(path: &Path, limit: u64) -> Result<Secret, FetchError> {
    let fetched = FileSource::new(path).of_at_most(limit).fetch().await?;
    Ok(fetched.value)
}

/// Why there is no answer that helps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Nothing can be asked there at present.
    Away {
        why: String,
        wish: Option<Wish>,
    },
    /// This was not answered; something else may be.
    Failed(String),
    /// What we prove ourselves by is not, or no longer, good.
    Keys(String),
    /// Of the two clocks one is wrong.
    Clock(String),
    Denied(String),
    Missing(String),
    Malformed(String),
}

impl Failure {
    /// What that means to whoever wants a secret. `place` names what was asked.
    pub(super) fn into_error(self, place: &str) -> FetchError {
        match self {
            Self::Away { why, .. } | Self::Failed(why) => {
                FetchError::Outage(format!("{place}: {why}"))
            }
            Self::Keys(why) => FetchError::Outage(format!(
                "{place}: AWS does not accept this machine's credentials (any more): {why}"
            )),
            Self::Clock(why) => FetchError::Outage(format!(
                "{place}: the clock of this machine is wrong, or of AWS's: {why}"
            )),
            Self::Denied(why) => FetchError::Denied(format!("{place}: {why}")),
            Self::Missing(why) => FetchError::Missing(format!("{place}: {why}")),
            Self::Malformed(why) => FetchError::Malformed(format!("{place}: {why}")),
        }
    }
}

/// What an exchange came to. `said` reads the code and the text of an error in a body.
pub(super) fn read(
    answered: Result<Answer, HttpError>,
    said: fn(&Secret) -> Option<(String, String)>,
    proofs: &[&Secret],
) -> Result<Secret, Failure> {
    let answer = match answered {
        Ok(answer) => answer,
        Err(HttpError::Unreachable(why)) => {
            let why = scrubbed(&why, proofs);
            return Err(Failure::Away { why, wish: None });
        }
        Err(error @ HttpError::TimedOut) => return Err(Failure::Failed(error.to_string())),
        Err(error @ (HttpError::TooLarge { .. } | HttpError::Header { .. })) => {
            return Err(Failure::Malformed(error.to_string()));
        }
    };
    if answer.is_success() {
        return Ok(answer.body);
    }
    let (code, text) = said(&answer.body).unwrap_or_default();
    Err(failure(answer.status, answer.wish, &code, &text, proofs))
}

/// By the code of an error, as AWS's documentation has it; by the status only where there is none.
fn failure(status: u16, wish: Option<Wish>, code: &str, text: &str, proofs: &[&Secret]) -> Failure {
    let words = scrubbed(&format!("{code} {text}"), proofs);
    let why = format!("answers with status {status}: {words}");
    let why = why.trim_end_matches([' ', ':']).to_owned();
    match (status, code) {
        (300..=399, _) => Failure::Away {
            why: format!(
                "answers with status {status}, which sends us elsewhere, and no signature is made for anybody else"
            ),
            wish: None,
        },
        (
            _,
            "ThrottlingException"
            | "ThrottledException"
            | "Throttling"
            | "TooManyRequestsException"
            | "RequestLimitExceeded"
            | "RequestThrottled"
            | "RequestThrottledException"
            | "SlowDown",
        )
        | (429 | 502..=504, _) => Failure::Away { why, wish },
        (_, "RequestExpired" | "RequestTimeTooSkewed" | "RequestInTheFuture") => {
            Failure::Clock(why)
        }
        (_, "InvalidSignatureException" | "SignatureDoesNotMatch")
            if text.contains("Signature expired") || text.contains("Signature not yet current") =>
        {
            Failure::Clock(why)
        }
        (
            _,
            "ExpiredTokenException"
            | "ExpiredToken"
            | "UnrecognizedClientException"
            | "InvalidClientTokenId"
            | "InvalidAccessKeyId"
            | "InvalidSignatureException"
            | "SignatureDoesNotMatch"
            | "IncompleteSignature"
            | "IncompleteSignatureException"
            | "MissingAuthenticationToken"
            | "MissingAuthenticationTokenException"
            | "InvalidIdentityToken"
            | "InvalidIdentityTokenException",
        ) => Failure::Keys(why),
        (_, "ResourceNotFoundException" | "ParameterNotFound" | "ParameterVersionNotFound") => {
            Failure::Missing(why)
        }
        // A secret that waits for its deletion is in no state to be read.
        (_, "InvalidRequestException") if text.contains("delet") => Failure::Missing(why),
        (
            _,
            "AccessDeniedException"
            | "AccessDenied"
            | "DecryptionFailure"
            | "InvalidKeyId"
            | "IDPRejectedClaim"
            | "NotAuthorized"
            | "UnauthorizedOperation",
        ) => Failure::Denied(why),
        (_, code) if code.starts_with("KMS") => Failure::Denied(why),
        (500..=599, _) => Failure::Failed(why),
        (_, "IDPCommunicationError") => Failure::Failed(why),
        (403, code) if !code.is_empty() => Failure::Denied(why),
        _ => Failure::Malformed(why),
    }
}

/// The code and the text of an error of an API that speaks JSON.
pub(super) fn said_in_json(body: &Secret) -> Option<(String, String)> {
    #[derive(Deserialize)]
    struct Error {
        #[serde(rename = "__type")]
        code: String,
        #[serde(alias = "Message", default)]
        message: Option<String>,
    }
    // Some answers have the text twice, which is refused; the code alone is enough then.
    #[derive(Deserialize)]
    struct Code {
        #[serde(rename = "__type")]
        code: String,
    }
    let error = serde_json::from_slice::<Error>(body.expose()).or_else(|_| {
        serde_json::from_slice::<Code>(body.expose()).map(|Code { code }| Error {
            code,
            message: None,
        })
    });
    let Error { code, message } = error.ok()?;
    // `com.amazonaws.secretsmanager#ResourceNotFoundException:http://…`
    let code = code.rsplit('#').next().unwrap_or_default();
    let code = code.split(':').next().unwrap_or_default();
    Some((code.to_owned(), message.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: u16, body: &str) -> Failure {
        let answer = Answer {
            status,
            wish: Some(Wish::Seconds(7)),
            body: Secret::from(body.to_owned()),
        };
        let proof = Secret::from("hunter2".to_owned());
        read(Ok(answer), said_in_json, &[&proof]).unwrap_err()
    }

    fn error(code: &str, text: &str) -> String {
        serde_json::json!({ "__type": code, "Message": text }).to_string()
    }

    #[test]
    fn errors_mean_what_aws_says_that_they_mean() {
        let is = |status, code: &str, text: &str| {
            let failure = of(status, &error(code, text));
            let name = format!("{failure:?}");
            name.split(['(', ' ']).next().unwrap().to_owned()
        };
        for (status, code, text, expected) in [
            (400, "ThrottlingException", "Rate exceeded", "Away"),
            (429, "TooManyRequestsException", "", "Away"),
            (503, "ServiceUnavailable", "", "Away"),
            (500, "InternalServiceError", "", "Failed"),
            (
                400,
                "com.amazonaws.secretsmanager#ResourceNotFoundException",
                "",
                "Missing",
            ),
            (400, "ResourceNotFoundException:http://x/", "", "Missing"),
            (400, "ParameterNotFound", "", "Missing"),
            (400, "ParameterVersionNotFound", "", "Missing"),
            (
                400,
                "InvalidRequestException",
                "You can't perform this operation on the secret because it was marked for deletion.",
                "Missing",
            ),
            (
                400,
                "InvalidRequestException",
                "something else",
                "Malformed",
            ),
            (400, "AccessDeniedException", "", "Denied"),
            (400, "DecryptionFailure", "", "Denied"),
            (400, "KMSDisabledException", "", "Denied"),
            (403, "Whatever", "", "Denied"),
            (400, "ExpiredTokenException", "", "Keys"),
            (400, "UnrecognizedClientException", "", "Keys"),
            (
                403,
                "InvalidSignatureException",
                "The request signature we calculated does not match",
                "Keys",
            ),
            (
                403,
                "InvalidSignatureException",
                "Signature expired: 20150830T123600Z is now earlier than",
                "Clock",
            ),
            (
                403,
                "InvalidSignatureException",
                "Signature not yet current",
                "Clock",
            ),
            (400, "ValidationException", "", "Malformed"),
        ] {
            assert_eq!(is(status, code, text), expected, "{status} {code} {text}");
        }
    }

    #[test]
    fn a_refusal_that_is_not_awss_withdraws_nothing() {
        for status in [400, 401, 403, 404, 405] {
            let failure = of(status, "<html>Forbidden by your proxy</html>");
            assert!(matches!(failure, Failure::Malformed(_)), "{failure:?}");
        }
        let failure = of(302, "");
        assert!(
            matches!(failure, Failure::Away { wish: None, .. }),
            "{failure:?}"
        );
    }

    #[test]
    fn attack_an_error_that_repeats_a_key_or_moves_a_cursor() {
        let long = "x".repeat(10_000);
        let failure = of(
            400,
            &error(
                "AccessDeniedException",
                &format!("\u{1b}[2J hunter2 {long}"),
            ),
        );
        let text = failure.into_error("`x`").to_string();
        assert!(
            !text.contains("hunter2") && !text.contains('\u{1b}'),
            "{text}"
        );
        assert!(text.len() < 400, "{}", text.len());
    }

    #[test]
    fn a_text_that_comes_twice_is_no_reason_to_know_nothing() {
        let body = r#"{"__type":"ParameterNotFound","message":"a","Message":"a"}"#;
        assert!(matches!(of(400, body), Failure::Missing(_)));
    }

    #[test]
    fn attack_a_machines_endpoint_that_is_somebody_elses() {
        for text in [
            "http://evil.example/",
            "http://localhost/",
            "http://10.0.0.1/",
            "http://169.254.170.3/",
            "http://169.254.170.2.evil.example/",
            "http://169.254.170.2@evil.example/",
            "ftp://127.0.0.1/",
            "127.0.0.1",
            "",
        ] {
            assert!(Address::of_machine(text).is_err(), "{text}");
        }
        for (text, authority) in [
            ("http://169.254.170.2/v2/credentials/x?a=b", "169.254.170.2"),
            ("http://[fd00:ec2::23]/v1/credentials", "[fd00:ec2::23]"),
            ("http://127.0.0.1:8201/v1/aws/role", "127.0.0.1:8201"),
            ("https://creds.internal:8443/x", "creds.internal:8443"),
        ] {
            let address = Address::of_machine(text).unwrap();
            assert_eq!(
                (address.to_string().as_str(), address.authority.as_str()),
                (text, authority)
            );
        }
    }
}
