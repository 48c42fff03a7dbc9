//! A slow, obvious evaluator, and the proof that the real one agrees with it.
//!
//! It is written from the words of A1–A3 rather than from the code: every rule is multiplied out
//! into all its pairs of source and operation, every pattern becomes a list of the strings of a
//! small world that it admits.

use std::net::IpAddr;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use crate::facts::{Caller, Seen};
use crate::{
    Action, By, Condition, Default, HttpFacts, Operation, PathMatch, Policy, PolicySet, Rule,
    Source, TextMatch, Verdict,
};

const IDS: [&str; 5] = [
    "spiffe://example.org/ns/shop/sa/orders",
    "spiffe://example.org/ns/shop/sa/web",
    "spiffe://example.org/ns/ops/sa/web",
    "spiffe://other.org/ns/shop/sa/orders",
    "spiffe://example.org/robots/r2",
];
const NAMESPACES: [&str; 2] = ["shop", "ops"];
const ACCOUNTS: [&str; 3] = ["shop/orders", "shop/web", "ops/web"];
const IPS: [&str; 3] = ["10.0.0.1", "10.1.0.1", "2001:db8::1"];
const BLOCKS: [&str; 3] = ["10.0.0.0/16", "10.0.0.0/8", "2001:db8::/32"];
const PORTS: [u16; 2] = [8443, 9443];
const METHODS: [&str; 3] = ["GET", "POST", "PROPFIND"];
const HOSTS: [&str; 4] = ["shop.example", "SHOP.example:8443", "ops.example", ""];
const PATHS: [&str; 5] = ["/", "/a", "/a/b", "/a/b/c", "/b"];
const HEADER_VALUES: [&str; 3] = ["x", "xy", "z"];

/// What is asked of one field: the wanted list, the unwanted list.
fn field<T, V: Copy>(
    wanted: &[T],
    unwanted: &[T],
    value: Option<V>,
    is: impl Fn(&T, V) -> bool,
) -> Option<bool> {
    if wanted.is_empty() && unwanted.is_empty() {
        return Some(true);
    }
    let value = value?;
    let in_wanted = wanted.is_empty() || wanted.iter().any(|pattern| is(pattern, value));
    let in_unwanted = unwanted.iter().any(|pattern| is(pattern, value));
    Some(in_wanted && !in_unwanted)
}

fn text(pattern: &TextMatch, value: &str) -> bool {
    match pattern {
        TextMatch::Exact(exact) => exact == value,
        TextMatch::Prefix(prefix) => value.find(prefix.as_str()) == Some(0),
        TextMatch::Suffix(suffix) => {
            value.len() >= suffix.len() && &value[value.len() - suffix.len()..] == suffix
        }
        TextMatch::Present => true,
    }
}

fn path(pattern: &PathMatch, value: &str) -> bool {
    match pattern {
        PathMatch::Text(pattern) => text(pattern, value),
        PathMatch::Template(template) => {
            let template = template.to_string();
            let wanted: Vec<&str> = template.split('/').collect();
            let given: Vec<&str> = value.split('/').collect();
            let same = |(wanted, given): (&&str, &&str)| {
                wanted == given || (*wanted == "{*}" && !given.is_empty())
            };
            match wanted.iter().position(|part| *part == "{**}") {
                None => wanted.len() == given.len() && wanted.iter().zip(&given).all(same),
                Some(at) => {
                    let after = wanted[at + 1..].len();
                    given.len() > at + after
                        && wanted[..at].iter().zip(&given[..at]).all(same)
                        && wanted[at + 1..]
                            .iter()
                            .zip(&given[given.len() - after..])
                            .all(same)
                }
            }
        }
    }
}

fn host(pattern: &TextMatch, value: &str) -> bool {
    let value = value.to_lowercase();
    let lower = |text: &String| text.to_lowercase();
    let pattern = match pattern {
        TextMatch::Exact(t) => TextMatch::Exact(lower(t)),
        TextMatch::Prefix(t) => TextMatch::Prefix(lower(t)),
        TextMatch::Suffix(t) => TextMatch::Suffix(lower(t)),
        TextMatch::Present => TextMatch::Present,
    };
    match pattern.to_string().contains(':') {
        true => text(&pattern, &value),
        false => text(&pattern, value.split(':').next().unwrap()),
    }
}

fn source(source: &Source, seen: &Seen<'_>) -> Vec<Option<bool>> {
    let namespace = seen
        .caller
        .and_then(|c| c.account)
        .map(|(namespace, _)| namespace);
    let account = seen
        .caller
        .and_then(|c| c.account)
        .map(|(namespace, name)| format!("{namespace}/{name}"));
    vec![
        field(
            &source.principals,
            &source.not_principals,
            seen.caller.map(|c| c.principal),
            text,
        ),
        field(&source.namespaces, &source.not_namespaces, namespace, text),
        field(
            &source.service_accounts,
            &source.not_service_accounts,
            account.as_deref(),
            |a, b| a.to_string() == b,
        ),
        field(
            &source.ip_blocks,
            &source.not_ip_blocks,
            seen.source_ip,
            |block, ip| block.contains(&ip),
        ),
        field(
            &source.remote_ip_blocks,
            &source.not_remote_ip_blocks,
            seen.remote_ip,
            |block, ip| block.contains(&ip),
        ),
    ]
}

fn operation(operation: &Operation, seen: &Seen<'_>) -> Vec<Option<bool>> {
    vec![
        field(
            &operation.hosts,
            &operation.not_hosts,
            seen.http
                .map(|http| http.host)
                .filter(|host| !host.is_empty()),
            host,
        ),
        field(
            &operation.ports,
            &operation.not_ports,
            Some(seen.port),
            |a, b| *a == b,
        ),
        field(
            &operation.methods,
            &operation.not_methods,
            seen.http.map(|http| http.method),
            text,
        ),
        field(
            &operation.paths,
            &operation.not_paths,
            seen.http.map(|http| http.path),
            path,
        ),
    ]
}

fn condition(condition: &Condition, seen: &Seen<'_>) -> Option<bool> {
    let namespace = seen
        .caller
        .and_then(|c| c.account)
        .map(|(namespace, _)| namespace);
    let account = seen
        .caller
        .and_then(|c| c.account)
        .map(|(namespace, name)| format!("{namespace}/{name}"));
    match condition {
        Condition::Header {
            name,
            values,
            not_values,
        } => {
            let http = seen.http?;
            let present = (http.header)(name);
            let wanted = values.is_empty()
                || present
                    .iter()
                    .any(|v| values.iter().any(|pattern| text(pattern, v)));
            let unwanted = present
                .iter()
                .any(|v| not_values.iter().any(|pattern| text(pattern, v)));
            Some(wanted && !unwanted)
        }
        Condition::SourceIp { values, not_values } => {
            field(values, not_values, seen.source_ip, |block, ip| {
                block.contains(&ip)
            })
        }
        Condition::RemoteIp { values, not_values } => {
            field(values, not_values, seen.remote_ip, |block, ip| {
                block.contains(&ip)
            })
        }
        Condition::SourceNamespace { values, not_values } => {
            field(values, not_values, namespace, text)
        }
        Condition::SourcePrincipal { values, not_values } => {
            field(values, not_values, seen.caller.map(|c| c.principal), text)
        }
        Condition::SourceServiceAccount { values, not_values } => {
            field(values, not_values, account.as_deref(), |a, b| {
                a.to_string() == b
            })
        }
        Condition::DestinationPort { values, not_values } => {
            field(values, not_values, Some(seen.port), |a, b| *a == b)
        }
    }
}

fn matches(rule: &Rule, action: Action, seen: &Seen<'_>) -> bool {
    let unknown = action != Action::Allow;
    let from = if rule.from.is_empty() {
        vec![Source::default()]
    } else {
        rule.from.clone()
    };
    let to = if rule.to.is_empty() {
        vec![Operation::default()]
    } else {
        rule.to.clone()
    };
    let when: Vec<_> = rule.when.iter().map(|c| condition(c, seen)).collect();
    from.iter().any(|s| {
        to.iter().any(|o| {
            let all = [source(s, seen), operation(o, seen), when.clone()].concat();
            // Unknown counts for the action, except that a clause known to miss still misses.
            all.into_iter().all(|clause| clause.unwrap_or(unknown))
        })
    })
}

fn decide(set: &PolicySet, seen: &Seen<'_>) -> Verdict {
    let any = |action: Action| {
        set.policies
            .iter()
            .filter(|p| p.action == action)
            .any(|p| p.rules.iter().any(|r| matches(r, action, seen)))
    };
    let has_allow = set.policies.iter().any(|p| p.action == Action::Allow);
    if any(Action::Deny) {
        Verdict::Deny
    } else if any(Action::Allow) {
        Verdict::Allow
    } else if has_allow || set.default == Default::Deny {
        Verdict::Deny
    } else {
        Verdict::Allow
    }
}

/// A connection or request of the small world.
#[derive(Clone, Debug)]
struct World {
    id: Option<&'static str>,
    ip: Option<&'static str>,
    remote: Option<&'static str>,
    port: u16,
    http: Option<(&'static str, &'static str, &'static str, Vec<&'static str>)>,
}

impl World {
    fn with<T>(&self, ask: impl FnOnce(&Seen<'_>) -> T) -> T {
        let headers = self
            .http
            .as_ref()
            .map(|(_, _, _, values)| values.clone())
            .unwrap_or_default();
        let header = |name: &str| {
            if name == "x-team" {
                headers.clone()
            } else {
                Vec::new()
            }
        };
        ask(&Seen {
            caller: self.id.map(Caller::of),
            source_ip: self.ip.map(|ip| ip.parse::<IpAddr>().unwrap()),
            remote_ip: self.remote.map(|ip| ip.parse::<IpAddr>().unwrap()),
            port: self.port,
            http: self.http.as_ref().map(|(method, host, path, _)| HttpFacts {
                method,
                host,
                path,
                header: &header,
            }),
        })
    }
}

fn world() -> impl Strategy<Value = World> {
    let http = (
        select(&METHODS[..]),
        select(&HOSTS[..]),
        select(&PATHS[..]),
        vec(select(&HEADER_VALUES[..]), 0..3),
    );
    (
        prop::option::of(select(&IDS[..])),
        prop::option::of(select(&IPS[..])),
        prop::option::of(select(&IPS[..])),
        select(&PORTS[..]),
        prop::option::weighted(0.7, http),
    )
        .prop_map(|(id, ip, remote, port, http)| World {
            id,
            ip,
            remote,
            port,
            http,
        })
}

/// Often nothing, otherwise a few patterns made from the words by cutting them.
fn texts(words: &'static [&'static str]) -> impl Strategy<Value = Vec<TextMatch>> {
    let one = (select(words), 0..4u8, 0..6usize).prop_map(|(word, kind, cut)| {
        let cut = cut.min(word.len());
        match kind {
            0 => TextMatch::Exact(word.to_owned()),
            1 => TextMatch::Prefix(word[..cut].to_owned()),
            2 => TextMatch::Suffix(word[word.len() - cut..].to_owned()),
            _ => TextMatch::Present,
        }
    });
    prop_oneof![3 => Just(Vec::new()), 2 => vec(one, 1..3)]
}

fn some<T: Clone + std::fmt::Debug + std::str::FromStr + 'static>(
    words: &'static [&'static str],
) -> impl Strategy<Value = Vec<T>>
where
    T::Err: std::fmt::Debug,
{
    let parsed: Vec<T> = words.iter().map(|word| word.parse().unwrap()).collect();
    prop_oneof![3 => Just(Vec::new()), 2 => subsequence(parsed, 1..=2)]
}

fn ports() -> impl Strategy<Value = Vec<u16>> {
    prop_oneof![3 => Just(Vec::new()), 1 => subsequence(PORTS.to_vec(), 1..=2)]
}

const PRINCIPALS: [&str; 3] = [
    "example.org/ns/shop/sa/orders",
    "example.org/ns/ops/sa/web",
    "other.org/ns/shop/sa/orders",
];

fn any_source() -> impl Strategy<Value = Source> {
    (
        (texts(&PRINCIPALS), texts(&PRINCIPALS)),
        (texts(&NAMESPACES), texts(&NAMESPACES)),
        (some(&ACCOUNTS), some(&ACCOUNTS)),
        (some(&BLOCKS), some(&BLOCKS)),
        (some(&BLOCKS), some(&BLOCKS)),
    )
        .prop_map(|(p, n, a, i, r)| Source {
            principals: p.0,
            not_principals: p.1,
            namespaces: n.0,
            not_namespaces: n.1,
            service_accounts: a.0,
            not_service_accounts: a.1,
            ip_blocks: i.0,
            not_ip_blocks: i.1,
            remote_ip_blocks: r.0,
            not_remote_ip_blocks: r.1,
        })
}

fn paths() -> impl Strategy<Value = Vec<PathMatch>> {
    let templates = [
        "/{*}",
        "/a/{*}",
        "/{**}",
        "/a/{**}",
        "/{*}/{**}/c",
        "/a/{**}/",
    ];
    let template = select(templates.to_vec()).prop_map(|text| text.parse::<PathMatch>().unwrap());
    prop_oneof![
        texts(&PATHS).prop_map(|texts| texts.into_iter().map(PathMatch::Text).collect()),
        vec(template, 0..2),
    ]
}

const HOST_WORDS: [&str; 3] = ["shop.example", "Shop.Example:8443", "ops.example"];

fn any_operation() -> impl Strategy<Value = Operation> {
    (
        (texts(&HOST_WORDS), texts(&HOST_WORDS)),
        (ports(), ports()),
        (texts(&METHODS), texts(&METHODS)),
        (paths(), paths()),
    )
        .prop_map(|(h, p, m, a)| Operation {
            hosts: h.0,
            not_hosts: h.1,
            ports: p.0,
            not_ports: p.1,
            methods: m.0,
            not_methods: m.1,
            paths: a.0,
            not_paths: a.1,
        })
}

fn any_condition() -> impl Strategy<Value = Condition> {
    let filled = |(values, not_values): &(Vec<TextMatch>, Vec<TextMatch>)| {
        !(values.is_empty() && not_values.is_empty())
    };
    let exact = |words: &'static [&'static str]| {
        let texts: Vec<TextMatch> = words
            .iter()
            .map(|word| TextMatch::Exact((*word).to_owned()))
            .collect();
        (subsequence(texts.clone(), 0..=2), subsequence(texts, 0..=2))
    };
    let of = |key: &'static str| {
        move |(values, not_values): (Vec<TextMatch>, Vec<TextMatch>)| {
            Condition::new(key, values, not_values).unwrap()
        }
    };
    prop_oneof![
        (texts(&HEADER_VALUES), texts(&HEADER_VALUES))
            .prop_filter("empty", filled)
            .prop_map(of("request.headers[X-Team]")),
        (texts(&NAMESPACES), texts(&NAMESPACES))
            .prop_filter("empty", filled)
            .prop_map(of("source.namespace")),
        (texts(&PRINCIPALS), texts(&PRINCIPALS))
            .prop_filter("empty", filled)
            .prop_map(of("source.principal")),
        exact(&BLOCKS)
            .prop_filter("empty", filled)
            .prop_map(of("source.ip")),
        exact(&BLOCKS)
            .prop_filter("empty", filled)
            .prop_map(of("remote.ip")),
        exact(&ACCOUNTS)
            .prop_filter("empty", filled)
            .prop_map(of("source.serviceAccount")),
        exact(&["8443", "9443"])
            .prop_filter("empty", filled)
            .prop_map(of("destination.port")),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    (
        vec(any_source(), 0..3),
        vec(any_operation(), 0..3),
        vec(any_condition(), 0..2),
    )
        .prop_map(|(from, to, when)| Rule { from, to, when })
}

fn policies() -> impl Strategy<Value = PolicySet> {
    let actions = select(vec![
        Action::Allow,
        Action::Allow,
        Action::Deny,
        Action::Audit,
    ]);
    let policy = (actions, vec(rule(), 0..3));
    let defaults = select(vec![Default::Deny, Default::Allow, Default::Audit]);
    (defaults, vec(policy, 0..4)).prop_map(|(default, policies)| PolicySet {
        default,
        policies: policies
            .into_iter()
            .enumerate()
            .map(|(at, (action, rules))| Policy {
                name: format!("shop/p{at}").parse().unwrap(),
                action,
                rules,
            })
            .collect(),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_evaluator_agrees_with_the_reference(set in policies(), world in world()) {
        let decision = world.with(|seen| set.decide_seen(seen));
        prop_assert_eq!(decision.verdict, world.with(|seen| decide(&set, seen)));
    }

    #[test]
    fn audit_policies_never_change_the_outcome(set in policies(), world in world()) {
        let mut without = set.clone();
        without.policies.retain(|policy| policy.action != Action::Audit);
        let (with, without) = world.with(|seen| (set.decide_seen(seen), without.decide_seen(seen)));
        prop_assert_eq!((with.verdict, with.by), (without.verdict, without.by));
        prop_assert!(without.audits.is_empty());
    }

    #[test]
    fn an_explanation_says_what_was_decided_and_by_what(set in policies(), world in world()) {
        let explanation = world.with(|seen| set.explain_seen(seen));
        prop_assert_eq!(&explanation.decision, &world.with(|seen| set.decide_seen(seen)));
        prop_assert!(!explanation.decided_by.is_empty());
        if let By::Policy { name, .. } = &explanation.decision.by {
            prop_assert!(explanation.decided_by.contains(name.as_str()));
        }
        if explanation.decision.is_allowed() {
            prop_assert!(explanation.nearest.is_empty());
        } else if let By::NoMatch { .. } = explanation.decision.by {
            prop_assert!(!explanation.nearest.is_empty());
        }
    }

    #[test]
    fn no_allow_rule_that_asks_for_identity_admits_an_anonymous_peer(source in any_source(), world in world()) {
        let asks_identity = [&source.principals, &source.not_principals, &source.namespaces, &source.not_namespaces]
            .iter().any(|list| !list.is_empty())
            || !source.service_accounts.is_empty() || !source.not_service_accounts.is_empty();
        prop_assume!(asks_identity);
        let allow = Policy {
            name: "shop/allow".parse().unwrap(),
            action: Action::Allow,
            rules: vec![Rule { from: vec![source], ..Rule::default() }],
        };
        let set = PolicySet { default: Default::Allow, policies: vec![allow] };
        let anonymous = World { id: None, ..world };
        prop_assert_eq!(anonymous.with(|seen| set.decide_seen(seen).verdict), Verdict::Deny);
    }

    #[test]
    fn a_condition_survives_its_textual_form(condition in any_condition()) {
        let again = Condition::new(&condition.key(), condition.values(), condition.not_values());
        prop_assert_eq!(again, Ok(condition));
    }
}
