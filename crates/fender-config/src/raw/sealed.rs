//! Sources that are encrypted files, as they are written.

use std::fmt;

#[cfg(test)]
use schemars::JsonSchema;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::documents::Via;
use crate::snapshot::SopsFormat;
use crate::yaml::{At, Word};

/// A file that age encrypted for one of the identities in another file.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct SourceAge {
    /// Binary or armoured.
    pub(crate) file: At<String>,
    /// As `age-keygen` writes it; of nobody but its owner.
    pub(crate) identity: At<String>,
    /// Who reads and opens it. Default: sidecar.
    pub(crate) via: Option<At<Word<Via>>>,
}

/// A file that SOPS encrypted for one of the age identities in another file.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct SourceSops {
    pub(crate) file: At<String>,
    /// Of age, as `age-keygen` writes it; of nobody but its owner.
    pub(crate) identity: At<String>,
    /// Default: as the name of the file ends, `binary` if it ends otherwise.
    pub(crate) format: Option<At<Word<SopsFormat>>>,
    /// Which part of it. Default: all of it.
    pub(crate) key: Option<At<DocumentKey>>,
    /// Who reads and opens it. Default: sidecar.
    pub(crate) via: Option<At<Word<Via>>>,
}

/// Steps between dots, or one by one.
#[derive(Clone, Debug)]
pub(crate) enum DocumentKey {
    Dotted(String),
    Steps(Vec<String>),
}

impl<'de> Deserialize<'de> for DocumentKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AsWritten)
    }
}

struct AsWritten;

impl<'de> Visitor<'de> for AsWritten {
    type Value = DocumentKey;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text as `database.password`, or a list as `[ database, password ]`")
    }

    fn visit_str<E>(self, text: &str) -> Result<DocumentKey, E> {
        Ok(DocumentKey::Dotted(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<DocumentKey, A::Error> {
        let mut steps = Vec::new();
        while let Some(step) = items.next_element()? {
            steps.push(step);
        }
        Ok(DocumentKey::Steps(steps))
    }
}
