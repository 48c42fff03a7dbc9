//! Certificates of somebody else's authority, shown once to become somebody here.
//!
//! [`verify`] says whose key made a signature, by the word of named roots. It gives facts, not an
//! identity: a [`Shown`] is no peer, opens no connection, and no SPIFFE ID in it counts. Names are
//! compared whole and as text that has one reading; there is no pattern.

use std::fmt;
use std::sync::Arc;

use rustls::SignatureScheme;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::der_parser::asn1_rs::Tag;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::Oid;
use x509_parser::prelude::FromDer;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

use crate::certificate::{Certificate, Malformed, sha256};
use crate::pem::{self, PemError};
use crate::verify::{Anchors, MAX_CHAIN, Proof, Refusal, Role, check_signature, find_path, split};
use crate::{Serial, Validity};

/// More than one authority needs at a time.
const MAX_ROOTS: usize = 64;

/// How the holder's key proves itself: the first that fits.
const PROOF_SCHEMES: [SignatureScheme; 6] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
];

/// The roots of one foreign authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    anchors: Vec<TrustAnchor<'static>>,
    validities: Vec<Validity>,
    sha256: Vec<[u8; 32]>,
}

impl Roots {
    /// Each a CA, at least one.
    pub fn from_pem(text: &[u8]) -> Result<Self, RootsError> {
        let certificates = pem::certificates(text)?;
        if certificates.len() > MAX_ROOTS {
            return Err(RootsError::TooMany {
                count: certificates.len(),
            });
        }
        let mut roots = Self {
            anchors: Vec::new(),
            validities: Vec::new(),
            sha256: Vec::new(),
        };
        for (der, number) in certificates.iter().zip(1..) {
            let facts = Certificate::read(der)
                .map_err(|source| RootsError::Malformed { number, source })?;
            if !facts.may_sign_certificates() {
                return Err(RootsError::NotACa { number });
            }
            let anchor =
                webpki::anchor_from_trusted_cert(der).map_err(|_| RootsError::Malformed {
                    number,
                    source: Malformed::NotX509,
                })?;
            roots.anchors.push(anchor.to_owned());
            roots.validities.push(facts.validity);
            roots.sha256.push(sha256(der));
        }
        Ok(roots)
    }

    /// The SHA-256 of each.
    pub fn sha256(&self) -> &[[u8; 32]] {
        &self.sha256
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RootsError {
    #[error(transparent)]
    Pem(#[from] PemError),
    #[error("{count} roots are more than {MAX_ROOTS}")]
    TooMany { count: usize },
    #[error("root {number} is not a certificate we read: {source}")]
    Malformed { number: usize, source: Malformed },
    #[error("root {number} is not a CA")]
    NotACa { number: usize },
}

/// What a certificate says of whoever proved to hold its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// As RFC 4514 writes it, the most specific part first: `CN=orders,O=Acme`. None if a part of it
    /// is not plain text.
    pub subject: Option<String>,
    /// In lower case.
    pub dns_names: Vec<String>,
    pub uris: Vec<String>,
    /// Of the certificate itself.
    pub sha256: [u8; 32],
    pub serial: Serial,
    pub validity: Validity,
}

/// A certificate whose holder proved to be it, and by whose word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    pub shown: Shown,
    /// SHA-256 of the root that vouches.
    pub root: [u8; 32],
}

/// The facts of the leaf, if its key made the signature and a path leads to one of `roots` now.
pub fn verify(proof: Proof<'_>, roots: &Roots, now: UnixTime) -> Result<Proven, Refusal> {
    // 1. There is a chain, it is small, and its leaf is one.
    let (leaf, intermediates) = split(proof.chain)?;
    let facts = Certificate::read(leaf).map_err(Refusal::Malformed)?;
    if facts.is_ca
        || facts
            .key_usage
            .is_some_and(|usage| usage.signs_certificates)
    {
        return Err(Refusal::CaShown);
    }
    if facts
        .key_usage
        .is_some_and(|usage| !usage.digital_signature)
    {
        return Err(Refusal::WrongPurpose(Role::Client));
    }
    // 2. One signature before the many that somebody else's chain could make us check.
    check_signature(leaf, proof)?;
    // 3. A path to the named roots: signatures, validity, for use as a client.
    let anchors = Anchors {
        anchors: &roots.anchors,
        validities: &roots.validities,
    };
    let vouching = find_path(leaf, intermediates, Role::Client, anchors, now)?;
    let root = roots.sha256.get(vouching).copied();
    let root = root.ok_or(Refusal::UntrustedRoot)?;
    // 4. What it says.
    let (dns_names, subject) = names(leaf)?;
    let shown = Shown {
        subject,
        dns_names,
        uris: facts.uris,
        sha256: sha256(leaf),
        serial: facts.serial,
        validity: facts.validity,
    };
    Ok(Proven { shown, root })
}

fn names(leaf: &CertificateDer<'_>) -> Result<(Vec<String>, Option<String>), Refusal> {
    let (_, certificate) =
        X509Certificate::from_der(leaf).map_err(|_| Refusal::Malformed(Malformed::NotX509))?;
    let alternative = certificate
        .subject_alternative_name()
        .map_err(|_| Refusal::Malformed(Malformed::Extension))?;
    let dns = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        GeneralName::OtherName(..)
        | GeneralName::RFC822Name(_)
        | GeneralName::URI(_)
        | GeneralName::X400Address(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EDIPartyName(_)
        | GeneralName::IPAddress(_)
        | GeneralName::RegisteredID(_)
        | GeneralName::Invalid(..) => None,
    };
    let dns_names = alternative.map_or_else(Vec::new, |names| {
        names.value.general_names.iter().filter_map(dns).collect()
    });
    Ok((dns_names, subject_text(certificate.subject())))
}

/// RFC 4514. What would have two readings is escaped; what is not text gives none.
fn subject_text(name: &X509Name<'_>) -> Option<String> {
    let mut parts = Vec::new();
    for part in name.iter() {
        let attributes: Option<Vec<String>> = part.iter().map(attribute_text).collect();
        parts.push(attributes?.join("+"));
    }
    parts.reverse();
    (!parts.is_empty()).then(|| parts.join(","))
}

fn attribute_text(attribute: &AttributeTypeAndValue<'_>) -> Option<String> {
    let value = attribute.attr_value();
    let text = match value.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String => {
            std::str::from_utf8(value.data).ok()?
        }
        _ => return None,
    };
    let kind = short_name(attribute.attr_type());
    Some(format!("{kind}={}", escaped(text)))
}

/// Those of RFC 4514, and the dotted number for every other.
fn short_name(kind: &Oid<'_>) -> String {
    let dotted = kind.to_id_string();
    match dotted.as_str() {
        "2.5.4.3" => "CN",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "street",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "0.9.2342.19200300.100.1.25" => "DC",
        "0.9.2342.19200300.100.1.1" => "UID",
        other => other,
    }
    .to_owned()
}

fn escaped(text: &str) -> String {
    let last = text.chars().count().saturating_sub(1);
    let mut escaped = String::with_capacity(text.len());
    for (index, character) in text.chars().enumerate() {
        let edge =
            (character == ' ' && (index == 0 || index == last)) || (character == '#' && index == 0);
        if character.is_control() {
            let mut bytes = [0; 4];
            for byte in character.encode_utf8(&mut bytes).bytes() {
                escaped.push_str(&format!("\\{byte:02X}"));
            }
            continue;
        }
        if edge || matches!(character, '"' | '+' | ',' | ';' | '<' | '>' | '\\') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

/// A certificate that we hold, with its key.
#[derive(Clone)]
pub struct Held(Arc<CertifiedKey>);

impl Held {
    pub fn from_pem(certificates: &[u8], key: &[u8]) -> Result<Self, HeldError> {
        let chain = pem::certificates(certificates)?;
        if chain.len() > MAX_CHAIN {
            return Err(HeldError::ChainTooLong {
                length: chain.len(),
            });
        }
        let key = pem::private_key(key)?;
        let signing = any_supported_type(&key).map_err(|_| HeldError::UnusableKey)?;
        let certified = CertifiedKey::new(chain, signing);
        certified.keys_match().map_err(|_| HeldError::KeyMismatch)?;
        Ok(Self(Arc::new(certified)))
    }

    /// Leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.0.cert
    }

    /// Proves possession of the key; [`verify`] reads it.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, HeldError> {
        let signer = self.0.key.choose_scheme(&PROOF_SCHEMES);
        signer
            .and_then(|signer| signer.sign(message).ok())
            .ok_or(HeldError::UnusableKey)
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Held(…)")
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeldError {
    #[error(transparent)]
    Pem(#[from] PemError),
    #[error("chain of {length} certificates is longer than {MAX_CHAIN}")]
    ChainTooLong { length: usize },
    #[error("private key is of no type that can sign")]
    UnusableKey,
    #[error("private key does not belong to the certificate")]
    KeyMismatch,
}

#[cfg(test)]
mod tests;
