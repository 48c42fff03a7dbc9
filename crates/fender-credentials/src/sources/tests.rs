use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use fender_config::snapshot::{
    AgeSecret, AwsPlace, AwsSecret, AwsSecretVersion, AwsStore, Command, Delivery, DockerSecret,
    Lifetime, SopsFile, SopsFormat, SopsSecret, VaultLogin, VaultPlace, VaultSecret, VaultStore,
};
use fender_identity::Secret;
use fender_providers::Generation;
use fender_providers::aws::{AllowAws, AwsAccess};
use fender_runtime::clock;
use tokio::time::Instant;

use super::*;

struct Remote(HashMap<&'static str, watch::Sender<State>>);

impl RemoteSecrets for Remote {
    fn watch(&self, name: &ObjectName) -> watch::Receiver<State> {
        self.0[name.name()].subscribe()
    }
}

fn remote(states: impl IntoIterator<Item = (&'static str, State)>) -> Arc<Remote> {
    let feeds = states
        .into_iter()
        .map(|(name, state)| (name, watch::channel(state).0));
    Arc::new(Remote(feeds.collect()))
}

fn spec(name: &str) -> CredentialSpec {
    let deliver = vec![Delivery::Environment {
        variable: "PASSWORD".to_owned(),
    }];
    let name = ObjectName::new("shop", name).unwrap();
    CredentialSpec {
        name,
        source: CredentialSource::Control(Lifetime::Lasting),
        max_stale: Duration::from_secs(60),
        deliver,
        notify: Vec::new(),
        on_exit: fender_config::snapshot::OnExit::Wipe,
    }
}

fn value(text: &str) -> State {
    State::Current(Fetched {
        value: Secret::from(text.to_owned()),
        generation: Generation::random(),
    })
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(10))
}

fn local(allow: AllowDirs, remote: Arc<dyn RemoteSecrets>) -> Sources {
    running(allow, Runner::none(), remote)
}

fn running(allow: AllowDirs, programs: Runner, remote: Arc<dyn RemoteSecrets>) -> Sources {
    Sources::new(
        allow,
        programs,
        Environment::default(),
        remote,
        || false,
        clock::system(),
        &Drain::new(),
    )
}

fn sources(remote: Arc<Remote>) -> Sources {
    local(AllowDirs::none(), remote)
}

#[tokio::test(start_paused = true)]
async fn all_required_secrets_come_together() {
    let remote = remote([
        ("a", value("hunter2")),
        ("b", State::Pending),
        ("c", State::Pending),
    ]);
    let drain = Drain::new();
    let comes = async {
        for (name, after) in [("c", 2), ("b", 3)] {
            tokio::time::sleep(Duration::from_secs(after)).await;
            remote.0[name].send_replace(value(name));
        }
    };
    let specs = [spec("a"), spec("b"), spec("c")];
    let sources = sources(remote.clone());
    let (gathered, ()) = tokio::join!(gather(&specs, &sources, soon(), &drain), comes);
    let gathered = gathered.unwrap();
    let texts: Vec<_> = gathered
        .iter()
        .map(|one| one.fetched.value.expose_str())
        .collect();
    assert_eq!(texts, [Some("hunter2"), Some("b"), Some("c")]);
    assert!(!format!("{gathered:?}").contains("hunter2"));
}

#[tokio::test(start_paused = true)]
async fn a_refused_secret_ends_the_start_at_once() {
    let gone = FetchError::Missing("no such file".to_owned());
    let remote = remote([("a", State::Pending), ("b", State::Withdrawn(gone))]);
    let began = Instant::now();
    let error = gather(
        &[spec("a"), spec("b")],
        &sources(remote),
        soon(),
        &Drain::new(),
    )
    .await;
    let error = error.unwrap_err();
    assert_eq!(error.exit_code(), 66);
    assert_eq!(
        error.to_string(),
        "credential `shop/b`: secret is missing: no such file"
    );
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_does_not_come_ends_the_start_at_the_deadline() {
    let error = FetchError::Outage("connection refused".to_owned());
    let remote = remote([
        ("a", value("x")),
        (
            "b",
            State::Stale {
                last: None,
                error,
                since: None,
            },
        ),
    ]);
    let began = Instant::now();
    let sources = sources(remote.clone());
    let error = gather(&[spec("a"), spec("b")], &sources, soon(), &Drain::new())
        .await
        .unwrap_err();
    assert_eq!(error.exit_code(), 75);
    assert!(error.to_string().contains("shop/b") && error.to_string().contains("refused"));
    assert_eq!(began.elapsed(), Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn without_a_control_plane_its_secrets_are_missing() {
    let sources = local(AllowDirs::Any, Arc::new(NoRemote));
    let error = gather(&[spec("a")], &sources, soon(), &Drain::new())
        .await
        .unwrap_err();
    assert_eq!(error.exit_code(), 66);
    assert!(
        gather(&[], &sources, soon(), &Drain::new())
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test(start_paused = true)]
async fn a_document_from_elsewhere_reads_no_file_by_default_nor_through_a_link() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    std::fs::create_dir(&root).unwrap();
    std::fs::write(directory.path().join("shadow"), "stolen").unwrap();
    std::os::unix::fs::symlink("../shadow", root.join("link")).unwrap();
    std::fs::write(root.join("secret"), "ours").unwrap();
    let file = |path: &Path| CredentialSpec {
        source: CredentialSource::Direct(Origin::File {
            path: path.to_owned(),
        }),
        ..spec("a")
    };
    let drain = Drain::new();
    let gather = async |allow: AllowDirs, path: &Path| {
        let sources = local(allow, Arc::new(NoRemote));
        gather(&[file(path)], &sources, soon(), &drain).await
    };
    let refused = gather(AllowDirs::none(), &root.join("secret"))
        .await
        .unwrap_err();
    assert_eq!(refused.exit_code(), 77);
    let allow = AllowDirs::Below(vec![root.clone()]);
    let escaped = gather(allow.clone(), &root.join("link")).await.unwrap_err();
    assert!(matches!(escaped, StartError::Missing { .. }), "{escaped}");
    let gathered = gather(allow, &root.join("secret")).await.unwrap();
    assert_eq!(gathered[0].fetched.value.expose(), b"ours");
    drain.stop();
}

#[tokio::test]
async fn a_docker_secret_of_a_foreign_document_is_read_below_an_allowed_directory_only() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("secrets");
    std::fs::create_dir(&root).unwrap();
    std::fs::write(root.join("smtp"), "ours").unwrap();
    let mounted = CredentialSpec {
        source: CredentialSource::Direct(Origin::DockerSecret(DockerSecret {
            name: "smtp".parse().unwrap(),
            directory: root.clone(),
        })),
        ..spec("a")
    };
    let drain = Drain::new();
    let gather = async |allow: AllowDirs| {
        let sources = local(allow, Arc::new(NoRemote));
        gather(std::slice::from_ref(&mounted), &sources, soon(), &drain).await
    };
    let refused = gather(AllowDirs::none()).await.unwrap_err();
    assert_eq!(refused.exit_code(), 77);
    assert!(refused.to_string().contains("--allow-dir"), "{refused}");
    for allow in [AllowDirs::Below(vec![root.clone()]), AllowDirs::Any] {
        let gathered = gather(allow).await.unwrap();
        assert_eq!(gathered[0].fetched.value.expose(), b"ours");
    }
    drain.stop();
}

#[tokio::test]
async fn a_foreign_document_has_no_program_run_but_those_that_were_allowed() {
    let directory = tempfile::tempdir().unwrap();
    let ran = directory.path().join("ran");
    let script = format!(
        "touch {}; printf '{{\"version\":1,\"value\":\"ours\"}}'",
        ran.display()
    );
    let plugin = CredentialSpec {
        source: CredentialSource::Direct(Origin::Command(Command {
            program: "/bin/sh".into(),
            arguments: vec!["-c".to_owned(), script],
            every: Duration::from_secs(60),
            timeout: Duration::from_secs(60),
        })),
        ..spec("a")
    };
    let drain = Drain::new();
    let gather = async |programs: Runner| {
        // Files are one thing and programs another.
        let sources = running(AllowDirs::Any, programs, Arc::new(NoRemote));
        let deadline = Deadline::after(Duration::from_secs(60));
        gather(std::slice::from_ref(&plugin), &sources, deadline, &drain).await
    };
    for programs in [
        Runner::none(),
        Runner::here(["/bin".into(), "/bin/true".into()]),
    ] {
        let refused = gather(programs).await.unwrap_err();
        assert_eq!(refused.exit_code(), 77);
        assert!(refused.to_string().contains("--allow-command"), "{refused}");
    }
    assert!(!ran.exists());
    let gathered = gather(Runner::here(["/bin/sh".into()])).await.unwrap();
    assert_eq!(gathered[0].fetched.value.expose(), b"ours");
    drain.stop();
    drain.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_foreign_document_reads_no_variable_but_those_that_were_allowed() {
    let spec = |variable: &str| CredentialSpec {
        source: CredentialSource::Direct(Origin::Environment {
            variable: variable.to_owned(),
        }),
        ..spec("a")
    };
    let value = Some(Secret::from("ours".to_owned()));
    let environment = [("SMTP".to_owned(), value), ("UNSET".to_owned(), None)];
    let sources = Sources {
        environment: Environment::taken(environment),
        ..sources(remote([]))
    };
    let drain = Drain::new();
    let gather = async |variable: &str| gather(&[spec(variable)], &sources, soon(), &drain).await;
    let refused = gather("PATH").await.unwrap_err();
    assert_eq!(refused.exit_code(), 77);
    assert!(
        refused.to_string().contains("--allow-environment"),
        "{refused}"
    );
    assert_eq!(gather("UNSET").await.unwrap_err().exit_code(), 66);
    let gathered = gather("SMTP").await.unwrap();
    assert_eq!(gathered[0].fetched.value.expose(), b"ours");
    drain.stop();
    drain.drained().await;
}

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
