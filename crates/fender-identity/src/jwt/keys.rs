//! The keys somebody signs tokens with, as they publish them: a JSON Web Key Set.
//!
//! Only public keys that can verify come in: RSA of at least 2048 bits, ECDSA on P-256, P-384 and
//! P-521, and Ed25519 where asked for. What else a set holds (a shared secret, a curve we do not
//! know, a key for encryption) is passed over, as RFC 7517 has it. A key id that is there twice
//! makes the whole set unusable: nobody could say which key was meant.
//!
//! <https://www.rfc-editor.org/rfc/rfc7517>, <https://www.rfc-editor.org/rfc/rfc7518>

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use aws_lc_rs::signature::{
    self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::Refusal;
use super::json::{self, JsonError, Object, Value};
use crate::spiffe::excerpt;

/// The largest set that is looked at.
pub const MAX_SET: usize = 256 * 1024;
const MAX_KEYS: usize = 128;
const MAX_KEY_ID: usize = 256;

const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Which keys of a set count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// For signatures, RSA and ECDSA.
    Signatures,
    /// Those, and Ed25519.
    SignaturesAndEd25519,
    /// For JWT-SVIDs: a SPIFFE bundle says which keys are. It may hold none yet.
    JwtSvids,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
    EdDsa,
}

impl Algorithm {
    const NAMES: [(Self, &'static str); 10] = [
        (Self::Rs256, "RS256"),
        (Self::Rs384, "RS384"),
        (Self::Rs512, "RS512"),
        (Self::Ps256, "PS256"),
        (Self::Ps384, "PS384"),
        (Self::Ps512, "PS512"),
        (Self::Es256, "ES256"),
        (Self::Es384, "ES384"),
        (Self::Es512, "ES512"),
        (Self::EdDsa, "EdDSA"),
    ];

    const RSA: &[Self] = &[
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
    ];
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = Self::NAMES.iter().find(|(algorithm, _)| algorithm == self);
        f.write_str(named.map_or("", |(_, name)| name))
    }
}

/// `none` and the HMAC family have no value here.
impl FromStr for Algorithm {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let named = Self::NAMES.iter().find(|(_, name)| *name == text);
        named
            .map(|(algorithm, _)| *algorithm)
            .ok_or_else(|| Refusal::Algorithm {
                algorithm: excerpt(text),
            })
    }
}

/// A public key of a type we verify with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicKey {
    /// Big-endian, without leading zeros.
    Rsa {
        modulus: Box<[u8]>,
        exponent: Box<[u8]>,
    },
    /// Uncompressed points: 4, x, y.
    P256(Box<[u8]>),
    P384(Box<[u8]>),
    P521(Box<[u8]>),
    Ed25519(Box<[u8]>),
}

impl PublicKey {
    /// With which algorithms a key of this type may be used.
    fn algorithms(&self) -> &'static [Algorithm] {
        match self {
            Self::Rsa { .. } => Algorithm::RSA,
            Self::P256(_) => &[Algorithm::Es256],
            Self::P384(_) => &[Algorithm::Es384],
            Self::P521(_) => &[Algorithm::Es512],
            Self::Ed25519(_) => &[Algorithm::EdDsa],
        }
    }

    fn check(&self) -> Result<(), KeyError> {
        let on_curve = |algorithm: &'static dyn VerificationAlgorithm, point: &[u8]| {
            UnparsedPublicKey::new(algorithm, point)
                .parse()
                .map(drop)
                .map_err(|_| KeyError::Point)
        };
        match self {
            Self::Rsa { modulus, exponent } => check_rsa(modulus, exponent),
            Self::P256(point) => on_curve(&signature::ECDSA_P256_SHA256_FIXED, point),
            Self::P384(point) => on_curve(&signature::ECDSA_P384_SHA384_FIXED, point),
            Self::P521(point) => on_curve(&signature::ECDSA_P521_SHA512_FIXED, point),
            Self::Ed25519(point) => on_curve(&signature::ED25519, point),
        }
    }
}

/// One key of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    id: Option<String>,
    public: PublicKey,
    /// What the set says, or all that its type can.
    algorithms: Vec<Algorithm>,
}

impl Key {
    /// For `only` that algorithm, or for all that its type can.
    pub fn new(
        id: Option<String>,
        public: PublicKey,
        only: Option<Algorithm>,
    ) -> Result<Self, KeyError> {
        if id
            .as_ref()
            .is_some_and(|id| id.is_empty() || id.len() > MAX_KEY_ID)
        {
            return Err(KeyError::Id);
        }
        public.check()?;
        let algorithms = match only {
            None => public.algorithms().to_vec(),
            Some(only) if public.algorithms().contains(&only) => vec![only],
            Some(algorithm) => return Err(KeyError::Algorithm { algorithm }),
        };
        Ok(Self {
            id,
            public,
            algorithms,
        })
    }

    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The algorithm a header names, if this key is for it.
    pub(super) fn allow(&self, named: &str) -> Result<Algorithm, Refusal> {
        let algorithm = named.parse()?;
        if self.algorithms.contains(&algorithm) {
            Ok(algorithm)
        } else {
            Err(Refusal::AlgorithmOfAnotherKey { algorithm })
        }
    }

    pub(super) fn verifies(&self, algorithm: Algorithm, message: &[u8], signed: &[u8]) -> bool {
        let with = |with: &'static dyn VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(with, key).verify(message, signed)
        };
        let verified = match &self.public {
            PublicKey::Rsa { modulus, exponent } => {
                let key = RsaPublicKeyComponents {
                    n: modulus,
                    e: exponent,
                };
                match rsa_parameters(algorithm) {
                    Some(parameters) => key.verify(parameters, message, signed),
                    None => return false,
                }
            }
            // Signatures of fixed length, as JWS has them; the form that X.509 uses does not fit.
            PublicKey::P256(point) => with(&signature::ECDSA_P256_SHA256_FIXED, point),
            PublicKey::P384(point) => with(&signature::ECDSA_P384_SHA384_FIXED, point),
            PublicKey::P521(point) => with(&signature::ECDSA_P521_SHA512_FIXED, point),
            PublicKey::Ed25519(point) => with(&signature::ED25519, point),
        };
        verified.is_ok()
    }
}

fn rsa_parameters(algorithm: Algorithm) -> Option<&'static RsaParameters> {
    match algorithm {
        Algorithm::Rs256 => Some(&signature::RSA_PKCS1_2048_8192_SHA256),
        Algorithm::Rs384 => Some(&signature::RSA_PKCS1_2048_8192_SHA384),
        Algorithm::Rs512 => Some(&signature::RSA_PKCS1_2048_8192_SHA512),
        Algorithm::Ps256 => Some(&signature::RSA_PSS_2048_8192_SHA256),
        Algorithm::Ps384 => Some(&signature::RSA_PSS_2048_8192_SHA384),
        Algorithm::Ps512 => Some(&signature::RSA_PSS_2048_8192_SHA512),
        Algorithm::Es256 | Algorithm::Es384 | Algorithm::Es512 | Algorithm::EdDsa => None,
    }
}

/// The keys of one issuer; no key id is in it twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    keys: Vec<Key>,
    passed_over: usize,
}

impl Keys {
    pub fn new(keys: Vec<Key>) -> Result<Self, KeysError> {
        if keys.len() > MAX_KEYS {
            return Err(KeysError::TooMany { count: keys.len() });
        }
        let mut ids = BTreeSet::new();
        if let Some(twice) = keys.iter().filter_map(Key::id).find(|id| !ids.insert(*id)) {
            return Err(KeysError::IdTwice { id: excerpt(twice) });
        }
        Ok(Self {
            keys,
            passed_over: 0,
        })
    }

    /// Reads a JSON Web Key Set.
    pub fn parse(text: &[u8], purpose: Purpose) -> Result<Self, KeysError> {
        if text.len() > MAX_SET {
            return Err(KeysError::TooLarge { length: text.len() });
        }
        let set = json::object(text).map_err(KeysError::Json)?;
        let Some(Value::List(entries)) = set.get("keys") else {
            return Err(KeysError::NotASet);
        };
        if entries.len() > MAX_KEYS {
            return Err(KeysError::TooMany {
                count: entries.len(),
            });
        }
        let mut ids = BTreeSet::new();
        let mut keys = Vec::new();
        for (entry, number) in entries.iter().zip(1..) {
            let entry = entry.as_object().ok_or(KeysError::NotAKey { number })?;
            if !purpose.wants(entry) {
                continue;
            }
            // Also of keys we pass over: their id would be as ambiguous.
            if let Some(Value::Text(id)) = entry.get("kid")
                && !ids.insert(id)
            {
                return Err(KeysError::IdTwice { id: excerpt(id) });
            }
            if let Some(key) = read_key(entry, purpose) {
                keys.push(key);
            }
        }
        if keys.is_empty() && purpose != Purpose::JwtSvids {
            return Err(KeysError::Empty);
        }
        Ok(Self {
            passed_over: entries.len() - keys.len(),
            keys,
        })
    }

    /// As a JSON Web Key Set; `usage` is the `use` of every key.
    pub fn to_json(&self, usage: &str) -> String {
        let keys: Vec<_> = self.keys.iter().map(|key| write_key(key, usage)).collect();
        serde_json::json!({ "keys": keys }).to_string()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Key> {
        self.keys.iter()
    }

    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// How many entries of the set are no key we verify with.
    pub fn passed_over(&self) -> usize {
        self.passed_over
    }

    /// The key a header names. Without a name there must be only one to choose from.
    pub(super) fn find(&self, id: Option<&str>) -> Result<&Key, Refusal> {
        match (id, self.keys.as_slice()) {
            (Some(id), keys) => {
                let named = keys.iter().find(|key| key.id() == Some(id));
                named.ok_or_else(|| Refusal::UnknownKey { id: excerpt(id) })
            }
            (None, [only]) => Ok(only),
            (None, _) => Err(Refusal::NoKeyId),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    #[error("key set of {length} bytes is larger than {MAX_SET}")]
    TooLarge { length: usize },
    #[error("key set is not read: {0}")]
    Json(JsonError),
    #[error("key set has no list `keys`")]
    NotASet,
    #[error("key set holds {count} keys, more than {MAX_KEYS}")]
    TooMany { count: usize },
    #[error("entry {number} of the key set is not an object")]
    NotAKey { number: usize },
    #[error("two keys of the set have the id `{id}`, so nobody could say which is meant")]
    IdTwice { id: String },
    #[error("key set holds no key to verify signatures with")]
    Empty,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    #[error("id of the key is empty or longer than {MAX_KEY_ID} bytes")]
    Id,
    #[error("RSA key is not of 2048 to 8192 bits, or its exponent is not an odd number above 2")]
    Rsa,
    #[error("key is not a point on its curve")]
    Point,
    #[error("key is not of a type that signs with {algorithm}")]
    Algorithm { algorithm: Algorithm },
}

impl Purpose {
    fn wants(self, entry: &Object) -> bool {
        let named = match entry.get("use") {
            None => None,
            Some(value) => match value.as_text() {
                Some(text) => Some(text),
                None => return false,
            },
        };
        match self {
            Self::Signatures | Self::SignaturesAndEd25519 => named.is_none_or(|use_| use_ == "sig"),
            Self::JwtSvids => named == Some("jwt-svid"),
        }
    }
}

/// A key that may and can verify; nothing if it is not one.
fn read_key(entry: &Object, purpose: Purpose) -> Option<Key> {
    if let Some(operations) = entry.get("key_ops") {
        let Value::List(operations) = operations else {
            return None;
        };
        let verify = |operation: &Value| operation.as_text() == Some("verify");
        if !operations.iter().any(verify) {
            return None;
        }
    }
    let text = |name: &str| entry.get(name).and_then(Value::as_text);
    let bytes = |name: &str| URL_SAFE_NO_PAD.decode(text(name)?).ok();
    let point = |size: usize| {
        let (x, y) = (bytes("x")?, bytes("y")?);
        let sized = x.len() == size && y.len() == size;
        sized.then(|| [&[4], x.as_slice(), y.as_slice()].concat().into())
    };
    let public = match (text("kty")?, text("crv")) {
        ("RSA", None) => PublicKey::Rsa {
            modulus: bytes("n")?.into(),
            exponent: bytes("e")?.into(),
        },
        ("EC", Some("P-256")) => PublicKey::P256(point(32)?),
        ("EC", Some("P-384")) => PublicKey::P384(point(48)?),
        ("EC", Some("P-521")) => PublicKey::P521(point(66)?),
        ("OKP", Some("Ed25519")) if purpose == Purpose::SignaturesAndEd25519 => {
            PublicKey::Ed25519(bytes("x")?.into())
        }
        _ => return None,
    };
    let only = match entry.get("alg") {
        None => None,
        Some(named) => Some(named.as_text()?.parse().ok()?),
    };
    let id = match entry.get("kid") {
        None if purpose == Purpose::JwtSvids => return None,
        None => None,
        Some(id) => Some(id.as_text()?.to_owned()),
    };
    Key::new(id, public, only).ok()
}

fn write_key(key: &Key, usage: &str) -> serde_json::Value {
    let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let half = |point: &[u8], which: usize| {
        let coordinates = point.get(1..).unwrap_or_default();
        let half = coordinates
            .chunks_exact((coordinates.len() / 2).max(1))
            .nth(which);
        text(half.unwrap_or_default())
    };
    let curve = |name: &str, point: &[u8]| serde_json::json!({ "kty": "EC", "crv": name, "x": half(point, 0), "y": half(point, 1) });
    let mut written = match &key.public {
        PublicKey::Rsa { modulus, exponent } => {
            serde_json::json!({ "kty": "RSA", "n": text(modulus), "e": text(exponent) })
        }
        PublicKey::P256(point) => curve("P-256", point),
        PublicKey::P384(point) => curve("P-384", point),
        PublicKey::P521(point) => curve("P-521", point),
        PublicKey::Ed25519(point) => {
            serde_json::json!({ "kty": "OKP", "crv": "Ed25519", "x": text(point) })
        }
    };
    let mut set = |name: &str, value: String| {
        if let Some(members) = written.as_object_mut() {
            members.insert(name.to_owned(), value.into());
        }
    };
    set("use", usage.to_owned());
    if let Some(id) = &key.id {
        set("kid", id.clone());
    }
    if let [only] = key.algorithms.as_slice() {
        set("alg", only.to_string());
    }
    written
}

fn check_rsa(modulus: &[u8], exponent: &[u8]) -> Result<(), KeyError> {
    let leading = modulus.first().map_or(0, |first| first.leading_zeros());
    let bits = (modulus.len() * 8).saturating_sub(leading as usize);
    let minimal = |bytes: &[u8]| bytes.first().is_some_and(|first| *first != 0);
    let odd = |bytes: &[u8]| bytes.last().is_some_and(|last| last % 2 == 1);
    let above_two = exponent.len() > 1 || exponent.first().is_some_and(|only| *only > 2);
    let fits = RSA_BITS.contains(&bits) && exponent.len() <= 4;
    let sound = minimal(modulus) && minimal(exponent) && odd(modulus) && odd(exponent) && above_two;
    if fits && sound {
        Ok(())
    } else {
        Err(KeyError::Rsa)
    }
}
