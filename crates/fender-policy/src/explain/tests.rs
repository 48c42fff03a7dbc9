use crate::facts::{Caller, Seen};
use crate::{
    Action, Condition, Default, HttpFacts, Operation, Policy, PolicySet, Rule, Source, TextMatch,
};

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

fn from_namespaces(list: &[&str]) -> Vec<Source> {
    vec![Source {
        namespaces: texts(list),
        ..Source::default()
    }]
}

fn to(methods: &[&str], path: &str) -> Vec<Operation> {
    vec![Operation {
        methods: texts(methods),
        paths: vec![path.parse().unwrap()],
        ..Operation::default()
    }]
}

fn request<T>(id: Option<&str>, method: &str, path: &str, ask: impl FnOnce(&Seen<'_>) -> T) -> T {
    let header = |name: &str| {
        if name == "authorization" {
            vec!["Bearer hush"]
        } else {
            Vec::new()
        }
    };
    ask(&Seen {
        caller: id.map(Caller::of),
        source_ip: Some("10.0.0.7".parse().unwrap()),
        remote_ip: Some("10.0.0.7".parse().unwrap()),
        port: 8443,
        http: Some(HttpFacts {
            method,
            host: "orders.shop.internal",
            path,
            header: &header,
        }),
    })
}

const ROGUE: Option<&str> = Some("spiffe://example.org/ns/wild/sa/rogue");
const WEB: Option<&str> = Some("spiffe://example.org/ns/shop/sa/web");

fn allow_reading() -> PolicySet {
    let wide = Rule {
        from: from_namespaces(&["ops"]),
        to: to(&["DELETE"], "/admin"),
        when: Vec::new(),
    };
    let near = Rule {
        from: from_namespaces(&["shop", "ops"]),
        to: to(&["GET", "HEAD"], "/orders*"),
        when: Vec::new(),
    };
    PolicySet {
        default: Default::Deny,
        policies: vec![
            policy("shop/admins", Action::Allow, vec![wide]),
            policy("shop/readers", Action::Allow, vec![near]),
        ],
    }
}

#[test]
fn a_denial_names_the_nearest_rule_and_the_one_clause_it_missed() {
    let told = request(ROGUE, "GET", "/orders/1", |seen| {
        allow_reading().explain_seen(seen)
    });
    assert_eq!(
        told.decided_by,
        "2 ALLOW policies select this workload, and none of them matched"
    );
    assert_eq!(
        told.nearest,
        [
            "the nearest is rules[0] of the ALLOW policy `shop/readers`; it missed by one clause",
            "`rules[0].from[0].source.namespaces` wants one of `shop`, `ops`, but the namespace is `wild`",
        ]
    );
}

#[test]
fn an_allowed_request_says_why_and_names_no_near_miss() {
    let told = request(WEB, "GET", "/orders/1", |seen| {
        allow_reading().explain_seen(seen)
    });
    assert_eq!(
        told.decided_by,
        "rules[0] of the ALLOW policy `shop/readers` matched: \
         the namespace is `shop`, and `rules[0].from[0].source.namespaces` wants one of `shop`, `ops`; \
         the method is `GET`, and `rules[0].to[0].operation.methods` wants one of `GET`, `HEAD`; \
         the path is `/orders/1`, and `rules[0].to[0].operation.paths` wants `/orders*`"
    );
    assert!(told.nearest.is_empty());
}

#[test]
fn a_peer_without_certificate_is_told_as_such() {
    let told = request(None, "GET", "/orders/1", |seen| {
        allow_reading().explain_seen(seen)
    });
    assert_eq!(
        told.nearest[1],
        "`rules[0].from[0].source.namespaces` cannot be evaluated, because the peer showed no certificate"
    );
}

#[test]
fn a_deny_that_matched_is_named_with_its_clause_and_what_would_have_allowed() {
    let mut set = allow_reading();
    let rule = Rule {
        from: from_namespaces(&["shop"]),
        ..Rule::default()
    };
    set.policies
        .push(policy("fender-system/freeze", Action::Deny, vec![rule]));
    let told = request(WEB, "GET", "/orders/1", |seen| set.explain_seen(seen));
    assert_eq!(
        told.decided_by,
        "rules[0] of the DENY policy `fender-system/freeze` matched: \
         the namespace is `shop`, and `rules[0].from[0].source.namespaces` wants `shop`"
    );
    assert_eq!(
        told.nearest,
        ["without it, rules[0] of the ALLOW policy `shop/readers` would have allowed this"]
    );
}

#[test]
fn an_allow_policy_without_rules_is_named_as_allowing_nobody() {
    let set = PolicySet {
        default: Default::Allow,
        policies: vec![policy("shop/closed", Action::Allow, Vec::new())],
    };
    let told = request(WEB, "GET", "/", |seen| set.explain_seen(seen));
    assert_eq!(
        told.decided_by,
        "an ALLOW policy selects this workload, and it did not match"
    );
    assert_eq!(
        told.nearest,
        ["the ALLOW policy `shop/closed` has no rules, so it allows nobody"]
    );
}

#[test]
fn a_rule_that_asks_nothing_says_so() {
    let set = PolicySet {
        default: Default::Deny,
        policies: vec![policy("shop/open", Action::Allow, vec![Rule::default()])],
    };
    let told = request(None, "GET", "/", |seen| set.explain_seen(seen));
    assert_eq!(
        told.decided_by,
        "rules[0] of the ALLOW policy `shop/open` matched: it asks nothing"
    );
}

#[test]
fn the_value_of_a_header_is_never_told() {
    let when = Condition::new(
        "request.headers[Authorization]",
        texts(&["Bearer x"]),
        Vec::new(),
    )
    .unwrap();
    let set = PolicySet {
        default: Default::Deny,
        policies: vec![policy(
            "shop/token",
            Action::Allow,
            vec![Rule {
                when: vec![when],
                ..Rule::default()
            }],
        )],
    };
    let told = request(WEB, "GET", "/", |seen| set.explain_seen(seen));
    assert_eq!(
        told.nearest[1],
        "`rules[0].when[0] (request.headers[authorization])` wants `Bearer x`, but the header `authorization` is there \
         (its value is not shown)"
    );
    assert!(!format!("{told:?}").contains("hush"));
}

#[test]
fn the_default_is_named_when_nothing_selects_the_workload() {
    let mut set = PolicySet {
        default: Default::Deny,
        policies: Vec::new(),
    };
    let told = request(WEB, "GET", "/", |seen| set.explain_seen(seen));
    assert_eq!(
        told.decided_by,
        "no ALLOW policy selects this workload, and the default is to deny"
    );
    assert!(told.nearest.is_empty());
    set.default = Default::Audit;
    let told = request(WEB, "GET", "/", |seen| set.explain_seen(seen));
    assert_eq!(
        told.decided_by,
        "no ALLOW policy selects this workload, and the default is to allow and record"
    );
}

#[test]
fn what_a_peer_sent_cannot_steer_the_terminal_of_whoever_asks() {
    let path = format!("/\u{1b}[2J\n{}", "x".repeat(10_000));
    let told = request(WEB, "DELETE", &path, |seen| {
        allow_reading().explain_seen(seen)
    });
    let text = told.nearest.join(" ");
    assert!(!text.contains(char::is_control), "{text}");
    assert!(text.contains("the path is `/\\u{1b}[2J\\nxxx"), "{text}");
    assert!(text.len() < 1_000);
}
