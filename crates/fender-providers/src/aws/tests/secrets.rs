//! What is read, and what answers mean.

use serde_json::json;

use super::server::{CANARY, error, ok, parameter as parameter_answer, secret as answer, too_many};
use super::*;
use crate::http::HttpError;

#[tokio::test(start_paused = true)]
async fn a_secret_is_asked_for_by_a_signed_request() {
    let world = World::new();
    let value = world.fetch(&secret("smtp", Some("password"))).await;
    assert_eq!(value.unwrap(), "hunter2");
    let asked = world.server.asked();
    let [one] = &asked[..] else {
        panic!("{asked:?}")
    };
    let scope = "Credential=AKIDENV/20270115/eu-central-1/secretsmanager/aws4_request, SignedHeaders=content-type;host;x-amz-date;x-amz-target, Signature=";
    for part in [
        "POST https://secretsmanager.eu-central-1.amazonaws.com/ | ",
        "content-type: application/x-amz-json-1.1",
        "x-amz-target: secretsmanager.GetSecretValue",
        "x-amz-date: 20270115T080000Z",
        scope,
        r#"| {"SecretId":"smtp","VersionStage":"AWSCURRENT"}"#,
    ] {
        assert!(one.contains(part), "{part}: {one}");
    }
    assert!(!one.contains(CANARY), "the key itself is not sent: {one}");
}

#[tokio::test(start_paused = true)]
async fn versions_stages_and_labels_are_asked_for_as_documented() {
    let world = World::new();
    let id = "EXAMPLE1-90ab-cdef-fedc-ba987SECRET1";
    let of = |version| {
        let id = "smtp".parse().unwrap();
        at(AwsPlace::Secret { id, version }, None)
    };
    for (wanted, body) in [
        (
            of(AwsSecretVersion::Stage("AWSPREVIOUS".to_owned())),
            r#"{"SecretId":"smtp","VersionStage":"AWSPREVIOUS"}"#.to_owned(),
        ),
        (
            of(AwsSecretVersion::Id(id.to_owned())),
            format!(r#"{{"SecretId":"smtp","VersionId":"{id}"}}"#),
        ),
        (
            parameter("/smtp", AwsParameterVersion::Newest),
            r#"{"Name":"/smtp","WithDecryption":true}"#.to_owned(),
        ),
        (
            parameter("/smtp", AwsParameterVersion::Number(7.try_into().unwrap())),
            r#"{"Name":"/smtp:7","WithDecryption":true}"#.to_owned(),
        ),
        (
            parameter("/smtp", AwsParameterVersion::Label("prod".to_owned())),
            r#"{"Name":"/smtp:prod","WithDecryption":true}"#.to_owned(),
        ),
    ] {
        world.fetch(&wanted).await.unwrap();
        let asked = world.server.asked();
        assert!(asked[0].ends_with(&format!("| {body}")), "{asked:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn keys_of_one_secret_are_of_one_answer() {
    let world = World::new();
    let sources = ["user", "password"].map(|key| world.source(&secret("smtp", Some(key))));
    for source in &sources {
        source.fetch().await.unwrap();
    }
    // Who comes later learns how old the answer is, and does not take it for a new one.
    let before = sources[0].age().unwrap();
    tokio::time::sleep(MINUTE / 2).await;
    sources[1].fetch().await.unwrap();
    assert_eq!(sources[1].age().unwrap(), before + MINUTE / 2);
    assert_eq!(world.server.asked().len(), 1);
    // What changes, changes for both, whoever looks first.
    world.server.answer("GetSecretValue", || {
        Ok(ok(&answer(r#"{"user":"new","password":"new-1"}"#)))
    });
    sources[1].due().await;
    assert_eq!(text(sources[1].fetch().await).unwrap(), "new-1");
    sources[0].due().await;
    assert_eq!(text(sources[0].fetch().await).unwrap(), "new");
    assert_eq!(world.server.asked().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_did_not_change_is_the_same_generation_and_asked_for_when_it_is_time() {
    let world = World::new();
    let source = world.source(&secret("smtp", None));
    let first = source.fetch().await.unwrap();
    let began = Instant::now();
    source.due().await;
    let waited = began.elapsed();
    assert!(waited >= MINUTE.mul_f64(0.9) && waited <= MINUTE.mul_f64(1.1));
    assert_eq!(source.fetch().await.unwrap().generation, first.generation);
    world
        .server
        .answer("GetSecretValue", || Ok(ok(&answer("next"))));
    source.due().await;
    assert_ne!(source.fetch().await.unwrap().generation, first.generation);
}

#[tokio::test(start_paused = true)]
async fn a_value_is_text_or_binary_or_one_key_of_an_object() {
    let fetch = async |reply: serde_json::Value, key: Option<&str>| {
        let world = World::new();
        world
            .server
            .answer("GetSecretValue", move || Ok(ok(&reply)));
        let fetched = world.source(&secret("smtp", key)).fetch().await;
        fetched.map(|fetched| fetched.value.expose().to_vec())
    };
    let binary = json!({ "SecretBinary": "AP8B", "VersionId": "v" });
    assert_eq!(fetch(binary, None).await.unwrap(), b"\0\xff\x01");
    let object = r#"{"port":25,"tls":true,"half":0.5,"list":["x"],"empty":""}"#;
    assert_eq!(
        fetch(answer(object), None).await.unwrap(),
        object.as_bytes()
    );
    for (key, expected) in [("port", "25"), ("tls", "true")] {
        let value = fetch(answer(object), Some(key)).await.unwrap();
        assert_eq!(value, expected.as_bytes());
    }
    for key in ["half", "list", "empty"] {
        let error = fetch(answer(object), Some(key)).await.unwrap_err();
        assert!(matches!(error, FetchError::Malformed(_)), "{error}");
    }
    let error = fetch(answer(object), Some("absent")).await.unwrap_err();
    assert!(matches!(error, FetchError::Missing(_)), "{error}");
    for (reply, key) in [
        (answer("canary no JSON"), Some("key")),
        (answer("[\"canary\"]"), Some("key")),
        (answer(""), None),
        (json!({ "SecretBinary": "canary!" }), None),
        (
            json!({ "SecretBinary": "AA==", "SecretString": "canary" }),
            None,
        ),
        (json!({ "VersionId": "v" }), None),
        (json!("canary"), None),
        (json!({ "SecretString": ["canary"] }), None),
    ] {
        let error = fetch(reply, key).await.unwrap_err();
        assert!(matches!(error, FetchError::Malformed(_)), "{error}");
        assert!(!error.to_string().contains(CANARY), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn refusals_are_told_from_outages() {
    for (reply, kind) in [
        (Ok(error(400, "ResourceNotFoundException", "")), "missing"),
        (
            Ok(error(400, "InvalidRequestException", "marked for deletion")),
            "missing",
        ),
        (Ok(error(400, "AccessDeniedException", "")), "denied"),
        (Ok(error(400, "DecryptionFailure", "")), "denied"),
        (Ok(error(500, "InternalServiceError", "")), "fetched"),
        (Ok(error(503, "ServiceUnavailable", "")), "fetched"),
        (Ok(error(307, "", "")), "fetched"),
        (Ok(error(400, "ValidationException", "")), "malformed"),
        (Err(HttpError::TooLarge { limit: 1 }), "malformed"),
        (Err(HttpError::TimedOut), "fetched"),
        (
            Err(HttpError::Unreachable("canary-secret-key".to_owned())),
            "fetched",
        ),
    ] {
        let world = World::new();
        let given = reply.clone();
        world.server.answer("GetSecretValue", move || given.clone());
        let error = world.fetch(&secret("smtp", None)).await.unwrap_err();
        assert!(error.to_string().contains(kind), "{reply:?}: {error}");
        assert!(
            error
                .to_string()
                .contains("`smtp` in Secrets Manager (eu-central-1)")
        );
        assert!(!error.to_string().contains(CANARY), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn throttling_closes_the_gate_for_all_until_one_is_answered() {
    let world = World::new();
    world.server.answer("GetSecretValue", || Ok(too_many(90)));
    let sources: Vec<_> = (0..20)
        .map(|number| world.source(&secret(&format!("s{number}"), None)))
        .collect();
    let began = Instant::now();
    for source in &sources {
        let error = source.fetch().await.unwrap_err();
        assert!(error.to_string().contains("Rate exceeded"), "{error}");
    }
    assert_eq!(world.server.asked().len(), 1, "the first speaks for all");
    world.server.recover();
    sources[7].due().await;
    assert!(began.elapsed() >= Duration::from_secs(90), "as it wishes");
    sources[7].fetch().await.unwrap();
    for (number, source) in sources.iter().enumerate() {
        if number != 7 {
            source.due().await;
            source.fetch().await.unwrap();
        }
    }
    assert_eq!(world.server.asked().len(), sources.len());
    // Another service has a budget of its own.
    let other = World::new();
    other.server.answer("GetSecretValue", || Ok(too_many(90)));
    other.fetch(&secret("smtp", None)).await.unwrap_err();
    let newest = parameter("/smtp", AwsParameterVersion::Newest);
    assert_eq!(other.fetch(&newest).await.unwrap(), "hunter2");
}

#[tokio::test(start_paused = true)]
async fn five_hundred_secrets_are_no_stampede_and_one_that_fails_delays_none() {
    let world = World::new();
    world
        .server
        .answer("\"s7\"", || Ok(error(500, "InternalFailure", "")));
    let sources: Vec<_> = (0..500)
        .map(|number| world.source(&secret(&format!("s{number}"), None)))
        .collect();
    let began = Instant::now();
    let fetched = sources.iter().map(|source| source.fetch());
    let fetched = futures_join(fetched).await;
    let failed = fetched.iter().filter(|fetched| fetched.is_err()).count();
    assert_eq!(failed, 1);
    assert_eq!(world.server.asked().len(), 500);
    assert!(world.server.most_at_once() <= 8, "so many at once");
    // 25 together, and 50 a second.
    assert!(began.elapsed() >= Duration::from_millis(9_500));
}

/// All of them at the same time.
async fn futures_join<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.map(Box::pin).collect();
    let mut done: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        let mut pending = false;
        for (future, done) in futures.iter_mut().zip(&mut done) {
            if done.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(output) => *done = Some(output),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        match pending {
            true => std::task::Poll::Pending,
            false => std::task::Poll::Ready(()),
        }
    })
    .await;
    done.into_iter().flatten().collect()
}

#[tokio::test(start_paused = true)]
async fn attack_a_document_asks_for_what_was_not_allowed_here() {
    let allow = AllowAws::These(vec!["secretsmanager:shop/*".parse().unwrap()]);
    let world = World::allowing(&KEYS, allow);
    assert!(world.fetch(&secret("shop/smtp", None)).await.is_ok());
    world.server.asked();
    let mut elsewhere = secret("shop/smtp", None);
    elsewhere.store.endpoint = Some("https://evil.example".parse().unwrap());
    let newest = parameter("/shop/smtp", AwsParameterVersion::Newest);
    for wanted in [secret("bank/root", None), newest, elsewhere] {
        let error = world.fetch(&wanted).await.unwrap_err();
        assert!(matches!(error, FetchError::Denied(_)), "{error}");
        assert!(world.aws.check(&wanted).is_err());
    }
    assert!(world.server.asked().is_empty(), "nobody is asked");
    let source = world.source(&secret("bank/root", None));
    let due = tokio::time::timeout(60 * MINUTE, source.due()).await;
    assert!(due.is_err(), "nor ever will be");
}

#[tokio::test(start_paused = true)]
async fn the_machine_says_where_an_api_is_if_the_document_does_not() {
    let mut variables = KEYS.to_vec();
    variables.push(("AWS_ENDPOINT_URL_SSM", "http://127.0.0.1:5000"));
    let world = World::with(&variables);
    world.server.answer("http://127.0.0.1:5000/", || {
        Ok(ok(&parameter_answer("local")))
    });
    let newest = parameter("/smtp", AwsParameterVersion::Newest);
    assert_eq!(world.fetch(&newest).await.unwrap(), "local");
    let mut own = newest;
    own.store.endpoint = Some("https://ssm.eu-central-1.amazonaws.com".parse().unwrap());
    assert_eq!(world.fetch(&own).await.unwrap(), "hunter2");
}
