//! What a file of a credential holds: the value itself, a part of it, or a text made of it.
//!
//! A value that is one JSON object has fields. A text is made of them by a [`Template`] or in a format that escapes what they
//! hold; nothing is filled in for a field that is not there.

use std::fmt;
use std::str::FromStr;

use super::Template;

/// What is made of the value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Content {
    /// Nothing: it is written byte by byte.
    #[default]
    Value,
    /// The text, whole number or truth value of one field.
    Field(FieldName),
    Template(Template),
    /// Fields with their names; all of them if none is named.
    Fields {
        format: FieldFormat,
        fields: Vec<FieldName>,
    },
    /// The PEM sections of these fields, one after the other; of the value itself if none is named.
    Pem {
        fields: Vec<FieldName>,
    },
    Pkcs12(KeyStore),
}

impl Content {
    /// How many fields a file may be made of.
    pub const MOST_FIELDS: usize = 64;
}

/// How fields and their names are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FieldFormat {
    /// One object (RFC 8259).
    Json,
    /// One mapping (YAML 1.2, and the same to readers of 1.1).
    Yaml,
    /// `NAME=value` lines, as applications and container engines read them from `.env`.
    Dotenv,
    /// As `java.util.Properties` reads them.
    Properties,
}

/// A PKCS#12 store (RFC 7292): a private key with its certificates, or certificates to trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyStore {
    /// Whose PEM sections go into it; those of the value itself if none is named.
    pub fields: Vec<FieldName>,
    /// By what an application finds the entry; the name of the credential if none is given.
    pub alias: Option<Alias>,
    pub password: StorePassword,
}

/// What opens a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StorePassword {
    /// A field of the secret.
    Field(FieldName),
    /// It is made here, anew whenever the key changes, and written to a file of this name in the same set.
    Generated(EntryName),
}

/// The name of a field of a secret: 256 bytes at most, without control characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FieldName(String);

impl FieldName {
    /// In bytes.
    pub const LONGEST: usize = 256;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for FieldName {
    type Err = InvalidFieldName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() || text.len() > Self::LONGEST || text.chars().any(char::is_control) {
            return Err(InvalidFieldName);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for FieldName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a field has a name of 256 bytes at most, without control characters")]
pub struct InvalidFieldName;

/// The name of an entry in a store: 64 letters, digits, `-`, `_` and `.` at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias(String);

impl Alias {
    /// In bytes.
    pub const LONGEST: usize = 64;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Alias {
    type Err = InvalidAlias;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() || text.len() > Self::LONGEST || !text.bytes().all(is_portable) {
            return Err(InvalidAlias);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an alias has 64 letters, digits, `-`, `_` and `.` at most")]
pub struct InvalidAlias;

/// The name of a file in a set: 128 letters, digits, `-`, `_` and `.` at most. It is one part of a path, and nothing that
/// begins with `..`: such names are the set's own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryName(String);

impl EntryName {
    /// In bytes.
    pub const LONGEST: usize = 128;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for EntryName {
    type Err = InvalidEntryName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let usable = (1..=Self::LONGEST).contains(&text.len())
            && text.bytes().all(is_portable)
            && text != "."
            && !text.starts_with("..");
        if !usable {
            return Err(InvalidEntryName);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a file of a set has 128 letters, digits, `-`, `_` and `.` at most, and does not begin with `..`"
)]
pub struct InvalidEntryName;

fn is_portable(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attack_no_name_of_a_file_leads_out_of_its_set_or_into_its_machinery() {
        let long = "a".repeat(129);
        for name in [
            "",
            ".",
            "..",
            "..data",
            "...",
            "../x",
            "a/b",
            "/etc/passwd",
            "a b",
            "a\n",
            "a\0",
            "ä",
            &long,
        ] {
            assert!(name.parse::<EntryName>().is_err(), "{name:?}");
        }
        for name in [".env", "url.txt", "TLS_key-1.pem", &long[..128]] {
            assert!(name.parse::<EntryName>().is_ok(), "{name:?}");
        }
    }

    #[test]
    fn a_field_may_be_called_anything_that_is_no_way_to_write_lines() {
        for name in ["", "a\nb", "a\u{7f}", &"a".repeat(257)] {
            assert!(name.parse::<FieldName>().is_err(), "{name:?}");
        }
        for name in ["ca-chain", "Benutzer Name", "名"] {
            assert!(name.parse::<FieldName>().is_ok(), "{name:?}");
        }
        assert!("".parse::<Alias>().is_err() && "a b".parse::<Alias>().is_err());
    }
}
