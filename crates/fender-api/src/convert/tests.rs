use std::sync::{Arc, LazyLock};
use std::time::Duration;

use fender_config::snapshot as domain;
use fender_identity::jwt::{JwtBundles, Keys, SigningKey};
use fender_identity::tls::{CipherSuite, Group, SessionResumption, TlsProfile, TlsVersion};
use fender_identity::{Bundle, Bundles, DenyList, SpiffeId, Trust};
use fender_policy as policy;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::subsequence;
use rustls_pki_types::UnixTime;

use crate::proto::control::v1 as proto;
use crate::testing::{Authority, snapshot, trust};

/// Making one takes a while, and no test looks into it.
static ROOTS: LazyLock<[Authority; 3]> =
    LazyLock::new(|| std::array::from_fn(|_| Authority::new()));

fn label() -> impl Strategy<Value = String> {
    "[a-z]([a-z0-9-]{0,8}[a-z0-9])?"
}

fn object<T>() -> impl Strategy<Value = T>
where
    T: std::str::FromStr + std::fmt::Debug,
    T::Err: std::fmt::Debug,
{
    (label(), label()).prop_map(|(namespace, name)| format!("{namespace}/{name}").parse().unwrap())
}

fn identity() -> impl Strategy<Value = SpiffeId> {
    (label(), label()).prop_map(|(ns, sa)| {
        format!("spiffe://acme.test/ns/{ns}/sa/{sa}")
            .parse()
            .unwrap()
    })
}

fn listen<T>() -> impl Strategy<Value = T>
where
    T: std::str::FromStr + std::fmt::Debug,
    T::Err: std::fmt::Debug,
{
    prop_oneof![
        (1..=u16::MAX).prop_map(|port| format!("127.0.0.1:{port}")),
        (1..=u16::MAX).prop_map(|port| format!("[::1]:{port}")),
        label().prop_map(|name| format!("unix:/run/{name}.sock")),
    ]
    .prop_map(|text| text.parse().unwrap())
}

fn protocol() -> impl Strategy<Value = domain::Protocol> {
    prop_oneof![Just(domain::Protocol::Http), Just(domain::Protocol::Tcp)]
}

/// Any that could be used.
fn tls() -> impl Strategy<Value = TlsProfile> {
    let suites = CipherSuite::NAMED
        .iter()
        .map(|(_, suite)| *suite)
        .collect::<Vec<_>>();
    let groups = Group::NAMED
        .iter()
        .map(|(_, group)| *group)
        .collect::<Vec<_>>();
    let parts = (
        any::<(bool, bool)>(),
        subsequence(suites, 1..9),
        subsequence(groups, 1..5),
    );
    parts
        .prop_map(|((tls12, never), cipher_suites, groups)| TlsProfile {
            minimum: if tls12 {
                TlsVersion::Tls12
            } else {
                TlsVersion::Tls13
            },
            cipher_suites,
            groups,
            resumption: match never {
                true => SessionResumption::Never,
                false => SessionResumption::Tickets,
            },
        })
        .prop_filter("somebody could connect", |profile| profile.check().is_ok())
}

fn inbound() -> impl Strategy<Value = domain::Inbound> {
    use domain::{ClientCertificate, EscapedSlash, Mtls};
    let certificate = prop_oneof![
        Just(Mtls::Strict(ClientCertificate::Require)),
        Just(Mtls::Strict(ClientCertificate::Accept)),
        Just(Mtls::Strict(ClientCertificate::Ignore)),
        Just(Mtls::Permissive),
        Just(Mtls::Disabled)
    ];
    let slash = prop_oneof![
        Just(EscapedSlash::Reject),
        Just(EscapedSlash::Keep),
        Just(EscapedSlash::Decode)
    ];
    (
        listen(),
        listen(),
        protocol(),
        certificate,
        slash,
        any::<bool>(),
        vec(block().prop_map(|text| text.parse().unwrap()), 0..3),
        any::<bool>(),
        tls(),
    )
        .prop_map(
            |(listen, app, protocol, mtls, escaped_slash, merge_slashes, from, tells, tls)| {
                let paths = domain::PathRules {
                    escaped_slash,
                    merge_slashes,
                };
                domain::Inbound {
                    listen,
                    app,
                    protocol,
                    mtls,
                    tls,
                    paths,
                    proxy_protocol: (!from.is_empty()).then_some(domain::ProxyProtocol { from }),
                    app_proxy_protocol: match tells {
                        true => domain::AppProxyProtocol::V2,
                        false => domain::AppProxyProtocol::Absent,
                    },
                }
            },
        )
}

fn address() -> impl Strategy<Value = fender_config::HostPort> {
    (label(), 1..=u16::MAX)
        .prop_map(|(host, port)| format!("{host}.internal:{port}").parse().unwrap())
}

fn outbound() -> impl Strategy<Value = domain::Outbound> {
    let service =
        (identity(), vec(address(), 0..3), protocol()).prop_map(|(id, addresses, protocol)| {
            domain::Destination::Service {
                id,
                addresses,
                protocol,
            }
        });
    let roots = option::of(label()).prop_map(|file| match file {
        Some(file) => domain::UpstreamRoots::File(format!("/etc/{file}.pem").into()),
        None => domain::UpstreamRoots::Mesh,
    });
    let certificate = prop_oneof![
        Just(domain::OwnCertificate::Present),
        Just(domain::OwnCertificate::Withhold)
    ];
    let upstream = (object(), address(), protocol(), roots, certificate).prop_map(
        |(name, address, protocol, roots, certificate)| domain::Destination::Upstream {
            name,
            address,
            protocol,
            roots,
            certificate,
        },
    );
    (listen(), prop_oneof![service, upstream])
        .prop_map(|(listen, to)| domain::Outbound { listen, to })
}

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

fn block() -> impl Strategy<Value = String> {
    prop_oneof![
        (any::<[u8; 4]>(), 0..=32u8)
            .prop_map(|(ip, bits)| { format!("{}/{bits}", std::net::IpAddr::from(ip)) }),
        (any::<[u8; 16]>(), 0..=128u8)
            .prop_map(|(ip, bits)| { format!("{}/{bits}", std::net::IpAddr::from(ip)) }),
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

fn policies() -> impl Strategy<Value = policy::PolicySet> {
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

fn credential() -> impl Strategy<Value = domain::CredentialSpec> {
    let source = option::of(label()).prop_map(|file| match file {
        Some(file) => domain::CredentialSource::File {
            path: format!("/srv/{file}").into(),
        },
        None => domain::CredentialSource::Control,
    });
    let storage = prop_oneof![Just(domain::Storage::Memory), Just(domain::Storage::Disk)];
    let file = (
        label(),
        0..=0o777u32,
        option::of(label()),
        option::of(label()),
        storage,
    )
        .prop_map(|(name, mode, owner, group, storage)| {
            let path = format!("/run/{name}").into();
            domain::Delivery::File(domain::FileDelivery {
                path,
                mode,
                owner,
                group,
                storage,
            })
        });
    let variable = "[A-Z_]{1,9}".prop_map(|variable| domain::Delivery::Environment { variable });
    (object(), source, vec(prop_oneof![file, variable], 0..3)).prop_map(
        |(name, source, deliver)| domain::CredentialSpec {
            name,
            source,
            deliver,
        },
    )
}

fn bundles() -> impl Strategy<Value = Bundles> {
    vec(0..ROOTS.len(), 1..3).prop_map(|roots| {
        let roots = roots
            .into_iter()
            .map(|root| ROOTS[root].root.clone())
            .collect();
        Bundle::new("acme.test".parse().unwrap(), roots)
            .unwrap()
            .into()
    })
}

prop_compose! {
    fn any_snapshot()(
        version in 1..=u64::MAX,
        identity in identity(),
        development in any::<bool>(),
        tls in tls(),
        inbound in vec(inbound(), 0..3),
        outbound in vec(outbound(), 0..3),
        policies in policies(),
        credentials in vec(credential(), 0..3),
        drain in any::<u32>(),
        max_age in option::of(1..=u32::MAX),
    ) -> domain::Snapshot {
        domain::Snapshot {
            version,
            identity,
            profile: if development { domain::Profile::Development } else { domain::Profile::Production },
            trust: Trust::default(),
            tls,
            inbound,
            outbound,
            policies: Arc::new(policies),
            credentials,
            drain: Duration::from_millis(drain.into()),
            max_age: max_age.map(|millis| Duration::from_millis(millis.into())),
        }
    }
}

prop_compose! {
    fn any_trust()(
        version in 1..=u64::MAX,
        bundles in bundles(),
        serials in vec(1..=u64::MAX, 0..4),
        identities in vec((identity(), any::<u32>()), 0..3),
        workloads in vec(any::<u32>(), 0..2),
        crls in vec(vec(any::<u8>(), 1..9), 0..3),
        token_keys in 0..3_usize,
    ) -> Trust {
        let at = |seconds: u32| UnixTime::since_unix_epoch(Duration::from_secs(seconds.into()));
        let mut denied = DenyList::default();
        serials.into_iter().for_each(|serial| denied.deny_serial(format!("{serial:016x}").parse().unwrap()));
        identities.into_iter().for_each(|(id, moment)| denied.deny_identity_before(id, at(moment)));
        workloads.into_iter().for_each(|moment| denied.deny_workloads_before("acme.test".parse().unwrap(), at(moment)));
        Trust {
            version,
            bundles: bundles.into(),
            denied: denied.into(),
            crls: crls.into_iter().map(Into::into).collect(),
            jwt: jwt_bundles(token_keys).into(),
        }
    }
}

fn jwt_bundles(keys: usize) -> JwtBundles {
    let key = |_| SigningKey::generate().unwrap().public().clone();
    let keys = Keys::new((0..keys).map(key).collect()).unwrap();
    [("acme.test".parse().unwrap(), keys)].into_iter().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn trust_survives_the_wire(trust in any_trust()) {
        use prost::Message as _;
        let bytes = proto::Trust::from(&trust).encode_to_vec();
        let message = proto::Trust::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(Trust::try_from(message).unwrap(), trust);
    }

    #[test]
    fn a_snapshot_survives_the_wire(snapshot in any_snapshot()) {
        use prost::Message as _;
        let bytes = proto::Snapshot::from(&snapshot).encode_to_vec();
        let message = proto::Snapshot::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(domain::Snapshot::try_from(message).unwrap(), snapshot);
    }

    #[test]
    fn any_bytes_are_a_snapshot_or_refused(bytes in vec(any::<u8>(), 0..200)) {
        use prost::Message as _;
        if let Ok(message) = proto::Snapshot::decode(bytes.as_slice()) {
            let _ = domain::Snapshot::try_from(message);
        }
    }
}

/// A Snapshot with one thing of everything, and something done to it.
fn refused(change: impl FnOnce(&mut proto::Snapshot)) -> String {
    let mut message = proto::Snapshot::from(&snapshot(1, &ROOTS[0]));
    message.inbound.push(proto::Inbound {
        listen: "0.0.0.0:8443".to_owned(),
        app: "127.0.0.1:8080".to_owned(),
        protocol: proto::Protocol::Http.into(),
        paths: Some(proto::PathRules {
            escaped_slash: proto::EscapedSlash::Reject.into(),
            merge_slashes: false,
        }),
        client_certificate: proto::ClientCertificate::Require.into(),
        proxy_protocol: Some(proto::ProxyProtocol {
            from: vec!["10.0.0.0/8".to_owned()],
        }),
        app_proxy_protocol: proto::AppProxyProtocol::V2.into(),
        tls: message.tls.clone(),
        plaintext: proto::Plaintext::Refused.into(),
    });
    message.policies = Some(proto::PolicySet {
        default: proto::Default::Deny.into(),
        policies: vec![proto::Policy {
            name: "shop/web".to_owned(),
            action: proto::Action::Deny.into(),
            rules: vec![proto::Rule {
                from: vec![proto::Source {
                    principals: vec![proto::TextMatch {
                        kind: Some(proto::text_match::Kind::Exact("x".to_owned())),
                    }],
                    ..Default::default()
                }],
                ..Default::default()
            }],
        }],
    });
    domain::Snapshot::try_from(message.clone()).unwrap();
    change(&mut message);
    domain::Snapshot::try_from(message)
        .unwrap_err()
        .field()
        .to_owned()
}

fn rule(message: &mut proto::Snapshot) -> &mut proto::Rule {
    &mut message.policies.as_mut().unwrap().policies[0].rules[0]
}

#[test]
fn every_error_names_its_field() {
    assert_eq!(refused(|m| m.version = 0), "version");
    assert_eq!(refused(|m| m.identity = "orders".to_owned()), "identity");
    assert_eq!(refused(|m| m.tls = None), "tls");
    let tls = |m: &mut proto::Snapshot, change: fn(&mut proto::TlsProfile)| {
        change(m.tls.as_mut().unwrap());
    };
    assert_eq!(refused(|m| tls(m, |tls| tls.minimum = 9)), "tls.minimum");
    assert_eq!(
        refused(|m| tls(m, |tls| tls.resumption = 0)),
        "tls.resumption"
    );
    assert_eq!(
        refused(|m| tls(m, |tls| tls.cipher_suites[1] = 0x2f)),
        "tls.cipher_suites[1]"
    );
    assert_eq!(
        refused(|m| tls(m, |tls| tls.groups[0] = 0x1_001d)),
        "tls.groups[0]"
    );
    assert_eq!(refused(|m| tls(m, |tls| tls.groups.clear())), "tls");
    assert_eq!(refused(|m| m.inbound[0].tls = None), "inbound[0].tls");
    for plaintext in [0, 2, 3, 4] {
        // Beside a certificate that is required, nothing but TLS.
        assert_eq!(
            refused(|m| m.inbound[0].plaintext = plaintext),
            "inbound[0].plaintext"
        );
    }
    assert_eq!(
        refused(|m| m.inbound[0].listen = "x".to_owned()),
        "inbound[0].listen"
    );
    assert_eq!(
        refused(|m| m.outbound.push(proto::Outbound {
            listen: "127.0.0.1:1".to_owned(),
            destination: Some(proto::outbound::Destination::Service(proto::Service {
                identity: "spiffe://acme.test/ns/shop/sa/web".to_owned(),
                addresses: vec!["nowhere".to_owned()],
                protocol: 1,
            })),
        })),
        "outbound[0].service.addresses[0]"
    );
}

#[test]
fn an_app_that_is_not_on_loopback_is_refused() {
    assert_eq!(
        refused(|m| m.inbound[0].app = "10.0.0.1:80".to_owned()),
        "inbound[0].app"
    );
}

#[test]
fn what_is_not_said_is_never_guessed() {
    assert_eq!(
        refused(|m| m.inbound[0].client_certificate = 0),
        "inbound[0].client_certificate"
    );
    assert_eq!(
        refused(|m| m.inbound[0].protocol = 0),
        "inbound[0].protocol"
    );
    assert_eq!(
        refused(|m| m.inbound[0].app_proxy_protocol = 0),
        "inbound[0].app_proxy_protocol"
    );
    assert_eq!(
        refused(|m| m.inbound[0].proxy_protocol = Some(proto::ProxyProtocol::default())),
        "inbound[0].proxy_protocol.from"
    );
    assert_eq!(refused(|m| m.policies = None), "policies");
    assert_eq!(
        refused(|m| m.policies.as_mut().unwrap().default = 0),
        "policies.default"
    );
}

#[test]
fn a_deny_rule_whose_clause_is_unknown_does_not_become_wider_or_vanish() {
    let principal = "policies.policies[0].rules[0].from[0].principals[0].kind";
    assert_eq!(
        refused(|m| rule(m).from[0].principals[0].kind = None),
        principal
    );
    let condition = proto::Condition {
        key: "request.auth.claims[x]".to_owned(),
        ..Default::default()
    };
    assert_eq!(
        refused(|m| rule(m).when.push(condition)),
        "policies.policies[0].rules[0].when[0].key"
    );
}

/// A Trust that can be read, and something done to it.
fn disbelieved(change: impl FnOnce(&mut proto::Trust)) -> String {
    let mut message = trust(1, &ROOTS[0]);
    message.denials.as_mut().unwrap().rules.push(rule_before(1));
    Trust::try_from(message.clone()).unwrap();
    change(&mut message);
    Trust::try_from(message).unwrap_err().field().to_owned()
}

fn rule_before(moment_unix: i64) -> proto::DeniedBefore {
    let whose = proto::denied_before::Whose::TrustDomain("acme.test".to_owned());
    proto::DeniedBefore {
        whose: Some(whose),
        moment_unix,
    }
}

fn denials(message: &mut proto::Trust) -> &mut proto::Denials {
    message.denials.as_mut().unwrap()
}

#[test]
fn what_cannot_be_believed_names_its_field() {
    assert_eq!(disbelieved(|m| m.version = 0), "version");
    assert_eq!(
        disbelieved(|m| m.bundles[0].roots.clear()),
        "bundles[0].roots"
    );
    assert_eq!(
        disbelieved(|m| denials(m).serials.push(vec![0])),
        "denials.serials[0]"
    );
    assert_eq!(
        disbelieved(|m| denials(m).rules[0].whose = None),
        "denials.rules[0].whose"
    );
    assert_eq!(
        disbelieved(|m| denials(m).rules.push(rule_before(-1))),
        "denials.rules[1].moment_unix"
    );
}

#[test]
fn the_same_trust_domain_twice_is_refused() {
    let field = disbelieved(|m| m.bundles.push(m.bundles[0].clone()));
    assert_eq!(field, "bundles[1].trust_domain");
}

#[test]
fn attack_a_deny_list_without_end_is_refused() {
    let serials = |count| (1_u64..=count).map(|serial| serial.to_be_bytes().to_vec());
    let field = disbelieved(|m| denials(m).serials.extend(serials(10_001)));
    assert_eq!(field, "denials.serials");
    let rules = |count| (1..=count).map(rule_before);
    let field = disbelieved(|m| denials(m).rules.extend(rules(10_001)));
    assert_eq!(field, "denials.rules");
}

#[test]
fn a_delivery_outside_of_absolute_paths_and_permission_bits_is_refused() {
    let with = |path: &str, mode: u32| {
        let file = proto::FileDelivery {
            path: path.to_owned(),
            mode,
            storage: proto::Storage::Memory.into(),
            ..Default::default()
        };
        refused(|m| {
            m.credentials.push(proto::CredentialSpec {
                name: "shop/smtp".to_owned(),
                source: Some(proto::credential_spec::Source::File(proto::FileSource {
                    path: String::new(),
                    via: proto::Via::Control.into(),
                })),
                deliver: vec![proto::Delivery {
                    kind: Some(proto::delivery::Kind::File(file)),
                }],
            });
        })
    };
    assert_eq!(
        with("etc/passwd", 0o400),
        "credentials[0].deliver[0].file.path"
    );
    assert_eq!(
        with("/run/smtp", 0o4755),
        "credentials[0].deliver[0].file.mode"
    );
}
