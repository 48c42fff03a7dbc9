//! DESIGN I5: what was attested once is judged again at each renewal, so that a document which admits it no more ends it
//! (each rule with its attack).

use fender_api::proto::control::v1::nodes_client::NodesClient;

use super::renewal::renew_expired;
use super::*;

fn mesh(groups: &str, orders: &str) -> String {
    let node = |name: &str, groups: &str| {
        format!(
            "---\napiVersion: fender.dev/v1\nkind: Node\nmetadata: {{ name: {name} }}\n\
             spec: {{ groups: [ {groups} ], attest: [ {{ token: {{}} }} ] }}\n"
        )
    };
    [
        MESH.to_owned(),
        node("edge-1", groups),
        node("edge-2", "edge"),
        workload("orders", &format!("{{ attest: [ {orders} ] }}")),
        workload("inventory", "{ attest: [ { token: {} } ] }"),
    ]
    .concat()
}

const UNIX: &str = "{ unix: { nodeGroup: edge, uid: 1000 } }";
const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

fn docker(image: &str, label: &str) -> String {
    format!(
        "{{ docker: {{ node: edge-1, image: \"sha256:{image}\", labels: {{ service: {label} }} }} }}"
    )
}

fn process() -> proto::Facts {
    proto::Facts {
        process: Some(proto::ProcessFacts {
            uid: 1000,
            gid: 1000,
            path: "/usr/bin/orders".to_owned(),
            sha256: Vec::new(),
        }),
        container: None,
    }
}

fn container() -> proto::Facts {
    proto::Facts {
        process: None,
        container: Some(proto::ContainerFacts {
            id: "c0ffee".to_owned(),
            image: format!("sha256:{A}"),
            digests: vec![format!("r.example/orders@sha256:{B}")],
            labels: [
                ("service".to_owned(), "orders".to_owned()),
                ("password".to_owned(), "hunter2".to_owned()),
            ]
            .into(),
        }),
    }
}

impl World {
    async fn agent_of(&self, node: &str) -> Svid {
        let request = proto::CreateTokenRequest {
            workload: String::new(),
            node: node.to_owned(),
            ttl_seconds: 600,
        };
        let made = self.admin().await.create_token(request).await;
        let token = made.unwrap().into_inner();
        let key = NewKey::generate().unwrap();
        let chain = self.attest(&token.secret, &key, &token.identity).await;
        let chain = chain.unwrap().into_iter().map(Into::into).collect();
        key.into_svid(chain).unwrap()
    }

    /// `orders`, by the word of an agent.
    async fn vouched(&self, agent: &Svid, facts: proto::Facts) -> Result<Svid, Status> {
        let key = NewKey::generate().unwrap();
        let request = proto::IssueForRequest {
            csr: key.csr_der(&ORDERS.parse().unwrap()).unwrap(),
            facts: Some(facts),
        };
        let answer = NodesClient::new(self.as_peer(agent).await)
            .issue_for(request)
            .await?;
        Ok(key.into_svid(issued(answer.into_inner()).chain).unwrap())
    }

    async fn row(&self, svid: &Svid, column: &str) -> Option<String> {
        use sqlx::{ConnectOptions as _, Connection as _, Row as _};
        let file = self.path("data/control.db");
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file);
        let mut db = options.connect().await.unwrap();
        let query =
            "SELECT attested, lineage, through, node, evidence FROM certificates WHERE serial = ?1";
        let row = sqlx::query(query).bind(svid.serial().to_string());
        let found = row.fetch_one(&mut db).await.unwrap().get(column);
        db.close().await.unwrap();
        found
    }
}

#[tokio::test]
async fn what_was_attested_goes_along_with_every_renewal_of_its_line() {
    let world = World::new().await;
    world.apply(mesh("edge", UNIX)).await;
    let agent = world.agent_of("edge-1").await;
    let first = world.vouched(&agent, process()).await.unwrap();
    let second = world.next(&first).await.unwrap();
    let third = world.next(&second).await.unwrap();
    let attested = world.row(&first, "attested").await.unwrap();
    assert!(
        attested.contains("edge-1") && attested.contains("1000"),
        "{attested}"
    );
    for later in [&second, &third] {
        assert_eq!(world.row(later, "attested").await.unwrap(), attested);
        assert_eq!(world.row(later, "node").await.unwrap(), "edge-1");
        let lineage = world.row(later, "lineage").await.unwrap();
        assert_eq!(lineage, first.serial().to_string());
    }
    assert_eq!(
        world.row(&first, "through").await.unwrap(),
        agent.serial().to_string()
    );
    assert_eq!(
        world.row(&third, "through").await.unwrap(),
        second.serial().to_string()
    );
}

#[tokio::test]
async fn attack_whoever_was_attested_once_does_not_renew_when_no_entry_admits_it_any_more() {
    let world = World::new().await;
    world.apply(mesh("edge", UNIX)).await;
    let agent = world.agent_of("edge-1").await;
    let first = world.vouched(&agent, process()).await.unwrap();
    let svid = world.next(&first).await.unwrap();
    for (groups, orders, why) in [
        (
            "edge",
            "{ unix: { nodeGroup: edge, uid: 1001 } }",
            "another user",
        ),
        (
            "edge",
            "{ unix: { nodeGroup: edge, uid: 1000, path: /usr/bin/web } }",
            "another program",
        ),
        ("edge", "{ token: {} }", "another way"),
        (
            "edge",
            "{ unix: { node: edge-2, uid: 1000 } }",
            "another node",
        ),
        ("core", UNIX, "the node left its group"),
    ] {
        world.apply(mesh(groups, orders)).await;
        assert_eq!(
            refused(world.next(&svid).await),
            Code::NotAttestable,
            "{why}"
        );
        assert_eq!(
            refused(world.next(&first).await),
            Code::NotAttestable,
            "{why}"
        );
    }
    // The node's document is gone, and the workload is still there.
    let all = mesh("edge", "{ unix: { nodeGroup: edge, uid: 1000 } }");
    let without = all.replace("metadata: { name: edge-1 }", "metadata: { name: edge-9 }");
    assert_ne!(all, without);
    world.apply(without).await;
    assert_eq!(refused(world.next(&svid).await), Code::NotAttestable);
    // Another entry may admit what was attested by the first.
    let both = "{ token: {} }, { unix: { node: edge-1, uid: 1000, path: /usr/bin/orders } }";
    world.apply(mesh("", both)).await;
    world.next(&svid).await.unwrap();
}

#[tokio::test]
async fn attack_an_expired_certificate_is_no_way_around_the_documents() {
    let world = World::new().await;
    let svid = world.attested("shop/orders").await;
    let locked = [MESH.to_owned(), workload("orders", "{}")].concat();
    world.apply(locked).await;
    world.clock.advance(Duration::from_secs(2 * 3600));
    let answer = renew_expired(&world, &svid, ORDERS, |_| {}).await;
    assert_eq!(refused(answer), Code::NotAttestable);
}

#[tokio::test]
async fn attack_a_container_does_not_renew_when_its_image_or_labels_are_not_asked_for_any_more() {
    let world = World::new().await;
    world.apply(mesh("", &docker(A, "orders"))).await;
    let agent = world.agent_of("edge-1").await;
    let svid = world.vouched(&agent, container()).await.unwrap();
    world.next(&svid).await.unwrap();
    for other in [docker(B, "orders"), docker(A, "web")] {
        world.apply(mesh("", &other)).await;
        assert_eq!(
            refused(world.next(&svid).await),
            Code::NotAttestable,
            "{other}"
        );
    }
    // What a selector did not name when it was attested is not known now, and its agent must be asked.
    let narrower = docker(A, "orders").replace("orders }", "orders, password: hunter2 }");
    world.apply(mesh("", &narrower)).await;
    assert_eq!(refused(world.next(&svid).await), Code::NotAttestable);
    let anew = world.vouched(&agent, container()).await.unwrap();
    world.next(&anew).await.unwrap();
}

#[tokio::test]
async fn attack_labels_that_no_document_names_are_not_on_record() {
    let world = World::new().await;
    world.apply(mesh("", &docker(A, "orders"))).await;
    let agent = world.agent_of("edge-1").await;
    let svid = world.vouched(&agent, container()).await.unwrap();
    for column in ["attested", "evidence"] {
        let text = world.row(&svid, column).await.unwrap();
        assert!(
            !text.contains("hunter2") && !text.contains("password"),
            "{text}"
        );
    }
    assert!(
        world
            .row(&svid, "attested")
            .await
            .unwrap()
            .contains("service")
    );
}

#[tokio::test]
async fn attack_a_join_token_that_was_good_once_is_no_right_for_ever() {
    let world = World::new().await;
    let svid = world.attested("shop/orders").await;
    let svid = world.next(&svid).await.unwrap();
    world.apply(mesh("edge", UNIX)).await;
    assert_eq!(refused(world.next(&svid).await), Code::NotAttestable);
    // An agent by its token as well.
    let agent = world.agent_of("edge-1").await;
    world.next(&agent).await.unwrap();
    let closed = mesh("edge", UNIX).replace(
        "groups: [ edge ], attest: [ { token: {} } ]",
        "groups: [ edge ]",
    );
    world.apply(closed).await;
    assert_eq!(refused(world.next(&agent).await), Code::NotAttestable);
}

#[tokio::test]
async fn attack_a_revoked_node_keeps_nothing_of_what_its_agent_obtained() {
    let world = World::new().await;
    world.apply(mesh("edge", UNIX)).await;
    let (stolen, other) = (
        world.agent_of("edge-1").await,
        world.agent_of("edge-2").await,
    );
    let there = world.vouched(&stolen, process()).await.unwrap();
    let renewed = world.next(&there).await.unwrap();
    let elsewhere = world.vouched(&other, process()).await.unwrap();
    let mut stream = world.subscribe(&renewed, 0).await;
    stream.next().await.unwrap();
    let waiting = {
        let request = proto::CreateTokenRequest {
            workload: String::new(),
            node: "edge-1".to_owned(),
            ttl_seconds: 600,
        };
        let made = world.admin().await.create_token(request).await;
        made.unwrap().into_inner()
    };

    let request = proto::RevokeRequest {
        what: Some(proto::revoke_request::What::Node("edge-1".to_owned())),
        reason: "host broken into".to_owned(),
        myself: false,
    };
    let revoked = world.admin().await.revoke(request).await;
    assert_eq!(revoked.unwrap().into_inner().certificates, 3);
    assert_eq!(refused(stream.next().await), Code::Revoked);
    for svid in [&there, &renewed, &stolen] {
        assert_eq!(refused(world.next(svid).await), Code::Revoked);
    }
    assert_eq!(
        refused(world.vouched(&stolen, process()).await),
        Code::Revoked
    );
    let key = NewKey::generate().unwrap();
    let late = world.attest(&waiting.secret, &key, &waiting.identity).await;
    assert_eq!(
        refused(late),
        Code::Revoked,
        "a token made before does not bring it back"
    );
    world.next(&elsewhere).await.unwrap();

    // The host is set up anew, in the same minute.
    let clean = world.agent_of("edge-1").await;
    let svid = world.vouched(&clean, process()).await.unwrap();
    world.next(&svid).await.unwrap();
    let told = world.subscribe(&elsewhere, 0).await.next_trust().await;
    let told: fender_identity::Trust = told.unwrap().try_into().unwrap();
    let peer = |svid: &Svid| {
        let role = fender_identity::verify::Role::Client;
        let bundles = Bundles::from(world.bundle());
        fender_identity::verify::verify(svid.chain(), role, &bundles, at(world.now()), &|_| Ok(()))
            .unwrap()
    };
    for denied in [&there, &renewed, &stolen] {
        assert!(told.denied.denies(&peer(denied)));
    }
    for good in [&elsewhere, &clean, &svid] {
        assert!(!told.denied.denies(&peer(good)));
    }
}

#[tokio::test]
async fn join_tokens_are_listed_without_their_secret_and_taken_back() {
    let world = World::new().await;
    let (one, two) = (
        world.token("shop/orders", 600).await.unwrap(),
        world.token("shop/inventory", 600).await.unwrap(),
    );
    let list = async || {
        let request = proto::ListTokensRequest::default();
        let answer = world.admin().await.list_tokens(request).await.unwrap();
        answer.into_inner().tokens
    };
    let listed = list().await;
    assert_eq!(listed.len(), 2);
    let hash = |secret: &[u8]| {
        let hash = crate::ca::sha256(secret);
        hash.iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let orders = listed
        .iter()
        .find(|token| token.identity == ORDERS)
        .unwrap();
    assert_eq!(orders.id, hash(&one.secret)[..16]);
    assert!(orders.created_by.ends_with("/fender/admin/first"));

    let revoke = async |which| {
        let request = proto::RevokeTokensRequest { which: Some(which) };
        world.admin().await.revoke_tokens(request).await
    };
    use proto::revoke_tokens_request::Which;
    let revoked = revoke(Which::Id(orders.id.clone())).await.unwrap();
    assert_eq!(revoked.into_inner().revoked, 1);
    let key = NewKey::generate().unwrap();
    let late = world.attest(&one.secret, &key, ORDERS).await;
    assert_eq!(refused(late), Code::Revoked);
    assert_eq!(
        refused(revoke(Which::Id(orders.id.clone())).await),
        Code::NotFound
    );
    assert_eq!(
        refused(revoke(Which::Id("nonsense".to_owned())).await),
        Code::BadRequest
    );
    assert_eq!(list().await.len(), 1);

    // With the workload go its tokens.
    let request = proto::RevokeRequest {
        what: Some(proto::revoke_request::What::Workload(
            "shop/inventory".to_owned(),
        )),
        reason: "left".to_owned(),
        myself: false,
    };
    world.admin().await.revoke(request).await.unwrap();
    let late = world.attest(&two.secret, &key, INVENTORY).await;
    assert_eq!(refused(late), Code::Revoked);
    assert!(list().await.is_empty());
}
