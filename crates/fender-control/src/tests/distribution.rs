//! DESIGN §5 and §14 "what travels": each workload hears its own Snapshot, gets its own secrets, and nothing else.

use super::*;
use fender_api::proto::control::v1::report::Kind;

#[tokio::test]
async fn a_snapshot_holds_only_what_its_own_workload_needs() {
    let world = World::new().await;
    let (orders, inventory) = (
        world.attested("shop/orders").await,
        world.attested("shop/inventory").await,
    );
    let orders = world.subscribe(&orders, 0).await.next().await.unwrap();
    let inventory = world.subscribe(&inventory, 0).await.next().await.unwrap();

    assert_eq!(
        (orders.identity.as_str(), inventory.identity.as_str()),
        (ORDERS, INVENTORY)
    );
    assert_eq!(orders.version, 1);
    let credentials = |snapshot: &proto::Snapshot| {
        snapshot
            .credentials
            .iter()
            .map(|credential| credential.name.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (credentials(&orders), credentials(&inventory)),
        (vec!["shop/smtp".into()], vec!["shop/ledger".into()])
    );
    assert!(
        orders.policies.unwrap().policies.is_empty(),
        "another workload's policy"
    );
    assert_eq!(inventory.policies.unwrap().policies.len(), 1);
    assert!(
        !format!("{:?}", orders.credentials).contains("smtp\" }"),
        "where the control plane reads does not travel"
    );
    let path = world.path("smtp").display().to_string();
    assert!(!format!("{:?}", orders.credentials).contains(&path));
}

#[tokio::test]
async fn every_workload_hears_the_same_of_whom_to_believe_and_before_anything_else() {
    let world = World::new().await;
    let mut heard = Vec::new();
    for workload in ["shop/orders", "shop/inventory"] {
        let svid = world.attested(workload).await;
        heard.push(world.subscribe(&svid, 0).await.next_trust().await.unwrap());
    }
    assert_eq!(heard[0], heard[1]);
    assert_eq!(
        heard[0].bundles[0].roots,
        [world.bundle().roots()[0].to_vec()]
    );
    let before = heard[0].version;

    let world = world.restart().await;
    let svid = world.attested("shop/orders").await;
    let after = world.subscribe(&svid, 0).await.next_trust().await.unwrap();
    assert_eq!(after.version, before, "no change, no new number");
}

#[tokio::test]
async fn a_change_reaches_only_the_workload_whose_snapshot_changed() {
    let world = World::new().await;
    let (orders, inventory) = (
        world.attested("shop/orders").await,
        world.attested("shop/inventory").await,
    );
    let (mut orders, mut inventory) = (
        world.subscribe(&orders, 0).await,
        world.subscribe(&inventory, 0).await,
    );
    assert_eq!(
        (
            orders.next().await.unwrap().version,
            inventory.next().await.unwrap().version
        ),
        (1, 1)
    );

    world.apply(documents(world.directory.path(), "web")).await;
    assert_eq!(inventory.next().await.unwrap().version, 2);

    // The next thing orders hears is the change after that, and inventory hears nothing of it.
    let text =
        documents(world.directory.path(), "web").replace("orders.shop.internal", "orders.internal");
    let text = text.replace(
        "name: orders, labels: { app: orders }",
        "name: orders, labels: { app: inventory }",
    );
    world.apply(text).await;
    let heard = orders.next().await.unwrap();
    assert_eq!(
        (heard.version, heard.policies.unwrap().policies.len()),
        (3, 1)
    );
    let status = world.status().await;
    let sent = |name: &str| {
        let workload = status
            .workloads
            .iter()
            .find(|workload| workload.name == name)
            .unwrap();
        workload.sidecars[0].snapshot_sent
    };
    assert_eq!((sent("shop/orders"), sent("shop/inventory")), (3, 2));
}

#[tokio::test]
async fn a_sidecar_that_has_the_snapshot_already_is_told_of_the_next_change_only() {
    let world = World::new().await;
    let inventory = world.attested("shop/inventory").await;
    let hello = held(&world, &inventory).await;
    let channel = world.as_peer(&inventory).await;
    let mut sidecar = Sidecar::greet(channel, hello).await.unwrap();
    eventually(|| async {
        world
            .status()
            .await
            .workloads
            .into_iter()
            .find_map(|w| w.sidecars.into_iter().next())
    })
    .await;
    world.apply(documents(world.directory.path(), "web")).await;
    let proto::update::Kind::Snapshot(snapshot) = sidecar.update().await.unwrap() else {
        panic!("trust is known, too")
    };
    assert_eq!(snapshot.version, 2);
}

/// What a sidecar says that has everything.
async fn held(world: &World, svid: &Svid) -> proto::Hello {
    let mut sidecar = world.subscribe(svid, 0).await;
    let proto::update::Kind::Trust(trust) = sidecar.update().await.unwrap() else {
        panic!("trust goes first")
    };
    let snapshot = sidecar.next().await.unwrap();
    proto::Hello {
        snapshot_version: snapshot.version,
        snapshot_sha256: fender_api::convert::sha256(&snapshot.encode_to_vec()).to_vec(),
        trust_version: proto::Trust::decode(&trust[..]).unwrap().version,
        trust_sha256: fender_api::convert::sha256(&trust).to_vec(),
        ..proto::Hello::default()
    }
}

#[tokio::test]
async fn what_has_the_same_number_and_says_something_else_is_sent_again() {
    let world = World::new().await;
    let orders = world.attested("shop/orders").await;
    // As after a restored backup, whose numbers count up again to something else.
    let other = proto::Hello {
        snapshot_sha256: vec![7; 32],
        trust_sha256: vec![7; 32],
        ..held(&world, &orders).await
    };
    let channel = world.as_peer(&orders).await;
    let mut sidecar = Sidecar::greet(channel, other.clone()).await.unwrap();
    assert_eq!(
        sidecar.next_trust().await.unwrap().version,
        other.trust_version
    );
    assert_eq!(
        sidecar.next().await.unwrap().version,
        other.snapshot_version
    );
}

#[tokio::test]
async fn acknowledgements_and_refusals_show_in_the_status() {
    let world = World::new().await;
    let orders = world.attested("shop/orders").await;
    let mut sidecar = world.subscribe(&orders, 0).await;
    sidecar.next().await.unwrap();
    sidecar
        .report(Kind::Nack(proto::Nack {
            version: 1,
            reason: "no such port".to_owned(),
        }))
        .await;
    let nacked = |wanted: &'static str, acked: u64| {
        let world = &world;
        move || async move {
            let status = world.status().await;
            let workload = status
                .workloads
                .into_iter()
                .find(|workload| workload.name == "shop/orders")?;
            workload
                .sidecars
                .into_iter()
                .find(|sidecar| sidecar.nack == wanted && sidecar.snapshot_acked == acked)
        }
    };
    let shown = eventually(nacked("no such port", 0)).await;
    assert_eq!((shown.version.as_str(), shown.snapshot_sent), ("0.1.0", 1));
    assert_eq!(shown.certificate_serial, orders.serial().to_string());

    sidecar.report(Kind::Ack(proto::Ack { version: 1 })).await;
    eventually(nacked("", 1)).await;
    drop(sidecar);
    eventually(|| async {
        world
            .status()
            .await
            .workloads
            .iter()
            .all(|workload| workload.sidecars.is_empty())
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_stream_needs_a_workloads_certificate_and_a_hello() {
    let world = World::new().await;
    let anonymous = world.anonymous().await.channel;
    assert_eq!(
        refused(Sidecar::subscribe(anonymous, 0).await.map(drop)),
        Code::NotAuthenticated
    );
    let admin = world.as_peer(&world.admin_svid()).await;
    assert_eq!(
        refused(Sidecar::subscribe(admin, 0).await.map(drop)),
        Code::Denied
    );

    let orders = world.attested("shop/orders").await;
    let (reports, outgoing) = tokio::sync::mpsc::channel(1);
    reports
        .send(report(Kind::Ack(proto::Ack { version: 1 })))
        .await
        .unwrap();
    let stream = tokio_stream::wrappers::ReceiverStream::new(outgoing);
    let mut client = DistributionClient::new(world.as_peer(&orders).await);
    let mut updates = client.subscribe(stream).await.unwrap().into_inner();
    assert_eq!(refused(updates.message().await), Code::BadRequest);
}

#[tokio::test]
async fn a_stream_ends_with_the_certificate_it_began_with() {
    let world = World::new().await;
    let orders = world.attested("shop/orders").await;
    let mut sidecar = world.subscribe(&orders, 0).await;
    sidecar.next().await.unwrap();
    world.clock.advance(Duration::from_secs(3602));
    // The wall is looked at again within half a minute.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(31)).await;
    tokio::time::resume();
    assert_eq!(refused(sidecar.next().await), Code::NotAuthenticated);
}

#[tokio::test]
async fn a_stream_ends_with_its_workloads_document() {
    let world = World::new().await;
    let orders = world.attested("shop/orders").await;
    let mut sidecar = world.subscribe(&orders, 0).await;
    sidecar.next().await.unwrap();
    world.apply(MESH.to_owned()).await;
    assert_eq!(refused(sidecar.next().await), Code::IdentityUnknown);
    assert_eq!(
        refused(
            Sidecar::subscribe(world.as_peer(&orders).await, 0)
                .await
                .map(drop)
        ),
        Code::IdentityUnknown
    );
}
