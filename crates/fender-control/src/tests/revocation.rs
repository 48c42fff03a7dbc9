//! DESIGN I4: what is revoked ends, everywhere and at once, and nothing that is issued after it is touched.

use fender_api::proto::control::v1::revoke_request::What;

use super::renewal::renew_expired;
use super::upstream::notice;
use super::*;
use crate::store::{Command, Connection as Database, Store, StoreError, query};

async fn revoke(world: &World, what: What) -> Result<proto::Revocation, Status> {
    revoke_as(world, what, false).await
}

async fn revoke_as(world: &World, what: What, myself: bool) -> Result<proto::Revocation, Status> {
    let request = proto::RevokeRequest {
        what: Some(what),
        reason: "laptop stolen".to_owned(),
        myself,
    };
    let answer = world.admin().await.revoke(request).await?;
    Ok(answer.into_inner())
}

fn before(moment: u64, workload: &str) -> What {
    What::IssuedBefore(proto::IssuedBefore {
        moment_unix: moment.try_into().unwrap(),
        workload: workload.to_owned(),
    })
}

fn workload(name: &str) -> What {
    What::Workload(name.to_owned())
}

async fn renew(world: &World, svid: &Svid) -> Result<Svid, Status> {
    let key = NewKey::generate().unwrap();
    let request = proto::RenewRequest {
        csr: key.csr_der(svid.id()).unwrap(),
        expired: None,
    };
    let answer = IdentityClient::new(world.as_peer(svid).await)
        .renew(request)
        .await?;
    Ok(key.into_svid(issued(answer.into_inner()).chain).unwrap())
}

/// What a sidecar that connects now is told.
async fn trust(world: &World) -> fender_identity::Trust {
    let svid = world.attested("shop/inventory").await;
    let told = world.subscribe(&svid, 0).await.next_trust().await.unwrap();
    told.try_into().unwrap()
}

fn peer(world: &World, svid: &Svid) -> fender_identity::PeerSvid {
    let role = fender_identity::verify::Role::Client;
    let bundles = Bundles::from(world.bundle());
    fender_identity::verify::verify(svid.chain(), role, &bundles, at(world.now()), &|_| Ok(()))
        .unwrap()
}

#[tokio::test]
async fn a_revoked_workload_neither_renews_nor_holds_a_stream_and_comes_back_by_attesting() {
    let world = World::new().await;
    let svid = world.attested("shop/orders").await;
    let other = world.attested("shop/inventory").await;
    let (mut stream, mut others) = (
        world.subscribe(&svid, 0).await,
        world.subscribe(&other, 0).await,
    );
    stream.next().await.unwrap();
    others.next().await.unwrap();

    let revocation = revoke(&world, workload("shop/orders")).await.unwrap();
    assert_eq!(revocation.certificates, 1);
    assert_eq!(refused(stream.next().await), Code::Revoked);
    assert_eq!(refused(renew(&world, &svid).await), Code::Revoked);
    let again = Sidecar::subscribe(world.as_peer(&svid).await, 0).await;
    assert_eq!(refused(again.map(drop)), Code::Revoked);

    let told: fender_identity::Trust = others.next_trust().await.unwrap().try_into().unwrap();
    assert!(told.denied.denies(&peer(&world, &svid)));
    assert!(!told.denied.denies(&peer(&world, &other)));
    assert!(renew(&world, &other).await.is_ok());

    // The clock has not moved since.
    let fresh = world.attested("shop/orders").await;
    assert!(!told.denied.denies(&peer(&world, &fresh)));
    assert!(renew(&world, &fresh).await.is_ok());
}

#[tokio::test]
async fn attack_a_revoked_certificate_that_has_expired_does_not_renew_by_its_key() {
    let world = World::new().await;
    let svid = world.attested("shop/orders").await;
    revoke(&world, What::Serial(svid.serial().to_string()))
        .await
        .unwrap();
    world.clock.advance(Duration::from_secs(2 * 3600));
    assert_eq!(
        refused(renew_expired(&world, &svid, ORDERS, |_| {}).await),
        Code::Revoked
    );
}

#[tokio::test]
async fn attack_what_had_expired_before_its_owner_was_revoked_does_not_renew_by_its_key() {
    let world = World::new().await;
    let svid = world.attested("shop/orders").await;
    let other = world.attested("shop/inventory").await;
    world.clock.advance(Duration::from_secs(2 * 3600));
    let revocation = revoke(&world, workload("shop/orders")).await.unwrap();
    assert_eq!(revocation.certificates, 0, "none lives");
    assert_eq!(
        refused(renew_expired(&world, &svid, ORDERS, |_| {}).await),
        Code::Revoked
    );
    assert!(
        renew_expired(&world, &other, INVENTORY, |_| {})
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_serial_denies_one_certificate_and_spares_its_owners_others() {
    let world = World::new().await;
    let (lost, kept) = (
        world.attested("shop/orders").await,
        world.attested("shop/orders").await,
    );
    revoke(&world, What::Serial(lost.serial().to_string()))
        .await
        .unwrap();
    let trust = trust(&world).await;
    assert!(trust.denied.denies(&peer(&world, &lost)));
    assert!(!trust.denied.denies(&peer(&world, &kept)));
    assert!(renew(&world, &kept).await.is_ok());
}

#[tokio::test]
async fn what_was_issued_before_a_moment_is_denied_and_what_came_after_is_not() {
    let world = World::new().await;
    let old = world.attested("shop/orders").await;
    world.clock.advance(Duration::from_secs(600));
    let moment = world.now();
    world.clock.advance(Duration::from_secs(600));
    let young = world.attested("shop/orders").await;

    let revocation = revoke(&world, before(moment, "")).await.unwrap();
    assert_eq!(revocation.certificates, 1);
    let trust = trust(&world).await;
    assert!(trust.denied.denies(&peer(&world, &old)));
    assert!(!trust.denied.denies(&peer(&world, &young)));
    assert_eq!(refused(renew(&world, &old).await), Code::Revoked);
    assert!(renew(&world, &young).await.is_ok());

    let to_come = revoke(&world, before(world.now() + 1, "")).await;
    assert_eq!(refused(to_come), Code::BadRequest);
}

#[tokio::test]
async fn a_second_revocation_in_the_same_second_reaches_what_the_first_one_spared() {
    let world = World::new().await;
    world.attested("shop/orders").await;
    revoke(&world, workload("shop/orders")).await.unwrap();
    let second = world.attested("shop/orders").await;
    revoke(&world, workload("shop/orders")).await.unwrap();
    assert!(trust(&world).await.denied.denies(&peer(&world, &second)));

    let token = world.token("shop/orders", 600).await.unwrap();
    let key = NewKey::generate().unwrap();
    let early = world.attest(&token.secret, &key, ORDERS).await;
    assert_eq!(refused(early), Code::Unavailable, "for a second");
    world.clock.advance(Duration::from_secs(1));
    let chain = world.attest(&token.secret, &key, ORDERS).await.unwrap();
    let third = key
        .into_svid(chain.into_iter().map(Into::into).collect())
        .unwrap();
    assert!(!trust(&world).await.denied.denies(&peer(&world, &third)));
}

#[tokio::test]
async fn revocations_are_listed_outlive_a_restart_and_leave_when_nothing_is_left_to_deny() {
    let world = World::new().await;
    let svid = world.attested("shop/orders").await;
    revoke(&world, What::Serial(svid.serial().to_string()))
        .await
        .unwrap();
    let world = world.restart().await;
    assert!(trust(&world).await.denied.denies(&peer(&world, &svid)));
    let listed = |world| async move {
        let request = proto::ListRevocationsRequest {};
        let admin: &World = world;
        let answer = admin.admin().await.list_revocations(request).await.unwrap();
        answer.into_inner().revocations
    };
    let all = listed(&world).await;
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].reason, "laptop stolen");
    assert!(all[0].revoked_by.ends_with("/fender/admin/first"));

    // The certificate's hour, the grace of a day, and an hour for clocks that are behind.
    world.advance(Duration::from_secs(26 * 3600 + 1)).await;
    assert!(listed(&world).await.is_empty());
}

#[tokio::test]
async fn an_administrator_is_revoked_by_name_and_not_by_a_slip() {
    let world = World::new().await;
    let own = || What::Administrator("first".to_owned());
    assert_eq!(refused(revoke(&world, own()).await), Code::BadRequest);
    let serial = What::Serial(world.admin_svid().serial().to_string());
    assert_eq!(refused(revoke(&world, serial).await), Code::BadRequest);
    assert!(
        revoke(&world, before(world.now(), "")).await.is_err(),
        "an administrator is no workload, and nobody else is there"
    );

    revoke_as(&world, own(), true).await.unwrap();
    let status = world
        .admin()
        .await
        .status(proto::StatusRequest::default())
        .await;
    assert_eq!(refused(status), Code::Revoked);
    crate::reissue_admin(
        &world.directory.path().join("data"),
        None,
        &crate::Sealing::DataDirectory,
        &crate::StorePlace::DataDir,
        None,
        world.clock.clone(),
    )
    .await
    .unwrap();
    assert_eq!(world.status().await.trust_domain, "acme.test");
}

#[tokio::test]
async fn nothing_is_revoked_that_is_nobodys_or_the_control_planes_own() {
    let world = World::new().await;
    let nobodys = What::Serial("7f".to_owned());
    assert_eq!(refused(revoke(&world, nobodys).await), Code::NotFound);
    let never = revoke(&world, workload("shop/orders")).await;
    assert_eq!(refused(never), Code::NotFound);
    let connection = world.anonymous().await;
    let serial = x509_parser::parse_x509_certificate(&connection.server_leaf)
        .unwrap()
        .1
        .raw_serial()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<String>();
    let control = revoke(&world, What::Serial(serial)).await;
    assert_eq!(refused(control), Code::BadRequest);
    let unsaid = proto::RevokeRequest {
        what: Some(workload("shop/orders")),
        reason: " ".to_owned(),
        myself: false,
    };
    let unsaid = world.admin().await.revoke(unsaid).await;
    assert_eq!(refused(unsaid), Code::BadRequest);
}

/// What a list of an authority says: its number and the certificates it names.
fn lists(trust: &fender_identity::Trust) -> Vec<(Vec<u8>, Vec<String>)> {
    let named = |list: &rustls::pki_types::CertificateRevocationListDer<'_>| {
        let (_, read) = x509_parser::parse_x509_crl(list).unwrap();
        let number = read.crl_number().unwrap().to_bytes_be();
        let serials = fender_identity::revoked_serials(list).unwrap();
        (number, serials.iter().map(ToString::to_string).collect())
    };
    trust.crls.iter().map(named).collect()
}

#[tokio::test]
async fn the_authoritys_list_names_what_was_revoked_and_lives_and_grows_its_number() {
    let world = World::new().await;
    let svid = world.attested("shop/orders").await;
    // Of the root and of the intermediate.
    let before = lists(&trust(&world).await);
    assert_eq!(before.len(), 2);
    assert!(before.iter().all(|(_, named)| named.is_empty()));
    revoke(&world, workload("shop/orders")).await.unwrap();
    let after = eventually(|| async {
        let lists = lists(&trust(&world).await);
        let named: Vec<_> = lists.iter().flat_map(|(_, named)| named.clone()).collect();
        (named == [svid.serial().to_string()]).then_some(lists)
    })
    .await;
    let grown = after
        .iter()
        .zip(&before)
        .filter(|(after, before)| after.0 > before.0);
    assert_eq!(grown.count(), 1, "{before:?} {after:?}");
    // What has ended needs no naming; half a list's life later there is another one.
    notice(&world, Duration::from_secs(4 * 24 * 3600)).await;
    eventually(|| async {
        let lists = lists(&trust(&world).await);
        lists
            .iter()
            .all(|(_, named)| named.is_empty())
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn attack_a_revoked_administrators_join_tokens_buy_nothing_and_what_they_made_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let administrators = "{ name: first, role: security }, { name: eve, role: security }";
    let documents = roles::governed(directory.path(), administrators);
    let world = World::with(directory, documents).await;
    let mut eve = world.administrator("eve").await;
    let request = proto::CreateTokenRequest {
        workload: "shop/orders".to_owned(),
        ttl_seconds: 600,
        ..proto::CreateTokenRequest::default()
    };
    let token = eve.create_token(request).await.unwrap().into_inner();
    let ada = "spiffe://acme.test/ns/people/sa/ada";
    let key = NewKey::generate().unwrap();
    let request = proto::IssueSvidRequest {
        csr: key.csr_der(&ada.parse().unwrap()).unwrap(),
        ttl_seconds: 3600,
    };
    let answer = eve.issue_svid(request).await.unwrap().into_inner();
    let ada = key.into_svid(issued(answer).chain).unwrap();

    let revoked = revoke(&world, What::Administrator("eve".to_owned()))
        .await
        .unwrap();
    let made: Vec<_> = revoked.made.into_iter().map(|made| made.serial).collect();
    assert_eq!(made, [ada.serial().to_string()]);
    let key = NewKey::generate().unwrap();
    let bought = world.attest(&token.secret, &key, ORDERS).await;
    assert_eq!(refused(bought), Code::Revoked);
    // Hers to end or to leave.
    revoke(&world, What::Serial(ada.serial().to_string()))
        .await
        .unwrap();
}

/// Spoils the keys that sign tokens, as whoever can write to the database can.
struct Spoil;

impl Command for Spoil {
    type Output = ();

    async fn run(&self, db: &mut Database) -> Result<(), StoreError> {
        query("UPDATE jwt_keys SET sealed_key = $1")
            .bind(vec![0_u8; 64])
            .execute(db)
            .await?;
        Ok(())
    }
}

#[tokio::test]
async fn attack_that_it_cannot_be_read_whom_to_believe_holds_up_no_denial() {
    let world = World::new().await;
    let svid = world.attested("shop/orders").await;
    let before = trust(&world).await;
    let drain = Drain::new();
    let store = Store::open(&world.path("data/control.db"), &drain)
        .await
        .unwrap();
    store.write(Spoil).await.unwrap();

    revoke(&world, workload("shop/orders")).await.unwrap();
    let told = trust(&world).await;
    assert!(told.denied.denies(&peer(&world, &svid)));
    assert_eq!((&told.bundles, &told.jwt), (&before.bundles, &before.jwt));
    drop(store);
    drain.close(Deadline::after(Duration::from_secs(60))).await;
}
