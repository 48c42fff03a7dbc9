//! Names: trust domains, SPIFFE IDs, the names of workloads and of nodes.
//!
//! The grammar is the SPIFFE ID standard's, read strictly: nothing is lower-cased, decoded or
//! trimmed, so two IDs are the same if and only if their bytes are. A [`SpiffeId`] always has a
//! path: the bare trust domain is a [`TrustDomain`] and never names anybody.
//!
//! <https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md>

use std::fmt;
use std::str::FromStr;

const SCHEME: &str = "spiffe://";
const MAX_ID: usize = 2048;
const MAX_TRUST_DOMAIN: usize = 255;
const MAX_LABEL: usize = 63;
const RESERVED: &str = "/fender/";
const CONTROL: &str = "/fender/control";
const ADMIN: &str = "/fender/admin/";
const AGENT: &str = "/fender/agent/";

/// The name under which one authority issues identities.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Box<str>);

impl TrustDomain {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        check_trust_domain(text)?;
        Ok(Self(text.into()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Somebody's name: `spiffe://TRUST-DOMAIN/PATH`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    text: Box<str>,
    trust_domain: TrustDomain,
}

impl SpiffeId {
    /// `spiffe://TRUST/ns/NAMESPACE/sa/NAME`.
    pub fn for_workload(trust_domain: &TrustDomain, workload: &WorkloadName) -> Self {
        let path = format!("/ns/{}/sa/{}", workload.namespace(), workload.name());
        Self::joined(trust_domain, &path)
    }

    /// The one identity a control plane presents.
    pub fn control(trust_domain: &TrustDomain) -> Self {
        Self::joined(trust_domain, CONTROL)
    }

    /// The identity of the administrator `name`, an RFC 1123 label.
    pub fn admin(trust_domain: &TrustDomain, name: &str) -> Result<Self, WorkloadNameError> {
        check_label(name, "administrator")?;
        Ok(Self::joined(trust_domain, &format!("{ADMIN}{name}")))
    }

    /// The identity of a node's agent: `spiffe://TRUST/fender/agent/NODE`.
    pub fn for_agent(trust_domain: &TrustDomain, node: &NodeName) -> Self {
        Self::joined(trust_domain, &format!("{AGENT}{node}"))
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Begins with a slash, never ends with one.
    pub fn path(&self) -> &str {
        let after = SCHEME.len() + self.trust_domain.0.len();
        self.text.get(after..).unwrap_or_default()
    }

    /// The workload this names, if it has the shape [`SpiffeId::for_workload`] gives.
    pub fn workload(&self) -> Option<WorkloadName> {
        let (namespace, name) = self.path().strip_prefix("/ns/")?.split_once("/sa/")?;
        WorkloadName::new(namespace, name).ok()
    }

    /// The administrator this names, if it has the shape [`SpiffeId::admin`] gives.
    pub fn admin_name(&self) -> Option<&str> {
        let name = self.path().strip_prefix(ADMIN)?;
        check_label(name, "administrator").ok().map(|()| name)
    }

    /// The node whose agent this names, if it has the shape [`SpiffeId::for_agent`] gives.
    pub fn node(&self) -> Option<NodeName> {
        self.path().strip_prefix(AGENT)?.parse().ok()
    }

    pub fn is_control(&self) -> bool {
        self.path() == CONTROL
    }

    /// Below `/fender/`: Fender's own parts, never a workload.
    pub fn is_reserved(&self) -> bool {
        self.path().starts_with(RESERVED)
    }

    /// `path` comes from checked parts; their length is bounded far below the limit.
    fn joined(trust_domain: &TrustDomain, path: &str) -> Self {
        Self {
            text: format!("{SCHEME}{trust_domain}{path}").into(),
            trust_domain: trust_domain.clone(),
        }
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_ID {
            return Err(SpiffeIdError::TooLong {
                length: text.len(),
                limit: MAX_ID,
            });
        }
        let rest = text
            .strip_prefix(SCHEME)
            .ok_or_else(|| SpiffeIdError::Scheme {
                text: excerpt(text),
            })?;
        let (trust_domain, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        check_trust_domain(trust_domain)?;
        check_path(path, text)?;
        Ok(Self {
            text: text.into(),
            trust_domain: TrustDomain(trust_domain.into()),
        })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What people call a workload: `namespace/name`, both RFC 1123 labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkloadName {
    namespace: Box<str>,
    name: Box<str>,
}

impl WorkloadName {
    pub fn new(namespace: &str, name: &str) -> Result<Self, WorkloadNameError> {
        check_label(namespace, "namespace")?;
        check_label(name, "name")?;
        Ok(Self {
            namespace: namespace.into(),
            name: name.into(),
        })
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

impl FromStr for WorkloadName {
    type Err = WorkloadNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, name) =
            text.split_once('/')
                .ok_or_else(|| WorkloadNameError::NoNamespace {
                    text: excerpt(text),
                })?;
        Self::new(namespace, name)
    }
}

impl fmt::Display for WorkloadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What people call a host with an agent: an RFC 1123 label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(Box<str>);

impl NodeName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = WorkloadNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        check_label(text, "node")?;
        Ok(Self(text.into()))
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpiffeIdError {
    #[error("`{text}` is not a SPIFFE ID: write it as spiffe://TRUST-DOMAIN/PATH")]
    Scheme { text: String },
    #[error("SPIFFE ID of {length} bytes is longer than {limit}")]
    TooLong { length: usize, limit: usize },
    #[error("trust domain is empty")]
    NoTrustDomain,
    #[error(
        "trust domain `{text}` may hold only lower-case letters, digits, `.`, `-` and `_`, no port or user"
    )]
    TrustDomainCharacter { text: String },
    #[error("trust domain of {length} bytes is longer than {limit}")]
    TrustDomainTooLong { length: usize, limit: usize },
    #[error("SPIFFE ID `{text}` has no path, so it names nobody")]
    NoPath { text: String },
    #[error("path of SPIFFE ID `{text}` has an empty segment: no `//` and no `/` at the end")]
    EmptySegment { text: String },
    #[error("path of SPIFFE ID `{text}` has a dot segment")]
    DotSegment { text: String },
    #[error(
        "path of SPIFFE ID `{text}` may hold only letters, digits, `.`, `-` and `_`, no escape, query or fragment"
    )]
    PathCharacter { text: String },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WorkloadNameError {
    #[error("`{text}` is not a workload: write it as namespace/name")]
    NoNamespace { text: String },
    #[error(
        "{part} `{text}` is not a label: 1 to 63 lower-case letters, digits and `-`, no `-` at either end"
    )]
    NotALabel { part: &'static str, text: String },
}

fn check_trust_domain(text: &str) -> Result<(), SpiffeIdError> {
    if text.is_empty() {
        return Err(SpiffeIdError::NoTrustDomain);
    }
    if text.len() > MAX_TRUST_DOMAIN {
        let (length, limit) = (text.len(), MAX_TRUST_DOMAIN);
        return Err(SpiffeIdError::TrustDomainTooLong { length, limit });
    }
    let allowed = |c: u8| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    if !text.bytes().all(allowed) {
        return Err(SpiffeIdError::TrustDomainCharacter {
            text: excerpt(text),
        });
    }
    Ok(())
}

/// `path` is empty or begins with a slash.
fn check_path(path: &str, id: &str) -> Result<(), SpiffeIdError> {
    let segments = path
        .strip_prefix('/')
        .ok_or_else(|| SpiffeIdError::NoPath { text: excerpt(id) })?;
    for segment in segments.split('/') {
        match segment {
            "" => return Err(SpiffeIdError::EmptySegment { text: excerpt(id) }),
            "." | ".." => return Err(SpiffeIdError::DotSegment { text: excerpt(id) }),
            named => {
                let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_');
                if !named.bytes().all(allowed) {
                    return Err(SpiffeIdError::PathCharacter { text: excerpt(id) });
                }
            }
        }
    }
    Ok(())
}

fn check_label(text: &str, part: &'static str) -> Result<(), WorkloadNameError> {
    let allowed = |c: u8| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'-');
    let edges = text.starts_with('-') || text.ends_with('-');
    if text.is_empty() || text.len() > MAX_LABEL || edges || !text.bytes().all(allowed) {
        return Err(WorkloadNameError::NotALabel {
            part,
            text: excerpt(text),
        });
    }
    Ok(())
}

/// The beginning of hostile text, printable, for an error message.
pub(crate) fn excerpt(text: &str) -> String {
    const SHOWN: usize = 80;
    let mut shown: String = text
        .chars()
        .take(SHOWN)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests;
