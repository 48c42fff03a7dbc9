//! What `source.aws` becomes.

use std::path::PathBuf;
use std::time::Duration;

use fender_config::snapshot::{
    AwsParameterVersion, AwsPlace, AwsSecret, AwsSecretVersion, AwsService, Origin,
};
use fender_config::{Documents, ObjectName, parse};

use crate::source;

fn credential(aws: &str) -> AwsSecret {
    let text = format!(
        "apiVersion: fender.dev/v1\nkind: Mesh\nmetadata: {{ name: mesh }}\nspec: {{ trustDomain: example.org }}\n---\n\
         apiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: smtp }}\nspec:\n  \
         source: {{ aws: {{ {aws} }} }}\n  deliver: [ {{ environment: {{ variable: X }} }} ]\n"
    );
    let documents: Documents =
        parse(&[source("aws.yaml", &text)]).unwrap_or_else(|problems| panic!("{problems}"));
    let name = ObjectName::new("shop", "smtp").unwrap();
    let credential = documents.credentials.get(&name).unwrap();
    let Origin::Aws(secret) = &credential.origin else {
        panic!("{credential:?}")
    };
    (**secret).clone()
}

#[test]
fn what_is_not_written_is_as_aws_has_it() {
    let secret = credential("region: eu-central-1, secretsManager: { secretId: shop/smtp }");
    assert_eq!(secret.store.region.to_string(), "eu-central-1");
    assert_eq!(
        (&secret.store.endpoint, &secret.store.roots),
        (&None, &None)
    );
    let place = AwsPlace::Secret {
        id: "shop/smtp".parse().unwrap(),
        version: AwsSecretVersion::Stage("AWSCURRENT".to_owned()),
    };
    assert_eq!(secret.at, place);
    assert_eq!(secret.at.to_string(), "shop/smtp");
    assert_eq!(secret.key, None);
    assert_eq!(secret.refresh, Duration::from_secs(300));
    assert_eq!(secret.files(), Vec::<PathBuf>::new());
    assert_eq!(secret.foreign_endpoint(), None);

    let secret = credential("region: eu-central-1, parameter: { name: /shop/smtp }");
    assert_eq!(secret.at.service(), AwsService::Ssm);
    assert_eq!(secret.at.to_string(), "/shop/smtp");
}

#[test]
fn versions_and_keys_are_as_written() {
    let secret = credential(
        "region: eu-central-1, endpoint: 'http://127.0.0.1:5000', roots: { file: /ca.pem }, refresh: 1s, \
         secretsManager: { secretId: smtp, versionId: 4e3a1cdb-e996-464d-b4a6-955e15a09b44, key: password }",
    );
    assert_eq!(
        secret.at.to_string(),
        "smtp (version 4e3a1cdb-e996-464d-b4a6-955e15a09b44)"
    );
    assert_eq!(secret.key.as_deref(), Some("password"));
    assert_eq!(secret.files(), [PathBuf::from("/ca.pem")]);
    assert_eq!(
        secret.foreign_endpoint().unwrap().to_string(),
        "http://127.0.0.1:5000"
    );
    let secret = credential("region: eu-central-1, parameter: { name: smtp, label: prod }");
    let AwsPlace::Parameter { version, .. } = &secret.at else {
        panic!("{secret:?}")
    };
    assert_eq!(*version, AwsParameterVersion::Label("prod".to_owned()));
    let secret = credential("region: eu-central-1, parameter: { name: smtp, version: 3 }");
    assert_eq!(secret.at.to_string(), "smtp (version 3)");
}
