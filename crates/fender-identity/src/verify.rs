//! Does this chain of certificates prove an identity? One function, in numbered steps.
//!
//! X.509-SVID verification by the SPIFFE standard. Path building and signatures are webpki's; the
//! rules that make a certificate an SVID are ours. Nothing is asked of anybody: no network, no
//! clock, and no authorization before the chain holds.
//!
//! <https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md>

mod remembered;

use std::sync::LazyLock;
use std::time::Duration;

use rustls::SignatureScheme;
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};

use crate::certificate::{Certificate, MAX_CERTIFICATE, Malformed};
use crate::{Believed, PeerSvid, Serial, SpiffeId, SpiffeIdError, TrustDomain, Validity};
use remembered::Remembering;

/// Certificates in a chain, leaf included.
pub const MAX_CHAIN: usize = 6;

/// How a key of ours proves itself outside a handshake: the one that fits the key.
pub(crate) const PROOF_SCHEMES: [SignatureScheme; 3] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ED25519,
];

/// What the peer does in the connection, and so what its certificate must be good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Client,
    Server,
}

/// I1. Who the peer is, if `chain` (leaf first) proves it.
pub fn verify<'t>(
    chain: &[CertificateDer<'_>],
    role: Role,
    trust: impl Into<Believed<'t>>,
    now: UnixTime,
    authorize: &dyn Fn(&PeerSvid) -> Result<(), NotExpected>,
) -> Result<PeerSvid, Refusal> {
    let Believed { bundles, denied } = trust.into();
    // 1. There is a chain, and it is small.
    let (leaf_der, intermediates) = split(chain)?;
    // 2. The leaf names exactly one identity, and is a leaf.
    let leaf = Leaf::read(leaf_der)?;
    // 3. Its own trust domain chooses the roots; no other root is looked at.
    let trust_domain = leaf.id.trust_domain();
    let bundle = bundles
        .get(trust_domain)
        .ok_or_else(|| Refusal::ForeignTrustDomain(trust_domain.clone()))?;
    // 4. A path leads from the leaf to one of those roots: signatures, validity, purpose.
    find_path(leaf_der, intermediates, role, bundle.trusted(), now)?;
    // 5. Only now it is somebody, who may have been revoked since.
    let peer = leaf.into_peer(leaf_der);
    if denied.denies(&peer) {
        return Err(Refusal::Revoked(peer.id().clone()));
    }
    // 6. The caller says whether it is whom they expect.
    authorize(&peer).map_err(|expected| unexpected(&peer, expected))?;
    Ok(peer)
}

/// What somebody shows who is too late for a handshake: the chain, and a signature by its leaf's
/// key.
#[derive(Clone, Copy, Debug)]
pub struct Proof<'a> {
    pub chain: &'a [CertificateDer<'a>],
    pub message: &'a [u8],
    pub signature: &'a [u8],
}

/// Like [`verify`] for a client, for a leaf that may have expired up to `grace` ago, proven by the
/// signature [`crate::Svid::sign`] makes. The chain is judged at the leaf's last moment.
pub fn lapsed<'t>(
    proof: Proof<'_>,
    trust: impl Into<Believed<'t>>,
    now: UnixTime,
    grace: Duration,
    authorize: &dyn Fn(&PeerSvid) -> Result<(), NotExpected>,
) -> Result<PeerSvid, Refusal> {
    let (leaf_der, _) = split(proof.chain)?;
    let not_after = Leaf::read(leaf_der)?.validity.not_after;
    if since(not_after, now) > grace {
        return Err(Refusal::Expired { not_after, now });
    }
    // One signature before the many that somebody else's chain could make us check.
    check_signature(leaf_der, proof)?;
    let peer = verify(
        proof.chain,
        Role::Client,
        trust,
        now.min(not_after),
        &|_| Ok(()),
    )?;
    authorize(&peer).map_err(|expected| unexpected(&peer, expected))?;
    Ok(peer)
}

/// Like [`verify`] outside of a handshake, for a peer that is neither server nor client of ours: its
/// certificate may be for either.
pub fn proven<'t>(
    proof: Proof<'_>,
    trust: impl Into<Believed<'t>>,
    now: UnixTime,
    authorize: &dyn Fn(&PeerSvid) -> Result<(), NotExpected>,
) -> Result<PeerSvid, Refusal> {
    let (leaf_der, _) = split(proof.chain)?;
    check_signature(leaf_der, proof)?;
    let trust = trust.into();
    let as_a = |role| verify(proof.chain, role, trust, now, authorize);
    match as_a(Role::Client) {
        Err(Refusal::WrongPurpose(_)) => as_a(Role::Server),
        judged => judged,
    }
}

/// The caller expects somebody else.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}")]
pub struct NotExpected {
    pub expected: String,
}

/// Whom a caller expects on the other side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerExpectation {
    /// Whoever the bundles verify. For servers, where policy decides next.
    Verified,
    Exactly(SpiffeId),
    /// An empty list expects nobody.
    OneOf(Vec<SpiffeId>),
}

impl PeerExpectation {
    pub fn admit(&self, peer: &PeerSvid) -> Result<(), NotExpected> {
        let admitted = match self {
            Self::Verified => true,
            Self::Exactly(expected) => peer.id() == expected,
            Self::OneOf(expected) => expected.contains(peer.id()),
        };
        if admitted {
            Ok(())
        } else {
            Err(NotExpected {
                expected: self.describe(),
            })
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::Verified => "anybody verified".to_owned(),
            Self::Exactly(expected) => format!("`{expected}`"),
            Self::OneOf(expected) => match expected.as_slice() {
                [] => "nobody".to_owned(),
                [only] => format!("`{only}`"),
                [first, rest @ ..] => format!("`{first}` or one of {} others", rest.len()),
            },
        }
    }
}

/// Why a chain proves nothing, named by what was tried. For our own log: the peer sees a TLS alert.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("peer presented no certificate")]
    NoCertificate,
    #[error("chain of {length} certificates is longer than {MAX_CHAIN}")]
    ChainTooLong { length: usize },
    #[error("certificate of {length} bytes is larger than {MAX_CERTIFICATE}")]
    CertificateTooLarge { length: usize },
    #[error("certificate is malformed: {0}")]
    Malformed(Malformed),
    #[error("certificate has {found} URI names where an SVID has exactly one")]
    NotOneUri { found: usize },
    #[error("URI name of the certificate is not an identity: {0}")]
    NotSpiffe(SpiffeIdError),
    #[error("certificate names a trust domain itself, which is nobody")]
    NoPath,
    #[error("certificate of `{0}` is a CA, and a CA is nobody's identity")]
    IsCa(SpiffeId),
    #[error("certificate is a CA, and a CA is nobody")]
    CaShown,
    #[error("certificate of `{0}` has no key usage")]
    NoKeyUsage(SpiffeId),
    #[error("key usage in the certificate of `{0}` is not critical")]
    KeyUsageNotCritical(SpiffeId),
    #[error("key usage in the certificate of `{0}` lacks digital signature")]
    NoDigitalSignature(SpiffeId),
    #[error("key usage in the certificate of `{0}` lets it sign certificates or revocation lists")]
    MaySign(SpiffeId),
    #[error("certificate is not for use as a {}", match .0 { Role::Client => "client", Role::Server => "server" })]
    WrongPurpose(Role),
    #[error("no trust bundle for the trust domain `{0}`")]
    ForeignTrustDomain(TrustDomain),
    #[error("no root of the peer's trust domain vouches for its certificate")]
    UntrustedRoot,
    #[error("an intermediate in the chain may not sign certificates, or not at this depth")]
    IssuerNotCa,
    #[error("certificate in the chain expired {} s ago", since(*.not_after, *.now).as_secs())]
    Expired { not_after: UnixTime, now: UnixTime },
    #[error("certificate in the chain becomes valid in {} s; are the clocks right?", since(*.now, *.not_before).as_secs())]
    NotYetValid { not_before: UnixTime, now: UnixTime },
    #[error("chain has a critical extension we do not know")]
    UnknownCriticalExtension,
    #[error("signature in the chain uses an algorithm we do not accept")]
    WeakSignature,
    #[error("signature does not prove possession of the certificate's key")]
    KeyNotProven,
    #[error("certificate of `{0}` was revoked")]
    Revoked(SpiffeId),
    #[error("no certificate in the chain is the pinned root")]
    PinMismatch,
    #[error("peer is `{presented}`, {expected}")]
    UnexpectedPeer {
        presented: SpiffeId,
        expected: NotExpected,
    },
}

/// The facts of a certificate that has the shape of an X.509-SVID's leaf.
#[derive(Clone, Debug)]
pub(crate) struct Leaf {
    pub(crate) id: SpiffeId,
    pub(crate) serial: Serial,
    pub(crate) validity: Validity,
}

impl Leaf {
    pub(crate) fn read(der: &CertificateDer<'_>) -> Result<Self, Refusal> {
        let length = der.len();
        if length > MAX_CERTIFICATE {
            return Err(Refusal::CertificateTooLarge { length });
        }
        let facts = Certificate::read(der).map_err(Refusal::Malformed)?;
        let id = one_identity(&facts.uris)?;
        if facts.is_ca {
            return Err(Refusal::IsCa(id));
        }
        let Some(usage) = facts.key_usage else {
            return Err(Refusal::NoKeyUsage(id));
        };
        if !usage.critical {
            return Err(Refusal::KeyUsageNotCritical(id));
        }
        if !usage.digital_signature {
            return Err(Refusal::NoDigitalSignature(id));
        }
        if usage.signs_certificates || usage.signs_crls {
            return Err(Refusal::MaySign(id));
        }
        Ok(Self {
            id,
            serial: facts.serial,
            validity: facts.validity,
        })
    }

    pub(crate) fn into_peer(self, der: &CertificateDer<'_>) -> PeerSvid {
        PeerSvid::new(self.id, self.serial, self.validity, der)
    }
}

pub(crate) fn signature_algorithms() -> WebPkiSupportedAlgorithms {
    static ALGORITHMS: LazyLock<WebPkiSupportedAlgorithms> =
        LazyLock::new(|| aws_lc_rs::default_provider().signature_verification_algorithms);
    *ALGORITHMS
}

/// The same, for the signatures of a chain, which come again with every connection of a peer.
fn chain_algorithms() -> &'static [&'static dyn SignatureVerificationAlgorithm] {
    static ALGORITHMS: LazyLock<Vec<&'static dyn SignatureVerificationAlgorithm>> =
        LazyLock::new(|| {
            let all = signature_algorithms().all.iter();
            all.map(|algorithm| -> &'static dyn SignatureVerificationAlgorithm {
                Box::leak(Box::new(Remembering(*algorithm)))
            })
            .collect()
        });
    &ALGORITHMS
}

pub(crate) fn split<'a, 'd>(
    chain: &'a [CertificateDer<'d>],
) -> Result<(&'a CertificateDer<'d>, &'a [CertificateDer<'d>]), Refusal> {
    let (leaf, intermediates) = chain.split_first().ok_or(Refusal::NoCertificate)?;
    if chain.len() > MAX_CHAIN {
        return Err(Refusal::ChainTooLong {
            length: chain.len(),
        });
    }
    match chain
        .iter()
        .map(|der| der.len())
        .find(|length| *length > MAX_CERTIFICATE)
    {
        Some(length) => Err(Refusal::CertificateTooLarge { length }),
        None => Ok((leaf, intermediates)),
    }
}

fn one_identity(uris: &[String]) -> Result<SpiffeId, Refusal> {
    let [uri] = uris else {
        return Err(Refusal::NotOneUri { found: uris.len() });
    };
    uri.parse().map_err(|error| {
        if matches!(error, SpiffeIdError::NoPath { .. }) {
            Refusal::NoPath
        } else {
            Refusal::NotSpiffe(error)
        }
    })
}

/// Roots, and until when each may vouch.
#[derive(Clone, Copy)]
pub(crate) struct Anchors<'a> {
    pub(crate) anchors: &'a [TrustAnchor<'static>],
    pub(crate) validities: &'a [Validity],
}

impl Anchors<'_> {
    /// Which of ours this anchor is, if it may still vouch. Two roots can share name and key and
    /// differ in their validity; one that is valid is enough.
    fn vouching(&self, anchor: &TrustAnchor<'_>, now: UnixTime) -> Option<usize> {
        let mut known = self.anchors.iter().zip(self.validities);
        known.position(|(ours, validity)| ours == anchor && validity.includes(now))
    }
}

/// Which of the anchors vouches for the leaf.
pub(crate) fn find_path(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    role: Role,
    anchors: Anchors<'_>,
    now: UnixTime,
) -> Result<usize, Refusal> {
    let usage = match role {
        Role::Client => KeyUsage::client_auth(),
        Role::Server => KeyUsage::server_auth(),
    };
    let vouched = |path: &VerifiedPath<'_>| check_path(path, anchors, now);
    EndEntityCert::try_from(leaf)
        .and_then(|leaf| {
            let path = leaf.verify_for_usage(
                chain_algorithms(),
                anchors.anchors,
                intermediates,
                now,
                usage,
                None,
                Some(&vouched),
            )?;
            let vouching = anchors.vouching(path.anchor(), now);
            vouching.ok_or(webpki::Error::UnknownIssuer)
        })
        .map_err(|error| refusal(error, role, now))
}

/// What webpki does not look at: that intermediates may sign by their key usage, and that the root
/// itself is valid.
fn check_path(
    path: &VerifiedPath<'_>,
    anchors: Anchors<'_>,
    now: UnixTime,
) -> Result<(), webpki::Error> {
    for issuer in path.intermediate_certificates() {
        let facts = Certificate::read(&issuer.der()).map_err(|_| webpki::Error::BadDer)?;
        if !facts.may_sign_certificates() {
            return Err(webpki::Error::EndEntityUsedAsCa);
        }
    }
    match anchors.vouching(path.anchor(), now) {
        Some(_) => Ok(()),
        None => Err(webpki::Error::UnknownIssuer),
    }
}

pub(crate) fn check_signature(leaf: &CertificateDer<'_>, proof: Proof<'_>) -> Result<(), Refusal> {
    let leaf = EndEntityCert::try_from(leaf).map_err(|_| Refusal::Malformed(Malformed::NotX509))?;
    for algorithm in signature_algorithms().all {
        // One for another type of key errs like a wrong signature: the key decides, not the peer.
        if leaf
            .verify_signature(*algorithm, proof.message, proof.signature)
            .is_ok()
        {
            return Ok(());
        }
    }
    Err(Refusal::KeyNotProven)
}

fn unexpected(peer: &PeerSvid, expected: NotExpected) -> Refusal {
    Refusal::UnexpectedPeer {
        presented: peer.id().clone(),
        expected,
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "webpki's errors are many and may grow"
)]
fn refusal(error: webpki::Error, role: Role, now: UnixTime) -> Refusal {
    use webpki::Error;
    match error {
        Error::CertExpired { not_after, .. } => Refusal::Expired { not_after, now },
        Error::CertNotValidYet { not_before, .. } => Refusal::NotYetValid { not_before, now },
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => {
            Refusal::WrongPurpose(role)
        }
        Error::EndEntityUsedAsCa | Error::PathLenConstraintViolated => Refusal::IssuerNotCa,
        Error::UnsupportedCriticalExtension => Refusal::UnknownCriticalExtension,
        Error::UnsupportedSignatureAlgorithmContext(_)
        | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_)
        | Error::SignatureAlgorithmMismatch => Refusal::WeakSignature,
        Error::UnknownIssuer
        | Error::InvalidSignatureForPublicKey
        | Error::NameConstraintViolation
        | Error::MaximumPathDepthExceeded
        | Error::MaximumPathBuildCallsExceeded
        | Error::MaximumSignatureChecksExceeded
        | Error::MaximumNameConstraintComparisonsExceeded => Refusal::UntrustedRoot,
        _ => Refusal::Malformed(Malformed::NotX509),
    }
}

/// How long `then` lies before `now`; zero if it does not.
fn since(then: UnixTime, now: UnixTime) -> Duration {
    Duration::from_secs(now.as_secs().saturating_sub(then.as_secs()))
}

#[cfg(test)]
mod tests;
