//! Certificates for clients outside the mesh, beside the mesh's own. Which one a client is shown goes by the name that it
//! asks for (SNI, RFC 6066):
//!
//! 1. Who asks as the mesh does ([`server_name`]) is shown the workload's SVID, whatever else is there.
//! 2. One for exactly this name.
//! 3. One for this name with `*` for its first label.
//! 4. The SVID, if the name is in it.
//! 5. The one for [`OTHERS`], if there is one: also for who asks for no name.
//! 6. The SVID, which tells a stranger nothing and which no stranger believes.
//!
//! A name whose certificate is not there, and may not be stood in for, is shown nothing: there is no handshake.
//!
//! Nothing here says who a client is: that is always decided by the trust of the mesh.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, DnsName, PrivateKeyDer, ServerName};
use webpki::EndEntityCert;

use super::{Own, server_name};
use crate::certificate::{Certificate, Malformed};
use crate::pem::{self, PemError};
use crate::verify::MAX_CHAIN;
use crate::{Secret, Svid, Validity};

/// Stands among the names of the certificate that is shown to whoever asks for no other.
const OTHERS: &str = "*";

/// A chain and its key as text, not looked at yet.
#[derive(Debug)]
pub struct PemPair {
    /// Leaf first.
    pub chain: Vec<u8>,
    pub key: Secret,
}

impl PemPair {
    /// Of texts that hold the chain, leaf first, and of one that holds the key; each may hold other sections too, the key's also
    /// the chain. Nothing of a key is left in what the chain becomes.
    pub fn from_texts<'a>(
        chain: impl IntoIterator<Item = &'a [u8]>,
        key: &[u8],
    ) -> Result<Self, PemError> {
        let mut written = String::new();
        for text in chain {
            written.push_str(&pem::encode_certificates(&pem::certificates(text)?));
        }
        Ok(Self {
            chain: written.into_bytes(),
            key: pem::private_key_alone(key)?,
        })
    }

    /// Takes the same time wherever two keys of one length differ.
    pub fn equals(&self, other: &Self) -> bool {
        self.chain == other.chain && self.key.ct_eq(&other.key)
    }
}

/// What there is of a certificate now, and what is wrong about it.
#[derive(Clone, Debug, Default)]
pub struct Issued {
    pub pair: Option<Arc<PemPair>>,
    /// It was issued for other names, and is shown for those that it has in common with them until there is one for all.
    pub stands_in: bool,
    /// Why there is none, or no newer one.
    pub problem: Option<String>,
    /// Whoever gives it has taken it back: nothing is shown any more, whatever was.
    pub withdrawn: bool,
}

/// A chain with its key, and the names it is shown for.
#[derive(Clone)]
pub struct NamedCertificate {
    /// [`OTHERS`] may be one.
    names: Vec<String>,
    validity: Validity,
    key: Arc<CertifiedKey>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NamedCertificateError {
    #[error(transparent)]
    Pem(#[from] PemError),
    #[error("there is no certificate in it")]
    NoCertificate,
    #[error("chain of {length} certificates is longer than {MAX_CHAIN}")]
    ChainTooLong { length: usize },
    #[error("leaf cannot be read: {0}")]
    Malformed(#[from] Malformed),
    #[error("private key is of no type that TLS can use")]
    UnusableKey,
    #[error("private key does not belong to the certificate")]
    KeyMismatch,
    #[error("certificate has no DNS name, so no client would ever ask for it")]
    NoName,
    #[error("certificate is not for the name `{0}`, and a client that asks for it would refuse it")]
    WrongName(String),
}

impl NamedCertificate {
    /// Whether it is the very same, read at the same time.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.key, &other.key) && self.names == other.names
    }

    /// In PEM, the chain's leaf first. Without names, and with `*` alone, for all those in the leaf.
    pub fn from_pem(pair: &PemPair, names: &[String]) -> Result<Self, NamedCertificateError> {
        let chain = pem::certificates(&pair.chain)?;
        let key: PrivateKeyDer<'static> = pem::private_key(pair.key.expose())?;
        let (leaf, length) = (chain.first(), chain.len());
        let leaf = leaf.ok_or(NamedCertificateError::NoCertificate)?;
        if length > MAX_CHAIN {
            return Err(NamedCertificateError::ChainTooLong { length });
        }
        let validity = Certificate::read(leaf)?.validity;
        let end_entity = EndEntityCert::try_from(leaf).map_err(|_| Malformed::NotX509)?;
        let lower = names.iter().map(|name| name.to_ascii_lowercase());
        let mut names: Vec<String> = lower.collect();
        if names.iter().all(|name| name == OTHERS) {
            let own = end_entity.valid_dns_names().map(str::to_ascii_lowercase);
            names.splice(0..0, own);
        }
        if names.is_empty() {
            return Err(NamedCertificateError::NoName);
        }
        for name in names.iter().filter(|name| *name != OTHERS) {
            if !is_for(&end_entity, name) {
                return Err(NamedCertificateError::WrongName(name.clone()));
            }
        }
        let signing = any_supported_type(&key).map_err(|_| NamedCertificateError::UnusableKey)?;
        let key = CertifiedKey::new(chain, signing);
        key.keys_match()
            .map_err(|_| NamedCertificateError::KeyMismatch)?;
        Ok(Self {
            names,
            validity,
            key: Arc::new(key),
        })
    }

    /// The same for as many of these names as a client takes it for; none if that is no name at all. With it comes whoever
    /// asks for no other name, if they are among these.
    pub fn standing_in(&self, names: &[String]) -> Option<Self> {
        let leaf = EndEntityCert::try_from(self.leaf()?).ok()?;
        let lower = names.iter().map(|name| name.to_ascii_lowercase());
        let names: Vec<String> = lower
            .filter(|name| name == OTHERS || is_for(&leaf, name))
            .collect();
        let is_for_any = names.iter().any(|name| name != OTHERS);
        let (validity, key) = (self.validity, self.key.clone());
        is_for_any.then_some(Self {
            names,
            validity,
            key,
        })
    }

    /// The names it is shown for, in lower case.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    pub fn validity(&self) -> Validity {
        self.validity
    }

    pub fn leaf(&self) -> Option<&CertificateDer<'static>> {
        self.key.cert.first()
    }
}

/// Whether a client that asks for this name takes the certificate; for all that a `*` stands for, if it begins with one.
fn is_for(leaf: &EndEntityCert<'_>, name: &str) -> bool {
    if name.starts_with("*.") {
        return leaf
            .valid_dns_names()
            .any(|own| own.eq_ignore_ascii_case(name));
    }
    let asked = DnsName::try_from(name).map(ServerName::DnsName);
    asked.is_ok_and(|asked| leaf.verify_is_valid_for_subject_name(&asked).is_ok())
}

impl fmt::Debug for NamedCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NamedCertificate")
            .field("names", &self.names)
            .field("validity", &self.validity)
            .finish_non_exhaustive()
    }
}

/// What is shown for a name; nothing, if it is refused.
type Answer = Option<Arc<CertifiedKey>>;

/// The certificates of one server.
#[derive(Debug)]
pub(super) struct ByName {
    own: Arc<CertifiedKey>,
    named: BTreeMap<String, Answer>,
    others: Answer,
}

impl ByName {
    /// Of two for one name the first is shown, and a name that is refused stays so whoever else is for it.
    pub(super) fn new(shown: Own<'_>) -> Self {
        let Own {
            svid,
            named: all,
            refused,
        } = shown;
        let own = svid.certified_key();
        let (mut named, mut others) = (BTreeMap::new(), None);
        if let ServerName::DnsName(mesh) = server_name(svid.id()) {
            named.insert(mesh.as_ref().to_ascii_lowercase(), Some(own.clone()));
        }
        let refused = refused.iter().map(|name| (name, None));
        let shown = all.iter().flat_map(|certificate| {
            let names = certificate.names.iter();
            names.map(|name| (name, Some(certificate.key.clone())))
        });
        for (name, answer) in refused.chain(shown) {
            if name == OTHERS {
                others = others.or(Some(answer));
                continue;
            }
            named.entry(name.to_ascii_lowercase()).or_insert(answer);
        }
        let found = Self {
            others: others.unwrap_or_else(|| Some(own.clone())),
            own,
            named,
        };
        found.with_own_names(svid)
    }

    /// Its own names lead to the SVID, except those that a certificate is for.
    fn with_own_names(mut self, svid: &Svid) -> Self {
        let leaf = svid.chain().first().map(EndEntityCert::try_from);
        let Some(Ok(leaf)) = leaf else {
            return self;
        };
        for name in leaf.valid_dns_names().map(str::to_ascii_lowercase) {
            let known = self.find(&name).cloned();
            let shown = known.unwrap_or_else(|| Some(self.own.clone()));
            self.named.entry(name).or_insert(shown);
        }
        self
    }

    fn find(&self, name: &str) -> Option<&Answer> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        self.named.get(&name).or_else(|| {
            let (_, rest) = name.split_once('.')?;
            self.named.get(&format!("*.{rest}"))
        })
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = hello.server_name().and_then(|name| self.find(name));
        named.unwrap_or(&self.others).clone()
    }
}
