//! What SOPS keeps beside the values, in the clear: who can have the key of the data, which values are encrypted, and what proves
//! that nothing has changed. None of it is believed by itself: the proof covers what it leads to.

use regex_lite::{Regex, RegexBuilder};

use super::value::Value;
use super::{Fault, Refused};

/// How many recipients a file may have: each is tried with each identity.
const MOST_RECIPIENTS: usize = 64;
/// The largest pattern, in bytes, and what it may become.
const LONGEST_PATTERN: usize = 1024;
const LARGEST_PATTERN: usize = 16 * 1024;
/// Every way in which SOPS wraps the key of the data.
const WAYS: [&str; 7] = [
    "pgp", "kms", "gcp_kms", "hckms", "azure_kv", "hc_vault", "age",
];

pub(super) struct Metadata {
    /// The key of the data, armoured by age, once for each recipient.
    pub(super) wrapped: Vec<String>,
    pub(super) which: Which,
    /// Whether the proof is of encrypted values alone.
    pub(super) only_encrypted_proven: bool,
    pub(super) proof: String,
    /// What the proof is bound to.
    pub(super) last_modified: String,
}

/// Which values are encrypted, by the names of the fields on the way to them.
pub(super) struct Which {
    matches: Matches,
    /// Whether those are the ones that are encrypted.
    encrypted: bool,
}

enum Matches {
    Suffix(String),
    Pattern(Regex),
}

impl Which {
    /// Whether the name of a field decides for all that is below it.
    pub(super) fn matches(&self, name: &str) -> bool {
        match &self.matches {
            Matches::Suffix(suffix) => name.ends_with(suffix),
            Matches::Pattern(pattern) => pattern.is_match(name),
        }
    }

    /// Whether a value is encrypted, if a name on the way to it `matched`.
    pub(super) fn encrypted(&self, matched: bool) -> bool {
        matched == self.encrypted
    }
}

impl Metadata {
    pub(super) fn read(kept: &Value) -> Result<Self, Refused> {
        if !matches!(kept, Value::Fields(_)) {
            return Err(Fault::of("has metadata of SOPS that is no mapping").into());
        }
        let proof = text(kept, "mac")?
            .filter(|proof| !proof.is_empty())
            .ok_or_else(|| Fault::of("has no MAC, so anybody can have changed it"))?;
        let last_modified = text(kept, "lastmodified")?
            .ok_or_else(|| Fault::of("does not say when it was last modified"))?;
        Ok(Self {
            wrapped: wrapped(kept)?,
            which: which(kept)?,
            only_encrypted_proven: flag(kept, "mac_only_encrypted")?,
            proof,
            last_modified,
        })
    }
}

fn wrapped(kept: &Value) -> Result<Vec<String>, Refused> {
    let some = |group: &Value, way: &str| matches!(group.field(way), Some(Value::List(keys)) if !keys.is_empty());
    let group = match kept.field("key_groups") {
        _ if WAYS.iter().any(|way| some(kept, way)) => kept,
        Some(Value::List(groups)) => match groups.as_slice() {
            [group] => group,
            _ => {
                return Err(Fault::of(
                    "has several key groups, and keys of more than one are never put together here; encrypt it for one group",
                )
                .into());
            }
        },
        Some(_) | None => kept,
    };
    let Some(Value::List(recipients)) = group.field("age") else {
        let others: Vec<_> = WAYS.into_iter().filter(|way| some(group, way)).collect();
        return Err(Refused::NotForUs(match others.as_slice() {
            [] => "is encrypted for nobody".to_owned(),
            others => format!(
                "is encrypted by way of {}, and not for age",
                others.join(", ")
            ),
        }));
    };
    if recipients.len() > MOST_RECIPIENTS {
        return Err(Fault::new(format!("is for more than {MOST_RECIPIENTS} recipients")).into());
    }
    let wrapped = recipients.iter().map(|recipient| {
        let key = text(recipient, "enc")?;
        Ok(key.ok_or_else(|| Fault::of("has a recipient of age without a key"))?)
    });
    wrapped.collect()
}

fn which(kept: &Value) -> Result<Which, Refused> {
    let rule = |name| Ok::<_, Fault>(text(kept, name)?.filter(|rule| !rule.is_empty()));
    for name in ["encrypted_comment_regex", "unencrypted_comment_regex"] {
        if rule(name)?.is_some() {
            return Err(Fault::new(format!(
                "says by `{name}` what is encrypted, and comments are not read"
            ))
            .into());
        }
    }
    let (suffixed, unsuffixed) = (rule("encrypted_suffix")?, rule("unencrypted_suffix")?);
    let (matched, unmatched) = (rule("encrypted_regex")?, rule("unencrypted_regex")?);
    let suffix = |suffix, encrypted| Which {
        matches: Matches::Suffix(suffix),
        encrypted,
    };
    let pattern = |text: String, encrypted| {
        Ok::<_, Refused>(Which {
            matches: Matches::Pattern(pattern(&text)?),
            encrypted,
        })
    };
    match (suffixed, unsuffixed, matched, unmatched) {
        (None, None, None, None) => Ok(suffix("_unencrypted".to_owned(), false)),
        (Some(rule), None, None, None) => Ok(suffix(rule, true)),
        (None, Some(rule), None, None) => Ok(suffix(rule, false)),
        (None, None, Some(rule), None) => pattern(rule, true),
        (None, None, None, Some(rule)) => pattern(rule, false),
        _ => Err(Fault::of("says in more than one way what is encrypted").into()),
    }
}

fn pattern(text: &str) -> Result<Regex, Fault> {
    let bounded = (text.len() <= LONGEST_PATTERN).then(|| {
        let mut builder = RegexBuilder::new(text);
        builder.size_limit(LARGEST_PATTERN).build().ok()
    });
    bounded.flatten().ok_or_else(|| {
        Fault::of("says by a pattern what is encrypted that is too large, or not understood")
    })
}

/// A text; a word or a number is none.
fn text(kept: &Value, name: &str) -> Result<Option<String>, Fault> {
    match kept.field(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Text(text)) => Ok(text.as_str().map(str::to_owned)),
        Some(_) => Err(Fault::new(format!(
            "has a `{name}` of SOPS that is no text"
        ))),
    }
}

fn flag(kept: &Value, name: &str) -> Result<bool, Fault> {
    match kept.field(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::Text(text)) if text.as_str() == Some("true") => Ok(true),
        Some(Value::Text(text)) if matches!(text.as_str(), Some("false" | "")) => Ok(false),
        Some(_) => Err(Fault::new(format!(
            "has a `{name}` of SOPS that is neither true nor false"
        ))),
    }
}
