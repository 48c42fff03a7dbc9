//! DESIGN I3 and §14: a certificate renews itself while it lives and within its grace, and by nothing else.

use fender_api::proof;

use super::*;

async fn renew(channel: Channel, key: &NewKey, id: &str) -> Result<proto::SvidResponse, Status> {
    let csr = key.csr_der(&id.parse().unwrap()).unwrap();
    let request = proto::RenewRequest { csr, expired: None };
    IdentityClient::new(channel)
        .renew(request)
        .await
        .map(|response| response.into_inner())
}

/// Renews with a certificate that has expired, over a connection without one.
pub(super) async fn renew_expired(
    world: &World,
    svid: &Svid,
    id: &str,
    change: impl FnOnce(&mut proto::ExpiredProof),
) -> Result<proto::SvidResponse, Status> {
    let connection = world.anonymous().await;
    let csr = NewKey::generate()
        .unwrap()
        .csr_der(&id.parse().unwrap())
        .unwrap();
    let mut proof = proto::ExpiredProof {
        chain: svid
            .chain()
            .iter()
            .map(|certificate| certificate.to_vec())
            .collect(),
        signature: svid
            .sign(&proof::renewal(&csr, &connection.server_leaf))
            .unwrap(),
    };
    change(&mut proof);
    let request = proto::RenewRequest {
        csr,
        expired: Some(proof),
    };
    IdentityClient::new(connection.channel)
        .renew(request)
        .await
        .map(|response| response.into_inner())
}

fn revoke(world: &World, svid: &Svid) -> impl Future<Output = ()> {
    let path = world.path("data/control.db");
    let serial = svid.serial().to_string();
    async move {
        use sqlx::{ConnectOptions as _, Connection as _};
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
        let mut db = options.connect().await.unwrap();
        sqlx::query("UPDATE certificates SET revoked_at = 1 WHERE serial = ?")
            .bind(serial)
            .execute(&mut db)
            .await
            .unwrap();
        db.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_valid_certificate_renews_itself_for_a_new_key() {
    let world = World::new().await;
    let svid = world.attested("shop/orders").await;
    world.clock.advance(Duration::from_secs(1800));
    let key = NewKey::generate().unwrap();
    let answer = renew(world.as_peer(&svid).await, &key, ORDERS)
        .await
        .unwrap();
    let renewed = key.into_svid(issued(answer).chain).unwrap();
    assert_eq!(renewed.validity().not_after.as_secs(), world.now() + 3600);
    assert_ne!(renewed.serial(), svid.serial());
    // And what was renewed renews.
    renew(
        world.as_peer(&renewed).await,
        &NewKey::generate().unwrap(),
        ORDERS,
    )
    .await
    .unwrap();
}

#[tokio::test]
async fn a_certificate_renews_no_other_identity() {
    let world = World::new().await;
    let svid = world.attested("shop/orders").await;
    let result = renew(
        world.as_peer(&svid).await,
        &NewKey::generate().unwrap(),
        INVENTORY,
    )
    .await;
    assert_eq!(refused(result), Code::CsrInvalid);
}

#[tokio::test]
async fn nobody_renews_without_a_certificate() {
    let world = World::new().await;
    let channel = world.anonymous().await.channel;
    let result = renew(channel, &NewKey::generate().unwrap(), ORDERS).await;
    assert_eq!(refused(result), Code::NotAuthenticated);
}

#[tokio::test]
async fn an_administrator_does_not_renew_as_a_workload() {
    let world = World::new().await;
    let admin = world.admin_svid();
    let result = renew(
        world.as_peer(&admin).await,
        &NewKey::generate().unwrap(),
        ORDERS,
    )
    .await;
    assert_eq!(refused(result), Code::Denied);
}

#[tokio::test]
async fn a_workload_whose_document_is_gone_renews_no_more() {
    let world = World::new().await;
    let svid = world.attested("shop/orders").await;
    world
        .apply([MESH.to_owned(), workload("inventory", "{}")].concat())
        .await;
    let result = renew(
        world.as_peer(&svid).await,
        &NewKey::generate().unwrap(),
        ORDERS,
    )
    .await;
    assert_eq!(refused(result), Code::IdentityUnknown);
}

#[tokio::test]
async fn a_revoked_certificate_renews_no_more_expired_or_not() {
    let world = World::new().await;
    let svid = world.attested("shop/orders").await;
    revoke(&world, &svid).await;
    let result = renew(
        world.as_peer(&svid).await,
        &NewKey::generate().unwrap(),
        ORDERS,
    )
    .await;
    assert_eq!(refused(result), Code::Revoked);
    world.clock.advance(Duration::from_secs(2 * 3600));
    assert_eq!(
        refused(renew_expired(&world, &svid, ORDERS, |_| {}).await),
        Code::Revoked
    );
}

#[tokio::test]
async fn an_open_connection_does_not_outlive_its_certificate() {
    let world = World::new().await;
    let svid = world.attested("shop/orders").await;
    let channel = world.as_peer(&svid).await;
    renew(channel.clone(), &NewKey::generate().unwrap(), ORDERS)
        .await
        .unwrap();
    world.clock.advance(Duration::from_secs(3601));
    let result = renew(channel, &NewKey::generate().unwrap(), ORDERS).await;
    assert_eq!(refused(result), Code::NotAuthenticated);
    // TLS 1.3: a client may believe itself connected until it asks something.
    let again = async {
        let channel = world.try_as_peer(&svid).await.ok()?.channel;
        renew(channel, &NewKey::generate().unwrap(), ORDERS)
            .await
            .ok()
    };
    assert!(again.await.is_none());
}

#[tokio::test]
async fn an_expired_certificate_renews_itself_within_its_grace() {
    let world = World::new().await;
    let svid = world.attested("shop/orders").await;
    world
        .advance(Duration::from_secs(3600 + 24 * 3600 - 1))
        .await;
    let answer = renew_expired(&world, &svid, ORDERS, |_| {}).await.unwrap();
    assert_eq!(issued(answer).chain.len(), 2);
}

#[tokio::test]
async fn an_expired_certificate_does_not_renew_itself_after_its_grace() {
    let world = World::new().await;
    let svid = world.attested("shop/orders").await;
    world
        .advance(Duration::from_secs(3600 + 24 * 3600 + 1))
        .await;
    assert_eq!(
        refused(renew_expired(&world, &svid, ORDERS, |_| {}).await),
        Code::RenewalExpired
    );
}

#[tokio::test]
async fn an_expired_certificate_proves_nothing_without_its_key() {
    let world = World::new().await;
    let svid = world.attested("shop/orders").await;
    let thief = world.attested("shop/inventory").await;
    world.clock.advance(Duration::from_secs(7200));

    let foreign =
        |proof: &mut proto::ExpiredProof| proof.signature = thief.sign(b"anything").unwrap();
    assert_eq!(
        refused(renew_expired(&world, &svid, ORDERS, foreign).await),
        Code::ProofInvalid
    );
    let empty = |proof: &mut proto::ExpiredProof| proof.chain.clear();
    assert_eq!(
        refused(renew_expired(&world, &svid, ORDERS, empty).await),
        Code::ProofInvalid
    );
    let result = renew_expired(&world, &svid, INVENTORY, |_| {}).await;
    assert_eq!(
        refused(result),
        Code::CsrInvalid,
        "nor is it anybody else's"
    );
}

#[tokio::test]
async fn a_proof_made_for_another_server_is_refused() {
    let (world, other) = (World::new().await, World::new().await);
    let svid = world.attested("shop/orders").await;
    world.clock.advance(Duration::from_secs(7200));
    let elsewhere = other.anonymous().await.server_leaf;

    let csr = NewKey::generate()
        .unwrap()
        .csr_der(&ORDERS.parse().unwrap())
        .unwrap();
    let expired = proto::ExpiredProof {
        chain: svid
            .chain()
            .iter()
            .map(|certificate| certificate.to_vec())
            .collect(),
        signature: svid.sign(&proof::renewal(&csr, &elsewhere)).unwrap(),
    };
    let request = proto::RenewRequest {
        csr,
        expired: Some(expired),
    };
    let result = IdentityClient::new(world.anonymous().await.channel)
        .renew(request)
        .await;
    assert_eq!(refused(result), Code::ProofInvalid);
}

#[tokio::test]
async fn a_certificate_of_another_control_plane_is_refused_in_the_handshake() {
    let (world, other) = (World::new().await, World::new().await);
    let svid = other.attested("shop/orders").await;
    let Ok(connection) = world.try_as_peer(&svid).await else {
        return;
    };
    let result = renew(connection.channel, &NewKey::generate().unwrap(), ORDERS).await;
    assert!(result.is_err());
}

#[tokio::test]
async fn a_second_of_life_is_enough_in_a_development_mesh() {
    let directory = tempfile::tempdir().unwrap();
    let mesh = "apiVersion: fender.dev/v1\nkind: Mesh\nmetadata: { name: mesh }\nspec: { trustDomain: acme.test, profile: development, lifetimes: { leaf: 10s } }\n";
    let documents = [
        mesh.to_owned(),
        workload("orders", "{ attest: [ { token: {} } ] }"),
    ]
    .concat();
    let world = World::with(directory, documents).await;
    let svid = world.attested("shop/orders").await;
    assert_eq!(svid.validity().not_after.as_secs(), NOW + 10);
    assert_eq!(
        svid.validity().not_before.as_secs(),
        NOW - 1,
        "so that half its life is where people expect it"
    );
    assert!(world.status().await.development, "and status says so");
}
