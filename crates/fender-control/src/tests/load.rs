//! A fleet that renews at once. How few transactions it costs depends on the disk: what is queued together is committed
//! together, which the store's own tests hold.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_issuances_at_once_are_each_their_own_and_all_on_record() {
    const CONNECTIONS: usize = 40;
    const EACH: usize = 50;
    let world = World::new().await;
    let csr = NewKey::generate()
        .unwrap()
        .csr_der(&ORDERS.parse().unwrap())
        .unwrap();
    let mut channels = Vec::new();
    for _ in 0..CONNECTIONS {
        // A replica each: what one of them may have is bounded.
        let svid = world.attested("shop/orders").await;
        channels.push(world.as_peer(&svid).await);
    }

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
    leaves.sort();
    leaves.dedup();
    assert_eq!(leaves.len(), CONNECTIONS * EACH, "each its own certificate");
    let status = world.status().await;
    let orders = status
        .workloads
        .iter()
        .find(|workload| workload.identity == ORDERS)
        .unwrap();
    assert_eq!(orders.certificates_issued, 2040, "all of them on record");
}
