//! HKDF (RFC 5869) for the key schedule of TLS 1.3, on HMAC of aws-lc.
//!
//! A handshake derives some twenty keys from half as many secrets. rustls's own way to aws-lc begins HMAC anew for each,
//! which hashes the secret twice before it comes to what is derived. Here a secret is hashed once, and its HMAC is copied
//! for each key.
//!
//! Nothing is invented: HKDF itself is rustls's, HMAC is aws-lc's. No secret stays here: aws-lc wipes an HMAC that is
//! dropped.

use aws_lc_rs::hmac::{self, HMAC_SHA256, HMAC_SHA384};
use rustls::crypto::CipherSuiteCommon;
use rustls::crypto::aws_lc_rs::cipher_suite;
use rustls::crypto::hmac::{Hmac, Key, Tag};
use rustls::crypto::tls13::{Hkdf, HkdfUsingHmac};
use rustls::{SupportedCipherSuite, Tls13CipherSuite};

pub(super) static TLS13_AES_256_GCM_SHA384: SupportedCipherSuite =
    SupportedCipherSuite::Tls13(&AES_256_GCM);
pub(super) static TLS13_AES_128_GCM_SHA256: SupportedCipherSuite =
    SupportedCipherSuite::Tls13(&AES_128_GCM);
pub(super) static TLS13_CHACHA20_POLY1305_SHA256: SupportedCipherSuite =
    SupportedCipherSuite::Tls13(&CHACHA20_POLY1305);

static AES_256_GCM: Tls13CipherSuite = derived(&cipher_suite::TLS13_AES_256_GCM_SHA384, &SHA384);
static AES_128_GCM: Tls13CipherSuite = derived(&cipher_suite::TLS13_AES_128_GCM_SHA256, &SHA256);
static CHACHA20_POLY1305: Tls13CipherSuite =
    derived(&cipher_suite::TLS13_CHACHA20_POLY1305_SHA256, &SHA256);

static SHA256: HkdfUsingHmac<'_> = HkdfUsingHmac(&AwsLc(HMAC_SHA256));
static SHA384: HkdfUsingHmac<'_> = HkdfUsingHmac(&AwsLc(HMAC_SHA384));

/// A suite as it is but for how its keys are derived.
const fn derived(suite: &SupportedCipherSuite, hkdf: &'static dyn Hkdf) -> Tls13CipherSuite {
    let Some(suite) = suite.tls13() else {
        panic!("a suite of TLS 1.2 has another key schedule"); // while it is compiled
    };
    Tls13CipherSuite {
        common: CipherSuiteCommon {
            suite: suite.common.suite,
            hash_provider: suite.common.hash_provider,
            confidentiality_limit: suite.common.confidentiality_limit,
        },
        hkdf_provider: hkdf,
        aead_alg: suite.aead_alg,
        quic: None,
    }
}

struct AwsLc(hmac::Algorithm);

impl Hmac for AwsLc {
    fn with_key(&self, key: &[u8]) -> Box<dyn Key> {
        Box::new(Secret(hmac::Key::new(self.0, key)))
    }

    fn hash_output_len(&self) -> usize {
        self.0.digest_algorithm().output_len()
    }
}

/// The HMAC of a secret, into which nothing else has gone.
struct Secret(hmac::Key);

impl Key for Secret {
    fn sign_concat(&self, first: &[u8], middle: &[&[u8]], last: &[u8]) -> Tag {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(first);
        middle.iter().for_each(|part| context.update(part));
        context.update(last);
        Tag::new(context.sign().as_ref())
    }

    fn tag_len(&self) -> usize {
        self.0.algorithm().digest_algorithm().output_len()
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::hkdf::{self, KeyType};
    use rustls::crypto::hash::HashAlgorithm;

    use super::*;

    /// RFC 5869, A.1 to A.3: salt, secret, info, and what is derived of them.
    const VECTORS: [(&str, &str, &str, &str); 3] = [
        (
            "000102030405060708090a0b0c",
            "0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b",
            "f0f1f2f3f4f5f6f7f8f9",
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (
            "606162636465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f\
             808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f\
             a0a1a2a3a4a5a6a7a8a9aaabacadaeaf",
            "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\
             202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f\
             404142434445464748494a4b4c4d4e4f",
            "b0b1b2b3b4b5b6b7b8b9babbbcbdbebfc0c1c2c3c4c5c6c7c8c9cacbcccdcecf\
             d0d1d2d3d4d5d6d7d8d9dadbdcdddedfe0e1e2e3e4e5e6e7e8e9eaebecedeeef\
             f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff",
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c\
             59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71\
             cc30c58179ec3e87c14c01d5c1f3434f1d87",
        ),
        (
            "",
            "0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b",
            "",
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
    ];

    #[test]
    fn keys_are_derived_as_the_rfc_shows() {
        for (salt, secret, info, expected) in VECTORS {
            let [salt, secret, info, expected] = [salt, secret, info, expected].map(bytes);
            let expander = SHA256.extract_from_secret(Some(&salt), &secret);
            let mut derived = vec![0; expected.len()];
            // In two parts, as TLS has its labels in several.
            let (one, other) = info.split_at(info.len() / 2);
            expander.expand_slice(&[one, other], &mut derived).unwrap();
            assert_eq!(derived, expected);
        }
    }

    #[test]
    fn keys_are_those_that_hkdf_of_aws_lc_derives() {
        struct Length(usize);
        impl KeyType for Length {
            fn len(&self) -> usize {
                self.0
            }
        }
        for (ours, theirs) in [(&SHA256, hkdf::HKDF_SHA256), (&SHA384, hkdf::HKDF_SHA384)] {
            for length in [0, 1, 12, 32, 47, 48, 49, 255] {
                let (salt, secret) = (vec![7; length], vec![8; 32 + length]);
                let info = [&[1; 3][..], &vec![9; length], b"end"];
                let mut derived = vec![0; length];
                let expander = ours.extract_from_secret(Some(&salt), &secret);
                expander.expand_slice(&info, &mut derived).unwrap();
                let mut expected = vec![0; length];
                if length > 0 {
                    let prk = hkdf::Salt::new(theirs, &salt).extract(&secret);
                    let okm = prk.expand(&info, Length(length)).unwrap();
                    okm.fill(&mut expected).unwrap();
                }
                assert_eq!(derived, expected, "{length} bytes");
            }
        }
    }

    #[test]
    fn a_suite_has_the_hash_that_its_name_says() {
        let suites = [
            (TLS13_AES_256_GCM_SHA384, HashAlgorithm::SHA384, 48),
            (TLS13_AES_128_GCM_SHA256, HashAlgorithm::SHA256, 32),
            (TLS13_CHACHA20_POLY1305_SHA256, HashAlgorithm::SHA256, 32),
        ];
        for (suite, hash, length) in suites {
            let suite = suite.tls13().unwrap();
            assert_eq!(suite.common.hash_provider.algorithm(), hash);
            let secret = suite.hkdf_provider.extract_from_zero_ikm(None);
            assert_eq!(secret.hash_len(), length);
        }
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        (0..hex.len()).step_by(2).map(byte).collect()
    }
}
