//! What was shown for a certificate, and what it proved; both go on record with it.
//!
//! [`Evidence`] is for whoever asks later how somebody came to a certificate. Its [`Basis`] is for ourselves: what was
//! attested when a line of renewals began, kept in the row of every certificate of the line, so that each renewal is
//! judged by it without following the line back. No secret is in either: of a token a part of its hash, of a container
//! only the labels that a document names, which are in the document as well.

use fender_api::facts::{ContainerFacts, Facts, ProcessFacts};
use fender_config::Sha256;
use fender_identity::existing::Shown;
use fender_identity::{NodeName, Serial, SpiffeId, Validity};
use serde::{Deserialize, Serialize};

use crate::clusters::{self, Account, ServiceAccount};
use crate::existing;
use crate::store::{StoreError, tokens};
use crate::time::{moment, seconds};

/// What was shown.
#[derive(Clone, Debug)]
pub(crate) enum Evidence {
    JoinToken {
        token: tokens::Hash,
        source: String,
    },
    /// A cluster vouched for a service account.
    Kubernetes {
        vouched: Box<clusters::Vouched>,
        source: String,
    },
    /// Another authority's certificate.
    X509 {
        vouched: Box<existing::Vouched>,
        source: String,
    },
    /// The certificate before, valid or expired within grace.
    Certificate {
        serial: Serial,
        expired: bool,
        line: Line,
        source: String,
    },
    /// The word of a node's agent about a process there.
    Agent {
        node: NodeName,
        /// The certificate the agent asked with.
        agent: Serial,
        /// Which entry of `attest` it satisfied.
        attestor: &'static str,
        /// Without what no document names.
        facts: Facts,
        source: String,
    },
    /// The control plane, about itself.
    Control,
    /// Whoever owns the data directory.
    DataDirectory,
    Administrator {
        by: SpiffeId,
        /// The certificate they asked with.
        through: Serial,
        source: String,
    },
}

/// What a document admitted: facts that its `attest` can be asked about again.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Basis {
    Token,
    Kubernetes(ServiceAccount),
    X509(existing::Vouched),
    Agent { node: NodeName, facts: Facts },
}

/// Certificates of which each was renewed from the one before.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Line {
    pub(crate) first: Serial,
    pub(crate) basis: Basis,
}

/// What a certificate's row says of where it comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Provenance {
    pub(crate) evidence: String,
    pub(crate) attested: Option<String>,
    pub(crate) lineage: Option<Serial>,
    pub(crate) through: Option<Serial>,
    pub(crate) node: Option<NodeName>,
}

impl Evidence {
    /// As documents write it, where one does.
    pub(crate) fn attestor(&self) -> &'static str {
        match self {
            Evidence::JoinToken { .. } => "token",
            Evidence::Kubernetes { .. } => "kubernetes",
            Evidence::X509 { .. } => "x509",
            Evidence::Certificate { .. } => "certificate",
            Evidence::Agent { attestor, .. } => attestor,
            Evidence::Control => "control",
            Evidence::DataDirectory => "data-directory",
            Evidence::Administrator { .. } => "administrator",
        }
    }

    /// The node whose agent vouched, or vouched once.
    pub(crate) fn node(&self) -> Option<&NodeName> {
        match self {
            Evidence::Agent { node, .. } => Some(node),
            Evidence::Certificate { line, .. } => line.basis.node(),
            Evidence::JoinToken { .. }
            | Evidence::Kubernetes { .. }
            | Evidence::X509 { .. }
            | Evidence::Control
            | Evidence::DataDirectory
            | Evidence::Administrator { .. } => None,
        }
    }

    /// For the row of a certificate of this identity.
    pub(crate) fn provenance(&self, identity: &SpiffeId) -> Provenance {
        let (lineage, through) = match self {
            Evidence::Certificate { serial, line, .. } => {
                (Some(line.first.clone()), Some(serial.clone()))
            }
            Evidence::Agent { agent, .. } => (None, Some(agent.clone())),
            Evidence::Administrator { through, .. } => (None, Some(through.clone())),
            Evidence::JoinToken { .. }
            | Evidence::Kubernetes { .. }
            | Evidence::X509 { .. }
            | Evidence::Control
            | Evidence::DataDirectory => (None, None),
        };
        Provenance {
            evidence: self.to_json(),
            attested: self.basis().map(|basis| basis.to_json()),
            lineage,
            through,
            node: identity.node().or_else(|| self.node().cloned()),
        }
    }

    /// What it proves of whoever attests by a document.
    pub(crate) fn basis(&self) -> Option<Basis> {
        match self {
            Evidence::JoinToken { .. } => Some(Basis::Token),
            Evidence::Kubernetes { vouched, .. } => Some(Basis::Kubernetes(vouched.whose.clone())),
            Evidence::X509 { vouched, .. } => Some(Basis::X509((**vouched).clone())),
            Evidence::Certificate { line, .. } => Some(line.basis.clone()),
            Evidence::Agent { node, facts, .. } => Some(Basis::Agent {
                node: node.clone(),
                facts: facts.clone(),
            }),
            Evidence::Control | Evidence::DataDirectory | Evidence::Administrator { .. } => None,
        }
    }

    fn to_json(&self) -> String {
        match self {
            Evidence::JoinToken { token, source } => {
                serde_json::json!({ "attestor": "token", "token": tokens::short(token), "source": source })
            }
            Evidence::Kubernetes { vouched, source } => {
                let ServiceAccount { cluster, issuer: _, account } = &vouched.whose;
                serde_json::json!({
                    "attestor": "kubernetes", "cluster": cluster, "namespace": account.namespace,
                    "service_account": account.name, "pod": account.pod, "pod_uid": account.pod_uid,
                    "node": account.node, "token_id": vouched.token_id,
                    "token_sha256_prefix": tokens::short(&vouched.token), "source": source,
                })
            }
            Evidence::X509 { vouched, source } => {
                let shown = &vouched.shown;
                serde_json::json!({
                    "attestor": "x509", "authority": vouched.authority, "roots": written(&vouched.roots),
                    "subject": shown.subject,
                    "dns_names": shown.dns_names, "uris": shown.uris, "serial": shown.serial.to_string(),
                    "not_after": shown.validity.not_after.as_secs(), "sha256": Sha256(shown.sha256).to_string(),
                    "source": source,
                })
            }
            Evidence::Certificate { serial, expired, line, source } => serde_json::json!({
                "attestor": "certificate", "serial": serial.to_string(), "expired": expired,
                "first": line.first.to_string(), "source": source,
            }),
            Evidence::Agent { node, agent, attestor, facts, source } => serde_json::json!({
                "attestor": attestor, "node": node.as_str(), "agent": agent.to_string(), "facts": facts.to_string(),
                "source": source,
            }),
            Evidence::Control => serde_json::json!({ "attestor": "control" }),
            Evidence::DataDirectory => serde_json::json!({ "attestor": "data-directory" }),
            Evidence::Administrator { by, through, source } => serde_json::json!({
                "attestor": "administrator", "by": by.as_str(), "serial": through.to_string(), "source": source,
            }),
        }
        .to_string()
    }
}

impl Basis {
    pub(crate) fn attestor(&self) -> &'static str {
        match self {
            Basis::Token => "token",
            Basis::Kubernetes(_) => "kubernetes",
            Basis::X509(_) => "x509",
            Basis::Agent { facts, .. } if facts.container.is_some() => "docker",
            Basis::Agent { .. } => "unix",
        }
    }

    pub(crate) fn node(&self) -> Option<&NodeName> {
        match self {
            Basis::Agent { node, .. } => Some(node),
            Basis::Token | Basis::Kubernetes(_) | Basis::X509(_) => None,
        }
    }

    fn to_json(&self) -> String {
        serde_json::to_string(&Written::from(self)).unwrap_or_default()
    }

    /// What [`Evidence::provenance`] wrote.
    pub(crate) fn from_json(text: &str) -> Result<Self, StoreError> {
        serde_json::from_str::<Written>(text)
            .ok()
            .and_then(Written::read)
            .ok_or(StoreError::Damaged("record of what was attested"))
    }
}

/// As it lies in the database.
#[derive(Serialize, Deserialize)]
#[serde(tag = "attestor", rename_all = "lowercase", deny_unknown_fields)]
enum Written {
    Token,
    Kubernetes {
        cluster: String,
        issuer: String,
        namespace: String,
        service_account: String,
        pod: Option<String>,
        pod_uid: Option<String>,
        node: Option<String>,
    },
    X509 {
        authority: String,
        /// Not there in what was written before roots were.
        #[serde(default)]
        roots: Vec<String>,
        subject: Option<String>,
        dns_names: Vec<String>,
        uris: Vec<String>,
        sha256: String,
        serial: String,
        not_before: i64,
        not_after: i64,
    },
    Agent {
        node: String,
        process: Option<WrittenProcess>,
        container: Option<WrittenContainer>,
    },
}

fn written(roots: &[[u8; 32]]) -> Vec<String> {
    roots.iter().map(|root| Sha256(*root).to_string()).collect()
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenProcess {
    uid: u32,
    gid: u32,
    path: Option<String>,
    sha256: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenContainer {
    id: String,
    image: String,
    digests: Vec<String>,
    labels: std::collections::BTreeMap<String, String>,
}

impl From<&Basis> for Written {
    fn from(basis: &Basis) -> Self {
        match basis {
            Basis::Token => Self::Token,
            Basis::Kubernetes(ServiceAccount {
                cluster,
                issuer,
                account,
            }) => Self::Kubernetes {
                cluster: cluster.clone(),
                issuer: issuer.clone(),
                namespace: account.namespace.clone(),
                service_account: account.name.clone(),
                pod: account.pod.clone(),
                pod_uid: account.pod_uid.clone(),
                node: account.node.clone(),
            },
            Basis::X509(existing::Vouched {
                authority,
                shown,
                roots,
            }) => Self::X509 {
                authority: authority.clone(),
                roots: written(roots),
                subject: shown.subject.clone(),
                dns_names: shown.dns_names.clone(),
                uris: shown.uris.clone(),
                sha256: Sha256(shown.sha256).to_string(),
                serial: shown.serial.to_string(),
                not_before: seconds(shown.validity.not_before),
                not_after: seconds(shown.validity.not_after),
            },
            Basis::Agent { node, facts } => Self::Agent {
                node: node.to_string(),
                process: facts.process.as_ref().map(|process| WrittenProcess {
                    uid: process.uid,
                    gid: process.gid,
                    path: process.path.clone(),
                    sha256: process.sha256.map(|sha256| sha256.to_string()),
                }),
                container: facts.container.as_ref().map(|container| WrittenContainer {
                    id: container.id.clone(),
                    image: container.image.to_string(),
                    digests: container.digests.iter().map(ToString::to_string).collect(),
                    labels: container.labels.clone(),
                }),
            },
        }
    }
}

impl Written {
    fn read(self) -> Option<Basis> {
        Some(match self {
            Self::Token => Basis::Token,
            Self::Kubernetes {
                cluster,
                issuer,
                namespace,
                service_account,
                pod,
                pod_uid,
                node,
            } => Basis::Kubernetes(ServiceAccount {
                cluster,
                issuer,
                account: Account {
                    namespace,
                    name: service_account,
                    pod,
                    pod_uid,
                    node,
                },
            }),
            Self::X509 {
                authority,
                roots,
                subject,
                dns_names,
                uris,
                sha256,
                serial,
                not_before,
                not_after,
            } => Basis::X509(existing::Vouched {
                authority,
                roots: roots
                    .iter()
                    .map(|root| root.parse::<Sha256>().ok().map(|root| root.0))
                    .collect::<Option<_>>()?,
                shown: Shown {
                    subject,
                    dns_names,
                    uris,
                    sha256: sha256.parse::<Sha256>().ok()?.0,
                    serial: serial.parse().ok()?,
                    validity: Validity {
                        not_before: moment(not_before),
                        not_after: moment(not_after),
                    },
                },
            }),
            Self::Agent {
                node,
                process,
                container,
            } => Basis::Agent {
                node: node.parse().ok()?,
                facts: Facts {
                    process: match process {
                        Some(process) => Some(process.read()?),
                        None => None,
                    },
                    container: match container {
                        Some(container) => Some(container.read()?),
                        None => None,
                    },
                },
            },
        })
    }
}

impl WrittenProcess {
    fn read(self) -> Option<ProcessFacts> {
        let sha256 = match self.sha256 {
            Some(text) => Some(text.parse().ok()?),
            None => None,
        };
        Some(ProcessFacts {
            uid: self.uid,
            gid: self.gid,
            path: self.path,
            sha256,
        })
    }
}

impl WrittenContainer {
    fn read(self) -> Option<ContainerFacts> {
        Some(ContainerFacts {
            id: self.id,
            image: self.image.parse().ok()?,
            digests: self
                .digests
                .iter()
                .map(|text| text.parse().ok())
                .collect::<Option<_>>()?,
            labels: self.labels,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_attested_is_read_as_it_was_written() {
        let digest = "a".repeat(64);
        let facts = Facts {
            process: Some(ProcessFacts {
                uid: 1000,
                gid: 1001,
                path: Some("/usr/bin/orders".to_owned()),
                sha256: Some(digest.parse().unwrap()),
            }),
            container: Some(ContainerFacts {
                id: "c0ffee".to_owned(),
                image: format!("sha256:{digest}").parse().unwrap(),
                digests: vec![format!("r.example/orders@sha256:{digest}").parse().unwrap()],
                labels: [("service".to_owned(), "orders".to_owned())].into(),
            }),
        };
        let shown = Shown {
            subject: Some("CN=orders".to_owned()),
            dns_names: vec!["orders.acme.internal".to_owned()],
            uris: vec!["urn:acme:orders".to_owned()],
            sha256: [7; 32],
            serial: "4f".parse().unwrap(),
            validity: Validity {
                not_before: moment(1),
                not_after: moment(2),
            },
        };
        for basis in [
            Basis::Token,
            Basis::Kubernetes(ServiceAccount {
                cluster: "east".to_owned(),
                issuer: "https://issuer".to_owned(),
                account: Account {
                    namespace: "shop".to_owned(),
                    name: "orders".to_owned(),
                    pod: Some("orders-1".to_owned()),
                    pod_uid: None,
                    node: Some("node-a".to_owned()),
                },
            }),
            Basis::X509(existing::Vouched {
                authority: "corporate".to_owned(),
                shown: shown.clone(),
                roots: Vec::new(),
            }),
            Basis::X509(existing::Vouched {
                authority: "corporate".to_owned(),
                shown,
                roots: vec![[1; 32], [2; 32]],
            }),
            Basis::Agent {
                node: "edge-1".parse().unwrap(),
                facts,
            },
            Basis::Agent {
                node: "edge-1".parse().unwrap(),
                facts: Facts::default(),
            },
        ] {
            assert_eq!(Basis::from_json(&basis.to_json()).unwrap(), basis);
        }
        for damaged in ["", "{}", r#"{"attestor":"x509"}"#] {
            assert!(Basis::from_json(damaged).is_err(), "{damaged}");
        }
    }
}
