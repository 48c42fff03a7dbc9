mod round_trip;

use std::sync::LazyLock;

use fender_config::snapshot as domain;
use fender_identity::Trust;

use crate::proto::control::v1 as proto;
use crate::testing::{Authority, snapshot, trust};

/// Making one takes a while, and no test looks into it.
static ROOTS: LazyLock<[Authority; 3]> =
    LazyLock::new(|| std::array::from_fn(|_| Authority::new()));

fn files(key: &str) -> proto::port_certificate::Source {
    proto::port_certificate::Source::Files(proto::CertificateFiles {
        certificate: "/certificate.pem".to_owned(),
        key: key.to_owned(),
    })
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
            exceptions: Vec::new(),
        }),
        client_certificate: proto::ClientCertificate::Require.into(),
        proxy_protocol: Some(proto::ProxyProtocol {
            from: vec!["10.0.0.0/8".to_owned()],
        }),
        app_proxy_protocol: proto::AppProxyProtocol::V2.into(),
        tls: message.tls.clone(),
        plaintext: proto::Plaintext::Refused.into(),
        certificates: vec![proto::PortCertificate {
            names: vec![],
            source: Some(files("/key.pem")),
        }],
        app_protocol: proto::AppProtocol::H2c.into(),
        forwarded: Some(proto::Forwarded {
            fields: proto::ForwardedFields::Both.into(),
            behind: Some(proto::Behind {
                hops: 1,
                from: vec!["10.0.0.0/8".to_owned()],
                identities: vec![],
            }),
        }),
        limits: Some(proto::RequestLimits::default()),
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
    assert_eq!(
        refused(|m| m.inbound[0].certificates[0].source = None),
        "inbound[0].certificates[0].source"
    );
    assert_eq!(
        refused(|m| m.inbound[0].certificates[0].source = Some(files("key.pem"))),
        "inbound[0].certificates[0].files.key"
    );
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
        refused(|m| m.inbound[0].app_protocol = 0),
        "inbound[0].app_protocol"
    );
    assert_eq!(
        refused(|m| m.inbound[0].app_proxy_protocol = 0),
        "inbound[0].app_proxy_protocol"
    );
    assert_eq!(
        refused(|m| m.inbound[0].proxy_protocol = Some(proto::ProxyProtocol::default())),
        "inbound[0].proxy_protocol.from"
    );
    let forwarded = |change: fn(&mut proto::Forwarded)| {
        refused(|m| change(m.inbound[0].forwarded.as_mut().unwrap()))
    };
    assert_eq!(
        refused(|m| m.inbound[0].forwarded = None),
        "inbound[0].forwarded"
    );
    assert_eq!(forwarded(|f| f.fields = 0), "inbound[0].forwarded.fields");
    for hops in [0, 17, 257] {
        let refused = refused(|m| {
            let forwarded = m.inbound[0].forwarded.as_mut().unwrap();
            forwarded.behind.as_mut().unwrap().hops = hops;
        });
        assert_eq!(refused, "inbound[0].forwarded.behind.hops", "{hops}");
    }
    assert_eq!(
        forwarded(|f| f.behind.as_mut().unwrap().from.clear()),
        "inbound[0].forwarded.behind"
    );
    assert_eq!(refused(|m| m.inbound[0].limits = None), "inbound[0].limits");
    assert_eq!(refused(|m| m.policies = None), "policies");
    assert_eq!(
        refused(|m| m.policies.as_mut().unwrap().default = 0),
        "policies.default"
    );
}

/// What a peer can make a sidecar hold is not the sender's to say.
#[test]
fn a_limit_out_of_its_range_is_refused_on_the_wire_too() {
    let refused = |change: fn(&mut proto::RequestLimits)| {
        refused(|m| change(m.inbound[0].limits.as_mut().unwrap()))
    };
    let field = |name: &str| format!("inbound[0].limits.{name}");
    assert_eq!(
        refused(|l| l.head_bytes = Some(u64::MAX)),
        field("head_bytes")
    );
    assert_eq!(refused(|l| l.head_fields = Some(257)), field("head_fields"));
    assert_eq!(
        refused(|l| l.head_time_millis = Some(0)),
        field("head_time_millis")
    );
    assert_eq!(refused(|l| l.target_bytes = Some(0)), field("target_bytes"));
    assert_eq!(refused(|l| l.body_bytes = Some(0)), field("body_bytes"));
    assert_eq!(refused(|l| l.idle_millis = Some(0)), field("idle_millis"));
    assert_eq!(
        refused(|l| l.stall_millis = Some(u64::MAX)),
        field("stall_millis")
    );
    assert_eq!(
        refused(|l| l.response_millis = Some(999)),
        field("response_millis")
    );
    assert_eq!(
        refused(|l| l.request_millis = Some(u64::MAX)),
        field("request_millis")
    );
    assert_eq!(refused(|l| l.streams = Some(0)), field("streams"));
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
fn attack_a_credential_for_nobody_a_crowd_or_another_name_is_refused() {
    let with = |name: &str, users: usize| {
        let socket = proto::SocketDelivery {
            name: name.to_owned(),
            users: vec!["app".to_owned(); users],
        };
        refused(|m| {
            m.credentials.push(proto::CredentialSpec {
                name: "shop/smtp".to_owned(),
                max_stale_millis: 1,
                source: Some(proto::credential_spec::Source::Control(
                    proto::ControlSource::default(),
                )),
                on_exit: proto::OnExit::Wipe.into(),
                deliver: vec![proto::Delivery {
                    content: None,
                    kind: Some(proto::delivery::Kind::Socket(socket)),
                }],
                ..Default::default()
            });
        })
    };
    assert_eq!(with("smtp", 0), "credentials[0].deliver[0].socket.users");
    assert_eq!(with("smtp", 17), "credentials[0].deliver[0].socket.users");
    assert_eq!(with("a b", 1), "credentials[0].deliver[0].socket.name");
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
                max_stale_millis: 1,
                notify: Vec::new(),
                source: Some(proto::credential_spec::Source::Control(
                    proto::ControlSource::default(),
                )),
                on_exit: proto::OnExit::Wipe.into(),
                deliver: vec![proto::Delivery {
                    content: None,
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
