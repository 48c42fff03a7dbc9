//! DESIGN I5: a projected service-account token by the issuer's keys, each rule with its attack.

mod review;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fender_api::proto::control::v1::KubernetesEvidence;
use fender_api::proto::control::v1::attest_request::Evidence;
use fender_identity::jwt::{Key, Keys, PublicKey};
use serde_json::{Value, json};

use super::vouching::{Server, documents_with};
use super::*;

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
const ATTEST: &str = "{ kubernetes: { cluster: east, namespace: shop, serviceAccount: orders } }";

/// The issuer of a cluster's tokens.
pub(super) struct Cluster(EcdsaKeyPair);

impl Cluster {
    fn new() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    fn jwks(&self, id: &str) -> String {
        let public = PublicKey::P256(self.0.public_key().as_ref().into());
        let key = Key::new(Some(id.to_owned()), public, None).unwrap();
        Keys::new(vec![key]).unwrap().to_json("sig")
    }

    fn sign(&self, id: &str, claims: &Value) -> String {
        let text = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!(
            "{}.{}",
            text(&json!({ "alg": "ES256", "kid": id })),
            text(claims)
        );
        let signature = self
            .0
            .sign(&SystemRandom::new(), signed.as_bytes())
            .unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    pub(super) fn token(&self, claims: &Value) -> String {
        self.sign("one", claims)
    }
}

/// As the kubelet projects it into a pod of `shop/orders`.
pub(super) fn claims(now: u64) -> Value {
    json!({
        "aud": ["fender"],
        "exp": now + 3600,
        "iat": now,
        "iss": ISSUER,
        "jti": "0b0b2f6b-1b7c-4d4a-9f5a-3c0f5e0a7c11",
        "kubernetes.io": {
            "namespace": "shop",
            "node": { "name": "node-a", "uid": "8f1c" },
            "pod": { "name": "orders-7d9", "uid": "a1b2" },
            "serviceaccount": { "name": "orders", "uid": "c3d4" },
        },
        "nbf": now,
        "sub": "system:serviceaccount:shop:orders",
    })
}

fn with(change: impl FnOnce(&mut Value)) -> Value {
    let mut claims = claims(NOW);
    change(&mut claims);
    claims
}

fn by_file(path: &Path) -> String {
    format!(
        "  kubernetes: [ {{ name: east, issuer: {ISSUER}, audience: fender, jwks: {{ file: {} }} }} ]",
        path.display()
    )
}

/// A control plane that knows the cluster's keys from a file.
pub(super) async fn world() -> (World, Cluster) {
    world_with(ATTEST).await
}

async fn world_with(attest: &str) -> (World, Cluster) {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::new();
    let file = directory.path().join("jwks.json");
    fs::write(&file, cluster.jwks("one")).unwrap();
    let documents = documents_with(&by_file(&file), attest);
    (World::with(directory, documents).await, cluster)
}

fn shown(token: &str) -> Evidence {
    Evidence::Kubernetes(KubernetesEvidence {
        token: token.to_owned(),
    })
}

async fn show(world: &World, token: &str) -> Result<proto::SvidResponse, Status> {
    let key = NewKey::generate().unwrap();
    world.show(shown(token), &key, ORDERS).await
}

#[tokio::test]
async fn a_service_account_gets_the_identity_its_document_names_and_the_facts_are_recorded() {
    let (world, cluster) = world().await;
    let token = cluster.token(&claims(NOW));
    let answer = issued(show(&world, &token).await.unwrap());
    assert_eq!(answer.chain.len(), 2);
    let evidence: Value = serde_json::from_str(&world.evidence(ORDERS).await).unwrap();
    for (name, value) in [
        ("attestor", "kubernetes"),
        ("cluster", "east"),
        ("namespace", "shop"),
        ("service_account", "orders"),
        ("pod", "orders-7d9"),
        ("pod_uid", "a1b2"),
        ("node", "node-a"),
        ("token_id", "0b0b2f6b-1b7c-4d4a-9f5a-3c0f5e0a7c11"),
    ] {
        assert_eq!(evidence[name], value, "{name}");
    }
    let signature = token.rsplit('.').next().unwrap();
    assert!(
        !evidence.to_string().contains(signature),
        "the token is not kept"
    );
}

#[tokio::test]
async fn a_selector_may_name_the_pod_and_the_node() {
    let attest = "{ kubernetes: { cluster: east, namespace: shop, serviceAccount: orders, pod: orders-7d9, node: node-a } }";
    let (world, cluster) = world_with(attest).await;
    show(&world, &cluster.token(&claims(NOW))).await.unwrap();
    for (what, name) in [("pod", "orders-7d8"), ("node", "node-b")] {
        let other = with(|claims| claims["kubernetes.io"][what]["name"] = json!(name));
        let refusal = refused(show(&world, &cluster.token(&other)).await);
        assert_eq!(refusal, Code::EvidenceRefused, "{what}");
        let unbound = with(|claims| {
            claims["kubernetes.io"]
                .as_object_mut()
                .unwrap()
                .remove(what);
        });
        let refusal = refused(show(&world, &cluster.token(&unbound)).await);
        assert_eq!(refusal, Code::EvidenceRefused, "no {what}");
    }
}

#[tokio::test]
async fn a_sidecar_without_its_state_may_show_its_token_again() {
    let (world, cluster) = world().await;
    let token = cluster.token(&claims(NOW));
    for _ in 0..3 {
        show(&world, &token).await.unwrap();
    }
}

#[tokio::test]
async fn attack_a_copied_token_for_ever_more_keys() {
    let (world, cluster) = world().await;
    let token = cluster.token(&claims(NOW));
    let key = NewKey::generate().unwrap();
    world.show(shown(&token), &key, ORDERS).await.unwrap();
    for _ in 1..8 {
        show(&world, &token).await.unwrap();
    }
    assert_eq!(refused(show(&world, &token).await), Code::EvidenceRefused);
    let again = world.show(shown(&token), &key, ORDERS).await;
    assert!(again.is_ok(), "the first key is no new use");
}

#[tokio::test]
async fn attack_a_token_that_is_for_somebody_else_or_of_somebody_else() {
    let (world, cluster) = world().await;
    let account = |namespace: &str, name: &str| {
        with(|claims| {
            claims["sub"] = json!(format!("system:serviceaccount:{namespace}:{name}"));
            claims["kubernetes.io"]["namespace"] = json!(namespace);
            claims["kubernetes.io"]["serviceaccount"]["name"] = json!(name);
        })
    };
    for (claims, why) in [
        (
            with(|claims| claims["iss"] = json!("https://other")),
            "another issuer",
        ),
        (
            with(|claims| claims["aud"] = json!(["vault"])),
            "another audience",
        ),
        (
            with(|claims| claims["aud"] = json!(["fender", ISSUER])),
            "the API's audience too, which could show it here",
        ),
        (account("web", "orders"), "another namespace"),
        (account("shop", "inventory"), "another service account"),
        (with(|claims| claims["exp"] = json!(NOW - 61)), "expired"),
        (
            with(|claims| claims["nbf"] = json!(NOW + 61)),
            "not yet valid",
        ),
        (
            with(|claims| drop(claims.as_object_mut().unwrap().remove("exp"))),
            "without an end, as secrets used to hold them",
        ),
        (
            with(|claims| claims["sub"] = json!("system:serviceaccount:web:orders")),
            "two readings of who it is",
        ),
        (
            with(|claims| claims["sub"] = json!("system:node:node-a")),
            "a node",
        ),
        (with(|claims| claims["sub"] = json!("admin")), "a person"),
        (
            with(|claims| drop(claims.as_object_mut().unwrap().remove("kubernetes.io"))),
            "no cluster's claims",
        ),
    ] {
        let refusal = refused(show(&world, &cluster.token(&claims)).await);
        assert_eq!(refusal, Code::EvidenceRefused, "{why}");
    }
    show(&world, &cluster.token(&claims(NOW))).await.unwrap();
}

#[tokio::test]
async fn attack_a_token_of_another_cluster_with_the_same_issuer_text() {
    let (world, _) = world().await;
    let other = Cluster::new().token(&claims(NOW));
    assert_eq!(refused(show(&world, &other).await), Code::EvidenceRefused);
}

#[tokio::test]
async fn attack_a_cluster_that_vouches_for_another_clusters_accounts() {
    let directory = tempfile::tempdir().unwrap();
    let (east, west) = (Cluster::new(), Cluster::new());
    let cluster = |name: &str, keys: &Cluster| {
        let file = directory.path().join(name);
        fs::write(&file, keys.jwks("one")).unwrap();
        format!(
            "    - {{ name: {name}, issuer: {ISSUER}, audience: fender, jwks: {{ file: {} }} }}\n",
            file.display()
        )
    };
    let vouching = format!(
        "  kubernetes:\n{}{}",
        cluster("east", &east),
        cluster("west", &west)
    );
    let world = World::with(directory, documents_with(&vouching, ATTEST)).await;
    let refusal = refused(show(&world, &west.token(&claims(NOW))).await);
    assert_eq!(refusal, Code::EvidenceRefused);
    show(&world, &east.token(&claims(NOW))).await.unwrap();
}

#[tokio::test]
async fn attack_a_stranger_who_asks_which_workloads_there_are() {
    let (world, cluster) = world().await;
    let good = cluster.token(&claims(NOW));
    let mut answers = Vec::new();
    for (token, id) in [
        (good.as_str(), INVENTORY),
        (&good, "spiffe://acme.test/ns/shop/sa/nobody"),
        (&good, "spiffe://acme.test/fender/admin/admin"),
        (&good, "spiffe://acme.test/fender/control"),
        (&good, "spiffe://other.test/ns/shop/sa/orders"),
        ("nonsense", ORDERS),
        ("nonsense", "spiffe://acme.test/ns/shop/sa/nobody"),
    ] {
        let key = NewKey::generate().unwrap();
        let status = world.show(shown(token), &key, id).await.unwrap_err();
        assert_eq!(Code::of(&status), Code::EvidenceRefused, "{id}");
        answers.push(status.message().to_owned());
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
}

#[tokio::test]
async fn attack_a_service_account_does_not_renew_when_its_document_or_cluster_is_another() {
    let (world, cluster) = world().await;
    let key = NewKey::generate().unwrap();
    let token = cluster.token(&claims(NOW));
    let answer = issued(world.show(shown(&token), &key, ORDERS).await.unwrap());
    let svid = key.into_svid(answer.chain).unwrap();
    let renew = async || {
        let request = proto::RenewRequest {
            csr: NewKey::generate().unwrap().csr_der(svid.id()).unwrap(),
            expired: None,
        };
        IdentityClient::new(world.as_peer(&svid).await)
            .renew(request)
            .await
            .map(drop)
    };
    renew().await.unwrap();
    let file = world.path("jwks.json");
    let documents = |vouching: &str, attest: &str| documents_with(vouching, attest);
    let other_account = ATTEST.replace("serviceAccount: orders", "serviceAccount: web");
    let other_issuer = by_file(&file).replace(ISSUER, "https://another.cluster");
    for (vouching, attest) in [
        (by_file(&file), other_account.as_str()),
        (by_file(&file), "{ token: {} }"),
        (other_issuer, ATTEST),
    ] {
        world.apply(documents(&vouching, attest)).await;
        assert_eq!(refused(renew().await), Code::NotAttestable, "{attest}");
    }
    world.apply(documents(&by_file(&file), ATTEST)).await;
    renew().await.unwrap();
}

#[tokio::test]
async fn attack_an_agent_is_that_of_the_node_its_token_is_bound_to_and_of_no_other() {
    let (world, cluster) = world().await;
    let node = |name: &str, there: &str| {
        format!(
            "---\napiVersion: fender.dev/v1\nkind: Node\nmetadata: {{ name: {name} }}\nspec: {{ attest: [ {{ kubernetes: \
             {{ cluster: east, namespace: fender, serviceAccount: agent, node: {there} }} }} ] }}\n"
        )
    };
    let documents = documents_with(&by_file(&world.path("jwks.json")), ATTEST);
    let with_nodes = [
        documents.clone(),
        node("edge-1", "node-a"),
        node("edge-2", "node-b"),
    ];
    world.apply(with_nodes.concat()).await;
    let agents = with(|claims| {
        claims["sub"] = json!("system:serviceaccount:fender:agent");
        claims["kubernetes.io"]["namespace"] = json!("fender");
        claims["kubernetes.io"]["serviceaccount"]["name"] = json!("agent");
    });
    let token = cluster.token(&agents);
    let show = async |id: &str, token: &str| {
        let key = NewKey::generate().unwrap();
        let answer = world.show(shown(token), &key, id).await?;
        Ok::<_, Status>(key.into_svid(issued(answer).chain).unwrap())
    };
    let (one, two) = (
        "spiffe://acme.test/fender/agent/edge-1",
        "spiffe://acme.test/fender/agent/edge-2",
    );
    let agent = show(one, &token).await.unwrap();
    assert_eq!(refused(show(two, &token).await), Code::EvidenceRefused);
    assert_eq!(refused(show(ORDERS, &token).await), Code::EvidenceRefused);
    let orders = cluster.token(&claims(NOW));
    assert_eq!(refused(show(one, &orders).await), Code::EvidenceRefused);

    // It renews as long as its document says so.
    let renew = async || {
        let request = proto::RenewRequest {
            csr: NewKey::generate().unwrap().csr_der(agent.id()).unwrap(),
            expired: None,
        };
        IdentityClient::new(world.as_peer(&agent).await)
            .renew(request)
            .await
            .map(drop)
    };
    renew().await.unwrap();
    world
        .apply([documents, node("edge-1", "node-c")].concat())
        .await;
    assert_eq!(refused(renew().await), Code::NotAttestable);
}

#[tokio::test]
async fn attack_valid_evidence_gets_through_among_neighbours_who_guess_and_a_spent_token_does_not()
{
    let (world, cluster) = world().await;
    let spent = world.token("shop/inventory", 600).await.unwrap();
    let key = NewKey::generate().unwrap();
    world.attest(&spent.secret, &key, INVENTORY).await.unwrap();
    for _ in 0..crate::attest::STRANGER_FAILURES {
        assert_eq!(refused(show(&world, "a.b.c").await), Code::EvidenceRefused);
    }
    assert_eq!(refused(show(&world, "a.b.c").await), Code::Busy);
    let other = NewKey::generate().unwrap();
    let again = world.attest(&spent.secret, &other, INVENTORY).await;
    assert_eq!(refused(again), Code::Busy, "a spent token is nothing");
    show(&world, &cluster.token(&claims(NOW))).await.unwrap();
    let fresh = world.token("shop/inventory", 600).await.unwrap();
    world
        .attest(&fresh.secret, &other, INVENTORY)
        .await
        .unwrap();
}

#[tokio::test]
async fn attack_keys_of_a_file_that_is_broken_do_not_count_for_ever() {
    let (world, cluster) = world().await;
    show(&world, &cluster.token(&claims(NOW))).await.unwrap();
    fs::write(world.path("next"), "no keys").unwrap();
    fs::rename(world.path("next"), world.path("jwks.json")).unwrap();
    // They count while it is put right, once it was noticed, and then no more.
    eventually_patient(|| async {
        world.clock.advance(Duration::from_secs(20 * 60));
        let token = cluster.token(&claims(world.now()));
        match show(&world, &token).await {
            Ok(_) => None,
            Err(status) => {
                assert_eq!(Code::of(&status), Code::Unavailable);
                Some(())
            }
        }
    })
    .await;
    fs::write(world.path("next"), cluster.jwks("one")).unwrap();
    fs::rename(world.path("next"), world.path("jwks.json")).unwrap();
    eventually_patient(|| async {
        let token = cluster.token(&claims(world.now()));
        show(&world, &token).await.ok()
    })
    .await;
}

#[tokio::test]
async fn a_file_of_keys_is_followed() {
    let (world, old) = world().await;
    let new = Cluster::new();
    show(&world, &old.token(&claims(NOW))).await.unwrap();
    fs::write(world.path("next"), new.jwks("two")).unwrap();
    fs::rename(world.path("next"), world.path("jwks.json")).unwrap();
    eventually_patient(|| async { show(&world, &new.sign("two", &claims(NOW))).await.ok() }).await;
    let refusal = refused(show(&world, &old.token(&claims(NOW))).await);
    assert_eq!(refusal, Code::EvidenceRefused);

    // Keys that cannot be read are no reason to forget those that could.
    fs::write(world.path("next"), "{\"keys\": []}").unwrap();
    fs::rename(world.path("next"), world.path("jwks.json")).unwrap();
    show(
        &world,
        &new.sign("two", &with(|claims| claims["jti"] = json!("x"))),
    )
    .await
    .unwrap();
}

#[tokio::test]
async fn keys_from_a_url_are_there_before_anybody_attests_and_outlive_an_outage_by_a_day() {
    let directory = tempfile::tempdir().unwrap();
    let (issuer, cluster) = (
        Server::start(directory.path().join("issuer.pem")).await,
        Cluster::new(),
    );
    issuer.answer(200, cluster.jwks("one"));
    let token = directory.path().join("discovery");
    fs::write(&token, "may-read-keys").unwrap();
    let vouching = format!(
        "  kubernetes: [ {{ name: east, issuer: {ISSUER}, audience: fender, jwks: {{ url: \"{}/openid/v1/jwks\", \
         roots: {{ file: {} }}, token: {{ file: {} }} }} }} ]",
        issuer.url,
        issuer.roots.display(),
        token.display()
    );
    let world = World::with(directory, documents_with(&vouching, ATTEST)).await;
    eventually(|| async { (issuer.asked().len() == 1).then_some(()) }).await;
    show(&world, &cluster.token(&claims(NOW))).await.unwrap();
    let asked = issuer.asked();
    assert_eq!(asked.len(), 1, "nobody waited for the issuer");
    assert!(
        asked[0].starts_with("GET /openid/v1/jwks HTTP/1.1\r\n"),
        "{}",
        asked[0]
    );
    assert!(asked[0].contains("authorization: Bearer may-read-keys\r\n"));

    issuer.answer(503, "away");
    world.advance(Duration::from_secs(23 * 3600)).await;
    let later = world.now();
    show(&world, &cluster.token(&claims(later))).await.unwrap();
    world.clock.advance(Duration::from_secs(2 * 3600));
    let later = world.now();
    let refusal = refused(show(&world, &cluster.token(&claims(later))).await);
    assert_eq!(refusal, Code::Unavailable, "too old to be believed");
}

#[tokio::test]
async fn attack_made_up_key_ids_make_us_ask_the_issuer_only_so_often() {
    let directory = tempfile::tempdir().unwrap();
    let issuer = Server::start(directory.path().join("issuer.pem")).await;
    let (old, new) = (Cluster::new(), Cluster::new());
    issuer.answer(200, old.jwks("one"));
    let vouching = format!(
        "  kubernetes: [ {{ name: east, issuer: {ISSUER}, audience: fender, jwks: {{ url: \"{}\", roots: {{ file: {} }} }} }} ]",
        issuer.url,
        issuer.roots.display()
    );
    let world = World::with(directory, documents_with(&vouching, ATTEST)).await;
    show(&world, &old.token(&claims(NOW))).await.unwrap();
    for number in 0..5 {
        let made_up = new.sign(&format!("made-up-{number}"), &claims(NOW));
        assert_eq!(refused(show(&world, &made_up).await), Code::Busy);
    }
    assert_eq!(issuer.asked().len(), 1);

    // A moment later, a key that is really new is found by asking once more.
    issuer.answer(200, new.jwks("two"));
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(31)).await;
    tokio::time::resume();
    show(&world, &new.sign("two", &claims(NOW))).await.unwrap();
    assert_eq!(issuer.asked().len(), 2);
}

#[tokio::test]
async fn attack_a_file_beyond_what_the_control_plane_may_read() {
    let outside = tempfile::tempdir().unwrap();
    let cluster = Cluster::new();
    let file = outside.path().join("jwks.json");
    fs::write(&file, cluster.jwks("one")).unwrap();
    let documents = documents_with(&by_file(&file), ATTEST);
    let world = World::with(tempfile::tempdir().unwrap(), documents).await;
    let refusal = refused(show(&world, &cluster.token(&claims(NOW))).await);
    assert_eq!(refusal, Code::Unavailable);
}
