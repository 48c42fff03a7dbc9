//! Our own identity: a chain of certificates and the key that belongs to its leaf.
//!
//! Holding an [`Svid`] means the key was matched with the leaf and the leaf has the shape other
//! peers will demand of it. It does not mean anybody trusts the chain: that is [`crate::verify`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use zeroize::Zeroize as _;

use crate::pem::{self, PemError};
use crate::verify::{Leaf, MAX_CHAIN, PROOF_SCHEMES, Refusal};
use crate::{Secret, Serial, SpiffeId, Validity};

#[derive(Clone)]
pub struct Svid {
    id: SpiffeId,
    serial: Serial,
    validity: Validity,
    certified_key: Arc<CertifiedKey>,
    key: Secret,
    key_label: &'static str,
}

impl Svid {
    /// `chain` begins with the leaf.
    pub fn from_parts(
        chain: Vec<CertificateDer<'static>>,
        mut key: PrivateKeyDer<'static>,
    ) -> Result<Self, SvidError> {
        if chain.len() > MAX_CHAIN {
            return Err(SvidError::ChainTooLong {
                length: chain.len(),
            });
        }
        let leaf = Leaf::read(chain.first().ok_or(SvidError::NoCertificate)?)?;

        let signing = any_supported_type(&key).map_err(|_| SvidError::UnusableKey);
        let (key_label, secret) = (label(&key), Secret::new(key.secret_der().to_vec()));
        key.zeroize();
        let certified_key = CertifiedKey::new(chain, signing?);
        certified_key
            .keys_match()
            .map_err(|_| SvidError::KeyMismatch {
                id: leaf.id.clone(),
            })?;

        Ok(Self {
            id: leaf.id,
            serial: leaf.serial,
            validity: leaf.validity,
            certified_key: Arc::new(certified_key),
            key: secret,
            key_label,
        })
    }

    pub fn from_pem(certificates: &[u8], key: &[u8]) -> Result<Self, SvidError> {
        Self::from_parts(pem::certificates(certificates)?, pem::private_key(key)?)
    }

    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    pub fn serial(&self) -> &Serial {
        &self.serial
    }

    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// Leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified_key.cert
    }

    pub fn certified_key(&self) -> Arc<CertifiedKey> {
        self.certified_key.clone()
    }

    pub fn chain_pem(&self) -> String {
        pem::encode_certificates(self.chain())
    }

    pub fn key_pem(&self) -> Secret {
        Secret::new(
            pem::encode(self.key_label, self.key.expose())
                .as_bytes()
                .to_vec(),
        )
    }

    /// The key as PKCS#8 in DER; none for a key that was given in another form.
    pub fn key_pkcs8(&self) -> Option<Secret> {
        (self.key_label == PKCS8).then(|| self.key.clone())
    }

    /// When to ask for the next one: half of its life, give or take a tenth of that half.
    /// `jitter` from -1 to 1 chooses within; anything beyond counts as the end it lies at.
    pub fn renew_at(&self, jitter: f64) -> UnixTime {
        let Validity {
            not_before,
            not_after,
        } = self.validity;
        let lifetime = not_after.as_secs().saturating_sub(not_before.as_secs());
        let jitter = if jitter.is_nan() {
            0.0
        } else {
            jitter.clamp(-1.0, 1.0)
        };
        let wait = Duration::from_secs(lifetime).mul_f64(0.5 * (1.0 + 0.1 * jitter));
        UnixTime::since_unix_epoch(Duration::from_secs(not_before.as_secs()).saturating_add(wait))
    }

    /// Proves possession of the key outside a handshake; [`crate::verify::lapsed`] reads it.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SvidError> {
        let signer = self.certified_key.key.choose_scheme(&PROOF_SCHEMES);
        signer
            .and_then(|signer| signer.sign(message).ok())
            .ok_or(SvidError::UnusableKey)
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("id", &self.id)
            .field("serial", &format_args!("{}", self.serial))
            .field("validity", &self.validity)
            .field("key", &self.key)
            .finish()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SvidError {
    #[error("chain of the SVID is empty")]
    NoCertificate,
    #[error("chain of {length} certificates is longer than {MAX_CHAIN}")]
    ChainTooLong { length: usize },
    #[error("leaf is not an X.509-SVID")]
    Shape(#[from] Refusal),
    #[error("private key is of no type that TLS can use")]
    UnusableKey,
    #[error("private key does not belong to the certificate of `{id}`")]
    KeyMismatch { id: SpiffeId },
    #[error(transparent)]
    Pem(#[from] PemError),
}

const PKCS8: &str = "PRIVATE KEY";

fn label(key: &PrivateKeyDer<'_>) -> &'static str {
    match key {
        PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        // The enum may grow; what it grows by does not pass `any_supported_type`.
        PrivateKeyDer::Pkcs8(_) | _ => PKCS8,
    }
}

#[cfg(test)]
mod tests;
