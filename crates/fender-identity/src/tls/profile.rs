//! What a connection must at least be: a [`TlsProfile`], and what rustls is told of it.
//!
//! A profile only narrows: there is no suite and no group here that we would not use ourselves. One with which no peer
//! could ever connect is [`Unusable`], and no configuration is made of it.

use std::fmt;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::{SupportedCipherSuite, SupportedProtocolVersion, version};

use super::hkdf;

/// What a connection must at least be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TlsProfile {
    pub minimum: TlsVersion,
    /// Of those that both ends know, the one the client likes best is taken.
    pub cipher_suites: Vec<CipherSuite>,
    /// Of those that both ends know, the first of ours is taken.
    pub groups: Vec<Group>,
    pub resumption: SessionResumption,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TlsVersion {
    Tls12,
    #[default]
    Tls13,
}

/// Whether a session may go on in a later connection, at a server of ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SessionResumption {
    /// By a ticket that the client keeps.
    #[default]
    Tickets,
    Never,
}

/// How a connection is encrypted, by the names and numbers of IANA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CipherSuite {
    Aes256GcmSha384,
    Aes128GcmSha256,
    Chacha20Poly1305Sha256,
    EcdheEcdsaAes256GcmSha384,
    EcdheEcdsaAes128GcmSha256,
    EcdheEcdsaChacha20Poly1305Sha256,
    EcdheRsaAes256GcmSha384,
    EcdheRsaAes128GcmSha256,
    EcdheRsaChacha20Poly1305Sha256,
}

/// How a key is agreed upon, by the names that OpenSSL and Envoy use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    X25519Mlkem768,
    P256Mlkem768,
    X25519,
    P256,
    P384,
}

/// Why no peer could ever connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    #[error("there is no cipher suite of TLS 1.3 in it, which every peer of the mesh speaks")]
    NoSuite13,
    #[error("with `minimum` 1.2 it has no cipher suite of TLS 1.2")]
    NoSuite12,
    #[error("there is no group in it to agree upon a key with")]
    NoGroup,
    #[error("with `minimum` 1.2 it has no group that TLS 1.2 knows, which no post-quantum one is")]
    NoGroup12,
}

impl TlsProfile {
    /// Everything we would use, from this version on.
    pub fn since(minimum: TlsVersion) -> Self {
        Self {
            minimum,
            cipher_suites: CipherSuite::NAMED.iter().map(|(_, suite)| *suite).collect(),
            groups: vec![
                Group::X25519Mlkem768,
                Group::X25519,
                Group::P256,
                Group::P384,
            ],
            resumption: SessionResumption::default(),
        }
    }

    /// Whether any peer could connect with it.
    pub fn check(&self) -> Result<(), Unusable> {
        let speaks_12 = self.minimum == TlsVersion::Tls12;
        if !self.cipher_suites.iter().any(|suite| suite.is_13()) {
            return Err(Unusable::NoSuite13);
        }
        if speaks_12 && !self.cipher_suites.iter().any(|suite| !suite.is_13()) {
            return Err(Unusable::NoSuite12);
        }
        if self.groups.is_empty() {
            return Err(Unusable::NoGroup);
        }
        if speaks_12 && self.groups.iter().all(|group| group.is_post_quantum()) {
            return Err(Unusable::NoGroup12);
        }
        Ok(())
    }

    /// Whether two that can be used could ever connect to each other.
    pub fn meets(&self, other: &Self) -> bool {
        let both_12 = self.minimum == TlsVersion::Tls12 && other.minimum == TlsVersion::Tls12;
        let in_13 = shares(&self.cipher_suites, &other.cipher_suites, |suite| {
            suite.is_13()
        }) && shares(&self.groups, &other.groups, |_| true);
        let in_12 = both_12
            && shares(&self.cipher_suites, &other.cipher_suites, |suite| {
                !suite.is_13()
            })
            && shares(&self.groups, &other.groups, |group| {
                !group.is_post_quantum()
            });
        in_13 || in_12
    }

    pub(super) fn provider(&self) -> Result<Arc<CryptoProvider>, Unusable> {
        self.check()?;
        Ok(Arc::new(CryptoProvider {
            cipher_suites: self
                .cipher_suites
                .iter()
                .map(|suite| suite.rustls())
                .collect(),
            kx_groups: self.groups.iter().map(|group| group.rustls()).collect(),
            ..aws_lc_rs::default_provider()
        }))
    }

    pub(super) fn versions(&self) -> &'static [&'static SupportedProtocolVersion] {
        static SINCE_12: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];
        static SINCE_13: [&SupportedProtocolVersion; 1] = [&version::TLS13];
        match self.minimum {
            TlsVersion::Tls12 => &SINCE_12,
            TlsVersion::Tls13 => &SINCE_13,
        }
    }
}

impl Default for TlsProfile {
    fn default() -> Self {
        Self::since(TlsVersion::default())
    }
}

fn shares<T: PartialEq>(one: &[T], other: &[T], counts: impl Fn(&T) -> bool) -> bool {
    one.iter().any(|item| counts(item) && other.contains(item))
}

impl CipherSuite {
    /// All of them, by their names at IANA, the best one first.
    pub const NAMED: &'static [(&'static str, Self)] = &[
        ("TLS_AES_256_GCM_SHA384", Self::Aes256GcmSha384),
        ("TLS_AES_128_GCM_SHA256", Self::Aes128GcmSha256),
        ("TLS_CHACHA20_POLY1305_SHA256", Self::Chacha20Poly1305Sha256),
        (
            "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
            Self::EcdheEcdsaAes256GcmSha384,
        ),
        (
            "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
            Self::EcdheEcdsaAes128GcmSha256,
        ),
        (
            "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
            Self::EcdheEcdsaChacha20Poly1305Sha256,
        ),
        (
            "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
            Self::EcdheRsaAes256GcmSha384,
        ),
        (
            "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
            Self::EcdheRsaAes128GcmSha256,
        ),
        (
            "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
            Self::EcdheRsaChacha20Poly1305Sha256,
        ),
    ];

    /// Its number in IANA's registry of TLS cipher suites.
    pub fn number(self) -> u16 {
        u16::from(self.rustls().suite())
    }

    pub fn numbered(number: u16) -> Option<Self> {
        let mut all = Self::NAMED.iter().map(|(_, suite)| *suite);
        all.find(|suite| suite.number() == number)
    }

    fn is_13(self) -> bool {
        self.rustls().tls13().is_some()
    }

    fn rustls(self) -> SupportedCipherSuite {
        match self {
            Self::Aes256GcmSha384 => hkdf::TLS13_AES_256_GCM_SHA384,
            Self::Aes128GcmSha256 => hkdf::TLS13_AES_128_GCM_SHA256,
            Self::Chacha20Poly1305Sha256 => hkdf::TLS13_CHACHA20_POLY1305_SHA256,
            Self::EcdheEcdsaAes256GcmSha384 => {
                cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
            }
            Self::EcdheEcdsaAes128GcmSha256 => {
                cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
            }
            Self::EcdheEcdsaChacha20Poly1305Sha256 => {
                cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
            }
            Self::EcdheRsaAes256GcmSha384 => cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
            Self::EcdheRsaAes128GcmSha256 => cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            Self::EcdheRsaChacha20Poly1305Sha256 => {
                cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
            }
        }
    }
}

impl fmt::Display for CipherSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = Self::NAMED.iter().find(|(_, suite)| suite == self);
        f.write_str(named.map_or("", |(name, _)| name))
    }
}

impl Group {
    /// All of them, by name.
    pub const NAMED: &'static [(&'static str, Self)] = &[
        ("X25519MLKEM768", Self::X25519Mlkem768),
        ("SecP256r1MLKEM768", Self::P256Mlkem768),
        ("X25519", Self::X25519),
        ("P-256", Self::P256),
        ("P-384", Self::P384),
    ];

    /// Its number in IANA's registry of TLS supported groups.
    pub fn number(self) -> u16 {
        u16::from(self.rustls().name())
    }

    pub fn numbered(number: u16) -> Option<Self> {
        let mut all = Self::NAMED.iter().map(|(_, group)| *group);
        all.find(|group| group.number() == number)
    }

    fn is_post_quantum(self) -> bool {
        matches!(self, Self::X25519Mlkem768 | Self::P256Mlkem768)
    }

    fn rustls(self) -> &'static dyn SupportedKxGroup {
        match self {
            Self::X25519Mlkem768 => kx_group::X25519MLKEM768,
            Self::P256Mlkem768 => kx_group::SECP256R1MLKEM768,
            Self::X25519 => kx_group::X25519,
            Self::P256 => kx_group::SECP256R1,
            Self::P384 => kx_group::SECP384R1,
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = Self::NAMED.iter().find(|(_, group)| group == self);
        f.write_str(named.map_or("", |(name, _)| name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(minimum: TlsVersion, suites: &[CipherSuite], groups: &[Group]) -> TlsProfile {
        TlsProfile {
            minimum,
            cipher_suites: suites.to_vec(),
            groups: groups.to_vec(),
            resumption: SessionResumption::default(),
        }
    }

    #[test]
    fn every_suite_and_group_is_what_its_number_says() {
        for (name, suite) in CipherSuite::NAMED.iter().copied() {
            let rustls = format!("{:?}", suite.rustls().suite());
            assert_eq!(rustls.replace("TLS13_", "TLS_"), name);
            assert_eq!(CipherSuite::numbered(suite.number()), Some(suite));
            assert_eq!(suite.to_string(), name);
        }
        let numbers = Group::NAMED.iter().map(|(_, group)| group.number());
        assert_eq!(
            numbers.collect::<Vec<_>>(),
            [0x11ec, 0x11eb, 0x001d, 0x0017, 0x0018]
        );
        for (name, group) in Group::NAMED.iter().copied() {
            assert_eq!(Group::numbered(group.number()), Some(group));
            assert_eq!(group.to_string(), name);
        }
        assert_eq!(CipherSuite::numbered(0x002f), None);
        assert_eq!(Group::numbered(0x0019), None);
    }

    #[test]
    fn the_default_is_tls_13_and_prefers_the_post_quantum_group() {
        let default = TlsProfile::default();
        assert_eq!(default.check(), Ok(()));
        assert_eq!(default.minimum, TlsVersion::Tls13);
        assert_eq!(default.groups.first(), Some(&Group::X25519Mlkem768));
        assert_eq!(TlsProfile::since(TlsVersion::Tls12).check(), Ok(()));
    }

    #[test]
    fn what_no_peer_could_connect_with_is_unusable() {
        use CipherSuite::{Aes128GcmSha256 as Suite13, EcdheEcdsaAes128GcmSha256 as Suite12};
        use TlsVersion::{Tls12, Tls13};
        let rsa = CipherSuite::EcdheRsaAes128GcmSha256;
        let groups = [Group::X25519];
        for (profile, expected) in [
            (profile(Tls13, &[], &groups), Err(Unusable::NoSuite13)),
            (
                profile(Tls13, &[Suite12], &groups),
                Err(Unusable::NoSuite13),
            ),
            (
                profile(Tls12, &[Suite12], &groups),
                Err(Unusable::NoSuite13),
            ),
            (
                profile(Tls12, &[Suite13], &groups),
                Err(Unusable::NoSuite12),
            ),
            (profile(Tls12, &[Suite13, rsa], &groups), Ok(())),
            (profile(Tls13, &[Suite13], &[]), Err(Unusable::NoGroup)),
            (
                profile(Tls12, &[Suite13, Suite12], &[Group::X25519Mlkem768]),
                Err(Unusable::NoGroup12),
            ),
            (profile(Tls13, &[Suite13], &[Group::X25519Mlkem768]), Ok(())),
            (profile(Tls12, &[Suite13, Suite12], &groups), Ok(())),
        ] {
            assert_eq!(profile.check(), expected, "{profile:?}");
            assert_eq!(profile.provider().err(), expected.err());
        }
    }

    #[test]
    fn two_profiles_meet_in_a_version_that_both_speak() {
        use CipherSuite::{Aes128GcmSha256, Aes256GcmSha384, EcdheEcdsaAes128GcmSha256 as Suite12};
        use TlsVersion::{Tls12, Tls13};
        let pq = profile(Tls13, &[Aes256GcmSha384], &[Group::X25519Mlkem768]);
        assert!(pq.meets(&TlsProfile::default()) && TlsProfile::default().meets(&pq));
        assert!(!pq.meets(&profile(Tls13, &[Aes256GcmSha384], &[Group::P256])));
        assert!(!pq.meets(&profile(
            Tls13,
            &[Aes128GcmSha256],
            &[Group::X25519Mlkem768]
        )));
        let one = profile(Tls12, &[Aes256GcmSha384, Suite12], &[Group::P256]);
        let other = |minimum| profile(minimum, &[Aes128GcmSha256, Suite12], &[Group::P256]);
        assert!(one.meets(&other(Tls12)));
        assert!(!one.meets(&other(Tls13)));
    }
}
