//! Secrets of Kubernetes.

use fender_config::snapshot as domain;
use proptest::option;
use proptest::prelude::*;

use super::label;

pub(super) fn origin() -> impl Strategy<Value = domain::Origin> {
    let name = || "[a-z0-9]{1,9}(\\.[a-z0-9]{1,9})?".prop_map(|name| name.parse().unwrap());
    let file = || label().prop_map(|file| format!("/run/{file}").into());
    let own = option::of(name()).prop_map(|namespace| (domain::SecretCluster::Own, namespace));
    let other = (label(), file(), file(), name()).prop_map(|(host, roots, token, namespace)| {
        let api = format!("https://{host}:6443").parse().unwrap();
        let cluster = domain::SecretCluster::At { api, roots, token };
        (cluster, Some(namespace))
    });
    let key = option::of("[-._a-zA-Z0-9]{1,9}");
    (prop_oneof![own, other], name(), key).prop_map(|((cluster, namespace), name, key)| {
        domain::Origin::KubernetesSecret(Box::new(domain::KubernetesSecret {
            cluster,
            namespace,
            name,
            key,
        }))
    })
}
