//! Where spans go, and the way there.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use fender_config::HostPort;
use fender_identity::certificates_from_pem;
use fender_identity::tls::{TlsProfile, TlsVersion, client_dns};
use fender_runtime::clock::{SharedClock, TlsClock};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use crate::client::{EvidenceFileError, read_file};
use crate::tls::{ALPN, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, MAX_HEADER_LIST, Once};

/// Where a collector takes spans by gRPC. The scheme says what protects them on their way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CollectorUrl {
    /// `https://HOST:PORT`: TLS, the server verified in full.
    Tls(HostPort),
    /// `http://HOST:PORT`: nothing does.
    Plain(HostPort),
    /// `unix:///PATH`: this machine's file system.
    Unix(PathBuf),
}

impl CollectorUrl {
    /// Whether spans cross a network where anybody on it may read them.
    pub fn is_exposed(&self) -> bool {
        match self {
            Self::Tls(_) | Self::Unix(_) => false,
            Self::Plain(at) => match at.host().parse::<IpAddr>() {
                Ok(address) => !address.is_loopback(),
                Err(_) => at.host() != "localhost",
            },
        }
    }
}

impl fmt::Display for CollectorUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tls(at) => write!(f, "https://{at}"),
            Self::Plain(at) => write!(f, "http://{at}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// Why a text is not where a collector is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not where a collector takes OTLP by gRPC: {why}; write `https://HOST:PORT`, `http://HOST:PORT` or \
     `unix:///PATH`, the port usually 4317"
)]
pub struct CollectorUrlError {
    text: String,
    why: String,
}

impl FromStr for CollectorUrl {
    type Err = CollectorUrlError;

    fn from_str(text: &str) -> Result<Self, CollectorUrlError> {
        let refuse = |why: &str| CollectorUrlError {
            // A URL with user information may hold a password, which an error must not repeat.
            text: match text.rsplit_once('@') {
                Some((_, after)) => format!("…@{after}"),
                None => text.to_owned(),
            },
            why: why.to_owned(),
        };
        if let Some(path) = text.strip_prefix("unix://") {
            return match Path::new(path).is_absolute() {
                true => Ok(Self::Unix(path.into())),
                false => Err(refuse("the path of the socket is not absolute")),
            };
        }
        let of: fn(HostPort) -> Self;
        let rest = if let Some(rest) = text.strip_prefix("https://") {
            of = Self::Tls;
            rest
        } else if let Some(rest) = text.strip_prefix("http://") {
            of = Self::Plain;
            rest
        } else {
            return Err(refuse("it has another scheme, or none"));
        };
        if rest.contains('@') {
            return Err(refuse("it names a user"));
        }
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#']) {
            return Err(refuse("it has a path, which gRPC has no use for"));
        }
        match authority.parse() {
            Ok(at) => Ok(of(at)),
            Err(_) => Err(refuse("a host and a port must follow the scheme")),
        }
    }
}

/// A collector, and who vouches for it.
#[derive(Clone, Debug)]
pub struct Collector {
    url: CollectorUrl,
    /// In PEM; read for each connection, so that they can be replaced.
    roots: Option<PathBuf>,
    clock: SharedClock,
}

/// Why there is no way to a collector.
#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    #[error(
        "nobody vouches for the collector at `{0}`: name the file of its authorities with --otlp-roots"
    )]
    NoRoots(CollectorUrl),
    #[error("--otlp-roots has no meaning for `{0}`, where there is no TLS")]
    NoTls(CollectorUrl),
    #[error(transparent)]
    File(#[from] EvidenceFileError),
    #[error("authorities of the collector: {0}")]
    Roots(String),
    #[error("collector `{url}` cannot be reached")]
    Unreachable {
        url: CollectorUrl,
        source: io::Error,
    },
}

impl Collector {
    /// Roots are for `https` and for nothing else.
    pub fn new(
        url: CollectorUrl,
        roots: Option<PathBuf>,
        clock: SharedClock,
    ) -> Result<Self, CollectorError> {
        let collector = Self { url, roots, clock };
        match (&collector.url, &collector.roots) {
            (CollectorUrl::Tls(_), Some(roots)) => drop(collector.tls(roots)?),
            (CollectorUrl::Tls(_), None) => return Err(CollectorError::NoRoots(collector.url)),
            (_, Some(_)) => return Err(CollectorError::NoTls(collector.url)),
            (CollectorUrl::Plain(_) | CollectorUrl::Unix(_), None) => {}
        }
        Ok(collector)
    }

    pub fn url(&self) -> &CollectorUrl {
        &self.url
    }

    fn tls(&self, roots: &Path) -> Result<Arc<ClientConfig>, CollectorError> {
        let wrong = |error: &dyn fmt::Display| CollectorError::Roots(error.to_string());
        let text = read_file("authorities of the collector", roots)?;
        let roots = certificates_from_pem(text.expose()).map_err(|error| wrong(&error))?;
        // Collectors are not all as new as we are.
        let profile = TlsProfile::since(TlsVersion::Tls12);
        let clock = Arc::new(TlsClock(self.clock.clone()));
        client_dns(&profile, None, roots, ALPN, clock).map_err(|error| wrong(&error))
    }

    /// A connection, which lasts until somebody ends it: the channel makes no other.
    pub(super) async fn connect(&self) -> Result<Channel, CollectorError> {
        let unreachable = |source| CollectorError::Unreachable {
            url: self.url.clone(),
            source,
        };
        match &self.url {
            CollectorUrl::Unix(path) => {
                let socket = UnixStream::connect(path).await.map_err(unreachable)?;
                // There is no name to say.
                self.channel(socket, "http://localhost".to_owned()).await
            }
            CollectorUrl::Plain(at) => {
                let socket = tcp(at).await.map_err(unreachable)?;
                self.channel(socket, self.url.to_string()).await
            }
            CollectorUrl::Tls(at) => {
                let roots = self.roots.as_deref();
                let roots = roots.ok_or_else(|| CollectorError::NoRoots(self.url.clone()))?;
                let config = self.tls(roots)?;
                let name = ServerName::try_from(at.host().to_owned());
                let name = name.map_err(|error| unreachable(io::Error::other(error)))?;
                let socket = tcp(at).await.map_err(unreachable)?;
                let tls = TlsConnector::from(config).connect(name, socket).await;
                self.channel(tls.map_err(unreachable)?, self.url.to_string())
                    .await
            }
        }
    }

    async fn channel<S>(&self, stream: S, origin: String) -> Result<Channel, CollectorError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let unreachable = |error: tonic::transport::Error| CollectorError::Unreachable {
            url: self.url.clone(),
            source: io::Error::other(error),
        };
        Endpoint::from_shared(origin)
            .map_err(unreachable)?
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .http2_max_header_list_size(MAX_HEADER_LIST)
            .connect_with_connector(Once(Some(TokioIo::new(stream))))
            .await
            .map_err(unreachable)
    }
}

async fn tcp(at: &HostPort) -> io::Result<TcpStream> {
    let socket = TcpStream::connect((at.host(), at.port())).await?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use fender_runtime::clock;

    use super::*;

    #[test]
    fn the_scheme_says_what_protects_the_way() {
        for (text, exposed) in [
            ("https://collector.internal:4317", false),
            ("http://127.0.0.1:4317", false),
            ("http://[::1]:4317", false),
            ("http://localhost:4317", false),
            ("http://collector.internal:4317", true),
            ("http://10.0.0.9:4317", true),
            ("unix:///run/otel.sock", false),
        ] {
            let url: CollectorUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), text);
            assert_eq!(url.is_exposed(), exposed, "{text}");
        }
        let url: CollectorUrl = "http://collector:4317/".parse().unwrap();
        assert_eq!(url.to_string(), "http://collector:4317");
    }

    #[test]
    fn what_is_no_collector_is_refused_with_what_would_be_one() {
        for text in [
            "",
            "collector:4317",
            "grpc://collector:4317",
            "https://collector",
            "https://collector:0",
            "http://collector:4318/v1/traces",
            "http://collector:4317?x",
            "unix://otel.sock",
            "unix:/run/otel.sock",
        ] {
            let error = text.parse::<CollectorUrl>().unwrap_err().to_string();
            assert!(error.contains("`unix:///PATH`"), "{error}");
        }
        let error = "http://me:hunter2@collector:4317".parse::<CollectorUrl>();
        let error = error.unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn somebody_vouches_for_a_collector_behind_tls_and_for_no_other() {
        let new = |url: &str, roots: Option<&Path>| {
            let (url, roots) = (url.parse().unwrap(), roots.map(Path::to_owned));
            Collector::new(url, roots, clock::system()).map(drop)
        };
        let error = new("https://collector:4317", None).unwrap_err();
        assert!(matches!(error, CollectorError::NoRoots(_)), "{error}");
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = new("http://collector:4317", Some(file.path())).unwrap_err();
        assert!(matches!(error, CollectorError::NoTls(_)), "{error}");
        let error = new("https://collector:4317", Some(file.path())).unwrap_err();
        assert!(matches!(error, CollectorError::Roots(_)), "{error}");
        let error = new("https://collector:4317", Some(Path::new("/dev/zero"))).unwrap_err();
        assert!(error.to_string().contains("regular file"), "{error}");
        assert!(new("unix:///run/otel.sock", None).is_ok());
    }
}
