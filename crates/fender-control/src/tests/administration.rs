//! Who may administer, and what: DESIGN §5 and §14.

use super::*;
use fender_api::proto::control::v1::report::Kind;
use fender_runtime::id::OpaqueId;

async fn issue(
    world: &World,
    id: &str,
    ttl_seconds: u64,
) -> Result<(NewKey, proto::SvidResponse), Status> {
    let key = NewKey::generate().unwrap();
    let csr = key.csr_der(&id.parse().unwrap()).unwrap();
    let request = proto::IssueSvidRequest { csr, ttl_seconds };
    let answer = world.admin().await.issue_svid(request).await?.into_inner();
    Ok((key, answer))
}

#[tokio::test]
async fn administration_is_refused_without_an_administrators_certificate() {
    let world = World::new().await;
    let anonymous = AdminClient::new(world.anonymous().await.channel);
    let workload = world.attested("shop/orders").await;
    let workload = AdminClient::new(world.as_peer(&workload).await);
    let (key, answer) = issue(&world, "spiffe://acme.test/ns/people/sa/ada", 3600)
        .await
        .unwrap();
    let person = key.into_svid(issued(answer).chain).unwrap();
    let person = AdminClient::new(world.as_peer(&person).await);

    let callers = [
        (anonymous, Code::NotAuthenticated),
        (workload, Code::Denied),
        (person, Code::Denied),
    ];
    for (mut client, code) in callers {
        let apply = proto::ApplyRequest {
            files: Vec::new(),
            dry_run: true,
            ..proto::ApplyRequest::default()
        };
        assert_eq!(refused(client.apply(apply).await), code);
        let token = proto::CreateTokenRequest {
            workload: "shop/orders".to_owned(),
            node: String::new(),
            ttl_seconds: 60,
        };
        assert_eq!(refused(client.create_token(token).await), code);
        assert_eq!(
            refused(client.status(proto::StatusRequest::default()).await),
            code
        );
        assert_eq!(
            refused(
                client
                    .explain(proto::ExplainRequest { id: "0".repeat(32) })
                    .await
            ),
            code
        );
        let svid = proto::IssueSvidRequest {
            csr: Vec::new(),
            ttl_seconds: 60,
        };
        assert_eq!(refused(client.issue_svid(svid).await), code);
    }
}

#[tokio::test]
async fn an_administrator_gets_certificates_for_people_and_for_nobody_else() {
    let world = World::new().await;
    let (key, answer) = issue(&world, "spiffe://acme.test/ns/people/sa/ada", 8 * 3600)
        .await
        .unwrap();
    let svid = key.into_svid(issued(answer).chain).unwrap();
    assert_eq!(svid.validity().not_after.as_secs(), NOW + 8 * 3600);

    for reserved in [
        ORDERS,
        "spiffe://acme.test/fender/control",
        "spiffe://other.test/ns/people/sa/ada",
        "spiffe://acme.test/people/ada",
    ] {
        assert_eq!(
            refused(issue(&world, reserved, 60).await.map(drop)),
            Code::IdentityReserved,
            "{reserved}"
        );
    }
    for ttl in [0, 24 * 3600 + 1, u64::MAX] {
        let result = issue(&world, "spiffe://acme.test/ns/people/sa/ada", ttl).await;
        assert_eq!(refused(result.map(drop)), Code::BadRequest);
    }
}

#[tokio::test]
async fn a_token_is_made_only_for_a_workload_there_is_and_for_a_time_there_is() {
    let world = World::new().await;
    assert_eq!(
        refused(world.token("shop/nobody", 60).await),
        Code::IdentityUnknown
    );
    assert_eq!(refused(world.token("nonsense", 60).await), Code::BadRequest);
    for ttl in [0, 7 * 24 * 3600 + 1, u64::MAX] {
        assert_eq!(
            refused(world.token("shop/orders", ttl).await),
            Code::BadRequest
        );
    }
}

#[tokio::test]
async fn a_decision_is_explained_by_its_id_and_believed_only_about_the_workload_that_tells_it() {
    let world = World::new().await;
    let orders = world.attested("shop/orders").await;
    let sidecar = world.subscribe(&orders, 0).await;
    let decision = |workload: &str| proto::DecisionRecord {
        id: OpaqueId::random().to_string(),
        time_unix_millis: i64::try_from(NOW * 1000).unwrap(),
        workload: workload.to_owned(),
        allowed: false,
        port: 8443,
        method: "GET".to_owned(),
        path: "/orders".to_owned(),
        decided_by: "no rule allowed it".to_owned(),
        ..proto::DecisionRecord::default()
    };
    let (forged, told) = (decision("shop/inventory"), decision("shop/orders"));
    sidecar.report(Kind::Decision(forged.clone())).await;
    sidecar.report(Kind::Decision(told.clone())).await;

    let found = eventually(|| async {
        let request = proto::ExplainRequest {
            id: told.id.clone(),
        };
        world.admin().await.explain(request).await.ok()
    })
    .await;
    assert_eq!(found.into_inner(), told);
    let explain = proto::ExplainRequest { id: forged.id };
    assert_eq!(
        refused(world.admin().await.explain(explain).await),
        Code::NotFound
    );
    let explain = proto::ExplainRequest {
        id: "' OR 1=1".to_owned(),
    };
    assert_eq!(
        refused(world.admin().await.explain(explain).await),
        Code::BadRequest
    );
}

#[tokio::test]
async fn the_status_tells_who_there_is_and_when_it_ends() {
    let world = World::new().await;
    world.attested("shop/orders").await;
    let status = world.status().await;
    assert_eq!(
        (
            status.trust_domain.as_str(),
            status.revision,
            status.development
        ),
        ("acme.test", 1, false)
    );
    assert_eq!(status.now_unix, i64::try_from(NOW).unwrap());
    let subjects: Vec<_> = status
        .authorities
        .iter()
        .map(|authority| authority.subject.as_str())
        .collect();
    assert_eq!(subjects, ["intermediate", "root"]);
    let orders = status
        .workloads
        .iter()
        .find(|workload| workload.identity == ORDERS)
        .unwrap();
    assert_eq!(
        (orders.certificates_issued, orders.last_not_after_unix),
        (1, i64::try_from(NOW + 3600).unwrap())
    );
}
