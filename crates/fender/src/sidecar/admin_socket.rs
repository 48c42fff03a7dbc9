//! The sidecar's local admin socket: health, status and the explanation of its own denials.
//!
//! HTTP/1.1 on a Unix socket that only its owner and root may open; the peer's uid is checked again
//! on the connection. It reads, it changes nothing, and it knows no secret: what it answers is made
//! from [`Status`] and the decision records, which hold none.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use fender_runtime::accept::Accept;
use fender_runtime::drain::Drain;
use fender_runtime::listen::{ListenAddress, Listener, Socket};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};

use super::status::Status;
use crate::metrics;

/// Enough for a person and a health check at once.
const CONNECTIONS: usize = 16;
const HEADER_TIME: Duration = Duration::from_secs(5);
const CONNECTION_TIME: Duration = Duration::from_secs(10);

/// Opens the socket, for its owner only, in place of one that a dead sidecar left behind. A socket
/// that somebody answers at stays, and so does a file that is no socket.
pub(super) fn bind(path: &Path) -> Result<Listener> {
    Listener::bind(&ListenAddress::Unix(path.to_owned())).map_err(|error| {
        let taken = error.kind() == std::io::ErrorKind::AddrInUse;
        let error = anyhow::Error::new(error).context("open the admin socket");
        if taken {
            error.context(format!(
                "another sidecar answers at `{0}`, or `{0}` is no socket; give this one its own --admin-socket",
                path.display()
            ))
        } else {
            error
        }
    })
}

pub(super) async fn serve(listener: Listener, status: Arc<Status>, drain: Drain) {
    let mut accept = Accept::new(listener, CONNECTIONS);
    while let Some((socket, _peer, slot)) = accept.next(&drain).await {
        let status = Arc::clone(&status);
        drain.spawn(async move {
            let _slot = slot;
            if !is_allowed(&socket) {
                return;
            }
            let service = service_fn(move |request| {
                let status = Arc::clone(&status);
                async move { Ok::<_, Infallible>(answer(&request, &status)) }
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

fn answer(request: &Request<Incoming>, status: &Status) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    }
    match request.uri().path() {
        "/livez" => text(StatusCode::OK, "ok\n"),
        "/startupz" => health(status.has_started()),
        "/readyz" => health(status.is_ready()),
        "/metrics" => respond(
            StatusCode::OK,
            metrics::CONTENT_TYPE,
            status.metrics().into(),
        ),
        "/status" => json(&status.to_json()),
        path => match path
            .strip_prefix("/decisions/")
            .map(|id| status.decisions.find(id))
        {
            Some(Some(record)) => json(&record),
            Some(None) => text(
                StatusCode::NOT_FOUND,
                "no decision with this id is kept here\n",
            ),
            None => text(StatusCode::NOT_FOUND, "unknown path\n"),
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
        assert!(error.contains("another sidecar"), "{error}");
    }
}
