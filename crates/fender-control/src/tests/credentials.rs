//! Who holds which generation: what sidecars say, to whom it is told, and what the control plane adds.

use fender_api::proto::control::v1::credential_value::State;
use fender_api::proto::control::v1::credentials_answer::Kind as Told;
use proto::report::Kind;

use super::distribution::{next, watch};
use super::roles::governed;
use super::*;

/// What is told, without the head.
async fn held(
    admin: &mut AdminClient<Channel>,
    namespace: &str,
    name: &str,
) -> Result<Vec<proto::CredentialHolders>, Status> {
    let request = proto::CredentialsRequest {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    let mut told = admin.credentials(request).await?.into_inner();
    let mut all = Vec::new();
    while let Some(message) = told.message().await? {
        match message.kind.unwrap() {
            Told::Head(head) => assert!(head.replicas.iter().all(|it| it.problem.is_empty())),
            Told::Holders(some) => all.push(some),
        }
    }
    Ok(all)
}

fn in_use(name: &str, generation: &str) -> proto::CredentialInUse {
    proto::CredentialInUse {
        name: name.to_owned(),
        generation: generation.to_owned(),
        state: proto::CredentialState::Delivered.into(),
        since_unix: 1_800_000_000,
        files: 1,
        ..Default::default()
    }
}

/// What was reported of one credential, once it says this generation.
pub(super) async fn reported(
    world: &World,
    name: &str,
    generation: &str,
) -> proto::CredentialInUse {
    let mut admin = world.admin().await;
    let channel = &mut admin;
    let mut found = None;
    let deadline = Deadline::after(Duration::from_secs(60));
    deadline
        .bound(async {
            while found.is_none() {
                let told = held(channel, "", name).await.unwrap();
                let holders = told.into_iter().flat_map(|some| some.holders);
                let mut reports = holders.filter_map(|holder| holder.reported);
                found = reports.find(|used| used.generation == generation);
            }
        })
        .await
        .expect("it is reported in time");
    found.unwrap()
}

#[tokio::test]
async fn who_holds_what_is_told_with_what_the_control_plane_would_give_now() {
    let world = World::new().await;
    fs::write(world.path("smtp"), "hunter2").unwrap();
    let orders = world.attested("shop/orders").await;
    let mut sidecar = world.subscribe(&orders, 0).await;
    sidecar.next().await.unwrap();
    let mut values = watch(&world, &orders, "shop/smtp").await.unwrap();
    let State::Value(first) = next(&mut values).await else {
        panic!("a value")
    };
    let forged = proto::CredentialInUse {
        current: "forged".to_owned(),
        ..in_use("shop/smtp", &first.generation)
    };
    sidecar.report(Kind::Credential(forged)).await;
    let told = reported(&world, "shop/smtp", &first.generation).await;
    assert_eq!(told.current, first.generation);
    assert_eq!((told.files, told.since_unix), (1, 1_800_000_000));

    // The sidecar cannot take the next one, and says nothing of it.
    fs::write(world.path("smtp.new"), "correct horse").unwrap();
    fs::rename(world.path("smtp.new"), world.path("smtp")).unwrap();
    let State::Value(second) = next(&mut values).await else {
        panic!("a value")
    };
    let told = reported(&world, "shop/smtp", &first.generation).await;
    assert_eq!(told.current, second.generation);
    assert!(!format!("{told:?}").contains("hunter2"));

    // The ordinary status has the generation and no more.
    let status = world.status().await;
    let sidecars = status.workloads.iter().flat_map(|one| &one.sidecars);
    let credentials: Vec<_> = sidecars.flat_map(|it| &it.credentials).collect();
    let expected = proto::CredentialInUse {
        name: "shop/smtp".to_owned(),
        generation: first.generation,
        ..Default::default()
    };
    assert_eq!(credentials, [&expected]);
}

#[tokio::test]
async fn attack_a_sidecar_speaks_of_its_own_credentials_only_and_within_bounds() {
    let world = World::new().await;
    let orders = world.attested("shop/orders").await;
    let mut sidecar = world.subscribe(&orders, 0).await;
    sidecar.next().await.unwrap();
    let long = "x".repeat(4_000);
    sidecar
        .report(Kind::Credential(in_use("shop/ledger", "theirs")))
        .await;
    let used = proto::CredentialUse {
        who: long.clone(),
        ..Default::default()
    };
    let greedy = proto::CredentialInUse {
        why: long,
        uses: vec![used; 20],
        ..in_use("shop/smtp", "mine")
    };
    sidecar.report(Kind::Credential(greedy)).await;
    let told = reported(&world, "shop/smtp", "mine").await;
    assert_eq!((told.uses.len(), told.uses_untold), (16, 4));
    assert!(told.why.len() <= 256 && told.uses.iter().all(|it| it.who.len() <= 256));
    let ledger = held(&mut world.admin().await, "", "shop/ledger").await;
    let [ledger] = &ledger.unwrap()[..] else {
        panic!("one workload")
    };
    assert_eq!(
        (ledger.workload.as_str(), ledger.holders.len()),
        ("shop/inventory", 0)
    );
}

#[tokio::test]
async fn a_sidecar_that_says_nothing_of_a_credential_is_on_the_list_all_the_same() {
    let world = World::new().await;
    let orders = world.attested("shop/orders").await;
    let mut sidecar = world.subscribe(&orders, 0).await;
    sidecar.next().await.unwrap();
    let told = held(&mut world.admin().await, "shop", "").await.unwrap();
    let told: Vec<_> = told
        .iter()
        .map(|some| (&*some.name, &*some.workload, some.holders.len()))
        .collect();
    assert_eq!(
        told,
        [
            ("shop/ledger", "shop/inventory", 0),
            ("shop/smtp", "shop/orders", 1)
        ]
    );
}

#[tokio::test]
async fn attack_an_administrator_sees_the_credentials_of_its_own_namespaces_and_that_it_looked_is_on_record()
 {
    let directory = tempfile::tempdir().unwrap();
    let administrators = "{ name: first, role: security }, { name: ben, role: viewer, namespaces: [ shop ] }, \
        { name: cem, role: viewer, namespaces: [ bank ] }";
    let documents = governed(directory.path(), administrators);
    let world = World::with(directory, documents).await;
    let mut ben = world.administrator("ben").await;
    assert_eq!(held(&mut ben, "", "").await.unwrap().len(), 2);
    let mut cem = world.administrator("cem").await;
    for (namespace, name) in [("", ""), ("shop", ""), ("", "shop/smtp")] {
        assert_eq!(held(&mut cem, namespace, name).await.unwrap(), []);
    }
    let orders = world.attested("shop/orders").await;
    let mut intruder = AdminClient::new(world.as_peer(&orders).await);
    assert_eq!(refused(held(&mut intruder, "", "").await), Code::Denied);
    assert_eq!(
        refused(held(&mut ben, "", "no/such/name").await),
        Code::BadRequest
    );
    let told = world.told().await;
    let looked = told
        .iter()
        .filter(|entry| entry.starts_with("cem credentials done"));
    assert_eq!(looked.count(), 3, "{told:?}");
}
