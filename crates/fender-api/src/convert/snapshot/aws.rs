//! A secret in AWS on the wire.

use std::num::NonZeroU64;
use std::time::Duration;

use fender_config::snapshot as domain;

use super::{InvalidField, parse, path, required, some_text};
use crate::proto::control::v1 as proto;

pub(super) fn aws(message: proto::AwsSource) -> Result<domain::AwsSecret, InvalidField> {
    let endpoint = some_text(message.endpoint)
        .map(|url| parse::<fender_config::StoreUrl>("endpoint", &url))
        .transpose()?;
    if endpoint.as_ref().is_some_and(|url| !url.path().is_empty()) {
        return Err(InvalidField::new("endpoint", "has a path"));
    }
    Ok(domain::AwsSecret {
        store: domain::AwsStore {
            region: parse("region", &message.region)?,
            endpoint,
            roots: some_text(message.roots_file)
                .map(|file| path("roots_file", file))
                .transpose()?,
        },
        at: place(required("place", message.place)?)?,
        key: some_text(message.key),
        refresh: Duration::from_millis(message.refresh_millis),
    })
}

fn place(message: proto::aws_source::Place) -> Result<domain::AwsPlace, InvalidField> {
    use proto::aws_source::Place;
    let named = |error: domain::InvalidAwsName| InvalidField::new("version", error.to_string());
    Ok(match message {
        Place::Secret(it) => domain::AwsPlace::Secret {
            id: parse("secret.id", &it.id)?,
            version: match required("secret.version", it.version)? {
                proto::aws_secret::Version::Stage(stage) => {
                    domain::AwsSecretVersion::stage(&stage).map_err(named)?
                }
                proto::aws_secret::Version::VersionId(id) => {
                    domain::AwsSecretVersion::id(&id).map_err(named)?
                }
            },
        },
        Place::Parameter(it) => domain::AwsPlace::Parameter {
            name: parse("parameter.name", &it.name)?,
            version: match it.version {
                None => domain::AwsParameterVersion::Newest,
                Some(proto::aws_parameter::Version::Number(number)) => {
                    let number = NonZeroU64::new(number);
                    let zero = || InvalidField::new("parameter.version", "is zero");
                    domain::AwsParameterVersion::Number(number.ok_or_else(zero)?)
                }
                Some(proto::aws_parameter::Version::Label(label)) => {
                    domain::AwsParameterVersion::label(&label).map_err(named)?
                }
            },
        },
    })
}

pub(super) fn from_aws(secret: &domain::AwsSecret) -> proto::AwsSource {
    let domain::AwsStore {
        region,
        endpoint,
        roots,
    } = &secret.store;
    proto::AwsSource {
        region: region.to_string(),
        endpoint: endpoint
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        roots_file: roots
            .as_ref()
            .map(|file| file.display().to_string())
            .unwrap_or_default(),
        place: Some(from_place(&secret.at)),
        key: secret.key.clone().unwrap_or_default(),
        refresh_millis: secret.refresh.as_millis().try_into().unwrap_or(u64::MAX),
    }
}

fn from_place(place: &domain::AwsPlace) -> proto::aws_source::Place {
    use proto::aws_source::Place;
    match place {
        domain::AwsPlace::Secret { id, version } => Place::Secret(proto::AwsSecret {
            id: id.to_string(),
            version: Some(match version {
                domain::AwsSecretVersion::Stage(stage) => {
                    proto::aws_secret::Version::Stage(stage.clone())
                }
                domain::AwsSecretVersion::Id(id) => {
                    proto::aws_secret::Version::VersionId(id.clone())
                }
            }),
        }),
        domain::AwsPlace::Parameter { name, version } => Place::Parameter(proto::AwsParameter {
            name: name.to_string(),
            version: match version {
                domain::AwsParameterVersion::Newest => None,
                domain::AwsParameterVersion::Number(number) => {
                    Some(proto::aws_parameter::Version::Number(number.get()))
                }
                domain::AwsParameterVersion::Label(label) => {
                    Some(proto::aws_parameter::Version::Label(label.clone()))
                }
            },
        }),
    }
}
