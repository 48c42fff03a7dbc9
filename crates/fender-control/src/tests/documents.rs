//! DESIGN §5 and the "wrong input": everything wrong is told, nothing is applied; what is right is one revision.

use super::*;

#[tokio::test]
async fn wrong_documents_change_nothing_and_every_problem_is_told() {
    let world = World::new().await;
    let before = world.status().await;
    let wrong = [
        MESH.to_owned(),
        workload("orders", "{ credentials: [ missing ] }"),
        workload("inventory", "{ credentials: [ absent ] }"),
    ]
    .concat();
    let answer = world.apply(wrong).await;
    assert_eq!(answer.problems.len(), 2, "{:?}", answer.problems);
    assert!(
        answer
            .problems
            .iter()
            .all(|problem| problem.line > 0 && problem.file == "mesh.yaml")
    );
    assert!(answer.changes.is_empty());

    let after = world.status().await;
    assert_eq!(
        (after.revision, after.workloads.len()),
        (before.revision, before.workloads.len())
    );
}

#[tokio::test]
async fn documents_without_a_mesh_or_of_another_trust_domain_are_refused() {
    let world = World::new().await;
    let answer = world.apply(workload("orders", "{}")).await;
    assert_eq!(answer.problems.len(), 1);
    let answer = world.apply(MESH.replace("acme.test", "other.test")).await;
    assert_eq!(answer.problems[0].code, "fender::trust-domain-changed");
    assert!(
        answer.problems[0].message.contains("acme.test"),
        "{:?}",
        answer.problems
    );
}

#[tokio::test]
async fn a_dry_run_shows_the_difference_and_changes_nothing() {
    let world = World::new().await;
    let documents = [
        documents(world.directory.path(), "web"),
        workload("web", "{}"),
    ]
    .concat();
    let answer = world.apply_or_try(documents.clone(), true).await;
    let shown: Vec<_> = answer
        .changes
        .iter()
        .map(|change| (change.kind.as_str(), change.name.as_str(), change.what()))
        .collect();
    assert_eq!(
        shown,
        [
            ("Workload", "shop/web", proto::change::What::Added),
            (
                "AuthorizationPolicy",
                "shop/inventory-callers",
                proto::change::What::Changed
            ),
        ]
    );
    assert_eq!((answer.revision, world.status().await.revision), (1, 1));

    let applied = world.apply(documents.clone()).await;
    assert_eq!((applied.revision, applied.changes), (2, answer.changes));
    assert_eq!(
        world.apply(documents).await.revision,
        2,
        "the same again is no revision"
    );
}

#[tokio::test]
async fn a_first_start_without_a_mesh_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::new(at(NOW));
    let config = config(&directory.path().join("data"), None);
    let error = start(config.clone(), clock.clone(), Drain::new())
        .await
        .unwrap_err();
    assert!(matches!(error, StartError::NoMesh));
    assert_eq!(error.exit_code(), 64);
    assert!(error.to_string().contains("`Mesh`") && error.to_string().contains("--trust-domain"));

    // The same directory, told what it needs.
    let mut config = config;
    config.foundation.trust_domain = Some("acme.test".parse().unwrap());
    let running = start(config, clock, Drain::new()).await.unwrap();
    assert_eq!(
        (running.trust_domain.as_str(), running.revision),
        ("acme.test", 1)
    );
}

#[tokio::test]
async fn a_mesh_made_of_the_trust_domain_alone_stays_until_one_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(&directory.path().join("data"), None);
    config.foundation.trust_domain = Some("acme.test".parse().unwrap());
    let (clock, drain) = (TestClock::new(at(NOW)), Drain::new());
    let running = start(config, clock.clone(), drain.clone()).await.unwrap();
    let world = World {
        directory,
        clock,
        drain,
        running,
    };
    let answer = world
        .apply(workload("orders", "{ attest: [ { token: {} } ] }"))
        .await;
    assert_eq!((answer.revision, answer.problems), (2, Vec::new()));
    world.attested("shop/orders").await;
    assert_eq!(world.apply(MESH.to_owned()).await.revision, 3);
    assert_eq!(
        world.apply(workload("orders", "{}")).await.problems.len(),
        1,
        "and not after"
    );
}

#[tokio::test]
async fn documents_of_a_directory_are_a_revision_when_they_differ() {
    let world = World::new().await;
    let text = documents(world.directory.path(), "shop");
    let world = world.restart_with(Some(text)).await.unwrap();
    assert_eq!(world.running.revision, 1, "the same documents");
    let text = documents(world.directory.path(), "web");
    let world = world.restart_with(Some(text)).await.unwrap();
    assert_eq!(world.running.revision, 2);
    let world = world.restart().await;
    assert_eq!(
        world.running.revision, 2,
        "without a directory, what is stored"
    );
}

#[tokio::test]
async fn wrong_documents_at_the_start_are_refused_with_their_places_and_exit_code_64() {
    let world = World::new().await;
    let data = world.path("data");
    let (clock, drain) = (world.clock.clone(), world.drain.clone());
    drop(world.running);
    drain.close(Deadline::after(Duration::from_secs(60))).await;

    let wrong = config(&data, Some([MESH, "\nnonsense: true\n"].concat()));
    let error = start(wrong, clock.clone(), Drain::new()).await.unwrap_err();
    assert_eq!(error.exit_code(), 64);
    assert!(error.to_string().contains("mesh.yaml"), "{error}");

    let foreign = config(&data, Some(MESH.replace("acme.test", "other.test")));
    let error = start(foreign, clock, Drain::new()).await.unwrap_err();
    assert!(
        matches!(error, StartError::TrustDomainChanged { .. }),
        "{error}"
    );
    assert_eq!(error.exit_code(), 64);
}

#[tokio::test]
async fn an_administrator_who_hangs_up_leaves_no_revision_half_in_force() {
    let world = World::new().await;
    let mut admin = world.admin().await;
    for round in 0..40 {
        let text = documents(world.directory.path(), &format!("caller{round}"));
        let files = vec![proto::SourceFile {
            name: "mesh.yaml".to_owned(),
            text,
        }];
        tokio::select! {
            biased;
            applied = admin.apply(proto::ApplyRequest { files, ..proto::ApplyRequest::default() }) => drop(applied.unwrap()),
            () = async { for _ in 0..round * 2 { tokio::task::yield_now().await } } => {}
        }
    }
    let inventory = world.attested("shop/inventory").await;
    let applied = world.apply(documents(world.directory.path(), "last")).await;
    let snapshot = world.subscribe(&inventory, 0).await.next().await.unwrap();
    assert_eq!(snapshot.version, applied.revision);
    assert!(format!("{:?}", snapshot.policies).contains("last"));
}

#[tokio::test]
async fn documents_of_ten_megabytes_are_refused_and_nothing_waits_for_them() {
    let world = World::new().await;
    let answer = world
        .apply([MESH.to_owned(), "# x".repeat(10 * 1024 * 1024 / 3)].concat())
        .await;
    assert_eq!(answer.problems.len(), 1, "{:?}", answer.problems);
    assert_eq!(answer.revision, 1);
}
