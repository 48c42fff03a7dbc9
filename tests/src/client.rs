//! A TLS client as a stranger would write it: plain rustls with roots and a DNS name, knowing
//! nothing of SPIFFE. And an application as it is behind a sidecar, which speaks no TLS.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::{http1, http2};
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

#[derive(Clone)]
pub struct Client {
    /// None: it speaks plain HTTP.
    config: Option<Arc<ClientConfig>>,
    address: SocketAddr,
    name: ServerName<'static>,
}

impl Client {
    /// `identity` is a certificate chain and its key; none makes an anonymous client.
    pub fn new(
        roots: &[CertificateDer<'static>],
        identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
        address: SocketAddr,
    ) -> Self {
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(root.clone()).expect("a root is a certificate");
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("TLS versions")
            .with_root_certificates(store);
        let config = match identity {
            Some((chain, key)) => builder
                .with_client_auth_cert(chain, key)
                .expect("a key fits its certificate"),
            None => builder.with_no_client_auth(),
        };
        Self {
            config: Some(Arc::new(config)),
            ..Self::plain(address)
        }
    }

    /// An application that leaves TLS to the sidecar at `address`.
    pub fn plain(address: SocketAddr) -> Self {
        Self {
            config: None,
            address,
            name: ServerName::try_from("localhost").expect("a name"),
        }
    }

    /// From `certificate.pem`, `key.pem` and `bundle.pem`.
    pub fn from_directory(directory: &Path, address: SocketAddr) -> Self {
        let roots = certificates(&directory.join("bundle.pem"));
        let chain = certificates(&directory.join("certificate.pem"));
        let key = PrivateKeyDer::from_pem_file(directory.join("key.pem")).expect("read a key");
        Self::new(&roots, Some((chain, key)), address)
    }

    pub fn with_alpn(&self, protocols: &[&[u8]]) -> Self {
        let config = self.config.as_deref().expect("a client with TLS");
        let mut config = config.clone();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Self {
            config: Some(Arc::new(config)),
            ..self.clone()
        }
    }

    pub async fn connect(&self) -> Result<TlsStream<TcpStream>> {
        self.handshake(self.socket().await?).await
    }

    /// TLS on a connection that is there already.
    pub async fn handshake(&self, socket: TcpStream) -> Result<TlsStream<TcpStream>> {
        let config = self.config.clone().context("a client with TLS")?;
        let stream = TlsConnector::from(config).connect(self.name.clone(), socket);
        stream.await.context("handshake")
    }

    async fn socket(&self) -> Result<TcpStream> {
        let socket = TcpStream::connect(self.address).await.context("connect")?;
        socket.set_nodelay(true)?;
        Ok(socket)
    }

    /// One request on a connection of its own, HTTP/1.1.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.send(Request::get(path).body(Bytes::new())?).await
    }

    pub async fn send(&self, request: Request<Bytes>) -> Result<Answer> {
        let mut connection = self.open().await?;
        connection.send(request).await
    }

    /// A connection that stays open, HTTP/1.1.
    pub async fn open(&self) -> Result<Connection> {
        match self.config {
            Some(_) => Connection::over(self.connect().await?).await,
            None => Connection::over(self.socket().await?).await,
        }
    }

    /// A connection that stays open, HTTP/2.
    pub async fn open_http2(&self) -> Result<Connection> {
        let stream = self.with_alpn(&[b"h2"]).connect().await?;
        anyhow::ensure!(
            stream.get_ref().1.alpn_protocol() == Some(b"h2"),
            "h2 was not agreed on"
        );
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        Ok(Connection {
            sender: Sender::Http2(sender),
            driver: tokio::spawn(async move { Ok(connection.await?) }),
        })
    }
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

pub struct Connection {
    sender: Sender,
    driver: tokio::task::JoinHandle<Result<()>>,
}

impl Connection {
    /// HTTP/1.1 over it.
    async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Self> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        Ok(Self {
            sender: Sender::Http1(sender),
            driver: tokio::spawn(async move { Ok(connection.await?) }),
        })
    }

    pub async fn get(&mut self, path: &str) -> Result<Answer> {
        self.send(Request::get(path).body(Bytes::new())?).await
    }

    /// Sends one request; `host` is set when absent.
    pub async fn send(&mut self, request: Request<Bytes>) -> Result<Answer> {
        let mut request = request.map(Full::new);
        let exchange = async {
            let response = match &mut self.sender {
                Sender::Http1(sender) => {
                    request
                        .headers_mut()
                        .entry("host")
                        .or_insert(hyper::header::HeaderValue::from_static("localhost"));
                    // The answer before may be through, and its connection not yet ready for the next.
                    sender.ready().await.context("keep the connection")?;
                    sender.send_request(request).await
                }
                Sender::Http2(sender) => {
                    let uri = format!("https://localhost{}", request.uri());
                    *request.uri_mut() = uri.parse()?;
                    sender.send_request(request).await
                }
            };
            let (parts, body) = response.context("send the request")?.into_parts();
            let body = body.collect().await.context("read the answer")?.to_bytes();
            anyhow::Ok(Answer {
                status: parts.status,
                headers: parts.headers,
                body,
            })
        };
        tokio::time::timeout(TIMEOUT, exchange)
            .await
            .context("no answer in time")?
    }

    /// The same, for a load that must not lose one: nothing if the connection was ending and the request never left. It
    /// can be sent on another one then.
    pub async fn offer(&mut self, path: &str) -> Result<Option<Answer>> {
        let request = |uri: String| {
            let request = Request::get(uri).header("host", "localhost");
            request.body(Full::new(Bytes::new()))
        };
        let exchange = async {
            let sent = match &mut self.sender {
                Sender::Http1(sender) => match sender.ready().await {
                    Ok(()) => sender.try_send_request(request(path.to_owned())?).await,
                    Err(_) => return Ok(None),
                },
                Sender::Http2(sender) => match sender.ready().await {
                    Ok(()) => {
                        let uri = format!("https://localhost{path}");
                        sender.try_send_request(request(uri)?).await
                    }
                    Err(_) => return Ok(None),
                },
            };
            let response = match sent {
                Ok(response) => response,
                Err(mut refused) => match refused.take_message() {
                    Some(_) => return Ok(None),
                    None => return Err(refused.into_error()).context("send the request"),
                },
            };
            let (parts, body) = response.into_parts();
            let body = body.collect().await.context("read the answer")?.to_bytes();
            Ok(Some(Answer {
                status: parts.status,
                headers: parts.headers,
                body,
            }))
        };
        tokio::time::timeout(TIMEOUT, exchange)
            .await
            .context("no answer in time")?
    }

    /// How the server ended this connection.
    pub async fn ended(mut self) -> Result<()> {
        (&mut self.driver).await.context("drive the connection")?
    }

    /// True once the server has ended this connection.
    pub fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_closed(),
            Sender::Http2(sender) => sender.is_closed(),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

pub fn certificates(file: &Path) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .unwrap_or_else(|error| panic!("read {}: {error}", file.display()))
}
