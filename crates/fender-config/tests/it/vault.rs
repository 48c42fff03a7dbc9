//! What `source.vault` becomes.

use std::path::PathBuf;
use std::time::Duration;

use fender_config::snapshot::{Origin, VaultLogin, VaultPlace, VaultSecret};
use fender_config::{Documents, ObjectName, parse};

use crate::source;

fn credential(vault: &str) -> VaultSecret {
    let text = format!(
        "apiVersion: fender.dev/v1\nkind: Mesh\nmetadata: {{ name: mesh }}\nspec: {{ trustDomain: example.org }}\n---\n\
         apiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: smtp }}\nspec:\n  \
         source: {{ vault: {{ {vault} }} }}\n  deliver: [ {{ environment: {{ variable: X }} }} ]\n"
    );
    let documents: Documents =
        parse(&[source("vault.yaml", &text)]).unwrap_or_else(|problems| panic!("{problems}"));
    let name = ObjectName::new("shop", "smtp").unwrap();
    let credential = documents.credentials.get(&name).unwrap();
    let Origin::Vault(secret) = &credential.origin else {
        panic!("{credential:?}")
    };
    (**secret).clone()
}

#[test]
fn what_is_not_written_is_as_vault_has_it() {
    let secret = credential(
        "address: 'https://vault.internal:8200', login: { appRole: { roleId: r, secretIdFile: /s } }, \
         kv2: { path: shop/smtp, key: password }",
    );
    assert_eq!(
        secret.store.address.to_string(),
        "https://vault.internal:8200"
    );
    assert_eq!(secret.store.roots, None);
    assert_eq!(secret.store.namespace, None);
    let login = VaultLogin::AppRole {
        mount: "approle".parse().unwrap(),
        role_id: "r".to_owned(),
        secret_id: "/s".into(),
    };
    assert_eq!(secret.store.login, login);
    let place = VaultPlace::Kv2 {
        mount: "secret".parse().unwrap(),
        path: "shop/smtp".parse().unwrap(),
        version: None,
    };
    assert_eq!(secret.at, place);
    assert_eq!(secret.key.as_deref(), Some("password"));
    assert_eq!(secret.refresh, Duration::from_secs(60));
    assert_eq!(secret.files(), [PathBuf::from("/s")]);
}

#[test]
fn without_a_key_it_is_the_whole_wherever_it_is() {
    let key = |place: &str| {
        let secret = credential(&format!(
            "address: 'https://vault.internal', login: {{ token: {{ file: /t }} }}, {place}"
        ));
        secret.key
    };
    for place in [
        "kv1: { path: smtp }",
        "kv2: { path: smtp, version: 3 }",
        "engine: { path: database/creds/orders }",
    ] {
        assert_eq!(key(place), None, "{place}");
        let one = place.replace(" }", ", key: user }");
        assert_eq!(key(&one).as_deref(), Some("user"), "{one}");
    }
}

#[test]
fn every_login_has_its_mount_and_its_files() {
    let files = |login: &str| {
        let secret = credential(&format!(
            "address: 'https://vault.internal', roots: {{ file: /ca.pem }}, login: {{ {login} }}, \
             engine: {{ path: database/creds/orders, key: username }}"
        ));
        let files: Vec<_> = secret.files();
        let mount = match secret.store.login {
            VaultLogin::Token { .. } => String::new(),
            VaultLogin::AppRole { mount, .. }
            | VaultLogin::Kubernetes { mount, .. }
            | VaultLogin::Jwt { mount, .. }
            | VaultLogin::Certificate { mount, .. } => mount.to_string(),
        };
        let files: Vec<_> = files
            .iter()
            .map(|file| file.display().to_string())
            .collect();
        format!("{mount} {}", files.join(" "))
    };
    assert_eq!(files("token: { file: /t }"), " /ca.pem /t");
    assert_eq!(
        files("appRole: { roleId: r, secretIdFile: /s, mount: ar/one }"),
        "ar/one /ca.pem /s"
    );
    assert_eq!(
        files("kubernetes: { role: r }"),
        "kubernetes /ca.pem /var/run/secrets/kubernetes.io/serviceaccount/token"
    );
    assert_eq!(
        files("kubernetes: { role: r, tokenFile: /t, mount: k8s }"),
        "k8s /ca.pem /t"
    );
    assert_eq!(files("jwt: { tokenFile: /j }"), "jwt /ca.pem /j");
    assert_eq!(
        files("certificate: { files: { certificate: /c, key: /k } }"),
        "cert /ca.pem /c /k"
    );
    // What the workload proves by itself lies in no file.
    assert_eq!(files("certificate: { svid: {} }"), "cert /ca.pem");
    assert_eq!(files("jwt: { svid: { audience: vault } }"), "jwt /ca.pem");
}

/// Whole documents as they are; a source, with or without what is delivered, in a document.
#[test]
fn what_the_guide_shows_is_read() {
    let guide = include_str!("../../../../docs/guide/vault.md");
    let blocks: Vec<_> = guide.split("```yaml\n").skip(1).collect();
    let mut whole = 0;
    for block in &blocks {
        let (text, _) = block.split_once("```").unwrap();
        let mesh = "apiVersion: fender.dev/v1\nkind: Mesh\nmetadata: { name: mesh }\nspec: { trustDomain: example.org }\n---\n";
        let head = "apiVersion: fender.dev/v1\nkind: Credential\nmetadata: { namespace: shop, name: shown }\nspec:\n";
        let deliver = "  deliver: [ { environment: { variable: X } } ]\n";
        let text = match text.starts_with("apiVersion:") {
            true => format!("{mesh}{text}"),
            false => {
                let part = text.replace('\n', "\n  ");
                let deliver = match text.contains("\ndeliver:") {
                    true => "",
                    false => deliver,
                };
                format!("{mesh}{head}  {}\n{deliver}", part.trim_end())
            }
        };
        let documents = parse(&[source("guide.yaml", &text)]);
        let documents = documents.unwrap_or_else(|problems| panic!("{problems}"));
        let credentials = documents.credentials.values();
        let of_vault = credentials.map(|credential| match &credential.origin {
            Origin::Vault(secret) => secret,
            other @ (Origin::File { .. }
            | Origin::DockerSecret(_)
            | Origin::Command(_)
            | Origin::Environment { .. }
            | Origin::KubernetesSecret(_)
            | Origin::Aws(_)
            | Origin::Age(_)
            | Origin::Sops(_)) => panic!("{other:?}"),
        });
        whole += of_vault.filter(|secret| secret.key.is_none()).count();
    }
    assert!(
        blocks.len() >= 3 && whole == 1,
        "{whole} of {}",
        blocks.len()
    );
}
