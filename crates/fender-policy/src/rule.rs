//! The rules as plain data. Public fields, so that the wire and the documents can be converted to
//! them and back.

use std::fmt;
use std::net::IpAddr;

use fender_identity::WorkloadName;
use ipnet::IpNet;

use crate::{PathMatch, PolicyName, TextMatch};

/// The policies that select one workload, and what holds when none of them allows or denies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicySet {
    pub default: Default,
    pub policies: Vec<Policy>,
}

impl PolicySet {
    /// The names of the request's fields that any rule looks at, in lower case.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        let rules = self.policies.iter().flat_map(|policy| &policy.rules);
        rules
            .flat_map(|rule| &rule.when)
            .filter_map(|condition| match condition {
                Condition::Header { name, .. } => Some(name.as_str()),
                Condition::SourceIp { .. }
                | Condition::RemoteIp { .. }
                | Condition::SourceNamespace { .. }
                | Condition::SourcePrincipal { .. }
                | Condition::SourceServiceAccount { .. }
                | Condition::DestinationPort { .. } => None,
            })
    }
}

/// What holds when no ALLOW policy selects the workload (A1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Default {
    Deny,
    Allow,
    /// Allow, and record that nothing had allowed it.
    Audit,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub name: PolicyName,
    pub action: Action,
    /// Any one of them. None at all: nothing matches.
    pub rules: Vec<Rule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Allow,
    Deny,
    Audit,
}

/// Source AND operation AND every condition; an empty list asks nothing.
#[derive(Clone, Debug, PartialEq, Eq, std::default::Default)]
pub struct Rule {
    /// Any one of them.
    pub from: Vec<Source>,
    /// Any one of them.
    pub to: Vec<Operation>,
    /// All of them.
    pub when: Vec<Condition>,
}

/// Every non-empty list must hold: a list holds if one of its entries matches, a `not` list if none
/// does.
#[derive(Clone, Debug, PartialEq, Eq, std::default::Default)]
pub struct Source {
    /// `TRUST/ns/NAMESPACE/sa/NAME`, as in Istio: a SPIFFE ID without `spiffe://`.
    pub principals: Vec<TextMatch>,
    pub not_principals: Vec<TextMatch>,
    pub namespaces: Vec<TextMatch>,
    pub not_namespaces: Vec<TextMatch>,
    pub service_accounts: Vec<WorkloadName>,
    pub not_service_accounts: Vec<WorkloadName>,
    pub ip_blocks: Vec<IpNet>,
    pub not_ip_blocks: Vec<IpNet>,
    pub remote_ip_blocks: Vec<IpNet>,
    pub not_remote_ip_blocks: Vec<IpNet>,
}

/// Every non-empty list must hold: a list holds if one of its entries matches, a `not` list if none
/// does.
#[derive(Clone, Debug, PartialEq, Eq, std::default::Default)]
pub struct Operation {
    pub hosts: Vec<TextMatch>,
    pub not_hosts: Vec<TextMatch>,
    pub ports: Vec<u16>,
    pub not_ports: Vec<u16>,
    pub methods: Vec<TextMatch>,
    pub not_methods: Vec<TextMatch>,
    pub paths: Vec<PathMatch>,
    pub not_paths: Vec<PathMatch>,
}

/// One entry of `when`. [`Condition::new`] and the three accessors are its textual form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// `request.headers[NAME]`; the name is in lower case.
    Header {
        name: String,
        values: Vec<TextMatch>,
        not_values: Vec<TextMatch>,
    },
    /// `source.ip`
    SourceIp {
        values: Vec<IpNet>,
        not_values: Vec<IpNet>,
    },
    /// `remote.ip`
    RemoteIp {
        values: Vec<IpNet>,
        not_values: Vec<IpNet>,
    },
    /// `source.namespace`
    SourceNamespace {
        values: Vec<TextMatch>,
        not_values: Vec<TextMatch>,
    },
    /// `source.principal`
    SourcePrincipal {
        values: Vec<TextMatch>,
        not_values: Vec<TextMatch>,
    },
    /// `source.serviceAccount`
    SourceServiceAccount {
        values: Vec<WorkloadName>,
        not_values: Vec<WorkloadName>,
    },
    /// `destination.port`
    DestinationPort {
        values: Vec<u16>,
        not_values: Vec<u16>,
    },
}

impl Condition {
    /// From the key as Istio writes it and its values.
    pub fn new(
        key: &str,
        values: Vec<TextMatch>,
        not_values: Vec<TextMatch>,
    ) -> Result<Self, InvalidCondition> {
        if values.is_empty() && not_values.is_empty() {
            return Err(InvalidCondition::NoValues {
                key: key.to_owned(),
            });
        }
        if let Some(name) = key
            .strip_prefix("request.headers[")
            .and_then(|k| k.strip_suffix(']'))
        {
            return if is_header_name(name) {
                Ok(Self::Header {
                    name: name.to_ascii_lowercase(),
                    values,
                    not_values,
                })
            } else {
                Err(InvalidCondition::HeaderName {
                    name: name.to_owned(),
                })
            };
        }
        match key {
            "source.ip" => Ok(Self::SourceIp {
                values: exact(key, values, IP_BLOCK, ip_block)?,
                not_values: exact(key, not_values, IP_BLOCK, ip_block)?,
            }),
            "remote.ip" => Ok(Self::RemoteIp {
                values: exact(key, values, IP_BLOCK, ip_block)?,
                not_values: exact(key, not_values, IP_BLOCK, ip_block)?,
            }),
            "source.namespace" => Ok(Self::SourceNamespace { values, not_values }),
            "source.principal" => Ok(Self::SourcePrincipal { values, not_values }),
            "source.serviceAccount" => Ok(Self::SourceServiceAccount {
                values: exact(key, values, "`namespace/name`", |v| v.parse().ok())?,
                not_values: exact(key, not_values, "`namespace/name`", |v| v.parse().ok())?,
            }),
            "destination.port" => Ok(Self::DestinationPort {
                values: exact(key, values, "a port from 1 to 65535", port)?,
                not_values: exact(key, not_values, "a port from 1 to 65535", port)?,
            }),
            _ => Err(InvalidCondition::UnknownKey {
                key: key.to_owned(),
            }),
        }
    }

    /// As it is written in a policy.
    pub fn key(&self) -> String {
        match self {
            Self::Header { name, .. } => format!("request.headers[{name}]"),
            Self::SourceIp { .. } => "source.ip".to_owned(),
            Self::RemoteIp { .. } => "remote.ip".to_owned(),
            Self::SourceNamespace { .. } => "source.namespace".to_owned(),
            Self::SourcePrincipal { .. } => "source.principal".to_owned(),
            Self::SourceServiceAccount { .. } => "source.serviceAccount".to_owned(),
            Self::DestinationPort { .. } => "destination.port".to_owned(),
        }
    }

    pub fn values(&self) -> Vec<TextMatch> {
        match self {
            Self::Header { values, .. }
            | Self::SourceNamespace { values, .. }
            | Self::SourcePrincipal { values, .. } => values.clone(),
            Self::SourceIp { values, .. } | Self::RemoteIp { values, .. } => written(values),
            Self::SourceServiceAccount { values, .. } => written(values),
            Self::DestinationPort { values, .. } => written(values),
        }
    }

    pub fn not_values(&self) -> Vec<TextMatch> {
        match self {
            Self::Header { not_values, .. }
            | Self::SourceNamespace { not_values, .. }
            | Self::SourcePrincipal { not_values, .. } => not_values.clone(),
            Self::SourceIp { not_values, .. } | Self::RemoteIp { not_values, .. } => {
                written(not_values)
            }
            Self::SourceServiceAccount { not_values, .. } => written(not_values),
            Self::DestinationPort { not_values, .. } => written(not_values),
        }
    }
}

fn written<T: fmt::Display>(values: &[T]) -> Vec<TextMatch> {
    values
        .iter()
        .map(|value| TextMatch::Exact(value.to_string()))
        .collect()
}

fn exact<T>(
    key: &str,
    values: Vec<TextMatch>,
    wanted: &'static str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, InvalidCondition> {
    values
        .into_iter()
        .map(|value| {
            match &value {
                TextMatch::Exact(text) => parse(text),
                TextMatch::Prefix(_) | TextMatch::Suffix(_) | TextMatch::Present => None,
            }
            .ok_or_else(|| InvalidCondition::Value {
                key: key.to_owned(),
                value: value.to_string(),
                wanted,
            })
        })
        .collect()
}

const IP_BLOCK: &str = "an IP address or block such as `10.0.0.0/8`";

/// An address alone is the block of that one address.
fn ip_block(text: &str) -> Option<IpNet> {
    text.parse()
        .ok()
        .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0)
}

/// RFC 9110 token.
fn is_header_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

impl fmt::Display for Default {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deny => "deny",
            Self::Allow => "allow",
            Self::Audit => "audit",
        })
    }
}

/// As it is written in a policy.
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::Audit => "AUDIT",
        })
    }
}

/// The text is not a condition that can be evaluated here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidCondition {
    #[error("the condition key `{key}` is not supported")]
    UnknownKey { key: String },
    #[error("`{name}` is not the name of a header")]
    HeaderName { name: String },
    #[error("`{value}` cannot be a value of `{key}`: it must be {wanted}")]
    Value {
        key: String,
        value: String,
        wanted: &'static str,
    },
    #[error("the condition on `{key}` has neither values nor notValues")]
    NoValues { key: String },
}
