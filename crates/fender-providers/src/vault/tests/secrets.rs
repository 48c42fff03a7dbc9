//! What is read, and what answers mean.

use serde_json::json;

use super::server::{away, deleted, denied, ok, plain, status, too_many, versioned};
use super::*;
use crate::http::HttpError;

#[tokio::test(start_paused = true)]
async fn a_key_of_kv_2_is_read_with_a_token_that_was_logged_in_for() {
    let world = World::new();
    assert_eq!(
        world.fetch(&kv2("shop/smtp", "password")).await.unwrap(),
        "hunter2"
    );
    let asked = [
        r#"POST auth/approle/login | - | {"role_id":"role-1","secret_id":"content-of-secret-id"}"#,
        "GET secret/data/shop/smtp | hvs.1 | -",
    ];
    assert_eq!(world.server.asked(), asked);
}

#[tokio::test(start_paused = true)]
async fn a_version_and_kv_1_are_asked_for_as_documented() {
    let world = World::new();
    let old = VaultPlace::Kv2 {
        mount: path("secret"),
        path: path("a b"),
        version: Some(3),
    };
    world.fetch(&at(app_role(), old, "password")).await.unwrap();
    let kv1 = VaultPlace::Kv1 {
        mount: path("kv"),
        path: path("x?y"),
    };
    let value = world.fetch(&at(app_role(), kv1, "password")).await;
    assert_eq!(value.unwrap(), "hunter2");
    let asked = world.server.asked();
    assert_eq!(Server::count(&asked, "POST auth/approle/login"), 1);
    assert_eq!(
        Server::count(&asked, "GET secret/data/a%20b?version=3 |"),
        1
    );
    assert_eq!(Server::count(&asked, "GET kv/x%3Fy |"), 1);
}

#[tokio::test(start_paused = true)]
async fn keys_of_one_place_are_of_one_answer() {
    let world = World::new();
    let sources = ["user", "password"].map(|key| world.source(&kv2("smtp", key)));
    for source in &sources {
        source.fetch().await.unwrap();
    }
    // Who comes later learns how old the answer is, and does not take it for a new one.
    let before = sources[0].age().unwrap();
    tokio::time::sleep(30 * SECOND).await;
    sources[1].fetch().await.unwrap();
    assert_eq!(sources[1].age().unwrap(), before + 30 * SECOND);
    let asked = world.server.asked();
    assert_eq!(Server::count(&asked, "GET secret/data/smtp"), 1);

    // What changes, changes for both, whoever looks first.
    world.server.answer("GET secret/data/smtp", || {
        ok(&versioned(&json!({ "user": "new", "password": "new-1" })))
    });
    sources[1].due().await;
    assert_eq!(text(sources[1].fetch().await).unwrap(), "new-1");
    sources[0].due().await;
    assert_eq!(text(sources[0].fetch().await).unwrap(), "new");
    let asked = world.server.asked();
    assert_eq!(Server::count(&asked, "GET secret/data/smtp"), 1);
}

#[tokio::test(start_paused = true)]
async fn what_did_not_change_is_the_same_generation_and_asked_for_when_it_is_time() {
    let world = World::new();
    let source = world.source(&kv2("smtp", "password"));
    let first = source.fetch().await.unwrap();
    let began = Instant::now();
    source.due().await;
    let waited = began.elapsed();
    assert!(waited >= 53 * SECOND && waited <= 67 * SECOND, "{waited:?}");
    assert_eq!(source.fetch().await.unwrap().generation, first.generation);
    world.server.answer("GET secret/data/smtp", || {
        ok(&versioned(&json!({ "password": "next" })))
    });
    source.due().await;
    assert_ne!(source.fetch().await.unwrap().generation, first.generation);
}

#[tokio::test(start_paused = true)]
async fn whole_numbers_and_truth_values_are_their_text_and_nothing_else_is() {
    let world = World::new();
    world.server.answer("GET secret/data/smtp", || {
        ok(&versioned(&json!({
            "port": 25, "negative": -1, "large": u64::MAX, "tls": true, "text": "é\n",
            "half": 0.5, "none": null, "list": ["x"], "map": { "x": "y" }, "empty": "",
        })))
    });
    for (key, expected) in [
        ("port", "25"),
        ("negative", "-1"),
        ("large", "18446744073709551615"),
        ("tls", "true"),
        ("text", "é\n"),
    ] {
        assert_eq!(world.fetch(&kv2("smtp", key)).await.unwrap(), expected);
    }
    for key in ["half", "none", "list", "map", "empty"] {
        let error = world.fetch(&kv2("smtp", key)).await.unwrap_err();
        assert!(matches!(error, FetchError::Malformed(_)), "{key}: {error}");
    }
    let error = world.fetch(&kv2("smtp", "absent")).await.unwrap_err();
    assert!(matches!(error, FetchError::Missing(_)), "{error}");
    assert!(
        error
            .to_string()
            .contains("`secret/smtp` in Vault has no `absent`"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn without_a_key_it_is_all_of_a_place_as_one_object_wherever_that_is() {
    let world = World::new();
    let data = r#"{"port": 25, "user": "orders", "more": {"tls": true}, "password": "é\""}"#;
    let all = r#"{"more":{"tls": true},"password":"é\"","port":25,"user":"orders"}"#;
    let answer = |body: String| crate::http::Answer {
        status: 200,
        wish: None,
        body: Secret::from(body),
    };
    let of_kv2 = answer(format!(
        r#"{{"data":{{"data":{data},"metadata":{{"version":2}}}}}}"#
    ));
    let of_others = answer(format!(r#"{{"data":{data}}}"#));
    world
        .server
        .answer("GET secret/data/", move || Ok(of_kv2.clone()));
    world
        .server
        .answer("GET kv/", move || Ok(of_others.clone()));
    let kv1 = VaultPlace::Kv1 {
        mount: path("kv"),
        path: path("smtp"),
    };
    for secret in [
        whole(kv2("smtp", "user")),
        whole(at(app_role(), kv1, "user")),
    ] {
        let source = world.source(&secret);
        let first = source.fetch().await.unwrap();
        assert_eq!(first.value.expose_str(), Some(all));
        source.due().await;
        let again = source.fetch().await.unwrap();
        assert_eq!(again.generation, first.generation, "nothing changed");
    }
    // It is of the answer that another credential takes a key of.
    world.fetch(&whole(kv2("smtp", "user"))).await.unwrap();
    world.server.asked();
    assert_eq!(world.fetch(&kv2("smtp", "user")).await.unwrap(), "orders");
    assert_eq!(world.server.asked(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn the_whole_changes_with_any_field_and_not_with_how_it_is_written() {
    let world = World::new();
    let source = world.source(&whole(kv2("smtp", "user")));
    let mut before = source.fetch().await.unwrap();
    for (data, is_news) in [
        (r#"{"password":"hunter2","user":"orders"}"#, false),
        (r#"{ "user": "\u006frders", "password":"hunter2"}"#, false),
        (r#"{"user":"orders","password":"hunter3"}"#, true),
        (r#"{"user":"orders","password":"hunter3","port":25}"#, true),
        (
            r#"{"user":"orders","password":"hunter3","port":"25"}"#,
            true,
        ),
    ] {
        let body = format!(r#"{{"data":{{"data":{data}}}}}"#);
        world.server.answer("GET secret/data/", move || {
            Ok(crate::http::Answer {
                status: 200,
                wish: None,
                body: Secret::from(body.clone()),
            })
        });
        source.due().await;
        let now = source.fetch().await.unwrap();
        assert_eq!(now.generation != before.generation, is_news, "{data}");
        before = now;
    }
}

#[tokio::test(start_paused = true)]
async fn a_place_without_any_key_is_no_whole_and_a_withdrawn_one_is_missing() {
    let world = World::new();
    let source = world.source(&whole(kv2("smtp", "user")));
    world
        .server
        .answer("GET secret/data/", || ok(&versioned(&json!({}))));
    let error = source.fetch().await.unwrap_err();
    assert!(
        matches!(&error, FetchError::Malformed(why) if why.contains("has no keys")),
        "{error}"
    );
    world.server.answer("GET secret/data/", || deleted(false));
    source.due().await;
    let error = source.fetch().await.unwrap_err();
    assert!(matches!(error, FetchError::Missing(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_there_is_missing_and_a_deleted_version_is_told() {
    for (reply, said) in [
        (deleted(false), "version 3 is deleted"),
        (deleted(true), "version 3 is destroyed"),
        (Ok(status(404, &json!({ "errors": [] }))), "status 404"),
    ] {
        let world = World::new();
        world
            .server
            .answer("GET secret/data/", move || reply.clone());
        let error = world.fetch(&kv2("smtp", "password")).await.unwrap_err();
        assert!(matches!(error, FetchError::Missing(_)), "{error}");
        assert!(error.to_string().contains(said), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_cannot_answer_is_an_outage_and_no_refusal() {
    let sealed = json!({ "errors": ["Vault is sealed"] });
    let failed = json!({ "errors": ["1 error occurred:\n\t* internal error\n\n"] });
    for (reply, said) in [
        (away(), "connection refused"),
        (Err(HttpError::TimedOut), "too long"),
        (Ok(status(503, &sealed)), "Vault is sealed"),
        (Ok(status(500, &failed)), "internal error"),
        (Ok(status(502, &json!("a proxy's page"))), "status 502"),
        (Ok(status(412, &json!({}))), "status 412"),
        (Ok(status(473, &json!({}))), "status 473"),
        (too_many(7), "rate limit quota exceeded"),
    ] {
        let world = World::new();
        world
            .server
            .answer("GET secret/data/", move || reply.clone());
        let error = world.fetch(&kv2("smtp", "password")).await.unwrap_err();
        assert!(matches!(error, FetchError::Outage(_)), "{error}");
        assert!(error.to_string().contains(said), "{error}");
        assert!(!error.to_string().contains('\n'), "{error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn attack_a_redirect_is_an_outage_and_shows_nobody_the_token() {
    let world = World::new();
    let standby = status(307, &json!({ "errors": [] }));
    world
        .server
        .answer("GET secret/data/", move || Ok(standby.clone()));
    let error = world.fetch(&kv2("smtp", "password")).await.unwrap_err();
    assert!(
        matches!(&error, FetchError::Outage(why) if why.contains("standby")),
        "{error}"
    );
    assert_eq!(Server::count(&world.server.asked(), "GET"), 1);
}

#[tokio::test(start_paused = true)]
async fn attack_answers_that_are_none_and_show_what_they_are() {
    let mut deep = "[".repeat(5000);
    deep.push_str(&"]".repeat(5000));
    let odd = [
        format!("{{\"data\":{{\"data\":\"{CANARY}\"}}}}"),
        format!("{{\"data\":[\"{CANARY}\"]}}"),
        format!("{{\"data\":{{\"data\":{{\"password\":\"{CANARY}\""),
        format!("{{\"lease_duration\":\"{CANARY}\"}}"),
        format!("<html>{CANARY}</html>"),
        format!("{{\"data\":{{\"data\":{{\"password\":{deep}}}}}}}"),
        "{}".to_owned(),
        "null".to_owned(),
        "{\"data\":{\"password\":\"of KV 1\"}}".to_owned(),
        String::new(),
    ];
    for body in odd {
        let world = World::new();
        let reply = crate::http::Answer {
            status: 200,
            wish: None,
            body: Secret::from(body.clone()),
        };
        world
            .server
            .answer("GET secret/data/", move || Ok(reply.clone()));
        let error = world.fetch(&kv2("smtp", "password")).await.unwrap_err();
        assert!(matches!(error, FetchError::Malformed(_)), "{body}: {error}");
        let printed = format!("{error} {error:?}");
        assert!(!printed.contains("canary"), "{printed}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_another_engine_is_not_taken_for_kv_1() {
    let world = World::new();
    world.server.answer("GET kv/smtp", || {
        ok(&plain(&json!({ "data": { "x": "y" } })))
    });
    let kv1 = VaultPlace::Kv1 {
        mount: path("kv"),
        path: path("smtp"),
    };
    let error = world.fetch(&at(app_role(), kv1, "data")).await.unwrap_err();
    assert!(matches!(error, FetchError::Malformed(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn attack_a_server_that_repeats_what_it_was_shown() {
    let world = World::new();
    world.files.write("/secret-id", CANARY);
    let said = format!("denied for {CANARY} \u{1b}[2J {}", "x".repeat(4000));
    let reply = status(400, &json!({ "errors": [said] }));
    world
        .server
        .answer("POST auth/approle/login", move || Ok(reply.clone()));
    let refused = world.fetch(&kv2("smtp", "password")).await.unwrap_err();

    let other = World::new();
    let token = server::login(CANARY, 3600);
    other
        .server
        .answer("POST auth/approle/login", move || ok(&token));
    let reply = status(400, &json!({ "errors": [format!("bad token {CANARY}")] }));
    other
        .server
        .answer("GET secret/data/", move || Ok(reply.clone()));
    let unread = other.fetch(&kv2("smtp", "password")).await.unwrap_err();

    for error in [refused, unread] {
        let text = format!("{error} {error:?}");
        assert!(text.contains('…') && !text.contains("canary"), "{text}");
        assert!(
            !text.contains('\u{1b}') && error.to_string().len() < 400,
            "{text}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_that_can_be_printed_holds_a_value_or_a_token() {
    let world = World::new();
    world.files.write("/secret-id", CANARY);
    let token = server::login(CANARY, 3600);
    world
        .server
        .answer("POST auth/approle/login", move || ok(&token));
    world.server.answer("GET secret/data/", || {
        ok(&versioned(&json!({ "password": CANARY })))
    });
    let source = world.source(&kv2("smtp", "password"));
    let fetched = source.fetch().await.unwrap();
    assert_eq!(fetched.value.expose_str(), Some(CANARY));
    let vault = world.vaults.shared.open().values().next().unwrap().clone();
    let printed = format!("{source:?} {fetched:?} {vault:?} {:?}", world.vaults);
    assert!(!printed.contains("canary"), "{printed}");
}

#[tokio::test(start_paused = true)]
async fn a_403_is_about_the_secret_when_the_token_is_alive() {
    let world = World::new();
    let source = world.source(&kv2("smtp", "password"));
    source.fetch().await.unwrap();
    world.server.asked();
    world.server.answer("GET secret/data/", denied);
    source.due().await;
    let error = source.fetch().await.unwrap_err();
    assert!(matches!(error, FetchError::Denied(_)), "{error}");
    let asked = [
        "GET secret/data/smtp | hvs.1 | -",
        "GET auth/token/lookup-self | hvs.1 | -",
    ];
    assert_eq!(world.server.asked(), asked);
}
