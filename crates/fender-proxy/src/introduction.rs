//! What the app is told of a connection before its first byte: a PROXY header of version 2.
//!
//! It names both ends of the peer's connection, and what the handshake proved: SNI as AUTHORITY, ALPN, the
//! fields of SSL, and the peer's SPIFFE ID in a field of its own ([`SPIFFE_ID`]), because the specification
//! has none for it and a common name, which it has, is nothing anybody verified. What is not so is left
//! out: without TLS there is no SSL field, without a certificate no identity.
//!
//! A header is about one connection of one peer. Whoever sends it to the app must not carry another peer's
//! bytes behind it: [`Introduction`]s are equal only to themselves.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;

use fender_identity::Peer;
use fender_runtime::listen::{PeerAddr, Socket};
use fender_wire::proxy::{Endpoints, Extension, Header, Proxied, Ssl, Transport};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, CommonState, HandshakeKind, ProtocolVersion, ServerConfig};

use crate::fault::OurFault;
use crate::provenance::Provenance;
use crate::stream::Stream;

/// The field that holds the peer's SPIFFE ID: the first of those that the specification leaves to applications.
const SPIFFE_ID: u8 = 0xe0;

/// The header that begins every connection to the app which is made for one connection of a peer. One word,
/// because every connection has room for it.
#[derive(Clone, Debug)]
pub(crate) struct Introduction(Arc<Vec<u8>>);

impl Introduction {
    /// `local` is the end of the peer's connection that is ours, `named` how the peer called us.
    pub(crate) fn of(
        provenance: &Provenance,
        local: Option<SocketAddr>,
        stream: &Stream,
        named: Option<String>,
        peer: &Peer,
    ) -> Result<Self, OurFault> {
        let (PeerAddr::Tcp(source), Some(local)) = (provenance.remote(), local) else {
            return Err(OurFault::Unwritable(
                "a PROXY header for a connection without addresses".to_owned(),
            ));
        };
        let header = Header::Proxied(Proxied {
            endpoints: Endpoints::Ip {
                transport: Transport::Stream,
                source,
                destination: provenance.destination().unwrap_or(local),
            },
            extensions: extensions(stream, named, peer),
        });
        let bytes = header.to_bytes();
        let bytes = bytes.map_err(|error| OurFault::Unwritable(error.to_string()))?;
        Ok(Self(Arc::new(bytes)))
    }

    pub(crate) fn header(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq for Introduction {
    /// Two connections may look alike, and are two.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

tokio::task_local! {
    static NAMED: RefCell<Option<String>>;
}

/// Remembers by which name a peer calls us (SNI), which a finished handshake no longer tells, and chooses no certificate.
#[derive(Debug)]
struct Hearing(Arc<dyn ResolvesServerCert>);

impl ResolvesServerCert for Hearing {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_owned);
        // Outside of `hearing` nobody wants to know.
        let _ = NAMED.try_with(|named| named.replace(name));
        self.0.resolve(hello)
    }
}

/// The configuration with whose handshakes [`hearing`] hears something.
pub(crate) fn listening(config: &ServerConfig) -> ServerConfig {
    let mut config = config.clone();
    config.cert_resolver = Arc::new(Hearing(config.cert_resolver));
    config
}

/// Runs a handshake, and gives the name by which the peer called us, if it did.
pub(crate) async fn hearing<R>(handshake: impl Future<Output = R>) -> (R, Option<String>) {
    let heard = async {
        let result = handshake.await;
        (result, NAMED.with(RefCell::take))
    };
    NAMED.scope(RefCell::default(), heard).await
}

/// Our end of a connection, if it has an address.
pub(crate) fn local_address(socket: &Socket) -> Option<SocketAddr> {
    match socket {
        Socket::Tcp(stream) => stream.local_addr().ok().map(|address| {
            // As the peer's is written: see `PeerAddr`.
            SocketAddr::new(address.ip().to_canonical(), address.port())
        }),
        Socket::Unix(_) => None,
    }
}

fn extensions(stream: &Stream, named: Option<String>, peer: &Peer) -> Vec<Extension> {
    let Some(tls) = stream.tls() else {
        return Vec::new();
    };
    let mut all = Vec::new();
    all.extend(
        tls.alpn_protocol()
            .map(|name| Extension::Alpn(name.to_vec())),
    );
    all.extend(named.map(Extension::Authority));
    all.push(Extension::Ssl(ssl(tls, peer)));
    all.extend(peer.id().map(|id| Extension::Other {
        kind: SPIFFE_ID,
        value: id.as_str().as_bytes().to_vec(),
    }));
    all
}

fn ssl(tls: &CommonState, peer: &Peer) -> Ssl {
    let shown = match (peer.svid(), tls.handshake_kind()) {
        (None, _) => 0,
        // A resumed session remembers the certificate, and the client sends none.
        (Some(_), Some(HandshakeKind::Resumed)) => Ssl::CERTIFICATE_IN_SESSION,
        (Some(_), _) => Ssl::CERTIFICATE_IN_CONNECTION | Ssl::CERTIFICATE_IN_SESSION,
    };
    let cipher = tls.negotiated_cipher_suite().map(|suite| suite.suite());
    Ssl {
        client: Ssl::OVER_TLS | shown,
        verify: u32::from(peer.svid().is_none()),
        version: name_of(&VERSIONS, tls.protocol_version()),
        cipher: name_of(&SUITES, cipher),
        ..Ssl::default()
    }
}

/// As OpenSSL calls them, which is what receivers compare with.
const VERSIONS: [(ProtocolVersion, &str); 2] = [
    (ProtocolVersion::TLSv1_2, "TLSv1.2"),
    (ProtocolVersion::TLSv1_3, "TLSv1.3"),
];

/// The suites that are spoken, as OpenSSL calls them.
const SUITES: [(CipherSuite, &str); 9] = [
    (
        CipherSuite::TLS13_AES_128_GCM_SHA256,
        "TLS_AES_128_GCM_SHA256",
    ),
    (
        CipherSuite::TLS13_AES_256_GCM_SHA384,
        "TLS_AES_256_GCM_SHA384",
    ),
    (
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
        "TLS_CHACHA20_POLY1305_SHA256",
    ),
    (
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        "ECDHE-ECDSA-AES128-GCM-SHA256",
    ),
    (
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        "ECDHE-ECDSA-AES256-GCM-SHA384",
    ),
    (
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        "ECDHE-ECDSA-CHACHA20-POLY1305",
    ),
    (
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        "ECDHE-RSA-AES128-GCM-SHA256",
    ),
    (
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        "ECDHE-RSA-AES256-GCM-SHA384",
    ),
    (
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        "ECDHE-RSA-CHACHA20-POLY1305",
    ),
];

/// None for what has no name there.
fn name_of<T: PartialEq>(names: &[(T, &'static str)], wanted: Option<T>) -> Option<String> {
    let wanted = wanted?;
    let named = names.iter().find(|(known, _)| *known == wanted);
    named.map(|(_, name)| (*name).to_owned())
}
