//! Policies of every kind.

use super::*;

fn text() -> impl Strategy<Value = policy::TextMatch> {
    let any = ".{0,12}";
    prop_oneof![
        any.prop_map(policy::TextMatch::Exact),
        any.prop_map(policy::TextMatch::Prefix),
        any.prop_map(policy::TextMatch::Suffix),
        Just(policy::TextMatch::Present),
    ]
}

fn path() -> impl Strategy<Value = policy::PathMatch> {
    prop_oneof![
        text().prop_map(policy::PathMatch::Text),
        Just(policy::PathMatch::Template(
            "/a/{*}/b/{**}/c".parse().unwrap()
        )),
    ]
}

fn source() -> impl Strategy<Value = policy::Source> {
    let blocks = || vec(block().prop_map(|text| text.parse().unwrap()), 0..3);
    let texts = || vec(text(), 0..3);
    let accounts = || vec(object(), 0..3);
    (
        texts(),
        texts(),
        texts(),
        texts(),
        accounts(),
        accounts(),
        (blocks(), blocks()),
        (blocks(), blocks()),
    )
        .prop_map(|(p, np, n, nn, s, ns, i, r)| policy::Source {
            principals: p,
            not_principals: np,
            namespaces: n,
            not_namespaces: nn,
            service_accounts: s,
            not_service_accounts: ns,
            ip_blocks: i.0,
            not_ip_blocks: i.1,
            remote_ip_blocks: r.0,
            not_remote_ip_blocks: r.1,
        })
}

fn operation() -> impl Strategy<Value = policy::Operation> {
    let texts = || vec(text(), 0..3);
    let ports = || vec(any::<u16>(), 0..3);
    let paths = || vec(path(), 0..3);
    (
        texts(),
        texts(),
        ports(),
        ports(),
        texts(),
        texts(),
        paths(),
        paths(),
    )
        .prop_map(|(h, nh, p, np, m, nm, a, na)| policy::Operation {
            hosts: h,
            not_hosts: nh,
            ports: p,
            not_ports: np,
            methods: m,
            not_methods: nm,
            paths: a,
            not_paths: na,
        })
}

fn condition() -> impl Strategy<Value = policy::Condition> {
    let of = |key: &'static str, value: policy::TextMatch| {
        policy::Condition::new(key, vec![value.clone()], vec![value]).unwrap()
    };
    prop_oneof![
        text().prop_map(move |text| of("request.headers[x-team]", text)),
        text().prop_map(move |text| of("source.namespace", text)),
        text().prop_map(move |text| of("source.principal", text)),
        block().prop_map(move |text| of("source.ip", policy::TextMatch::Exact(text))),
        block().prop_map(move |text| of("remote.ip", policy::TextMatch::Exact(text))),
        (1..=u16::MAX).prop_map(move |port| {
            of(
                "destination.port",
                policy::TextMatch::Exact(port.to_string()),
            )
        }),
    ]
}

pub(super) fn policies() -> impl Strategy<Value = policy::PolicySet> {
    let default = prop_oneof![
        Just(policy::Default::Deny),
        Just(policy::Default::Allow),
        Just(policy::Default::Audit)
    ];
    let action = prop_oneof![
        Just(policy::Action::Allow),
        Just(policy::Action::Deny),
        Just(policy::Action::Audit)
    ];
    let rule = (
        vec(source(), 0..2),
        vec(operation(), 0..2),
        vec(condition(), 0..2),
    )
        .prop_map(|(from, to, when)| policy::Rule { from, to, when });
    let policy =
        (object(), action, vec(rule, 0..3)).prop_map(|(name, action, rules)| policy::Policy {
            name,
            action,
            rules,
        });
    (default, vec(policy, 0..3))
        .prop_map(|(default, policies)| policy::PolicySet { default, policies })
}
