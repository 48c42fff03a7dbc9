//! Where processes of one machine meet: a path, or a name in the network namespace.
//!
//! A path is its directory's to give away, and a file has an owner. An abstract name is anybody's who comes first, and the
//! network namespace says who can reach it: whoever uses one asks the kernel who is at the other end.

use std::fmt;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::{InvalidAddress, ListenAddress};

/// A name without a file: letters, digits and `.`, `_`, `-`, `/`, `@`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct AbstractName(String);

impl AbstractName {
    /// As the kernel, and whoever connects, writes it: after a zero.
    pub fn to_path(&self) -> PathBuf {
        let mut bytes = vec![0];
        bytes.extend(self.0.as_bytes());
        std::ffi::OsString::from_vec(bytes).into()
    }
}

impl FromStr for AbstractName {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let taken = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/@".contains(&byte);
        // 108 bytes are what the kernel takes, the zero before them included.
        match !text.is_empty() && text.len() <= 107 && text.bytes().all(taken) {
            true => Ok(Self(text.to_owned())),
            false => Err(InvalidAddress(format!("unix-abstract:{text}"))),
        }
    }
}

impl fmt::Display for AbstractName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A Unix socket: `/run/agent.sock`, `unix:/run/agent.sock`, `unix-abstract:agent` or, shorter, `@agent`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LocalAddress {
    /// A file; a relative path begins where the process does.
    Path(PathBuf),
    /// No file.
    Abstract(AbstractName),
}

impl LocalAddress {
    /// What connecting takes.
    pub fn to_path(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Abstract(name) => name.to_path(),
        }
    }
}

impl FromStr for LocalAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        // `./@agent` is a file.
        let name = text.strip_prefix("unix-abstract:");
        if let Some(name) = name.or(text.strip_prefix('@')) {
            return name.parse().map(Self::Abstract);
        }
        let path = text.strip_prefix("unix://").or(text.strip_prefix("unix:"));
        let path = path.unwrap_or(text);
        match path.is_empty() || path.contains('\0') {
            true => Err(InvalidAddress(text.to_owned())),
            false => Ok(Self::Path(path.into())),
        }
    }
}

impl From<&Path> for LocalAddress {
    fn from(path: &Path) -> Self {
        Self::Path(path.to_owned())
    }
}

impl From<&LocalAddress> for ListenAddress {
    fn from(address: &LocalAddress) -> Self {
        match address {
            LocalAddress::Path(path) => Self::Unix(path.clone()),
            LocalAddress::Abstract(name) => Self::Abstract(name.clone()),
        }
    }
}

impl fmt::Display for LocalAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Abstract(name) => write!(f, "unix-abstract:{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::listen::Listener;

    use super::*;

    #[test]
    fn a_socket_is_a_path_or_a_name() {
        for (text, shown) in [
            ("/run/agent.sock", "/run/agent.sock"),
            ("unix:///run/agent.sock", "/run/agent.sock"),
            ("unix:/run/agent.sock", "/run/agent.sock"),
            ("unix-abstract:agent/edge-1", "unix-abstract:agent/edge-1"),
            ("@agent/edge-1", "unix-abstract:agent/edge-1"),
            ("./@agent", "./@agent"),
        ] {
            assert_eq!(text.parse::<LocalAddress>().unwrap().to_string(), shown);
        }
        let long = format!("unix-abstract:{}", "a".repeat(108));
        for text in [
            "",
            "@",
            "unix-abstract:",
            "unix-abstract:a b",
            "unix-abstract:a\0b",
            &long,
        ] {
            assert!(text.parse::<LocalAddress>().is_err(), "{text:?}");
        }
    }

    #[tokio::test]
    async fn attack_a_name_that_somebody_has_taken_is_not_listened_on_and_they_are_named() {
        let name = format!("unix-abstract:fender-test-{}", std::process::id());
        let address: ListenAddress = name.parse().unwrap();
        let first = Listener::bind(&address).unwrap();
        assert_eq!(*first.local_address(), address);
        let refused = Listener::bind(&address).unwrap_err().to_string();
        let us = format!("process {} of user ", std::process::id());
        assert!(
            refused.contains(&us) && refused.contains(&name),
            "{refused}"
        );
        let connected =
            tokio::net::UnixStream::connect(name.parse::<LocalAddress>().unwrap().to_path());
        connected.await.unwrap();
    }
}
