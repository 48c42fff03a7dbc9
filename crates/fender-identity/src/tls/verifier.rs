//! rustls asks, [`crate::verify`] answers.
//!
//! One verifier for either end. Neither decides anything itself. Signatures in
//! the handshake are checked by rustls's webpki over the aws-lc provider's algorithms.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{CaPin, ClientCertificate, TlsError};
use crate::certificate::Malformed;
use crate::verify::{MAX_CHAIN, PeerExpectation, Refusal, Role, signature_algorithms, verify};
use crate::{Believed, Bundle, Bundles, PeerSvid, SpiffeId, Trust, TrustDomain};

/// Whoever the bundles verify; what they may do is not decided in TLS.
#[derive(Debug)]
pub(super) struct AnyMeshClient {
    trust: Trust,
    hints: Vec<DistinguishedName>,
    mandatory: Mandatory,
    algorithms: WebPkiSupportedAlgorithms,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mandatory {
    Yes,
    No,
}

impl AnyMeshClient {
    pub(super) fn for_mode(
        mode: ClientCertificate,
        trust: Trust,
    ) -> Result<Option<Self>, TlsError> {
        let mandatory = match mode {
            ClientCertificate::Ignore => return Ok(None),
            ClientCertificate::Accept => Mandatory::No,
            ClientCertificate::Require => Mandatory::Yes,
        };
        if trust.bundles.is_empty() {
            return Err(TlsError::NoBundle);
        }
        let anchors = trust.bundles.iter().flat_map(Bundle::anchors);
        let hints = anchors
            .map(|anchor| DistinguishedName::in_sequence(&anchor.subject))
            .collect();
        Ok(Some(Self {
            trust,
            hints,
            mandatory,
            algorithms: signature_algorithms(),
        }))
    }
}

impl ClientCertVerifier for AnyMeshClient {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory == Mandatory::Yes
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let chain = chain(end_entity, intermediates);
        verify(&chain, Role::Client, &self.trust, now, &|peer| {
            PeerExpectation::Verified.admit(peer)
        })
        .map(|_| ClientCertVerified::assertion())
        .map_err(alert)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// A server by its SPIFFE ID. The name that was sent as SNI is not looked at.
#[derive(Debug)]
pub(super) struct ExpectedServer {
    roots: Roots,
    expectation: PeerExpectation,
    algorithms: WebPkiSupportedAlgorithms,
}

#[derive(Debug)]
enum Roots {
    Trusted(Trust),
    /// The pins choose roots out of what the server sends; only then these prove its chain.
    Pinned {
        trust_domain: TrustDomain,
        pins: Vec<CaPin>,
    },
}

impl ExpectedServer {
    pub(super) fn new(trust: Trust, expected: SpiffeId) -> Self {
        Self::believing(Roots::Trusted(trust), expected)
    }

    /// The control plane of `trust_domain`. A leaf of the mesh under the same root is somebody
    /// else.
    pub(super) fn pinned_control(trust_domain: TrustDomain, pins: Vec<CaPin>) -> Self {
        let control = SpiffeId::control(&trust_domain);
        Self::believing(Roots::Pinned { trust_domain, pins }, control)
    }

    fn believing(roots: Roots, expected: SpiffeId) -> Self {
        let expectation = PeerExpectation::Exactly(expected);
        Self {
            roots,
            expectation,
            algorithms: signature_algorithms(),
        }
    }

    fn verify(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<PeerSvid, Refusal> {
        let pinned;
        let believed = match &self.roots {
            Roots::Trusted(trust) => Believed::from(trust),
            Roots::Pinned { trust_domain, pins } => {
                pinned = pinned_roots(chain, trust_domain, pins)?;
                Believed::from(&pinned)
            }
        };
        verify(chain, Role::Server, believed, now, &|peer| {
            self.expectation.admit(peer)
        })
    }
}

impl ServerCertVerifier for ExpectedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(&chain(end_entity, intermediates), now)
            .map(|_| ServerCertVerified::assertion())
            .map_err(alert)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The roots among what a server sent. What is pinned and no CA is no root.
fn pinned_roots(
    chain: &[CertificateDer<'_>],
    trust_domain: &TrustDomain,
    pins: &[CaPin],
) -> Result<Bundles, Refusal> {
    if chain.len() > MAX_CHAIN {
        return Err(Refusal::ChainTooLong {
            length: chain.len(),
        });
    }
    let pinned = chain.iter().filter(|der| pins.contains(&CaPin::of(der)));
    let roots = pinned.map(|der| der.clone().into_owned()).collect();
    Bundle::new(trust_domain.clone(), roots)
        .map(Bundles::from)
        .map_err(|_| Refusal::PinMismatch)
}

fn chain<'a>(
    end_entity: &'a CertificateDer<'_>,
    intermediates: &'a [CertificateDer<'_>],
) -> Vec<CertificateDer<'a>> {
    let all = std::iter::once(end_entity).chain(intermediates);
    all.map(|der| CertificateDer::from(der.as_ref())).collect()
}

/// The error that makes rustls send the alert the standard has for it: expired, unknown CA, bad
/// certificate. For all that is ours alone the peer reads "certificate unknown", and the refusal
/// stays inside.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "a new refusal is silent until decided"
)]
fn alert(refusal: Refusal) -> Error {
    Error::InvalidCertificate(match refusal {
        Refusal::Expired { not_after, now } => CertificateError::ExpiredContext {
            time: now,
            not_after,
        },
        Refusal::NotYetValid { not_before, now } => CertificateError::NotValidYetContext {
            time: now,
            not_before,
        },
        Refusal::UntrustedRoot => CertificateError::UnknownIssuer,
        Refusal::Malformed(Malformed::NotX509) => CertificateError::BadEncoding,
        Refusal::UnknownCriticalExtension => CertificateError::UnhandledCriticalExtension,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    })
}

/// Undoes [`alert`], and names what rustls refuses before asking a verifier.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "rustls's errors are many and may grow"
)]
pub(super) fn refusal_of(error: &Error) -> Option<Refusal> {
    match error {
        Error::NoCertificatesPresented => Some(Refusal::NoCertificate),
        Error::InvalidCertificate(certificate) => match certificate {
            CertificateError::ExpiredContext {
                time: now,
                not_after,
            } => Some(Refusal::Expired {
                not_after: *not_after,
                now: *now,
            }),
            CertificateError::NotValidYetContext {
                time: now,
                not_before,
            } => Some(Refusal::NotYetValid {
                not_before: *not_before,
                now: *now,
            }),
            CertificateError::UnknownIssuer => Some(Refusal::UntrustedRoot),
            CertificateError::BadEncoding => Some(Refusal::Malformed(Malformed::NotX509)),
            CertificateError::UnhandledCriticalExtension => Some(Refusal::UnknownCriticalExtension),
            CertificateError::BadSignature => Some(Refusal::KeyNotProven),
            CertificateError::Other(OtherError(inner)) => inner.downcast_ref().cloned(),
            _ => None,
        },
        _ => None,
    }
}
