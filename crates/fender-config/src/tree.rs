//! A document as a tree whose every node knows where it stands, and the way from it to a type.
//!
//! YAML is read once, by serde-saphyr, into this one type; what the document means is read from the tree. The program has
//! the reader of YAML once, and not once for each type of a document, which made a tenth of it.
//!
//! A plain scalar is what the type asks for: `8443` is a number or a text, and as a text it is what was written. A quoted
//! one is always a text. Nothing is a field of another name than its own, and nothing is there twice: that is refused
//! before there is a tree.

#[cfg(test)]
mod tests;

use std::fmt;

use serde::de::value::{MapAccessDeserializer, StrDeserializer, U128Deserializer};
use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer, MapAccess,
    SeqAccess, Unexpected, Visitor,
};
use serde::{Deserialize, forward_to_deserialize_any};
use serde_saphyr::{Location, Spanned};

/// A place in a document: lines and columns from 1, the length in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spot {
    pub(crate) line: u32,
    pub(crate) column: u32,
    pub(crate) length: u32,
}

impl From<Location> for Spot {
    fn from(location: Location) -> Self {
        let number = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Self {
            line: number(location.line()),
            column: number(location.column()),
            length: number(location.span().len()),
        }
    }
}

/// One node of a document.
#[derive(Debug)]
pub(crate) struct Node {
    /// Where it is used; an alias stands elsewhere than what it repeats.
    spot: Spot,
    /// Where it is written, in bytes of the document.
    written: (usize, usize),
    what: What,
}

#[derive(Debug)]
enum What {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Fields(Vec<(Node, Node)>),
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned {
            value,
            referenced,
            defined,
        } = Spanned::deserialize(deserializer)?;
        let bytes = |number: Option<u64>| number.and_then(|number| usize::try_from(number).ok());
        let span = defined.span();
        let written = bytes(span.byte_offset()).zip(bytes(span.byte_len()));
        let (from, length) = written.unwrap_or_default();
        Ok(Self {
            spot: referenced.into(),
            written: (from, from.saturating_add(length)),
            what: value,
        })
    }
}

impl<'de> Deserialize<'de> for What {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Anything)
    }
}

struct Anything;

impl<'de> Visitor<'de> for Anything {
    type Value = What;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<What, E> {
        Ok(What::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<What, E> {
        Ok(What::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<What, E> {
        Ok(What::Unsigned(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<What, E> {
        Ok(What::Signed(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<What, E> {
        Ok(What::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<What, E> {
        Ok(What::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<What, E> {
        Ok(What::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<What, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(What::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<What, A::Error> {
        let mut fields = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            fields.push(entry);
        }
        Ok(What::Fields(fields))
    }
}

/// What a type does not find in a tree.
#[derive(Debug)]
pub(crate) struct Misfit {
    /// The innermost node that it is about.
    pub(crate) spot: Option<Spot>,
    pub(crate) why: Why,
}

#[derive(Debug)]
pub(crate) enum Why {
    UnknownField {
        field: String,
        expected: &'static [&'static str],
    },
    MissingField(&'static str),
    Type {
        expected: String,
        found: String,
    },
    NoFields,
    NoList,
    Other(String),
}

impl Misfit {
    fn new(why: Why) -> Self {
        Self { spot: None, why }
    }

    /// A field is missing behind the last one that is there.
    fn missing_behind(self, fields: &[(Node, Node)]) -> Self {
        match (&self.why, fields.last()) {
            (Why::MissingField(_), Some((key, _))) => self.at(key.spot),
            _ => self,
        }
    }

    fn at(mut self, spot: Spot) -> Self {
        self.spot.get_or_insert(spot);
        self
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.why)
    }
}

impl std::error::Error for Misfit {}

impl de::Error for Misfit {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Why::Other(message.to_string()))
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(Why::Type {
            expected: expected.to_string(),
            found: found.to_string(),
        })
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Why::UnknownField {
            field: field.to_owned(),
            expected,
        })
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(Why::MissingField(field))
    }
}

/// A node together with the text it was read from.
#[derive(Clone, Copy)]
pub(crate) struct Branch<'a> {
    pub(crate) node: &'a Node,
    pub(crate) text: &'a str,
}

/// The name by which a type asks for the place of a value before the value itself.
pub(crate) const SPOTTED: &str = "$spotted";

impl<'a> Branch<'a> {
    fn of(self, node: &'a Node) -> Self {
        Self { node, ..self }
    }

    /// What stands there, if it can be a text.
    fn as_text(self) -> Option<&'a str> {
        match &self.node.what {
            What::Text(text) => Some(text),
            What::Bool(_) | What::Unsigned(_) | What::Signed(_) | What::Float(_) => {
                let (from, to) = self.node.written;
                self.text.get(from..to).map(str::trim)
            }
            What::Null | What::List(_) | What::Fields(_) => None,
        }
    }

    /// It is something else than what is wanted.
    #[cold]
    fn not(self, expected: &dyn Expected) -> Misfit {
        let found = match &self.node.what {
            What::Null => Unexpected::Unit,
            What::Bool(value) => Unexpected::Bool(*value),
            What::Unsigned(value) => Unexpected::Unsigned(*value),
            What::Signed(value) => Unexpected::Signed(*value),
            What::Float(value) => Unexpected::Float(*value),
            What::Text(value) => Unexpected::Str(value),
            What::List(_) => Unexpected::Seq,
            What::Fields(_) => Unexpected::Map,
        };
        de::Error::invalid_type(found, expected)
    }

    fn number<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.node.what {
            What::Unsigned(value) => visitor.visit_u64(value),
            What::Signed(value) => visitor.visit_i64(value),
            What::Float(value) => visitor.visit_f64(value),
            What::Null | What::Bool(_) | What::Text(_) | What::List(_) | What::Fields(_) => {
                Err(self.not(&visitor))
            }
        }
    }
}

/// Forwards several kinds of a value to one way of reading it, and says where a failure happened.
macro_rules! read {
    ($($method:ident)* => |$branch:ident, $visitor:ident| $read:expr) => {
        $(fn $method<V: Visitor<'de>>(self, $visitor: V) -> Result<V::Value, Misfit> {
            let $branch = self;
            let read: Result<V::Value, Misfit> = $read;
            read.map_err(|misfit| misfit.at(self.node.spot))
        })*
    };
}

impl<'de> Deserializer<'de> for Branch<'_> {
    type Error = Misfit;

    read! { deserialize_any => |branch, visitor| match &branch.node.what {
        What::Null => visitor.visit_unit(),
        What::Bool(value) => visitor.visit_bool(*value),
        What::Unsigned(value) => visitor.visit_u64(*value),
        What::Signed(value) => visitor.visit_i64(*value),
        What::Float(value) => visitor.visit_f64(*value),
        What::Text(value) => visitor.visit_str(value),
        What::List(items) => visitor.visit_seq(Items { branch, items: items.iter() }),
        What::Fields(fields) => visitor.visit_map(Fields::of(branch, fields)),
    } }

    read! { deserialize_bool => |branch, visitor| if let What::Bool(value) = branch.node.what {
        visitor.visit_bool(value)
    } else {
        Err(branch.not(&visitor))
    } }

    read! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
        deserialize_f32 deserialize_f64 => |branch, visitor| branch.number(visitor)
    }

    read! {
        deserialize_str deserialize_string deserialize_char deserialize_identifier =>
        |branch, visitor| match branch.as_text() {
            Some(text) => visitor.visit_str(text),
            None => Err(branch.not(&visitor)),
        }
    }

    read! { deserialize_option => |branch, visitor| if let What::Null = branch.node.what {
        visitor.visit_none()
    } else {
        visitor.visit_some(branch)
    } }

    read! { deserialize_unit => |branch, visitor| if let What::Null = branch.node.what {
        visitor.visit_unit()
    } else {
        Err(branch.not(&visitor))
    } }

    read! { deserialize_seq => |branch, visitor| if let What::List(items) = &branch.node.what {
        visitor.visit_seq(Items { branch, items: items.iter() })
    } else {
        Err(Misfit::new(Why::NoList))
    } }

    read! { deserialize_map => |branch, visitor| if let What::Fields(fields) = &branch.node.what {
        let read = visitor.visit_map(Fields::of(branch, fields));
        read.map_err(|misfit| misfit.missing_behind(fields))
    } else {
        Err(Misfit::new(Why::NoFields))
    } }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        self.deserialize_map(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Misfit> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        let read = match name {
            SPOTTED => visitor.visit_seq(Spotted {
                branch: self,
                told: false,
            }),
            _ => visitor.visit_newtype_struct(self),
        };
        read.map_err(|misfit| misfit.at(self.node.spot))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        let read = match (&self.node.what, self.as_text()) {
            (_, Some(word)) => visitor.visit_enum(Self::word(word)),
            (What::Fields(fields), None) => {
                visitor.visit_enum(MapAccessDeserializer::new(Fields::of(self, fields)))
            }
            (_, None) => Err(self.not(&visitor)),
        };
        read.map_err(|misfit| misfit.at(self.node.spot))
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! { bytes byte_buf }
}

impl<'a> Branch<'a> {
    fn word<'de>(word: &'a str) -> impl EnumAccess<'de, Error = Misfit> {
        let word: StrDeserializer<'a, Misfit> = word.into_deserializer();
        word
    }
}

struct Items<'a> {
    branch: Branch<'a>,
    items: std::slice::Iter<'a, Node>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Misfit;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Misfit> {
        let item = self.items.next();
        item.map(|item| seed.deserialize(self.branch.of(item)))
            .transpose()
    }
}

struct Fields<'a> {
    branch: Branch<'a>,
    fields: std::slice::Iter<'a, (Node, Node)>,
    value: Option<&'a Node>,
}

impl<'a> Fields<'a> {
    fn of(branch: Branch<'a>, fields: &'a [(Node, Node)]) -> Self {
        Self {
            branch,
            fields: fields.iter(),
            value: None,
        }
    }
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Misfit;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Misfit> {
        let Some((key, value)) = self.fields.next() else {
            return Ok(None);
        };
        self.value = Some(value);
        seed.deserialize(self.branch.of(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Misfit> {
        let value = self.value.take();
        let value = value.ok_or_else(|| de::Error::custom("a value before its key"))?;
        seed.deserialize(self.branch.of(value))
    }
}

/// The place of a value in one number, and then the value.
struct Spotted<'a> {
    branch: Branch<'a>,
    told: bool,
}

impl<'de> SeqAccess<'de> for Spotted<'_> {
    type Error = Misfit;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Misfit> {
        if std::mem::replace(&mut self.told, true) {
            return seed.deserialize(self.branch).map(Some);
        }
        let spot: U128Deserializer<Misfit> = self.branch.node.spot.packed().into_deserializer();
        seed.deserialize(spot).map(Some)
    }
}

impl Spot {
    fn packed(self) -> u128 {
        let [line, column, length] = [self.line, self.column, self.length].map(u128::from);
        line << 64 | column << 32 | length
    }

    pub(crate) fn unpacked(packed: u128) -> Self {
        let part = |shift: u32| u32::try_from(packed >> shift & u128::from(u32::MAX));
        let [line, column, length] = [64, 32, 0].map(|shift| part(shift).unwrap_or_default());
        Self {
            line,
            column,
            length,
        }
    }
}
