//! Who: handshakes, and what they are made with.
//!
//! [`Terms`] are everything a new connection is served with: the SVID of the moment, one TLS
//! configuration for each listener, the way to the app or the destination. One worker builds them
//! from the newest SVID and snapshot, complete, before anybody can see them; a handshake only reads.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use fender_config::snapshot::{
    AcmeChallenge, AppProtocol, AppProxyProtocol, ClientCertificate, Destination, EscapedSlash,
    Forwarded, Inbound, Mtls, OwnCertificate, PathException, PathRules, PortCertificate, Protocol,
    ProxyProtocol, Snapshot, UpstreamRoots,
};
use fender_config::{HostPort, ListenAddr};
use fender_identity::tls::{self, Own, TlsError, TlsProfile};
use fender_identity::{Peer, Svid, Trust};
use fender_runtime::clock::{Clock, SharedClock, TlsClock};
use fender_runtime::deadline::Deadline;
use fender_runtime::file::{self, Others};
use fender_runtime::listen::{ListenAddress, Socket};
use fender_wire::path;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ServerConfig};
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;

use crate::Limits;
use crate::app::App;
use crate::certificates::{Certificates, Shown};
use crate::challenges::http::ChallengeTerms;
use crate::challenges::{Answering, Challenges};
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
    trust: Trust,
    /// What TLS must be on the way out.
    tls: TlsProfile,
    pub(crate) inbound: BTreeMap<ListenAddress, Arc<InboundTerms>>,
    /// Where authorities are answered by HTTP-01, and nothing else is done.
    pub(crate) challenges: BTreeMap<ListenAddress, Arc<ChallengeTerms>>,
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
    pub(crate) app_protocol: AppProtocol,
    pub(crate) forwarded: Forwarded,
    /// What its requests may take.
    pub(crate) limits: Arc<Limits>,
    /// By which it is known.
    pub(crate) listen: ListenAddress,
    opening: Opening,
    asked: Inbound,
    shown: Shown,
}

/// M1: how a peer may begin.
#[derive(Debug)]
enum Opening {
    Tls(Offers),
    /// By its first byte: a TLS handshake, or whatever it speaks in the clear.
    Either(Offers),
    Plain,
}

/// What a client is offered in TLS.
#[derive(Debug)]
struct Offers {
    usual: Arc<ServerConfig>,
    /// While an authority asks for a name.
    answering: Option<Answering>,
}

impl Offers {
    /// To the next connection.
    fn now(&self) -> &Arc<ServerConfig> {
        let answering = self.answering.as_ref().and_then(Answering::now);
        answering.unwrap_or(&self.usual)
    }
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
    asked: Destination,
    /// Whom an upstream outside the mesh must be vouched for by.
    roots: Vec<CertificateDer<'static>>,
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
    #[error("a port on `{0}`, where nothing but challenges is answered")]
    TakenByChallenges(ListenAddress),
}

impl Terms {
    /// Our own certificate proves nothing any more.
    pub(crate) fn has_expired(&self, clock: &dyn Clock) -> bool {
        self.svid.validity().not_after < clock.now()
    }

    /// How many slots a connection to this listener takes.
    pub(crate) fn weight(&self, listen: &ListenAddress) -> u32 {
        self.inbound.get(listen).map_or(1, |terms| terms.weight())
    }

    /// Where others come in.
    pub(crate) fn entrances(&self) -> impl Iterator<Item = &ListenAddress> {
        self.inbound.keys().chain(self.challenges.keys())
    }

    /// Closes the idle connections nobody will use any more.
    pub(crate) fn prune(&self) {
        self.inbound.values().for_each(|terms| terms.app.prune());
        self.outbound.values().for_each(|terms| terms.pool.prune());
    }

    /// Builds everything a snapshot asks for. Apps that stay where they were keep their connections. Where everything
    /// that TLS is made from is as it was, it stays: the kept connections with it, and the tickets of its clients.
    pub(crate) fn build(
        svid: &Arc<Svid>,
        snapshot: &Snapshot,
        certificates: &Certificates,
        challenges: &Arc<Challenges>,
        before: Option<&Self>,
        clock: &SharedClock,
        limits: &Arc<Limits>,
    ) -> Result<Self, TermsError> {
        let links = || {
            let links = limits.links.min(Semaphore::MAX_PERMITS);
            Arc::new(Semaphore::new(links))
        };
        let mut terms = Self {
            version: snapshot.version,
            svid: svid.clone(),
            trust: snapshot.trust.clone(),
            tls: snapshot.tls.clone(),
            inbound: BTreeMap::new(),
            challenges: BTreeMap::new(),
            outbound: BTreeMap::new(),
            links: before.map_or_else(links, |before| before.links.clone()),
            outbound_links: before.map_or_else(links, |before| before.outbound_links.clone()),
        };
        let kept = before
            .filter(|before| Arc::ptr_eq(&before.svid, svid) && before.trust == snapshot.trust);
        for inbound in &snapshot.inbound {
            let listen = listen_address(&inbound.listen);
            let kept = kept.and_then(|kept| kept.inbound.get(&listen));
            let before = before.and_then(|before| before.inbound.get(&listen));
            let shown = certificates.of(&inbound.certificates);
            let own = Own {
                svid,
                named: &shown.named,
                refused: &shown.refused,
            };
            let built = match kept {
                Some(kept) if kept.asked == *inbound && kept.shown.is(&shown) => kept.clone(),
                Some(_) | None => {
                    let app = match before.map(|before| &before.app) {
                        Some(app) if *app.address() == inbound.app => app.clone(),
                        Some(_) | None => {
                            let links = terms.links.clone();
                            Arc::new(App::new(inbound.app.clone(), links, limits))
                        }
                    };
                    let built =
                        InboundTerms::build(inbound, own, snapshot, challenges, app, clock, limits);
                    Arc::new(built?)
                }
            };
            if terms.inbound.insert(listen, built).is_some() {
                return Err(TermsError::Twice(inbound.listen.clone()));
            }
        }
        for listen in challenge_ports(snapshot) {
            let taken = terms.inbound.contains_key(&listen);
            let names = certificates.names();
            terms
                .challenges
                .insert(listen.clone(), Arc::new(ChallengeTerms { names }));
            if taken {
                return Err(TermsError::TakenByChallenges(listen));
            }
        }
        let kept = kept.filter(|kept| kept.tls == snapshot.tls);
        for outbound in &snapshot.outbound {
            let listen = listen_address(&outbound.listen);
            let roots = roots_of(&outbound.to, snapshot)?;
            let built = match kept.and_then(|kept| kept.outbound.get(&listen)) {
                Some(kept) if kept.asked == outbound.to && kept.roots == roots => kept.clone(),
                Some(_) | None => Arc::new(OutboundTerms::build(
                    &outbound.to,
                    roots,
                    |source| TermsError::Tls {
                        listen: outbound.listen.clone(),
                        source,
                    },
                    svid,
                    snapshot,
                    clock,
                    |lasts| Pool::new(terms.outbound_links.clone(), limits.clone(), lasts),
                )?),
            };
            let taken = terms.entrances().any(|entrance| *entrance == listen);
            if terms.outbound.insert(listen, built).is_some() || taken {
                return Err(TermsError::Twice(outbound.listen.clone()));
            }
        }
        Ok(terms)
    }
}

impl InboundTerms {
    /// How many slots a connection takes.
    pub(crate) fn weight(&self) -> u32 {
        match self.protocol {
            // It holds a connection to the app as well.
            Protocol::Tcp => 2,
            Protocol::Http => 1,
        }
    }

    /// The rules for what is believed of those before a caller, as they are by now; none where the port is gone.
    pub(crate) fn newest_forwarded<'a>(&self, newest: &'a Snapshot) -> Option<&'a Forwarded> {
        let listen = &self.asked.listen;
        let port = newest.inbound.iter().find(|port| port.listen == *listen);
        port.map(|port| &port.forwarded)
    }

    fn build(
        inbound: &Inbound,
        own: Own<'_>,
        snapshot: &Snapshot,
        challenges: &Arc<Challenges>,
        app: Arc<App>,
        clock: &SharedClock,
        limits: &Arc<Limits>,
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
                tls::server(&inbound.tls, own, trust, mode, alpn, time).map_err(|source| {
                    TermsError::Tls {
                        listen: inbound.listen.clone(),
                        source,
                    }
                })?;
            let usual = match inbound.app_proxy_protocol {
                AppProxyProtocol::Absent => config,
                AppProxyProtocol::V2 => Arc::new(introduction::listening(&config)),
            };
            let names = proven_here(inbound);
            let answering = (!names.is_empty()).then(|| Answering::new(&usual, names, challenges));
            Ok::<_, TermsError>(Offers { usual, answering })
        };
        let opening = match inbound.mtls {
            Mtls::Strict(asked) => Opening::Tls(config(asked)?),
            // Whoever shows a certificate must be who it says; to be nobody takes none.
            Mtls::Permissive => Opening::Either(config(ClientCertificate::Accept)?),
            Mtls::Disabled => Opening::Plain,
        };
        Ok(Self {
            protocol: inbound.protocol,
            paths: rules(&inbound.paths),
            app,
            senders: inbound.proxy_protocol.clone(),
            app_proxy_protocol: inbound.app_proxy_protocol,
            app_protocol: inbound.app_protocol,
            forwarded: inbound.forwarded.clone(),
            limits: limits.of_port(&inbound.limits),
            listen: listen_address(&inbound.listen),
            opening,
            asked: inbound.clone(),
            shown: Shown {
                named: own.named.to_vec(),
                refused: own.refused.to_vec(),
            },
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
        roots: Vec<CertificateDer<'static>>,
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
                    asked: destination.clone(),
                    roots,
                })
            }
            Destination::Upstream {
                name,
                address,
                protocol,
                certificate,
                roots: _,
            } => {
                let own = match certificate {
                    OwnCertificate::Present => Some(svid),
                    OwnCertificate::Withhold => None,
                };
                let config =
                    tls::client_dns(&snapshot.tls, own, roots.clone(), alpn(*protocol), time)
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
                    asked: destination.clone(),
                    roots,
                })
            }
        }
    }
}

/// The authorities that vouch for an upstream outside the mesh.
fn roots_of(
    destination: &Destination,
    snapshot: &Snapshot,
) -> Result<Vec<CertificateDer<'static>>, TermsError> {
    let Destination::Upstream { name, roots, .. } = destination else {
        return Ok(Vec::new());
    };
    match roots {
        UpstreamRoots::Mesh => {
            let bundles = snapshot.trust.bundles.iter();
            Ok(bundles.flat_map(|bundle| bundle.roots()).cloned().collect())
        }
        UpstreamRoots::File(path) => read_roots(path).map_err(|why| TermsError::Roots {
            name: name.to_string(),
            why,
        }),
    }
}

/// The same address as the runtime writes it.
pub(crate) fn listen_address(address: &ListenAddr) -> ListenAddress {
    match address {
        ListenAddr::Tcp(address) => ListenAddress::Tcp(*address),
        ListenAddr::Unix(path) => ListenAddress::Unix(path.clone()),
    }
}

/// The names that are proven at a port itself.
fn proven_here(inbound: &Inbound) -> Vec<String> {
    let by_alpn = |one: &&PortCertificate| {
        one.acme()
            .is_some_and(|acme| acme.challenge == AcmeChallenge::TlsAlpn)
    };
    let certificates = inbound.certificates.iter().filter(by_alpn);
    certificates
        .flat_map(PortCertificate::listed)
        .map(str::to_owned)
        .collect()
}

/// Where HTTP-01 is answered, each once.
fn challenge_ports(snapshot: &Snapshot) -> BTreeSet<ListenAddress> {
    let certificates = snapshot.inbound.iter().flat_map(|port| &port.certificates);
    let ports = certificates.filter_map(|one| match one.acme()?.challenge {
        AcmeChallenge::TlsAlpn => None,
        AcmeChallenge::Http { listen } => Some(ListenAddress::Tcp(listen)),
    });
    ports.collect()
}

fn rules(rules: &PathRules) -> path::Rules {
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
        exceptions: rules.exceptions.iter().map(exception).collect(),
    }
}

fn exception(exception: &PathException) -> path::Exception {
    match exception {
        PathException::DotSegmentParameters => path::Exception::DotSegmentParameters,
        PathException::OverlongUtf8 => path::Exception::OverlongUtf8,
        PathException::DoubleEncoding => path::Exception::DoubleEncoding,
    }
}

fn read_roots(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = file::read(path, MAX_ROOTS, Others::Whoever).map_err(|error| error.to_string())?;
    let shown = path.display();
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
    let offers = match &terms.opening {
        Opening::Tls(offers) => offers,
        Opening::Either(offers) => match deadline.bound(socket.peek()).await? {
            Ok(Some(HANDSHAKE) | None) => offers,
            Ok(Some(_)) => return Ok((Stream::plain(socket), Peer::Anonymous)),
            Err(error) => return Err(PeerFault::handshake(&error)),
        },
        Opening::Plain => return Ok((Stream::plain(socket), Peer::Anonymous)),
    };
    let handshake = Stream::accept(socket, offers.now().clone());
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
