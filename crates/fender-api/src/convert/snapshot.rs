//! The Snapshot on the wire, without the trust that travels apart.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fender_config::snapshot as domain;
use fender_identity::Trust;
use fender_identity::tls::{CipherSuite, Group, SessionResumption, TlsProfile, TlsVersion};

use super::{InvalidField, each, parse, parse_all, required, texts, unknown};
use crate::proto::control::v1 as proto;

impl TryFrom<proto::Snapshot> for domain::Snapshot {
    type Error = InvalidField;

    fn try_from(message: proto::Snapshot) -> Result<Self, InvalidField> {
        if message.version == 0 {
            return Err(InvalidField::new("version", "0 means no Snapshot"));
        }
        let policies = required("policies", message.policies)?;
        Ok(Self {
            version: message.version,
            identity: parse("identity", &message.identity)?,
            profile: match message.development {
                true => domain::Profile::Development,
                false => domain::Profile::Production,
            },
            trust: Trust::default(),
            tls: tls(required("tls", message.tls)?)?,
            inbound: each("inbound", message.inbound, inbound)?,
            outbound: each("outbound", message.outbound, outbound)?,
            policies: Arc::new(
                policies
                    .try_into()
                    .map_err(|error: InvalidField| error.within("policies"))?,
            ),
            credentials: each("credentials", message.credentials, credential)?,
            drain: Duration::from_millis(message.drain_millis),
            max_age: match message.max_age_millis {
                0 => None,
                millis => Some(Duration::from_millis(millis)),
            },
        })
    }
}

impl From<&domain::Snapshot> for proto::Snapshot {
    fn from(snapshot: &domain::Snapshot) -> Self {
        Self {
            version: snapshot.version,
            identity: snapshot.identity.to_string(),
            development: snapshot.profile == domain::Profile::Development,
            tls: Some(from_tls(&snapshot.tls)),
            inbound: snapshot.inbound.iter().map(from_inbound).collect(),
            outbound: snapshot.outbound.iter().map(from_outbound).collect(),
            policies: Some((&*snapshot.policies).into()),
            credentials: snapshot.credentials.iter().map(from_credential).collect(),
            drain_millis: snapshot.drain.as_millis().try_into().unwrap_or(u64::MAX),
            max_age_millis: snapshot
                .max_age
                .map_or(0, |age| age.as_millis().try_into().unwrap_or(u64::MAX)),
        }
    }
}

fn tls(message: proto::TlsProfile) -> Result<TlsProfile, InvalidField> {
    let profile = TlsProfile {
        minimum: match proto::TlsVersion::try_from(message.minimum) {
            Ok(proto::TlsVersion::TlsVersion12) => TlsVersion::Tls12,
            Ok(proto::TlsVersion::TlsVersion13) => TlsVersion::Tls13,
            Ok(proto::TlsVersion::Unspecified) | Err(_) => {
                return Err(unknown("tls.minimum", message.minimum));
            }
        },
        cipher_suites: numbered(
            "tls.cipher_suites",
            message.cipher_suites,
            CipherSuite::numbered,
        )?,
        groups: numbered("tls.groups", message.groups, Group::numbered)?,
        resumption: match proto::SessionResumption::try_from(message.resumption) {
            Ok(proto::SessionResumption::Tickets) => SessionResumption::Tickets,
            Ok(proto::SessionResumption::Never) => SessionResumption::Never,
            Ok(proto::SessionResumption::Unspecified) | Err(_) => {
                return Err(unknown("tls.resumption", message.resumption));
            }
        },
    };
    match profile.check() {
        Ok(()) => Ok(profile),
        Err(unusable) => Err(InvalidField::new("tls", unusable)),
    }
}

fn numbered<T>(
    field: &str,
    numbers: Vec<u32>,
    known: impl Fn(u16) -> Option<T>,
) -> Result<Vec<T>, InvalidField> {
    let found = |(at, number): (usize, u32)| {
        let found = u16::try_from(number).ok().and_then(&known);
        found.ok_or_else(|| {
            InvalidField::new(format!("{field}[{at}]"), format!("{number} is unknown"))
        })
    };
    numbers.into_iter().enumerate().map(found).collect()
}

fn from_tls(profile: &TlsProfile) -> proto::TlsProfile {
    let minimum = match profile.minimum {
        TlsVersion::Tls12 => proto::TlsVersion::TlsVersion12,
        TlsVersion::Tls13 => proto::TlsVersion::TlsVersion13,
    };
    let suites = profile.cipher_suites.iter();
    let groups = profile.groups.iter();
    proto::TlsProfile {
        minimum: minimum.into(),
        cipher_suites: suites.map(|suite| suite.number().into()).collect(),
        groups: groups.map(|group| group.number().into()).collect(),
        resumption: match profile.resumption {
            SessionResumption::Tickets => proto::SessionResumption::Tickets,
            SessionResumption::Never => proto::SessionResumption::Never,
        }
        .into(),
    }
}

fn protocol(value: i32) -> Result<domain::Protocol, InvalidField> {
    match proto::Protocol::try_from(value) {
        Ok(proto::Protocol::Http) => Ok(domain::Protocol::Http),
        Ok(proto::Protocol::Tcp) => Ok(domain::Protocol::Tcp),
        Ok(proto::Protocol::Unspecified) | Err(_) => Err(unknown("protocol", value)),
    }
}

fn from_protocol(protocol: domain::Protocol) -> i32 {
    match protocol {
        domain::Protocol::Http => proto::Protocol::Http,
        domain::Protocol::Tcp => proto::Protocol::Tcp,
    }
    .into()
}

fn inbound(message: proto::Inbound) -> Result<domain::Inbound, InvalidField> {
    Ok(domain::Inbound {
        listen: parse("listen", &message.listen)?,
        app: parse("app", &message.app)?,
        protocol: protocol(message.protocol)?,
        mtls: mtls(message.client_certificate, message.plaintext)?,
        tls: tls(required("tls", message.tls)?)?,
        paths: paths(required("paths", message.paths)?)?,
        proxy_protocol: message.proxy_protocol.map(proxy_protocol).transpose()?,
        app_proxy_protocol: match proto::AppProxyProtocol::try_from(message.app_proxy_protocol) {
            Ok(proto::AppProxyProtocol::Absent) => domain::AppProxyProtocol::Absent,
            Ok(proto::AppProxyProtocol::V2) => domain::AppProxyProtocol::V2,
            Ok(proto::AppProxyProtocol::Unspecified) | Err(_) => {
                return Err(unknown("app_proxy_protocol", message.app_proxy_protocol));
            }
        },
    })
}

fn proxy_protocol(message: proto::ProxyProtocol) -> Result<domain::ProxyProtocol, InvalidField> {
    if message.from.is_empty() {
        return Err(InvalidField::new("proxy_protocol.from", "lists nobody"));
    }
    Ok(domain::ProxyProtocol {
        from: parse_all("proxy_protocol.from", &message.from)?,
    })
}

fn mtls(client_certificate: i32, plaintext: i32) -> Result<domain::Mtls, InvalidField> {
    use proto::Plaintext;
    let asked = match proto::ClientCertificate::try_from(client_certificate) {
        Ok(proto::ClientCertificate::Require) => domain::ClientCertificate::Require,
        Ok(proto::ClientCertificate::Accept) => domain::ClientCertificate::Accept,
        Ok(proto::ClientCertificate::Ignore) => domain::ClientCertificate::Ignore,
        Ok(proto::ClientCertificate::Unspecified) | Err(_) => {
            return Err(unknown("client_certificate", client_certificate));
        }
    };
    match (Plaintext::try_from(plaintext), asked) {
        (Ok(Plaintext::Refused), asked) => Ok(domain::Mtls::Strict(asked)),
        (Ok(Plaintext::Too), domain::ClientCertificate::Accept) => Ok(domain::Mtls::Permissive),
        (Ok(Plaintext::Only), domain::ClientCertificate::Ignore) => Ok(domain::Mtls::Disabled),
        (Ok(_) | Err(_), _) => Err(unknown("plaintext", plaintext)),
    }
}

fn from_mtls(mtls: domain::Mtls) -> (proto::ClientCertificate, proto::Plaintext) {
    use proto::{ClientCertificate, Plaintext};
    match mtls {
        domain::Mtls::Strict(asked) => {
            let asked = match asked {
                domain::ClientCertificate::Require => ClientCertificate::Require,
                domain::ClientCertificate::Accept => ClientCertificate::Accept,
                domain::ClientCertificate::Ignore => ClientCertificate::Ignore,
            };
            (asked, Plaintext::Refused)
        }
        domain::Mtls::Permissive => (ClientCertificate::Accept, Plaintext::Too),
        domain::Mtls::Disabled => (ClientCertificate::Ignore, Plaintext::Only),
    }
}

fn from_inbound(inbound: &domain::Inbound) -> proto::Inbound {
    let (client_certificate, plaintext) = from_mtls(inbound.mtls);
    proto::Inbound {
        listen: inbound.listen.to_string(),
        app: inbound.app.to_string(),
        protocol: from_protocol(inbound.protocol),
        paths: Some(from_paths(inbound.paths)),
        client_certificate: client_certificate.into(),
        proxy_protocol: inbound
            .proxy_protocol
            .as_ref()
            .map(|senders| proto::ProxyProtocol {
                from: texts(&senders.from),
            }),
        app_proxy_protocol: match inbound.app_proxy_protocol {
            domain::AppProxyProtocol::Absent => proto::AppProxyProtocol::Absent,
            domain::AppProxyProtocol::V2 => proto::AppProxyProtocol::V2,
        }
        .into(),
        tls: Some(from_tls(&inbound.tls)),
        plaintext: plaintext.into(),
    }
}

fn paths(message: proto::PathRules) -> Result<domain::PathRules, InvalidField> {
    Ok(domain::PathRules {
        escaped_slash: match proto::EscapedSlash::try_from(message.escaped_slash) {
            Ok(proto::EscapedSlash::Reject) => domain::EscapedSlash::Reject,
            Ok(proto::EscapedSlash::Keep) => domain::EscapedSlash::Keep,
            Ok(proto::EscapedSlash::Decode) => domain::EscapedSlash::Decode,
            Ok(proto::EscapedSlash::Unspecified) | Err(_) => {
                return Err(unknown("paths.escaped_slash", message.escaped_slash));
            }
        },
        merge_slashes: message.merge_slashes,
    })
}

fn from_paths(rules: domain::PathRules) -> proto::PathRules {
    let escaped_slash = match rules.escaped_slash {
        domain::EscapedSlash::Reject => proto::EscapedSlash::Reject,
        domain::EscapedSlash::Keep => proto::EscapedSlash::Keep,
        domain::EscapedSlash::Decode => proto::EscapedSlash::Decode,
    };
    proto::PathRules {
        escaped_slash: escaped_slash.into(),
        merge_slashes: rules.merge_slashes,
    }
}

fn outbound(message: proto::Outbound) -> Result<domain::Outbound, InvalidField> {
    use proto::outbound::Destination;
    Ok(domain::Outbound {
        listen: parse("listen", &message.listen)?,
        to: match required("destination", message.destination)? {
            Destination::Service(it) => service(it).map_err(|error| error.within("service"))?,
            Destination::Upstream(it) => upstream(it).map_err(|error| error.within("upstream"))?,
        },
    })
}

fn service(message: proto::Service) -> Result<domain::Destination, InvalidField> {
    Ok(domain::Destination::Service {
        id: parse("identity", &message.identity)?,
        addresses: parse_all("addresses", &message.addresses)?,
        protocol: protocol(message.protocol)?,
    })
}

fn upstream(message: proto::Upstream) -> Result<domain::Destination, InvalidField> {
    Ok(domain::Destination::Upstream {
        name: parse("name", &message.name)?,
        address: parse("address", &message.address)?,
        protocol: protocol(message.protocol)?,
        roots: match message.roots_file.is_empty() {
            true => domain::UpstreamRoots::Mesh,
            false => domain::UpstreamRoots::File(path("roots_file", message.roots_file)?),
        },
        certificate: match message.present_certificate {
            true => domain::OwnCertificate::Present,
            false => domain::OwnCertificate::Withhold,
        },
    })
}

fn from_outbound(outbound: &domain::Outbound) -> proto::Outbound {
    use proto::outbound::Destination;
    let destination = match &outbound.to {
        domain::Destination::Service {
            id,
            addresses,
            protocol,
        } => Destination::Service(proto::Service {
            identity: id.to_string(),
            addresses: texts(addresses),
            protocol: from_protocol(*protocol),
        }),
        domain::Destination::Upstream {
            name,
            address,
            protocol,
            roots,
            certificate,
        } => Destination::Upstream(proto::Upstream {
            name: name.to_string(),
            address: address.to_string(),
            protocol: from_protocol(*protocol),
            roots_file: match roots {
                domain::UpstreamRoots::Mesh => String::new(),
                domain::UpstreamRoots::File(path) => path.display().to_string(),
            },
            present_certificate: match certificate {
                domain::OwnCertificate::Present => true,
                domain::OwnCertificate::Withhold => false,
            },
        }),
    };
    proto::Outbound {
        listen: outbound.listen.to_string(),
        destination: Some(destination),
    }
}

fn credential(message: proto::CredentialSpec) -> Result<domain::CredentialSpec, InvalidField> {
    Ok(domain::CredentialSpec {
        name: parse("name", &message.name)?,
        source: match required("source", message.source)? {
            proto::credential_spec::Source::File(it) => {
                credential_source(it).map_err(|error| error.within("file"))?
            }
        },
        deliver: each("deliver", message.deliver, delivery)?,
    })
}

fn from_credential(credential: &domain::CredentialSpec) -> proto::CredentialSpec {
    let file = match &credential.source {
        domain::CredentialSource::File { path } => proto::FileSource {
            path: path.display().to_string(),
            via: proto::Via::Sidecar.into(),
        },
        domain::CredentialSource::Control => proto::FileSource {
            path: String::new(),
            via: proto::Via::Control.into(),
        },
    };
    proto::CredentialSpec {
        name: credential.name.to_string(),
        source: Some(proto::credential_spec::Source::File(file)),
        deliver: credential.deliver.iter().map(from_delivery).collect(),
    }
}

fn credential_source(message: proto::FileSource) -> Result<domain::CredentialSource, InvalidField> {
    match proto::Via::try_from(message.via) {
        Ok(proto::Via::Sidecar) => Ok(domain::CredentialSource::File {
            path: path("path", message.path)?,
        }),
        Ok(proto::Via::Control) => Ok(domain::CredentialSource::Control),
        Ok(proto::Via::Unspecified) | Err(_) => Err(unknown("via", message.via)),
    }
}

fn delivery(message: proto::Delivery) -> Result<domain::Delivery, InvalidField> {
    use proto::delivery::Kind;
    match required("kind", message.kind)? {
        Kind::File(file) => file_delivery(file)
            .map(domain::Delivery::File)
            .map_err(|error| error.within("file")),
        Kind::EnvironmentVariable(variable) => {
            if variable.is_empty() || variable.contains(['=', '\0']) {
                return Err(InvalidField::new(
                    "environment_variable",
                    format!("`{variable}` cannot name a variable"),
                ));
            }
            Ok(domain::Delivery::Environment { variable })
        }
    }
}

fn from_delivery(delivery: &domain::Delivery) -> proto::Delivery {
    use proto::delivery::Kind;
    let kind = match delivery {
        domain::Delivery::File(file) => Kind::File(proto::FileDelivery {
            path: file.path.display().to_string(),
            mode: file.mode,
            owner: file.owner.clone().unwrap_or_default(),
            group: file.group.clone().unwrap_or_default(),
            storage: match file.storage {
                domain::Storage::Memory => proto::Storage::Memory,
                domain::Storage::Disk => proto::Storage::Disk,
            }
            .into(),
        }),
        domain::Delivery::Environment { variable } => Kind::EnvironmentVariable(variable.clone()),
    };
    proto::Delivery { kind: Some(kind) }
}

fn file_delivery(message: proto::FileDelivery) -> Result<domain::FileDelivery, InvalidField> {
    if message.mode > 0o777 {
        return Err(InvalidField::new(
            "mode",
            format!("{:o} is more than permission bits", message.mode),
        ));
    }
    Ok(domain::FileDelivery {
        path: path("path", message.path)?,
        mode: message.mode,
        owner: some_text(message.owner),
        group: some_text(message.group),
        storage: match proto::Storage::try_from(message.storage) {
            Ok(proto::Storage::Memory) => domain::Storage::Memory,
            Ok(proto::Storage::Disk) => domain::Storage::Disk,
            Ok(proto::Storage::Unspecified) | Err(_) => {
                return Err(unknown("storage", message.storage));
            }
        },
    })
}

fn path(field: &str, text: String) -> Result<PathBuf, InvalidField> {
    if !text.starts_with('/') || text.contains('\0') {
        return Err(InvalidField::new(
            field,
            format!("`{text}` is not an absolute path"),
        ));
    }
    Ok(text.into())
}

fn some_text(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}
