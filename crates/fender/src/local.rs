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

/// What is to be named, said with what came of another.
const WHERE: &str = "name its admin socket, which is what its own --admin-socket says, or admin.sock in its --state";
const ANSWER_LIMIT: usize = 4 * 1024 * 1024;
const TIME: Duration = Duration::from_secs(10);

/// Whether the sidecar says that it is ready; else an error that says why not.
pub(crate) async fn ready(socket: &Path) -> Result<()> {
    match ask(socket, "/readyz").await? {
        Answer::Found(_) => Ok(()),
        Answer::None(why) => anyhow::bail!(
            "the sidecar at `{}` is not ready: {}",
            socket.display(),
            why.trim_end().replace('\n', "; ")
        ),
    }
}

/// What the socket answers; `None` if it answers that there is no such thing.
pub(crate) async fn get(socket: &Path, path: &str) -> Result<Option<Value>> {
    match ask(socket, path).await? {
        Answer::Found(value) => Ok(Some(value)),
        Answer::None(_) => Ok(None),
    }
}

enum Answer {
    Found(Value),
    /// Why there is none, as text.
    None(String),
}

async fn ask(socket: &Path, path: &str) -> Result<Answer> {
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

async fn exchange(socket: &Path, path: &str) -> Result<Answer> {
    let shown = socket.display();
    let nobody = || format!("no sidecar answers at `{shown}`: {WHERE}");
    let at = || format!("ask the sidecar at `{shown}`: {WHERE}");
    let stream = UnixStream::connect(socket).await.with_context(nobody)?;
    let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.with_context(at)?;
    let request = Request::get(path)
        .header("host", "fender")
        .body(Empty::<Bytes>::new())?;
    let ask = async {
        let response = sender.send_request(request).await.with_context(at)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_LIMIT)
            .collect()
            .await
            .map_err(|error| anyhow::anyhow!("read the sidecar's answer: {error}"))?
            .to_bytes();
        match status {
            StatusCode::OK => Ok(Answer::Found(
                serde_json::from_slice(&body).unwrap_or(Value::Null),
            )),
            StatusCode::NOT_FOUND | StatusCode::SERVICE_UNAVAILABLE => {
                Ok(Answer::None(String::from_utf8_lossy(&body).into_owned()))
            }
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
