//! What a sidecar and a control plane tell of themselves by HTTP/1.1: health, metrics, and what else there is.
//!
//! On a Unix socket that only its owner and root may open (the peer's uid is checked again on the connection) everything;
//! at a TCP address, where one is given, health and metrics, because who asks there is nobody. It reads, it changes
//! nothing, and it knows no secret: what it answers is made by a program that is [`Observed`], from what holds none.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use fender_runtime::accept::Accept;
use fender_runtime::drain::Drain;
use fender_runtime::listen::{ListenAddress, Listener, Listeners, Socket};
use fender_runtime::metrics;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};

/// What a program tells at its admin socket.
pub(crate) trait Observed: Send + Sync + 'static {
    fn has_started(&self) -> bool;

    /// Why it cannot go on; nothing while its loops turn.
    fn stuck(&self) -> Vec<String>;

    /// What keeps it from its work now, each as a sentence; nothing if nothing does.
    fn unready(&self) -> impl Future<Output = Vec<String>> + Send;

    /// In the OpenMetrics text format.
    fn metrics(&self) -> impl Future<Output = String> + Send;

    /// Whatever else it has at this path.
    fn read(&self, path: &str) -> Reading;
}

pub(crate) enum Reading {
    Json(serde_json::Value),
    /// There is nothing, and why.
    Missing(&'static str),
}

/// Enough for a person, two monitoring systems and a health check at once.
const CONNECTIONS: usize = 16;
/// What is read of a request: nobody has more to say than a line and a few fields.
const REQUEST_BYTES: usize = 8 * 1024;
const HEADER_TIME: Duration = Duration::from_secs(5);
const CONNECTION_TIME: Duration = Duration::from_secs(10);

/// Opens the socket, for its owner only, in place of one that a dead process left behind; or takes the
/// one that a predecessor handed over. Another that somebody answers at stays, and so does a file that is no socket.
pub(crate) fn bind(path: &Path, listeners: &Listeners) -> Result<Listener> {
    let opened = listeners.open(&ListenAddress::Unix(path.to_owned()));
    opened.map_err(|error| {
        let taken = error.kind() == std::io::ErrorKind::AddrInUse;
        let error = anyhow::Error::new(error).context("open the admin socket");
        if taken {
            error.context(format!(
                "another process answers at `{0}`, or `{0}` is no socket; give this one its own --admin-socket",
                path.display()
            ))
        } else {
            error
        }
    })
}

/// Opens the TCP address, for whoever reaches it.
pub(crate) fn bind_tcp(address: SocketAddr, listeners: &Listeners) -> Result<Listener> {
    if !address.ip().is_loopback() {
        tracing::info!(%address, "health and metrics are told to whoever reaches this address");
    }
    listeners
        .open(&ListenAddress::Tcp(address))
        .context("open the address for health and metrics")
}

pub(crate) async fn serve<P: Observed>(listener: Listener, program: Arc<P>, drain: Drain) {
    let mut accept = Accept::new(listener, CONNECTIONS);
    while let Some((socket, _peer, slot)) = accept.next(&drain).await {
        let program = Arc::clone(&program);
        drain.spawn(async move {
            let _slot = slot;
            let Some(audience) = audience(&socket) else {
                return;
            };
            let service = service_fn(move |request| {
                let program = Arc::clone(&program);
                async move { Ok::<_, Infallible>(answer(&request, audience, &*program).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIME)
                .max_buf_size(REQUEST_BYTES)
                .serve_connection(TokioIo::new(socket), service);
            // A reader that leaves early or stays too long loses its answer, nobody else's.
            let _ = tokio::time::timeout(CONNECTION_TIME, connection).await;
        });
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Audience {
    Owner,
    Anybody,
}

/// Nothing for those who are not answered.
fn audience(socket: &Socket) -> Option<Audience> {
    let Socket::Unix(stream) = socket else {
        return Some(Audience::Anybody);
    };
    let own = rustix::process::geteuid().as_raw();
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == own || peer.uid() == 0 => Some(Audience::Owner),
        Ok(peer) => {
            tracing::warn!(uid = peer.uid(), "refused another user at the admin socket");
            None
        }
        Err(error) => {
            tracing::warn!(%error, "cannot tell who connects to the admin socket");
            None
        }
    }
}

async fn answer<P: Observed>(
    request: &Request<Incoming>,
    audience: Audience,
    program: &P,
) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    }
    match request.uri().path() {
        "/livez" => health(&program.stuck()),
        "/startupz" if program.has_started() => health(&[]),
        "/startupz" => health(&[NOT_STARTED.to_owned()]),
        "/readyz" => health(&program.unready().await),
        "/metrics" => respond(
            StatusCode::OK,
            metrics::CONTENT_TYPE,
            program.metrics().await.into(),
        ),
        path => match (audience, program.read(path)) {
            (Audience::Owner, Reading::Json(value)) => json(&value),
            (Audience::Owner, Reading::Missing(why)) => text(StatusCode::NOT_FOUND, why),
            (Audience::Anybody, _) => text(StatusCode::NOT_FOUND, "unknown path\n"),
        },
    }
}

pub(crate) const NOT_STARTED: &str = "it has not started yet";

/// A line for each reason why not.
fn health(reasons: &[String]) -> Response<Full<Bytes>> {
    if reasons.is_empty() {
        return text(StatusCode::OK, "ok\n");
    }
    let lines: String = reasons.iter().map(|reason| format!("{reason}\n")).collect();
    respond(StatusCode::SERVICE_UNAVAILABLE, PLAIN, lines.into())
}

const PLAIN: &str = "text/plain; charset=utf-8";

fn text(code: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    respond(code, PLAIN, Bytes::from_static(body.as_bytes()))
}

fn json(value: &serde_json::Value) -> Response<Full<Bytes>> {
    respond(
        StatusCode::OK,
        "application/json",
        Bytes::from(format!("{value}\n")),
    )
}

fn respond(code: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = code;
    response.headers_mut().insert(
        hyper::header::CONTENT_TYPE,
        hyper::header::HeaderValue::from_static(kind),
    );
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_in_the_admin_sockets_place_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        let error = format!("{:#}", bind(&path, &Listeners::none()).unwrap_err());
        assert!(error.contains("--admin-socket"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
    }

    #[tokio::test]
    async fn a_socket_whose_listener_is_too_busy_to_answer_is_neither_waited_for_nor_taken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let squatter = bind(&path, &Listeners::none()).unwrap();
        rustix::net::listen(&squatter, 0).unwrap();
        // Fills its queue; another blocking connection would wait for ever.
        let _waiting = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let error = format!("{:#}", bind(&path, &Listeners::none()).unwrap_err());
        assert!(error.contains("another process"), "{error}");
    }
}
