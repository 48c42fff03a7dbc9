//! TLS configurations: who we are, whom we believe, and nothing else to decide in a handshake.
//!
//! Verifiers and their roots are built here, whenever an SVID or a bundle changes; a handshake only
//! reads them. Our servers let sessions go on by tickets that open nothing which a full handshake would refuse;
//! our clients never ask for it. What the peer learns from a refusal is a TLS alert; what we learn is a
//! [`Refusal`], which [`refusal_of`] takes back out of the error.

mod certificates;
mod challenge;
mod hkdf;
mod profile;
mod shown;
mod tickets;
mod verifier;

use std::error::Error as StdError;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, CommonState, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, DnsName, ServerName};

use crate::certificate::{from_hex, sha256};
use crate::verify::{Leaf, Refusal};
use crate::{Peer, SpiffeId, Svid, Trust, TrustDomain};
use certificates::ByName;
pub use certificates::{Issued, NamedCertificate, NamedCertificateError, PemPair};
pub use challenge::{ACME_TLS, ChallengeCertificate};
pub use profile::{CipherSuite, Group, SessionResumption, TlsProfile, TlsVersion, Unusable};
pub use shown::{ShownCertificate, ShownCertificateError};
use tickets::Tickets;
use verifier::{AnyMeshClient, ExpectedServer};

/// What a server does about a client's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientCertificate {
    /// None, or a bad one: no connection.
    Require,
    /// None: an anonymous peer. A bad one: no connection.
    Accept,
    /// Never asked for.
    Ignore,
}

/// What a server shows of itself.
#[derive(Clone, Copy, Debug)]
pub struct Own<'a> {
    pub svid: &'a Svid,
    /// Instead of it, to clients outside the mesh that ask for their names.
    pub named: &'a [NamedCertificate],
    /// Names, `*` for all others among them, for which there is nothing to show: who asks for one is refused.
    pub refused: &'a [String],
}

impl<'a> From<&'a Svid> for Own<'a> {
    fn from(svid: &'a Svid) -> Self {
        Self {
            svid,
            named: &[],
            refused: &[],
        }
    }
}

/// For a server of the mesh. `trust` says which clients can prove themselves.
pub fn server<'a>(
    profile: &TlsProfile,
    own: impl Into<Own<'a>>,
    trust: impl Into<Trust>,
    mode: ClientCertificate,
    alpn: &[&[u8]],
    clock: Arc<dyn TimeProvider>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let builder = ServerConfig::builder_with_details(profile.provider()?, clock.clone())
        .with_protocol_versions(profile.versions())?;
    let trust = trust.into();
    let roots = trust
        .bundles
        .iter()
        .flat_map(|bundle| bundle.trusted().validities);
    let roots = roots.map(|validity| validity.not_after.as_secs()).collect();
    let builder = match AnyMeshClient::for_mode(mode, trust)? {
        Some(verifier) => builder.with_client_cert_verifier(Arc::new(verifier)),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(ByName::new(own.into())));
    config.alpn_protocols = protocols(alpn);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = match profile.resumption {
        SessionResumption::Tickets => {
            let tickets = Tickets::new(clock, roots).map_err(|_| TlsError::NoTicketKey)?;
            config.ticketer = Arc::new(tickets);
            1
        }
        SessionResumption::Never => 0,
    };
    Ok(Arc::new(config))
}

/// For a client of the mesh: M4, the server must be `expected`, not merely signed by the right
/// root.
pub fn client(
    profile: &TlsProfile,
    svid: Option<&Svid>,
    trust: impl Into<Trust>,
    expected: SpiffeId,
    alpn: &[&[u8]],
    clock: Arc<dyn TimeProvider>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let trust = trust.into();
    if trust.bundles.get(expected.trust_domain()).is_none() {
        return Err(TlsError::NoBundleFor { expected });
    }
    let verifier = ExpectedServer::new(trust, expected);
    let config = ClientConfig::builder_with_details(profile.provider()?, clock)
        .with_protocol_versions(profile.versions())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    Ok(finish(config, svid.map(Svid::certified_key), alpn))
}

/// First contact with a control plane: trusts only a root whose SHA-256 is pinned, and then demands
/// the control plane's own identity. The server has to send its root in the chain.
pub fn client_pinned(
    profile: &TlsProfile,
    trust_domain: TrustDomain,
    pins: Vec<CaPin>,
    alpn: &[&[u8]],
    clock: Arc<dyn TimeProvider>,
) -> Result<Arc<ClientConfig>, TlsError> {
    if pins.is_empty() {
        return Err(TlsError::NoPin);
    }
    let config = ClientConfig::builder_with_details(profile.provider()?, clock)
        .with_protocol_versions(profile.versions())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ExpectedServer::pinned_control(
            trust_domain,
            pins,
        )));
    Ok(finish(config, None, alpn))
}

/// For a plain X.509 server outside the mesh: verified in full against these roots and its name.
pub fn client_dns(
    profile: &TlsProfile,
    svid: Option<&Svid>,
    roots: Vec<CertificateDer<'static>>,
    alpn: &[&[u8]],
    clock: Arc<dyn TimeProvider>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let shown = svid.map(Svid::certified_key);
    client_of_servers(profile, shown, roots, alpn, clock)
}

/// The same, where the server knows us by a certificate that is not of the mesh.
pub fn client_dns_showing(
    profile: &TlsProfile,
    shown: &ShownCertificate,
    roots: Vec<CertificateDer<'static>>,
    alpn: &[&[u8]],
    clock: Arc<dyn TimeProvider>,
) -> Result<Arc<ClientConfig>, TlsError> {
    client_of_servers(profile, Some(shown.certified_key()), roots, alpn, clock)
}

/// For who speaks no TLS where a library wants a configuration: there is no server that it believes.
pub fn client_of_nobody(
    profile: &TlsProfile,
    clock: Arc<dyn TimeProvider>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let config = ClientConfig::builder_with_details(profile.provider()?, clock)
        .with_protocol_versions(profile.versions())?
        .with_root_certificates(RootCertStore::empty());
    Ok(finish(config, None, &[]))
}

fn client_of_servers(
    profile: &TlsProfile,
    shown: Option<Arc<CertifiedKey>>,
    roots: Vec<CertificateDer<'static>>,
    alpn: &[&[u8]],
    clock: Arc<dyn TimeProvider>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let mut store = RootCertStore::empty();
    for (root, number) in roots.into_iter().zip(1..) {
        store
            .add(root)
            .map_err(|source| TlsError::Root { number, source })?;
    }
    if store.is_empty() {
        return Err(TlsError::NoRoot);
    }
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(store), profile.provider()?)
            .build()
            .map_err(|_| TlsError::NoRoot)?;
    let config = ClientConfig::builder_with_details(profile.provider()?, clock)
        .with_protocol_versions(profile.versions())?
        .with_webpki_verifier(verifier);
    Ok(finish(config, shown, alpn))
}

/// The name to send as SNI to a mesh peer, and nothing but a hint: the verifier goes by SPIFFE ID.
/// The trust domain itself where that can be a DNS name, else a name made from its hash.
pub fn server_name(id: &SpiffeId) -> ServerName<'static> {
    let trust_domain = id.trust_domain().as_str();
    let hashed = || {
        let hash = Hex(&sha256(trust_domain.as_bytes())).to_string();
        let label = hash.get(..32).unwrap_or_default();
        DnsName::try_from(format!("{label}.fender.invalid"))
    };
    DnsName::try_from(trust_domain.to_owned())
        .or_else(|_| hashed())
        // A hash always makes a name. If not, an address means that no SNI is sent.
        .map_or_else(
            |_| ServerName::IpAddress(std::net::IpAddr::from([0, 0, 0, 0]).into()),
            ServerName::DnsName,
        )
}

/// Who is on the other side of a connection made with [`server`], [`client`] or [`client_pinned`].
///
/// Takes the connection rather than a chain, because only a connection's chain has been verified.
/// Before the handshake is over, everybody is anonymous.
pub fn peer_of(connection: &CommonState) -> Peer {
    let leaf = connection
        .peer_certificates()
        .and_then(<[CertificateDer<'_>]>::first);
    match leaf.map(|der| (der, Leaf::read(der))) {
        Some((der, Ok(leaf))) if !connection.is_handshaking() => {
            Peer::Verified(leaf.into_peer(der))
        }
        Some(_) | None => Peer::Anonymous,
    }
}

/// Why a handshake failed, if it failed because of the peer's certificate.
///
/// Looks through the errors wrapped around it, `std::io::Error` included.
pub fn refusal_of(error: &(dyn StdError + 'static)) -> Option<Refusal> {
    let mut error = Some(error);
    while let Some(current) = error {
        if let Some(tls) = current.downcast_ref::<rustls::Error>() {
            return verifier::refusal_of(tls);
        }
        let inner = current
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        error = match inner {
            Some(inner) => Some(inner),
            None => current.source(),
        };
    }
    None
}

/// SHA-256 of a root certificate's DER.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CaPin([u8; 32]);

impl CaPin {
    pub fn of(root: &CertificateDer<'_>) -> Self {
        Self(sha256(root))
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for CaPin {
    fn from(hash: [u8; 32]) -> Self {
        Self(hash)
    }
}

impl FromStr for CaPin {
    type Err = CaPinError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = from_hex(text).ok_or(CaPinError)?;
        bytes.try_into().map(Self).map_err(|_| CaPinError)
    }
}

impl fmt::Display for CaPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Hex(&self.0).fmt(f)
    }
}

impl fmt::Debug for CaPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("CA pin is not the SHA-256 of a root certificate: 64 hex digits")]
pub struct CaPinError;

/// Why no configuration could be made. Nothing a peer does leads here.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    #[error("no trust bundle to verify clients with, so none could ever connect")]
    NoBundle,
    #[error("no trust bundle for the trust domain of `{expected}`, so it could never be verified")]
    NoBundleFor { expected: SpiffeId },
    #[error("no CA pin for the first contact")]
    NoPin,
    #[error("no root to verify the server with")]
    NoRoot,
    #[error("root {number} cannot be used")]
    Root {
        number: usize,
        source: rustls::Error,
    },
    #[error("TLS profile with which no peer could connect: {0}")]
    Profile(#[from] Unusable),
    #[error("no key for session tickets could be made")]
    NoTicketKey,
    #[error("TLS configuration")]
    Config(#[from] rustls::Error),
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn finish(
    builder: rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>,
    shown: Option<Arc<CertifiedKey>>,
    alpn: &[&[u8]],
) -> Arc<ClientConfig> {
    let mut config = match shown {
        Some(key) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = protocols(alpn);
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

fn protocols(alpn: &[&[u8]]) -> Vec<Vec<u8>> {
    alpn.iter().map(|protocol| protocol.to_vec()).collect()
}

#[cfg(test)]
mod tests;
