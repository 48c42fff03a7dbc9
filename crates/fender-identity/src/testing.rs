//! A small PKI for tests: authorities that sign whatever they are asked, and a clock that stands
//! still.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::time_provider::TimeProvider;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};

use crate::{Bundle, Bundles, SpiffeId, Svid, TrustDomain};

/// When all tests happen.
pub(crate) const NOW: u64 = 1_800_000_000;
pub(crate) const HOUR: u64 = 3600;
pub(crate) const DAY: u64 = 24 * HOUR;

pub(crate) fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

pub(crate) fn domain(name: &str) -> TrustDomain {
    name.parse().unwrap()
}

pub(crate) fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

#[derive(Debug)]
pub(crate) struct TestClock(AtomicU64);

impl TestClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(NOW)))
    }

    pub(crate) fn set(&self, seconds: u64) {
        self.0.store(seconds, Ordering::Relaxed);
    }
}

impl TimeProvider for TestClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(at(self.0.load(Ordering::Relaxed)))
    }
}

/// A certificate with its key and all that stands above it, itself first.
pub(crate) struct Issued {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: KeyPair,
    params: CertificateParams,
}

impl Issued {
    pub(crate) fn der(&self) -> CertificateDer<'static> {
        self.chain[0].clone()
    }

    pub(crate) fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }

    /// Without the root, as it is sent.
    pub(crate) fn sent(&self) -> Vec<CertificateDer<'static>> {
        let root = self.chain.len() - 1;
        if root == 0 {
            self.chain.clone()
        } else {
            self.chain[..root].to_vec()
        }
    }

    pub(crate) fn svid(&self) -> Svid {
        Svid::from_parts(self.sent(), self.key_der()).unwrap()
    }

    pub(crate) fn bundle(&self, trust_domain: &str) -> Bundle {
        Bundle::new(domain(trust_domain), vec![self.der()]).unwrap()
    }

    pub(crate) fn bundles(&self, trust_domain: &str) -> Arc<Bundles> {
        Arc::new(self.bundle(trust_domain).into())
    }

    pub(crate) fn sign(&self, params: CertificateParams) -> Self {
        self.sign_for(params, KeyPair::generate().unwrap())
    }

    pub(crate) fn sign_for(&self, params: CertificateParams, key: KeyPair) -> Self {
        let issuer = Issuer::from_params(&self.params, &self.key);
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let mut chain = vec![certificate.der().clone()];
        chain.extend(self.chain.iter().cloned());
        Self { chain, key, params }
    }

    pub(crate) fn intermediate(&self, name: &str) -> Self {
        self.sign(authority(name))
    }

    pub(crate) fn leaf(&self, id: &str) -> Self {
        self.sign(leaf(id))
    }

    /// A leaf that is wrong in one way.
    pub(crate) fn odd_leaf(&self, id: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = leaf(id);
        change(&mut params);
        self.sign(params)
    }
}

pub(crate) fn root(name: &str) -> Issued {
    self_signed(authority(name))
}

pub(crate) fn self_signed(params: CertificateParams) -> Issued {
    let key = KeyPair::generate().unwrap();
    let chain = vec![params.self_signed(&key).unwrap().der().clone()];
    Issued { chain, key, params }
}

/// Valid a day to both sides.
pub(crate) fn authority(name: &str) -> CertificateParams {
    let mut params = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid(&mut params, NOW - DAY, NOW + DAY);
    params
}

/// Valid an hour to both sides.
pub(crate) fn leaf(id: &str) -> CertificateParams {
    let mut params = named("leaf");
    params.subject_alt_names = vec![uri(id)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    valid(&mut params, NOW - HOUR, NOW + HOUR);
    params
}

pub(crate) fn valid(params: &mut CertificateParams, from: u64, until: u64) {
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(from);
    params.not_after = epoch + Duration::from_secs(until);
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

pub(crate) fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

/// Key usage "digital signature", but one may ignore it.
pub(crate) fn uncritical_key_usage() -> CustomExtension {
    CustomExtension::from_oid_content(&[2, 5, 29, 15], vec![0x03, 0x02, 0x07, 0x80])
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}
