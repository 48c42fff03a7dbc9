//! Encrypted files on the wire.

use fender_config::snapshot as domain;

use super::{InvalidField, parse, path};
use crate::proto::control::v1 as proto;

pub(super) fn age(message: proto::AgeSource) -> Result<domain::AgeSecret, InvalidField> {
    Ok(domain::AgeSecret {
        file: path("file", message.file)?,
        identity: path("identity_file", message.identity_file)?,
    })
}

pub(super) fn from_age(secret: &domain::AgeSecret) -> proto::AgeSource {
    proto::AgeSource {
        file: secret.file.display().to_string(),
        identity_file: secret.identity.display().to_string(),
    }
}

pub(super) fn sops(message: proto::SopsSource) -> Result<domain::SopsSecret, InvalidField> {
    let key = match message.key.is_empty() {
        true => None,
        false => Some(
            domain::SopsKey::new(message.key)
                .map_err(|error| InvalidField::new("key", error.to_string()))?,
        ),
    };
    Ok(domain::SopsSecret {
        file: domain::SopsFile {
            path: path("file", message.file)?,
            identity: path("identity_file", message.identity_file)?,
            format: parse("format", &message.format)?,
        },
        key,
    })
}

pub(super) fn from_sops(secret: &domain::SopsSecret) -> proto::SopsSource {
    let domain::SopsFile {
        path,
        identity,
        format,
    } = &secret.file;
    proto::SopsSource {
        file: path.display().to_string(),
        identity_file: identity.display().to_string(),
        format: format.to_string(),
        key: secret
            .key
            .as_ref()
            .map(|key| key.steps().to_vec())
            .unwrap_or_default(),
    }
}
