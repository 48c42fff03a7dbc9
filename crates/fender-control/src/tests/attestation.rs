//! DESIGN I2, I5 and §14 "who gets an identity", each rule with its attack.

use fender_identity::verify::{Role, verify};
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::*;

fn san(name: &str) -> SanType {
    SanType::URI(name.try_into().unwrap())
}

fn crafted(change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = CertificateParams::default();
    change(&mut params);
    params
        .serialize_request(&KeyPair::generate().unwrap())
        .unwrap()
        .der()
        .to_vec()
}

#[tokio::test]
async fn a_join_token_buys_a_certificate_that_verifies_and_says_what_the_document_says() {
    let world = World::new().await;
    let token = world.token("shop/orders", 600).await.unwrap();
    assert_eq!(
        (token.secret.len(), token.expires_unix),
        (32, i64::try_from(NOW + 600).unwrap())
    );
    assert_eq!(
        token.ca_pins,
        [world.running.ca_pins[0].as_bytes().to_vec()]
    );

    let key = NewKey::generate().unwrap();
    let csr = key.csr_der(&ORDERS.parse().unwrap()).unwrap();
    let channel = world.anonymous().await.channel;
    let answer = issued(attest(&channel, &token.secret, csr).await.unwrap());
    assert_eq!(answer.renewal_grace, Duration::from_secs(24 * 3600));
    assert_eq!(
        answer.chain.len(),
        2,
        "the leaf and its issuer, not the root"
    );

    let svid = key.into_svid(answer.chain).unwrap();
    for role in [Role::Client, Role::Server] {
        let peer = verify(
            svid.chain(),
            role,
            &answer.bundles,
            world.clock.now(),
            &|_| Ok(()),
        )
        .unwrap();
        assert_eq!(peer.id().as_str(), ORDERS);
    }
    assert_eq!(
        svid.validity().not_after.as_secs(),
        NOW + 3600,
        "one hour by default"
    );

    let leaf = svid.chain()[0].to_vec();
    let (_, leaf) = X509Certificate::from_der(&leaf).unwrap();
    let names = format!(
        "{:?}",
        leaf.subject_alternative_name()
            .unwrap()
            .unwrap()
            .value
            .general_names
    );
    assert!(
        names.contains("orders.shop.internal") && names.contains(ORDERS),
        "{names}"
    );
    assert_eq!(leaf.subject().to_string(), "O=shop, CN=orders");
    assert!(leaf.raw_serial().len() >= 16, "at least 64 random bits");
}

#[tokio::test]
async fn a_join_token_is_spent_by_its_first_use() {
    let world = World::new().await;
    let token = world.token("shop/orders", 600).await.unwrap();
    world
        .attest(&token.secret, &NewKey::generate().unwrap(), ORDERS)
        .await
        .unwrap();
    let again = world
        .attest(&token.secret, &NewKey::generate().unwrap(), ORDERS)
        .await;
    assert_eq!(refused(again), Code::TokenSpent);
}

#[tokio::test]
async fn asking_again_with_the_same_key_gives_the_same_certificate() {
    let world = World::new().await;
    let token = world.token("shop/orders", 600).await.unwrap();
    let key = NewKey::generate().unwrap();
    let first = world.attest(&token.secret, &key, ORDERS).await.unwrap();
    // The token's time is over by now; the certificate it bought is not.
    world.clock.advance(Duration::from_secs(700));
    assert_eq!(
        world.attest(&token.secret, &key, ORDERS).await.unwrap(),
        first
    );
    world.clock.advance(Duration::from_secs(3600));
    assert_eq!(
        refused(world.attest(&token.secret, &key, ORDERS).await),
        Code::TokenSpent
    );
}

#[tokio::test]
async fn a_join_token_expires() {
    let world = World::new().await;
    let token = world.token("shop/orders", 600).await.unwrap();
    world.clock.advance(Duration::from_secs(600));
    let late = world
        .attest(&token.secret, &NewKey::generate().unwrap(), ORDERS)
        .await;
    assert_eq!(refused(late), Code::TokenExpired);
}

#[tokio::test]
async fn a_stolen_join_token_buys_no_other_identity() {
    let world = World::new().await;
    let token = world.token("shop/orders", 600).await.unwrap();
    for other in [
        INVENTORY,
        "spiffe://acme.test/ns/shop/sa/nobody",
        "spiffe://other.test/ns/shop/sa/orders",
    ] {
        let result = world
            .attest(&token.secret, &NewKey::generate().unwrap(), other)
            .await;
        assert_eq!(refused(result), Code::TokenWrongIdentity, "{other}");
    }
    world
        .attest(&token.secret, &NewKey::generate().unwrap(), ORDERS)
        .await
        .expect("and is not spent by trying");
}

#[tokio::test]
async fn a_guessed_join_token_is_unknown_whatever_it_asks_for() {
    let world = World::new().await;
    for secret in [vec![7; 32], Vec::new(), vec![7; 31], vec![7; 4096]] {
        for id in [ORDERS, "spiffe://acme.test/ns/shop/sa/nobody"] {
            let result = world
                .attest(&secret, &NewKey::generate().unwrap(), id)
                .await;
            assert_eq!(refused(result), Code::TokenUnknown);
        }
    }
}

#[tokio::test]
async fn guessing_join_tokens_is_slowed_down_and_keeps_no_neighbour_out() {
    let world = World::new().await;
    let token = world.token("shop/orders", 600).await.unwrap();
    let channel = world.anonymous().await.channel;
    let csr = NewKey::generate()
        .unwrap()
        .csr_der(&ORDERS.parse().unwrap())
        .unwrap();
    for _ in 0..crate::attest::STRANGER_FAILURES {
        assert_eq!(
            refused(attest(&channel, &[1; 32], csr.clone()).await),
            Code::TokenUnknown
        );
    }
    assert_eq!(
        refused(attest(&channel, &[2; 32], csr.clone()).await),
        Code::Busy
    );
    attest(&channel, &token.secret, csr).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_who_spend_one_token_at_the_same_moment_exactly_one_wins() {
    let world = World::new().await;
    let token = world.token("shop/orders", 600).await.unwrap();
    let channel = world.anonymous().await.channel;
    let mut spenders = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (channel, secret) = (channel.clone(), token.secret.clone());
        let csr = NewKey::generate()
            .unwrap()
            .csr_der(&ORDERS.parse().unwrap())
            .unwrap();
        spenders.spawn(async move { attest(&channel, &secret, csr).await });
    }
    let results = spenders.join_all().await;
    let (won, lost): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1);
    assert!(
        lost.into_iter()
            .all(|result| refused(result) == Code::TokenSpent)
    );
}

#[tokio::test]
async fn a_workload_whose_document_does_not_say_so_cannot_be_attested_to() {
    let world = World::new().await;
    assert_eq!(
        refused(world.token("shop/locked", 600).await),
        Code::NotAttestable
    );

    // The document is tightened while a token is out.
    let token = world.token("shop/orders", 600).await.unwrap();
    world
        .apply([MESH.to_owned(), workload("orders", "{}")].concat())
        .await;
    let key = NewKey::generate().unwrap();
    assert_eq!(
        refused(world.attest(&token.secret, &key, ORDERS).await),
        Code::NotAttestable
    );
    world.apply(MESH.to_owned()).await;
    assert_eq!(
        refused(world.attest(&token.secret, &key, ORDERS).await),
        Code::IdentityUnknown
    );
}

#[tokio::test]
async fn a_request_that_asks_for_more_than_one_identity_is_refused() {
    let world = World::new().await;
    let token = world.token("shop/orders", 600).await.unwrap();
    let channel = world.anonymous().await.channel;
    let crafted = [
        crafted(|params| params.subject_alt_names = vec![san(ORDERS), san(INVENTORY)]),
        crafted(|_| {}),
        crafted(|params| {
            params.subject_alt_names = vec![SanType::DnsName("orders".try_into().unwrap())]
        }),
        b"not a request".to_vec(),
        vec![0x30; 60_000],
    ];
    for csr in crafted {
        assert_eq!(
            refused(attest(&channel, &token.secret, csr).await),
            Code::CsrInvalid
        );
    }
}

#[tokio::test]
async fn a_request_with_a_signature_by_another_key_is_refused() {
    let world = World::new().await;
    let token = world.token("shop/orders", 600).await.unwrap();
    let mut csr = NewKey::generate()
        .unwrap()
        .csr_der(&ORDERS.parse().unwrap())
        .unwrap();
    let last = csr.len() - 1;
    csr[last] ^= 1;
    let channel = world.anonymous().await.channel;
    assert_eq!(
        refused(attest(&channel, &token.secret, csr).await),
        Code::CsrInvalid
    );
}

#[tokio::test]
async fn names_and_rights_in_a_request_never_reach_the_certificate() {
    let world = World::new().await;
    let token = world.token("shop/orders", 600).await.unwrap();
    let greedy = crafted(|params| {
        params.subject_alt_names = vec![
            san(ORDERS),
            SanType::DnsName("bank.example".try_into().unwrap()),
        ];
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "root");
    });
    let channel = world.anonymous().await.channel;
    // Refused or ignored: both keep the promise.
    if let Ok(answer) = attest(&channel, &token.secret, greedy).await {
        let (_, leaf) = X509Certificate::from_der(&answer.chain[0]).unwrap();
        let text = format!("{:?} {}", leaf.subject_alternative_name(), leaf.subject());
        assert!(
            !text.contains("bank.example") && !text.contains("root"),
            "{text}"
        );
        assert!(!leaf.key_usage().unwrap().unwrap().value.key_cert_sign() && !leaf.is_ca());
    }
}

#[tokio::test]
async fn a_message_too_large_is_refused_unread() {
    let world = World::new().await;
    let channel = world.anonymous().await.channel;
    let result = attest(&channel, &[0; 32], vec![0; 1024 * 1024]).await;
    assert_eq!(result.unwrap_err().code(), tonic::Code::OutOfRange);
}

#[tokio::test]
async fn the_server_is_the_control_plane_of_its_trust_domain_and_carries_its_names() {
    let world = World::new().await;
    let leaf: CertificateDer<'_> = world.anonymous().await.server_leaf;
    let (_, leaf) = X509Certificate::from_der(&leaf).unwrap();
    let names = format!(
        "{:?}",
        leaf.subject_alternative_name()
            .unwrap()
            .unwrap()
            .value
            .general_names
    );
    assert!(
        names.contains("spiffe://acme.test/fender/control") && names.contains("control.internal")
    );
}
