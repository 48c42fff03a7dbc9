use std::sync::LazyLock;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING,
    ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384,
    RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512, RsaKeyPair,
};
use serde_json::{Value as Json, json};

use super::*;
use crate::testing::{DAY, HOUR, NOW, at, domain};

mod attacks;

const ISSUER: &str = "https://issuer.test";
const READER: &str = "fender";

const EXPECTED: Expectations<'static> = Expectations {
    issuer: ISSUER,
    audience: Audience::Only(READER),
};

enum Signer {
    Rsa(RsaKeyPair),
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

static RSA: LazyLock<Signer> =
    LazyLock::new(|| Signer::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()));
static P256: LazyLock<Signer> = LazyLock::new(|| ecdsa(&ECDSA_P256_SHA256_FIXED_SIGNING));

fn ecdsa(curve: &'static EcdsaSigningAlgorithm) -> Signer {
    Signer::Ecdsa(EcdsaKeyPair::generate(curve).unwrap())
}

impl Signer {
    fn public(&self) -> PublicKey {
        match self {
            Self::Rsa(pair) => {
                let key = pair.public_key();
                PublicKey::Rsa {
                    modulus: key.modulus().big_endian_without_leading_zero().into(),
                    exponent: key.exponent().big_endian_without_leading_zero().into(),
                }
            }
            Self::Ecdsa(pair) => {
                let point: Box<[u8]> = pair.public_key().as_ref().into();
                match point.len() {
                    65 => PublicKey::P256(point),
                    97 => PublicKey::P384(point),
                    _ => PublicKey::P521(point),
                }
            }
            Self::Ed25519(pair) => PublicKey::Ed25519(pair.public_key().as_ref().into()),
        }
    }

    fn key(&self, id: &str) -> Key {
        Key::new(Some(id.to_owned()), self.public(), None).unwrap()
    }

    fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Rsa(pair) => {
                let encoding = match algorithm {
                    "RS384" => &RSA_PKCS1_SHA384,
                    "RS512" => &RSA_PKCS1_SHA512,
                    "PS256" => &RSA_PSS_SHA256,
                    "PS384" => &RSA_PSS_SHA384,
                    "PS512" => &RSA_PSS_SHA512,
                    _ => &RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(encoding, &SystemRandom::new(), message, &mut signature)
                    .unwrap();
                signature
            }
            Self::Ecdsa(pair) => {
                let signature = pair.sign(&SystemRandom::new(), message).unwrap();
                signature.as_ref().to_vec()
            }
            Self::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }

    /// Signs whatever it is given.
    fn mint(&self, header: &Json, claims: &Json) -> String {
        let algorithm = header["alg"].as_str().unwrap_or_default().to_owned();
        self.mint_bytes(&algorithm, &header.to_string(), &claims.to_string())
    }

    fn mint_bytes(&self, algorithm: &str, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", base64(header), base64(claims));
        let signature = self.sign(algorithm, signed.as_bytes());
        format!("{signed}.{}", base64(signature))
    }
}

fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The claims of a token that is good now, changed.
fn claims(change: impl FnOnce(&mut Json)) -> Json {
    let mut claims = json!({
        "iss": ISSUER,
        "sub": "spiffe://mesh.test/ns/shop/sa/orders",
        "aud": READER,
        "iat": NOW,
        "exp": NOW + HOUR,
    });
    change(&mut claims);
    claims
}

fn good() -> Json {
    claims(|_| ())
}

/// Signed by the RSA key with the id `one`.
fn token(claims: &Json) -> String {
    RSA.mint(&json!({ "alg": "RS256", "kid": "one" }), claims)
}

fn keys() -> Keys {
    Keys::new(vec![RSA.key("one"), P256.key("two")]).unwrap()
}

fn verified(token: &str) -> Result<Claims, Refusal> {
    verify(token, &keys(), at(NOW), &EXPECTED)
}

#[test]
fn every_algorithm_verifies_with_the_key_it_belongs_to() {
    let p384 = ecdsa(&ECDSA_P384_SHA384_FIXED_SIGNING);
    let p521 = ecdsa(&ECDSA_P521_SHA512_FIXED_SIGNING);
    let ed25519 = Signer::Ed25519(Ed25519KeyPair::generate().unwrap());
    for (signer, algorithms) in [
        (&*RSA, "RS256 RS384 RS512 PS256 PS384 PS512"),
        (&*P256, "ES256"),
        (&p384, "ES384"),
        (&p521, "ES512"),
        (&ed25519, "EdDSA"),
    ] {
        let keys = Keys::new(vec![signer.key("key")]).unwrap();
        for algorithm in algorithms.split(' ') {
            let token = signer.mint(&json!({ "alg": algorithm, "kid": "key" }), &good());
            let claims = verify(&token, &keys, at(NOW), &EXPECTED).unwrap();
            assert_eq!(claims.audiences, [READER], "{algorithm}");
        }
    }
}

#[test]
fn claims_are_read_with_their_types() {
    let claims = claims(|claims| {
        claims["jti"] = json!("one");
        claims["nbf"] = json!(NOW - 1);
        claims["kubernetes.io"] = json!({ "namespace": "shop", "pod": { "name": "orders-1" } });
    });
    let read = verified(&token(&claims)).unwrap();
    assert_eq!(read.issuer.as_deref(), Some(ISSUER));
    assert_eq!(read.id.as_deref(), Some("one"));
    assert_eq!(read.expires, at(NOW + HOUR));
    assert_eq!(read.not_before, Some(at(NOW - 1)));
    assert_eq!(read.issued, Some(at(NOW)));
    assert_eq!(
        read.text_at(&["kubernetes.io", "pod", "name"]),
        Some("orders-1")
    );
    assert_eq!(read.text_at(&["kubernetes.io", "pod"]), None);
    assert_eq!(read.at(&["kubernetes.io", "node"]), None);
    assert_eq!(read.at(&[]), None);
}

#[test]
fn a_token_is_good_until_its_end_and_a_minute_of_skew() {
    let token = token(&claims(|claims| claims["nbf"] = json!(NOW)));
    let at_second = |second| verify(&token, &keys(), at(second), &EXPECTED).map(drop);
    assert_eq!(at_second(NOW + HOUR + 59), Ok(()));
    let (expires, now) = (at(NOW + HOUR), at(NOW + HOUR + 60));
    assert_eq!(
        at_second(NOW + HOUR + 60),
        Err(Refusal::Expired { expires, now })
    );
    assert_eq!(at_second(NOW - 60), Ok(()));
    let (not_before, now) = (at(NOW), at(NOW - 61));
    assert_eq!(
        at_second(NOW - 61),
        Err(Refusal::NotYetValid { not_before, now })
    );
}

#[test]
fn one_of_several_audiences_suffices_where_the_reader_says_so() {
    let token = token(&claims(|claims| claims["aud"] = json!(["a", READER])));
    let readers = [READER.to_owned(), "other".to_owned()];
    let expected = Expectations {
        issuer: ISSUER,
        audience: Audience::OneOf(&readers),
    };
    assert!(verify(&token, &keys(), at(NOW), &expected).is_ok());
    let expected = Expectations {
        audience: Audience::OneOf(&[]),
        ..expected
    };
    assert!(matches!(
        verify(&token, &keys(), at(NOW), &expected),
        Err(Refusal::WrongAudience { .. })
    ));
}

#[test]
fn a_token_without_a_key_id_needs_a_set_of_one() {
    let token = RSA.mint(&json!({ "alg": "RS256" }), &good());
    let one = Keys::new(vec![RSA.key("one")]).unwrap();
    assert!(verify(&token, &one, at(NOW), &EXPECTED).is_ok());
    assert_eq!(verified(&token), Err(Refusal::NoKeyId));
}

#[test]
fn only_an_unknown_key_justifies_asking_for_newer_ones() {
    let unknown = RSA.mint(&json!({ "alg": "RS256", "kid": "three" }), &good());
    assert!(verified(&unknown).unwrap_err().newer_keys_might_help());
    let forged = P256.mint(&json!({ "alg": "RS256", "kid": "one" }), &good());
    let refusal = verified(&forged).unwrap_err();
    assert_eq!(refusal, Refusal::WrongSignature);
    assert!(!refusal.newer_keys_might_help());
}

#[test]
fn a_token_that_somebody_else_verifies_is_looked_at_all_the_same() {
    let good = token(&good());
    let unverified = |token: &str| unverified(token, at(NOW), &EXPECTED);
    let claims = unverified(&good).unwrap().vouched_for();
    assert_eq!(Ok(claims), verified(&good));
    for (name, value) in [
        ("iss", json!("https://other.test")),
        ("aud", json!([READER, "other"])),
        ("exp", json!(NOW - 60)),
    ] {
        let claims = claims_with(name, value);
        assert!(unverified(&token(&claims)).is_err(), "{name}");
    }
}

fn claims_with(name: &str, value: Json) -> Json {
    claims(|claims| claims[name] = value)
}

#[test]
fn a_set_is_read_back_as_it_was_written() {
    let ed25519 = Signer::Ed25519(Ed25519KeyPair::generate().unwrap());
    let written = Keys::new(vec![
        RSA.key("one"),
        P256.key("two"),
        ecdsa(&ECDSA_P521_SHA512_FIXED_SIGNING).key("three"),
        ed25519.key("four"),
    ])
    .unwrap();
    let text = written.to_json("sig");
    let read = Keys::parse(text.as_bytes(), Purpose::SignaturesAndEd25519).unwrap();
    assert_eq!(
        read.iter().collect::<Vec<_>>(),
        written.iter().collect::<Vec<_>>()
    );
    assert_eq!(read.passed_over(), 0);

    let without = Keys::parse(text.as_bytes(), Purpose::Signatures).unwrap();
    assert_eq!(without.len(), 3, "Ed25519 only where it is asked for");
    assert_eq!(without.passed_over(), 1);
}

#[test]
fn an_algorithm_in_the_set_is_the_only_one_for_its_key() {
    let mut set: Json = serde_json::from_str(&keys().to_json("sig")).unwrap();
    set["keys"][0]["alg"] = json!("PS256");
    let keys = Keys::parse(set.to_string().as_bytes(), Purpose::Signatures).unwrap();
    let signed = |algorithm: &str| {
        let token = RSA.mint(&json!({ "alg": algorithm, "kid": "one" }), &good());
        verify(&token, &keys, at(NOW), &EXPECTED).map(drop)
    };
    assert_eq!(signed("PS256"), Ok(()));
    let algorithm = Algorithm::Rs256;
    assert_eq!(
        signed("RS256"),
        Err(Refusal::AlgorithmOfAnotherKey { algorithm })
    );
}

#[test]
fn a_jwt_svid_is_verified_by_the_keys_of_its_trust_domain() {
    let set = keys().to_json("jwt-svid");
    let keys = Keys::parse(set.as_bytes(), Purpose::JwtSvids).unwrap();
    let of_mesh = |asked: &TrustDomain| (*asked == domain("mesh.test")).then_some(&keys);
    let svid = svid::verify(&token(&good()), READER, &of_mesh, at(NOW)).unwrap();
    assert_eq!(svid.id().as_str(), "spiffe://mesh.test/ns/shop/sa/orders");
    assert_eq!(svid.claims().audiences, [READER]);

    let no_issuer = claims(|claims| {
        claims.as_object_mut().unwrap().remove("iss");
        claims["aud"] = json!(["other", READER]);
    });
    assert!(svid::verify(&token(&no_issuer), READER, &of_mesh, at(NOW)).is_ok());
    let typed = RSA.mint(
        &json!({ "alg": "RS256", "kid": "one", "typ": "JOSE" }),
        &good(),
    );
    assert!(svid::verify(&typed, READER, &of_mesh, at(NOW)).is_ok());
}

#[test]
fn a_bundle_without_keys_for_tokens_is_read_as_such() {
    let mut set: Json = serde_json::from_str(&keys().to_json("x509-svid")).unwrap();
    set["spiffe_sequence"] = json!(1);
    let keys = Keys::parse(set.to_string().as_bytes(), Purpose::JwtSvids).unwrap();
    assert!(keys.is_empty());
    assert_eq!(
        Keys::parse(set.to_string().as_bytes(), Purpose::Signatures),
        Err(KeysError::Empty)
    );
}
