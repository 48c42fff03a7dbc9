//! What `source.kubernetesSecret` becomes.

use fender_config::snapshot::{KubernetesSecret, Origin, SecretCluster};
use fender_config::{Documents, ObjectName, parse};

use crate::source;

fn credential(secret: &str) -> KubernetesSecret {
    let text = format!(
        "apiVersion: fender.dev/v1\nkind: Mesh\nmetadata: {{ name: mesh }}\nspec: {{ trustDomain: example.org }}\n---\n\
         apiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: smtp }}\nspec:\n  \
         source: {{ kubernetesSecret: {{ {secret} }} }}\n  deliver: [ {{ environment: {{ variable: X }} }} ]\n"
    );
    let documents: Documents =
        parse(&[source("secret.yaml", &text)]).unwrap_or_else(|problems| panic!("{problems}"));
    let name = ObjectName::new("shop", "smtp").unwrap();
    let credential = documents.credentials.get(&name).unwrap();
    let Origin::KubernetesSecret(secret) = &credential.origin else {
        panic!("{credential:?}")
    };
    (**secret).clone()
}

#[test]
fn what_is_not_written_is_of_the_pod() {
    let secret = credential("name: smtp");
    assert_eq!(secret.name.as_str(), "smtp");
    assert_eq!(secret.namespace, None);
    assert_eq!(secret.key, None);
    assert_eq!(secret.cluster, SecretCluster::Own);
}

#[test]
fn another_cluster_is_named_with_what_opens_it() {
    let secret = credential(
        "name: smtp.v2, namespace: shop, key: tls.crt, \
         cluster: { api: 'https://10.0.0.1:6443', roots: { file: /ca.pem }, token: { file: /token } }",
    );
    assert_eq!(secret.namespace.as_ref().unwrap().as_str(), "shop");
    assert_eq!(secret.key.as_deref(), Some("tls.crt"));
    let cluster = SecretCluster::At {
        api: "https://10.0.0.1:6443".parse().unwrap(),
        roots: "/ca.pem".into(),
        token: "/token".into(),
    };
    assert_eq!(secret.cluster, cluster);
}
