//! The way to a directory: our own HTTPS, with its bounds, behind the trait of the ACME client.
//!
//! Every URL that the directory gives is held to the same roots as the directory itself.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

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
use crate::http::{HttpClient, Wish, system_roots};

/// The largest file of roots that is read.
const MAX_ROOTS: u64 = 1024 * 1024;
/// The largest answer: a chain of certificates.
const MAX_ANSWER: usize = 256 * 1024;
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest wait that the ACME client hears of (in seconds).
const MAX_WISH: u64 = 7 * 24 * 60 * 60;

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

impl Https {
    /// Reads the roots anew: they are replaced like everything else.
    pub(super) fn to(acme: &Acme, clock: &SharedClock, heard: &Heard) -> Result<Self, AcmeError> {
        let ours =
            |error: String| AcmeError::Ours(format!("roots of `{}`: {error}", acme.directory));
        let roots = match &acme.roots {
            Some(path) => file::read(path, MAX_ROOTS, Others::Whoever)
                .map_err(|error| ours(error.to_string()))?,
            None => system_roots().map_err(|error| ours(error.to_string()))?,
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
    fn attack_a_wait_that_no_clock_can_hold_is_not_heard() {
        for wish in ["0", "60", "604800", "Thu, 21 Jan 2027 00:00:00 GMT"] {
            assert!(is_sensible(&HeaderValue::from_static(wish)), "{wish}");
        }
        for wish in ["604801", "18446744073709551615", "99999999999999999999"] {
            assert!(!is_sensible(&HeaderValue::from_static(wish)), "{wish}");
        }
    }
}
