//! What is in a document: a tree whose fields are in the order in which they are written, and how a part of it becomes a value.

use std::io::{self, Write};

use fender_config::snapshot::SopsKey;
use fender_identity::Secret;
use zeroize::Zeroizing;

use super::Fault;

/// How deep lists and fields may lie in each other.
pub(super) const DEEPEST: usize = 64;
/// How many values, lists and fields one document may have.
pub(super) const MOST: usize = 65_536;

#[derive(Clone, Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Text),
    List(Vec<Value>),
    Fields(Vec<(String, Value)>),
}

/// Most are UTF-8. They may be secret: gone from memory when they are dropped, and not shown.
#[derive(Clone)]
pub(super) struct Text(Zeroizing<Vec<u8>>);

impl Text {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self::new(text.as_bytes().to_vec())
    }
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Text(…)")
    }
}

impl Value {
    /// Adds a field, unless there is one of that name.
    pub(super) fn add(
        fields: &mut Vec<(String, Self)>,
        names: &mut std::collections::HashSet<String>,
        name: String,
        value: Self,
    ) -> Result<(), Fault> {
        if !names.insert(name.clone()) {
            return Err(Fault::new(format!(
                "has the field `{}` twice",
                shown(&name)
            )));
        }
        fields.push((name, value));
        Ok(())
    }

    /// The field `name`, of what has fields.
    pub(super) fn field(&self, name: &str) -> Option<&Self> {
        let Self::Fields(fields) = self else {
            return None;
        };
        let mut named = fields.iter().filter(|(field, _)| field == name);
        named.next().map(|(_, value)| value)
    }

    /// The part that `key` names.
    pub(super) fn part(&self, key: &SopsKey) -> Option<&Self> {
        key.steps()
            .iter()
            .try_fold(self, |value, step| match value {
                Self::List(items) => items.get(index(step)?),
                Self::Fields(_) => value.field(step),
                Self::Null | Self::Bool(_) | Self::Int(_) | Self::Float(_) | Self::Text(_) => None,
            })
    }

    /// What is delivered: a text as it is, a number or a word as SOPS writes it, anything else as JSON.
    pub(super) fn delivered(&self) -> Result<Secret, Fault> {
        match self {
            Self::Text(text) => Ok(Secret::new(text.bytes().to_vec())),
            Self::Bool(_) | Self::Int(_) | Self::Float(_) | Self::List(_) | Self::Fields(_) => {
                self.json()
            }
            Self::Null => Err(Fault::new("is `null` there".to_owned())),
        }
    }

    /// As JSON, in one line.
    pub(super) fn json(&self) -> Result<Secret, Fault> {
        // Counted first, so that growing leaves no copy of a secret behind.
        let mut length = Counter(0);
        self.write(&mut length)?;
        let mut json = Vec::with_capacity(length.0);
        let written = self.write(&mut json);
        let json = Secret::new(json);
        written.map(|()| json)
    }

    fn write(&self, to: &mut impl Write) -> Result<(), Fault> {
        let failed = |_| Fault::new("cannot be written as JSON".to_owned());
        match self {
            Self::Null => to.write_all(b"null").map_err(failed),
            Self::Bool(value) => write!(to, "{value}").map_err(failed),
            Self::Int(value) => write!(to, "{value}").map_err(failed),
            Self::Float(value) if value.is_finite() => write!(to, "{value}").map_err(failed),
            Self::Float(_) => Err(Fault::new(
                "has a number that is none in JSON: `.nan` or `.inf`".to_owned(),
            )),
            Self::Text(text) => {
                let text = text.as_str().ok_or_else(|| {
                    Fault::new(
                        "has bytes that are not UTF-8, so it is not JSON; name a `key`".to_owned(),
                    )
                })?;
                serde_json::to_writer(to, text)
                    .map_err(|_| Fault::new("cannot be written as JSON".to_owned()))
            }
            Self::List(items) => {
                to.write_all(b"[").map_err(failed)?;
                for (number, item) in items.iter().enumerate() {
                    if number > 0 {
                        to.write_all(b",").map_err(failed)?;
                    }
                    item.write(to)?;
                }
                to.write_all(b"]").map_err(failed)
            }
            Self::Fields(fields) => {
                to.write_all(b"{").map_err(failed)?;
                for (number, (name, value)) in fields.iter().enumerate() {
                    if number > 0 {
                        to.write_all(b",").map_err(failed)?;
                    }
                    serde_json::to_writer(&mut *to, name)
                        .map_err(|_| Fault::new("cannot be written as JSON".to_owned()))?;
                    to.write_all(b":").map_err(failed)?;
                    value.write(to)?;
                }
                to.write_all(b"}").map_err(failed)
            }
        }
    }

    /// What the proof of a document is made over: as SOPS writes it.
    pub(super) fn proven(&self) -> Option<std::borrow::Cow<'_, [u8]>> {
        use std::borrow::Cow;
        Some(match self {
            Self::Text(text) => Cow::Borrowed(text.bytes()),
            Self::Bool(true) => Cow::Borrowed(b"True"),
            Self::Bool(false) => Cow::Borrowed(b"False"),
            Self::Int(value) => Cow::Owned(value.to_string().into_bytes()),
            Self::Float(value) if value.is_nan() => Cow::Borrowed(b"NaN"),
            Self::Float(f64::INFINITY) => Cow::Borrowed(b"+Inf"),
            Self::Float(f64::NEG_INFINITY) => Cow::Borrowed(b"-Inf"),
            // The fewest digits that mean the same, and no exponent: as Go's `FormatFloat(value, 'f', -1, 64)`.
            Self::Float(value) => Cow::Owned(value.to_string().into_bytes()),
            Self::Null | Self::List(_) | Self::Fields(_) => return None,
        })
    }
}

/// A number from 0, and in the one way to write it.
fn index(step: &str) -> Option<usize> {
    let number: usize = step.parse().ok()?;
    (number.to_string() == step).then_some(number)
}

/// A name as it is told: short, and in one line. Names are never encrypted.
pub(super) fn shown(name: &str) -> String {
    const LONGEST: usize = 64;
    let short: String = name.chars().take(LONGEST).collect();
    short.escape_default().to_string()
}

struct Counter(usize);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
