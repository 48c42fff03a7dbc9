use fender_config::snapshot::{
    AgeSecret, AwsPlace, AwsSecret, AwsSecretVersion, AwsStore, SopsFile, SopsFormat, SopsSecret,
    VaultLogin, VaultPlace, VaultSecret, VaultStore,
};
use fender_providers::aws::{AllowAws, AwsAccess};

use super::*;

#[tokio::test]
async fn a_vault_of_a_foreign_document_is_logged_in_to_with_files_of_an_allowed_directory_only() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("vault");
    std::fs::create_dir(&root).unwrap();
    std::fs::write(directory.path().join("shadow"), "canary-7d1f").unwrap();
    std::os::unix::fs::symlink("../shadow", root.join("link")).unwrap();
    let by = |token: &Path, roots: Option<&Path>| CredentialSpec {
        source: CredentialSource::Direct(Origin::Vault(Box::new(VaultSecret {
            store: VaultStore {
                address: "https://127.0.0.1:1".parse().unwrap(),
                roots: roots.map(Path::to_owned),
                namespace: None,
                login: VaultLogin::Token {
                    file: token.to_owned(),
                },
            },
            at: VaultPlace::Engine {
                path: "database/creds/orders".parse().unwrap(),
            },
            key: Some("password".to_owned()),
            refresh: VaultSecret::REFRESH,
        }))),
        ..spec("a")
    };
    let allowed = || local(AllowDirs::Below(vec![root.clone()]), Arc::new(NoRemote));
    let inside = root.join("token");
    let outside = directory.path().join("shadow");
    let drain = Drain::new();
    for (sources, spec) in [
        (
            local(AllowDirs::none(), Arc::new(NoRemote)),
            by(&inside, None),
        ),
        (allowed(), by(&outside, None)),
        (allowed(), by(&inside, Some(&outside))),
    ] {
        let refused = gather(&[spec], &sources, soon(), &drain).await.unwrap_err();
        assert_eq!(refused.exit_code(), 77);
        assert!(refused.to_string().contains("--allow-dir"), "{refused}");
    }
    // No link leads out of it: nobody is asked, and the file is not read.
    let link = by(&root.join("link"), Some(&root.join("link")));
    let mut states = allowed().follow(&link, &drain).unwrap();
    let state = states
        .wait_for(|state| state.error().is_some())
        .await
        .unwrap();
    let why = format!("{:?}", state.error());
    assert!(
        why.contains("outside its directory") && !why.contains("canary"),
        "{why}"
    );
    drain.stop();
}

#[tokio::test]
async fn a_foreign_document_has_of_aws_what_was_allowed_and_by_roots_of_an_allowed_directory() {
    let by = |id: &str, roots: Option<&str>| CredentialSpec {
        source: CredentialSource::Direct(Origin::Aws(Box::new(AwsSecret {
            store: AwsStore {
                region: "eu-central-1".parse().unwrap(),
                endpoint: None,
                roots: roots.map(Into::into),
            },
            at: AwsPlace::Secret {
                id: id.parse().unwrap(),
                version: AwsSecretVersion::stage(AwsSecretVersion::CURRENT).unwrap(),
            },
            key: None,
            refresh: AwsSecret::REFRESH,
        }))),
        ..spec("a")
    };
    let drain = Drain::new();
    let allowing = |patterns: &[&str]| {
        let patterns = patterns.iter().map(|text| text.parse().unwrap());
        let environment = Environment::default().with_aws(AwsAccess {
            allow: AllowAws::These(patterns.collect()),
            ..AwsAccess::default()
        });
        Sources::new(
            AllowDirs::Below(vec!["/run/aws".into()]),
            Runner::none(),
            environment,
            Arc::new(NoRemote),
            || false,
            clock::system(),
            &drain,
        )
    };
    let shop = &["secretsmanager:shop/*"][..];
    for (patterns, spec, said) in [
        (&[][..], by("shop/smtp", None), "--allow-aws"),
        (shop, by("bank/smtp", None), "--allow-aws"),
        (shop, by("shop/smtp", Some("/etc/ca.pem")), "--allow-dir"),
    ] {
        let refused = gather(&[spec], &allowing(patterns), soon(), &drain).await;
        let refused = refused.unwrap_err();
        assert_eq!(refused.exit_code(), 77);
        assert!(refused.to_string().contains(said), "{refused}");
    }
    let allowed = by("shop/smtp", Some("/run/aws/ca.pem"));
    assert!(allowing(shop).follow(&allowed, &drain).is_ok());
    drain.stop();
}

#[tokio::test]
async fn an_encrypted_file_of_a_foreign_document_and_what_opens_it_are_of_an_allowed_directory() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("sealed");
    std::fs::create_dir(&root).unwrap();
    std::fs::write(directory.path().join("shadow"), "canary-7d1f").unwrap();
    std::os::unix::fs::symlink("../shadow", root.join("link")).unwrap();
    std::fs::write(root.join("file"), "x").unwrap();
    let age = |file: &Path, identity: &Path| {
        Origin::Age(AgeSecret {
            file: file.to_owned(),
            identity: identity.to_owned(),
        })
    };
    let sops = |file: &Path, identity: &Path| {
        Origin::Sops(SopsSecret {
            file: SopsFile {
                path: file.to_owned(),
                identity: identity.to_owned(),
                format: SopsFormat::Yaml,
            },
            key: None,
        })
    };
    let allowed = || local(AllowDirs::Below(vec![root.clone()]), Arc::new(NoRemote));
    let (inside, link) = (root.join("file"), root.join("link"));
    let outside = directory.path().join("shadow");
    let drain = Drain::new();
    for of in [&age as &dyn Fn(&Path, &Path) -> Origin, &sops] {
        let from = |file: &Path, identity: &Path| CredentialSpec {
            source: CredentialSource::Direct(of(file, identity)),
            ..spec("a")
        };
        for (sources, spec) in [
            (
                local(AllowDirs::none(), Arc::new(NoRemote)),
                from(&inside, &inside),
            ),
            (allowed(), from(&outside, &inside)),
            (allowed(), from(&inside, &outside)),
        ] {
            let refused = gather(&[spec], &sources, soon(), &drain).await.unwrap_err();
            assert_eq!(refused.exit_code(), 77);
            assert!(refused.to_string().contains("--allow-dir"), "{refused}");
        }
        // No link leads out of it, neither to what is opened nor to what opens it.
        for (file, identity) in [(&link, &inside), (&inside, &link)] {
            let refused = gather(&[from(file, identity)], &allowed(), soon(), &drain).await;
            let refused = refused.unwrap_err();
            assert_eq!(refused.exit_code(), 66);
            let why = refused.to_string();
            assert!(
                why.contains("outside its directory") && !why.contains("canary"),
                "{why}"
            );
        }
    }
    drain.stop();
}
