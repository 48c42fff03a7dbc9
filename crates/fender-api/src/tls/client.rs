//! One verified connection to a control plane, ready for gRPC.
//!
//! The connection is made before the channel: a failure then has a type instead of being buried in tonic's, the server's
//! leaf is known, and whoever reconnects does it in one place. The channel never reconnects by itself.

use std::error::Error as _;
use std::fmt;
use std::future::{Ready, ready};
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use fender_identity::verify::Refusal;
use fender_runtime::deadline::Deadline;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tower_service::Service;

use super::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, MAX_HEADER_LIST};
use crate::code::Code;
use crate::url::ControlUrl;

/// A connection whose server was verified.
#[derive(Clone)]
pub struct Connection {
    /// For the generated clients. Over once the connection is.
    pub channel: Channel,
    /// The certificate the server showed.
    pub server_leaf: CertificateDer<'static>,
    /// Where it is.
    pub url: ControlUrl,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// Connects, authenticates and speaks HTTP/2, all before `deadline`. Whom `config` expects decides who may answer.
pub async fn connect(
    url: &ControlUrl,
    config: Arc<ClientConfig>,
    server_name: ServerName<'static>,
    deadline: Deadline,
) -> Result<Connection, ConnectError> {
    deadline
        .bound(establish(url, config, server_name))
        .await
        .map_err(|_| ConnectError::Timeout { url: url.clone() })?
}

async fn establish(
    url: &ControlUrl,
    config: Arc<ClientConfig>,
    server_name: ServerName<'static>,
) -> Result<Connection, ConnectError> {
    let unreachable = |source| ConnectError::Unreachable {
        url: url.clone(),
        source,
    };
    let socket = TcpStream::connect((url.host(), url.port()))
        .await
        .map_err(unreachable)?;
    socket.set_nodelay(true).map_err(unreachable)?;

    let tls = TlsConnector::from(config)
        .connect(server_name, socket)
        .await
        .map_err(|error| blame(url, error))?;
    let (_, session) = tls.get_ref();
    if session.alpn_protocol() != Some(b"h2") {
        let error = io::Error::new(io::ErrorKind::InvalidData, "it does not speak HTTP/2");
        return Err(unreachable(error));
    }
    let server_leaf = session
        .peer_certificates()
        .and_then(|chain| chain.first())
        .map(|leaf| leaf.clone().into_owned())
        .ok_or_else(|| unreachable(io::Error::other("it showed no certificate")))?;

    let channel = endpoint(url)?
        .connect_with_connector(Once(Some(TokioIo::new(tls))))
        .await
        .map_err(|error| {
            let cause = error
                .source()
                .map_or_else(|| error.to_string(), ToString::to_string);
            unreachable(io::Error::other(cause))
        })?;
    Ok(Connection {
        channel,
        server_leaf,
        url: url.clone(),
    })
}

fn endpoint(url: &ControlUrl) -> Result<Endpoint, ConnectError> {
    let endpoint = Endpoint::from_shared(url.to_string()).map_err(|error| {
        let source = io::Error::new(io::ErrorKind::InvalidInput, error);
        ConnectError::Unreachable {
            url: url.clone(),
            source,
        }
    })?;
    Ok(endpoint
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .http2_max_header_list_size(MAX_HEADER_LIST))
}

/// A handshake that failed: refused by us, by the server, or by the network.
fn blame(url: &ControlUrl, error: io::Error) -> ConnectError {
    let url = url.clone();
    match fender_identity::tls::refusal_of(&error) {
        Some(refusal) => ConnectError::NotControl { url, refusal },
        None => ConnectError::Unreachable { url, source: error },
    }
}

/// Gives its connection to the first who asks, and nothing afterwards.
pub(crate) struct Once<S>(pub(crate) Option<TokioIo<S>>);

impl<S> Service<Uri> for Once<S> {
    type Response = TokioIo<S>;
    type Error = io::Error;
    type Future = Ready<Result<Self::Response, io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        ready(self.0.take().ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotConnected,
                "the connection to the control plane is over",
            )
        }))
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The network, or TLS before anybody's certificate was judged.
    #[error("control plane `{url}` cannot be reached")]
    Unreachable {
        /// Where.
        url: ControlUrl,
        /// Why.
        source: io::Error,
    },
    /// We refused the server.
    #[error("`{url}` is not the control plane it must be")]
    NotControl {
        /// Where.
        url: ControlUrl,
        /// Why.
        #[source]
        refusal: Refusal,
    },
    /// Too slow.
    #[error("control plane `{url}` did not answer in time")]
    Timeout {
        /// Where.
        url: ControlUrl,
    },
}

impl ConnectError {
    /// The reason as a code.
    pub fn code(&self) -> Code {
        match self {
            Self::Unreachable { .. } => Code::Unavailable,
            Self::NotControl {
                refusal: Refusal::PinMismatch,
                ..
            } => Code::CaPinMismatch,
            Self::NotControl { .. } => Code::ControlNotVerified,
            Self::Timeout { .. } => Code::Timeout,
        }
    }
}
