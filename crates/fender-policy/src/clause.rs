//! One clause of a rule against the facts: it holds, it misses, or it cannot be evaluated.
//!
//! A clause never decides what *cannot be evaluated* means; the action of its policy does (A3).

use std::net::IpAddr;

use fender_identity::WorkloadName;
use ipnet::IpNet;

use crate::facts::Seen;
use crate::{Action, Condition, Operation, Source, TextMatch};

/// The outcome of one clause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Holds,
    Misses,
    /// It asks for what is not there: the identity of an anonymous peer, the method of a TCP
    /// connection.
    Unknown,
}

impl Outcome {
    /// What cannot be evaluated never allows, always denies, and is always recorded.
    pub(crate) fn counts_for(self, action: Action) -> bool {
        match (self, action) {
            (Self::Holds, _) | (Self::Unknown, Action::Deny | Action::Audit) => true,
            (Self::Misses, _) | (Self::Unknown, Action::Allow) => false,
        }
    }
}

impl From<bool> for Outcome {
    fn from(holds: bool) -> Self {
        if holds { Self::Holds } else { Self::Misses }
    }
}

/// A list of a [`Source`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SourceClause {
    Principals,
    NotPrincipals,
    Namespaces,
    NotNamespaces,
    ServiceAccounts,
    NotServiceAccounts,
    IpBlocks,
    NotIpBlocks,
    RemoteIpBlocks,
    NotRemoteIpBlocks,
}

impl SourceClause {
    const ALL: [Self; 10] = [
        Self::Principals,
        Self::NotPrincipals,
        Self::Namespaces,
        Self::NotNamespaces,
        Self::ServiceAccounts,
        Self::NotServiceAccounts,
        Self::IpBlocks,
        Self::NotIpBlocks,
        Self::RemoteIpBlocks,
        Self::NotRemoteIpBlocks,
    ];
}

/// A list of an [`Operation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OperationClause {
    Hosts,
    NotHosts,
    Ports,
    NotPorts,
    Methods,
    NotMethods,
    Paths,
    NotPaths,
}

impl OperationClause {
    const ALL: [Self; 8] = [
        Self::Ports,
        Self::NotPorts,
        Self::Methods,
        Self::NotMethods,
        Self::Hosts,
        Self::NotHosts,
        Self::Paths,
        Self::NotPaths,
    ];
}

impl Source {
    /// Every list that asks something, lazily.
    pub(crate) fn clauses<'s>(
        &'s self,
        seen: &'s Seen<'_>,
    ) -> impl Iterator<Item = (SourceClause, Outcome)> + 's {
        SourceClause::ALL
            .into_iter()
            .filter_map(move |clause| self.test(clause, seen).map(|outcome| (clause, outcome)))
    }

    fn test(&self, clause: SourceClause, seen: &Seen<'_>) -> Option<Outcome> {
        match clause {
            SourceClause::Principals => one_of(&self.principals, seen.principal(), text),
            SourceClause::NotPrincipals => none_of(&self.not_principals, seen.principal(), text),
            SourceClause::Namespaces => one_of(&self.namespaces, seen.namespace(), text),
            SourceClause::NotNamespaces => none_of(&self.not_namespaces, seen.namespace(), text),
            SourceClause::ServiceAccounts => {
                one_of(&self.service_accounts, seen.account(), account)
            }
            SourceClause::NotServiceAccounts => {
                none_of(&self.not_service_accounts, seen.account(), account)
            }
            SourceClause::IpBlocks => one_of(&self.ip_blocks, seen.source_ip, block),
            SourceClause::NotIpBlocks => none_of(&self.not_ip_blocks, seen.source_ip, block),
            SourceClause::RemoteIpBlocks => one_of(&self.remote_ip_blocks, seen.remote_ip, block),
            SourceClause::NotRemoteIpBlocks => {
                none_of(&self.not_remote_ip_blocks, seen.remote_ip, block)
            }
        }
    }
}

impl Operation {
    /// Every list that asks something, lazily.
    pub(crate) fn clauses<'s>(
        &'s self,
        seen: &'s Seen<'_>,
    ) -> impl Iterator<Item = (OperationClause, Outcome)> + 's {
        OperationClause::ALL
            .into_iter()
            .filter_map(move |clause| self.test(clause, seen).map(|outcome| (clause, outcome)))
    }

    fn test(&self, clause: OperationClause, seen: &Seen<'_>) -> Option<Outcome> {
        match clause {
            OperationClause::Hosts => one_of(&self.hosts, seen.host(), host),
            OperationClause::NotHosts => none_of(&self.not_hosts, seen.host(), host),
            OperationClause::Ports => {
                one_of(&self.ports, Some(seen.port), |wanted, port| *wanted == port)
            }
            OperationClause::NotPorts => {
                none_of(&self.not_ports, Some(seen.port), |wanted, port| {
                    *wanted == port
                })
            }
            OperationClause::Methods => one_of(&self.methods, seen.method(), text),
            OperationClause::NotMethods => none_of(&self.not_methods, seen.method(), text),
            OperationClause::Paths => one_of(&self.paths, seen.path(), |pattern, path| {
                pattern.matches(path)
            }),
            OperationClause::NotPaths => none_of(&self.not_paths, seen.path(), |pattern, path| {
                pattern.matches(path)
            }),
        }
    }
}

impl Condition {
    /// Values and notValues together. A condition that lists neither cannot be evaluated.
    pub(crate) fn test(&self, seen: &Seen<'_>) -> Outcome {
        match self {
            Self::Header {
                name,
                values,
                not_values,
            } => {
                let present = seen.header(name);
                let present = present.as_deref();
                // Each value by itself (A7), so that a second value cannot hide the first.
                let any = |pattern: &TextMatch, present: &[&str]| {
                    present.iter().any(|value| pattern.matches(value))
                };
                both(
                    one_of(values, present, any),
                    none_of(not_values, present, any),
                )
            }
            Self::SourceIp { values, not_values } => both(
                one_of(values, seen.source_ip, block),
                none_of(not_values, seen.source_ip, block),
            ),
            Self::RemoteIp { values, not_values } => both(
                one_of(values, seen.remote_ip, block),
                none_of(not_values, seen.remote_ip, block),
            ),
            Self::SourceNamespace { values, not_values } => both(
                one_of(values, seen.namespace(), text),
                none_of(not_values, seen.namespace(), text),
            ),
            Self::SourcePrincipal { values, not_values } => both(
                one_of(values, seen.principal(), text),
                none_of(not_values, seen.principal(), text),
            ),
            Self::SourceServiceAccount { values, not_values } => both(
                one_of(values, seen.account(), account),
                none_of(not_values, seen.account(), account),
            ),
            Self::DestinationPort { values, not_values } => both(
                one_of(values, Some(seen.port), |wanted, port| *wanted == port),
                none_of(not_values, Some(seen.port), |wanted, port| *wanted == port),
            ),
        }
    }
}

/// None if the list asks nothing.
fn one_of<T, V: Copy>(
    list: &[T],
    value: Option<V>,
    matches: impl Fn(&T, V) -> bool,
) -> Option<Outcome> {
    if list.is_empty() {
        return None;
    }
    Some(match value {
        Some(value) => list.iter().any(|wanted| matches(wanted, value)).into(),
        None => Outcome::Unknown,
    })
}

fn none_of<T, V: Copy>(
    list: &[T],
    value: Option<V>,
    matches: impl Fn(&T, V) -> bool,
) -> Option<Outcome> {
    one_of(list, value, matches).map(|outcome| match outcome {
        Outcome::Holds => Outcome::Misses,
        Outcome::Misses => Outcome::Holds,
        Outcome::Unknown => Outcome::Unknown,
    })
}

fn both(values: Option<Outcome>, not_values: Option<Outcome>) -> Outcome {
    match (values, not_values) {
        (None, None) => Outcome::Unknown,
        (Some(one), None) | (None, Some(one)) => one,
        (Some(Outcome::Misses), _) | (_, Some(Outcome::Misses)) => Outcome::Misses,
        (Some(Outcome::Unknown), _) | (_, Some(Outcome::Unknown)) => Outcome::Unknown,
        (Some(Outcome::Holds), Some(Outcome::Holds)) => Outcome::Holds,
    }
}

fn text(pattern: &TextMatch, value: &str) -> bool {
    pattern.matches(value)
}

fn block(block: &IpNet, ip: IpAddr) -> bool {
    block.contains(&ip)
}

fn account(wanted: &WorkloadName, (namespace, name): (&str, &str)) -> bool {
    wanted.namespace() == namespace && wanted.name() == name
}

/// A pattern that names no port is about the host alone; otherwise `Host: bad.example:80` would
/// slip past a DENY of `bad.example`.
fn host(pattern: &TextMatch, host: &str) -> bool {
    let names_port = pattern
        .literal()
        .rsplit(']')
        .next()
        .is_some_and(|end| end.contains(':'));
    pattern.matches_ignoring_case(if names_port { host } else { without_port(host) })
}

/// Also without the dot that ends a fully qualified name.
fn without_port(host: &str) -> &str {
    let end_of_address = host.rfind(']').map_or(0, |bracket| bracket + 1);
    let host = match host.get(end_of_address..).and_then(|tail| tail.rfind(':')) {
        Some(colon) => host.get(..end_of_address + colon).unwrap_or(host),
        None => host,
    };
    host.strip_suffix('.').unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_port_in_the_pattern_matches_whatever_the_port() {
        for seen in [
            "bad.example",
            "BAD.example:80",
            "bad.example.",
            "bad.example.:8443",
        ] {
            assert!(host(&"bad.example".into(), seen), "{seen}");
            assert!(host(&"*.EXAMPLE".into(), seen), "{seen}");
            assert!(host(&"bad.*".into(), seen), "{seen}");
        }
        assert!(!host(&"bad.example".into(), "bad.example.org"));
        assert!(!host(&"bad.example:443".into(), "bad.example:80"));
        assert!(host(&"bad.example:443".into(), "Bad.example:443"));
        assert!(host(&"bad.example:*".into(), "bad.example:443"));
        assert!(host(&"[::1]".into(), "[::1]:443"));
        assert!(!host(&"*".into(), ""), "an empty host is not present");
    }
}
