//! DESIGN I3: authorities succeed each other while clients are connected, at an administrator's word as well.

use super::upstream::notice;
use super::*;

async fn rotate(world: &World, role: proto::AuthorityRole) -> Result<proto::Authority, Status> {
    let request = proto::RotateAuthorityRequest { role: role.into() };
    let mut admin = world.admin().await;
    let made = admin.rotate_authority(request).await?;
    Ok(made.into_inner())
}

fn standing(status: &proto::StatusResponse, serial: &str) -> String {
    let mut found = status.authorities.iter();
    let found = found.find(|authority| authority.serial == serial);
    found
        .map(|found| found.standing.clone())
        .unwrap_or_default()
}

#[tokio::test]
async fn an_administrator_has_the_next_intermediate_made_and_the_log_says_so() {
    let world = World::new().await;
    let svid = world.attested("shop/orders").await;
    world.clock.advance(Duration::from_secs(1));
    let made = rotate(&world, proto::AuthorityRole::Intermediate)
        .await
        .unwrap();
    assert_eq!(made.standing, "signing");
    let next = world.attested("shop/orders").await;
    assert_ne!(next.chain()[1], svid.chain()[1]);
    // What the one before signed is as good as it was.
    world.subscribe(&svid, 0).await.next().await.unwrap();
    assert!(matches!(
        world.running.verify_audit_log().await.unwrap(),
        crate::Chain::Whole { .. }
    ));
}

#[tokio::test]
async fn a_root_made_for_an_administrator_is_published_first_and_cannot_be_made_twice() {
    let world = World::new().await;
    let made = rotate(&world, proto::AuthorityRole::Root).await.unwrap();
    assert_eq!(made.standing, "published");
    assert_eq!(
        made.signs_from_unix,
        i64::try_from(NOW + 7 * 24 * 3600).unwrap()
    );
    assert_eq!(
        refused(rotate(&world, proto::AuthorityRole::Root).await),
        Code::BadRequest
    );
    // Whoever comes from now on knows both.
    let token = world.token("shop/orders", 600).await.unwrap();
    assert_eq!(token.ca_pins.len(), 2);
    world
        .attest(&token.secret, &NewKey::generate().unwrap(), ORDERS)
        .await
        .unwrap();

    notice(&world, Duration::from_secs(8 * 24 * 3600)).await;
    eventually(|| async {
        (standing(&world.status().await, &made.serial) == "signing").then_some(())
    })
    .await;
}

#[tokio::test]
async fn nobody_but_an_administrator_rotates() {
    let world = World::new().await;
    let svid = world.attested("shop/orders").await;
    let request = proto::RotateAuthorityRequest {
        role: proto::AuthorityRole::Root.into(),
    };
    let result = AdminClient::new(world.as_peer(&svid).await)
        .rotate_authority(request)
        .await;
    assert_eq!(refused(result), Code::Denied);
    let unsaid = rotate(&world, proto::AuthorityRole::Unspecified).await;
    assert_eq!(refused(unsaid), Code::BadRequest);
}
