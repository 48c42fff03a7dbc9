//! The fields of a secret that is one JSON object.
//!
//! Numbers are whole and of 64 bits: others would lose digits on the way, so they are refused where they are used. A name that
//! is there twice is refused, because readers of JSON do not agree on which of the two counts.

use std::collections::BTreeMap;
use std::fmt;

use fender_config::snapshot::FieldName;
use fender_identity::Secret;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use zeroize::Zeroizing;

use super::RenderError;

/// One field, or a part of one.
#[derive(Clone)]
pub(crate) enum Field {
    Text(Zeroizing<String>),
    Whole(i128),
    Flag(bool),
    Null,
    /// A number with a fraction, or too large: it is somewhere in the secret, and of no use here.
    Odd,
    List(Vec<Field>),
    Map(BTreeMap<String, Field>),
}

impl Field {
    /// As plain text, if it is one.
    pub(super) fn plain(
        &self,
        name: &str,
        text: &mut Zeroizing<String>,
    ) -> Result<(), RenderError> {
        match self {
            Self::Text(value) => text.push_str(value),
            Self::Whole(number) => text.push_str(&Zeroizing::new(number.to_string())),
            Self::Flag(flag) => text.push_str(if *flag { "true" } else { "false" }),
            Self::Null => {
                return Err(refuse(
                    name,
                    "is null: there is nothing that could be written",
                ));
            }
            Self::Odd => return Err(refuse(name, ODD)),
            Self::List(_) | Self::Map(_) => {
                return Err(refuse(
                    name,
                    "is a list or an object, and a text is needed here",
                ));
            }
        }
        Ok(())
    }

    /// A text, or a list of them.
    pub(super) fn texts<'a>(
        &'a self,
        name: &str,
        texts: &mut Vec<&'a [u8]>,
    ) -> Result<(), RenderError> {
        match self {
            Self::Text(text) => texts.push(text.as_bytes()),
            Self::List(items) => {
                for item in items {
                    let Self::Text(text) = item else {
                        return Err(refuse(name, "is a list of something else than texts"));
                    };
                    texts.push(text.as_bytes());
                }
            }
            Self::Whole(_) | Self::Flag(_) | Self::Null | Self::Odd | Self::Map(_) => {
                return Err(refuse(name, "is no text and no list of texts"));
            }
        }
        Ok(())
    }
}

pub(super) const ODD: &str = "is or holds a number that is not whole or has more than 64 bits: write it as a text in the secret";

pub(super) fn refuse(name: &str, why: &'static str) -> RenderError {
    RenderError::Field {
        field: name.to_owned(),
        why,
    }
}

/// All of them, by name.
pub(crate) struct Fields(pub(super) BTreeMap<String, Field>);

impl Fields {
    /// Of a value that is a JSON object.
    pub(crate) fn read(value: &Secret) -> Result<Self, RenderError> {
        // What is wrong with it could show parts of it.
        let read = serde_json::from_slice::<Field>(value.expose());
        let Ok(Field::Map(fields)) = read else {
            let trimmed = value.expose().trim_ascii_start();
            return Err(RenderError::NoFields(match trimmed.first() {
                Some(b'{') => {
                    "; it begins like one, and is cut off, nested too deeply, or has a name twice or one of more than 256 bytes"
                }
                _ => "",
            }));
        };
        Ok(Self(fields))
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Of a field that is a text, or a list of them.
    pub(crate) fn texts(&self, name: &str) -> Result<Vec<&[u8]>, RenderError> {
        let mut texts = Vec::new();
        self.get(name)?.texts(name, &mut texts)?;
        Ok(texts)
    }

    pub(super) fn get(&self, name: &str) -> Result<&Field, RenderError> {
        let missing = || RenderError::Missing(vec![name.to_owned()]);
        self.0.get(name).ok_or_else(missing)
    }

    /// These in their order, or all of them in that of their names.
    pub(super) fn named<'a>(
        &'a self,
        names: &'a [FieldName],
    ) -> Result<Vec<(&'a str, &'a Field)>, RenderError> {
        if names.is_empty() {
            let all = self.0.iter().map(|(name, field)| (name.as_str(), field));
            return Ok(all.collect());
        }
        let absent = names
            .iter()
            .filter(|name| !self.0.contains_key(name.as_str()));
        let absent: Vec<_> = absent.map(ToString::to_string).collect();
        if !absent.is_empty() {
            return Err(RenderError::Missing(absent));
        }
        let named = names.iter().map(FieldName::as_str);
        named.map(|name| Ok((name, self.get(name)?))).collect()
    }
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Anything)
    }
}

struct Anything;

impl<'de> Visitor<'de> for Anything {
    type Value = Field;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Field, E> {
        Ok(Field::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Field, E> {
        Ok(Field::Flag(flag))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Field, E> {
        Ok(Field::Whole(number.into()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Field, E> {
        Ok(Field::Whole(number.into()))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Field, E> {
        Ok(Field::Odd)
    }

    fn visit_str<E>(self, text: &str) -> Result<Field, E> {
        Ok(Field::Text(Zeroizing::new(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Field, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Field::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Field, A::Error> {
        let mut map = BTreeMap::new();
        while let Some((name, field)) = entries.next_entry::<String, Field>()? {
            if name.len() > FieldName::LONGEST || map.insert(name, field).is_some() {
                return Err(A::Error::custom("a name that is too long or there twice"));
            }
        }
        Ok(Field::Map(map))
    }
}
