//! The way to a directory: our own HTTPS, with its bounds, behind the trait of the ACME client.
//!
//! Every URL that the directory gives is held to the same roots as the directory itself.

use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use fender_config::snapshot::Acme;
use fender_runtime::clock::SharedClock;
use fender_runtime::deadline::Deadline;
use fender_runtime::file::{self, Others};
use http::header::RETRY_AFTER;
use http::{HeaderValue, Request};
use http_body_util::{BodyExt, Full};
use instant_acme::{BodyWrapper, BytesResponse, Error};

use super::AcmeError;
use crate::http::HttpClient;

/// The largest file of roots that is read.
const MAX_ROOTS: u64 = 1024 * 1024;
/// The largest answer: a chain of certificates.
const MAX_ANSWER: usize = 256 * 1024;
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest wait that the ACME client hears of (in seconds).
const MAX_WISH: u64 = 7 * 24 * 60 * 60;

/// Where operating systems keep the roots that everybody believes: Debian, Fedora, Alpine, openSUSE.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];

#[derive(Debug)]
pub(super) struct Https {
    client: HttpClient,
    heard: Heard,
}

/// What the last answer said of when to come back: the ACME client says it of some answers only.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard(Arc<Mutex<Option<Wish>>>);

impl Heard {
    pub(super) fn last(&self) -> Option<Wish> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, wish: Option<Wish>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = wish;
    }
}

/// `Retry-After` (RFC 9110, 10.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Seconds(u64),
    /// In seconds since 1970.
    Moment(u64),
}

impl Wish {
    /// None if nobody can tell what it means.
    fn read(value: &HeaderValue) -> Option<Self> {
        let text = value.to_str().ok()?.trim();
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            // More than can be counted is very long.
            return Some(Self::Seconds(text.parse().unwrap_or(u64::MAX)));
        }
        let moment = httpdate::parse_http_date(text).ok()?;
        let since = moment.duration_since(UNIX_EPOCH).ok()?;
        Some(Self::Moment(since.as_secs()))
    }

    /// In how many seconds that is, for who has just heard it.
    pub(super) fn within(self, now: u64) -> u64 {
        match self {
            Self::Seconds(seconds) => seconds,
            Self::Moment(moment) => moment.saturating_sub(now),
        }
    }
}

impl Https {
    /// Reads the roots anew: they are replaced like everything else.
    pub(super) fn to(acme: &Acme, clock: &SharedClock, heard: &Heard) -> Result<Self, AcmeError> {
        let ours =
            |error: String| AcmeError::Ours(format!("roots of `{}`: {error}", acme.directory));
        let read = |path: &Path| file::read(path, MAX_ROOTS, Others::Whoever);
        let roots = match &acme.roots {
            Some(path) => read(path).map_err(|error| ours(error.to_string()))?,
            None => {
                let mut known = SYSTEM_ROOTS.iter().map(Path::new);
                known.find_map(|path| read(path).ok()).ok_or_else(|| {
                    ours(
                        "this system has none; name a file: `roots: { file: /path.pem }`"
                            .to_owned(),
                    )
                })?
            }
        };
        let client = HttpClient::new(&roots, MAX_ANSWER, clock.clone());
        let client = client.map_err(|error| ours(error.to_string()))?;
        let heard = heard.clone();
        Ok(Self { client, heard })
    }

    #[cfg(test)]
    pub(super) fn by(client: HttpClient, heard: &Heard) -> Self {
        let heard = heard.clone();
        Self { client, heard }
    }
}

impl instant_acme::HttpClient for Https {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let (client, heard) = (self.client.clone(), self.heard.clone());
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let Ok(body) = body.collect().await;
            let request = Request::from_parts(head, body.to_bytes());
            heard.hear(None);
            let answered = client.exchange(request, Deadline::after(PATIENCE)).await;
            let mut answer = answered.map_err(|error| Error::Other(Box::new(error)))?;
            heard.hear(answer.headers().get(RETRY_AFTER).and_then(Wish::read));
            if let Some(wish) = answer.headers().get(RETRY_AFTER)
                && !is_sensible(wish)
            {
                answer.headers_mut().remove(RETRY_AFTER);
            }
            Ok(BytesResponse::from(answer.map(Full::new)))
        })
    }
}

/// A date, or a number of seconds that can be added to one.
fn is_sensible(wish: &HeaderValue) -> bool {
    let text = wish.to_str().unwrap_or_default().trim();
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    !is_number || text.parse().is_ok_and(|seconds: u64| seconds <= MAX_WISH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_to_come_back_is_said_in_seconds_or_as_a_date() {
        let read = |text| Wish::read(&HeaderValue::from_static(text));
        assert_eq!(read("120"), Some(Wish::Seconds(120)));
        assert_eq!(read(" 0 "), Some(Wish::Seconds(0)));
        // In seconds since 1970, as `date` gives them.
        let moment = read("Thu, 21 Jan 2027 00:00:00 GMT").unwrap();
        assert_eq!(moment, Wish::Moment(1_800_489_600));
        assert_eq!(moment.within(1_800_489_000), 600);
        assert_eq!(moment.within(1_800_489_601), 0);
        // Attack: more than can be counted is not taken for nothing.
        assert_eq!(read("99999999999999999999"), Some(Wish::Seconds(u64::MAX)));
        for nonsense in ["", "-1", "1.5", "soon", "Thu, 01 Jan 1960 00:00:00 GMT"] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn attack_a_wait_that_no_clock_can_hold_is_not_heard() {
        for wish in ["0", "60", "604800", "Thu, 21 Jan 2027 00:00:00 GMT"] {
            assert!(is_sensible(&HeaderValue::from_static(wish)), "{wish}");
        }
        for wish in ["604801", "18446744073709551615", "99999999999999999999"] {
            assert!(!is_sensible(&HeaderValue::from_static(wish)), "{wish}");
        }
    }
}
