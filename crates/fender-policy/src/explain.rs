//! The answer to *why was I denied?*, for operators. A peer never sees it (A5).
//!
//! Sentences quote what documents say and what was seen of identity, address, method, host and
//! path; never the value of a header, which may be a token.

use std::fmt;

use crate::clause::{OperationClause, Outcome, SourceClause};
use crate::facts::Seen;
use crate::{
    Action, By, Condition, Decision, Default, Facts, Operation, Policy, PolicySet, Rule, Source,
};

/// A decision in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    pub decision: Decision,
    /// One sentence: what decided, and by which clauses.
    pub decided_by: String,
    /// The ALLOW rule that came nearest, then one sentence for each clause it missed. Empty when
    /// the request was allowed, or when no ALLOW policy selects the workload.
    pub nearest: Vec<String>,
}

impl PolicySet {
    pub fn explain(&self, facts: &Facts<'_>) -> Explanation {
        self.explain_seen(&Seen::of(facts))
    }

    pub(crate) fn explain_seen(&self, seen: &Seen<'_>) -> Explanation {
        let decision = self.decide_seen(seen);
        let decided_by = self.decided_by(&decision.by, seen);
        let nearest = if decision.is_allowed() {
            Vec::new()
        } else {
            self.nearest(seen)
        };
        Explanation {
            decision,
            decided_by,
            nearest,
        }
    }

    fn decided_by(&self, by: &By, seen: &Seen<'_>) -> String {
        match by {
            By::Policy { name, action, rule } => {
                let reasons = self
                    .policies
                    .iter()
                    .find(|policy| policy.name == *name && policy.action == *action)
                    .and_then(|policy| policy.rules.get(*rule))
                    .map(|matched| matched.reasons(*rule, *action, seen))
                    .unwrap_or_default();
                if reasons.is_empty() {
                    format!(
                        "rules[{rule}] of the {action} policy `{name}` matched: it asks nothing"
                    )
                } else {
                    format!(
                        "rules[{rule}] of the {action} policy `{name}` matched: {}",
                        reasons.join("; ")
                    )
                }
            }
            By::NoMatch { considered: 1 } => {
                "an ALLOW policy selects this workload, and it did not match".to_owned()
            }
            By::NoMatch { considered } => {
                format!(
                    "{considered} ALLOW policies select this workload, and none of them matched"
                )
            }
            By::Default(Default::Deny) => {
                "no ALLOW policy selects this workload, and the default is to deny".to_owned()
            }
            By::Default(Default::Allow) => {
                "no ALLOW policy selects this workload, and the default is to allow".to_owned()
            }
            By::Default(Default::Audit) => {
                "no ALLOW policy selects this workload, and the default is to allow and record"
                    .to_owned()
            }
        }
    }

    /// The ALLOW rule with the fewest clauses missed; the first one written if several are equal.
    fn nearest(&self, seen: &Seen<'_>) -> Vec<String> {
        let allows: Vec<&Policy> = self.with_action(Action::Allow).collect();
        let near = allows
            .iter()
            .flat_map(|policy| {
                policy
                    .rules
                    .iter()
                    .enumerate()
                    .map(move |(index, rule)| (*policy, index, rule))
            })
            .map(|(policy, index, rule)| (policy, index, rule.missed(index, seen)))
            .min_by_key(|(_, _, missed)| missed.len());
        match near {
            Some((policy, index, missed)) if missed.is_empty() => {
                vec![format!(
                    "without it, rules[{index}] of the ALLOW policy `{}` would have allowed this",
                    policy.name
                )]
            }
            Some((policy, index, missed)) => {
                let count = match missed.len() {
                    1 => "one clause".to_owned(),
                    more => format!("{more} clauses"),
                };
                let head = format!(
                    "the nearest is rules[{index}] of the ALLOW policy `{}`; it missed by {count}",
                    policy.name
                );
                std::iter::once(head).chain(missed).collect()
            }
            None => allows
                .iter()
                .map(|policy| {
                    format!(
                        "the ALLOW policy `{}` has no rules, so it allows nobody",
                        policy.name
                    )
                })
                .collect(),
        }
    }
}

impl Rule {
    /// Why it matched, clause by clause.
    fn reasons(&self, index: usize, action: Action, seen: &Seen<'_>) -> Vec<String> {
        let counts = |outcome: Outcome| outcome.counts_for(action);
        let mut reasons = Vec::new();
        let from = self
            .from
            .iter()
            .enumerate()
            .find(|(_, s)| s.clauses(seen).all(|(_, outcome)| counts(outcome)));
        if let Some((at, source)) = from {
            let place = format!("rules[{index}].from[{at}].source");
            reasons.extend(
                source.clauses(seen).map(|(clause, outcome)| {
                    source.describe(clause, &place, seen).sentence(outcome)
                }),
            );
        }
        let to = self
            .to
            .iter()
            .enumerate()
            .find(|(_, o)| o.clauses(seen).all(|(_, outcome)| counts(outcome)));
        if let Some((at, operation)) = to {
            let place = format!("rules[{index}].to[{at}].operation");
            reasons.extend(operation.clauses(seen).map(|(clause, outcome)| {
                operation.describe(clause, &place, seen).sentence(outcome)
            }));
        }
        reasons.extend(self.when.iter().enumerate().map(|(at, condition)| {
            condition
                .describe(&format!("rules[{index}].when[{at}]"), seen)
                .sentence(condition.test(seen))
        }));
        reasons
    }

    /// What an ALLOW rule lacked, by its nearest alternatives.
    fn missed(&self, index: usize, seen: &Seen<'_>) -> Vec<String> {
        let misses = |outcome: Outcome| !outcome.counts_for(Action::Allow);
        let from = self.from.iter().enumerate().map(|(at, source)| {
            let place = format!("rules[{index}].from[{at}].source");
            let missed = source.clauses(seen).filter(|(_, outcome)| misses(*outcome));
            missed
                .map(|(clause, outcome)| source.describe(clause, &place, seen).sentence(outcome))
                .collect::<Vec<_>>()
        });
        let to = self.to.iter().enumerate().map(|(at, operation)| {
            let place = format!("rules[{index}].to[{at}].operation");
            let missed = operation
                .clauses(seen)
                .filter(|(_, outcome)| misses(*outcome));
            missed
                .map(|(clause, outcome)| operation.describe(clause, &place, seen).sentence(outcome))
                .collect::<Vec<_>>()
        });
        let when = self.when.iter().enumerate().filter_map(|(at, condition)| {
            let outcome = condition.test(seen);
            misses(outcome).then(|| {
                condition
                    .describe(&format!("rules[{index}].when[{at}]"), seen)
                    .sentence(outcome)
            })
        });
        let mut missed = from.min_by_key(Vec::len).unwrap_or_default();
        missed.extend(to.min_by_key(Vec::len).unwrap_or_default());
        missed.extend(when);
        missed
    }
}

/// What goes into a sentence about one clause.
struct Clause {
    /// `rules[0].from[0].source.namespaces`
    place: String,
    /// `the namespace is `rogue``
    saw: String,
    /// `one of `web`, `ops``
    wants: String,
    /// What a peer or a connection lacks when the clause cannot be evaluated.
    lacks: &'static str,
}

impl Clause {
    fn sentence(&self, outcome: Outcome) -> String {
        let Self {
            place,
            saw,
            wants,
            lacks,
        } = self;
        printable(&match outcome {
            Outcome::Holds => format!("{saw}, and `{place}` wants {wants}"),
            Outcome::Misses => format!("`{place}` wants {wants}, but {saw}"),
            Outcome::Unknown => format!("`{place}` cannot be evaluated, because {lacks}"),
        })
    }
}

impl Source {
    fn describe(&self, clause: SourceClause, place: &str, seen: &Seen<'_>) -> Clause {
        let lacks = lacks_workload(seen);
        let (field, saw, wants, lacks) = match clause {
            SourceClause::Principals => (
                "principals",
                principal(seen),
                one_of(&self.principals),
                NO_IDENTITY,
            ),
            SourceClause::NotPrincipals => (
                "notPrincipals",
                principal(seen),
                none_of(&self.not_principals),
                NO_IDENTITY,
            ),
            SourceClause::Namespaces => (
                "namespaces",
                namespace(seen),
                one_of(&self.namespaces),
                lacks,
            ),
            SourceClause::NotNamespaces => (
                "notNamespaces",
                namespace(seen),
                none_of(&self.not_namespaces),
                lacks,
            ),
            SourceClause::ServiceAccounts => (
                "serviceAccounts",
                account(seen),
                one_of(&self.service_accounts),
                lacks,
            ),
            SourceClause::NotServiceAccounts => (
                "notServiceAccounts",
                account(seen),
                none_of(&self.not_service_accounts),
                lacks,
            ),
            SourceClause::IpBlocks => (
                "ipBlocks",
                source_ip(seen),
                one_of(&self.ip_blocks),
                NO_ADDRESS,
            ),
            SourceClause::NotIpBlocks => (
                "notIpBlocks",
                source_ip(seen),
                none_of(&self.not_ip_blocks),
                NO_ADDRESS,
            ),
            SourceClause::RemoteIpBlocks => (
                "remoteIpBlocks",
                remote_ip(seen),
                one_of(&self.remote_ip_blocks),
                NO_ADDRESS,
            ),
            SourceClause::NotRemoteIpBlocks => (
                "notRemoteIpBlocks",
                remote_ip(seen),
                none_of(&self.not_remote_ip_blocks),
                NO_ADDRESS,
            ),
        };
        Clause {
            place: format!("{place}.{field}"),
            saw,
            wants,
            lacks,
        }
    }
}

impl Operation {
    fn describe(&self, clause: OperationClause, place: &str, seen: &Seen<'_>) -> Clause {
        let http = |what: &str, value: Option<&str>| {
            let value = value.unwrap_or_default();
            let cut: String = value.chars().take(SHOWN_CHARACTERS).collect();
            let rest = if cut.len() < value.len() { "…" } else { "" };
            format!("the {what} is `{cut}{rest}`")
        };
        let (host, method, path) = (
            || http("host", seen.host()),
            || http("method", seen.method()),
            || http("path", seen.path()),
        );
        let (field, saw, wants) = match clause {
            OperationClause::Hosts => ("hosts", host(), one_of(&self.hosts)),
            OperationClause::NotHosts => ("notHosts", host(), none_of(&self.not_hosts)),
            OperationClause::Ports => ("ports", port(seen), one_of(&self.ports)),
            OperationClause::NotPorts => ("notPorts", port(seen), none_of(&self.not_ports)),
            OperationClause::Methods => ("methods", method(), one_of(&self.methods)),
            OperationClause::NotMethods => ("notMethods", method(), none_of(&self.not_methods)),
            OperationClause::Paths => ("paths", path(), one_of(&self.paths)),
            OperationClause::NotPaths => ("notPaths", path(), none_of(&self.not_paths)),
        };
        Clause {
            place: format!("{place}.{field}"),
            saw,
            wants,
            lacks: if seen.http.is_some() {
                NO_HOST
            } else {
                NOT_HTTP
            },
        }
    }
}

impl Condition {
    fn describe(&self, place: &str, seen: &Seen<'_>) -> Clause {
        let (saw, lacks) = match self {
            Self::Header { name, .. } => (header(name, seen), NOT_HTTP),
            Self::SourceIp { .. } => (source_ip(seen), NO_ADDRESS),
            Self::RemoteIp { .. } => (remote_ip(seen), NO_ADDRESS),
            Self::SourceNamespace { .. } => (namespace(seen), lacks_workload(seen)),
            Self::SourcePrincipal { .. } => (principal(seen), NO_IDENTITY),
            Self::SourceServiceAccount { .. } => (account(seen), lacks_workload(seen)),
            Self::DestinationPort { .. } => (port(seen), "it has no values"),
        };
        let wanted = [one_of(&self.values()), none_of(&self.not_values())];
        let wants = wanted
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join(" and ");
        Clause {
            place: format!("{place} ({})", self.key()),
            saw,
            wants,
            lacks,
        }
    }
}

const NO_IDENTITY: &str = "the peer showed no certificate";
const NO_WORKLOAD: &str = "the peer's identity is not that of a workload, so it has no namespace";
const NO_ADDRESS: &str = "the connection came over a Unix socket and has no source address";
const NO_HOST: &str = "the request names no host";
const NOT_HTTP: &str = "this is a `tcp` port, where nothing is known of HTTP";

fn lacks_workload(seen: &Seen<'_>) -> &'static str {
    if seen.caller.is_some() {
        NO_WORKLOAD
    } else {
        NO_IDENTITY
    }
}

fn principal(seen: &Seen<'_>) -> String {
    format!(
        "the principal is `{}`",
        seen.principal().unwrap_or_default()
    )
}

fn namespace(seen: &Seen<'_>) -> String {
    format!(
        "the namespace is `{}`",
        seen.namespace().unwrap_or_default()
    )
}

fn account(seen: &Seen<'_>) -> String {
    let (namespace, name) = seen.account().unwrap_or_default();
    format!("the service account is `{namespace}/{name}`")
}

fn source_ip(seen: &Seen<'_>) -> String {
    match seen.source_ip {
        Some(ip) => format!("the source address is `{ip}`"),
        None => "there is no source address".to_owned(),
    }
}

fn remote_ip(seen: &Seen<'_>) -> String {
    match seen.remote_ip {
        Some(ip) => format!("the remote address is `{ip}`"),
        None => "there is no remote address".to_owned(),
    }
}

fn port(seen: &Seen<'_>) -> String {
    format!("the port is `{}`", seen.port)
}

fn header(name: &str, seen: &Seen<'_>) -> String {
    match seen.header(name).map_or(0, |values| values.len()) {
        0 => format!("there is no header `{name}`"),
        1 => format!("the header `{name}` is there (its value is not shown)"),
        more => format!("the header `{name}` is there {more} times (its values are not shown)"),
    }
}

/// What a peer sent ends on a terminal: control characters are written out, not obeyed.
fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            printable.extend(character.escape_default());
        } else {
            printable.push(character);
        }
    }
    printable
}

/// Of what a peer sent.
const SHOWN_CHARACTERS: usize = 200;
/// Longer lists are cut: a sentence, not a document.
const SHOWN: usize = 5;

fn one_of<T: fmt::Display>(list: &[T]) -> String {
    match list {
        [] => String::new(),
        [one] => format!("`{one}`"),
        _ => format!("one of {}", listed(list)),
    }
}

fn none_of<T: fmt::Display>(list: &[T]) -> String {
    match list {
        [] => String::new(),
        [one] => format!("anything but `{one}`"),
        _ => format!("none of {}", listed(list)),
    }
}

fn listed<T: fmt::Display>(list: &[T]) -> String {
    let mut text = list
        .iter()
        .take(SHOWN)
        .map(|item| format!("`{item}`"))
        .collect::<Vec<_>>()
        .join(", ");
    if list.len() > SHOWN {
        text.push_str(&format!(" and {} more", list.len() - SHOWN));
    }
    text
}

#[cfg(test)]
mod tests;
