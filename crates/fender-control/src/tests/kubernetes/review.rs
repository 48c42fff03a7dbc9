//! The same by TokenReview: what the cluster is asked, and what counts as yes.

use super::*;

/// A control plane that asks the cluster's API.
async fn reviewing() -> (World, Cluster, Server) {
    let directory = tempfile::tempdir().unwrap();
    let api = Server::start(directory.path().join("api.pem")).await;
    let token = directory.path().join("reviewer");
    fs::write(&token, "reviewers-own-token\n").unwrap();
    let vouching = format!(
        "  kubernetes: [ {{ name: east, issuer: {ISSUER}, audience: fender, tokenReview: {{ api: \"{}\", \
         roots: {{ file: {} }}, token: {{ file: {} }} }} }} ]",
        api.url,
        api.roots.display(),
        token.display()
    );
    let documents = documents_with(&vouching, ATTEST);
    (World::with(directory, documents).await, Cluster::new(), api)
}

/// What the API answers, as its reference documents it.
fn review(change: impl FnOnce(&mut Value)) -> String {
    let mut answer = json!({
        "kind": "TokenReview",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": { "creationTimestamp": null },
        "spec": { "token": "…", "audiences": ["fender"] },
        "status": {
            "authenticated": true,
            "user": {
                "username": "system:serviceaccount:shop:orders",
                "uid": "c3d4",
                "groups": ["system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated"],
                "extra": {
                    "authentication.kubernetes.io/pod-name": ["orders-7d9"],
                    "authentication.kubernetes.io/pod-uid": ["a1b2"],
                    "authentication.kubernetes.io/node-name": ["node-a"],
                },
            },
            "audiences": ["fender"],
        },
    });
    change(&mut answer);
    answer.to_string()
}

#[tokio::test]
async fn the_cluster_is_asked_about_a_token_as_its_reference_says() {
    let (world, cluster, api) = reviewing().await;
    api.answer(201, review(|_| ()));
    let token = cluster.token(&claims(NOW));
    show(&world, &token).await.unwrap();
    let asked = api.asked();
    let [asked] = asked.as_slice() else {
        panic!("asked once: {asked:?}")
    };
    let (head, body) = asked.split_once("\r\n\r\n").unwrap();
    assert!(
        head.starts_with("POST /apis/authentication.k8s.io/v1/tokenreviews HTTP/1.1\r\n"),
        "{head}"
    );
    assert!(
        head.contains("authorization: Bearer reviewers-own-token\r\n"),
        "{head}"
    );
    assert_eq!(
        serde_json::from_str::<Value>(body).unwrap(),
        json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": { "token": token, "audiences": ["fender"] },
        })
    );
    let evidence: Value = serde_json::from_str(&world.evidence(ORDERS).await).unwrap();
    assert_eq!(evidence["pod"], "orders-7d9");
    assert_eq!(evidence["node"], "node-a");
}

#[tokio::test]
async fn attack_an_answer_that_is_not_exactly_yes() {
    let (world, cluster, api) = reviewing().await;
    let no = [
        review(|answer| answer["status"]["authenticated"] = json!(false)),
        review(|answer| answer["status"]["authenticated"] = json!("true")),
        review(|answer| answer["status"] = json!({ "error": "expired", "user": {} })),
        review(|answer| answer["status"] = json!(null)),
        review(|answer| {
            drop(
                answer["status"]
                    .as_object_mut()
                    .unwrap()
                    .remove("audiences"),
            )
        }),
        review(|answer| answer["status"]["audiences"] = json!([ISSUER])),
        review(|answer| answer["status"]["audiences"] = json!(["fender", ISSUER])),
        review(|answer| {
            answer["status"]["user"]["username"] = json!("system:serviceaccount:web:orders")
        }),
        review(|answer| answer["status"]["user"]["username"] = json!("shop:orders")),
        review(|answer| {
            answer["status"]["user"]["username"] = json!("system:serviceaccount:shop:orders:x")
        }),
        review(|answer| answer["kind"] = json!("SubjectAccessReview")),
        review(|answer| answer["apiVersion"] = json!("authentication.k8s.io/v1beta1")),
    ];
    for answer in no {
        api.answer(201, answer.clone());
        let refusal = refused(show(&world, &cluster.token(&claims(NOW))).await);
        assert_eq!(refusal, Code::EvidenceRefused, "{answer}");
    }
    api.answer(201, review(|_| ()));
    show(&world, &cluster.token(&claims(NOW))).await.unwrap();
}

#[tokio::test]
async fn without_an_answer_of_the_cluster_there_is_no_identity_but_another_try() {
    let (world, cluster, api) = reviewing().await;
    let token = cluster.token(&claims(NOW));
    let yes = review(|_| ());
    let twice = yes.replacen(
        "\"authenticated\":true",
        "\"authenticated\":false,\"authenticated\":true",
        1,
    );
    assert_ne!(twice, yes);
    for (status, body) in [
        (500, yes.as_str()),
        (401, &yes),
        (403, &yes),
        (404, &yes),
        (200, "not JSON"),
        (201, twice.as_str()),
        (201, &"x".repeat(70_000)),
    ] {
        api.answer(status, body);
        let refusal = refused(show(&world, &token).await);
        assert_eq!(refusal, Code::Unavailable, "{status}");
        assert!(refusal.is_passing(), "the sidecar asks again");
    }
    drop(api);
    assert_eq!(refused(show(&world, &token).await), Code::Unavailable);
}

#[tokio::test]
async fn attack_an_api_that_sends_us_elsewhere_with_the_token() {
    let (world, cluster, api) = reviewing().await;
    let elsewhere = Server::start(world.path("elsewhere.pem")).await;
    elsewhere.answer(201, review(|_| ()));
    api.answer(307, format!("{}/apis", elsewhere.url));
    let refusal = refused(show(&world, &cluster.token(&claims(NOW))).await);
    assert_eq!(refusal, Code::Unavailable);
    assert!(elsewhere.asked().is_empty());
}

#[tokio::test]
async fn attack_an_api_that_other_roots_vouch_for() {
    let (world, cluster, api) = reviewing().await;
    api.answer(201, review(|_| ()));
    let imposter = Server::start(world.path("imposter.pem")).await;
    fs::copy(&imposter.roots, &api.roots).unwrap();
    eventually_patient(|| async {
        let answer = show(&world, &cluster.token(&claims(NOW))).await;
        answer
            .is_err()
            .then(|| assert_eq!(refused(answer), Code::Unavailable))
    })
    .await;
}

#[tokio::test]
async fn attack_tokens_of_others_are_not_shown_to_the_cluster() {
    let (world, cluster, api) = reviewing().await;
    api.answer(201, review(|_| ()));
    for claims in [
        with(|claims| claims["aud"] = json!("vault")),
        with(|claims| claims["iss"] = json!("https://accounts.example")),
        with(|claims| claims["exp"] = json!(NOW - 61)),
    ] {
        let refusal = refused(show(&world, &cluster.token(&claims)).await);
        assert_eq!(refusal, Code::EvidenceRefused);
    }
    assert_eq!(refused(show(&world, "a.b.c").await), Code::EvidenceRefused);
    assert!(api.asked().is_empty());
}
