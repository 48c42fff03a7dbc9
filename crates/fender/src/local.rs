//! The client of a sidecar's admin socket.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

const ANSWER_LIMIT: usize = 4 * 1024 * 1024;
const TIME: Duration = Duration::from_secs(10);

/// What the socket answers; `None` if it answers that there is no such thing, or that it is not ready.
pub(crate) async fn get(socket: &Path, path: &str) -> Result<Option<Value>> {
    let asked = tokio::time::timeout(TIME, exchange(socket, path)).await;
    asked.with_context(|| {
        format!(
            "no answer at `{}` within {}s",
            socket.display(),
            TIME.as_secs()
        )
    })?
}

/// The same where an answer must be.
pub(crate) async fn get_json(socket: &Path, path: &str) -> Result<Value> {
    get(socket, path).await?.with_context(|| {
        format!(
            "the sidecar at `{}` does not know `{path}`",
            socket.display()
        )
    })
}

async fn exchange(socket: &Path, path: &str) -> Result<Option<Value>> {
    let stream = UnixStream::connect(socket).await.with_context(|| {
        format!(
            "no sidecar answers at the admin socket `{}`",
            socket.display()
        )
    })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path)
        .header("host", "fender")
        .body(Empty::<Bytes>::new())?;
    let ask = async {
        let response = sender
            .send_request(request)
            .await
            .context("ask the sidecar")?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_LIMIT)
            .collect()
            .await
            .map_err(|error| anyhow::anyhow!("read the sidecar's answer: {error}"))?
            .to_bytes();
        match status {
            StatusCode::OK => Ok(Some(serde_json::from_slice(&body).unwrap_or(Value::Null))),
            StatusCode::NOT_FOUND | StatusCode::SERVICE_UNAVAILABLE => Ok(None),
            other => anyhow::bail!("the sidecar answered {other}"),
        }
    };
    let drive = async {
        // An error of the connection shows as an error of the request.
        let _ = connection.await;
        std::future::pending().await
    };
    tokio::select! {
        answer = ask => answer,
        never = drive => never,
    }
}
