//! What an agent found out about a process: uid, gid, program and container, as kernel and engine say it.
//!
//! Facts are the agent's word. Whether to believe them, and for which workloads, is the control plane's to decide.

use std::collections::BTreeMap;
use std::fmt;

use fender_config::{Image, Sha256};

use crate::convert::InvalidField;
use crate::proto::control::v1 as proto;

/// The longest of any text.
const MAX_TEXT: usize = 4096;
/// Labels, and digests, of one container.
const MAX_ENTRIES: usize = 256;

/// About one process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Absent if its users and paths are not those of the host.
    pub process: Option<ProcessFacts>,
    /// Absent if it runs in none that the engine knows.
    pub container: Option<ContainerFacts>,
}

/// As the kernel says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessFacts {
    pub uid: u32,
    pub gid: u32,
    /// Of its program. Absent: not found out, or replaced since.
    pub path: Option<String>,
    /// Of its program.
    pub sha256: Option<Sha256>,
}

/// As the engine says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerFacts {
    pub id: String,
    /// What it was made from; always an [`Image::Id`] where an engine said it.
    pub image: Image,
    pub digests: Vec<Image>,
    pub labels: BTreeMap<String, String>,
}

/// For people: no label, because some hold secrets.
impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.process {
            Some(process) => {
                write!(f, "uid {}, gid {}", process.uid, process.gid)?;
                if let Some(path) = &process.path {
                    write!(f, ", path {}", path.escape_debug())?;
                }
                if let Some(sha256) = &process.sha256 {
                    write!(f, ", sha256 {sha256}")?;
                }
            }
            None => f.write_str("a process whose users and paths are not the host's")?,
        }
        match &self.container {
            Some(container) => write!(f, ", container {}, image {}", container.id, container.image),
            None => Ok(()),
        }
    }
}

impl From<&Facts> for proto::Facts {
    fn from(facts: &Facts) -> Self {
        Self {
            process: facts.process.as_ref().map(|process| proto::ProcessFacts {
                uid: process.uid,
                gid: process.gid,
                path: process.path.clone().unwrap_or_default(),
                sha256: process
                    .sha256
                    .map(|sha256| sha256.0.to_vec())
                    .unwrap_or_default(),
            }),
            container: facts
                .container
                .as_ref()
                .map(|container| proto::ContainerFacts {
                    id: container.id.clone(),
                    image: container.image.to_string(),
                    digests: container.digests.iter().map(ToString::to_string).collect(),
                    labels: container.labels.clone().into_iter().collect(),
                }),
        }
    }
}

impl TryFrom<proto::Facts> for Facts {
    type Error = InvalidField;

    fn try_from(facts: proto::Facts) -> Result<Self, InvalidField> {
        Ok(Self {
            process: facts.process.map(ProcessFacts::try_from).transpose()?,
            container: facts.container.map(ContainerFacts::try_from).transpose()?,
        })
    }
}

impl TryFrom<proto::ProcessFacts> for ProcessFacts {
    type Error = InvalidField;

    fn try_from(facts: proto::ProcessFacts) -> Result<Self, InvalidField> {
        if facts.path.len() > MAX_TEXT {
            return Err(InvalidField::new("path", "is too long"));
        }
        let sha256 = match facts.sha256.as_slice() {
            [] => None,
            bytes => Some(
                <[u8; 32]>::try_from(bytes)
                    .map(Sha256)
                    .map_err(|_| InvalidField::new("sha256", "is not 32 bytes"))?,
            ),
        };
        Ok(Self {
            uid: facts.uid,
            gid: facts.gid,
            path: Some(facts.path).filter(|path| !path.is_empty()),
            sha256,
        })
    }
}

impl TryFrom<proto::ContainerFacts> for ContainerFacts {
    type Error = InvalidField;

    fn try_from(facts: proto::ContainerFacts) -> Result<Self, InvalidField> {
        let long = |text: &String| text.len() > MAX_TEXT;
        if facts.labels.len() > MAX_ENTRIES || facts.digests.len() > MAX_ENTRIES {
            return Err(InvalidField::new(
                "container",
                "has too many labels or digests",
            ));
        }
        if long(&facts.id)
            || facts
                .labels
                .iter()
                .any(|(key, value)| long(key) || long(value))
        {
            return Err(InvalidField::new(
                "container",
                "has a text that is too long",
            ));
        }
        let image = |field: &str, text: &str| {
            text.parse::<Image>()
                .map_err(|error| InvalidField::new(field, error.to_string()))
        };
        Ok(Self {
            image: image("image", &facts.image)?,
            digests: facts
                .digests
                .iter()
                .map(|text| image("digests", text))
                .collect::<Result<_, _>>()?,
            id: facts.id,
            labels: facts.labels.into_iter().collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            process: Some(ProcessFacts {
                uid: 1000,
                gid: 1001,
                path: Some("/usr/bin/orders".to_owned()),
                sha256: Some(Sha256([7; 32])),
            }),
            container: Some(ContainerFacts {
                id: "c0ffee".to_owned(),
                image: Image::Id(Sha256([8; 32])),
                digests: vec![
                    format!("registry.example/orders@sha256:{}", Sha256([9; 32]))
                        .parse()
                        .unwrap(),
                ],
                labels: [("a".to_owned(), "hidden".to_owned())].into(),
            }),
        }
    }

    #[test]
    fn facts_survive_their_message() {
        for facts in [facts(), Facts::default()] {
            assert_eq!(Facts::try_from(proto::Facts::from(&facts)).unwrap(), facts);
        }
    }

    #[test]
    fn labels_are_not_told() {
        let told = facts().to_string();
        assert!(
            told.contains("uid 1000") && told.contains("c0ffee"),
            "{told}"
        );
        assert!(!told.contains("hidden"), "{told}");
    }

    #[test]
    fn attack_facts_without_bounds_are_refused() {
        let mut many = proto::Facts::from(&facts());
        let container = many.container.as_mut().unwrap();
        container.labels = (0..1000).map(|n| (n.to_string(), String::new())).collect();
        assert!(Facts::try_from(many).is_err());
        let mut long = proto::Facts::from(&facts());
        long.process.as_mut().unwrap().path = "/".repeat(MAX_TEXT + 1);
        assert!(Facts::try_from(long).is_err());
        let mut half = proto::Facts::from(&facts());
        half.process.as_mut().unwrap().sha256.truncate(16);
        assert!(Facts::try_from(half).is_err());
    }
}
