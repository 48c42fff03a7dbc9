//! A Secret of Kubernetes on the wire.

use fender_config::snapshot as domain;

use super::{InvalidField, parse, path, some_text};
use crate::proto::control::v1 as proto;

pub(super) fn secret(
    message: proto::KubernetesSecretSource,
) -> Result<domain::KubernetesSecret, InvalidField> {
    let cluster = match message.cluster {
        None => domain::SecretCluster::Own,
        Some(it) => domain::SecretCluster::At {
            api: parse("cluster.api", &it.api)?,
            roots: path("cluster.roots_file", it.roots_file)?,
            token: path("cluster.token_file", it.token_file)?,
        },
    };
    let namespace = some_text(message.namespace)
        .map(|name| parse("namespace", &name))
        .transpose()?;
    if namespace.is_none() && cluster != domain::SecretCluster::Own {
        return Err(InvalidField::new(
            "namespace",
            "is empty, and only the own cluster has one that is the pod's",
        ));
    }
    Ok(domain::KubernetesSecret {
        cluster,
        namespace,
        name: parse("name", &message.name)?,
        key: some_text(message.key),
    })
}

pub(super) fn from_secret(secret: &domain::KubernetesSecret) -> proto::KubernetesSecretSource {
    let cluster = match &secret.cluster {
        domain::SecretCluster::Own => None,
        domain::SecretCluster::At { api, roots, token } => Some(proto::SecretCluster {
            api: api.to_string(),
            roots_file: roots.display().to_string(),
            token_file: token.display().to_string(),
        }),
    };
    let namespace = secret.namespace.as_ref();
    proto::KubernetesSecretSource {
        cluster,
        namespace: namespace.map(ToString::to_string).unwrap_or_default(),
        name: secret.name.to_string(),
        key: secret.key.clone().unwrap_or_default(),
    }
}
