//! Names of objects: `namespace/name`.

use std::fmt;
use std::str::FromStr;

/// `namespace/name`, both RFC 1123 labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    namespace: String,
    name: String,
}

impl ObjectName {
    pub fn new(namespace: &str, name: &str) -> Result<Self, InvalidName> {
        check_label(namespace)?;
        check_label(name)?;
        Ok(Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

impl FromStr for ObjectName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, name) = text.split_once('/').ok_or_else(|| InvalidName {
            text: text.to_owned(),
            why: "it does not have the form `namespace/name`",
        })?;
        Self::new(namespace, name)
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// RFC 1123: what Kubernetes and DNS both take.
pub(crate) fn check_label(text: &str) -> Result<(), InvalidName> {
    let refuse = |why| {
        Err(InvalidName {
            text: text.to_owned(),
            why,
        })
    };
    if text.is_empty() {
        return refuse("it is empty");
    }
    if text.len() > 63 {
        return refuse("it is longer than 63 characters");
    }
    if !text
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    {
        return refuse("it may hold only lower-case letters, digits and `-`");
    }
    if text.starts_with('-') || text.ends_with('-') {
        return refuse("it may not begin or end with `-`");
    }
    Ok(())
}

/// Letters, digits, `-`, `_` and `.`, beginning and ending with a letter or a digit: one part of a path, and never a way out
/// of a directory.
pub(crate) fn is_plain(text: &str) -> bool {
    let edges = [text.bytes().next(), text.bytes().last()];
    let edged = |edge: &Option<u8>| edge.is_some_and(|b| b.is_ascii_alphanumeric());
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    edges.iter().all(edged) && text.bytes().all(plain)
}

/// The text cannot name an object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a name: {why}")]
pub struct InvalidName {
    text: String,
    why: &'static str,
}
