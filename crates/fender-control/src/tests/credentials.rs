//! Who holds which generation: what sidecars say, to whom it is told, and what the control plane adds.

use fender_api::proto::control::v1::credential_value::State;
use fender_api::proto::control::v1::credentials_answer::Kind as Told;
use proto::report::Kind;

use super::roles::governed;
use super::sources::{next, watch};
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

/// Those who hold it, as they are told: the generation, what the control plane would give now, and whether it has ended.
async fn holders(world: &World, name: &str) -> Vec<(String, String, bool)> {
    let told = held(&mut world.admin().await, "", name).await.unwrap();
    let holders = told.into_iter().flat_map(|some| some.holders);
    let told = holders.map(|holder| {
        let used = holder.reported.unwrap_or_default();
        (used.generation, used.current, holder.ended_unix > 0)
    });
    told.collect()
}

const PLACE: &str = "00112233445566778899aabbccddeeff";

async fn at_place(world: &World, svid: &Svid, place: &str) -> Sidecar {
    let hello = proto::Hello {
        instance: fender_runtime::id::OpaqueId::random().to_string(),
        place: place.to_owned(),
        ..proto::Hello::default()
    };
    let mut sidecar = Sidecar::greet(world.as_peer(svid).await, hello)
        .await
        .unwrap();
    sidecar.next().await.unwrap();
    sidecar
}

/// Who fetches, reports and ends, as an init container does; what it was given.
async fn init(world: &World, svid: &Svid, place: &str) -> String {
    let mut sidecar = at_place(world, svid, place).await;
    let mut values = watch(world, svid, "shop/smtp").await.unwrap();
    let State::Value(value) = next(&mut values).await else {
        panic!("a value")
    };
    let used = in_use("shop/smtp", &value.generation);
    sidecar.report(Kind::Credential(used)).await;
    sidecar.report(Kind::Ended(proto::Ended {})).await;
    sidecar.taken().await;
    value.generation
}

#[tokio::test]
async fn what_was_left_is_known_and_compared_when_nobody_is_connected_any_more() {
    let world = World::new().await;
    fs::write(world.path("smtp"), "hunter2").unwrap();
    let orders = world.attested("shop/orders").await;
    let first = init(&world, &orders, "").await;
    let alone = |told: Vec<_>, wanted: (String, String, bool)| (told == [wanted]).then_some(());
    eventually(|| async {
        let told = holders(&world, "shop/smtp").await;
        alone(told, (first.clone(), first.clone(), true))
    })
    .await;
    eventually(|| async {
        let status = world.status().await;
        let mut all = status.workloads.iter();
        all.all(|one| one.sidecars.is_empty()).then_some(())
    })
    .await;

    // The source is asked on, though nobody takes what it has.
    fs::write(world.path("smtp.new"), "correct horse").unwrap();
    fs::rename(world.path("smtp.new"), world.path("smtp")).unwrap();
    eventually(|| async {
        let told = holders(&world, "shop/smtp").await;
        let [(generation, current, true)] = &told[..] else {
            return None;
        };
        assert_eq!(*generation, first);
        (!current.is_empty() && *current != first).then_some(())
    })
    .await;

    // Another one elsewhere replaces nothing.
    let second = init(&world, &orders, PLACE).await;
    eventually(|| async {
        let told = holders(&world, "shop/smtp").await;
        let both = [
            (first.clone(), second.clone(), true),
            (second.clone(), second.clone(), true),
        ];
        (told == both).then_some(())
    })
    .await;

    // Whoever has the same state directory later and holds one has replaced what was left there.
    let mut sidecar = at_place(&world, &orders, PLACE).await;
    let nothing = proto::CredentialInUse {
        state: proto::CredentialState::Waiting.into(),
        ..in_use("shop/smtp", "")
    };
    sidecar.report(Kind::Credential(nothing)).await;
    sidecar.report(Kind::Ended(proto::Ended {})).await;
    sidecar.taken().await;
    assert_eq!(holders(&world, "shop/smtp").await.len(), 2, "it holds none");
    sidecar
        .report(Kind::Credential(in_use("shop/smtp", &second)))
        .await;
    sidecar.report(Kind::Ended(proto::Ended {})).await;
    sidecar.taken().await;
    assert_eq!(
        holders(&world, "shop/smtp").await.len(),
        2,
        "it took its place"
    );

    // What is listed no more is not told.
    let text = documents(world.directory.path(), "shop")
        .replace("credentials: [ smtp ]", "credentials: []");
    assert!(text.contains("credentials: []"), "{text}");
    world.apply(text).await;
    assert_eq!(holders(&world, "shop/smtp").await, []);
}

#[tokio::test]
async fn attack_who_says_that_it_ends_and_stays_is_still_shown_as_connected() {
    let world = World::new().await;
    let orders = world.attested("shop/orders").await;
    let mut sidecar = at_place(&world, &orders, "").await;
    sidecar.report(Kind::Ended(proto::Ended {})).await;
    sidecar.taken().await;
    let status = world.status().await;
    let connected = status.workloads.iter().flat_map(|one| &one.sidecars);
    assert_eq!(connected.count(), 1);
    let hello = proto::Hello {
        place: "../../etc".to_owned(),
        ..proto::Hello::default()
    };
    let mut forged = Sidecar::greet(world.as_peer(&orders).await, hello)
        .await
        .unwrap();
    assert_eq!(refused(forged.next().await.map(drop)), Code::BadRequest);
}
