//! The certificate by which a name is proven to an authority (TLS-ALPN-01, RFC 8737): signed by itself, for one name, with
//! the answer in an extension that nobody else understands. It is critical, so whoever does not know it refuses it.

use std::fmt;
use std::sync::Arc;

use rcgen::{
    CertificateParams, CustomExtension, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::csr::KeyError;

/// The protocol by which an authority asks (RFC 8737, 6.2).
pub const ACME_TLS: &[u8] = b"acme-tls/1";

/// Bytes of the digest that is the answer.
const DIGEST: usize = 32;

/// Good for one handshake that leads nowhere.
#[derive(Clone)]
pub struct ChallengeCertificate {
    name: String,
    key: Arc<CertifiedKey>,
}

impl ChallengeCertificate {
    /// `answer` is the SHA-256 of the key authorization.
    pub fn new(name: &str, answer: &[u8]) -> Result<Self, KeyError> {
        if answer.len() != DIGEST {
            return Err(KeyError::Sign);
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|_| KeyError::Generate)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let dns = name.try_into().map_err(|_| KeyError::Sign)?;
        params.subject_alt_names = vec![SanType::DnsName(dns)];
        params.custom_extensions = vec![CustomExtension::new_acme_identifier(answer)];
        let made = params.self_signed(&key).map_err(|_| KeyError::Sign)?;
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signing = any_supported_type(&der).map_err(|_| KeyError::Unreadable)?;
        Ok(Self {
            name: name.to_ascii_lowercase(),
            key: Arc::new(CertifiedKey::new(vec![made.der().clone()], signing)),
        })
    }

    /// In lower case.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn certified_key(&self) -> Arc<CertifiedKey> {
        self.key.clone()
    }
}

impl fmt::Debug for ChallengeCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("ChallengeCertificate");
        shown.field("name", &self.name).finish_non_exhaustive()
    }
}
