//! Who: handshakes, and what they are made with.
//!
//! [`Terms`] are everything a new connection is served with: the SVID of the moment, one TLS
//! configuration for each listener, the way to the app or the destination. One worker builds them
//! from the newest SVID and snapshot, complete, before anybody can see them; a handshake only reads.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use fender_config::snapshot::{
    AppProxyProtocol, ClientCertificate, Destination, EscapedSlash, Inbound, Mtls, OwnCertificate,
    PathRules, Protocol, ProxyProtocol, Snapshot, UpstreamRoots,
};
use fender_config::{HostPort, ListenAddr};
use fender_identity::tls::{self, TlsError};
use fender_identity::{Peer, Svid};
use fender_runtime::clock::{Clock, SharedClock, TlsClock};
use fender_runtime::deadline::Deadline;
use fender_runtime::listen::{ListenAddress, Socket};
use fender_wire::path;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ServerConfig};
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;

use crate::Limits;
use crate::app::App;
use crate::fault::{PeerFault, UpstreamFault};
use crate::introduction;
use crate::metrics::{Meter, Metrics};
use crate::pool::{Keeping, Pool};
use crate::record::Direction;
use crate::relay::discard;
use crate::stream::Stream;

pub(crate) const H1: &[u8] = b"http/1.1";
pub(crate) const H2: &[u8] = b"h2";

/// How every connection of TLS begins, and no request of HTTP (RFC 8446, 5.1).
const HANDSHAKE: u8 = 22;

/// The largest file of roots that is read.
const MAX_ROOTS: u64 = 1024 * 1024;

/// What new connections are served with.
#[derive(Debug)]
pub(crate) struct Terms {
    pub(crate) version: u64,
    pub(crate) svid: Arc<Svid>,
    pub(crate) inbound: BTreeMap<ListenAddress, Arc<InboundTerms>>,
    pub(crate) outbound: BTreeMap<ListenAddress, Arc<OutboundTerms>>,
    /// One for each HTTP connection to an app, handed from terms to terms.
    links: Arc<Semaphore>,
    /// The same for those to others.
    outbound_links: Arc<Semaphore>,
}

#[derive(Debug)]
pub(crate) struct InboundTerms {
    pub(crate) protocol: Protocol,
    pub(crate) paths: path::Rules,
    pub(crate) app: Arc<App>,
    /// Who passes connections on.
    pub(crate) senders: Option<ProxyProtocol>,
    /// Whether the app hears of each connection who it comes from.
    pub(crate) app_proxy_protocol: AppProxyProtocol,
    opening: Opening,
}

/// M1: how a peer may begin.
#[derive(Debug)]
enum Opening {
    Tls(Arc<ServerConfig>),
    /// By its first byte: a TLS handshake, or whatever it speaks in the clear.
    Either(Arc<ServerConfig>),
    Plain,
}

#[derive(Debug)]
pub(crate) struct OutboundTerms {
    /// In words, for lines.
    pub(crate) name: Arc<str>,
    meter: OnceLock<Arc<Meter>>,
    pub(crate) protocol: Protocol,
    /// Tried in this order.
    pub(crate) addresses: Vec<HostPort>,
    /// Kept HTTP connections. They end with these terms: a new certificate is shown at once.
    pub(crate) pool: Arc<Pool>,
    config: Arc<ClientConfig>,
    server: ServerName<'static>,
}

/// Why a snapshot cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TermsError {
    #[error("TLS for `{listen}`")]
    Tls {
        listen: ListenAddr,
        source: TlsError,
    },
    #[error("roots of upstream `{name}`: {why}")]
    Roots { name: String, why: String },
    #[error("upstream address `{0}` is not a name that can be verified")]
    Name(HostPort),
    #[error("two listeners on `{0}`")]
    Twice(ListenAddr),
}

impl Terms {
    /// Our own certificate proves nothing any more.
    pub(crate) fn has_expired(&self, clock: &dyn Clock) -> bool {
        self.svid.validity().not_after < clock.now()
    }

    /// Closes the idle connections nobody will use any more.
    pub(crate) fn prune(&self) {
        self.inbound.values().for_each(|terms| terms.app.prune());
        self.outbound.values().for_each(|terms| terms.pool.prune());
    }

    /// Builds everything a snapshot asks for. Apps that stay where they were keep their connections.
    pub(crate) fn build(
        svid: &Arc<Svid>,
        snapshot: &Snapshot,
        before: Option<&Self>,
        clock: &SharedClock,
        limits: &Limits,
    ) -> Result<Self, TermsError> {
        let links = || {
            let links = limits.connections.min(Semaphore::MAX_PERMITS);
            Arc::new(Semaphore::new(links))
        };
        let mut terms = Self {
            version: snapshot.version,
            svid: svid.clone(),
            inbound: BTreeMap::new(),
            outbound: BTreeMap::new(),
            links: before.map_or_else(links, |before| before.links.clone()),
            outbound_links: before.map_or_else(links, |before| before.outbound_links.clone()),
        };
        for inbound in &snapshot.inbound {
            let listen = listen_address(&inbound.listen);
            let before = before.and_then(|before| before.inbound.get(&listen));
            let new_app = || App::new(inbound.app.clone(), terms.links.clone(), limits.clone());
            let built = InboundTerms::build(inbound, svid, snapshot, before, clock, new_app)?;
            if terms.inbound.insert(listen, Arc::new(built)).is_some() {
                return Err(TermsError::Twice(inbound.listen.clone()));
            }
        }
        for outbound in &snapshot.outbound {
            let built = OutboundTerms::build(
                &outbound.to,
                |source| TermsError::Tls {
                    listen: outbound.listen.clone(),
                    source,
                },
                svid,
                snapshot,
                clock,
                |lasts| Pool::new(terms.outbound_links.clone(), limits.clone(), lasts),
            )?;
            let listen = listen_address(&outbound.listen);
            let taken = terms.inbound.contains_key(&listen);
            if terms.outbound.insert(listen, Arc::new(built)).is_some() || taken {
                return Err(TermsError::Twice(outbound.listen.clone()));
            }
        }
        Ok(terms)
    }
}

impl InboundTerms {
    fn build(
        inbound: &Inbound,
        svid: &Svid,
        snapshot: &Snapshot,
        before: Option<&Arc<Self>>,
        clock: &SharedClock,
        new_app: impl FnOnce() -> App,
    ) -> Result<Self, TermsError> {
        let alpn: &[&[u8]] = match inbound.protocol {
            Protocol::Http => &[H2, H1],
            Protocol::Tcp => &[],
        };
        let config = |asked: ClientCertificate| {
            let mode = match asked {
                ClientCertificate::Require => tls::ClientCertificate::Require,
                ClientCertificate::Accept => tls::ClientCertificate::Accept,
                ClientCertificate::Ignore => tls::ClientCertificate::Ignore,
            };
            let time = Arc::new(TlsClock(clock.clone()));
            let trust = snapshot.trust.clone();
            let config =
                tls::server(&inbound.tls, svid, trust, mode, alpn, time).map_err(|source| {
                    TermsError::Tls {
                        listen: inbound.listen.clone(),
                        source,
                    }
                })?;
            Ok::<_, TermsError>(match inbound.app_proxy_protocol {
                AppProxyProtocol::Absent => config,
                AppProxyProtocol::V2 => Arc::new(introduction::listening(&config)),
            })
        };
        let opening = match inbound.mtls {
            Mtls::Strict(asked) => Opening::Tls(config(asked)?),
            // Whoever shows a certificate must be who it says; to be nobody takes none.
            Mtls::Permissive => Opening::Either(config(ClientCertificate::Accept)?),
            Mtls::Disabled => Opening::Plain,
        };
        let app = match before.map(|before| &before.app) {
            Some(app) if *app.address() == inbound.app => app.clone(),
            Some(_) | None => Arc::new(new_app()),
        };
        Ok(Self {
            protocol: inbound.protocol,
            paths: rules(inbound.paths),
            app,
            senders: inbound.proxy_protocol.clone(),
            app_proxy_protocol: inbound.app_proxy_protocol,
            opening,
        })
    }
}

impl OutboundTerms {
    /// Where what goes there is counted.
    pub(crate) fn meter(&self, metrics: &Metrics) -> Arc<Meter> {
        let look_up = || metrics.meter(Direction::Outbound, Some(&self.name));
        self.meter.get_or_init(look_up).clone()
    }

    fn build(
        destination: &Destination,
        tls_error: impl Fn(TlsError) -> TermsError,
        svid: &Svid,
        snapshot: &Snapshot,
        clock: &SharedClock,
        pool: impl FnOnce(Keeping) -> Pool,
    ) -> Result<Self, TermsError> {
        let time = Arc::new(TlsClock(clock.clone()));
        let alpn = |protocol| -> &[&[u8]] {
            match protocol {
                Protocol::Http => &[H1],
                Protocol::Tcp => &[],
            }
        };
        match destination {
            Destination::Service {
                id,
                addresses,
                protocol,
            } => {
                let (trust, alpn) = (snapshot.trust.clone(), alpn(*protocol));
                let config = tls::client(&snapshot.tls, Some(svid), trust, id.clone(), alpn, time)
                    .map_err(tls_error)?;
                Ok(Self {
                    name: id.as_str().into(),
                    meter: OnceLock::new(),
                    pool: Arc::new(pool(Keeping::Peer)),
                    protocol: *protocol,
                    addresses: addresses.clone(),
                    config,
                    server: tls::server_name(id),
                })
            }
            Destination::Upstream {
                name,
                address,
                protocol,
                roots,
                certificate,
            } => {
                let roots = match roots {
                    UpstreamRoots::Mesh => snapshot
                        .trust
                        .bundles
                        .iter()
                        .flat_map(|bundle| bundle.roots())
                        .cloned()
                        .collect(),
                    UpstreamRoots::File(path) => {
                        read_roots(path).map_err(|why| TermsError::Roots {
                            name: name.to_string(),
                            why,
                        })?
                    }
                };
                let own = match certificate {
                    OwnCertificate::Present => Some(svid),
                    OwnCertificate::Withhold => None,
                };
                let config = tls::client_dns(&snapshot.tls, own, roots, alpn(*protocol), time)
                    .map_err(tls_error)?;
                let server = ServerName::try_from(address.host().to_owned())
                    .map_err(|_| TermsError::Name(address.clone()))?;
                Ok(Self {
                    name: name.to_string().into(),
                    meter: OnceLock::new(),
                    pool: Arc::new(pool(Keeping::Upstream)),
                    protocol: *protocol,
                    addresses: vec![address.clone()],
                    config,
                    server,
                })
            }
        }
    }
}

/// The same address as the runtime writes it.
pub(crate) fn listen_address(address: &ListenAddr) -> ListenAddress {
    match address {
        ListenAddr::Tcp(address) => ListenAddress::Tcp(*address),
        ListenAddr::Unix(path) => ListenAddress::Unix(path.clone()),
    }
}

fn rules(rules: PathRules) -> path::Rules {
    path::Rules {
        escaped_slash: match rules.escaped_slash {
            EscapedSlash::Reject => path::EscapedSlash::Reject,
            EscapedSlash::Keep => path::EscapedSlash::Keep,
            EscapedSlash::Decode => path::EscapedSlash::Decode,
        },
        merge_slashes: if rules.merge_slashes {
            path::MergeSlashes::Always
        } else {
            path::MergeSlashes::Never
        },
        exceptions: path::Exceptions::default(),
    }
}

fn read_roots(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let shown = path.display();
    let failed = |error: std::io::Error| format!("`{shown}`: {error}");
    // A pipe would never answer and a device never end.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(format!("`{shown}` is not a regular file"));
    }
    let mut text = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_ROOTS + 1).read_to_end(&mut text))
        .map_err(failed)?;
    if text.len() as u64 > MAX_ROOTS {
        return Err(format!("`{shown}` is larger than {MAX_ROOTS} bytes"));
    }
    CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("`{shown}` is not PEM: {error}"))
}

/// Ends the peer's TLS, if it speaks any, and says who it is. A peer that is refused is told so by the alert: it is not
/// cut off while its own first words are on their way, which would take the alert back.
pub(crate) async fn accept(
    socket: Socket,
    terms: &InboundTerms,
    limits: &Limits,
    deadline: Deadline,
) -> Result<(Stream, Peer), PeerFault> {
    let config = match &terms.opening {
        Opening::Tls(config) => config,
        Opening::Either(config) => match deadline.bound(socket.peek()).await? {
            Ok(Some(HANDSHAKE) | None) => config,
            Ok(Some(_)) => return Ok((Stream::plain(socket), Peer::Anonymous)),
            Err(error) => return Err(PeerFault::handshake(&error)),
        },
        Opening::Plain => return Ok((Stream::plain(socket), Peer::Anonymous)),
    };
    let handshake = Stream::accept(socket, config.clone());
    let stream = match deadline.bound(handshake).await? {
        Ok(stream) => stream,
        Err((error, mut socket)) => {
            let patience = Deadline::after(limits.linger.min(deadline.remaining()));
            if matches!(patience.bound(socket.shutdown()).await, Ok(Ok(()))) {
                discard(&mut socket, patience, limits.linger_bytes).await;
            }
            return Err(PeerFault::handshake(&error));
        }
    };
    let peer = peer_of(&stream);
    Ok((stream, peer))
}

/// Begins TLS with a destination, which must prove to be the expected one (M4).
pub(crate) async fn connect(
    socket: Socket,
    terms: &OutboundTerms,
    address: &HostPort,
) -> Result<(Stream, Peer), UpstreamFault> {
    let stream = Stream::connect(socket, terms.config.clone(), terms.server.clone())
        .await
        .map_err(|error| {
            let address = address.to_string();
            match tls::refusal_of(&error) {
                Some(refusal) => UpstreamFault::ProvesWrongIdentity {
                    address,
                    expected: terms.name.to_string(),
                    reason: refusal.to_string(),
                },
                None => UpstreamFault::Unreachable { address, error },
            }
        })?;
    let peer = peer_of(&stream);
    Ok((stream, peer))
}

/// Whom the handshake proved; nobody, where there was none.
fn peer_of(stream: &Stream) -> Peer {
    stream.tls().map_or(Peer::Anonymous, tls::peer_of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_read_from_a_small_regular_file_only() {
        let endless = read_roots(Path::new("/dev/zero")).unwrap_err();
        assert!(endless.contains("regular file"), "{endless}");
        let large = tempfile::NamedTempFile::new().unwrap();
        large.as_file().set_len(MAX_ROOTS + 1).unwrap();
        let error = read_roots(large.path()).unwrap_err();
        assert!(error.contains("larger"), "{error}");
    }
}
