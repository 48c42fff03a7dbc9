//! The other half of JWT-SVIDs: a key that signs them, with ES256 and nothing else.
//!
//! It signs what it is told. Whom it vouches for, and whether it may, is decided before.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls_pki_types::UnixTime;

use super::{Algorithm, Key, KeyError, PublicKey};
use crate::{Secret, SpiffeId};

/// A private key on P-256. It never shows itself.
pub struct SigningKey {
    pair: EcdsaKeyPair,
    public: Key,
    id: String,
}

/// What a token will say.
#[derive(Clone, Copy, Debug)]
pub struct Statement<'a> {
    pub subject: &'a SpiffeId,
    /// For whom; not empty.
    pub audiences: &'a [String],
    pub issued: UnixTime,
    pub expires: UnixTime,
    /// Tells this token from every other.
    pub token_id: &'a str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SigningError {
    #[error("the key that signs tokens is not a private key on P-256")]
    NotAKey,
    #[error("the cryptographic library failed")]
    Crypto,
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl SigningKey {
    pub fn generate() -> Result<Self, SigningError> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING);
        Self::of(pair.map_err(|_| SigningError::Crypto)?)
    }

    pub fn from_pkcs8(der: &[u8]) -> Result<Self, SigningError> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der);
        Self::of(pair.map_err(|_| SigningError::NotAKey)?)
    }

    fn of(pair: EcdsaKeyPair) -> Result<Self, SigningError> {
        let point = pair.public_key().as_ref();
        let id = thumbprint(point);
        let public = PublicKey::P256(point.into());
        let public = Key::new(Some(id.clone()), public, Some(Algorithm::Es256))?;
        Ok(Self { pair, public, id })
    }

    /// DER.
    pub fn to_pkcs8(&self) -> Result<Secret, SigningError> {
        let der = self.pair.to_pkcs8v1().map_err(|_| SigningError::Crypto)?;
        Ok(Secret::new(der.as_ref().to_vec()))
    }

    /// The `kid` of its tokens: the key's thumbprint, so that no two keys share one.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What its tokens are verified with.
    pub fn public(&self) -> &Key {
        &self.public
    }

    /// A JWT-SVID in compact form.
    pub fn sign(&self, statement: &Statement<'_>) -> Result<Secret, SigningError> {
        let encode = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = encode(serde_json::json!({ "alg": "ES256", "kid": self.id, "typ": "JWT" }));
        let payload = encode(serde_json::json!({
            "sub": statement.subject.as_str(),
            "aud": statement.audiences,
            "iat": statement.issued.as_secs(),
            "exp": statement.expires.as_secs(),
            "jti": statement.token_id,
        }));
        let mut token = format!("{header}.{payload}");
        let signature = self.pair.sign(&SystemRandom::new(), token.as_bytes());
        let signature = signature.map_err(|_| SigningError::Crypto)?;
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(signature));
        Ok(Secret::from(token))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// RFC 7638, of an uncompressed point.
fn thumbprint(point: &[u8]) -> String {
    let half = |which: usize| {
        let coordinates = point.get(1..).unwrap_or_default();
        let half = coordinates.chunks_exact(32).nth(which);
        URL_SAFE_NO_PAD.encode(half.unwrap_or_default())
    };
    let (x, y) = (half(0), half(1));
    let members = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
    URL_SAFE_NO_PAD.encode(digest(&SHA256, members.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TrustDomain;
    use crate::jwt::{Keys, Refusal, svid};
    use crate::testing::{NOW, at, id};

    const ORDERS: &str = "spiffe://mesh.example/ns/shop/sa/orders";

    fn signed(key: &SigningKey) -> String {
        let statement = Statement {
            subject: &id(ORDERS),
            audiences: &["ledger".to_owned(), "mail".to_owned()],
            issued: at(NOW),
            expires: at(NOW + 300),
            token_id: "0123",
        };
        let token = key.sign(&statement).unwrap();
        token.expose_str().unwrap().to_owned()
    }

    fn verified(token: &str, audience: &str, keys: &Keys) -> Result<svid::JwtSvid, Refusal> {
        let own: TrustDomain = "mesh.example".parse().unwrap();
        svid::verify(
            token,
            audience,
            &|domain| (*domain == own).then_some(keys),
            at(NOW),
        )
    }

    #[test]
    fn what_a_key_signs_is_verified_by_its_public_half_and_by_no_other() {
        let (key, other) = (
            SigningKey::generate().unwrap(),
            SigningKey::generate().unwrap(),
        );
        let keys = Keys::new(vec![key.public().clone()]).unwrap();
        let token = signed(&key);
        for audience in ["ledger", "mail"] {
            let svid = verified(&token, audience, &keys).unwrap();
            assert_eq!(svid.id().as_str(), ORDERS);
            assert_eq!(svid.claims().id.as_deref(), Some("0123"));
        }
        assert!(matches!(
            verified(&token, "bank", &keys),
            Err(Refusal::WrongAudience { .. })
        ));
        assert!(matches!(
            verified(&signed(&other), "ledger", &keys),
            Err(Refusal::UnknownKey { .. })
        ));
    }

    #[test]
    fn a_stored_key_is_the_same_key_with_the_same_id() {
        let key = SigningKey::generate().unwrap();
        let again = SigningKey::from_pkcs8(key.to_pkcs8().unwrap().expose()).unwrap();
        assert_eq!(again.public(), key.public());
        assert_eq!(again.id(), key.id());
        let set = Keys::new(vec![key.public().clone()])
            .unwrap()
            .to_json("jwt-svid");
        let read = Keys::parse(set.as_bytes(), crate::jwt::Purpose::JwtSvids).unwrap();
        assert!(verified(&signed(&again), "ledger", &read).is_ok());
        assert_eq!(
            SigningKey::from_pkcs8(b"no key").unwrap_err(),
            SigningError::NotAKey
        );
    }

    /// The example of a key on P-256 in RFC 7517, appendix A.1, hashed as RFC 7638 says by Python's hashlib.
    #[test]
    fn the_id_is_the_thumbprint_others_calculate() {
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
        let point = [
            vec![4],
            decode("MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4"),
            decode("4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"),
        ]
        .concat();
        assert_eq!(
            thumbprint(&point),
            "cn-I_WNMClehiVp51i_0VpOENW1upEerA8sEam5hn-s"
        );
    }

    #[test]
    fn a_key_does_not_show_itself() {
        let key = SigningKey::generate().unwrap();
        let shown = format!("{key:?}");
        assert!(
            shown.contains(key.id()) && shown.ends_with(".. }"),
            "{shown}"
        );
    }
}
