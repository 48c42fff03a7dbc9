//! JSON as a security decision needs it: one reading or none.
//!
//! A member that is there twice, bytes after the end and deep nesting are refused. Somebody else's
//! reader might take the other member of the two.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::spiffe::excerpt;

/// Deeper than any token or set of keys.
const MAX_DEPTH: usize = 16;

pub type Object = BTreeMap<String, Value>;

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Integer(i64),
    /// Every other number.
    Fraction(f64),
    Text(String),
    List(Vec<Value>),
    Object(Object),
}

impl Value {
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Null
            | Self::Bool(_)
            | Self::Integer(_)
            | Self::Fraction(_)
            | Self::List(_)
            | Self::Object(_) => None,
        }
    }

    pub fn as_object(&self) -> Option<&Object> {
        match self {
            Self::Object(object) => Some(object),
            Self::Null
            | Self::Bool(_)
            | Self::Integer(_)
            | Self::Fraction(_)
            | Self::Text(_)
            | Self::List(_) => None,
        }
    }

    /// The member of an object.
    pub fn member(&self, name: &str) -> Option<&Self> {
        self.as_object()?.get(name)
    }

    /// Whole seconds; what is less than one is dropped, what is negative is none.
    pub(super) fn as_seconds(&self) -> Option<u64> {
        match self {
            Self::Integer(seconds) => u64::try_from(*seconds).ok(),
            // The cast keeps within the type: what is too large becomes the largest.
            Self::Fraction(seconds) if *seconds >= 0.0 => Some(*seconds as u64),
            Self::Fraction(_)
            | Self::Null
            | Self::Bool(_)
            | Self::Text(_)
            | Self::List(_)
            | Self::Object(_) => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    #[error("it is not JSON we accept: {0}")]
    Syntax(String),
    #[error("it is not an object")]
    NotAnObject,
}

/// The one object that `bytes` are.
pub fn object(bytes: &[u8]) -> Result<Object, JsonError> {
    let syntax = |error: serde_json::Error| JsonError::Syntax(error.to_string());
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Reading { depth: 0 }
        .deserialize(&mut reader)
        .map_err(syntax)?;
    reader.end().map_err(syntax)?;
    match value {
        Value::Object(object) => Ok(object),
        Value::Null
        | Value::Bool(_)
        | Value::Integer(_)
        | Value::Fraction(_)
        | Value::Text(_)
        | Value::List(_) => Err(JsonError::NotAnObject),
    }
}

#[derive(Clone, Copy)]
struct Reading {
    depth: usize,
}

impl Reading {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth == MAX_DEPTH {
            return Err(E::custom(format!("nested deeper than {MAX_DEPTH}")));
        }
        Ok(Self {
            depth: self.depth + 1,
        })
    }
}

impl<'de> DeserializeSeed<'de> for Reading {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reading {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::Fraction(value as f64), Value::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Fraction(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let deeper = self.deeper()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(deeper)? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let deeper = self.deeper()?;
        let mut object = Object::new();
        while let Some(name) = members.next_key::<String>()? {
            let value = members.next_value_seed(deeper)?;
            if object.contains_key(&name) {
                let name = excerpt(&name);
                return Err(A::Error::custom(format!("member `{name}` is there twice")));
            }
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        object(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn every_kind_of_value_is_read() {
        let read =
            object(br#"{"a":null,"b":true,"c":-7,"d":1.5,"e":"x","f":[1,{"g":2}]}"#).unwrap();
        assert_eq!(read["a"], Value::Null);
        assert_eq!(read["b"], Value::Bool(true));
        assert_eq!(read["c"], Value::Integer(-7));
        assert_eq!(read["d"], Value::Fraction(1.5));
        assert_eq!(read["e"].as_text(), Some("x"));
        let Value::List(list) = &read["f"] else {
            panic!("{read:?}")
        };
        assert_eq!(list[1].member("g"), Some(&Value::Integer(2)));
    }

    #[test]
    fn attack_a_member_twice_at_any_depth() {
        assert!(refused(r#"{"aud":"a","aud":"b"}"#).contains("`aud` is there twice"));
        assert!(refused(r#"{"a":[{"x":1,"y":2,"x":1}]}"#).contains("`x` is there twice"));
        assert!(refused(r#"{"aud":"a","\u0061ud":"b"}"#).contains("`aud` is there twice"));
    }

    #[test]
    fn attack_what_other_readers_pass_over() {
        for text in [
            "",
            "{}x",
            "{} {}",
            "{\"a\":1,}",
            "// note\n{}",
            "{'a':1}",
            "{\"a\":01}",
            "{\"a\":NaN}",
            "{\"a\":1e999}",
            "{\"a\":\"\\ud800\"}",
            "\u{feff}{}",
        ] {
            assert!(refused(text).contains("not JSON"), "{text:?}");
        }
        assert!(object(b"{\"a\":\"\xff\"}").is_err());
        for text in ["[]", "null", "\"{}\"", "1"] {
            assert!(refused(text).contains("not an object"), "{text}");
        }
    }

    #[test]
    fn attack_deep_nesting() {
        let nested =
            |depth: usize| format!("{{\"a\":{}1{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(object(nested(MAX_DEPTH - 1).as_bytes()).is_ok());
        assert!(refused(&nested(MAX_DEPTH)).contains("nested deeper"));
        assert!(refused(&nested(100_000)).contains("nested deeper"));
    }

    #[test]
    fn seconds_are_whole_and_not_negative() {
        for (value, seconds) in [
            (Value::Integer(7), Some(7)),
            (Value::Integer(-1), None),
            (Value::Fraction(7.9), Some(7)),
            (Value::Fraction(-0.5), None),
            (Value::Fraction(f64::NAN), None),
            (Value::Fraction(1e300), Some(u64::MAX)),
            (Value::Text("7".to_owned()), None),
        ] {
            assert_eq!(value.as_seconds(), seconds, "{value:?}");
        }
    }
}
