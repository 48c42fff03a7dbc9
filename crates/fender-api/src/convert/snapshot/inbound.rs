//! One port of the workload on the wire: its TLS, its certificates, what is told of a request's way, its paths.

use std::num::NonZeroU8;
use std::path::PathBuf;

use fender_config::snapshot as domain;

use super::limits::{from_limits, limits};
use super::{from_protocol, from_tls, path, protocol, tls};
use crate::convert::{InvalidField, each, parse, parse_all, required, texts, unknown};
use crate::proto::control::v1 as proto;

pub(super) fn inbound(message: proto::Inbound) -> Result<domain::Inbound, InvalidField> {
    Ok(domain::Inbound {
        listen: parse("listen", &message.listen)?,
        app: parse("app", &message.app)?,
        protocol: protocol(message.protocol)?,
        mtls: mtls(message.client_certificate, message.plaintext)?,
        tls: tls(required("tls", message.tls)?)?,
        certificates: each("certificates", message.certificates, certificate)?,
        paths: paths(required("paths", message.paths)?)?,
        proxy_protocol: message.proxy_protocol.map(proxy_protocol).transpose()?,
        app_proxy_protocol: match proto::AppProxyProtocol::try_from(message.app_proxy_protocol) {
            Ok(proto::AppProxyProtocol::Absent) => domain::AppProxyProtocol::Absent,
            Ok(proto::AppProxyProtocol::V2) => domain::AppProxyProtocol::V2,
            Ok(proto::AppProxyProtocol::Unspecified) | Err(_) => {
                return Err(unknown("app_proxy_protocol", message.app_proxy_protocol));
            }
        },
        app_protocol: match proto::AppProtocol::try_from(message.app_protocol) {
            Ok(proto::AppProtocol::Http1) => domain::AppProtocol::Http1,
            Ok(proto::AppProtocol::H2c) => domain::AppProtocol::H2c,
            Ok(proto::AppProtocol::Unspecified) | Err(_) => {
                return Err(unknown("app_protocol", message.app_protocol));
            }
        },
        forwarded: forwarded(required("forwarded", message.forwarded)?)?,
        limits: limits(required("limits", message.limits)?)?,
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

fn forwarded(message: proto::Forwarded) -> Result<domain::Forwarded, InvalidField> {
    use domain::ForwardedFields as Fields;
    Ok(domain::Forwarded {
        fields: match proto::ForwardedFields::try_from(message.fields) {
            Ok(proto::ForwardedFields::XForwarded) => Fields::XForwarded,
            Ok(proto::ForwardedFields::Forwarded) => Fields::Forwarded,
            Ok(proto::ForwardedFields::Both) => Fields::Both,
            Ok(proto::ForwardedFields::Nothing) => Fields::Nothing,
            Ok(proto::ForwardedFields::Unspecified) | Err(_) => {
                return Err(unknown("forwarded.fields", message.fields));
            }
        },
        behind: message.behind.map(behind).transpose()?,
    })
}

fn behind(message: proto::Behind) -> Result<domain::Behind, InvalidField> {
    let hops = u8::try_from(message.hops).ok().and_then(NonZeroU8::new);
    let hops = hops.filter(|hops| hops.get() <= domain::Behind::MOST_HOPS);
    if message.from.is_empty() && message.identities.is_empty() {
        return Err(InvalidField::new("forwarded.behind", "names nobody"));
    }
    Ok(domain::Behind {
        hops: hops
            .ok_or_else(|| InvalidField::new("forwarded.behind.hops", "is no number of them"))?,
        from: parse_all("forwarded.behind.from", &message.from)?,
        identities: parse_all("forwarded.behind.identities", &message.identities)?,
    })
}

fn from_forwarded(forwarded: &domain::Forwarded) -> proto::Forwarded {
    proto::Forwarded {
        fields: match forwarded.fields {
            domain::ForwardedFields::XForwarded => proto::ForwardedFields::XForwarded,
            domain::ForwardedFields::Forwarded => proto::ForwardedFields::Forwarded,
            domain::ForwardedFields::Both => proto::ForwardedFields::Both,
            domain::ForwardedFields::Nothing => proto::ForwardedFields::Nothing,
        }
        .into(),
        behind: forwarded.behind.as_ref().map(|behind| proto::Behind {
            hops: behind.hops.get().into(),
            from: texts(&behind.from),
            identities: texts(&behind.identities),
        }),
    }
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

pub(super) fn from_inbound(inbound: &domain::Inbound) -> proto::Inbound {
    let (client_certificate, plaintext) = from_mtls(inbound.mtls);
    proto::Inbound {
        listen: inbound.listen.to_string(),
        app: inbound.app.to_string(),
        protocol: from_protocol(inbound.protocol),
        paths: Some(from_paths(&inbound.paths)),
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
        certificates: inbound.certificates.iter().map(from_certificate).collect(),
        app_protocol: match inbound.app_protocol {
            domain::AppProtocol::Http1 => proto::AppProtocol::Http1,
            domain::AppProtocol::H2c => proto::AppProtocol::H2c,
        }
        .into(),
        forwarded: Some(from_forwarded(&inbound.forwarded)),
        limits: Some(from_limits(&inbound.limits)),
    }
}

fn certificate(message: proto::PortCertificate) -> Result<domain::PortCertificate, InvalidField> {
    use proto::port_certificate::Source;
    let source = match required("source", message.source)? {
        Source::Files(files) => domain::CertificateSource::Files(domain::CertificateFiles {
            certificate: path("files.certificate", files.certificate)?,
            key: path("files.key", files.key)?,
        }),
        Source::Acme(acme) => domain::CertificateSource::Acme(self::acme(acme)?),
        Source::Credential(name) => {
            domain::CertificateSource::Credential(parse("credential", &name)?)
        }
    };
    Ok(domain::PortCertificate {
        source,
        names: message.names,
    })
}

fn acme(message: proto::Acme) -> Result<domain::Acme, InvalidField> {
    let challenge = match message.http_challenge.as_str() {
        "" => domain::AcmeChallenge::TlsAlpn,
        listen => domain::AcmeChallenge::Http {
            listen: parse("acme.http_challenge", listen)?,
        },
    };
    let roots = match message.roots.is_empty() {
        true => None,
        false => Some(path("acme.roots", message.roots)?),
    };
    let account = message.external_account.map(|account| {
        Ok(domain::ExternalAccount {
            key_id: account.key_id,
            key: path("acme.external_account.key", account.key)?,
        })
    });
    Ok(domain::Acme {
        directory: parse("acme.directory", &message.directory)?,
        challenge,
        contact: (!message.contact.is_empty()).then_some(message.contact),
        roots,
        external_account: account.transpose()?,
    })
}

fn from_acme(acme: &domain::Acme) -> proto::Acme {
    let shown = |path: &PathBuf| path.display().to_string();
    let account = acme.external_account.as_ref();
    proto::Acme {
        directory: acme.directory.to_string(),
        http_challenge: match acme.challenge {
            domain::AcmeChallenge::TlsAlpn => String::new(),
            domain::AcmeChallenge::Http { listen } => listen.to_string(),
        },
        contact: acme.contact.clone().unwrap_or_default(),
        roots: acme.roots.as_ref().map(shown).unwrap_or_default(),
        external_account: account.map(|account| proto::ExternalAccount {
            key_id: account.key_id.clone(),
            key: shown(&account.key),
        }),
    }
}

fn from_certificate(certificate: &domain::PortCertificate) -> proto::PortCertificate {
    use proto::port_certificate::Source;
    let source = match &certificate.source {
        domain::CertificateSource::Files(files) => Source::Files(proto::CertificateFiles {
            certificate: files.certificate.display().to_string(),
            key: files.key.display().to_string(),
        }),
        domain::CertificateSource::Acme(acme) => Source::Acme(from_acme(acme)),
        domain::CertificateSource::Credential(name) => Source::Credential(name.to_string()),
    };
    proto::PortCertificate {
        names: certificate.names.clone(),
        source: Some(source),
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
        exceptions: message
            .exceptions
            .into_iter()
            .map(exception)
            .collect::<Result<_, _>>()?,
    })
}

fn exception(word: i32) -> Result<domain::PathException, InvalidField> {
    match proto::PathException::try_from(word) {
        Ok(proto::PathException::DotSegmentParameters) => {
            Ok(domain::PathException::DotSegmentParameters)
        }
        Ok(proto::PathException::OverlongUtf8) => Ok(domain::PathException::OverlongUtf8),
        Ok(proto::PathException::DoubleEncoding) => Ok(domain::PathException::DoubleEncoding),
        Ok(proto::PathException::Unspecified) | Err(_) => Err(unknown("paths.exceptions", word)),
    }
}

fn from_paths(rules: &domain::PathRules) -> proto::PathRules {
    let escaped_slash = match rules.escaped_slash {
        domain::EscapedSlash::Reject => proto::EscapedSlash::Reject,
        domain::EscapedSlash::Keep => proto::EscapedSlash::Keep,
        domain::EscapedSlash::Decode => proto::EscapedSlash::Decode,
    };
    let exception = |exception: &domain::PathException| match exception {
        domain::PathException::DotSegmentParameters => {
            proto::PathException::DotSegmentParameters.into()
        }
        domain::PathException::OverlongUtf8 => proto::PathException::OverlongUtf8.into(),
        domain::PathException::DoubleEncoding => proto::PathException::DoubleEncoding.into(),
    };
    proto::PathRules {
        escaped_slash: escaped_slash.into(),
        merge_slashes: rules.merge_slashes,
        exceptions: rules.exceptions.iter().map(exception).collect(),
    }
}
