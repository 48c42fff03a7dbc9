//! A document in JSON: an object, its fields in their order and none of them twice.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::Fault;
use super::value::{DEEPEST, MOST, Value, shown};

pub(super) fn read(text: &str) -> Result<Value, Fault> {
    let mut json = serde_json::Deserializer::from_str(text);
    let mut left = MOST;
    let node = Node {
        left: &mut left,
        depth: 0,
    };
    let value = node.deserialize(&mut json);
    let value = value.and_then(|value| json.end().map(|()| value));
    match value {
        Ok(value @ Value::Fields(_)) => Ok(value),
        Ok(_) => Err(Fault::of("is no JSON object")),
        // The message may name a value that is not encrypted; where it is, is enough.
        Err(error) if error.is_syntax() || error.is_eof() => Err(Fault::new(format!(
            "is not JSON from line {} on",
            error.line()
        ))),
        Err(error) => Err(Fault::new(error.to_string())),
    }
}

struct Node<'a> {
    left: &'a mut usize,
    depth: usize,
}

impl Node<'_> {
    fn inner(&mut self) -> Node<'_> {
        Node {
            left: self.left,
            depth: self.depth + 1,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self.depth > DEEPEST {
            return Err(D::Error::custom("is too deep"));
        }
        *self.left = self
            .left
            .checked_sub(1)
            .ok_or_else(|| D::Error::custom(format!("has more than {MOST} values")))?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(match i64::try_from(value) {
            Ok(value) => Value::Int(value),
            #[expect(clippy::cast_precision_loss, reason = "to SOPS it is a float, too")]
            Err(_) => Value::Float(value as f64),
        })
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self.inner())? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<Value, A::Error> {
        let (mut fields, mut names) = (Vec::new(), HashSet::new());
        while let Some(name) = entries.next_key_seed(Name)? {
            let value = entries.next_value_seed(self.inner())?;
            let what = format!("has the field `{}` twice", shown(&name));
            Value::add(&mut fields, &mut names, name, value).map_err(|_| A::Error::custom(what))?;
        }
        Ok(Value::Fields(fields))
    }
}

struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        String::deserialize(deserializer)
    }
}
