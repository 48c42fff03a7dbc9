//! HTTPS to one server: a question, an answer, and bounds on both.
//!
//! The server is verified by its name against the roots given, and by no others; nothing can turn that off. In the clear only
//! an address on loopback or of the machine's own cloud is asked, by a client that can do nothing else ([`HttpClient::in_the_clear`]). A redirect
//! is an answer, not an instruction: whoever asks showed a secret to this server and to no other. No proxy is taken from
//! the environment, no cookie is kept, nothing is tried twice.

mod roots;
#[cfg(feature = "stores")]
mod stream;
mod wish;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fender_config::{HttpsUrl, StoreUrl};
use fender_identity::tls::{
    ShownCertificate, TlsError, TlsProfile, TlsVersion, client_dns, client_dns_showing,
    client_of_nobody,
};
use fender_identity::{PemError, Secret, Svid, certificates_from_pem};
use fender_runtime::clock::{SharedClock, TlsClock};
use fender_runtime::deadline::Deadline;
use http::{Request, Response};
#[cfg(feature = "stores")]
use reqwest::header::RETRY_AFTER;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::redirect::Policy;

pub(crate) use roots::system_roots;
#[cfg(feature = "stores")]
pub(crate) use stream::Streamed;
#[cfg(all(test, feature = "stores"))]
pub(crate) use stream::{Part, Parts};
pub(crate) use wish::Wish;

const ALPN: &[&[u8]] = &[b"h2", b"http/1.1"];
/// How often a connection is looked at on which nothing comes.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// The most fields in the head of an answer over HTTP/1.1, where the whole head may weigh 400 KiB.
const HEAD_FIELDS: usize = 100;
/// The most bytes that the head of an answer over HTTP/2 may weigh.
const HEAD_BYTES: u32 = 64 * 1024;

/// What a question may be sent to: there is no way to write one that shows a secret to whoever listens on the way.
pub trait Url: fmt::Display {}

impl Url for HttpsUrl {}
impl Url for StoreUrl {}

/// A client of servers that one set of roots vouches for.
#[derive(Clone, Debug)]
pub struct HttpClient {
    inner: reqwest::Client,
    limit: usize,
}

/// One question.
#[derive(Debug)]
pub struct Question<'a, U = HttpsUrl> {
    pub method: Method,
    pub url: &'a U,
    /// Credentials: none of them is shown in an error or a log.
    pub headers: &'a [(&'static str, Secret)],
    /// JSON, unless the headers say what it is.
    pub body: Option<Secret>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Get,
    Post,
    Put,
}

/// What came back, whatever its status.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    /// When to come back, as the server wishes.
    #[cfg(feature = "stores")]
    pub(crate) wish: Option<Wish>,
    pub body: Secret,
}

impl Answer {
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

impl HttpClient {
    /// `roots` is PEM; an answer's body may weigh `limit` bytes.
    pub fn new(roots: &[u8], limit: usize, clock: SharedClock) -> Result<Self, HttpClientError> {
        Self::verifying(None, roots, ALPN, limit, clock)
    }

    /// The same, where the server wants to know us by a certificate.
    pub fn showing(
        shown: &ShownCertificate,
        roots: &[u8],
        limit: usize,
        clock: SharedClock,
    ) -> Result<Self, HttpClientError> {
        let roots = certificates_from_pem(roots)?;
        let clock = Arc::new(TlsClock(clock));
        let tls = client_dns_showing(&profile(), shown, roots, ALPN, clock)?;
        Self::with(tls, Scheme::Https, limit)
    }

    /// The same, where that certificate is the workload's own.
    #[cfg(feature = "stores")]
    pub(crate) fn known_as(
        svid: &Svid,
        roots: &[u8],
        limit: usize,
        clock: SharedClock,
    ) -> Result<Self, HttpClientError> {
        Self::verifying(Some(svid), roots, ALPN, limit, clock)
    }

    /// For a [`StoreUrl::Loopback`] or the addresses of the link at which a cloud answers its own machines, and for nothing else: there is no
    /// server that it believes.
    pub fn in_the_clear(limit: usize, clock: SharedClock) -> Result<Self, HttpClientError> {
        let tls = client_of_nobody(&profile(), Arc::new(TlsClock(clock)))?;
        Self::with(tls, Scheme::Http, limit)
    }

    fn verifying(
        svid: Option<&Svid>,
        roots: &[u8],
        alpn: &[&[u8]],
        limit: usize,
        clock: SharedClock,
    ) -> Result<Self, HttpClientError> {
        let roots = certificates_from_pem(roots)?;
        let clock = Arc::new(TlsClock(clock));
        let tls = client_dns(&profile(), svid, roots, alpn, clock)?;
        Self::with(tls, Scheme::Https, limit)
    }

    fn with(
        tls: Arc<rustls::ClientConfig>,
        scheme: Scheme,
        limit: usize,
    ) -> Result<Self, HttpClientError> {
        let inner = reqwest::Client::builder()
            .tls_backend_preconfigured(Arc::unwrap_or_clone(tls))
            .https_only(scheme == Scheme::Https)
            .http1_max_headers(HEAD_FIELDS)
            .http2_max_header_list_size(HEAD_BYTES)
            .redirect(Policy::none())
            .no_proxy()
            .tcp_keepalive(KEEP_ALIVE)
            .retry(reqwest::retry::never())
            .build()
            .map_err(|_| HttpClientError::Build)?;
        Ok(Self { inner, limit })
    }

    /// Asks, and waits for the whole answer until the deadline.
    pub async fn ask<U: Url>(
        &self,
        question: Question<'_, U>,
        deadline: Deadline,
    ) -> Result<Answer, HttpError> {
        let (head, body) = self.execute(self.request(question)?, deadline).await?;
        Ok(Answer {
            status: head.status().as_u16(),
            #[cfg(feature = "stores")]
            wish: head.headers().get(RETRY_AFTER).and_then(Wish::read),
            body: Secret::new(body),
        })
    }

    /// The same for who has a protocol of its own to speak, and no secret in what comes back.
    pub async fn exchange(
        &self,
        request: Request<Bytes>,
        deadline: Deadline,
    ) -> Result<Response<Bytes>, HttpError> {
        let request = request.try_into().map_err(unreachable)?;
        let (head, body) = self.execute(request, deadline).await?;
        Ok(head.map(|()| body.into()))
    }

    async fn execute(
        &self,
        request: reqwest::Request,
        deadline: Deadline,
    ) -> Result<(Response<()>, Vec<u8>), HttpError> {
        let answered = async {
            let mut response = self.inner.execute(request).await.map_err(unreachable)?;
            let mut head = Response::new(());
            *head.status_mut() = response.status();
            *head.headers_mut() = response.headers().clone();
            let length = response.content_length().unwrap_or_default();
            if length > self.limit as u64 {
                return Err(HttpError::TooLarge { limit: self.limit });
            }
            // Sized once: growing would leave copies of a secret behind.
            let mut body = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
            while let Some(part) = response.chunk().await.map_err(unreachable)? {
                if body.len() + part.len() > self.limit {
                    return Err(HttpError::TooLarge { limit: self.limit });
                }
                body.extend_from_slice(&part);
            }
            Ok((head, body))
        };
        deadline
            .bound(answered)
            .await
            .unwrap_or(Err(HttpError::TimedOut))
    }

    fn request<U: Url>(&self, question: Question<'_, U>) -> Result<reqwest::Request, HttpError> {
        let method = match question.method {
            Method::Get => reqwest::Method::GET,
            Method::Post => reqwest::Method::POST,
            Method::Put => reqwest::Method::PUT,
        };
        let mut request = self
            .inner
            .request(method, question.url.to_string())
            .header(ACCEPT, JSON);
        for (name, value) in question.headers {
            let mut value = HeaderValue::from_maybe_shared(owned(value.clone()))
                .map_err(|_| HttpError::Header { name })?;
            value.set_sensitive(true);
            request = request.header(HeaderName::from_static(name), value);
        }
        if let Some(body) = question.body {
            let named = |name: &str| question.headers.iter().any(|(known, _)| *known == name);
            if !named(CONTENT_TYPE.as_str()) {
                request = request.header(CONTENT_TYPE, JSON);
            }
            request = request.body(owned(body));
        }
        request.build().map_err(unreachable)
    }
}

/// The bytes of a secret where others want bytes; they are wiped when the last who has them lets them go.
fn owned(secret: Secret) -> Bytes {
    struct Owned(Secret);
    impl AsRef<[u8]> for Owned {
        fn as_ref(&self) -> &[u8] {
            self.0.expose()
        }
    }
    Bytes::from_owner(Owned(secret))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Https,
    Http,
}

/// Others' servers are not all as new as ours.
fn profile() -> TlsProfile {
    TlsProfile::since(TlsVersion::Tls12)
}

/// Why there is no client. Nothing a server does leads here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpClientError {
    #[error("roots: {0}")]
    Roots(#[from] PemError),
    #[error("roots: {0}")]
    Tls(#[from] TlsError),
    #[error("no HTTP client could be made")]
    Build,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// Network, name, certificate or protocol; without the URL, which may say more than a log should.
    #[error("server cannot be reached: {0}")]
    Unreachable(String),
    #[error("server took too long to answer")]
    TimedOut,
    #[error("answer of the server is larger than {limit} bytes")]
    TooLarge { limit: usize },
    /// Ours, not the server's.
    #[error("value of the header `{name}` cannot be sent: is there a line end in it?")]
    Header { name: &'static str },
}

fn unreachable(error: reqwest::Error) -> HttpError {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    HttpError::Unreachable(text)
}

#[cfg(test)]
pub(crate) mod tests;
