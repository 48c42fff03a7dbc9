//! The roots by which a trust domain is recognised.
//!
//! Roots are parsed here, when a bundle is made, so that a handshake only looks them up. A root of
//! one trust domain says nothing about another: [`Bundles`] is asked by name and has no "any".

use std::collections::BTreeMap;

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};

use crate::certificate::{Certificate, Malformed};
use crate::pem::{self, PemError};
use crate::verify::Anchors;
use crate::{TrustDomain, Validity};

/// Enough for many overlapping rotations.
const MAX_ROOTS: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    trust_domain: TrustDomain,
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    validities: Vec<Validity>,
}

impl Bundle {
    /// Each root a CA, at least one; a root given twice counts once.
    pub fn new(
        trust_domain: TrustDomain,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, BundleError> {
        let count = roots.len();
        let mut bundle = Self {
            trust_domain,
            roots: Vec::new(),
            anchors: Vec::new(),
            validities: Vec::new(),
        };
        if count > MAX_ROOTS {
            return Err(BundleError::TooManyRoots {
                trust_domain: bundle.trust_domain,
                count,
            });
        }
        for (root, number) in roots.into_iter().zip(1..) {
            bundle.add(root, number)?;
        }
        if bundle.roots.is_empty() {
            return Err(BundleError::Empty {
                trust_domain: bundle.trust_domain,
            });
        }
        Ok(bundle)
    }

    pub fn from_pem(trust_domain: TrustDomain, text: &[u8]) -> Result<Self, BundleError> {
        match pem::certificates(text) {
            Ok(roots) => Self::new(trust_domain, roots),
            Err(source) => Err(BundleError::Pem {
                trust_domain,
                source,
            }),
        }
    }

    pub fn to_pem(&self) -> String {
        pem::encode_certificates(&self.roots)
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// When its last root ends, and with it everything it vouches for.
    pub fn ends(&self) -> UnixTime {
        let ends = self.validities.iter().map(|validity| validity.not_after);
        ends.max()
            .unwrap_or_else(|| UnixTime::since_unix_epoch(std::time::Duration::ZERO))
    }

    /// Whether each of its roots may vouch now.
    pub fn is_current(&self, now: UnixTime) -> bool {
        self.validities
            .iter()
            .all(|validity| validity.includes(now))
    }

    pub(crate) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }

    pub(crate) fn trusted(&self) -> Anchors<'_> {
        Anchors {
            anchors: &self.anchors,
            validities: &self.validities,
        }
    }

    fn add(&mut self, root: CertificateDer<'static>, number: usize) -> Result<(), BundleError> {
        if self.roots.contains(&root) {
            return Ok(());
        }
        let trust_domain = || self.trust_domain.clone();
        let facts = Certificate::read(&root).map_err(|source| BundleError::Malformed {
            trust_domain: trust_domain(),
            number,
            source,
        })?;
        if !facts.may_sign_certificates() {
            return Err(BundleError::NotACa {
                trust_domain: trust_domain(),
                number,
            });
        }
        let anchor = webpki::anchor_from_trusted_cert(&root)
            .map_err(|_| BundleError::Malformed {
                trust_domain: trust_domain(),
                number,
                source: Malformed::NotX509,
            })?
            .to_owned();
        self.roots.push(root);
        self.anchors.push(anchor);
        self.validities.push(facts.validity);
        Ok(())
    }
}

/// The bundles of every trust domain we know, by its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bundles(BTreeMap<TrustDomain, Bundle>);

impl Bundles {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn get(&self, trust_domain: &TrustDomain) -> Option<&Bundle> {
        self.0.get(trust_domain)
    }

    /// Replaces what was known of the bundle's trust domain.
    pub fn insert(&mut self, bundle: Bundle) {
        self.0.insert(bundle.trust_domain.clone(), bundle);
    }

    /// In the order of their trust domains' names.
    pub fn iter(&self) -> impl Iterator<Item = &Bundle> {
        self.0.values()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Bundle> for Bundles {
    fn from_iter<T: IntoIterator<Item = Bundle>>(bundles: T) -> Self {
        let mut all = Self::new();
        bundles.into_iter().for_each(|bundle| all.insert(bundle));
        all
    }
}

impl From<Bundle> for Bundles {
    fn from(bundle: Bundle) -> Self {
        Self::from_iter([bundle])
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    #[error("trust bundle of `{trust_domain}` holds no root, so it could verify nobody")]
    Empty { trust_domain: TrustDomain },
    #[error("trust bundle of `{trust_domain}` holds {count} roots, more than {MAX_ROOTS}")]
    TooManyRoots {
        trust_domain: TrustDomain,
        count: usize,
    },
    #[error("root {number} in the trust bundle of `{trust_domain}` is not a certificate we read")]
    Malformed {
        trust_domain: TrustDomain,
        number: usize,
        source: Malformed,
    },
    #[error("root {number} in the trust bundle of `{trust_domain}` is not a CA")]
    NotACa {
        trust_domain: TrustDomain,
        number: usize,
    },
    #[error("read the trust bundle of `{trust_domain}`")]
    Pem {
        trust_domain: TrustDomain,
        source: PemError,
    },
}

#[cfg(test)]
mod tests;
