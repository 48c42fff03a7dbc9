//! A secret of several fields that a store gives as one JSON object: one of them, or the whole.
//!
//! A field's own value is a text; a whole number and a truth value are theirs, as command lines print them. In the whole each
//! is what it was. Nothing of a value is in an error, and all that is made of one is wiped.

use std::collections::BTreeMap;

use fender_identity::Secret;
use serde::de::{Deserialize, Deserializer, Error as _};
use serde_json::value::RawValue;

use crate::whole::{self, Part};
use crate::{FetchError, hidden};

/// The values at one place, by key.
#[derive(Debug)]
pub(crate) struct Fields(BTreeMap<String, Field>);

/// One value.
#[derive(Debug)]
enum Field {
    Text(Secret),
    /// A whole number or a truth value, as it was written.
    Word(Secret),
    /// Something that has no one text, as it was written.
    Other(Secret),
}

impl Fields {
    /// One of them. `place` names what they are of.
    pub(crate) fn value(&self, key: &str, place: &str) -> Result<Secret, FetchError> {
        let malformed = |why: &str| FetchError::Malformed(format!("{place}: `{key}` {why}"));
        match self.0.get(key) {
            Some(Field::Text(value)) if value.is_empty() => Err(malformed("is empty")),
            Some(Field::Text(value) | Field::Word(value)) => match fits(value) {
                true => Ok(value.clone()),
                false => Err(malformed("is larger than 1 MiB")),
            },
            Some(Field::Other(_)) => Err(malformed(
                "is neither text nor a whole number nor true or false",
            )),
            None => Err(FetchError::Missing(format!("{place} has no `{key}`"))),
        }
    }

    /// All of them as one JSON object, in the order of their names.
    pub(crate) fn whole(&self, place: &str) -> Result<Secret, FetchError> {
        let malformed = |why: String| FetchError::Malformed(format!("{place}: {why}"));
        if self.0.is_empty() {
            return Err(malformed("it has no keys".to_owned()));
        }
        let parts = self.0.iter().map(|(key, field)| {
            let part = match field {
                Field::Text(value) => Part::Text(value),
                Field::Word(value) | Field::Other(value) => Part::Json(value),
            };
            (key.as_str(), part)
        });
        let whole = whole::object(parts).map_err(|error| malformed(error.to_string()))?;
        match fits(&whole) {
            true => Ok(whole),
            false => Err(malformed("all of it is larger than 1 MiB".to_owned())),
        }
    }

    /// Whether others say the same; values are compared in constant time.
    pub(crate) fn equals(&self, other: &Self) -> bool {
        let same = |one: &Field, other: &Field| match (one, other) {
            (Field::Text(one), Field::Text(other))
            | (Field::Word(one), Field::Word(other))
            | (Field::Other(one), Field::Other(other)) => one.ct_eq(other),
            (Field::Text(_) | Field::Word(_) | Field::Other(_), _) => false,
        };
        let mut all = self.0.iter().zip(&other.0);
        self.0.len() == other.0.len()
            && all.all(|((key, one), (name, other))| key == name && same(one, other))
    }
}

fn fits(value: &Secret) -> bool {
    value.len() as u64 <= crate::file::LIMIT
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::deserialize(deserializer).map(Self)
    }
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?.get();
        if raw.starts_with('"') {
            let text = hidden::text(raw).map(Self::Text);
            return text.ok_or_else(|| D::Error::custom("half of a character"));
        }
        let is_whole = raw.parse::<u64>().is_ok() || raw.parse::<i64>().is_ok();
        let written = Secret::from(raw.to_owned());
        Ok(match is_whole || matches!(raw, "true" | "false") {
            true => Self::Word(written),
            false => Self::Other(written),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        serde_json::from_str(text).unwrap()
    }

    fn whole(text: &str) -> Result<String, FetchError> {
        let whole = fields(text).whole("`place`")?;
        Ok(whole.expose_str().unwrap().to_owned())
    }

    #[test]
    fn the_whole_is_every_field_as_it_was_in_the_order_of_the_names() {
        let text = r#"{"user": "é\n\"", "port":5432,"tls":true, "more": {"b": [1, null], "a": 0.5}, "empty": "", "none": null}"#;
        let expected = r#"{"empty":"","more":{"b": [1, null], "a": 0.5},"none":null,"port":5432,"tls":true,"user":"é\n\""}"#;
        assert_eq!(whole(text).unwrap(), expected);
        let same = |one: &str| -> serde_json::Value { serde_json::from_str(one).unwrap() };
        assert_eq!(same(text), same(expected));
    }

    #[test]
    fn what_is_nothing_or_too_much_is_no_whole() {
        let refused = whole("{}").unwrap_err();
        assert!(matches!(&refused, FetchError::Malformed(why) if why.contains("has no keys")));
        let of = |length: usize| whole(&format!(r#"{{"a":"{}"}}"#, "x".repeat(length)));
        let most = usize::try_from(crate::file::LIMIT).unwrap() - r#"{"a":""}"#.len();
        assert_eq!(of(most).unwrap().len() as u64, crate::file::LIMIT);
        let refused = of(most + 1).unwrap_err();
        assert!(
            refused.to_string().contains("larger than 1 MiB"),
            "{refused}"
        );
        // One of them may be larger by what stands around it.
        let one = fields(&format!(r#"{{"a":"{}"}}"#, "x".repeat(most + 1)));
        assert!(one.value("a", "`place`").is_ok());
    }

    #[test]
    fn fields_are_the_same_if_every_one_is_written_so_and_of_the_same_kind() {
        let one = fields(r#"{"a":"1","b":{"c":1}}"#);
        assert!(one.equals(&fields(r#"{ "b":{"c":1},"a":"\u0031" }"#)));
        for other in [
            r#"{"a":1,"b":{"c":1}}"#,
            r#"{"a":"1","b":{"c":2}}"#,
            r#"{"a":"1","b":"{\"c\":1}"}"#,
            r#"{"a":"1"}"#,
            r#"{"a":"1","c":{"c":1}}"#,
            r#"{"a":"1","b":{"c":1},"d":null}"#,
        ] {
            assert!(!one.equals(&fields(other)), "{other}");
        }
    }

    #[test]
    fn nothing_that_can_be_printed_holds_a_value() {
        let text = r#"{"a":"canary-1","b":{"c":"canary-2"},"d":[ "canary-3" ]}"#;
        let fields = fields(text);
        let errors = ["b", "d", "e"].map(|key| fields.value(key, "`place`").unwrap_err());
        let printed = format!("{fields:?} {errors:?}");
        assert!(!printed.contains("canary"), "{printed}");
        let half = serde_json::from_str::<Fields>(r#"{"a":"canary\ud800"}"#).unwrap_err();
        assert!(!half.to_string().contains("canary"), "{half}");
    }
}
