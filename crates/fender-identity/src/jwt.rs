//! Is this token signed by one of these keys, for us, and good now? One function, in numbered steps.
//!
//! JSON Web Tokens in compact form, signed with RSA, ECDSA or, where asked for, Ed25519. The key says
//! with which algorithms it may be used; the header only names one of them, and `none` and the HMAC
//! family are in no key's list. Nothing is fetched: `jku`, `x5u`, `jwk` and `x5c` in a header are
//! somebody's wish and not looked at. No token is encrypted here, none holds another, and none is
//! accepted without an end, an issuer and an audience.
//!
//! <https://www.rfc-editor.org/rfc/rfc7519>, with the lessons of <https://www.rfc-editor.org/rfc/rfc8725>.

mod bundles;
mod json;
mod keys;
mod sign;
pub mod svid;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls_pki_types::UnixTime;

pub use bundles::JwtBundles;
pub use json::{JsonError, Object, Value, object as parse_object};
pub use keys::{Algorithm, Key, KeyError, Keys, KeysError, MAX_SET, PublicKey, Purpose};
pub use sign::{SigningError, SigningKey, Statement};

use crate::spiffe::excerpt;
use crate::{SpiffeIdError, TrustDomain};

/// The longest token that is looked at.
pub const MAX_TOKEN: usize = 16 * 1024;

/// How far the clocks of issuer and reader may lie apart.
pub const SKEW: Duration = Duration::from_secs(60);

/// The end of the year 9999: no honest time lies beyond.
const MAX_TIME: u64 = 253_402_300_799;

/// What the reader of a token expects of it.
#[derive(Clone, Copy, Debug)]
pub struct Expectations<'a> {
    /// Compared byte by byte: a slash at the end makes another issuer.
    pub issuer: &'a str,
    pub audience: Audience<'a>,
}

/// For whom a token must be made.
#[derive(Clone, Copy, Debug)]
pub enum Audience<'a> {
    /// For this reader and nobody else: whoever else may read it could show it here.
    Only(&'a str),
    /// For one of these, whoever else it may be for. An empty list accepts none.
    OneOf(&'a [String]),
}

/// What a verified token says.
#[derive(Clone, Debug, PartialEq)]
pub struct Claims {
    pub issuer: Option<String>,
    pub subject: Option<String>,
    /// Never empty.
    pub audiences: Vec<String>,
    pub expires: UnixTime,
    pub not_before: Option<UnixTime>,
    pub issued: Option<UnixTime>,
    pub id: Option<String>,
    all: Object,
}

impl Claims {
    /// As the token says them.
    pub fn all(&self) -> &Object {
        &self.all
    }

    /// The claim reached by these names, each a member of the one before.
    pub fn at(&self, path: &[&str]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        let first = self.all.get(*first)?;
        rest.iter()
            .try_fold(first, |value, name| value.member(name))
    }

    /// The text reached by these names.
    pub fn text_at(&self, path: &[&str]) -> Option<&str> {
        self.at(path)?.as_text()
    }
}

/// The claims of `token`, if one of `keys` signed them, they are good `now` and meet `expected`.
pub fn verify(
    token: &str,
    keys: &Keys,
    now: UnixTime,
    expected: &Expectations<'_>,
) -> Result<Claims, Refusal> {
    // 1. Three parts, small, each the one way to write its bytes.
    let parts = Parts::split(token)?;
    // 2. A header that asks for nothing we do not do.
    let header = Header::read(&parts.header)?;
    header.check_type(&["JWT", "at+jwt"])?;
    // 3. The one key it names, which must allow the algorithm it names.
    let key = keys.find(header.key_id.as_deref())?;
    let algorithm = key.allow(&header.algorithm)?;
    // 4. The signature, before a byte of what it covers is believed.
    if !key.verifies(algorithm, parts.signed, &parts.signature) {
        return Err(Refusal::WrongSignature);
    }
    // 5. Claims, and the time.
    let claims = read_claims(&parts.payload)?;
    check_time(&claims, now)?;
    // 6. From whom and for whom.
    check_issuer(&claims, expected.issuer)?;
    check_audience(&claims, expected.audience)?;
    Ok(claims)
}

/// What a token claims that somebody else is to verify: worth asking about, and no more.
#[derive(Clone, Debug, PartialEq)]
pub struct Unverified(Claims);

impl Unverified {
    /// Whoever calls this has been told by somebody they trust that the token is genuine.
    pub fn vouched_for(self) -> Claims {
        self.0
    }
}

/// Everything [`verify`] looks at but the signature: so that a token which could not be accepted is
/// not shown to anybody.
pub fn unverified(
    token: &str,
    now: UnixTime,
    expected: &Expectations<'_>,
) -> Result<Unverified, Refusal> {
    let parts = Parts::split(token)?;
    Header::read(&parts.header)?.check_type(&["JWT", "at+jwt"])?;
    let claims = read_claims(&parts.payload)?;
    check_time(&claims, now)?;
    check_issuer(&claims, expected.issuer)?;
    check_audience(&claims, expected.audience)?;
    Ok(Unverified(claims))
}

/// Why a token proves nothing. For our own log: the bearer learns only that it was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    #[error("token of {length} bytes is longer than {MAX_TOKEN}")]
    TooLong { length: usize },
    #[error("token has {found} parts where a signed one has three")]
    NotThreeParts { found: usize },
    #[error("{part} of the token is not base64url, without padding, written the one right way")]
    NotBase64 { part: Part },
    #[error("{part} of the token is not read: {why}")]
    NotJson { part: Part, why: JsonError },
    #[error("`{name}` in the {part} of the token {problem}")]
    Member {
        part: Part,
        name: &'static str,
        problem: &'static str,
    },
    #[error("token is of type `{found}`, which is not a token for this use")]
    Type { found: String },
    #[error("header of the token has `{name}`, which is not allowed here")]
    Header { name: String },
    #[error("token is signed with `{algorithm}`, which is never accepted")]
    Algorithm { algorithm: String },
    #[error("token is signed with `{algorithm}`, for which its key is not")]
    AlgorithmOfAnotherKey { algorithm: Algorithm },
    #[error("token names no key, and there is more than one")]
    NoKeyId,
    #[error("token is signed with a key we do not know, `{id}`")]
    UnknownKey { id: String },
    #[error("signature of the token is wrong")]
    WrongSignature,
    #[error("token has no `{name}`")]
    Missing { name: &'static str },
    #[error("token expired {} s ago", now.as_secs().saturating_sub(expires.as_secs()))]
    Expired { expires: UnixTime, now: UnixTime },
    #[error(
        "token becomes valid in {} s; are the clocks right?",
        not_before.as_secs().saturating_sub(now.as_secs())
    )]
    NotYetValid { not_before: UnixTime, now: UnixTime },
    #[error("token expires before it was issued")]
    Backwards,
    #[error("token is from the issuer `{found}`")]
    WrongIssuer { found: String },
    #[error("token is for {found}")]
    WrongAudience { found: String },
    #[error("subject of the token is not an identity: {0}")]
    NotSpiffe(SpiffeIdError),
    #[error("no keys for tokens of the trust domain `{0}`")]
    ForeignTrustDomain(TrustDomain),
}

impl Refusal {
    /// Could newer keys of the issuer change the answer? Only this justifies asking for them.
    pub fn newer_keys_might_help(&self) -> bool {
        matches!(self, Self::UnknownKey { .. })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Header,
    Payload,
    Signature,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Header => "header",
            Self::Payload => "payload",
            Self::Signature => "signature",
        })
    }
}

/// A token taken apart; nothing in it is believed yet.
struct Parts<'a> {
    header: Vec<u8>,
    payload: Vec<u8>,
    signature: Vec<u8>,
    /// What the signature covers, as it was sent.
    signed: &'a [u8],
}

impl<'a> Parts<'a> {
    fn split(token: &'a str) -> Result<Self, Refusal> {
        if token.len() > MAX_TOKEN {
            return Err(Refusal::TooLong {
                length: token.len(),
            });
        }
        let found = token.split('.').count();
        let (Some((signed, signature)), 3) = (token.rsplit_once('.'), found) else {
            return Err(Refusal::NotThreeParts { found });
        };
        let (header, payload) = signed.split_once('.').unwrap_or_default();
        Ok(Self {
            header: decode(header, Part::Header)?,
            payload: decode(payload, Part::Payload)?,
            signature: decode(signature, Part::Signature)?,
            signed: signed.as_bytes(),
        })
    }
}

fn decode(text: &str, part: Part) -> Result<Vec<u8>, Refusal> {
    // Refuses padding and bits left over, so that no two texts are one token.
    URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| Refusal::NotBase64 { part })
}

fn read_object(bytes: &[u8], part: Part) -> Result<Object, Refusal> {
    json::object(bytes).map_err(|why| Refusal::NotJson { part, why })
}

struct Header {
    algorithm: String,
    key_id: Option<String>,
    kind: Option<String>,
    all: Object,
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Self, Refusal> {
        let all = read_object(bytes, Part::Header)?;
        // An extension that must be understood, and a payload that is a token again.
        for name in ["crit", "cty", "enc", "zip"] {
            if all.contains_key(name) {
                return Err(Refusal::Header {
                    name: name.to_owned(),
                });
            }
        }
        let text = |name| text(&all, Part::Header, name);
        Ok(Self {
            algorithm: text("alg")?.ok_or(Refusal::Missing { name: "alg" })?,
            key_id: text("kid")?,
            kind: text("typ")?,
            all,
        })
    }

    fn only(&self, allowed: &[&str]) -> Result<(), Refusal> {
        match self
            .all
            .keys()
            .find(|name| !allowed.contains(&name.as_str()))
        {
            Some(name) => Err(Refusal::Header {
                name: excerpt(name),
            }),
            None => Ok(()),
        }
    }

    /// RFC 8725 3.11: a token made for one use is none for another.
    fn check_type(&self, known: &[&str]) -> Result<(), Refusal> {
        match &self.kind {
            Some(kind) if !known.iter().any(|known| known.eq_ignore_ascii_case(kind)) => {
                Err(Refusal::Type {
                    found: excerpt(kind),
                })
            }
            Some(_) | None => Ok(()),
        }
    }
}

fn read_claims(payload: &[u8]) -> Result<Claims, Refusal> {
    let all = read_object(payload, Part::Payload)?;
    let text = |name| text(&all, Part::Payload, name);
    let time = |name| time(&all, name);
    Ok(Claims {
        issuer: text("iss")?,
        subject: text("sub")?,
        audiences: audiences(&all)?,
        expires: time("exp")?.ok_or(Refusal::Missing { name: "exp" })?,
        not_before: time("nbf")?,
        issued: time("iat")?,
        id: text("jti")?,
        all,
    })
}

fn check_time(claims: &Claims, now: UnixTime) -> Result<(), Refusal> {
    let (now_seconds, skew) = (now.as_secs(), SKEW.as_secs());
    let expires = claims.expires;
    if now_seconds >= expires.as_secs().saturating_add(skew) {
        return Err(Refusal::Expired { expires, now });
    }
    for not_before in [claims.not_before, claims.issued].into_iter().flatten() {
        if not_before.as_secs() > now_seconds.saturating_add(skew) {
            return Err(Refusal::NotYetValid { not_before, now });
        }
        if not_before > expires {
            return Err(Refusal::Backwards);
        }
    }
    Ok(())
}

fn check_issuer(claims: &Claims, expected: &str) -> Result<(), Refusal> {
    let issuer = claims.issuer.as_deref();
    let issuer = issuer.ok_or(Refusal::Missing { name: "iss" })?;
    if issuer == expected {
        Ok(())
    } else {
        Err(Refusal::WrongIssuer {
            found: excerpt(issuer),
        })
    }
}

fn check_audience(claims: &Claims, expected: Audience<'_>) -> Result<(), Refusal> {
    let for_us = match expected {
        Audience::Only(reader) => claims.audiences == [reader],
        Audience::OneOf(readers) => claims.audiences.iter().any(|found| readers.contains(found)),
    };
    if for_us {
        return Ok(());
    }
    let found = match claims.audiences.as_slice() {
        [] => "nobody".to_owned(),
        [only] => format!("`{}`", excerpt(only)),
        [first, rest @ ..] => format!("`{}` and {} others", excerpt(first), rest.len()),
    };
    Err(Refusal::WrongAudience { found })
}

fn text(object: &Object, part: Part, name: &'static str) -> Result<Option<String>, Refusal> {
    let problem = "is not text";
    match object.get(name) {
        None => Ok(None),
        Some(value) => match value.as_text() {
            Some(text) => Ok(Some(text.to_owned())),
            None => Err(Refusal::Member {
                part,
                name,
                problem,
            }),
        },
    }
}

fn time(object: &Object, name: &'static str) -> Result<Option<UnixTime>, Refusal> {
    let Some(value) = object.get(name) else {
        return Ok(None);
    };
    match value.as_seconds() {
        Some(seconds) if seconds <= MAX_TIME => Ok(Some(UnixTime::since_unix_epoch(
            Duration::from_secs(seconds),
        ))),
        Some(_) | None => Err(Refusal::Member {
            part: Part::Payload,
            name,
            problem: "is not a number of seconds between 1970 and 9999",
        }),
    }
}

/// One text, or a list of them.
fn audiences(object: &Object) -> Result<Vec<String>, Refusal> {
    let wrong = || Refusal::Member {
        part: Part::Payload,
        name: "aud",
        problem: "is neither text nor a list of texts",
    };
    let value = object.get("aud").ok_or(Refusal::Missing { name: "aud" })?;
    let audiences: Option<Vec<String>> = match value {
        Value::Text(one) => Some(vec![one.clone()]),
        Value::List(several) => several
            .iter()
            .map(|one| one.as_text().map(str::to_owned))
            .collect(),
        Value::Null
        | Value::Bool(_)
        | Value::Integer(_)
        | Value::Fraction(_)
        | Value::Object(_) => None,
    };
    let audiences = audiences.ok_or_else(wrong)?;
    if audiences.is_empty() {
        return Err(Refusal::Missing { name: "aud" });
    }
    Ok(audiences)
}

#[cfg(test)]
mod tests;
