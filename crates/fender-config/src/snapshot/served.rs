//! What an application asks the sidecar for, at its socket or its URL.

use std::fmt;
use std::str::FromStr;

use super::FileDelivery;
use crate::name::{ObjectName, is_plain};

/// A credential that is handed to whoever asks for it at the socket and is one of these users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketDelivery {
    pub name: ServedName,
    /// Names or numbers, one at least; nobody else, not even root, receives it.
    pub users: Vec<String>,
}

impl SocketDelivery {
    /// How many users a delivery may name: each has connections of its own.
    pub const MOST_USERS: usize = 16;
}

/// A credential that is served over HTTP on loopback to whoever shows a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UrlDelivery {
    pub name: ServedName,
    pub form: UrlForm,
    /// Where the consumer finds its token, which is made anew whenever the sidecar starts.
    pub token: FileDelivery,
}

/// What is served at which path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UrlForm {
    /// The value as it is, at `/v1/credentials/NAME`.
    #[default]
    Value,
    /// The value, which must be what AWS SDKs expect of a container's credentials, at `/v1/aws/NAME`.
    Aws,
}

impl UrlForm {
    /// The path up to the name.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Value => "/v1/credentials/",
            Self::Aws => "/v1/aws/",
        }
    }
}

/// The name by which a credential is asked for: 64 letters, digits, `-`, `_` and `.` at most, beginning and ending with a
/// letter or a digit. It is one word of a request and one segment of a path, and never a way out of either.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServedName(String);

impl ServedName {
    /// In bytes.
    pub const LONGEST: usize = 64;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a credential is called where nothing else is said.
impl From<&ObjectName> for ServedName {
    fn from(name: &ObjectName) -> Self {
        // A label of RFC 1123 is one.
        Self(name.name().to_owned())
    }
}

impl FromStr for ServedName {
    type Err = InvalidServedName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > Self::LONGEST || !is_plain(text) {
            return Err(InvalidServedName);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ServedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Nothing is served under such a name. The text is not repeated: it may be a peer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it is no name to ask for: 64 letters, digits, `-`, `_` and `.` at most, beginning and ending with a letter or a digit"
)]
pub struct InvalidServedName;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_has_its_own_name_unless_it_is_given_another() {
        let longest = ObjectName::new("shop", &"a".repeat(63)).unwrap();
        for name in [ObjectName::new("shop", "smtp").unwrap(), longest] {
            let served = ServedName::from(&name);
            assert_eq!(served.as_str().parse(), Ok(served.clone()));
        }
    }

    #[test]
    fn attack_no_name_is_a_way_out_of_a_line_or_a_path() {
        let too_long = "a".repeat(65);
        for name in [
            "", ".", "..", "../x", "a/b", "a//b", "a b", "a\n", "a\r", "a\0b", "%2e", "a?b", "ä",
            "-a", "a.", &too_long,
        ] {
            assert!(name.parse::<ServedName>().is_err(), "{name:?}");
        }
        assert!("DB_password.v2".parse::<ServedName>().is_ok());
    }
}
