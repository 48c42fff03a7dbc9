//! A secret in Vault on the wire.

use std::time::Duration;

use fender_config::snapshot as domain;

use super::{InvalidField, parse, path, required, some_text};
use crate::proto::control::v1 as proto;

pub(super) fn vault(message: proto::VaultSource) -> Result<domain::VaultSecret, InvalidField> {
    Ok(domain::VaultSecret {
        store: domain::VaultStore {
            address: parse("address", &message.address)?,
            roots: some_text(message.roots_file)
                .map(|file| path("roots_file", file))
                .transpose()?,
            namespace: some_text(message.namespace)
                .map(|namespace| parse("namespace", &namespace))
                .transpose()?,
            login: login(required("login", message.login)?)?,
        },
        at: place(required("place", message.place)?)?,
        key: some_text(message.key),
        refresh: Duration::from_millis(message.refresh_millis),
    })
}

fn login(message: proto::vault_source::Login) -> Result<domain::VaultLogin, InvalidField> {
    use proto::vault_source::Login;
    Ok(match message {
        Login::Token(it) => domain::VaultLogin::Token {
            file: path("token.file", it.file)?,
        },
        Login::AppRole(it) => domain::VaultLogin::AppRole {
            mount: parse("app_role.mount", &it.mount)?,
            role_id: it.role_id,
            secret_id: path("app_role.secret_id_file", it.secret_id_file)?,
        },
        Login::Kubernetes(it) => domain::VaultLogin::Kubernetes {
            mount: parse("kubernetes.mount", &it.mount)?,
            role: it.role,
            token: path("kubernetes.token_file", it.token_file)?,
        },
        Login::Jwt(it) => domain::VaultLogin::Jwt {
            mount: parse("jwt.mount", &it.mount)?,
            role: some_text(it.role),
            token: match (some_text(it.token_file), it.svid) {
                (Some(file), None) => domain::VaultJwt::File(path("jwt.token_file", file)?),
                (None, Some(svid)) if !svid.audience.is_empty() => domain::VaultJwt::Svid {
                    audience: svid.audience,
                },
                _ => {
                    return Err(InvalidField::new(
                        "jwt",
                        "is of neither one file nor one SVID",
                    ));
                }
            },
        },
        Login::Certificate(it) => domain::VaultLogin::Certificate {
            mount: parse("certificate.mount", &it.mount)?,
            role: some_text(it.role),
            shown: match it.svid {
                Some(proto::VaultSvid {})
                    if it.certificate_file.is_empty() && it.key_file.is_empty() =>
                {
                    domain::VaultCertificate::Svid
                }
                Some(proto::VaultSvid {}) => {
                    let why = "is of files and of an SVID";
                    return Err(InvalidField::new("certificate", why));
                }
                None => domain::VaultCertificate::Files(domain::CertificateFiles {
                    certificate: path("certificate.certificate_file", it.certificate_file)?,
                    key: path("certificate.key_file", it.key_file)?,
                }),
            },
        },
    })
}

fn place(message: proto::vault_source::Place) -> Result<domain::VaultPlace, InvalidField> {
    use proto::vault_source::Place;
    Ok(match message {
        Place::Kv1(it) => domain::VaultPlace::Kv1 {
            mount: parse("kv1.mount", &it.mount)?,
            path: parse("kv1.path", &it.path)?,
        },
        Place::Kv2(it) => domain::VaultPlace::Kv2 {
            mount: parse("kv2.mount", &it.mount)?,
            path: parse("kv2.path", &it.path)?,
            version: (it.version != 0).then_some(it.version),
        },
        Place::Engine(it) => domain::VaultPlace::Engine {
            path: parse("engine.path", &it.path)?,
        },
    })
}

pub(super) fn from_vault(secret: &domain::VaultSecret) -> proto::VaultSource {
    let domain::VaultStore {
        address,
        roots,
        namespace,
        login,
    } = &secret.store;
    proto::VaultSource {
        address: address.to_string(),
        roots_file: roots
            .as_ref()
            .map(|file| file.display().to_string())
            .unwrap_or_default(),
        namespace: namespace
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        login: Some(from_login(login)),
        place: Some(from_place(&secret.at)),
        key: secret.key.clone().unwrap_or_default(),
        refresh_millis: secret.refresh.as_millis().try_into().unwrap_or(u64::MAX),
    }
}

fn from_login(login: &domain::VaultLogin) -> proto::vault_source::Login {
    use proto::vault_source::Login;
    match login {
        domain::VaultLogin::Token { file } => Login::Token(proto::VaultToken {
            file: file.display().to_string(),
        }),
        domain::VaultLogin::AppRole {
            mount,
            role_id,
            secret_id,
        } => Login::AppRole(proto::VaultAppRole {
            mount: mount.to_string(),
            role_id: role_id.clone(),
            secret_id_file: secret_id.display().to_string(),
        }),
        domain::VaultLogin::Kubernetes { mount, role, token } => {
            Login::Kubernetes(proto::VaultKubernetes {
                mount: mount.to_string(),
                role: role.clone(),
                token_file: token.display().to_string(),
            })
        }
        domain::VaultLogin::Jwt { mount, role, token } => Login::Jwt(proto::VaultJwt {
            mount: mount.to_string(),
            role: role.clone().unwrap_or_default(),
            token_file: match token {
                domain::VaultJwt::File(file) => file.display().to_string(),
                domain::VaultJwt::Svid { .. } => String::new(),
            },
            svid: match token {
                domain::VaultJwt::File(_) => None,
                domain::VaultJwt::Svid { audience } => Some(proto::VaultJwtSvid {
                    audience: audience.clone(),
                }),
            },
        }),
        domain::VaultLogin::Certificate { mount, role, shown } => {
            let (certificate_file, key_file, svid) = match shown {
                domain::VaultCertificate::Files(files) => (
                    files.certificate.display().to_string(),
                    files.key.display().to_string(),
                    None,
                ),
                domain::VaultCertificate::Svid => {
                    (String::new(), String::new(), Some(proto::VaultSvid {}))
                }
            };
            Login::Certificate(proto::VaultCertificate {
                mount: mount.to_string(),
                role: role.clone().unwrap_or_default(),
                certificate_file,
                key_file,
                svid,
            })
        }
    }
}

fn from_place(place: &domain::VaultPlace) -> proto::vault_source::Place {
    use proto::vault_source::Place;
    match place {
        domain::VaultPlace::Kv1 { mount, path } => Place::Kv1(proto::VaultKv1 {
            mount: mount.to_string(),
            path: path.to_string(),
        }),
        domain::VaultPlace::Kv2 {
            mount,
            path,
            version,
        } => Place::Kv2(proto::VaultKv2 {
            mount: mount.to_string(),
            path: path.to_string(),
            version: version.unwrap_or_default(),
        }),
        domain::VaultPlace::Engine { path } => Place::Engine(proto::VaultEngine {
            path: path.to_string(),
        }),
    }
}
