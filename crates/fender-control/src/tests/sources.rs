//! What the control plane reads for workloads and sends each on its own stream; and what no document can have it read.

use fender_api::proto::control::v1::credential_value::State;

use super::*;

pub(super) async fn watch(
    world: &World,
    svid: &Svid,
    name: &str,
) -> Result<tonic::Streaming<proto::CredentialValue>, Status> {
    let request = proto::CredentialRequest {
        name: name.to_owned(),
    };
    let mut client = DistributionClient::new(world.as_peer(svid).await);
    client
        .watch_credential(request)
        .await
        .map(|response| response.into_inner())
}

pub(super) async fn next(values: &mut tonic::Streaming<proto::CredentialValue>) -> State {
    values.message().await.unwrap().unwrap().state.unwrap()
}

#[tokio::test]
async fn a_credential_reaches_its_workload_and_so_does_every_change() {
    let world = World::new().await;
    fs::write(world.path("smtp"), "hunter2").unwrap();
    let orders = world.attested("shop/orders").await;
    let mut values = watch(&world, &orders, "shop/smtp").await.unwrap();
    let State::Value(first) = next(&mut values).await else {
        panic!("a value")
    };
    assert_eq!(first.value, b"hunter2");

    let fresh = world.path("smtp.new");
    fs::write(&fresh, "correct horse").unwrap();
    fs::rename(&fresh, world.path("smtp")).unwrap();
    let State::Value(second) = next(&mut values).await else {
        panic!("a value")
    };
    assert_eq!(second.value, b"correct horse");
    assert_ne!(first.generation, second.generation);

    fs::remove_file(world.path("smtp")).unwrap();
    assert!(matches!(next(&mut values).await, State::Withdrawn(why) if !why.contains('/')));
}

#[tokio::test]
async fn a_credential_whose_file_is_elsewhere_by_a_new_document_is_read_there_at_once() {
    let world = World::new().await;
    fs::write(world.path("smtp"), "leaked").unwrap();
    fs::write(world.path("moved"), "fresh").unwrap();
    let orders = world.attested("shop/orders").await;
    let mut values = watch(&world, &orders, "shop/smtp").await.unwrap();
    next(&mut values).await;

    let (old, new) = (world.path("smtp"), world.path("moved"));
    let moved = documents(world.directory.path(), "shop").replace(
        &format!("path: {}", old.display()),
        &format!("path: {}", new.display()),
    );
    assert_eq!(world.apply(moved).await.changes.len(), 1);
    let told = tokio::time::timeout(Duration::from_secs(60), next(&mut values)).await;
    let State::Value(second) = told.expect("it is told in time") else {
        panic!("a value")
    };
    assert_eq!(second.value, b"fresh");
}

#[tokio::test]
async fn a_document_cannot_have_a_file_read_outside_the_allowed_directories() {
    let world = World::new().await;
    fs::write(world.path("smtp"), "hunter2").unwrap();
    let outside = tempfile::tempdir().unwrap();
    let shadow = outside.path().join("shadow");
    fs::write(&shadow, "root:hash").unwrap();
    std::os::unix::fs::symlink(&shadow, world.path("link")).unwrap();
    let orders = world.attested("shop/orders").await;
    // By its path, and by a link that leads out of an allowed directory.
    let named = |path: &Path| {
        documents(world.directory.path(), "shop").replace(
            &format!("path: {}", world.path("smtp").display()),
            &format!("path: {}", path.display()),
        )
    };
    let answer = world.apply(named(&shadow)).await;
    assert!(
        answer
            .warnings
            .iter()
            .any(|warning| warning.contains("--allow-dir")),
        "{:?}",
        answer.warnings
    );
    for path in [shadow, world.path("link")] {
        world.apply(named(&path)).await;
        let mut values = watch(&world, &orders, "shop/smtp").await.unwrap();
        let told = next(&mut values).await;
        assert!(!matches!(told, State::Value(_)), "{}", path.display());
    }
}

#[tokio::test]
async fn a_docker_secret_of_the_control_plane_is_read_below_an_allowed_directory_only() {
    let world = World::new().await;
    fs::write(world.path("smtp"), "hunter2").unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("smtp"), "root:hash").unwrap();
    let orders = world.attested("shop/orders").await;
    let mounted_in = |directory: &Path| {
        documents(world.directory.path(), "shop").replace(
            &format!("file: {{ path: {}", world.path("smtp").display()),
            &format!(
                "dockerSecret: {{ name: smtp, directory: {}",
                directory.display()
            ),
        )
    };
    let answer = world.apply(mounted_in(outside.path())).await;
    let mut warnings = answer.warnings.iter();
    let warned = warnings.any(|one| one.contains("shop/smtp") && one.contains("--allow-dir"));
    assert!(warned, "{:?}", answer.warnings);
    let mut values = watch(&world, &orders, "shop/smtp").await.unwrap();
    assert!(matches!(next(&mut values).await, State::Withdrawn(_)));

    world.apply(mounted_in(world.directory.path())).await;
    let State::Value(told) = next(&mut values).await else {
        panic!("a value")
    };
    assert_eq!(told.value, b"hunter2");
}

/// Each credential is asked for by its own name, also where one program with the same arguments answers for several.
#[tokio::test]
async fn a_plugin_of_the_control_plane_answers_for_each_credential_and_only_if_it_was_allowed() {
    let world = World::new().await;
    let (orders, inventory) = (
        world.attested("shop/orders").await,
        world.attested("shop/inventory").await,
    );
    let script = world.path("plugin");
    // It gives each the name it was asked for.
    let answers = r#"sed 's/.*"name":"\([a-z]*\)".*/{"version":1,"value":"of \1"}/'"#;
    fs::write(&script, answers).unwrap();
    let asked_of = |program: &str| {
        let mut text = documents(world.directory.path(), "shop");
        for name in ["smtp", "ledger"] {
            let file = format!("file: {{ path: {}", world.path(name).display());
            let command = format!(
                "command: {{ program: {program}, arguments: [ {} ]",
                script.display()
            );
            assert!(text.contains(&file), "{text}");
            text = text.replace(&file, &command);
        }
        text
    };
    let answer = world.apply(asked_of("/bin/true")).await;
    for name in ["shop/smtp", "shop/ledger"] {
        let mut warnings = answer.warnings.iter();
        let warned = warnings.any(|one| one.contains(name) && one.contains("--allow-command"));
        assert!(warned, "{:?}", answer.warnings);
    }
    let mut smtp = watch(&world, &orders, "shop/smtp").await.unwrap();
    assert!(matches!(next(&mut smtp).await, State::Withdrawn(_)));

    let answer = world.apply(asked_of(PLUGIN)).await;
    let mut warnings = answer.warnings.iter();
    assert!(!warnings.any(|one| one.contains("--allow-command")));
    let mut ledger = watch(&world, &inventory, "shop/ledger").await.unwrap();
    for (values, expected) in [(&mut smtp, &b"of smtp"[..]), (&mut ledger, b"of ledger")] {
        let State::Value(told) = next(values).await else {
            panic!("a value")
        };
        assert_eq!(told.value, expected);
    }
}

#[tokio::test]
async fn a_variable_of_the_control_plane_is_read_only_if_it_was_allowed() {
    let world = World::new().await;
    let orders = world.attested("shop/orders").await;
    let variable = |name: &str| {
        let file = format!("file: {{ path: {}", world.path("smtp").display());
        let text = documents(world.directory.path(), "shop");
        text.replace(&file, &format!("environment: {{ variable: {name}"))
    };
    let answer = world.apply(variable("PATH")).await;
    let mut warnings = answer.warnings.iter();
    let warned =
        warnings.any(|one| one.contains("shop/smtp") && one.contains("--allow-environment"));
    assert!(warned, "{:?}", answer.warnings);
    let mut values = watch(&world, &orders, "shop/smtp").await.unwrap();
    assert!(matches!(next(&mut values).await, State::Withdrawn(_)));
    world.apply(variable("SMTP")).await;
    let State::Value(told) = next(&mut values).await else {
        panic!("a value")
    };
    assert_eq!(told.value, b"hunter2");
}

#[tokio::test]
async fn the_control_plane_logs_in_to_a_vault_with_files_of_an_allowed_directory_only() {
    let world = World::new().await;
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("token"), "hunter2").unwrap();
    std::os::unix::fs::symlink(outside.path().join("token"), world.path("link")).unwrap();
    let orders = world.attested("shop/orders").await;
    // Nobody listens there.
    let by = |token: &Path| {
        documents(world.directory.path(), "shop").replace(
            &format!("file: {{ path: {}", world.path("smtp").display()),
            &format!(
                "vault: {{ address: 'http://127.0.0.1:1', login: {{ token: {{ file: {} }} }}, kv2: {{ path: x, key: y }}",
                token.display()
            ),
        )
    };
    let answer = world.apply(by(&outside.path().join("token"))).await;
    let mut warnings = answer.warnings.iter();
    let warned = warnings.any(|one| one.contains("shop/smtp") && one.contains("--allow-dir"));
    assert!(warned, "{:?}", answer.warnings);
    let mut values = watch(&world, &orders, "shop/smtp").await.unwrap();
    assert!(matches!(next(&mut values).await, State::Withdrawn(_)));

    // A link that leads out is no way in, and what is wrong stays here.
    let answer = world.apply(by(&world.path("link"))).await;
    let mut warnings = answer.warnings.iter();
    assert!(!warnings.any(|one| one.contains("--allow-dir")));
    let State::Unavailable(told) = next(&mut values).await else {
        panic!("no value, and no refusal")
    };
    assert!(
        !told.contains("link") && !told.contains("hunter2"),
        "{told}"
    );
}

#[tokio::test]
async fn the_control_plane_opens_files_by_identities_of_an_allowed_directory_only() {
    let world = World::new().await;
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("identity"), "hunter2").unwrap();
    std::os::unix::fs::symlink(outside.path().join("identity"), world.path("link")).unwrap();
    fs::write(world.path("sealed"), "hunter2").unwrap();
    let orders = world.attested("shop/orders").await;
    let by = |kind: &str, identity: &Path| {
        documents(world.directory.path(), "shop").replace(
            &format!("file: {{ path: {}", world.path("smtp").display()),
            &format!(
                "{kind}: {{ file: {}, identity: {}",
                world.path("sealed").display(),
                identity.display()
            ),
        )
    };
    for kind in ["age", "sops"] {
        let answer = world
            .apply(by(kind, &outside.path().join("identity")))
            .await;
        let mut warnings = answer.warnings.iter();
        let warned = warnings.any(|one| one.contains("shop/smtp") && one.contains("--allow-dir"));
        assert!(warned, "{:?}", answer.warnings);
        let mut values = watch(&world, &orders, "shop/smtp").await.unwrap();
        assert!(matches!(next(&mut values).await, State::Withdrawn(_)));
    }
    // A link that leads out is no way in, nor is one into the data directory, and what is wrong stays here.
    let answer = world.apply(by("age", &world.path("link"))).await;
    let mut warnings = answer.warnings.iter();
    assert!(!warnings.any(|one| one.contains("--allow-dir")));
    let mut values = watch(&world, &orders, "shop/smtp").await.unwrap();
    let State::Withdrawn(told) = next(&mut values).await else {
        panic!("no value")
    };
    assert!(
        !told.contains("link") && !told.contains("hunter2"),
        "{told}"
    );
}

#[tokio::test]
async fn a_sidecar_is_told_once_that_a_file_is_not_allowed_and_waits_for_one_that_is() {
    let world = World::new().await;
    fs::write(world.path("smtp"), "hunter2").unwrap();
    let right = documents(world.directory.path(), "shop");
    let smtp = format!("path: {}", world.path("smtp").display());
    let orders = world.attested("shop/orders").await;
    world
        .apply(right.replace(&smtp, "path: /etc/hostname"))
        .await;
    let mut values = watch(&world, &orders, "shop/smtp").await.unwrap();
    assert!(matches!(next(&mut values).await, State::Withdrawn(_)));
    world.apply(right).await;
    let State::Value(told) = next(&mut values).await else {
        panic!("a value")
    };
    assert_eq!(told.value, b"hunter2");
}

#[tokio::test]
async fn a_credential_of_another_workload_is_refused_like_one_that_does_not_exist() {
    let world = World::new().await;
    fs::write(world.path("ledger"), "hunter2").unwrap();
    let orders = world.attested("shop/orders").await;
    for name in ["shop/ledger", "shop/nothing"] {
        assert_eq!(
            refused(watch(&world, &orders, name).await.map(drop)),
            Code::NotFound
        );
    }
    assert_eq!(
        refused(watch(&world, &orders, "../smtp").await.map(drop)),
        Code::BadRequest
    );
    let admin = world.admin_svid();
    assert_eq!(
        refused(watch(&world, &admin, "shop/ledger").await.map(drop)),
        Code::Denied
    );
}

#[tokio::test]
async fn a_credential_taken_from_a_workload_ends_its_stream() {
    let world = World::new().await;
    fs::write(world.path("smtp"), "hunter2").unwrap();
    let orders = world.attested("shop/orders").await;
    let mut values = watch(&world, &orders, "shop/smtp").await.unwrap();
    next(&mut values).await;
    world
        .apply(
            documents(world.directory.path(), "shop").replace("credentials: [ smtp ]", "drain: 5s"),
        )
        .await;
    assert_eq!(refused(values.message().await), Code::NotFound);
}

#[tokio::test]
async fn no_document_can_have_the_control_planes_own_keys_read_out() {
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("link");
    let key = directory.path().join("data/key");
    std::os::unix::fs::symlink(&key, &link).unwrap();
    let documents = [
        MESH.to_owned(),
        workload(
            "orders",
            "{ attest: [ { token: {} } ], credentials: [ direct, linked ] }",
        ),
        credential("direct", &key),
        credential("linked", &link),
    ]
    .concat();
    let world = World::with(directory, documents).await;
    let orders = world.attested("shop/orders").await;
    for name in ["shop/direct", "shop/linked"] {
        let mut values = watch(&world, &orders, name).await.unwrap();
        assert!(
            matches!(next(&mut values).await, State::Withdrawn(_)),
            "{name}"
        );
    }
}
