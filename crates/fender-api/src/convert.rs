//! Messages into domain types and back.
//!
//! Inward every field is checked and an error names it (`inbound[2].listen`); a value without a meaning here is refused,
//! never given a default: whoever sent it meant something. Outward nothing can fail.

use std::fmt::Display;
use std::str::FromStr;

use aws_lc_rs::digest::{SHA256, digest};

mod policy;
mod snapshot;
mod trust;

pub(crate) use trust::denied;
pub use trust::{IssuedSvid, MAX_CRLS, bundles_from_proto, bundles_to_proto};

/// A field that cannot be used, by its path in the message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("field `{field}`: {why}")]
pub struct InvalidField {
    field: String,
    why: String,
}

impl InvalidField {
    /// A field and what is wrong with it.
    pub fn new(field: impl Into<String>, why: impl Display) -> Self {
        Self {
            field: field.into(),
            why: why.to_string(),
        }
    }

    /// The field.
    pub fn field(&self) -> &str {
        &self.field
    }

    /// The same field seen from the message around it.
    fn within(mut self, outer: &str) -> Self {
        self.field = format!("{outer}.{}", self.field);
        self
    }

    fn at(mut self, outer: &str, index: usize) -> Self {
        self.field = format!("{outer}[{index}].{}", self.field);
        self
    }
}

/// Reads a text field as a domain type.
pub(crate) fn parse<T>(field: &str, text: &str) -> Result<T, InvalidField>
where
    T: FromStr,
    T::Err: Display,
{
    text.parse()
        .map_err(|error| InvalidField::new(field, error))
}

/// Reads each text of a repeated field.
fn parse_all<T>(field: &str, texts: &[String]) -> Result<Vec<T>, InvalidField>
where
    T: FromStr,
    T::Err: Display,
{
    texts
        .iter()
        .enumerate()
        .map(|(i, text)| parse(&format!("{field}[{i}]"), text))
        .collect()
}

/// Converts each message of a repeated field.
fn each<M, T>(
    field: &str,
    messages: Vec<M>,
    convert: impl Fn(M) -> Result<T, InvalidField>,
) -> Result<Vec<T>, InvalidField> {
    messages
        .into_iter()
        .enumerate()
        .map(|(i, message)| convert(message).map_err(|error| error.at(field, i)))
        .collect()
}

/// A message or a choice that must be there.
fn required<T>(field: &str, value: Option<T>) -> Result<T, InvalidField> {
    value.ok_or_else(|| InvalidField::new(field, "is missing"))
}

/// An enumeration whose value is not set, or newer than this program.
fn unknown(field: &str, value: i32) -> InvalidField {
    InvalidField::new(field, format!("{value} has no meaning here"))
}

/// A word that is none of those there are.
fn unknown_word(field: &str, word: &str) -> InvalidField {
    InvalidField::new(field, format!("`{word}` has no meaning here"))
}

/// Proto has no 16-bit numbers.
pub(crate) fn port(field: &str, port: u32) -> Result<u16, InvalidField> {
    u16::try_from(port).map_err(|_| InvalidField::new(field, format!("{port} is not a port")))
}

fn texts<T: Display>(values: impl IntoIterator<Item = T>) -> Vec<String> {
    values.into_iter().map(|value| value.to_string()).collect()
}

/// Of a message as it travels, by which both ends know that they have the same.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

#[cfg(test)]
mod tests;
