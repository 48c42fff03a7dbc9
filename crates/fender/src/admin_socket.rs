//! The local admin socket of a sidecar and of a control plane: health, metrics, and what else the program has to tell.
//!
//! HTTP/1.1 on a Unix socket that only its owner and root may open; the peer's uid is checked again
//! on the connection. It reads, it changes nothing, and it knows no secret: what it answers is made
//! by a program that is [`Observed`], from what holds none.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use fender_runtime::accept::Accept;
use fender_runtime::drain::Drain;
use fender_runtime::listen::{ListenAddress, Listener, Socket};
use fender_runtime::metrics;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};

/// What a program tells at its admin socket.
pub(crate) trait Observed: Send + Sync + 'static {
    fn has_started(&self) -> bool;

    /// Whether it does its work now.
    fn is_ready(&self) -> impl Future<Output = bool> + Send;

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

/// Enough for a person and a health check at once.
const CONNECTIONS: usize = 16;
const HEADER_TIME: Duration = Duration::from_secs(5);
const CONNECTION_TIME: Duration = Duration::from_secs(10);

/// Opens the socket, for its owner only, in place of one that a dead process left behind. A socket
/// that somebody answers at stays, and so does a file that is no socket.
pub(crate) fn bind(path: &Path) -> Result<Listener> {
    Listener::bind(&ListenAddress::Unix(path.to_owned())).map_err(|error| {
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

pub(crate) async fn serve<P: Observed>(listener: Listener, program: Arc<P>, drain: Drain) {
    let mut accept = Accept::new(listener, CONNECTIONS);
    while let Some((socket, _peer, slot)) = accept.next(&drain).await {
        let program = Arc::clone(&program);
        drain.spawn(async move {
            let _slot = slot;
            if !is_allowed(&socket) {
                return;
            }
            let service = service_fn(move |request| {
                let program = Arc::clone(&program);
                async move { Ok::<_, Infallible>(answer(&request, &*program).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIME)
                .serve_connection(TokioIo::new(socket), service);
            // A reader that leaves early or stays too long loses its answer, nobody else's.
            let _ = tokio::time::timeout(CONNECTION_TIME, connection).await;
        });
    }
}

fn is_allowed(socket: &Socket) -> bool {
    let Socket::Unix(stream) = socket else {
        return false;
    };
    let own = rustix::process::geteuid().as_raw();
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == own || peer.uid() == 0 => true,
        Ok(peer) => {
            tracing::warn!(uid = peer.uid(), "refused another user at the admin socket");
            false
        }
        Err(error) => {
            tracing::warn!(%error, "cannot tell who connects to the admin socket");
            false
        }
    }
}

async fn answer<P: Observed>(request: &Request<Incoming>, program: &P) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    }
    match request.uri().path() {
        "/livez" => text(StatusCode::OK, "ok\n"),
        "/startupz" => health(program.has_started()),
        "/readyz" => health(program.is_ready().await),
        "/metrics" => respond(
            StatusCode::OK,
            metrics::CONTENT_TYPE,
            program.metrics().await.into(),
        ),
        path => match program.read(path) {
            Reading::Json(value) => json(&value),
            Reading::Missing(why) => text(StatusCode::NOT_FOUND, why),
        },
    }
}

fn health(good: bool) -> Response<Full<Bytes>> {
    if good {
        text(StatusCode::OK, "ok\n")
    } else {
        text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

fn text(code: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    respond(
        code,
        "text/plain; charset=utf-8",
        Bytes::from_static(body.as_bytes()),
    )
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
        let error = format!("{:#}", bind(&path).unwrap_err());
        assert!(error.contains("--admin-socket"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
    }

    #[tokio::test]
    async fn a_socket_whose_listener_is_too_busy_to_answer_is_neither_waited_for_nor_taken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let squatter = bind(&path).unwrap();
        rustix::net::listen(&squatter, 0).unwrap();
        // Fills its queue; another blocking connection would wait for ever.
        let _waiting = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let error = format!("{:#}", bind(&path).unwrap_err());
        assert!(error.contains("another process"), "{error}");
    }
}
