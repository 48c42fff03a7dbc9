//! The demo's two applications: plain HTTP, no TLS, no password, no knowledge of Fender.
//!
//! `inventory` answers what is in stock and repeats who called it, as its adapter told it.
//! `orders` asks `inventory` for every order, through its ambassador, and reads its credential
//! from a file at each use. They stand for software somebody else wrote.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::client;

pub(crate) struct App {
    pub(crate) name: String,
    pub(crate) inventory: Option<SocketAddr>,
    pub(crate) credential: Option<PathBuf>,
}

/// Serves until the process is told to end.
pub(crate) async fn serve(app: App, listen: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("listen on {listen}"))?;
    let app = Arc::new(app);
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut connections = JoinSet::new();
    loop {
        let socket = tokio::select! {
            accepted = listener.accept() => accepted?.0,
            Some(_) = connections.join_next() => continue,
            _ = terminate.recv() => return Ok(()),
        };
        let app = Arc::clone(&app);
        connections.spawn(async move {
            let service = service_fn(|request| {
                let app = Arc::clone(&app);
                async move { Ok::<_, std::convert::Infallible>(app.answer(request).await) }
            });
            // A caller that goes away is the caller's affair.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(socket), service)
                .await;
        });
    }
}

impl App {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let caller = request
            .headers()
            .get("x-forwarded-client-cert")
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        let path = request.uri().path().to_owned();
        let mut segments = path.trim_start_matches('/').split('/');
        let answer = match (request.method(), segments.next(), segments.next()) {
            (&Method::GET, Some("stock"), Some(item)) => Ok(json!({
                "item": item, "in_stock": 7 * item.len(), "called_by": caller,
            })),
            (&Method::GET, Some("orders"), Some(order)) => self.order(order).await,
            (&Method::GET, Some("credential"), None) => self.credential().await,
            _ => {
                return json_response(
                    StatusCode::NOT_FOUND,
                    &json!({"error": "no such thing here"}),
                );
            }
        };
        match answer {
            Ok(value) => json_response(StatusCode::OK, &value),
            Err(error) => json_response(
                StatusCode::BAD_GATEWAY,
                &json!({"error": format!("{error:#}")}),
            ),
        }
    }

    async fn order(&self, order: &str) -> Result<Value> {
        let inventory = self.inventory.context("no inventory configured")?;
        let answer = client::plain(inventory, &format!("/stock/{order}")).await?;
        anyhow::ensure!(
            answer.status == StatusCode::OK,
            "inventory answered {}",
            answer.status
        );
        let stock = answer.json()?;
        Ok(json!({ "order": order, "answered_by": self.name, "stock": stock }))
    }

    /// What tells two credentials apart without showing either.
    async fn credential(&self) -> Result<Value> {
        let path = self
            .credential
            .as_ref()
            .context("no credential configured")?;
        let bytes = tokio::fs::read(path)
            .await
            .with_context(|| format!("read {}", path.display()))?;
        Ok(json!({ "fingerprint": fingerprint(&bytes) }))
    }
}

/// The first 12 hexadecimal digits of SHA-256.
pub(crate) fn fingerprint(bytes: &[u8]) -> String {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes)
        .as_ref()
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn json_response(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{value}\n"))));
    *response.status_mut() = status;
    response.headers_mut().insert(
        "content-type",
        hyper::header::HeaderValue::from_static("application/json"),
    );
    response
}
