//! The keys by which the tokens of each trust domain are verified. Keys of one say nothing about another.

use std::collections::BTreeMap;

use super::Keys;
use crate::TrustDomain;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JwtBundles(BTreeMap<TrustDomain, Keys>);

impl JwtBundles {
    pub fn get(&self, trust_domain: &TrustDomain) -> Option<&Keys> {
        self.0.get(trust_domain)
    }

    /// Replaces what was known of the trust domain.
    pub fn insert(&mut self, trust_domain: TrustDomain, keys: Keys) {
        self.0.insert(trust_domain, keys);
    }

    /// In the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&TrustDomain, &Keys)> {
        self.0.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(TrustDomain, Keys)> for JwtBundles {
    fn from_iter<T: IntoIterator<Item = (TrustDomain, Keys)>>(all: T) -> Self {
        Self(all.into_iter().collect())
    }
}
