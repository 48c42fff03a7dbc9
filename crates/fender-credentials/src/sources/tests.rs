use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use fender_config::snapshot::{Command, Delivery, DockerSecret, Lifetime};
use fender_identity::Secret;
use fender_providers::Generation;
use fender_runtime::clock;
use tokio::time::Instant;

use super::*;

#[cfg(feature = "stores")]
mod stores;

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

#[cfg(not(feature = "stores"))]
#[tokio::test]
async fn a_store_that_this_build_has_no_client_of_is_refused_by_the_name_of_the_feature() {
    use fender_config::snapshot::AgeSecret;

    let file = "/run/secrets.age";
    let spec = CredentialSpec {
        source: CredentialSource::Direct(Origin::Age(AgeSecret {
            file: file.into(),
            identity: "/run/age.key".into(),
        })),
        ..spec("a")
    };
    let sources = local(AllowDirs::Any, Arc::new(NoRemote));
    let refused = gather(&[spec], &sources, soon(), &Drain::new()).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.exit_code(), 77);
    let said = refused.to_string();
    assert!(
        said.contains("`shop/a`") && said.contains("`age`"),
        "{said}"
    );
    assert!(said.contains("the feature `stores`"), "{said}");
    assert!(said.contains("`via: control`"), "{said}");
}
