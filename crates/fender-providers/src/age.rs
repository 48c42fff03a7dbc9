//! A secret in a file that age encrypted, and the format that SOPS keeps its keys in: age v1, binary or armoured, for
//! recipients of the kind X25519 (<https://c2sp.org/age>; the reference is `filippo.io/age`).
//!
//! It is opened whole or not at all: nothing of a file that was cut off or changed is ever used. A passphrase is asked of
//! nobody, no plug-in is run, nothing is decompressed, and nothing is encrypted. Every bound is on what is read, before it is read.

mod armor;
mod header;
mod identity;
mod stream;

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use aws_lc_rs::hmac;
use fender_config::snapshot::AgeSecret;
use fender_identity::Secret;
use zeroize::{Zeroize as _, Zeroizing};

use crate::file::LIMIT;
use crate::known::Known;
use crate::sealed::Pair;
use crate::{FetchError, Fetched, Source};

pub(crate) use identity::Identities;

const TAG: usize = 16;

/// A file that age encrypted. What it opens as has at most 1 MiB, is not empty, and is the same for all who name it.
#[derive(Debug)]
pub struct AgeSource {
    pair: Arc<Pair<Secret>>,
    known: Known,
}

impl AgeSource {
    pub(crate) fn new(pair: Arc<Pair<Secret>>) -> Self {
        let known = Known::default();
        Self { pair, known }
    }
}

impl Source for AgeSource {
    async fn fetch(&self) -> Result<Fetched, FetchError> {
        let value = self.pair.read().await?;
        Ok(self.known.fetched((*value).clone()))
    }

    fn interval(&self) -> std::time::Duration {
        crate::file::INTERVAL
    }
}

/// What `secret` names, opened.
pub(crate) fn open_file(
    secret: &AgeSecret,
    file: &Secret,
    identity: &Secret,
) -> Result<Secret, FetchError> {
    let identities = identities(&secret.identity, identity)?;
    let name = secret.file.display();
    let limit = usize::try_from(LIMIT).unwrap_or(usize::MAX);
    let value = open(file.expose(), &identities, limit).map_err(|error| error.of(&name))?;
    match value.is_empty() {
        true => Err(FetchError::Malformed(format!("`{name}` opens as nothing"))),
        false => Ok(value),
    }
}

/// What opens, of the file at `path`.
pub(crate) fn identities(path: &std::path::Path, file: &Secret) -> Result<Identities, FetchError> {
    let name = path.display();
    Identities::read(file).map_err(|error| FetchError::Malformed(format!("`{name}` {error}")))
}

/// Why a file was not opened. The text says what is wrong with the file, which it does not name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unopened {
    /// It is for none of the identities.
    NotForUs(String),
    /// It is not what age writes, or not any more.
    Malformed(String),
}

impl Unopened {
    fn malformed(why: &str) -> Self {
        Self::Malformed(why.to_owned())
    }

    pub(crate) fn of(self, name: &dyn fmt::Display) -> FetchError {
        match self {
            Self::NotForUs(why) => FetchError::Denied(format!("`{name}` {why}")),
            Self::Malformed(why) => FetchError::Malformed(format!("`{name}` {why}")),
        }
    }
}

/// What is in `file`, of at most `limit` bytes, if it is for one of `identities`.
pub(crate) fn open(file: &[u8], identities: &Identities, limit: usize) -> Result<Secret, Unopened> {
    let stripped;
    let file = match armor::is_armour(file) {
        true => {
            stripped = armor::strip(file)?;
            stripped.as_slice()
        }
        false => file,
    };
    let (header, payload) = header::read(file)?;
    if header.stanzas.iter().any(|stanza| stanza.kind == "scrypt") {
        return Err(Unopened::malformed(
            "is encrypted with a passphrase, and nobody is there to type it; encrypt it for a recipient: `age -r`",
        ));
    }
    let Some(key) = identities.unwrap(&header.stanzas)? else {
        return Err(Unopened::NotForUs(for_whom(&header)));
    };
    let proving = hkdf(key.expose(), &[], b"header")?;
    let proving = hmac::Key::new(hmac::HMAC_SHA256, &*proving);
    hmac::verify(&proving, header.proven, &header.proof)
        .map_err(|_| Unopened::malformed("has a header that somebody has changed"))?;
    stream::open(&key, payload, limit)
}

/// Which kinds of recipients it is for, none of them us.
fn for_whom(header: &header::Header<'_>) -> String {
    let mut others: Vec<_> = header.stanzas.iter().map(|stanza| stanza.kind).collect();
    // Age itself puts words there that mean nothing, so that nobody counts on there being none.
    others.retain(|kind| *kind != "X25519" && !kind.ends_with("-grease"));
    others.sort_unstable();
    others.dedup();
    let none = "is encrypted for none of the identities";
    match others.first() {
        None => none.to_owned(),
        Some(kind) => {
            let kind: String = kind.chars().take(32).collect();
            format!("{none}; recipients of the kind `{kind}` are not read, only those of `age1…`")
        }
    }
}

/// What one file is encrypted with.
struct FileKey(Zeroizing<[u8; FileKey::LENGTH]>);

impl FileKey {
    const LENGTH: usize = 16;

    fn new(bytes: &mut [u8]) -> Option<Self> {
        let key = (&*bytes)
            .try_into()
            .ok()
            .map(|key| Self(Zeroizing::new(key)));
        bytes.zeroize();
        key
    }

    fn expose(&self) -> &[u8] {
        &*self.0
    }
}

/// HKDF with SHA-256.
fn hkdf(secret: &[u8], salt: &[u8], info: &[u8]) -> Result<Zeroizing<[u8; 32]>, Unopened> {
    let extracted = Salt::new(HKDF_SHA256, salt).extract(secret);
    let mut key = Zeroizing::new([0; 32]);
    let info = [info];
    let expanded = extracted.expand(&info, HKDF_SHA256);
    let filled = expanded.and_then(|okm| okm.fill(&mut *key));
    // 32 bytes are less than it gives at most; but a key of zeros must never be one.
    filled.map_err(|_| Unopened::malformed("cannot be opened: no key could be derived"))?;
    Ok(key)
}

struct Aead(Option<LessSafeKey>);

/// ChaCha20-Poly1305.
fn aead(key: &[u8; 32]) -> Aead {
    Aead(
        UnboundKey::new(&CHACHA20_POLY1305, key)
            .ok()
            .map(LessSafeKey::new),
    )
}

impl Aead {
    /// What was sealed in `bytes`, in their place.
    fn open<'a>(&self, nonce: &[u8; 12], bytes: &'a mut [u8]) -> Option<&'a mut [u8]> {
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let key = self.0.as_ref()?;
        key.open_in_place(nonce, Aad::empty(), bytes).ok()
    }
}

#[cfg(test)]
mod tests;
