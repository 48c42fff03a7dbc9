//! The demo's own HTTP client: what `curl` would do, so that nothing needs to be installed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use fender_identity::tls::{self, TlsProfile};
use fender_identity::{Bundles, Peer, SpiffeId, Svid};
use fender_runtime::clock::{self, TlsClock};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const BODY_LIMIT: usize = 64 * 1024;
const TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Who answered; anonymous when it came in plain text.
    pub(crate) server: Peer,
}

impl Answer {
    pub(crate) fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).context("read the answer as JSON")
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// A TLS client that calls one mesh service.
pub(crate) struct Client {
    config: Arc<ClientConfig>,
    expected: SpiffeId,
    address: SocketAddr,
}

impl Client {
    /// `svid` is the caller's certificate; none makes an anonymous caller.
    pub(crate) fn new(
        svid: Option<&Svid>,
        bundles: Arc<Bundles>,
        expected: SpiffeId,
        address: SocketAddr,
    ) -> Result<Self> {
        let time = Arc::new(TlsClock(clock::system()));
        let config = tls::client(
            &TlsProfile::default(),
            svid,
            bundles,
            expected.clone(),
            &[b"http/1.1"],
            time,
        )
        .context("prepare TLS")?;
        Ok(Self {
            config,
            expected,
            address,
        })
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Answer> {
        bounded(async {
            let socket = connect(self.address).await?;
            let stream = TlsConnector::from(Arc::clone(&self.config))
                .connect(tls::server_name(&self.expected), socket)
                .await
                .context("TLS handshake")?;
            let server = tls::peer_of(stream.get_ref().1);
            let mut answer =
                exchange(TokioIo::new(stream), &self.address.to_string(), path).await?;
            answer.server = server;
            Ok(answer)
        })
        .await
    }

    /// Asks `path` over one connection until `until` is told, counting answers other than 200.
    pub(crate) async fn keep_asking(
        &self,
        path: &str,
        until: tokio::sync::watch::Receiver<bool>,
    ) -> Result<u64> {
        let socket = connect(self.address).await?;
        let stream = TlsConnector::from(Arc::clone(&self.config))
            .connect(tls::server_name(&self.expected), socket)
            .await
            .context("TLS handshake")?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let mut connection = std::pin::pin!(connection);
        let mut answered = 0;
        while !*until.borrow() {
            let request = get(&self.address.to_string(), path)?;
            let ask = async {
                let response = sender.send_request(request).await?;
                let status = response.status();
                Limited::new(response.into_body(), BODY_LIMIT)
                    .collect()
                    .await
                    .map_err(|error| anyhow::anyhow!("{error}"))?;
                anyhow::ensure!(status == StatusCode::OK, "answered {status}");
                Ok(())
            };
            tokio::select! {
                asked = bounded(ask) => asked?,
                ended = &mut connection => anyhow::bail!("the connection ended: {ended:?}"),
            }
            answered += 1;
        }
        Ok(answered)
    }
}

/// One plain-text HTTP request, as any client would make it.
pub(crate) async fn plain(address: SocketAddr, path: &str) -> Result<Answer> {
    bounded(async {
        exchange(
            TokioIo::new(connect(address).await?),
            &address.to_string(),
            path,
        )
        .await
    })
    .await
}

async fn connect(address: SocketAddr) -> Result<TcpStream> {
    TcpStream::connect(address)
        .await
        .with_context(|| format!("connect to {address}"))
}

fn get(host: &str, path: &str) -> Result<Request<Empty<Bytes>>> {
    Ok(Request::get(path).header("host", host).body(Empty::new())?)
}

async fn exchange<S>(stream: S, host: &str, path: &str) -> Result<Answer>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    let ask = async {
        let (parts, body) = sender
            .send_request(get(host, path)?)
            .await
            .context("send the request")?
            .into_parts();
        let body = Limited::new(body, BODY_LIMIT)
            .collect()
            .await
            .map_err(|error| anyhow::anyhow!("read the answer: {error}"))?
            .to_bytes();
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            body,
            server: Peer::Anonymous,
        })
    };
    // An error of the connection shows as an error of the request, so its own is not needed.
    let drive = async {
        let _ = connection.await;
        std::future::pending::<Result<Answer>>().await
    };
    tokio::select! {
        answer = ask => answer,
        never = drive => never,
    }
}

async fn bounded<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(TIMEOUT, work)
        .await
        .map_err(|_| anyhow::anyhow!("no answer within {}s", TIMEOUT.as_secs()))?
}
