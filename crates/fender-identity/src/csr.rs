//! Asking for a certificate, and reading such a request.
//!
//! A request says two things: this is my name, this is my key. Everything else in it is either
//! refused (a second name) or ignored (what it would like to be allowed): the authority decides
//! that.
//!
//! PKCS#10: <https://www.rfc-editor.org/rfc/rfc2986>

use std::fmt;

use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
    SubjectPublicKeyInfo,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::der_parser::oid::Oid;
use x509_parser::extensions::{GeneralName, ParsedExtension, X509Extension};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_SIG_ECDSA_WITH_SHA256,
    OID_SIG_ECDSA_WITH_SHA384, OID_SIG_ED25519,
};
use x509_parser::prelude::FromDer;

use crate::certificate::sha256;
use crate::der::{self, Element};
use crate::pem;
use crate::{Secret, SpiffeId, SpiffeIdError, Svid, SvidError, TrustDomain};

/// Enough for any honest request.
const MAX_CSR: usize = 16 * 1024;

/// A key that has no certificate yet: ECDSA on P-256.
pub struct NewKey(KeyPair);

impl NewKey {
    pub fn generate() -> Result<Self, KeyError> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map(Self)
            .map_err(|_| KeyError::Generate)
    }

    /// Takes back what [`NewKey::pkcs8`] gave.
    pub fn from_pkcs8(der: &Secret) -> Result<Self, KeyError> {
        let der = PrivatePkcs8KeyDer::from(der.expose());
        KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)
            .map(Self)
            .map_err(|_| KeyError::Unreadable)
    }

    pub fn pkcs8(&self) -> Secret {
        Secret::new(self.0.serialized_der().to_vec())
    }

    /// The request, PKCS#10 in DER: nothing but the name and the key.
    pub fn csr_der(&self, id: &SpiffeId) -> Result<Vec<u8>, KeyError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let uri = id.as_str().try_into().map_err(|_| KeyError::Sign)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        let request = params
            .serialize_request(&self.0)
            .map_err(|_| KeyError::Sign)?;
        Ok(request.der().to_vec())
    }

    /// The same for a server outside the mesh, with nothing but these DNS names and the key.
    pub fn csr_der_for_names(&self, names: &[String]) -> Result<Vec<u8>, KeyError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let dns = |name: &String| name.as_str().try_into().map(SanType::DnsName);
        let names = names.iter().map(dns).collect::<Result<_, _>>();
        params.subject_alt_names = names.map_err(|_| KeyError::Sign)?;
        let request = params
            .serialize_request(&self.0)
            .map_err(|_| KeyError::Sign)?;
        Ok(request.der().to_vec())
    }

    /// PKCS#8 in PEM.
    pub fn to_pem(&self) -> Secret {
        let text = pem::encode("PRIVATE KEY", self.0.serialized_der());
        Secret::new(text.as_bytes().to_vec())
    }

    /// SHA-256 of the public key's SubjectPublicKeyInfo.
    pub fn public_key_sha256(&self) -> [u8; 32] {
        sha256(&self.0.subject_public_key_info())
    }

    /// The key with the chain that was issued for it, leaf first.
    pub fn into_svid(self, chain: Vec<CertificateDer<'static>>) -> Result<Svid, SvidError> {
        let key = PrivatePkcs8KeyDer::from(self.0.serialize_der());
        Svid::from_parts(chain, PrivateKeyDer::Pkcs8(key))
    }
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NewKey(…)")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    #[error("generate a key")]
    Generate,
    #[error("private key is not PKCS#8 of an ECDSA key on P-256")]
    Unreadable,
    #[error("sign the certificate request")]
    Sign,
}

/// A request whose signature is good: whoever made it holds the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Csr {
    pub id: SpiffeId,
    /// The SubjectPublicKeyInfo.
    pub public_key_der: Vec<u8>,
    /// SHA-256 of `public_key_der`.
    pub spki_sha256: [u8; 32],
    /// The same key, as rcgen's `signed_by` takes it.
    pub key: SubjectPublicKeyInfo,
}

/// Reads a request from somebody not yet known.
pub fn parse(der: &[u8]) -> Result<Csr, CsrError> {
    let request = read(der)?;
    let id = match names(&request)?.as_slice() {
        [GeneralName::URI(uri)] => uri.parse().map_err(CsrError::NotSpiffe)?,
        [_] => return Err(CsrError::NotAUri),
        names => return Err(CsrError::NotOneName { found: names.len() }),
    };
    let (public_key_der, key) = public_key(&request)?;
    Ok(Csr {
        id,
        spki_sha256: sha256(&public_key_der),
        public_key_der,
        key,
    })
}

/// A request for an intermediate authority, whose signature is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityCsr {
    /// Of which it is to be an authority.
    pub trust_domain: TrustDomain,
    /// The SubjectPublicKeyInfo.
    pub public_key_der: Vec<u8>,
    pub key: SubjectPublicKeyInfo,
}

/// Reads a request for an intermediate authority of a trust domain. People sign it by hand, once a year: what it asks for
/// beside its name and to sign is refused, because whoever made it expects what they would not get.
pub fn parse_authority(der: &[u8]) -> Result<AuthorityCsr, CsrError> {
    let request = read(der)?;
    let algorithm = &request.certification_request_info.subject_pki.algorithm;
    let curve = algorithm.parameters.as_ref();
    if curve.and_then(|curve| curve.as_oid().ok()) != Some(OID_EC_P256) {
        return Err(CsrError::AuthorityKeyType);
    }
    asks_only_to_sign(&request)?;
    let trust_domain = match names(&request)?.as_slice() {
        [GeneralName::URI(uri)] => uri
            .strip_prefix("spiffe://")
            .and_then(|domain| domain.parse().ok())
            .ok_or(CsrError::NotATrustDomain)?,
        [_] => return Err(CsrError::NotAUri),
        names => return Err(CsrError::NotOneName { found: names.len() }),
    };
    let (public_key_der, key) = public_key(&request)?;
    Ok(AuthorityCsr {
        trust_domain,
        public_key_der,
        key,
    })
}

/// A request by the key in it, and nothing besides.
fn read(der: &[u8]) -> Result<X509CertificationRequest<'_>, CsrError> {
    if der.len() > MAX_CSR {
        return Err(CsrError::TooLarge { length: der.len() });
    }
    let (rest, request) =
        X509CertificationRequest::from_der(der).map_err(|_| CsrError::Malformed)?;
    if !rest.is_empty() || !is_plain(der) {
        return Err(CsrError::Malformed);
    }
    check_key_type(&request)?;
    request
        .verify_signature()
        .map_err(|_| CsrError::WrongSignature)?;
    Ok(request)
}

fn public_key(
    request: &X509CertificationRequest<'_>,
) -> Result<(Vec<u8>, SubjectPublicKeyInfo), CsrError> {
    let der = request.certification_request_info.subject_pki.raw.to_vec();
    let key = SubjectPublicKeyInfo::from_der(&der).map_err(|_| CsrError::KeyType)?;
    // What will be signed is what was asked for, to the byte, so that its hash names the key.
    if key.subject_public_key_info() != der {
        return Err(CsrError::Malformed);
    }
    Ok((der, key))
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CsrError {
    #[error("certificate request of {length} bytes is larger than {MAX_CSR}")]
    TooLarge { length: usize },
    #[error("certificate request is not PKCS#10 in DER")]
    Malformed,
    #[error(
        "key of the certificate request is not ECDSA on P-256 or P-384 with its point written out, nor Ed25519"
    )]
    KeyType,
    #[error("signature of the certificate request is not by its own key")]
    WrongSignature,
    #[error("certificate request has {found} names where one URI is expected")]
    NotOneName { found: usize },
    #[error("name in the certificate request is not a URI")]
    NotAUri,
    #[error("name in the certificate request is not an identity")]
    NotSpiffe(#[source] SpiffeIdError),
    #[error("name in the certificate request is not that of a trust domain")]
    NotATrustDomain,
    #[error("key of the certificate request is not ECDSA on P-256, as an authority's is")]
    AuthorityKeyType,
    #[error(
        "certificate request asks for an extension {oid} that no intermediate here is given: not to sign below itself, not \
         to be limited, not for another use"
    )]
    AsksForMore { oid: String },
}

/// Whether this is DER as DER must be, a request and nothing besides, of the one version there is. The parser is lenient
/// around what it reads.
fn is_plain(der: &[u8]) -> bool {
    let Some(request) = der::read(der).and_then(|whole| whole.parts()) else {
        return false;
    };
    let Some(info) = request.first().and_then(Element::parts) else {
        return false;
    };
    let version = info.first();
    let version = version.map(|version| (version.tag, version.content));
    (request.len(), info.len(), version) == (3, 4, Some((der::INTEGER, [0].as_slice())))
}

/// The key decides which signatures can be its own; a request cannot pair them freely.
fn check_key_type(request: &X509CertificationRequest<'_>) -> Result<(), CsrError> {
    let key = &request.certification_request_info.subject_pki.algorithm;
    let curve = key
        .parameters
        .as_ref()
        .and_then(|parameters| parameters.as_oid().ok());
    let signature = &request.signature_algorithm.algorithm;
    // Both coordinates written out, as every certificate has them.
    let point = &request
        .certification_request_info
        .subject_pki
        .subject_public_key
        .data;
    let whole = |coordinate: usize| point.len() == 1 + 2 * coordinate && point.first() == Some(&4);
    let fits: &[Oid<'_>] = match curve {
        Some(curve)
            if key.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY
                && (curve == OID_EC_P256 && whole(32)
                    || curve == OID_NIST_EC_P384 && whole(48)) =>
        {
            &[OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384]
        }
        None if key.algorithm == OID_SIG_ED25519 && key.parameters.is_none() => &[OID_SIG_ED25519],
        Some(_) | None => return Err(CsrError::KeyType),
    };
    if fits.contains(signature) {
        Ok(())
    } else {
        Err(CsrError::WrongSignature)
    }
}

/// The alternative names that are asked for.
fn names<'a>(
    request: &'a X509CertificationRequest<'_>,
) -> Result<Vec<&'a GeneralName<'a>>, CsrError> {
    let mut names = Vec::new();
    for extension in extensions(request) {
        names.extend(alternative_names(extension.parsed_extension())?);
    }
    Ok(names)
}

fn extensions<'a>(
    request: &'a X509CertificationRequest<'_>,
) -> impl Iterator<Item = &'a X509Extension<'a>> {
    request
        .certification_request_info
        .iter_attributes()
        .filter_map(|attribute| match attribute.parsed_attribute() {
            ParsedCriAttribute::ExtensionRequest(requested) => Some(&requested.extensions),
            ParsedCriAttribute::ChallengePassword(_) | ParsedCriAttribute::UnsupportedAttribute => {
                None
            }
        })
        .flatten()
}

/// To sign certificates and revocation lists, and to be named.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "whatever else is asked for is refused"
)]
fn asks_only_to_sign(request: &X509CertificationRequest<'_>) -> Result<(), CsrError> {
    let signs = 0b110_0000;
    for extension in extensions(request) {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(_) => {}
            ParsedExtension::KeyUsage(usage) if usage.flags & !signs == 0 => {}
            ParsedExtension::ParseError { .. } => return Err(CsrError::Malformed),
            _ => {
                return Err(CsrError::AsksForMore {
                    oid: extension.oid.to_id_string(),
                });
            }
        }
    }
    Ok(())
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "no other extension is honoured"
)]
fn alternative_names<'a>(
    extension: &'a ParsedExtension<'a>,
) -> Result<&'a [GeneralName<'a>], CsrError> {
    match extension {
        ParsedExtension::SubjectAlternativeName(names) => Ok(&names.general_names),
        ParsedExtension::ParseError { .. } => Err(CsrError::Malformed),
        _ => Ok(&[]),
    }
}

#[cfg(test)]
mod tests;
