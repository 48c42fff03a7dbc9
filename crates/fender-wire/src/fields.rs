//! Header and trailer fields: one buffer, and where in it each name and value lies.
//!
//! A [`Field`] is only ever made by the parser, so holding one is proof that its name is a token
//! and its value free of control characters: [`crate::write::HeadWriter::copy`] needs no check.
//! Nothing here joins several values into one: each is matched by itself.

use std::fmt;

use bytes::{Bytes, BytesMut};

use crate::grammar;

/// Why one line is not a field (RFC 9112 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FieldError {
    #[error("a field line begins with white space (obsolete line folding)")]
    FoldsLine,
    #[error("a field line has no colon")]
    LacksColon,
    #[error("a field has an empty name")]
    EmptiesName,
    #[error("white space stands between a field name and its colon")]
    SpacesBeforeColon,
    #[error("a field name holds a byte that is not allowed there")]
    BreaksName,
    #[error("a field value holds a carriage return")]
    HoldsBareCarriageReturn,
    #[error("a field value holds a control character")]
    HoldsControl,
}

/// Where one field lies in the buffer of its head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    name: (u32, u32),
    value: (u32, u32),
}

impl Span {
    /// Parses one line (without its line end) that begins at `offset` of the buffer.
    pub(crate) fn parse(line: &[u8], offset: usize) -> Result<Self, FieldError> {
        if let [b' ' | b'\t', ..] = line {
            return Err(FieldError::FoldsLine);
        }
        let Some(colon) = line.iter().position(|byte| !grammar::is_token_byte(*byte)) else {
            return Err(FieldError::LacksColon);
        };
        let (name, rest) = line.split_at(colon);
        let value = match rest {
            [b':', ..] if name.is_empty() => return Err(FieldError::EmptiesName),
            [b':', value @ ..] => value,
            [b'\r', ..] => return Err(FieldError::HoldsBareCarriageReturn),
            [b' ' | b'\t', ..] if rest.contains(&b':') => {
                return Err(FieldError::SpacesBeforeColon);
            }
            _ if !rest.contains(&b':') => return Err(FieldError::LacksColon),
            _ => return Err(FieldError::BreaksName),
        };
        if let Some(bad) = value
            .iter()
            .find(|byte| !grammar::is_field_value_byte(**byte))
        {
            return Err(match bad {
                b'\r' => FieldError::HoldsBareCarriageReturn,
                _ => FieldError::HoldsControl,
            });
        }
        let leading = value
            .iter()
            .take_while(|byte| matches!(byte, b' ' | b'\t'))
            .count();
        let trimmed = grammar::trim(value);
        let value_at = if trimmed.is_empty() {
            colon + 1
        } else {
            colon + 1 + leading
        };
        Ok(Self {
            name: span(offset, name.len()),
            value: span(offset + value_at, trimmed.len()),
        })
    }

    pub(crate) fn name(self, bytes: &[u8]) -> &[u8] {
        slice(bytes, self.name)
    }

    pub(crate) fn value(self, bytes: &[u8]) -> &[u8] {
        slice(bytes, self.value)
    }
}

/// Positions fit because a head is capped far below 4 GiB ([`crate::head::Limits`]).
#[expect(
    clippy::cast_possible_truncation,
    reason = "heads are capped at 16 MiB"
)]
fn span(start: usize, len: usize) -> (u32, u32) {
    (start as u32, (start + len) as u32)
}

fn slice(bytes: &[u8], (start, end): (u32, u32)) -> &[u8] {
    bytes.get(start as usize..end as usize).unwrap_or_default()
}

/// One field: a token and a value without control characters.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    name: &'a [u8],
    value: &'a [u8],
}

impl<'a> Field<'a> {
    /// The name as it was written; compare with [`Field::is`].
    #[must_use]
    pub fn name(&self) -> &'a str {
        grammar::ascii(self.name)
    }

    /// The same as bytes, where a look at each of them is one too many.
    #[must_use]
    pub fn name_bytes(&self) -> &'a [u8] {
        self.name
    }

    #[must_use]
    pub fn value(&self) -> &'a [u8] {
        self.value
    }

    /// The value as text, unless it holds bytes that are not UTF-8.
    #[must_use]
    pub fn text(&self) -> Option<&'a str> {
        std::str::from_utf8(self.value).ok()
    }

    /// Says whether this is the field `name`, whatever its case.
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name.as_bytes())
    }
}

impl fmt::Debug for Field<'_> {
    /// Names only: values carry tokens and cookies.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: …", self.name())
    }
}

/// The fields of one head or trailer section, in the order they came.
#[derive(Clone, Default)]
pub struct Fields {
    bytes: Bytes,
    spans: Vec<Span>,
}

impl Fields {
    pub(crate) fn new(bytes: Bytes, spans: Vec<Span>) -> Self {
        Self { bytes, spans }
    }

    /// Builds fields that did not come from a peer's HTTP/1 head, under the same grammar.
    pub fn build<'a>(
        pairs: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<Self, FieldError> {
        let mut bytes = BytesMut::new();
        let mut spans = Vec::new();
        for (name, value) in pairs {
            let at = bytes.len();
            bytes.extend_from_slice(name);
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value);
            spans.push(Span::parse(bytes.get(at..).unwrap_or_default(), at)?);
        }
        Ok(Self {
            bytes: bytes.freeze(),
            spans,
        })
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = Field<'_>> {
        self.spans.iter().map(|span| Field {
            name: span.name(&self.bytes),
            value: span.value(&self.bytes),
        })
    }

    /// Every value of the field `name`, each by itself.
    pub fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.iter()
            .filter(move |field| field.is(name))
            .map(|field| field.value)
    }

    /// The first value of the field `name`.
    #[must_use]
    pub fn first(&self, name: &str) -> Option<&[u8]> {
        self.all(name).next()
    }

    /// The first value of the field `name`, sharing the buffer of the head.
    #[must_use]
    pub fn first_bytes(&self, name: &str) -> Option<Bytes> {
        self.first(name).map(|value| self.bytes.slice_ref(value))
    }

    /// Part of the buffer, shared rather than copied; `part` must lie in it.
    #[must_use]
    pub fn share(&self, part: &[u8]) -> Bytes {
        self.bytes.slice_ref(part)
    }

    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.first(name).is_some()
    }
}

impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
