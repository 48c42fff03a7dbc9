//! The Snapshot on the wire, without the trust that travels apart.

mod aws;
mod files;
mod inbound;
mod kubernetes;
mod limits;
mod notification;
mod sealed;
mod vault;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fender_config::snapshot as domain;
use fender_identity::Trust;
use fender_identity::tls::{CipherSuite, Group, SessionResumption, TlsProfile, TlsVersion};

use self::inbound::{from_inbound, inbound};
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
            identity: Some(parse("identity", &message.identity)?),
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
            // One without an identity is nobody's to send.
            identity: snapshot
                .identity
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
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
                let path = path("path", it.path).map_err(|error| error.within("file"))?;
                domain::CredentialSource::Direct(domain::Origin::File { path })
            }
            proto::credential_spec::Source::DockerSecret(it) => {
                let secret = docker_secret(it).map_err(|error| error.within("docker_secret"))?;
                domain::CredentialSource::Direct(domain::Origin::DockerSecret(secret))
            }
            proto::credential_spec::Source::Command(it) => {
                let command = command(it).map_err(|error| error.within("command"))?;
                domain::CredentialSource::Direct(domain::Origin::Command(command))
            }
            proto::credential_spec::Source::Environment(it) => {
                let variable = it.variable;
                domain::CredentialSource::Direct(domain::Origin::Environment { variable })
            }
            proto::credential_spec::Source::Vault(it) => {
                let secret = vault::vault(it).map_err(|error| error.within("vault"))?;
                domain::CredentialSource::Direct(domain::Origin::Vault(Box::new(secret)))
            }
            proto::credential_spec::Source::KubernetesSecret(it) => {
                let secret =
                    kubernetes::secret(it).map_err(|error| error.within("kubernetes_secret"))?;
                let origin = domain::Origin::KubernetesSecret(Box::new(secret));
                domain::CredentialSource::Direct(origin)
            }
            proto::credential_spec::Source::Aws(it) => {
                let secret = aws::aws(it).map_err(|error| error.within("aws"))?;
                domain::CredentialSource::Direct(domain::Origin::Aws(Box::new(secret)))
            }
            proto::credential_spec::Source::Age(it) => {
                let secret = sealed::age(it).map_err(|error| error.within("age"))?;
                domain::CredentialSource::Direct(domain::Origin::Age(secret))
            }
            proto::credential_spec::Source::Sops(it) => {
                let secret = sealed::sops(it).map_err(|error| error.within("sops"))?;
                domain::CredentialSource::Direct(domain::Origin::Sops(secret))
            }
            proto::credential_spec::Source::Control(it) => {
                let lifetime = lifetime(it.lifetime).map_err(|error| error.within("control"))?;
                domain::CredentialSource::Control(lifetime)
            }
        },
        max_stale: Duration::from_millis(message.max_stale_millis),
        deliver: each("deliver", message.deliver, delivery)?,
        notify: each("notify", message.notify, notification::read)?,
        on_exit: files::on_exit(message.on_exit)?,
    })
}

fn from_credential(credential: &domain::CredentialSpec) -> proto::CredentialSpec {
    let source = match &credential.source {
        domain::CredentialSource::Direct(domain::Origin::File { path }) => {
            let path = path.display().to_string();
            proto::credential_spec::Source::File(proto::FileSource { path })
        }
        domain::CredentialSource::Direct(domain::Origin::DockerSecret(secret)) => {
            proto::credential_spec::Source::DockerSecret(proto::DockerSecretSource {
                name: secret.name.to_string(),
                directory: secret.directory.display().to_string(),
            })
        }
        domain::CredentialSource::Direct(domain::Origin::Command(command)) => {
            proto::credential_spec::Source::Command(proto::CommandSource {
                program: command.program.display().to_string(),
                arguments: command.arguments.clone(),
                every_millis: millis(command.every),
                timeout_millis: millis(command.timeout),
            })
        }
        domain::CredentialSource::Direct(domain::Origin::Environment { variable }) => {
            let variable = variable.clone();
            proto::credential_spec::Source::Environment(proto::EnvironmentSource { variable })
        }
        domain::CredentialSource::Direct(domain::Origin::Vault(secret)) => {
            proto::credential_spec::Source::Vault(vault::from_vault(secret))
        }
        domain::CredentialSource::Direct(domain::Origin::KubernetesSecret(secret)) => {
            proto::credential_spec::Source::KubernetesSecret(kubernetes::from_secret(secret))
        }
        domain::CredentialSource::Direct(domain::Origin::Aws(secret)) => {
            proto::credential_spec::Source::Aws(aws::from_aws(secret))
        }
        domain::CredentialSource::Direct(domain::Origin::Age(secret)) => {
            proto::credential_spec::Source::Age(sealed::from_age(secret))
        }
        domain::CredentialSource::Direct(domain::Origin::Sops(secret)) => {
            proto::credential_spec::Source::Sops(sealed::from_sops(secret))
        }
        domain::CredentialSource::Control(lifetime) => {
            let lifetime = match lifetime {
                domain::Lifetime::Lasting => proto::Lifetime::Lasting,
                domain::Lifetime::Leased => proto::Lifetime::Leased,
            };
            proto::credential_spec::Source::Control(proto::ControlSource {
                lifetime: lifetime.into(),
            })
        }
    };
    proto::CredentialSpec {
        name: credential.name.to_string(),
        source: Some(source),
        max_stale_millis: millis(credential.max_stale),
        deliver: credential.deliver.iter().map(from_delivery).collect(),
        notify: credential.notify.iter().map(notification::write).collect(),
        on_exit: files::from_on_exit(credential.on_exit).into(),
    }
}

fn lifetime(number: i32) -> Result<domain::Lifetime, InvalidField> {
    match proto::Lifetime::try_from(number) {
        Ok(proto::Lifetime::Leased) => Ok(domain::Lifetime::Leased),
        // An older control plane does not say.
        Ok(proto::Lifetime::Lasting | proto::Lifetime::Unspecified) => {
            Ok(domain::Lifetime::Lasting)
        }
        Err(_) => Err(unknown("lifetime", number)),
    }
}

fn docker_secret(message: proto::DockerSecretSource) -> Result<domain::DockerSecret, InvalidField> {
    Ok(domain::DockerSecret {
        name: parse("name", &message.name)?,
        directory: path("directory", message.directory)?,
    })
}

fn command(message: proto::CommandSource) -> Result<domain::Command, InvalidField> {
    domain::Command::check(&message.arguments)
        .map_err(|error| InvalidField::new("arguments", error.to_string()))?;
    Ok(domain::Command {
        program: path("program", message.program)?,
        arguments: message.arguments,
        every: Duration::from_millis(message.every_millis),
        timeout: Duration::from_millis(message.timeout_millis),
    })
}

fn millis(span: Duration) -> u64 {
    span.as_millis().try_into().unwrap_or(u64::MAX)
}

fn delivery(message: proto::Delivery) -> Result<domain::Delivery, InvalidField> {
    use proto::delivery::Kind;
    match required("kind", message.kind)? {
        Kind::File(file) => {
            let file = file_delivery(file).map_err(|error| error.within("file"))?;
            let content = files::content(message.content)?;
            if let domain::Content::Pkcs12(store) = &content
                && matches!(store.password, domain::StorePassword::Generated(_))
            {
                let why = "a password that is generated has no file here";
                return Err(InvalidField::new("content", why));
            }
            Ok(domain::Delivery::File(file, content))
        }
        Kind::Files(set) => files::set(set)
            .map(domain::Delivery::Files)
            .map_err(|error| error.within("files")),
        Kind::EnvironmentVariable(variable) => {
            if variable.is_empty() || variable.contains(['=', '\0']) {
                return Err(InvalidField::new(
                    "environment_variable",
                    format!("`{variable}` cannot name a variable"),
                ));
            }
            Ok(domain::Delivery::Environment { variable })
        }
        Kind::Socket(socket) => socket_delivery(socket)
            .map(domain::Delivery::Socket)
            .map_err(|error| error.within("socket")),
        Kind::Url(url) => url_delivery(url)
            .map(domain::Delivery::Url)
            .map_err(|error| error.within("url")),
    }
}

fn from_delivery(delivery: &domain::Delivery) -> proto::Delivery {
    use proto::delivery::Kind;
    let kind = match delivery {
        domain::Delivery::File(file, _) => Kind::File(from_file_delivery(file)),
        domain::Delivery::Files(set) => Kind::Files(files::from_set(set)),
        domain::Delivery::Url(url) => Kind::Url(proto::UrlDelivery {
            name: url.name.to_string(),
            form: match url.form {
                domain::UrlForm::Value => proto::UrlForm::Value,
                domain::UrlForm::Aws => proto::UrlForm::Aws,
            }
            .into(),
            token: Some(from_file_delivery(&url.token)),
        }),
        domain::Delivery::Environment { variable } => Kind::EnvironmentVariable(variable.clone()),
        domain::Delivery::Socket(socket) => Kind::Socket(proto::SocketDelivery {
            name: socket.name.to_string(),
            users: socket.users.clone(),
        }),
    };
    let content = match delivery {
        domain::Delivery::File(_, content) => files::from_content(content),
        domain::Delivery::Files(_)
        | domain::Delivery::Url(_)
        | domain::Delivery::Environment { .. }
        | domain::Delivery::Socket(_) => None,
    };
    proto::Delivery {
        kind: Some(kind),
        content,
    }
}

fn from_file_delivery(file: &domain::FileDelivery) -> proto::FileDelivery {
    proto::FileDelivery {
        path: file.path.display().to_string(),
        mode: file.mode,
        owner: file.owner.clone().unwrap_or_default(),
        group: file.group.clone().unwrap_or_default(),
        storage: files::from_storage(file.storage).into(),
    }
}

fn url_delivery(message: proto::UrlDelivery) -> Result<domain::UrlDelivery, InvalidField> {
    let token = required("token", message.token)?;
    Ok(domain::UrlDelivery {
        name: parse("name", &message.name)?,
        form: match proto::UrlForm::try_from(message.form) {
            Ok(proto::UrlForm::Value) => domain::UrlForm::Value,
            Ok(proto::UrlForm::Aws) => domain::UrlForm::Aws,
            Ok(proto::UrlForm::Unspecified) | Err(_) => return Err(unknown("form", message.form)),
        },
        token: file_delivery(token).map_err(|error| error.within("token"))?,
    })
}

/// Nobody is named by an empty list, and a crowd by one without an end.
fn socket_delivery(message: proto::SocketDelivery) -> Result<domain::SocketDelivery, InvalidField> {
    let most = domain::SocketDelivery::MOST_USERS;
    if message.users.is_empty() || message.users.len() > most {
        let why = format!(
            "{} users are named; 1 to {most} may be",
            message.users.len()
        );
        return Err(InvalidField::new("users", why));
    }
    Ok(domain::SocketDelivery {
        name: parse("name", &message.name)?,
        users: message.users,
    })
}

fn file_delivery(message: proto::FileDelivery) -> Result<domain::FileDelivery, InvalidField> {
    Ok(domain::FileDelivery {
        path: path("path", message.path)?,
        mode: files::mode(message.mode)?,
        owner: some_text(message.owner),
        group: some_text(message.group),
        storage: files::storage(message.storage)?,
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
