use crate::facts::{Caller, Seen};
use crate::{
    Action, By, Condition, Default, HttpFacts, Operation, Policy, PolicySet, Rule, Source,
    TextMatch, Verdict,
};

const WEB: Option<&str> = Some("spiffe://example.org/ns/shop/sa/web");

fn texts(list: &[&str]) -> Vec<TextMatch> {
    list.iter().map(|text| (*text).into()).collect()
}

fn policy(name: &str, action: Action, rules: Vec<Rule>) -> Policy {
    Policy {
        name: name.parse().unwrap(),
        action,
        rules,
    }
}

fn only(action: Action, rule: Rule) -> PolicySet {
    let default = if action == Action::Allow {
        Default::Deny
    } else {
        Default::Allow
    };
    PolicySet {
        default,
        policies: vec![policy("shop/only", action, vec![rule])],
    }
}

fn from(source: Source) -> Rule {
    Rule {
        from: vec![source],
        ..Rule::default()
    }
}

fn to(operation: Operation) -> Rule {
    Rule {
        to: vec![operation],
        ..Rule::default()
    }
}

fn header_rule(values: &[&str], not_values: &[&str]) -> Rule {
    let when = Condition::new("request.headers[x-team]", texts(values), texts(not_values)).unwrap();
    Rule {
        when: vec![when],
        ..Rule::default()
    }
}

fn http(set: &PolicySet, id: Option<&str>, method: &str, path: &str, team: &[&str]) -> Verdict {
    let header = |name: &str| {
        if name == "x-team" {
            team.to_vec()
        } else {
            Vec::new()
        }
    };
    let http = HttpFacts {
        method,
        host: "orders",
        path,
        header: &header,
    };
    let seen = Seen {
        caller: id.map(Caller::of),
        source_ip: Some([10, 0, 0, 7].into()),
        remote_ip: Some([10, 0, 0, 7].into()),
        port: 8443,
        http: Some(http),
    };
    set.decide_seen(&seen).verdict
}

fn tcp(set: &PolicySet, id: Option<&str>) -> Verdict {
    let seen = Seen {
        caller: id.map(Caller::of),
        source_ip: Some([10, 0, 0, 7].into()),
        remote_ip: Some([10, 0, 0, 7].into()),
        port: 8443,
        http: None,
    };
    set.decide_seen(&seen).verdict
}

#[test]
fn a_deny_wins_over_an_allow() {
    let set = PolicySet {
        default: Default::Allow,
        policies: vec![
            policy("shop/everybody", Action::Allow, vec![Rule::default()]),
            policy("shop/nobody", Action::Deny, vec![Rule::default()]),
        ],
    };
    assert_eq!(http(&set, WEB, "GET", "/", &[]), Verdict::Deny);
}

#[test]
fn an_allow_policy_without_rules_allows_nobody_and_one_empty_rule_everybody() {
    let nobody = PolicySet {
        default: Default::Allow,
        policies: vec![policy("shop/a", Action::Allow, Vec::new())],
    };
    assert_eq!(http(&nobody, WEB, "GET", "/", &[]), Verdict::Deny);
    assert_eq!(
        http(&only(Action::Allow, Rule::default()), None, "GET", "/", &[]),
        Verdict::Allow
    );
}

#[test]
fn a_deny_policy_without_rules_denies_nobody() {
    let set = PolicySet {
        default: Default::Allow,
        policies: vec![policy("shop/d", Action::Deny, Vec::new())],
    };
    assert_eq!(http(&set, WEB, "GET", "/", &[]), Verdict::Allow);
}

#[test]
fn the_default_decides_only_when_no_allow_policy_selects_the_workload() {
    for (default, verdict) in [
        (Default::Deny, Verdict::Deny),
        (Default::Allow, Verdict::Allow),
        (Default::Audit, Verdict::Allow),
    ] {
        let set = PolicySet {
            default,
            policies: Vec::new(),
        };
        assert_eq!(http(&set, WEB, "GET", "/", &[]), verdict);
        let never = to(Operation {
            ports: vec![1],
            ..Operation::default()
        });
        let set = PolicySet {
            default,
            policies: vec![policy("shop/a", Action::Allow, vec![never])],
        };
        assert_eq!(http(&set, WEB, "GET", "/", &[]), Verdict::Deny, "{default}");
    }
}

#[test]
fn an_anonymous_peer_is_not_admitted_by_a_rule_made_only_of_not_principals() {
    let source = Source {
        not_principals: texts(&["example.org/ns/wild/sa/rogue"]),
        ..Source::default()
    };
    let set = only(Action::Allow, from(source));
    assert_eq!(http(&set, WEB, "GET", "/", &[]), Verdict::Allow);
    assert_eq!(http(&set, None, "GET", "/", &[]), Verdict::Deny);
}

#[test]
fn a_deny_that_asks_for_identity_refuses_an_anonymous_peer() {
    for source in [
        Source {
            principals: texts(&["example.org/ns/wild/*"]),
            ..Source::default()
        },
        Source {
            not_principals: texts(&["*"]),
            ..Source::default()
        },
        Source {
            not_namespaces: texts(&["shop"]),
            ..Source::default()
        },
    ] {
        let set = only(Action::Deny, from(source));
        assert_eq!(http(&set, WEB, "GET", "/", &[]), Verdict::Allow);
        assert_eq!(http(&set, None, "GET", "/", &[]), Verdict::Deny);
    }
}

#[test]
fn a_path_that_only_looks_like_a_workload_has_no_namespace() {
    let set = only(
        Action::Allow,
        from(Source {
            namespaces: texts(&["shop"]),
            ..Source::default()
        }),
    );
    assert_eq!(http(&set, WEB, "GET", "/", &[]), Verdict::Allow);
    for id in [
        "spiffe://example.org/ns/shop/sa/web/more",
        "spiffe://example.org/ns/shop",
        "spiffe://example.org/x/ns/shop/sa/web",
        "spiffe://example.org/fender/control",
    ] {
        assert_eq!(http(&set, Some(id), "GET", "/", &[]), Verdict::Deny, "{id}");
    }
}

#[test]
fn a_principal_of_a_foreign_trust_domain_does_not_match_by_its_path() {
    let set = only(
        Action::Allow,
        from(Source {
            principals: texts(&["example.org/ns/shop/*"]),
            ..Source::default()
        }),
    );
    assert_eq!(http(&set, WEB, "GET", "/", &[]), Verdict::Allow);
    assert_eq!(
        http(
            &set,
            Some("spiffe://evil.org/ns/shop/sa/web"),
            "GET",
            "/",
            &[]
        ),
        Verdict::Deny
    );
}

#[test]
fn on_tcp_an_http_only_attribute_denies_in_deny_and_never_allows_in_allow() {
    let methods = Operation {
        methods: texts(&["GET"]),
        ..Operation::default()
    };
    let not_paths = Operation {
        not_paths: vec!["/admin*".parse().unwrap()],
        ..Operation::default()
    };
    for rule in [
        to(methods),
        to(not_paths),
        header_rule(&["a"], &[]),
        header_rule(&[], &["a"]),
    ] {
        assert_eq!(tcp(&only(Action::Allow, rule.clone()), WEB), Verdict::Deny);
        assert_eq!(tcp(&only(Action::Deny, rule), WEB), Verdict::Deny);
    }
}

#[test]
fn on_tcp_a_deny_still_misses_by_the_clauses_that_can_be_evaluated() {
    let operation = Operation {
        methods: texts(&["GET"]),
        ports: vec![9999],
        ..Operation::default()
    };
    assert_eq!(tcp(&only(Action::Deny, to(operation)), WEB), Verdict::Allow);
}

#[test]
fn an_address_condition_over_a_unix_socket_denies() {
    let when = |values: &[&str]| Condition::new("source.ip", texts(values), Vec::new()).unwrap();
    let rule = Rule {
        when: vec![when(&["10.0.0.0/8"])],
        ..Rule::default()
    };
    let seen = Seen {
        caller: WEB.map(Caller::of),
        source_ip: None,
        remote_ip: None,
        port: 8443,
        http: None,
    };
    assert_eq!(
        only(Action::Allow, rule.clone()).decide_seen(&seen).verdict,
        Verdict::Deny
    );
    assert_eq!(
        only(Action::Deny, rule).decide_seen(&seen).verdict,
        Verdict::Deny
    );
}

/// A balancer's own address is not that of its client, nor the other way round.
#[test]
fn the_remote_address_and_that_of_the_connection_are_two_facts() {
    let (balancer, client) = ("10.0.0.1", "192.0.2.7");
    let seen = Seen {
        caller: WEB.map(Caller::of),
        source_ip: Some(balancer.parse().unwrap()),
        remote_ip: Some(client.parse().unwrap()),
        port: 8443,
        http: None,
    };
    let block = |ip: &str| vec![format!("{ip}/32").parse().unwrap()];
    let allowed = |source: Source| {
        let verdict = only(Action::Allow, from(source)).decide_seen(&seen).verdict;
        verdict == Verdict::Allow
    };
    for (ip, is_source) in [(balancer, true), (client, false)] {
        let (ip_blocks, remote_ip_blocks) = (block(ip), block(ip));
        assert_eq!(
            is_source,
            allowed(Source {
                ip_blocks,
                ..Source::default()
            })
        );
        assert_eq!(
            !is_source,
            allowed(Source {
                remote_ip_blocks,
                ..Source::default()
            })
        );
        let not_remote_ip_blocks = block(ip);
        assert_eq!(
            is_source,
            allowed(Source {
                not_remote_ip_blocks,
                ..Source::default()
            })
        );
        let condition = |key| Condition::new(key, texts(&[ip]), Vec::new()).unwrap();
        let when = |condition| Rule {
            when: vec![condition],
            ..Rule::default()
        };
        let rule = when(condition("remote.ip"));
        let verdict = only(Action::Deny, rule).decide_seen(&seen).verdict;
        assert_eq!(!is_source, verdict == Verdict::Deny);
    }
}

#[test]
fn a_request_that_names_no_host_is_denied_by_rules_about_hosts_and_allowed_by_none() {
    let hosts = texts(&["admin.example"]);
    let not = Operation {
        not_hosts: hosts.clone(),
        ..Operation::default()
    };
    let is = Operation {
        hosts,
        ..Operation::default()
    };
    let header = |_: &str| Vec::new();
    let seen = Seen {
        caller: WEB.map(Caller::of),
        source_ip: None,
        remote_ip: None,
        port: 8443,
        http: Some(HttpFacts {
            method: "GET",
            host: "",
            path: "/",
            header: &header,
        }),
    };
    for (action, operation) in [
        (Action::Deny, is.clone()),
        (Action::Deny, not.clone()),
        (Action::Allow, is),
        (Action::Allow, not),
    ] {
        let decision = only(action, to(operation.clone())).decide_seen(&seen);
        assert_eq!(decision.verdict, Verdict::Deny, "{action} {operation:?}");
    }
}

#[test]
fn methods_are_case_sensitive() {
    let set = only(
        Action::Allow,
        to(Operation {
            methods: texts(&["GET"]),
            ..Operation::default()
        }),
    );
    assert_eq!(http(&set, WEB, "GET", "/", &[]), Verdict::Allow);
    assert_eq!(http(&set, WEB, "get", "/", &[]), Verdict::Deny);
}

#[test]
fn each_header_value_is_matched_by_itself_so_that_none_hides_another() {
    let deny = only(Action::Deny, header_rule(&["evil"], &[]));
    assert_eq!(
        http(&deny, WEB, "GET", "/", &["good", "evil"]),
        Verdict::Deny
    );
    assert_eq!(http(&deny, WEB, "GET", "/", &["good,evil"]), Verdict::Allow);
    let allow = only(Action::Allow, header_rule(&[], &["evil"]));
    assert_eq!(
        http(&allow, WEB, "GET", "/", &["evil", "good"]),
        Verdict::Deny
    );
    assert_eq!(http(&allow, WEB, "GET", "/", &[]), Verdict::Allow);
}

#[test]
fn a_present_header_means_any_value() {
    let set = only(Action::Allow, header_rule(&["*"], &[]));
    assert_eq!(http(&set, WEB, "GET", "/", &["x"]), Verdict::Allow);
    assert_eq!(http(&set, WEB, "GET", "/", &[]), Verdict::Deny);
}

#[test]
fn a_decision_names_policy_and_rule_and_the_audits_that_matched() {
    let never = to(Operation {
        ports: vec![1],
        ..Operation::default()
    });
    let set = PolicySet {
        default: Default::Deny,
        policies: vec![
            policy("shop/a", Action::Allow, vec![never, Rule::default()]),
            policy("shop/watch", Action::Audit, vec![Rule::default()]),
        ],
    };
    let seen = Seen {
        caller: None,
        source_ip: None,
        remote_ip: None,
        port: 8443,
        http: None,
    };
    let decision = set.decide_seen(&seen);
    assert_eq!(
        decision.by,
        By::Policy {
            name: "shop/a".parse().unwrap(),
            action: Action::Allow,
            rule: 1
        }
    );
    assert_eq!(decision.audits, ["shop/watch".parse().unwrap()]);
}

#[test]
fn an_ipv4_peer_in_ipv6_clothes_is_matched_as_ipv4() {
    let block = Source {
        ip_blocks: vec!["10.0.0.0/8".parse().unwrap()],
        ..Source::default()
    };
    let set = only(Action::Deny, from(block));
    let peer = fender_identity::Peer::Anonymous;
    let facts = crate::Facts {
        peer: &peer,
        source_ip: Some("::ffff:10.0.0.7".parse().unwrap()),
        remote_ip: Some("::ffff:10.0.0.7".parse().unwrap()),
        port: 1,
        http: None,
    };
    assert_eq!(set.decide(&facts).verdict, Verdict::Deny);
}
