//! A certificate that is shown to a server outside the mesh, which knows us by it: any chain with its key. What it is good
//! for is that server's to say.

use std::fmt;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::PrivateKeyDer;

use super::PemPair;
use crate::pem::{self, PemError};
use crate::verify::MAX_CHAIN;

/// A chain with the key of its leaf.
#[derive(Clone)]
pub struct ShownCertificate(Arc<CertifiedKey>);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShownCertificateError {
    #[error(transparent)]
    Pem(#[from] PemError),
    #[error("chain of {length} certificates is longer than {MAX_CHAIN}")]
    ChainTooLong { length: usize },
    #[error("private key is of no type that TLS can use")]
    UnusableKey,
    #[error("private key does not belong to the certificate")]
    KeyMismatch,
}

impl ShownCertificate {
    /// In PEM, the chain's leaf first.
    pub fn from_pem(pair: &PemPair) -> Result<Self, ShownCertificateError> {
        let chain = pem::certificates(&pair.chain)?;
        let key: PrivateKeyDer<'static> = pem::private_key(pair.key.expose())?;
        let length = chain.len();
        if length > MAX_CHAIN {
            return Err(ShownCertificateError::ChainTooLong { length });
        }
        let signing = any_supported_type(&key).map_err(|_| ShownCertificateError::UnusableKey)?;
        let key = CertifiedKey::new(chain, signing);
        key.keys_match()
            .map_err(|_| ShownCertificateError::KeyMismatch)?;
        Ok(Self(Arc::new(key)))
    }

    pub(super) fn certified_key(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.0)
    }
}

impl fmt::Debug for ShownCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ShownCertificate(…)")
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;
    use crate::Secret;

    fn pair(key: &KeyPair, shown: &KeyPair) -> PemPair {
        let certificate = CertificateParams::default().self_signed(key).unwrap();
        PemPair {
            chain: certificate.pem().into_bytes(),
            key: Secret::from(shown.serialize_pem()),
        }
    }

    #[test]
    fn a_chain_goes_with_the_key_of_its_leaf_and_with_no_other() {
        let [one, other] = [(); 2].map(|()| KeyPair::generate().unwrap());
        let shown = ShownCertificate::from_pem(&pair(&one, &one)).unwrap();
        assert_eq!(format!("{shown:?}"), "ShownCertificate(…)");
        let refused = ShownCertificate::from_pem(&pair(&one, &other)).unwrap_err();
        assert_eq!(refused, ShownCertificateError::KeyMismatch);
    }

    #[test]
    fn attack_a_chain_without_end() {
        let key = KeyPair::generate().unwrap();
        let mut long = pair(&key, &key);
        long.chain = long.chain.repeat(MAX_CHAIN + 1);
        let refused = ShownCertificate::from_pem(&long).unwrap_err();
        let length = MAX_CHAIN + 1;
        assert_eq!(refused, ShownCertificateError::ChainTooLong { length });
    }
}
