//! What agents may ask, and for whom; each rule with its attack.

use fender_api::proto::control::v1::nodes_client::NodesClient;

use super::*;

const EDGE: &str = "spiffe://acme.test/fender/agent/edge-1";

fn node(name: &str) -> String {
    format!(
        "---\napiVersion: fender.dev/v1\nkind: Node\nmetadata: {{ name: {name} }}\nspec: {{ attest: [ {{ token: {{}} }} ] }}\n"
    )
}

pub(super) fn edges() -> String {
    [
        MESH.to_owned(),
        node("edge-1"),
        node("edge-2"),
        workload(
            "orders",
            "{ attest: [ { unix: { node: edge-1, uid: 1000 } } ] }",
        ),
        workload(
            "inventory",
            "{ attest: [ { unix: { node: edge-2, uid: 1000 } } ] }",
        ),
    ]
    .concat()
}

pub(super) fn process(uid: u32) -> proto::Facts {
    proto::Facts {
        process: Some(proto::ProcessFacts {
            uid,
            gid: 1000,
            path: "/usr/bin/app".to_owned(),
            sha256: Vec::new(),
        }),
        container: None,
    }
}

impl World {
    pub(super) async fn agent(&self, node: &str) -> Svid {
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

    pub(super) async fn nodes(&self, svid: &Svid) -> NodesClient<Channel> {
        NodesClient::new(self.as_peer(svid).await)
    }
}

fn asking(key: &NewKey, id: &str, facts: proto::Facts) -> proto::IssueForRequest {
    proto::IssueForRequest {
        csr: key.csr_der(&id.parse().unwrap()).unwrap(),
        facts: Some(facts),
    }
}

#[tokio::test]
async fn an_agent_gets_for_a_process_what_the_documents_place_on_its_node() {
    let world = World::new().await;
    world.apply(edges()).await;
    let agent = world.agent("edge-1").await;
    assert_eq!(agent.id().as_str(), EDGE);
    let mut nodes = world.nodes(&agent).await;
    let entitled = nodes.entitle(process(1000)).await.unwrap().into_inner();
    assert_eq!(entitled.identities, [ORDERS]);

    let key = NewKey::generate().unwrap();
    let answer = nodes.issue_for(asking(&key, ORDERS, process(1000))).await;
    let answer = issued(answer.unwrap().into_inner());
    let svid = key.into_svid(answer.chain).unwrap();
    assert_eq!(svid.id().as_str(), ORDERS);
    // What was attested is on record; the workload goes on by itself.
    world.subscribe(&svid, 0).await;

    // The documents change, and so does the answer.
    world
        .apply([MESH.to_owned(), node("edge-1")].concat())
        .await;
    assert_eq!(
        refused(nodes.entitle(process(1000)).await),
        Code::NotAttestable
    );
    world.apply(MESH.to_owned()).await;
    assert_eq!(
        refused(nodes.entitle(process(1000)).await),
        Code::IdentityUnknown
    );
}

#[tokio::test]
async fn an_agent_renews_its_own_certificate_until_its_node_is_gone() {
    let world = World::new().await;
    world.apply(edges()).await;
    let agent = world.agent("edge-1").await;
    let renew = async || {
        let key = NewKey::generate().unwrap();
        let request = proto::RenewRequest {
            csr: key.csr_der(agent.id()).unwrap(),
            expired: None,
        };
        IdentityClient::new(world.as_peer(&agent).await)
            .renew(request)
            .await
    };
    renew().await.unwrap();
    world.apply(MESH.to_owned()).await;
    assert_eq!(refused(renew().await), Code::IdentityUnknown);
}

#[tokio::test]
async fn a_process_that_matches_nothing_gets_nothing_and_it_is_told_which_selector_failed_on_what()
{
    let world = World::new().await;
    world.apply(edges()).await;
    let mut nodes = world.nodes(&world.agent("edge-1").await).await;
    let status = nodes.entitle(process(1001)).await.unwrap_err();
    assert_eq!(Code::of(&status), Code::NotAttestable);
    assert_eq!(
        status.message(),
        "shop/orders: `unix`: its uid is 1001, not 1000"
    );
}

#[tokio::test]
async fn attack_a_compromised_agent_gets_no_identity_of_another_node() {
    let world = World::new().await;
    world.apply(edges()).await;
    let mut nodes = world.nodes(&world.agent("edge-1").await).await;
    let key = NewKey::generate().unwrap();
    // Whatever facts it invents: the node is in its certificate.
    for facts in [process(1000), process(0), proto::Facts::default()] {
        let answer = nodes.issue_for(asking(&key, INVENTORY, facts)).await;
        assert_eq!(refused(answer), Code::NotAttestable);
    }
    // Nor one that is nobody's on any node.
    for other in [
        "spiffe://acme.test/fender/control",
        "spiffe://acme.test/fender/admin/first",
        "spiffe://acme.test/fender/agent/edge-2",
        EDGE,
        "spiffe://other.test/ns/shop/sa/orders",
    ] {
        let answer = nodes.issue_for(asking(&key, other, process(1000))).await;
        assert_eq!(refused(answer), Code::NotAttestable, "{other}");
    }
}

#[tokio::test]
async fn attack_nobody_but_an_agent_speaks_for_others() {
    let world = World::new().await;
    let documents = edges().replace(
        "node: edge-2, uid: 1000 } }",
        "node: edge-2, uid: 1000 } }, { token: {} }",
    );
    world.apply(documents).await;
    let leaf = world.attested("shop/inventory").await;
    for svid in [leaf, world.admin_svid()] {
        let mut nodes = world.nodes(&svid).await;
        assert_eq!(refused(nodes.entitle(process(1000)).await), Code::Denied);
        let key = NewKey::generate().unwrap();
        let answer = nodes.issue_for(asking(&key, ORDERS, process(1000))).await;
        assert_eq!(refused(answer), Code::Denied);
    }
    let channel = world.anonymous().await.channel;
    let answer = NodesClient::new(channel).entitle(process(1000)).await;
    assert_eq!(refused(answer), Code::NotAuthenticated);
}

#[tokio::test]
async fn attack_an_agent_is_neither_workload_nor_administrator() {
    let world = World::new().await;
    world.apply(edges()).await;
    let agent = world.agent("edge-1").await;
    let channel = world.as_peer(&agent).await;
    let stream = Sidecar::subscribe(channel.clone(), 0).await;
    assert_eq!(refused(stream.map(|_| ())), Code::Denied);
    let status = AdminClient::new(channel)
        .status(proto::StatusRequest::default())
        .await;
    assert_eq!(refused(status), Code::Denied);
}

#[tokio::test]
async fn attack_a_node_s_token_is_worth_nothing_to_another_node_or_workload() {
    let world = World::new().await;
    world.apply(edges()).await;
    let request = proto::CreateTokenRequest {
        workload: String::new(),
        node: "edge-1".to_owned(),
        ttl_seconds: 600,
    };
    let made = world.admin().await.create_token(request).await.unwrap();
    let secret = made.into_inner().secret;
    for other in ["spiffe://acme.test/fender/agent/edge-2", ORDERS] {
        let key = NewKey::generate().unwrap();
        let answer = world.attest(&secret, &key, other).await;
        assert_eq!(refused(answer), Code::TokenWrongIdentity);
    }
}

#[tokio::test]
async fn a_token_is_made_only_for_a_node_that_documents_describe() {
    let world = World::new().await;
    world.apply(edges()).await;
    for (workload, node, code) in [
        ("", "edge-3", Code::IdentityUnknown),
        ("", "Edge", Code::BadRequest),
        ("shop/orders", "edge-1", Code::BadRequest),
        ("shop/orders", "", Code::NotAttestable),
    ] {
        let request = proto::CreateTokenRequest {
            workload: workload.to_owned(),
            node: node.to_owned(),
            ttl_seconds: 600,
        };
        let made = world.admin().await.create_token(request).await;
        assert_eq!(refused(made), code, "{workload} {node}");
    }
}

/// What an agent is told, one after the other.
async fn told(updates: &mut tonic::Streaming<proto::NodeUpdate>) -> proto::node_update::Kind {
    let update = updates.message().await.unwrap();
    update.unwrap().kind.unwrap()
}

#[tokio::test]
async fn an_agent_hears_whom_to_believe_and_when_what_is_placed_on_its_node_changes() {
    use proto::node_update::Kind;
    let world = World::new().await;
    world.apply(edges()).await;
    let agent = world.agent("edge-1").await;
    let mut nodes = world.nodes(&agent).await;
    let request = proto::FollowRequest { trust_version: 0 };
    let mut updates = nodes.follow(request).await.unwrap().into_inner();
    assert!(matches!(told(&mut updates).await, Kind::Trust(_)));
    let Kind::PlacedAt(first) = told(&mut updates).await else {
        panic!("what is placed comes after trust");
    };
    // Of another node: nothing for this one to hear. What is next is the change after it.
    let elsewhere = workload(
        "locked",
        "{ attest: [ { unix: { node: edge-2, uid: 7 } } ] }",
    );
    world.apply([edges(), elsewhere.clone()].concat()).await;
    let here = workload(
        "web",
        "{ attest: [ { unix: { node: edge-1, uid: 1001 } } ] }",
    );
    world.apply([edges(), elsewhere, here].concat()).await;
    let Kind::PlacedAt(next) = told(&mut updates).await else {
        panic!("the deny list did not change");
    };
    assert_eq!(next, first + 2);
    // The node itself is gone.
    world.apply(MESH.to_owned()).await;
    assert!(matches!(told(&mut updates).await, Kind::PlacedAt(_)));
}

#[tokio::test]
async fn attack_only_an_agent_hears_and_only_on_so_many_streams() {
    let world = World::new().await;
    world.apply(edges()).await;
    let agent = world.agent("edge-1").await;
    let mut nodes = world.nodes(&agent).await;
    let request = proto::FollowRequest { trust_version: 0 };
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(nodes.follow(request).await.unwrap());
    }
    assert_eq!(refused(nodes.follow(request).await), Code::Busy);
    let key = NewKey::generate().unwrap();
    let answer = nodes.issue_for(asking(&key, ORDERS, process(1000))).await;
    let answer = issued(answer.unwrap().into_inner());
    let orders = key.into_svid(answer.chain).unwrap();
    let mut nodes = world.nodes(&orders).await;
    assert_eq!(refused(nodes.follow(request).await), Code::Denied);
}
