//! Ids that say nothing: 128 random bits.
//!
//! For decisions and faults that a peer may quote to an operator. They are not counters, so nobody
//! learns from one how many there are, or guesses the next.

use std::fmt;
use std::str::FromStr;

use crate::random;

/// 128 random bits, written in lower-case hexadecimal.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct OpaqueId([u8; 16]);

impl OpaqueId {
    /// A new one.
    pub fn random() -> Self {
        Self(random::bytes())
    }
}

impl fmt::Display for OpaqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for OpaqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for OpaqueId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let canonical = text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if text.len() != 32 || !canonical {
            return Err(InvalidId);
        }
        let bits = u128::from_str_radix(text, 16).map_err(|_| InvalidId)?;
        Ok(Self(bits.to_be_bytes()))
    }
}

/// Not an id of ours.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("an id is 32 lower-case hexadecimal digits")]
pub struct InvalidId;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_being_written_and_read() {
        let id = OpaqueId::random();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_ne!(id, OpaqueId::random());
    }

    #[test]
    fn only_the_one_canonical_form_is_read() {
        let id = OpaqueId([0xab; 16]).to_string();
        assert_eq!(id, "ab".repeat(16));
        for text in [
            "",
            &id[1..],
            &format!("{id}0"),
            &id.to_uppercase(),
            &format!("+{}", &id[1..]),
        ] {
            assert_eq!(text.parse::<OpaqueId>(), Err(InvalidId), "{text}");
        }
    }
}
