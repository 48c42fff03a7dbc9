//! Whatever a Snapshot or Trust says comes out of its message as it went in; whatever bytes come are one or are refused.

mod aws;
mod files;
mod kubernetes;
mod policies;
mod sealed;
mod vault;

use std::sync::Arc;
use std::time::Duration;

use fender_config::snapshot as domain;
use fender_identity::jwt::{JwtBundles, Keys, SigningKey};
use fender_identity::tls::{CipherSuite, Group, SessionResumption, TlsProfile, TlsVersion};
use fender_identity::{Bundle, Bundles, DenyList, SpiffeId, Trust};
use fender_policy as policy;
use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use rustls_pki_types::UnixTime;

use super::ROOTS;
use crate::proto::control::v1 as proto;

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

fn acme() -> impl Strategy<Value = domain::CertificateSource> {
    let file = || "/[a-z]{1,9}".prop_map(std::path::PathBuf::from);
    let challenge = prop_oneof![
        Just(domain::AcmeChallenge::TlsAlpn),
        any::<std::net::SocketAddrV4>().prop_map(|listen| domain::AcmeChallenge::Http {
            listen: listen.into()
        }),
    ];
    let account =
        ("[!-~]{1,9}", file()).prop_map(|(key_id, key)| domain::ExternalAccount { key_id, key });
    let parts = (
        address(),
        challenge,
        option::of("[a-z]{1,9}@[a-z]{1,9}"),
        option::of(file()),
        option::of(account),
    );
    parts.prop_map(|(host, challenge, contact, roots, external_account)| {
        domain::CertificateSource::Acme(domain::Acme {
            directory: format!("https://{host}/directory").parse().unwrap(),
            challenge,
            contact,
            roots,
            external_account,
        })
    })
}

fn port_certificate() -> impl Strategy<Value = domain::PortCertificate> {
    let files = ("/[a-z]{1,9}", "/[a-z]{1,9}").prop_map(|(certificate, key)| {
        domain::CertificateSource::Files(domain::CertificateFiles {
            certificate: certificate.into(),
            key: key.into(),
        })
    });
    let credential = ("[a-z]{1,9}", "[a-z]{1,9}").prop_map(|(namespace, name)| {
        let name = fender_config::ObjectName::new(&namespace, &name).unwrap();
        domain::CertificateSource::Credential(name)
    });
    let source = prop_oneof![files, acme(), credential];
    (source, vec("[a-z*.]{1,9}", 0..3))
        .prop_map(|(source, names)| domain::PortCertificate { source, names })
}

fn app_speaks() -> impl Strategy<Value = (domain::AppProxyProtocol, domain::AppProtocol)> {
    use domain::{AppProtocol, AppProxyProtocol};
    (
        prop_oneof![Just(AppProxyProtocol::V2), Just(AppProxyProtocol::Absent)],
        prop_oneof![Just(AppProtocol::H2c), Just(AppProtocol::Http1)],
    )
}

fn forwarded() -> impl Strategy<Value = domain::Forwarded> {
    use domain::ForwardedFields as Fields;
    let fields = prop_oneof![
        Just(Fields::XForwarded),
        Just(Fields::Forwarded),
        Just(Fields::Both),
        Just(Fields::Nothing)
    ];
    let from = vec(block().prop_map(|text| text.parse().unwrap()), 0..3);
    let behind = (1..=domain::Behind::MOST_HOPS, from, vec(identity(), 1..3));
    let behind = behind.prop_map(|(hops, from, identities)| domain::Behind {
        hops: hops.try_into().unwrap(),
        from,
        identities,
    });
    (fields, option::of(behind)).prop_map(|(fields, behind)| domain::Forwarded { fields, behind })
}

fn limits() -> impl Strategy<Value = domain::RequestLimits> {
    type Of = domain::RequestLimits;
    let number = |range| option::of(range);
    let time = |range: std::ops::RangeInclusive<Duration>| {
        let millis = |time: &Duration| u64::try_from(time.as_millis()).unwrap();
        option::of((millis(range.start())..=millis(range.end())).prop_map(Duration::from_millis))
    };
    let numbers = (
        number(Of::HEAD_BYTES),
        number(Of::HEAD_FIELDS),
        number(Of::TARGET_BYTES),
        number(Of::BODY_BYTES),
        number(Of::STREAMS),
    );
    let times = (
        time(Of::HEAD_TIME),
        time(Of::IDLE),
        time(Of::STALL),
        time(Of::RESPONSE),
        time(Of::REQUEST),
    );
    (numbers, times).prop_map(|(numbers, times)| {
        let (head_bytes, head_fields, target_bytes, body_bytes, streams) = numbers;
        let (head_time, idle, stall, response, request) = times;
        Of {
            head_bytes,
            head_fields,
            head_time,
            target_bytes,
            body_bytes,
            idle,
            stall,
            response,
            request,
            streams,
        }
    })
}

fn inbound() -> impl Strategy<Value = domain::Inbound> {
    use domain::{ClientCertificate, EscapedSlash, Mtls, PathException};
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
    let exception = prop_oneof![
        Just(PathException::DotSegmentParameters),
        Just(PathException::OverlongUtf8),
        Just(PathException::DoubleEncoding)
    ];
    let paths = (slash, any::<bool>(), btree_set(exception, 0..3));
    let senders = vec(block().prop_map(|text| text.parse().unwrap()), 0..3);
    (
        listen(),
        listen(),
        protocol(),
        certificate,
        paths,
        senders,
        app_speaks(),
        (forwarded(), tls(), vec(port_certificate(), 0..3), limits()),
    )
        .prop_map(
            |(listen, address, protocol, mtls, paths, from, app, more)| {
                let (forwarded, tls, certificates, limits) = more;
                let (escaped_slash, merge_slashes, exceptions) = paths;
                domain::Inbound {
                    listen,
                    app: address,
                    protocol,
                    mtls,
                    tls,
                    certificates,
                    paths: domain::PathRules {
                        escaped_slash,
                        merge_slashes,
                        exceptions,
                    },
                    proxy_protocol: (!from.is_empty()).then_some(domain::ProxyProtocol { from }),
                    app_proxy_protocol: app.0,
                    app_protocol: app.1,
                    forwarded,
                    limits,
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

fn block() -> impl Strategy<Value = String> {
    prop_oneof![
        (any::<[u8; 4]>(), 0..=32u8)
            .prop_map(|(ip, bits)| { format!("{}/{bits}", std::net::IpAddr::from(ip)) }),
        (any::<[u8; 16]>(), 0..=128u8)
            .prop_map(|(ip, bits)| { format!("{}/{bits}", std::net::IpAddr::from(ip)) }),
    ]
}

fn credential() -> impl Strategy<Value = domain::CredentialSpec> {
    let file = label().prop_map(|file| domain::Origin::File {
        path: format!("/srv/{file}").into(),
    });
    let docker_secret = ("[a-z0-9]([-_.a-z]{0,9}[a-z0-9])?", label());
    let docker_secret = docker_secret.prop_map(|(name, directory)| {
        domain::Origin::DockerSecret(domain::DockerSecret {
            name: name.parse().unwrap(),
            directory: format!("/run/{directory}").into(),
        })
    });
    let times = (any::<u32>(), any::<u32>());
    let command =
        (label(), vec("[ -~]{0,9}", 0..3), times).prop_map(|(program, arguments, times)| {
            domain::Origin::Command(domain::Command {
                program: format!("/usr/lib/{program}").into(),
                arguments,
                every: Duration::from_millis(times.0.into()),
                timeout: Duration::from_millis(times.1.into()),
            })
        });
    let environment = "[A-Z_]{1,9}".prop_map(|variable| domain::Origin::Environment { variable });
    let source = prop_oneof![
        prop_oneof![
            file,
            docker_secret,
            command,
            environment,
            vault::origin(),
            kubernetes::origin(),
            aws::origin(),
            sealed::age(),
            sealed::sops()
        ]
        .prop_map(domain::CredentialSource::Direct),
        prop_oneof![
            Just(domain::Lifetime::Lasting),
            Just(domain::Lifetime::Leased)
        ]
        .prop_map(domain::CredentialSource::Control),
    ];
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
            domain::FileDelivery {
                path,
                mode,
                owner,
                group,
                storage,
            }
        })
        .boxed();
    let form = prop_oneof![Just(domain::UrlForm::Value), Just(domain::UrlForm::Aws)];
    let url = ("[a-z0-9]{1,9}", form, file.clone()).prop_map(|(name, form, token)| {
        domain::Delivery::Url(domain::UrlDelivery {
            name: name.parse().unwrap(),
            form,
            token,
        })
    });
    let file = (file, files::content(false))
        .prop_map(|(file, content)| domain::Delivery::File(file, content));
    let set = files::set();
    let variable = "[A-Z_]{1,9}".prop_map(|variable| domain::Delivery::Environment { variable });
    let served = ("[a-z0-9]([-_.a-z]{0,9}[a-z0-9])?", vec(label(), 1..4));
    let socket = served.prop_map(|(name, users)| {
        domain::Delivery::Socket(domain::SocketDelivery {
            name: name.parse().unwrap(),
            users,
        })
    });
    let deliver = vec(prop_oneof![file, set, variable, socket, url], 0..3);
    let told = (
        object(),
        source,
        any::<u32>(),
        deliver,
        vec(notification(), 0..3),
        prop_oneof![Just(domain::OnExit::Wipe), Just(domain::OnExit::Keep)],
    );
    told.prop_map(
        |(name, source, max_stale, deliver, notify, on_exit)| domain::CredentialSpec {
            name,
            source,
            max_stale: Duration::from_millis(max_stale.into()),
            deliver,
            notify,
            on_exit,
        },
    )
}

fn notification() -> impl Strategy<Value = domain::Notification> {
    let signal = || select(domain::NotifySignal::ALL.to_vec());
    let millis = || any::<u32>().prop_map(|millis| Duration::from_millis(millis.into()));
    let process = (signal(), label()).prop_map(|(signal, file)| domain::Target::Process {
        signal,
        pid_file: format!("/run/{file}").into(),
    });
    let method = select(domain::NotifyMethod::ALL.to_vec());
    let http = ("/[a-z?=]{0,9}", method, millis()).prop_map(|(path, method, timeout)| {
        domain::Target::Http {
            url: format!("http://127.0.0.1:80{path}").parse().unwrap(),
            method,
            timeout,
        }
    });
    let command = (label(), vec("[ -~]{0,9}", 0..3), millis());
    let command = command.prop_map(|(program, arguments, timeout)| domain::Target::Command {
        program: format!("/usr/lib/{program}").into(),
        arguments,
        timeout,
    });
    let target = prop_oneof![
        signal().prop_map(domain::Target::App),
        process,
        http,
        command,
        Just(domain::Target::Restart),
    ];
    (target, millis()).prop_map(|(target, after)| domain::Notification { target, after })
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
        policies in policies::policies(),
        credentials in vec(credential(), 0..3),
        drain in any::<u32>(),
        max_age in option::of(1..=u32::MAX),
    ) -> domain::Snapshot {
        domain::Snapshot {
            version,
            identity: Some(identity),
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
