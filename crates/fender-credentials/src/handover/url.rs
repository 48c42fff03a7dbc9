//! Credentials over HTTP/1.1 on loopback or at a Unix socket, for applications that can ask for nothing else, and for AWS SDKs.
//!
//! Whoever can make the application send a request (SSRF) can reach this address as well. So a request needs a token that is
//! in a file and in no URL, and is refused for everything that shows that somebody passed it on, or that a browser sent it:
//! `Forwarded` and its like, `Via`, `Origin`, a foreign `Host`, an absolute target, a body, another method or path. Answers
//! are not to be stored, and packets leave with a TTL of 1: they go no further than loopback.
//!
//! At a Unix socket the kernel says who connects (`SO_PEERCRED`), before a byte is read, and a token is good only in the hands of the
//! user whose file it lies in: a token that leaked is of no use to anybody else.
//!
//! One request for each connection. Who shows no good token is told the same whatever there is: 401.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fender_config::snapshot::{ServedName, UrlForm};
use fender_identity::Secret;
use fender_runtime::accept::Accept;
use fender_runtime::drain::Drain;
use fender_runtime::listen::{ListenAddress, Listener, Socket};
use fender_runtime::pace::Pace;
use fender_runtime::rate::Rates;
use fender_runtime::share::{Share, Shares};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioIo, TokioTimer};

use super::limits::UrlLimits;
use super::protocol::Refusal;
use super::registry::{Found, Handovers, OVERFLOW_USER};

/// How long all connections may be taken before who comes is closed.
const FULL: Duration = Duration::from_secs(1);

/// Lets no packet of the listener's connections be forwarded by anybody: it is for this host alone.
pub fn confine(listener: &Listener) -> std::io::Result<()> {
    match listener.local_address() {
        ListenAddress::Tcp(SocketAddr::V4(_)) => rustix::net::sockopt::set_ip_ttl(listener, 1)?,
        ListenAddress::Tcp(SocketAddr::V6(_)) => {
            rustix::net::sockopt::set_ipv6_unicast_hops(listener, Some(1))?;
        }
        ListenAddress::Unix(_) | ListenAddress::Abstract(_) => {}
    }
    Ok(())
}

/// Serves what is in `handovers` until the drain stops.
pub async fn serve(listener: Listener, handovers: Handovers, limits: UrlLimits, drain: Drain) {
    let hosts = match listener.local_address() {
        ListenAddress::Tcp(address) => {
            vec![address.to_string(), format!("localhost:{}", address.port())]
        }
        // As HTTP clients call a socket that has no name of its own.
        ListenAddress::Unix(_) | ListenAddress::Abstract(_) => vec!["localhost".to_owned()],
    };
    let lines = Arc::new(Pace::new(limits.url_lines));
    let turned_away = Arc::clone(&lines);
    let mut accept = Accept::new(listener, limits.url_connections).turning_away(FULL, move |_| {
        if let Some(more) = turned_away.admit() {
            tracing::warn!(
                more,
                "closed a client of the credentials URL: every connection is taken"
            );
        }
    });
    let desk = Arc::new(Desk::new(handovers, hosts, &limits, lines));
    while let Some((socket, _, slot)) = accept.next(&drain).await {
        let Some(peer) = desk.greet(&socket) else {
            continue;
        };
        let desk = Arc::clone(&desk);
        drain.spawn(async move {
            let _slot = slot;
            let user = peer.user();
            let service = service_fn(move |request| {
                let response = desk.answer(&request, user);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .keep_alive(false)
                .header_read_timeout(limits.url_head)
                .max_buf_size(limits.url_head_bytes)
                .max_headers(limits.url_fields)
                .auto_date_header(false)
                .serve_connection(TokioIo::new(socket), service);
            // Who leaves early or stays too long loses its answer, nobody else's.
            let _ = tokio::time::timeout(limits.url_connection, connection).await;
            drop(peer);
        });
    }
}

/// Who is at the other end.
enum Peer {
    /// Nobody says.
    Anybody,
    /// The kernel does. It has one of that user's connections.
    User { user: u32, _share: Share<u32> },
}

impl Peer {
    fn user(&self) -> Option<u32> {
        match self {
            Self::Anybody => None,
            Self::User { user, .. } => Some(*user),
        }
    }
}

/// What all requests share.
struct Desk {
    handovers: Handovers,
    /// As whom we may be addressed.
    hosts: Vec<String>,
    users: Shares<u32>,
    strangers: Rates<()>,
    consumers: Rates<PathBuf>,
    lines: Arc<Pace>,
}

impl Desk {
    fn new(handovers: Handovers, hosts: Vec<String>, limits: &UrlLimits, lines: Arc<Pace>) -> Self {
        Self {
            handovers,
            hosts,
            users: Shares::new(limits.url_connections_per_user),
            strangers: Rates::new(limits.url_strangers, limits.url_strangers),
            consumers: Rates::new(limits.url_requests, limits.url_requests),
            lines,
        }
    }

    /// Who it is, before a byte is read; nothing for those who are not listened to.
    fn greet(&self, socket: &Socket) -> Option<Peer> {
        let Socket::Unix(stream) = socket else {
            return Some(Peer::Anybody);
        };
        // As it was when it connected, whoever has the socket by now.
        let user = match rustix::net::sockopt::socket_peercred(stream) {
            Ok(peer) => peer.uid.as_raw(),
            Err(error) => {
                tracing::warn!(%error, "cannot tell who connects to the credentials URL");
                return None;
            }
        };
        let why = match user != OVERFLOW_USER && self.handovers.know_reader(user) {
            true => match self.users.take(user) {
                Some(share) => {
                    return Some(Peer::User {
                        user,
                        _share: share,
                    });
                }
                None => "it has too many connections",
            },
            false => "no credential is for it",
        };
        if let Some(more) = self.lines.admit() {
            tracing::warn!(user, why, more, "closed a client of the credentials URL");
        }
        None
    }

    fn answer(&self, request: &Request<Incoming>, user: Option<u32>) -> Response<Full<Bytes>> {
        match self.find(request, user) {
            Ok((form, found)) => respond(form, &found),
            Err(refused) => {
                if let Some(more) = self.lines.admit() {
                    let (status, why) = (refused.status.as_u16(), refused.why);
                    tracing::warn!(status, why, more, "refused a request for a credential");
                }
                refused.into()
            }
        }
    }

    fn find<B>(
        &self,
        request: &Request<B>,
        user: Option<u32>,
    ) -> Result<(UrlForm, Found), Refused> {
        let (form, name, token) = match self.read(request) {
            Ok(read) => read,
            Err(refused) => return Err(self.stranger(refused)),
        };
        let Some((consumer, found)) = self.handovers.read(form, &name, &token, user) else {
            return Err(self.stranger(Refused::UNAUTHORIZED));
        };
        if !self.consumers.take(&consumer) {
            return Err(Refused::TOO_MANY);
        }
        let found = found.map_err(Refused::from)?;
        self.handovers.took_at_url(&consumer, &found);
        Ok((form, found))
    }

    /// Whoever is no consumer is answered only so often, and has no part in what consumers may ask.
    fn stranger(&self, refused: Refused) -> Refused {
        match self.strangers.take(&()) {
            true => refused,
            false => Refused::TOO_MANY,
        }
    }

    /// What is asked for by what token, if the request is one that a consumer makes by itself.
    fn read<B>(&self, request: &Request<B>) -> Result<(UrlForm, ServedName, Secret), Refused> {
        let headers = request.headers();
        if let Some(why) = headers.keys().find_map(tells_of_others) {
            return Err(Refused::forbidden(why));
        }
        let host = only(headers, header::HOST).ok_or(Refused::forbidden("foreign Host"))?;
        let foreign = |own: &String| own.as_bytes() != host.as_bytes();
        let uri = request.uri();
        if self.hosts.iter().all(foreign) || uri.authority().is_some() || uri.scheme().is_some() {
            return Err(Refused::forbidden("foreign Host"));
        }
        if request.version() != Version::HTTP_11 {
            return Err(Refused::bad("not HTTP/1.1"));
        }
        if request.method() != Method::GET {
            return Err(Refused::new(StatusCode::METHOD_NOT_ALLOWED, "not GET"));
        }
        let none = |value: &HeaderValue| value.as_bytes() == b"0";
        if headers.contains_key(header::TRANSFER_ENCODING)
            || !headers.get_all(header::CONTENT_LENGTH).iter().all(none)
            || headers.contains_key(header::EXPECT)
            || headers.contains_key(header::UPGRADE)
        {
            return Err(Refused::bad("a body or an upgrade"));
        }
        let named = [UrlForm::Value, UrlForm::Aws].into_iter().find_map(|form| {
            let name = uri.path().strip_prefix(form.prefix())?;
            Some((form, name.parse::<ServedName>().ok()?))
        });
        let (form, name) = named
            .filter(|_| uri.query().is_none())
            .ok_or(Refused::new(StatusCode::NOT_FOUND, "unknown path"))?;
        let shown = only(headers, header::AUTHORIZATION).ok_or(Refused::UNAUTHORIZED)?;
        let token = match form {
            UrlForm::Value => shown.as_bytes().strip_prefix(b"Bearer "),
            // As it is in the file: SDKs add nothing.
            UrlForm::Aws => Some(shown.as_bytes()),
        };
        let token = token.ok_or(Refused::UNAUTHORIZED)?;
        Ok((form, name, Secret::new(token.to_owned())))
    }
}

/// The one value of a field; nothing if there are several.
fn only(headers: &HeaderMap, name: HeaderName) -> Option<&HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// Fields by which a proxy, or a browser, says that the request is not its own.
fn tells_of_others(name: &HeaderName) -> Option<&'static str> {
    let name = name.as_str().replace('_', "-");
    match name.as_str() {
        "forwarded" | "via" | "x-real-ip" | "x-client-ip" | "true-client-ip" => Some("passed on"),
        "origin" | "referer" => Some("sent by a browser"),
        other if other.starts_with("x-forwarded") => Some("passed on"),
        other if other.starts_with("sec-fetch-") => Some("sent by a browser"),
        _ => None,
    }
}

/// Why there is none: the status for whoever asks, and a word for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refused {
    status: StatusCode,
    why: &'static str,
}

impl Refused {
    const UNAUTHORIZED: Self = Self::new(StatusCode::UNAUTHORIZED, "no token for this");
    const TOO_MANY: Self = Self::new(StatusCode::TOO_MANY_REQUESTS, "too often");

    const fn new(status: StatusCode, why: &'static str) -> Self {
        Self { status, why }
    }

    const fn forbidden(why: &'static str) -> Self {
        Self::new(StatusCode::FORBIDDEN, why)
    }

    const fn bad(why: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, why)
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal {
            Refusal::Withdrawn | Refusal::Missing | Refusal::Denied => StatusCode::NOT_FOUND,
            Refusal::Waiting | Refusal::Outdated | Refusal::Busy | Refusal::Malformed => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        };
        Self::new(status, refusal.word())
    }
}

impl From<Refused> for Response<Full<Bytes>> {
    fn from(refused: Refused) -> Self {
        let mut response = plain(refused.status, "text/plain", Bytes::new());
        let headers = response.headers_mut();
        match refused.status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            StatusCode::METHOD_NOT_ALLOWED => {
                headers.insert(header::ALLOW, HeaderValue::from_static("GET"));
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response
    }
}

/// Wiped once it is sent, as far as it is ours.
struct Body(Secret);

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        self.0.expose()
    }
}

fn respond(form: UrlForm, found: &Found) -> Response<Full<Bytes>> {
    let Ok(value) = found.sealed.secret() else {
        return Refused::from(Refusal::Waiting).into();
    };
    let kind = match form {
        UrlForm::Value => "application/octet-stream",
        UrlForm::Aws => "application/json",
    };
    let mut response = plain(StatusCode::OK, kind, Bytes::from_owner(Body(value)));
    let headers = response.headers_mut();
    if let Ok(generation) = HeaderValue::from_str(found.generation.as_str()) {
        headers.insert("fender-generation", generation);
    }
    headers.insert("fender-outdated-seconds", found.age.as_secs().into());
    response
}

fn plain(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}

#[cfg(test)]
mod tests {
    use fender_config::snapshot::{FileDelivery, Storage, UrlDelivery};
    use fender_providers::Generation;
    use tokio::net::TcpStream;

    use super::*;
    use crate::handover::{Audience, Offer, Reader};

    #[tokio::test]
    async fn attack_what_is_sent_from_here_is_forwarded_by_nobody() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = Listener::bind(&address.parse().unwrap()).unwrap();
            confine(&listener).unwrap();
            let ListenAddress::Tcp(bound) = *listener.local_address() else {
                unreachable!()
            };
            let _client = TcpStream::connect(bound).await.unwrap();
            let (socket, _) = listener.accept().await.unwrap();
            let hops = match bound {
                SocketAddr::V4(_) => rustix::net::sockopt::ip_ttl(&socket).unwrap(),
                SocketAddr::V6(_) => rustix::net::sockopt::ipv6_unicast_hops(&socket)
                    .unwrap()
                    .into(),
            };
            assert_eq!(hops, 1, "{address}");
        }
    }

    const ADDRESS: &str = "127.0.0.1:8201";

    /// A desk that serves `smtp` to two consumers, with their tokens.
    fn desk(limits: &UrlLimits) -> (Desk, Offer, [Secret; 2]) {
        let handovers = Handovers::default();
        let readers = ["/run/app", "/run/job"].map(|path| {
            let delivery = UrlDelivery {
                name: "smtp".parse().unwrap(),
                form: UrlForm::Value,
                token: FileDelivery {
                    path: path.into(),
                    mode: 0o400,
                    owner: None,
                    group: None,
                    storage: Storage::Memory,
                },
            };
            Reader::new(&delivery, 4401, handovers.tokens())
        });
        let tokens = readers.each_ref().map(|reader| reader.token().clone());
        let audience = Audience {
            users: Vec::new(),
            readers: readers.into(),
        };
        let offer = handovers.offer(&"shop/smtp".parse().unwrap());
        let value = Secret::from("s3cret".to_owned());
        offer
            .put(&audience, &value, &Generation::named("one"))
            .unwrap();
        let lines = Arc::new(Pace::new(1));
        let desk = Desk::new(handovers, vec![ADDRESS.to_owned()], limits, lines);
        (desk, offer, tokens)
    }

    /// What a request with this token comes to.
    fn asks(desk: &Desk, token: &Secret) -> u16 {
        asks_as(desk, token, None)
    }

    fn asks_as(desk: &Desk, token: &Secret, user: Option<u32>) -> u16 {
        let request = Request::get("/v1/credentials/smtp")
            .header("host", ADDRESS)
            .header(
                "authorization",
                [b"Bearer ", token.expose()].concat().as_slice(),
            )
            .body(())
            .unwrap();
        match desk.find(&request, user) {
            Ok((_, found)) => {
                assert_eq!(found.sealed.secret().unwrap().expose(), b"s3cret");
                200
            }
            Err(refused) => refused.status.as_u16(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn attack_nobody_asks_without_end_and_nobody_uses_up_what_others_may_ask() {
        let (desk, offer, [app, job]) = desk(&UrlLimits {
            url_requests: 3,
            url_strangers: 2,
            ..UrlLimits::default()
        });
        let guess = Secret::from("0".repeat(64));
        let guesses: Vec<_> = (0..4).map(|_| asks(&desk, &guess)).collect();
        assert_eq!(guesses, [401, 401, 429, 429]);
        let asked: Vec<_> = (0..4).map(|_| asks(&desk, &app)).collect();
        assert_eq!(asked, [200, 200, 200, 429]);
        assert_eq!(asks(&desk, &job), 200);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!((asks(&desk, &app), asks(&desk, &guess)), (200, 401));
        offer.withdraw();
        assert_eq!((asks(&desk, &job), asks(&desk, &guess)), (404, 401));
        drop(offer);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(asks(&desk, &job), 401);
    }

    #[tokio::test(start_paused = true)]
    async fn attack_a_token_in_the_hands_of_another_user_opens_nothing() {
        let (desk, _offer, [app, _]) = desk(&UrlLimits::default());
        assert_eq!(asks_as(&desk, &app, Some(4401)), 200);
        for another in [0, 4402, OVERFLOW_USER] {
            assert_eq!(asks_as(&desk, &app, Some(another)), 401, "{another}");
        }
    }

    #[test]
    fn what_tells_of_others_is_known_however_it_is_spelled() {
        for name in [
            "origin",
            "forwarded",
            "via",
            "x-forwarded-for",
            "x_forwarded_for",
            "x-forwarded",
            "x-real-ip",
            "x_real_ip",
            "sec-fetch-mode",
            "referer",
        ] {
            assert!(tells_of_others(&name.parse().unwrap()).is_some(), "{name}");
        }
        for name in [
            "host",
            "authorization",
            "user-agent",
            "accept",
            "connection",
        ] {
            assert!(tells_of_others(&name.parse().unwrap()).is_none(), "{name}");
        }
    }
}
