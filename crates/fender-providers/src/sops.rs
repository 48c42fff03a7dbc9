//! Secrets in files that SOPS encrypted for age recipients (<https://getsops.io>): YAML, JSON, dotenv, INI, and any file as one
//! value. The format is what `github.com/getsops/sops` writes, from version 3.7 on.
//!
//! A file is opened whole: every encrypted value by itself, bound to its place, and then the proof over all of them in their order.
//! Where the proof fails nothing of it is used, and there is no way not to look. Keys are had by age alone: no PGP, no key service
//! of a cloud, no key that is put together from several groups. Nothing is ever encrypted or written.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod checks;
mod cipher;
mod flat;
mod json;
mod metadata;
mod plain;
mod time;
mod value;
mod yaml;

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::{constant_time, digest};
use fender_config::snapshot::{SopsFile, SopsFormat, SopsSecret};
use fender_identity::Secret;

use crate::age::{self, Identities, Unopened};
use crate::file::LIMIT;
use crate::known::Known;
use crate::sealed::Pair;
use crate::{FetchError, Fetched, Source};

use cipher::Cipher;
use metadata::{Metadata, Which};
use value::Value;

/// What is set before the proof where it is of encrypted values alone, so that it is never that of all: SHA-256 of `sops`.
const ONLY_ENCRYPTED: &[u8] = &[
    0x8a, 0x3f, 0xd2, 0xad, 0x54, 0xce, 0x66, 0x52, 0x7b, 0x10, 0x34, 0xf3, 0xd1, 0x47, 0xbe, 0x0b,
    0x0b, 0x97, 0x5b, 0x3b, 0xf4, 0x4f, 0x72, 0xc6, 0xfd, 0xad, 0xec, 0x81, 0x76, 0xf2, 0x7d, 0x69,
];
const DATA_KEY: usize = 32;

/// A file that SOPS encrypted, or a part of it, of at most 1 MiB. The file is opened once for all of its parts.
#[derive(Debug)]
pub struct SopsSource {
    pair: Arc<Pair<Document>>,
    secret: SopsSecret,
    known: Known,
}

impl SopsSource {
    pub(crate) fn new(pair: Arc<Pair<Document>>, secret: SopsSecret) -> Self {
        Self {
            pair,
            secret,
            known: Known::default(),
        }
    }
}

impl Source for SopsSource {
    async fn fetch(&self) -> Result<Fetched, FetchError> {
        let document = self.pair.read().await?;
        Ok(self.known.fetched(document.value(&self.secret)?))
    }

    fn interval(&self) -> Duration {
        crate::file::INTERVAL
    }
}

/// What was opened and proven.
#[derive(Debug)]
pub(crate) struct Document(Value);

/// What is wrong with a file. The text is what follows its name, and holds nothing of what was encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault(String);

impl Fault {
    fn new(what: String) -> Self {
        Self(what)
    }

    fn of(what: &str) -> Self {
        Self(what.to_owned())
    }
}

/// Why a file was not opened.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Refused {
    NotForUs(String),
    Malformed(Fault),
}

impl From<Fault> for Refused {
    fn from(fault: Fault) -> Self {
        Self::Malformed(fault)
    }
}

/// The file at `file.path`, opened by the identities in `identity`.
pub(crate) fn open_file(
    file: &SopsFile,
    content: &Secret,
    identity: &Secret,
) -> Result<Document, FetchError> {
    let identities = age::identities(&file.identity, identity)?;
    let name = file.path.display();
    open(content.expose(), file.format, &identities).map_err(|refused| match refused {
        Refused::NotForUs(why) => FetchError::Denied(format!("`{name}` {why}")),
        Refused::Malformed(Fault(what)) => FetchError::Malformed(format!("`{name}` {what}")),
    })
}

fn open(content: &[u8], format: SopsFormat, identities: &Identities) -> Result<Document, Refused> {
    let (mut values, kept) = read(content, format)?;
    let metadata = Metadata::read(&kept)?;
    let key = data_key(&metadata, identities)?;
    let cipher = Cipher::new(key.expose());
    let cipher = cipher.ok_or_else(|| Fault::of("has a key that is none of AES-256"))?;
    let mut opening = Opening {
        cipher: &cipher,
        which: &metadata.which,
        proof: digest::Context::new(&digest::SHA512),
        only_encrypted: metadata.only_encrypted_proven,
    };
    if metadata.only_encrypted_proven {
        opening.proof.update(ONLY_ENCRYPTED);
    }
    opening.open(&mut values, &mut String::new(), false)?;
    let computed = opening.proof.finish();
    prove(&cipher, &metadata, computed.as_ref())?;
    Ok(Document(values))
}

/// The values, and what SOPS keeps beside them.
fn read(content: &[u8], format: SopsFormat) -> Result<(Value, Value), Fault> {
    let text = std::str::from_utf8(content).map_err(|_| Fault::of("is not UTF-8"))?;
    let document = match format {
        SopsFormat::Yaml => yaml::read(text),
        // A file of any kind is in an object of one field.
        SopsFormat::Json | SopsFormat::Binary => json::read(text),
        SopsFormat::Dotenv => flat::dotenv(text),
        SopsFormat::Ini => flat::ini(text),
    };
    let Value::Fields(mut fields) = document? else {
        return Err(Fault::of("has no fields"));
    };
    let kept = fields.iter().position(|(name, _)| name == "sops");
    let (_, kept) = kept
        .map(|at| fields.remove(at))
        .ok_or_else(|| Fault::of("was not encrypted by SOPS: it has no `sops`"))?;
    if format == SopsFormat::Ini {
        fields.retain(|(name, value)| {
            name != "DEFAULT" || !matches!(value, Value::Fields(fields) if fields.is_empty())
        });
    }
    Ok((Value::Fields(fields), kept))
}

/// What all values are encrypted with.
fn data_key(metadata: &Metadata, identities: &Identities) -> Result<Secret, Refused> {
    let mut refused = Refused::NotForUs("is encrypted for none of the identities".to_owned());
    for wrapped in &metadata.wrapped {
        match age::open(wrapped.as_bytes(), identities, DATA_KEY) {
            Ok(key) if key.len() == DATA_KEY => return Ok(key),
            Ok(_) => refused = Fault::of("has a key that is none of AES-256").into(),
            Err(Unopened::NotForUs(_)) => {}
            Err(Unopened::Malformed(why)) => {
                refused = Fault::new(format!("has a key that {why}")).into();
            }
        }
    }
    Err(refused)
}

/// The values of a file on their way from sealed to opened.
struct Opening<'a> {
    cipher: &'a Cipher,
    which: &'a Which,
    proof: digest::Context,
    only_encrypted: bool,
}

impl Opening<'_> {
    /// `path`: the names on the way, with a colon behind each. `matched`: whether one of them decided.
    fn open(&mut self, value: &mut Value, path: &mut String, matched: bool) -> Result<(), Fault> {
        match value {
            Value::Fields(fields) => {
                for (name, value) in fields {
                    let length = path.len();
                    path.push_str(name);
                    path.push(':');
                    let matched = matched || self.which.matches(name);
                    self.open(value, path, matched)?;
                    path.truncate(length);
                }
                Ok(())
            }
            // Items of a list have no names: that they stay in their order is proven by the whole.
            Value::List(items) => items
                .iter_mut()
                .try_for_each(|item| self.open(item, path, matched)),
            // Nothing is nothing, encrypted or not.
            Value::Null => Ok(()),
            Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Text(_) => {
                self.open_one(value, path, matched)
            }
        }
    }

    fn open_one(&mut self, value: &mut Value, path: &str, matched: bool) -> Result<(), Fault> {
        let encrypted = self.which.encrypted(matched);
        if encrypted {
            let unfit = || cipher::at(path, "is not encrypted, and it should be");
            let Value::Text(sealed) = &*value else {
                return Err(unfit());
            };
            let sealed = sealed.as_str().ok_or_else(unfit)?;
            // An empty text is not encrypted.
            if !sealed.is_empty() {
                *value = self.cipher.open(sealed, path)?;
            }
        }
        if encrypted || !self.only_encrypted {
            self.proof.update(&value.proven().unwrap_or_default());
        }
        Ok(())
    }
}

/// Whether nothing was changed, left away or put elsewhere.
fn prove(cipher: &Cipher, metadata: &Metadata, computed: &[u8]) -> Result<(), Fault> {
    let failed = || Fault::of("was changed since it was encrypted: its MAC is another");
    let proof = cipher.open(&metadata.proof, &metadata.last_modified);
    let Ok(Value::Text(proof)) = proof else {
        return Err(failed());
    };
    let computed: String = computed.iter().map(|byte| format!("{byte:02X}")).collect();
    constant_time::verify_slices_are_equal(proof.bytes(), computed.as_bytes()).map_err(|_| failed())
}

impl Document {
    /// What is delivered of it.
    fn value(&self, secret: &SopsSecret) -> Result<Secret, FetchError> {
        let name = secret.file.path.display();
        let malformed = |what: &str| FetchError::Malformed(format!("`{name}` {what}"));
        let value = match (&secret.key, secret.file.format) {
            (Some(key), _) => {
                let part = self.0.part(key).ok_or_else(|| {
                    FetchError::Missing(format!("`{name}` has nothing at `{key}`"))
                })?;
                part.delivered().map_err(|Fault(what)| {
                    FetchError::Malformed(format!("`{name}`, at `{key}`, {what}"))
                })?
            }
            (None, SopsFormat::Binary) => match self.0.field("data") {
                Some(data @ Value::Text(_)) => {
                    data.delivered().map_err(|Fault(what)| malformed(&what))?
                }
                Some(_) | None => return Err(malformed("holds no file: it has no `data`")),
            },
            (None, _) => self.0.json().map_err(|Fault(what)| malformed(&what))?,
        };
        if value.is_empty() {
            return Err(malformed("has an empty value there"));
        }
        match u64::try_from(value.len()).is_ok_and(|length| length <= LIMIT) {
            true => Ok(value),
            false => Err(malformed("has more than 1 MiB there")),
        }
    }
}

#[cfg(test)]
mod tests;
