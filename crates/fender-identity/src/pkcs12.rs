//! PKCS#12 (RFC 7292): a private key with its certificates, or certificates to trust, as Java and OpenSSL read them.
//!
//! Written only, never read. Key and certificates are encrypted by PBES2 (RFC 8018: PBKDF2 with HMAC-SHA-256, AES-256-CBC), the
//! whole is authenticated by HMAC-SHA-256 with the derivation of RFC 7292, appendix B: what Java from 8u301 and OpenSSL from
//! 1.1 on take. Of the older algorithms of the format (RC2, 3DES, SHA-1) there is none.
//!
//! The same contents give the same bytes. Salts and initialization vectors are outputs of HMAC under the private key, over
//! everything that is encrypted: to whoever has not the key they are random, and they differ wherever a plaintext does.

use aws_lc_rs::cipher::{AES_256, EncryptionContext, PaddedBlockEncryptingKey, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::{digest, hmac, pbkdf2};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use crate::Secret;
use crate::der::{
    self, BMP_STRING, CONTEXT_0, CONTEXT_0_BYTES, NULL, OBJECT_IDENTIFIER, OCTET_STRING, SEQUENCE,
    SET,
};
use crate::pem::{self, PemError};

/// As Java does it by default.
const ITERATIONS: u32 = 10_000;
/// Longer than anybody types.
const MAX_PASSWORD: usize = 1024;
/// More than any chain needs, and as many as a list of public authorities has.
const MAX_CERTIFICATES: usize = 512;

/// Dotted numbers as DER has them.
mod oid {
    pub(super) const DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 1];
    pub(super) const ENCRYPTED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 6];
    pub(super) const SHROUDED_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 12, 10, 1, 2];
    pub(super) const CERTIFICATE_BAG: &[u8] =
        &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 12, 10, 1, 3];
    pub(super) const X509: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 22, 1];
    pub(super) const FRIENDLY_NAME: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 20];
    pub(super) const LOCAL_KEY_ID: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 21];
    pub(super) const PBES2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 5, 13];
    pub(super) const PBKDF2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 5, 12];
    pub(super) const HMAC_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 2, 9];
    pub(super) const AES_256_CBC: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 1, 42];
    pub(super) const SHA256: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1];
    /// By which Java knows a certificate that stands for itself, of Oracle.
    pub(super) const TRUSTED_KEY_USAGE: &[u8] = &[
        0x60, 0x86, 0x48, 1, 0x86, 0xf9, 0x66, 0xad, 0xca, 0x7b, 1, 1,
    ];
    pub(super) const ANY_EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25, 0];
    pub(super) const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
    pub(super) const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
}

/// What goes into a store.
pub struct Contents {
    /// In PKCS#8.
    key: Option<Zeroizing<Vec<u8>>>,
    /// That of the key first.
    certificates: Vec<CertificateDer<'static>>,
}

/// Why there is no store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Pkcs12Error {
    #[error(transparent)]
    Pem(#[from] PemError),
    #[error("more than {MAX_CERTIFICATES} certificates")]
    TooManyCertificates,
    #[error("private key is of no type that TLS can use")]
    UnusableKey,
    #[error("private key belongs to none of the certificates")]
    KeyMismatch,
    #[error(
        "password has not 1 to {MAX_PASSWORD} printable characters of ASCII, which is all that readers agree on"
    )]
    Password,
    #[error("cannot be encrypted")]
    Cipher,
}

impl Contents {
    /// Certificates, and at most one private key, of a PEM text.
    pub fn from_pem(text: &[u8]) -> Result<Self, Pkcs12Error> {
        let mut certificates = pem::certificates(text)?;
        if certificates.len() > MAX_CERTIFICATES {
            return Err(Pkcs12Error::TooManyCertificates);
        }
        let key = match pem::private_key(text) {
            Ok(key) => key,
            Err(PemError::Missing { .. }) => {
                return Ok(Self {
                    key: None,
                    certificates,
                });
            }
            Err(error) => return Err(error.into()),
        };
        let signing = any_supported_type(&key).map_err(|_| Pkcs12Error::UnusableKey)?;
        let is_of_key = |certificate: &CertificateDer<'static>| {
            let pair = CertifiedKey::new(vec![certificate.clone()], signing.clone());
            pair.keys_match().is_ok()
        };
        let leaf = certificates.iter().position(is_of_key);
        let leaf = certificates.remove(leaf.ok_or(Pkcs12Error::KeyMismatch)?);
        certificates.insert(0, leaf);
        Ok(Self {
            key: Some(pkcs8(&key)?),
            certificates,
        })
    }

    /// Whether a private key is in it.
    pub fn has_key(&self) -> bool {
        self.key.is_some()
    }

    /// A password of 256 bits for this store. It is as unknown as the private key, and another for each; without a key there is
    /// nothing to protect, and anybody can make it again who has the certificates.
    pub fn password(&self) -> Secret {
        let tag = self.derive("password", &[]);
        Secret::from(URL_SAFE_NO_PAD.encode(tag.as_ref()))
    }

    /// The store: what is in it goes by `alias`, and is opened with `password`.
    pub fn encode(&self, alias: &str, password: &Secret) -> Result<Secret, Pkcs12Error> {
        let printable = |text: &&str| text.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
        let password = password.expose_str().filter(printable);
        let password = password.filter(|text| (1..=MAX_PASSWORD).contains(&text.len()));
        let password = password.ok_or(Pkcs12Error::Password)?;

        let certificates = self.certificate_bags(alias);
        let sealed = self.seal("certificates", password, &certificates)?;
        let sealed = der::write(
            SEQUENCE,
            &[
                &integer(0),
                &der::write(
                    SEQUENCE,
                    &[
                        &object(oid::DATA),
                        &sealed.algorithm,
                        &der::write(CONTEXT_0_BYTES, &[&sealed.bytes]),
                    ],
                ),
            ],
        );
        let mut safes = vec![content_info(oid::ENCRYPTED_DATA, &sealed)];
        if let Some(key) = &self.key {
            let sealed = self.seal("key", password, key)?;
            let shrouded = der::write(
                SEQUENCE,
                &[
                    &sealed.algorithm,
                    &der::write(OCTET_STRING, &[&sealed.bytes]),
                ],
            );
            let bag = bag(oid::SHROUDED_KEY, &shrouded, &self.of_key(alias));
            let bags = der::write(SEQUENCE, &[&bag]);
            safes.push(content_info(oid::DATA, &der::write(OCTET_STRING, &[&bags])));
        }
        let safes: Vec<&[u8]> = safes.iter().map(|safe| safe.as_slice()).collect();
        let safe = der::write(SEQUENCE, &safes);
        let whole = der::write(
            SEQUENCE,
            &[
                &integer(3),
                &content_info(oid::DATA, &der::write(OCTET_STRING, &[&safe])),
                &self.mac(password, &safe),
            ],
        );
        Ok(Secret::new(whole.to_vec()))
    }

    fn certificate_bags(&self, alias: &str) -> Zeroizing<Vec<u8>> {
        let bags = self.certificates.iter().enumerate();
        let bags: Vec<_> = bags
            .map(|(at, certificate)| {
                let value = der::write(OCTET_STRING, &[certificate]);
                let value = der::write(
                    SEQUENCE,
                    &[&object(oid::X509), &der::write(CONTEXT_0, &[&value])],
                );
                let attributes = match (self.has_key(), at) {
                    (true, 0) => self.of_key(alias),
                    (true, _) => Vec::new(),
                    (false, 0) => trusted(alias),
                    (false, at) => trusted(&format!("{alias}-{}", at + 1)),
                };
                bag(oid::CERTIFICATE_BAG, &value, &attributes)
            })
            .collect();
        let bags: Vec<&[u8]> = bags.iter().map(|bag| bag.as_slice()).collect();
        der::write(SEQUENCE, &bags)
    }

    /// By which key and certificate find each other, and applications both.
    fn of_key(&self, alias: &str) -> Vec<Zeroizing<Vec<u8>>> {
        let leaf = self.certificates.first().map(AsRef::as_ref);
        let id = digest::digest(&digest::SHA256, leaf.unwrap_or_default());
        let id = der::write(OCTET_STRING, &[id.as_ref()]);
        vec![friendly_name(alias), attribute(oid::LOCAL_KEY_ID, &id)]
    }

    fn seal(&self, what: &str, password: &str, plaintext: &[u8]) -> Result<Sealed, Pkcs12Error> {
        let derived = self.derive(what, &[password.as_bytes(), plaintext]);
        let (salt, iv) = derived.as_ref().split_at(16);
        let mut key = Zeroizing::new([0; 32]);
        let rounds = std::num::NonZeroU32::new(ITERATIONS).ok_or(Pkcs12Error::Cipher)?;
        let algorithm = pbkdf2::PBKDF2_HMAC_SHA256;
        pbkdf2::derive(algorithm, rounds, salt, password.as_bytes(), key.as_mut());
        let cipher = UnboundCipherKey::new(&AES_256, key.as_ref())
            .and_then(PaddedBlockEncryptingKey::cbc_pkcs7)
            .map_err(|_| Pkcs12Error::Cipher)?;
        // With room for the padding: growing would leave a copy behind.
        let mut bytes = Vec::with_capacity(plaintext.len() + 16);
        bytes.extend_from_slice(plaintext);
        let vector: [u8; 16] = iv.try_into().map_err(|_| Pkcs12Error::Cipher)?;
        let context = EncryptionContext::Iv128(FixedLength::from(vector));
        if cipher.less_safe_encrypt(&mut bytes, context).is_err() {
            let _wiped = Zeroizing::new(bytes);
            return Err(Pkcs12Error::Cipher);
        }
        let derivation = der::write(
            SEQUENCE,
            &[
                &der::write(OCTET_STRING, &[salt]),
                &integer(ITERATIONS),
                &der::write(SEQUENCE, &[&object(oid::HMAC_SHA256), &NULL]),
            ],
        );
        let encryption = der::write(
            SEQUENCE,
            &[&object(oid::AES_256_CBC), &der::write(OCTET_STRING, &[iv])],
        );
        let derivation = der::write(SEQUENCE, &[&object(oid::PBKDF2), &derivation]);
        let parameters = der::write(SEQUENCE, &[&derivation, &encryption]);
        Ok(Sealed {
            algorithm: der::write(SEQUENCE, &[&object(oid::PBES2), &parameters]),
            bytes,
        })
    }

    fn mac(&self, password: &str, safe: &[u8]) -> Zeroizing<Vec<u8>> {
        let salt = self.derive("mac", &[password.as_bytes(), safe]);
        let (salt, _) = salt.as_ref().split_at(16);
        let key = hmac::Key::new(hmac::HMAC_SHA256, &*mac_key(password, salt));
        let tag = hmac::sign(&key, safe);
        let algorithm = der::write(SEQUENCE, &[&object(oid::SHA256), &NULL]);
        let tag = der::write(OCTET_STRING, &[tag.as_ref()]);
        der::write(
            SEQUENCE,
            &[
                &der::write(SEQUENCE, &[&algorithm, &tag]),
                &der::write(OCTET_STRING, &[salt]),
                &integer(ITERATIONS),
            ],
        )
    }

    /// 256 bits for one purpose, under the private key, or the certificates where there is none.
    fn derive(&self, purpose: &str, parts: &[&[u8]]) -> hmac::Tag {
        let key = match &self.key {
            Some(key) => hmac::Key::new(hmac::HMAC_SHA256, key),
            None => {
                let certificates: Vec<&[u8]> =
                    self.certificates.iter().map(AsRef::as_ref).collect();
                hmac::Key::new(hmac::HMAC_SHA256, &certificates.concat())
            }
        };
        let mut context = hmac::Context::with_key(&key);
        for part in [b"fender pkcs12", purpose.as_bytes()].iter().chain(parts) {
            // Each with its length: no two lists of parts are the same text.
            context.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            context.update(part);
        }
        context.sign()
    }
}

struct Sealed {
    algorithm: Zeroizing<Vec<u8>>,
    bytes: Vec<u8>,
}

/// RFC 7292, appendix B.2, for as many bits as SHA-256 has.
fn mac_key(password: &str, salt: &[u8]) -> Zeroizing<[u8; 32]> {
    const BLOCK: usize = 64;
    const PURPOSE: u8 = 3;
    let mut bmp = Zeroizing::new(Vec::with_capacity(2 * password.len() + 2));
    for unit in password.encode_utf16().chain([0]) {
        bmp.extend_from_slice(&unit.to_be_bytes());
    }
    let filled = |bytes: &[u8]| {
        let length = bytes.len().div_ceil(BLOCK) * BLOCK;
        let filled: Vec<u8> = bytes.iter().copied().cycle().take(length).collect();
        Zeroizing::new(filled)
    };
    let mut first = digest::Context::new(&digest::SHA256);
    for part in [&[PURPOSE; BLOCK][..], &filled(salt), &filled(&bmp)] {
        first.update(part);
    }
    let mut key = Zeroizing::new([0; 32]);
    key.copy_from_slice(first.finish().as_ref());
    for _ in 1..ITERATIONS {
        let next = digest::digest(&digest::SHA256, key.as_ref());
        key.copy_from_slice(next.as_ref());
    }
    key
}

/// Java reads no other form of a key.
fn pkcs8(key: &PrivateKeyDer<'_>) -> Result<Zeroizing<Vec<u8>>, Pkcs12Error> {
    let wrapped = |algorithm: &[&[u8]], key: &[u8]| {
        let algorithm = der::write(SEQUENCE, algorithm);
        let key = der::write(OCTET_STRING, &[key]);
        der::write(SEQUENCE, &[&integer(0), &algorithm, &key])
    };
    match key {
        PrivateKeyDer::Pkcs8(key) => Ok(Zeroizing::new(key.secret_pkcs8_der().to_vec())),
        PrivateKeyDer::Pkcs1(key) => {
            Ok(wrapped(&[&object(oid::RSA), &NULL], key.secret_pkcs1_der()))
        }
        PrivateKeyDer::Sec1(key) => {
            let key = key.secret_sec1_der();
            let curve = curve(key).ok_or(Pkcs12Error::UnusableKey)?;
            Ok(wrapped(&[&object(oid::EC), &object(curve)], key))
        }
        _ => Err(Pkcs12Error::UnusableKey),
    }
}

/// The named curve of an ECPrivateKey (RFC 5915).
fn curve(key: &[u8]) -> Option<&[u8]> {
    let parts = der::read(key)?.parts()?;
    let parameters = parts.iter().find(|part| part.tag == CONTEXT_0)?;
    match parameters.parts()?.as_slice() {
        [curve] if curve.tag == OBJECT_IDENTIFIER => Some(curve.content),
        [..] => None,
    }
}

fn object(numbers: &[u8]) -> Zeroizing<Vec<u8>> {
    der::write(OBJECT_IDENTIFIER, &[numbers])
}

fn integer(number: u32) -> Zeroizing<Vec<u8>> {
    let bytes = number.to_be_bytes();
    let from = bytes.iter().position(|byte| *byte != 0).unwrap_or(3);
    let digits = bytes.get(from..).unwrap_or_default();
    // A first bit that is set would make it negative.
    let sign: &[u8] = match digits.first() {
        Some(first) if first & 0x80 != 0 => &[0],
        _ => &[],
    };
    der::write(der::INTEGER, &[sign, digits])
}

fn content_info(kind: &[u8], content: &[u8]) -> Zeroizing<Vec<u8>> {
    der::write(
        SEQUENCE,
        &[&object(kind), &der::write(CONTEXT_0, &[content])],
    )
}

fn bag(kind: &[u8], value: &[u8], attributes: &[Zeroizing<Vec<u8>>]) -> Zeroizing<Vec<u8>> {
    let value = der::write(CONTEXT_0, &[value]);
    if attributes.is_empty() {
        return der::write(SEQUENCE, &[&object(kind), &value]);
    }
    let mut attributes: Vec<&[u8]> = attributes.iter().map(|it| it.as_slice()).collect();
    // DER: the members of a set stand in the order of their bytes.
    attributes.sort_unstable();
    der::write(
        SEQUENCE,
        &[&object(kind), &value, &der::write(SET, &attributes)],
    )
}

fn attribute(kind: &[u8], value: &[u8]) -> Zeroizing<Vec<u8>> {
    der::write(SEQUENCE, &[&object(kind), &der::write(SET, &[value])])
}

fn friendly_name(alias: &str) -> Zeroizing<Vec<u8>> {
    let units: Vec<u8> = alias.encode_utf16().flat_map(u16::to_be_bytes).collect();
    attribute(oid::FRIENDLY_NAME, &der::write(BMP_STRING, &[&units]))
}

fn trusted(alias: &str) -> Vec<Zeroizing<Vec<u8>>> {
    let any = object(oid::ANY_EXTENDED_KEY_USAGE);
    vec![
        friendly_name(alias),
        attribute(oid::TRUSTED_KEY_USAGE, &any),
    ]
}

#[cfg(test)]
mod tests;
