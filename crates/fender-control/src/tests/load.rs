//! Issuance is committed in batches: a fleet that renews at once costs few transactions.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_issuances_at_once_take_far_fewer_transactions() {
    const CONNECTIONS: usize = 40;
    const EACH: usize = 50;
    let world = World::new().await;
    let svid = world.attested("shop/orders").await;
    let csr = NewKey::generate()
        .unwrap()
        .csr_der(&ORDERS.parse().unwrap())
        .unwrap();
    let mut channels = Vec::new();
    for _ in 0..CONNECTIONS {
        channels.push(world.as_peer(&svid).await);
    }

    let before = world.running.commits();
    let mut renewals = tokio::task::JoinSet::new();
    for channel in channels {
        for _ in 0..EACH {
            let request = proto::RenewRequest {
                csr: csr.clone(),
                expired: None,
            };
            let mut client = IdentityClient::new(channel.clone());
            renewals.spawn(async move { client.renew(request).await.unwrap().into_inner().chain });
        }
    }
    let mut leaves: Vec<_> = renewals
        .join_all()
        .await
        .into_iter()
        .map(|chain| chain[0].clone())
        .collect();
    let commits = world.running.commits() - before;
    leaves.sort();
    leaves.dedup();
    assert_eq!(leaves.len(), CONNECTIONS * EACH, "each its own certificate");
    assert!(
        commits * 4 < 2000,
        "{commits} transactions for 2000 certificates"
    );

    let status = world.status().await;
    let orders = status
        .workloads
        .iter()
        .find(|workload| workload.identity == ORDERS)
        .unwrap();
    assert_eq!(orders.certificates_issued, 2001, "all of them on record");
}
