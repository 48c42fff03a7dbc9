//! PEM in and out. Reads only what it is asked for and caps how much of it there may be.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::{Error, PemObject, SectionKind};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use zeroize::{Zeroize as _, Zeroizing};

use crate::Secret;

/// More than any chain or bundle needs.
const MAX_PEM: usize = 1024 * 1024;
const LINE: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PemError {
    #[error("PEM text of {length} bytes is longer than {MAX_PEM}")]
    TooLong { length: usize },
    #[error("PEM section of a {what} cannot be read")]
    Section { what: &'static str },
    #[error("no {what} in the PEM text")]
    Missing { what: &'static str },
    #[error("more than one private key in the PEM text")]
    SeveralKeys,
    #[error("the private key in the PEM text is encrypted with a password")]
    Encrypted,
    #[error("more than one certificate request in the PEM text")]
    SeveralRequests,
    #[error(
        "a section of the PEM text is neither a certificate, a revocation list, a public key nor a private key without a password"
    )]
    Unknown,
}

/// Certificates, revocation lists and keys of several texts, one behind the other and in one form: whatever else stands between
/// the sections is left out, and a section of another kind is refused. Empty is an error.
pub fn rewrite<'a>(texts: impl IntoIterator<Item = &'a [u8]>) -> Result<Secret, PemError> {
    let (mut written, mut length) = (Vec::new(), 0);
    for text in texts {
        let sections: Vec<(SectionKind, Vec<u8>)> = sections(text, "key or certificate")?;
        let sections = sections.into_iter();
        let sections = sections.map(|(kind, der)| (kind, Zeroizing::new(der)));
        // Sections of kinds that the reader does not know are passed over by it.
        let begun = text
            .windows(BEGIN.len())
            .filter(|part| *part == BEGIN)
            .count();
        if sections.len() != begun {
            return Err(PemError::Unknown);
        }
        for (kind, der) in sections {
            let section = encode(label(kind).ok_or(PemError::Unknown)?, &der);
            length += section.len();
            written.push(section);
        }
    }
    if written.is_empty() {
        let what = "key or certificate";
        return Err(PemError::Missing { what });
    }
    let mut whole = Vec::with_capacity(length);
    for section in written {
        whole.extend_from_slice(section.as_bytes());
    }
    Ok(Secret::new(whole))
}

const BEGIN: &[u8] = b"-----BEGIN ";

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the enum grows, and what is not known is refused"
)]
fn label(kind: SectionKind) -> Option<&'static str> {
    match kind {
        SectionKind::Certificate => Some("CERTIFICATE"),
        SectionKind::PublicKey => Some("PUBLIC KEY"),
        SectionKind::RsaPrivateKey => Some("RSA PRIVATE KEY"),
        SectionKind::EcPrivateKey => Some("EC PRIVATE KEY"),
        SectionKind::PrivateKey => Some("PRIVATE KEY"),
        SectionKind::Crl => Some("X509 CRL"),
        _ => None,
    }
}

/// Every certificate in the text, in order; other sections are passed over.
pub fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let certificates: Vec<CertificateDer<'static>> = sections(text, "certificate")?;
    if certificates.is_empty() {
        return Err(PemError::Missing {
            what: "certificate",
        });
    }
    Ok(certificates)
}

/// The one certificate request in the text, as DER.
pub fn request(text: &[u8]) -> Result<Vec<u8>, PemError> {
    let what = "certificate request";
    let requests: Vec<CertificateSigningRequestDer<'static>> = sections(text, what)?;
    match requests.as_slice() {
        [request] => Ok(request.to_vec()),
        [] => Err(PemError::Missing { what }),
        [..] => Err(PemError::SeveralRequests),
    }
}

/// The one private key in the text, written anew: nothing else of the text is in it.
pub(crate) fn private_key_alone(text: &[u8]) -> Result<Secret, PemError> {
    let mut key = private_key(text)?;
    let label = match &key {
        PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        PrivateKeyDer::Pkcs8(_) => "PRIVATE KEY",
        _ => return Err(PemError::Unknown),
    };
    let written = encode(label, key.secret_der());
    key.zeroize();
    Ok(Secret::new(written.as_bytes().to_vec()))
}

/// How openssl marks keys that take a password: of PKCS#8, and of the older forms.
const ENCRYPTED: [&[u8]; 2] = [
    b"-----BEGIN ENCRYPTED PRIVATE KEY-----",
    b"Proc-Type: 4,ENCRYPTED",
];

/// The one private key in the text.
pub(crate) fn private_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, PemError> {
    let is_marked = |mark: &[u8]| text.windows(mark.len()).any(|part| part == mark);
    if ENCRYPTED.iter().any(|mark| is_marked(mark)) {
        return Err(PemError::Encrypted);
    }
    let mut keys: Vec<PrivateKeyDer<'static>> = sections(text, "private key")?;
    match (keys.pop(), keys.is_empty()) {
        (Some(key), true) => Ok(key),
        (Some(_), false) => Err(PemError::SeveralKeys),
        (None, _) => Err(PemError::Missing {
            what: "private key",
        }),
    }
}

/// The one private key in the text, which must be PKCS#8; as DER.
pub fn private_key_pkcs8(text: &[u8]) -> Result<Secret, PemError> {
    let PrivateKeyDer::Pkcs8(key) = private_key(text)? else {
        return Err(PemError::Missing {
            what: "PKCS#8 private key",
        });
    };
    Ok(Secret::new(key.secret_pkcs8_der().to_vec()))
}

/// One PEM section. The caller decides whether the text is secret.
pub(crate) fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    let body = Zeroizing::new(STANDARD.encode(der));
    // Sized once: growing would leave copies of a secret behind.
    let capacity = body.len() + body.len() / LINE + 2 * label.len() + 40;
    let mut text = Zeroizing::new(String::with_capacity(capacity));
    for part in ["-----BEGIN ", label, "-----\n"] {
        text.push_str(part);
    }
    for (index, character) in body.chars().enumerate() {
        if index > 0 && index % LINE == 0 {
            text.push('\n');
        }
        text.push(character);
    }
    for part in ["\n-----END ", label, "-----\n"] {
        text.push_str(part);
    }
    text
}

pub fn encode_certificates(certificates: &[CertificateDer<'_>]) -> String {
    certificates
        .iter()
        .map(|der| encode("CERTIFICATE", der).to_string())
        .collect()
}

/// A certificate revocation list.
pub fn crl_pem(der: &[u8]) -> String {
    encode("X509 CRL", der).to_string()
}

fn sections<T: PemObject>(text: &[u8], what: &'static str) -> Result<Vec<T>, PemError> {
    if text.len() > MAX_PEM {
        return Err(PemError::TooLong { length: text.len() });
    }
    T::pem_slice_iter(text)
        .collect::<Result<Vec<T>, Error>>()
        .map_err(|_| PemError::Section { what })
}
