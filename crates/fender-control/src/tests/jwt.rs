//! DESIGN I6: tokens for workloads, and who gets none.

use fender_api::proto::control::v1::revoke_request::What;
use fender_identity::jwt::svid::{self, JwtSvid};
use fender_identity::jwt::{JwtBundles, Refusal};

use super::nodes::{edges, process};
use super::*;

fn wanted(audience: &[&str], ttl_seconds: u64) -> proto::SignJwtRequest {
    proto::SignJwtRequest {
        audience: audience.iter().map(|&name| name.to_owned()).collect(),
        ttl_seconds,
    }
}

async fn sign(
    channel: Channel,
    request: proto::SignJwtRequest,
) -> Result<proto::SignedJwt, Status> {
    let signed = IdentityClient::new(channel).sign_jwt(request).await?;
    Ok(signed.into_inner())
}

/// By which tokens are verified, as a sidecar that connects now is told.
async fn keys(world: &World, svid: &Svid) -> Arc<JwtBundles> {
    let told = world.subscribe(svid, 0).await.next_trust().await.unwrap();
    fender_identity::Trust::try_from(told).unwrap().jwt
}

fn read(token: &str, audience: &str, keys: &JwtBundles, now: u64) -> Result<JwtSvid, Refusal> {
    let of = |domain: &TrustDomain| keys.get(domain);
    svid::verify(token, audience, &of, at(now))
}

#[tokio::test]
async fn a_workload_gets_a_token_that_every_sidecar_can_verify() {
    let world = World::new().await;
    let orders = world.attested("shop/orders").await;
    let inventory = world.attested("shop/inventory").await;
    let channel = world.as_peer(&orders).await;
    let signed = sign(channel, wanted(&["ledger"], 0)).await.unwrap();
    assert_eq!(signed.expires_unix, i64::try_from(NOW + 300).unwrap());
    let keys = keys(&world, &inventory).await;
    let token = read(&signed.token, "ledger", &keys, NOW).unwrap();
    assert_eq!(token.id().as_str(), ORDERS);
    assert!(read(&signed.token, "mail", &keys, NOW).is_err());
    assert!(read(&signed.token, "ledger", &keys, NOW + 361).is_err());
}

#[tokio::test]
async fn the_keys_are_the_same_after_a_restart() {
    let world = World::new().await;
    let orders = world.attested("shop/orders").await;
    let channel = world.as_peer(&orders).await;
    let signed = sign(channel, wanted(&["ledger"], 0)).await.unwrap();
    let world = world.restart().await;
    let keys = keys(&world, &orders).await;
    assert!(read(&signed.token, "ledger", &keys, NOW).is_ok());
}

#[tokio::test]
async fn attack_whoever_is_no_workload_gets_no_token() {
    let world = World::new().await;
    let request = || wanted(&["ledger"], 0);
    let anonymous = sign(world.anonymous().await.channel, request()).await;
    assert_eq!(refused(anonymous), Code::NotAuthenticated);
    let admin = world.as_peer(&world.admin_svid()).await;
    assert_eq!(refused(sign(admin, request()).await), Code::Denied);
    let orders = world.attested("shop/orders").await;
    let channel = world.as_peer(&orders).await;
    for nobody in [wanted(&[], 0), wanted(&[""], 0), wanted(&["a"; 17], 0)] {
        let refusal = sign(channel.clone(), nobody).await;
        assert_eq!(refused(refusal), Code::BadRequest);
    }
}

#[tokio::test]
async fn attack_a_workload_that_was_revoked_or_is_described_no_more_gets_no_token() {
    let world = World::new().await;
    let (orders, inventory) = (
        world.attested("shop/orders").await,
        world.attested("shop/inventory").await,
    );
    // Both connections are open already.
    let (revoked, removed) = (
        world.as_peer(&orders).await,
        world.as_peer(&inventory).await,
    );
    sign(revoked.clone(), wanted(&["ledger"], 0)).await.unwrap();
    let request = proto::RevokeRequest {
        what: Some(What::Workload("shop/orders".to_owned())),
        reason: "stolen".to_owned(),
        myself: false,
    };
    world.admin().await.revoke(request).await.unwrap();
    let refusal = sign(revoked, wanted(&["ledger"], 0)).await;
    assert_eq!(refused(refusal), Code::Revoked);
    world.apply(MESH.to_owned()).await;
    let refusal = sign(removed, wanted(&["ledger"], 0)).await;
    assert_eq!(refused(refusal), Code::IdentityUnknown);
}

#[tokio::test]
async fn attack_a_workload_that_asks_without_end_is_stopped_and_no_other_is() {
    let world = World::new().await;
    let orders = world.as_peer(&world.attested("shop/orders").await).await;
    let inventory = world.as_peer(&world.attested("shop/inventory").await).await;
    let mut given = 0_u32;
    let refusal = loop {
        match sign(orders.clone(), wanted(&["ledger"], 0)).await {
            Ok(_) => given += 1,
            Err(refusal) => break refusal,
        }
        assert!(given < 100_000, "nobody stops it");
    };
    assert_eq!(Code::of(&refusal), Code::Busy);
    assert!(sign(inventory, wanted(&["ledger"], 0)).await.is_ok());
}

#[tokio::test]
async fn an_agent_gets_a_token_for_a_process_of_its_node_and_for_no_other() {
    let world = World::new().await;
    world.apply(edges()).await;
    let agent = world.agent("edge-1").await;
    let mut nodes = world.nodes(&agent).await;
    let mut ask = async |identity: &str, uid| {
        let request = proto::SignJwtForRequest {
            identity: identity.to_owned(),
            facts: Some(process(uid)),
            token: Some(wanted(&["ledger"], 0)),
        };
        nodes.sign_jwt_for(request).await
    };
    let signed = ask(ORDERS, 1000).await.unwrap().into_inner();
    world.apply(documents(world.directory.path(), "shop")).await;
    let keys = keys(&world, &world.attested("shop/orders").await).await;
    let token = read(&signed.token, "ledger", &keys, NOW).unwrap();
    assert_eq!(token.id().as_str(), ORDERS);
    world.apply(edges()).await;
    // Another node's workload, a process that proves nothing, the agent itself, and what is nobody's.
    assert_eq!(refused(ask(INVENTORY, 1000).await), Code::NotAttestable);
    assert_eq!(refused(ask(ORDERS, 1001).await), Code::NotAttestable);
    assert_eq!(
        refused(ask(agent.id().as_str(), 1000).await),
        Code::NotAttestable
    );
    assert_eq!(refused(ask("orders", 1000).await), Code::BadRequest);
    // A workload may not speak for others.
    world.apply(documents(world.directory.path(), "shop")).await;
    let orders = world.attested("shop/orders").await;
    let request = proto::SignJwtForRequest {
        identity: INVENTORY.to_owned(),
        facts: Some(process(1000)),
        token: Some(wanted(&["ledger"], 0)),
    };
    let refusal = world.nodes(&orders).await.sign_jwt_for(request).await;
    assert_eq!(refused(refusal), Code::Denied);
}

fn for_orders(ttl_seconds: u64) -> proto::SignJwtForRequest {
    proto::SignJwtForRequest {
        identity: ORDERS.to_owned(),
        facts: Some(process(1000)),
        token: Some(wanted(&["ledger"], ttl_seconds)),
    }
}

#[tokio::test]
async fn attack_a_node_hoards_no_tokens_that_outlive_its_revocation_by_an_hour() {
    let world = World::new().await;
    world.apply(edges()).await;
    let mut nodes = world.nodes(&world.agent("edge-1").await).await;
    for (asked, given) in [(3600, 300), (u64::MAX, 300), (0, 300), (60, 60)] {
        let signed = nodes.sign_jwt_for(for_orders(asked)).await.unwrap();
        let expires = signed.into_inner().expires_unix;
        assert_eq!(expires, i64::try_from(NOW + given).unwrap(), "{asked}");
    }
}

#[tokio::test]
async fn attack_a_node_that_asks_without_end_takes_no_token_from_the_same_workload_elsewhere() {
    let world = World::new().await;
    let both = "{ attest: [ { unix: { node: edge-1, uid: 1000 } }, { unix: { node: edge-2, uid: 1000 } } ] }";
    let once = "{ attest: [ { unix: { node: edge-1, uid: 1000 } } ] }";
    world.apply(edges().replace(once, both)).await;
    let mut flooding = world.nodes(&world.agent("edge-1").await).await;
    let mut other = world.nodes(&world.agent("edge-2").await).await;
    let mut given = 0_u32;
    let refusal = loop {
        match flooding.sign_jwt_for(for_orders(0)).await {
            Ok(_) => given += 1,
            Err(refusal) => break refusal,
        }
        assert!(given < 100_000, "nobody stops it");
    };
    assert_eq!(Code::of(&refusal), Code::Busy);
    other.sign_jwt_for(for_orders(0)).await.unwrap();
}
