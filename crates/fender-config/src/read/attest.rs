//! The entries of `attest`: how somebody proves to be what the document describes.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::str::FromStr;

use fender_identity::NodeName;

use super::vouching::Names;
use super::{Known, NAME_HELP, file_path};
use crate::documents::{
    Attestor, DockerSelector, Image, Kind, KubernetesSelector, On, Sha256, UnixSelector,
    X509Selector,
};
use crate::name::check_label;
use crate::raw;
use crate::suggest::nearest;
use crate::yaml::{At, Reader};

/// One entry, with what it says of nodes still to be looked up.
pub(crate) struct Entry {
    pub(crate) attestor: Attestor,
    pub(crate) on: Option<At<On>>,
    /// What the Mesh calls who vouches.
    pub(crate) by: Option<At<String>>,
}

/// Whom entries may refer to.
#[derive(Debug)]
pub(crate) struct Whom {
    /// Of nodes.
    pub(crate) groups: BTreeSet<String>,
    pub(crate) vouching: Names,
}

/// Who may attest is a workload, or the agent of a node.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    Workload,
    Node,
}

const EMPTY: &str = "fender::no-attest";

pub(crate) fn attest(
    reader: &mut Reader<'_>,
    metadata: &At<raw::Metadata>,
    written: Option<&[At<raw::Attest>]>,
    whose: Whose,
) -> Vec<Entry> {
    let written = written.unwrap_or_default();
    if written.is_empty() {
        let message = match whose {
            Whose::Workload => "without `attest`, nobody can become this workload",
            Whose::Node => "without `attest`, no agent can become this node's",
        };
        let help = "to let join tokens be made for it, write `attest: [ { token: {} } ]`";
        reader.warn(&metadata.value.name, EMPTY, message, help);
    }
    written
        .iter()
        .filter_map(|at| entry(reader, at, whose))
        .collect()
}

fn entry(reader: &mut Reader<'_>, at: &At<raw::Attest>, whose: Whose) -> Option<Entry> {
    let raw::Attest {
        token,
        docker,
        unix,
        kubernetes,
        x509,
    } = &at.value;
    let named = [
        token.is_some(),
        unix.is_some(),
        docker.is_some(),
        kubernetes.is_some(),
        x509.is_some(),
    ];
    if named.into_iter().filter(|named| *named).count() != 1 {
        reader.wrong(
            at,
            "fender::one-of",
            "an entry of `attest` names exactly one way to attest",
            "write `{ token: {} }`, `{ unix: { … } }`, `{ docker: { … } }`, `{ kubernetes: { … } }` or \
             `{ x509: { … } }`; several ways are several entries, and any one of them is enough",
        );
        return None;
    }
    for (field, there) in [("unix", unix.is_some()), ("docker", docker.is_some())] {
        if there && whose == Whose::Node {
            reader.wrong(
                at,
                "fender::wrong-place",
                format!("an agent cannot attest by `{field}`: it would vouch for itself"),
                "write `{ token: {} }`, `{ kubernetes: { … } }` or `{ x509: { … } }`; `unix` and `docker` belong into a Workload",
            );
            return None;
        }
    }
    if let Some(raw::Token {}) = token {
        return Some(Entry {
            attestor: Attestor::Token,
            on: None,
            by: None,
        });
    }
    if let Some(written) = unix {
        return self::unix(reader, written);
    }
    if let Some(written) = docker {
        return self::docker(reader, written);
    }
    if let Some(written) = kubernetes {
        if whose == Whose::Node && written.value.node.is_none() && written.value.pod.is_none() {
            reader.wrong(
                at,
                "fender::missing-field",
                "whoever runs as this service account, on whichever node of the cluster, could become this node's agent",
                "narrow it by `node`, as the cluster calls this host",
            );
            return None;
        }
        return self::kubernetes(reader, &written.value);
    }
    x509.as_ref()
        .and_then(|written| self::x509(reader, written))
}

fn kubernetes(reader: &mut Reader<'_>, written: &raw::KubernetesSelector) -> Option<Entry> {
    let raw::KubernetesSelector {
        cluster,
        namespace,
        service_account,
        pod,
        node,
    } = written;
    let names = [
        (cluster, "the Mesh's name for the cluster"),
        (namespace, "the pod's namespace"),
    ];
    for (at, what) in names {
        let help = format!("it is {what}: letters, digits and `-`");
        reader.take(at, "fender::bad-name", &help, check_label(&at.value))?;
    }
    let others = [Some(service_account), pod.as_ref(), node.as_ref()];
    for at in others.into_iter().flatten() {
        // Names of objects in a cluster: labels joined by dots.
        if at.value.len() > 253 || at.value.split('.').any(|label| check_label(label).is_err()) {
            let message = format!("`{}` is no name of an object in a cluster", at.value);
            let help = "one name, to the letter: there are no patterns";
            reader.wrong(at, "fender::bad-name", message, help);
            return None;
        }
    }
    let text = |at: &Option<At<String>>| at.as_ref().map(|at| at.value.clone());
    let selector = KubernetesSelector {
        cluster: cluster.value.clone(),
        namespace: namespace.value.clone(),
        service_account: service_account.value.clone(),
        pod: text(pod),
        node: text(node),
    };
    Some(Entry {
        attestor: Attestor::Kubernetes(selector),
        on: None,
        by: Some(cluster.clone()),
    })
}

fn x509(reader: &mut Reader<'_>, at: &At<raw::X509Selector>) -> Option<Entry> {
    let raw::X509Selector {
        authority,
        subject,
        dns_name,
        uri,
        sha256,
    } = &at.value;
    let help = "it is the Mesh's name for the authority: letters, digits and `-`";
    reader.take(
        authority,
        "fender::bad-name",
        help,
        check_label(&authority.value),
    )?;
    let texts = [subject.as_ref(), dns_name.as_ref(), uri.as_ref()];
    if texts.iter().all(Option::is_none) && sha256.is_none() {
        reader.wrong(
            at,
            "fender::missing-field",
            "whoever has any certificate of this authority could attest this way",
            "narrow it by at least one of `subject`, `dnsName`, `uri` and `sha256`",
        );
        return None;
    }
    for at in texts.into_iter().flatten() {
        if at.value.is_empty() || at.value.len() > 1024 || at.value.chars().any(char::is_control) {
            let help = "write what the certificate says, to the letter: there are no patterns";
            let message = "this is empty, too long, or no plain text";
            reader.wrong(at, "fender::bad-text", message, help);
            return None;
        }
    }
    let sha256 = match sha256 {
        Some(at) => Some(reader.parse(at, "fender::bad-digest", CERTIFICATE_HELP)?),
        None => None,
    };
    let text = |at: &Option<At<String>>| at.as_ref().map(|at| at.value.clone());
    let selector = X509Selector {
        authority: authority.value.clone(),
        subject: text(subject),
        dns_name: text(dns_name).map(|name| name.to_ascii_lowercase()),
        uri: text(uri),
        sha256,
    };
    Some(Entry {
        attestor: Attestor::X509(selector),
        on: None,
        by: Some(authority.clone()),
    })
}

fn unix(reader: &mut Reader<'_>, at: &At<raw::UnixSelector>) -> Option<Entry> {
    let raw::UnixSelector {
        node,
        node_group,
        uid,
        gid,
        path,
        sha256,
    } = &at.value;
    let on = on(reader, at, "unix", node.as_ref(), node_group.as_ref());
    if uid.is_none() {
        reader.wrong(
            at,
            "fender::missing-field",
            "`unix` has no `uid`",
            "write the number of the user the process runs as: `uid: 1000`; `path` and `sha256` only narrow it, \
             because any user may run the same program",
        );
    }
    let uid = uid.as_ref().and_then(|at| number(reader, "uid", at));
    let gid = match gid {
        Some(at) => Some(number(reader, "gid", at)?),
        None => None,
    };
    let path: Option<PathBuf> = match path {
        Some(at) => Some(file_path(reader, at)?),
        None => None,
    };
    let sha256 = match sha256 {
        Some(at) => Some(reader.parse(at, "fender::bad-digest", DIGEST_HELP)?),
        None => None,
    };
    let on = on?;
    let selector = UnixSelector {
        on: on.value.clone(),
        uid: uid?,
        gid,
        path,
        sha256,
    };
    Some(Entry {
        attestor: Attestor::Unix(selector),
        on: Some(on),
        by: None,
    })
}

fn docker(reader: &mut Reader<'_>, at: &At<raw::DockerSelector>) -> Option<Entry> {
    let raw::DockerSelector {
        node,
        node_group,
        image,
        labels,
    } = &at.value;
    let on = on(reader, at, "docker", node.as_ref(), node_group.as_ref());
    let image = match image {
        Some(at) => reader.parse::<Image>(at, "fender::bad-image", IMAGE_HELP),
        None => {
            let message = if labels.is_empty() {
                "`docker` has no `image`"
            } else {
                "labels alone prove nothing: whoever may start a container writes them as they like"
            };
            reader.wrong(at, "fender::missing-field", message, IMAGE_HELP);
            None
        }
    };
    let on = on?;
    let selector = DockerSelector {
        on: on.value.clone(),
        image: image?,
        labels: labels.clone(),
    };
    Some(Entry {
        attestor: Attestor::Docker(selector),
        on: Some(on),
        by: None,
    })
}

/// The number of a user or a group, or a problem.
pub(super) fn number(reader: &mut Reader<'_>, field: &str, at: &At<i64>) -> Option<u32> {
    match u32::try_from(at.value) {
        // What the kernel shows of whom it cannot name here.
        Ok(number) if number != u32::MAX && number != OVERFLOW => Some(number),
        Ok(_) | Err(_) => {
            let message = format!("`{}` is nobody's `{field}`", at.value);
            let help = format!(
                "it is a number between 0 and {}; {OVERFLOW} stands for whoever has no number here",
                u32::MAX - 1
            );
            reader.wrong(at, "fender::bad-number", message, help);
            None
        }
    }
}

/// The kernel's default for users it has no number for: `nobody`, as whom everybody may appear.
const OVERFLOW: u32 = 65_534;
const CERTIFICATE_HELP: &str = "64 lower-case hexadecimal digits, of the certificate in DER: `openssl x509 -in FILE -outform DER | sha256sum`";
const DIGEST_HELP: &str = "64 hexadecimal digits, as `sha256sum FILE` prints them";
const IMAGE_HELP: &str = "write the image's id or its digest in a registry: `image: \"sha256:…\"` as `docker image inspect \
    --format '{{.Id}}' NAME` prints it, or `image: \"registry.example/orders@sha256:…\"`; a tag can be moved to another image";

fn on<T>(
    reader: &mut Reader<'_>,
    at: &At<T>,
    field: &str,
    node: Option<&At<String>>,
    group: Option<&At<String>>,
) -> Option<At<On>> {
    match (node, group) {
        (Some(node), None) => {
            let name = reader.parse::<NodeName>(node, "fender::bad-name", NAME_HELP)?;
            Some(At {
                value: On::Node(name),
                location: node.location,
            })
        }
        (None, Some(group)) => {
            reader.take(
                group,
                "fender::bad-name",
                NAME_HELP,
                check_label(&group.value),
            )?;
            Some(At {
                value: On::Group(group.value.clone()),
                location: group.location,
            })
        }
        (None, None) | (Some(_), Some(_)) => {
            reader.wrong(
                at,
                "fender::one-of",
                format!("`{field}` says either on which `node` it holds, or in which `nodeGroup`"),
                "write `node: NAME` for one host with an agent, or `nodeGroup: NAME` for all Nodes that list the group: \
                 a host must not be able to speak for what runs elsewhere",
            );
            None
        }
    }
}

/// Whether there are such nodes, clusters and authorities.
pub(crate) fn resolve(
    reader: &mut Reader<'_>,
    known: &Known<'_>,
    whom: &Whom,
    entries: Vec<Entry>,
) -> BTreeSet<Attestor> {
    let groups = &whom.groups;
    for entry in &entries {
        if let Some(by) = &entry.by {
            vouched(reader, known, &whom.vouching, &entry.attestor, by);
        }
        let Some(on) = &entry.on else { continue };
        match &on.value {
            On::Node(node) if known.misses_node(node.as_str()) => {
                let help = match known.nearest_node(node.as_str()) {
                    Some(meant) => format!("did you mean `{meant}`?"),
                    None => format!(
                        "write a `kind: {}` document with this name, and `attest: [ {{ token: {{}} }} ]` in its spec",
                        Kind::Node
                    ),
                };
                let message = format!("there is no Node `{node}`");
                reader.wrong(on, "fender::missing-reference", message, help);
            }
            On::Group(group) if !groups.contains(group) && known.everything_was_read() => {
                reader.warn(
                    on,
                    "fender::selects-nobody",
                    format!("no Node lists the group `{group}`, so nobody can attest this way yet"),
                    "list it in a Node: `kind: Node`, `spec: { groups: [ … ] }`",
                );
            }
            On::Node(_) | On::Group(_) => {}
        }
    }
    entries.into_iter().map(|entry| entry.attestor).collect()
}

fn vouched(
    reader: &mut Reader<'_>,
    known: &Known<'_>,
    names: &Names,
    attestor: &Attestor,
    by: &At<String>,
) {
    let (what, field, listed) = match attestor {
        Attestor::Kubernetes(_) => ("cluster", "kubernetes", &names.clusters),
        Attestor::X509(_) => ("authority", "x509", &names.authorities),
        Attestor::Token | Attestor::Unix(_) | Attestor::Docker(_) => return,
    };
    if listed.contains(&by.value) || !known.everything_was_read() {
        return;
    }
    let help = match nearest(&by.value, listed.iter().map(String::as_str)) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!(
            "describe it in the Mesh: `spec: {{ {field}: [ {{ name: {}, … }} ] }}`",
            by.value
        ),
    };
    let message = format!("the Mesh describes no {what} `{}`", by.value);
    reader.wrong(by, "fender::missing-reference", message, help);
}

impl FromStr for Sha256 {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |why| InvalidDigest {
            text: text.chars().take(80).collect(),
            why,
        };
        if text.len() != 64 {
            return Err(refuse("it has not 64 digits"));
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            *byte = std::str::from_utf8(pair)
                .ok()
                .filter(|pair| {
                    pair.bytes()
                        .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
                })
                .and_then(|pair| u8::from_str_radix(pair, 16).ok())
                .ok_or_else(|| refuse("it may hold only the digits `0` to `9` and `a` to `f`"))?;
        }
        Ok(Self(bytes))
    }
}

impl FromStr for Image {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |why| InvalidDigest {
            text: text.chars().take(80).collect(),
            why,
        };
        let (repository, digest) = match text.split_once('@') {
            Some((repository, digest)) => (Some(repository), digest),
            None => (None, text),
        };
        let digest = digest
            .strip_prefix("sha256:")
            .ok_or_else(|| refuse("it is neither `sha256:…` nor `NAME@sha256:…`"))?
            .parse()?;
        match repository {
            None => Ok(Self::Id(digest)),
            Some(name) => {
                let allowed = |b: u8| {
                    b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'/' | b':')
                };
                if name.is_empty() || name.len() > 255 || !name.bytes().all(allowed) {
                    return Err(refuse("before the `@` stands the name of a repository"));
                }
                Ok(Self::Digest {
                    repository: name.to_owned(),
                    digest,
                })
            }
        }
    }
}

/// The text is not a digest, or names no image by one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` cannot be used: {why}")]
pub struct InvalidDigest {
    text: String,
    why: &'static str,
}
