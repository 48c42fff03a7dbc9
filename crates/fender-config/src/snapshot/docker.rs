//! Where Docker, Compose and Swarm put a secret into a container: a file of its name in one directory.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::name::is_plain;

/// A secret as an engine mounts it into a container.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DockerSecret {
    pub name: DockerSecretName,
    pub directory: PathBuf,
}

impl DockerSecret {
    /// Where engines mount secrets unless they are told otherwise.
    pub const DIRECTORY: &str = "/run/secrets";

    /// The file that holds it: always in `directory` itself.
    pub fn path(&self) -> PathBuf {
        self.directory.join(&self.name.0)
    }
}

/// What Swarm takes as the name of a secret. It is one part of a path and never a way out of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DockerSecretName(String);

impl DockerSecretName {
    const LONGEST: usize = 64;
}

impl FromStr for DockerSecretName {
    type Err = InvalidSecretName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > Self::LONGEST || !is_plain(text) {
            return Err(InvalidSecretName(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for DockerSecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// No engine has a secret of this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the name of a Docker secret")]
pub struct InvalidSecretName(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_swarm_takes_as_a_name_is_one() {
        let longest = "a".repeat(64);
        for name in [
            "smtp",
            "7",
            "db.password",
            "a-b_c.d",
            "DB_PASSWORD",
            &longest,
        ] {
            let secret = DockerSecret {
                name: name.parse().unwrap(),
                directory: DockerSecret::DIRECTORY.into(),
            };
            assert_eq!(
                secret.path().to_str(),
                Some(&*format!("/run/secrets/{name}"))
            );
        }
    }

    #[test]
    fn no_name_leads_out_of_the_directory() {
        let too_long = "a".repeat(65);
        for name in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "/etc/passwd",
            "a/..",
            ".hidden",
            "x.",
            "-x",
            "a b",
            "a\0b",
            "ä",
            "a\n",
            &too_long,
        ] {
            assert!(name.parse::<DockerSecretName>().is_err(), "{name:?}");
        }
    }
}
