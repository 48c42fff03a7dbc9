//! What is leased: shared, renewed, read anew, given back.

use super::server::{away, denied, leased, login, ok, renewal, status};
use super::*;
use crate::State;

fn user() -> VaultSecret {
    creds("username")
}

#[tokio::test(start_paused = true)]
async fn all_keys_are_of_one_lease_whoever_asks_and_when() {
    let world = World::new();
    let [user, password] = [user(), creds("password")].map(|secret| world.source(&secret));
    let (one, other) = tokio::join!(user.fetch(), password.fetch());
    assert_eq!(text(one).unwrap(), "v-orders-2");
    assert_eq!(user.standing(), Standing::Lent);
    assert_eq!(text(other).unwrap(), "A1a-2");
    // Another refresh is no other lease.
    let late = VaultSecret {
        refresh: HOUR,
        ..creds("password")
    };
    assert_eq!(world.fetch(&late).await.unwrap(), "A1a-2");
    let asked = world.server.asked();
    assert_eq!(Server::count(&asked, "GET database/creds/orders"), 1);
}

#[tokio::test(start_paused = true)]
async fn the_whole_is_of_the_lease_that_its_keys_are_of_and_renewed_with_it() {
    let world = World::new();
    let [all, password] = [whole(creds("")), creds("password")].map(|it| world.source(&it));
    let first = all.fetch().await.unwrap();
    let expected = r#"{"password":"A1a-2","username":"v-orders-2"}"#;
    assert_eq!(first.value.expose_str(), Some(expected));
    assert_eq!(all.standing(), Standing::Lent);
    assert_eq!(text(password.fetch().await).unwrap(), "A1a-2");
    all.due().await;
    let renewed = all.fetch().await.unwrap();
    assert_eq!(renewed.generation, first.generation);
    let asked = world.server.asked();
    assert_eq!(Server::count(&asked, "GET database/creds/orders"), 1);
    assert_eq!(Server::count(&asked, "POST sys/leases/renew"), 1);
    // Another user with another password: both are another, together.
    world
        .server
        .answer("POST sys/leases/renew", || ok(&renewal("x", 900)));
    for _ in 0..2 {
        all.due().await;
        all.fetch().await.unwrap();
    }
    let next = all.fetch().await.unwrap();
    assert_ne!(next.generation, first.generation);
    let expected = r#"{"password":"A1a-3","username":"v-orders-3"}"#;
    assert_eq!(next.value.expose_str(), Some(expected));
    let asked = world.end().await.asked();
    let ended = "POST auth/token/revoke-self";
    assert_eq!(Server::count(&asked, ended), 1, "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_for_as_long_as_somebody_names_it_and_the_value_stays() {
    let world = World::new();
    let mut states = crate::watch(world.source(&user()), &world.drain);
    states
        .wait_for(|state| matches!(state, State::Current(_)))
        .await
        .unwrap();
    states.mark_unchanged();
    world.server.asked();
    tokio::time::sleep(5 * HOUR).await;
    assert!(!states.has_changed().unwrap());
    let asked = world.server.asked();
    assert_eq!(Server::count(&asked, "GET database/creds/orders"), 0);
    let renewed: Vec<_> = asked
        .iter()
        .filter(|asked| asked.starts_with("POST sys/leases/renew"))
        .collect();
    assert!((7..=10).contains(&renewed.len()), "{renewed:?}");
    assert_eq!(
        renewed[0],
        r#"POST sys/leases/renew | hvs.1 | {"increment":3600,"lease_id":"database/creds/orders/lease-2"}"#
    );
}

#[tokio::test(start_paused = true)]
async fn a_lease_whose_greatest_age_is_near_is_read_anew_for_all_its_keys_at_once() {
    let world = World::new();
    let [user, password] = [user(), creds("password")].map(|secret| world.source(&secret));
    user.fetch().await.unwrap();
    password.fetch().await.unwrap();
    world
        .server
        .answer("POST sys/leases/renew", || ok(&renewal("x", 900)));
    user.due().await;
    assert_eq!(text(user.fetch().await).unwrap(), "v-orders-2", "renewed");
    user.due().await;
    assert_eq!(text(user.fetch().await).unwrap(), "v-orders-3", "read anew");
    // Who did not look yet learns of it at once.
    let began = Instant::now();
    password.due().await;
    assert_eq!(text(password.fetch().await).unwrap(), "A1a-3");
    assert_eq!(began.elapsed(), Duration::ZERO);
    let asked = world.server.asked();
    assert_eq!(Server::count(&asked, "POST sys/leases/renew"), 1);
    assert_eq!(Server::count(&asked, "GET database/creds/orders"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_not_renewed_any_more_is_read_anew_at_once() {
    let unknown = status(400, &serde_json::json!({ "errors": ["lease not found"] }));
    for reply in [Ok(unknown), denied()] {
        let world = World::new();
        let source = world.source(&user());
        source.fetch().await.unwrap();
        world
            .server
            .answer("POST sys/leases/renew", move || reply.clone());
        source.due().await;
        assert_eq!(text(source.fetch().await).unwrap(), "v-orders-3");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_not_renewable_is_read_anew_before_its_end() {
    let world = World::new();
    world
        .server
        .answer_once("GET database/creds", ok(&leased(7, 600, false)));
    let source = world.source(&user());
    assert_eq!(text(source.fetch().await).unwrap(), "v-orders-7");
    let began = Instant::now();
    source.due().await;
    assert_eq!(text(source.fetch().await).unwrap(), "v-orders-2");
    let waited = began.elapsed();
    assert!(
        waited >= 300 * SECOND && waited <= 401 * SECOND,
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_has_no_lease_is_read_again_when_it_is_time() {
    let world = World::new();
    // <https://developer.hashicorp.com/vault/api-docs/secret/databases#get-static-credentials>
    world.server.answer("GET database/static-creds/orders", || {
        ok(&serde_json::json!({
            "request_id": "1", "lease_id": "", "renewable": false, "lease_duration": 0,
            "data": {
                "username": "static-user", "password": "132ae3ef-5a64-7499-351e-bfe59f3a2a21",
                "last_vault_rotation": "2019-05-06T15:26:42.525302-05:00",
                "rotation_period": 30, "ttl": 28
            },
            "wrap_info": null, "warnings": null, "auth": null
        }))
    });
    let place = VaultPlace::Engine {
        path: path("database/static-creds/orders"),
    };
    let source = world.source(&at(app_role(), place, "username"));
    assert_eq!(text(source.fetch().await).unwrap(), "static-user");
    assert_eq!(source.standing(), Standing::Asked);
    let began = Instant::now();
    source.due().await;
    assert!(began.elapsed() <= 67 * SECOND, "{:?}", began.elapsed());
    let asked = world.end().await.asked();
    assert_eq!(Server::count(&asked, "POST sys/leases"), 0);
}

#[tokio::test(start_paused = true)]
async fn an_outage_takes_nothing_away_before_the_lease_ends_and_then_says_so() {
    let world = World::new();
    let mut states = crate::watch(world.source(&user()), &world.drain);
    states
        .wait_for(|state| matches!(state, State::Current(_)))
        .await
        .unwrap();
    states.mark_unchanged();
    let began = Instant::now();
    world.server.answer("", away);
    states.changed().await.unwrap();
    let state = states.borrow_and_update().clone();
    assert!(
        matches!(&state, State::Stale { last: Some(_), error, .. } if error.to_string().contains("has ended")),
        "{state:?}"
    );
    let lasted = began.elapsed();
    assert!(
        lasted >= HOUR - SECOND && lasted <= HOUR + MINUTE,
        "{lasted:?}"
    );
    world.server.recover();
    states.changed().await.unwrap();
    let state = states.borrow_and_update().clone();
    assert!(
        matches!(&state, State::Current(fetched) if fetched.value.expose_str() != Some("v-orders-2")),
        "{state:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_lease_ends_with_its_token_and_is_read_anew_with_the_next() {
    let world = World::new();
    world
        .server
        .answer_once("POST auth/approle/login", ok(&login("hvs.short", 1200)));
    world.server.answer("POST auth/token/renew-self", denied);
    let source = world.source(&user());
    assert_eq!(text(source.fetch().await).unwrap(), "v-orders-1");
    let began = Instant::now();
    // At about half of the token's time there is another token, and with it another lease.
    while text(source.fetch().await).unwrap() == "v-orders-1" {
        source.due().await;
    }
    let waited = began.elapsed();
    assert!(waited <= 662 * SECOND, "{waited:?}");
    let asked = world.server.asked();
    assert_eq!(
        Server::count(&asked, "GET database/creds/orders"),
        2,
        "{asked:?}"
    );
    let asked = world.end().await.asked();
    assert_eq!(
        Server::count(&asked, "POST auth/token/revoke-self"),
        2,
        "{asked:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_cannot_be_read_anew_with_the_next_token_is_not_asked_for_without_end() {
    let world = World::new();
    world
        .server
        .answer_once("POST auth/approle/login", ok(&login("hvs.short", 1200)));
    world.server.answer("POST auth/token/renew-self", denied);
    let source = world.source(&user());
    source.fetch().await.unwrap();
    let failed = status(500, &serde_json::json!({ "errors": ["no connection"] }));
    world
        .server
        .answer("GET database/creds", move || Ok(failed.clone()));
    let began = Instant::now();
    let mut looks = 0;
    while began.elapsed() < 1100 * SECOND {
        source.due().await;
        assert_eq!(text(source.fetch().await).unwrap(), "v-orders-1");
        looks += 1;
    }
    assert!(looks < 100, "{looks}");
}

#[tokio::test(start_paused = true)]
async fn at_the_end_a_lease_goes_with_our_token_and_by_itself_with_a_token_of_a_file() {
    let world = World::new();
    let source = world.source(&user());
    source.fetch().await.unwrap();
    world.server.asked();
    assert_eq!(
        world.end().await.asked(),
        ["POST auth/token/revoke-self | hvs.1 | {}"]
    );

    let world = World::new();
    let of_file = VaultSecret {
        store: store(VaultLogin::Token {
            file: "/token".into(),
        }),
        ..user()
    };
    let source = world.source(&of_file);
    source.fetch().await.unwrap();
    world.server.asked();
    let revoked = r#"POST sys/leases/revoke | content-of-token | {"lease_id":"database/creds/orders/lease-1"}"#;
    assert_eq!(world.end().await.asked(), [revoked]);
}

#[tokio::test(start_paused = true)]
async fn what_somebody_goes_on_using_is_left_and_nothing_else_is() {
    let world = World::ending(true);
    let source = world.source(&user());
    source.fetch().await.unwrap();
    world.server.asked();
    assert!(world.end().await.asked().is_empty());

    let world = World::ending(true);
    let source = world.source(&kv2("smtp", "password"));
    source.fetch().await.unwrap();
    world.server.asked();
    assert_eq!(
        world.end().await.asked(),
        ["POST auth/token/revoke-self | hvs.1 | {}"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_nobody_names_any_more_is_given_back_after_a_while() {
    let world = World::new();
    let kept = world.source(&kv2("smtp", "password"));
    let source = world.source(&user());
    kept.fetch().await.unwrap();
    source.fetch().await.unwrap();
    world.server.asked();
    drop(source);
    tokio::time::sleep(8 * MINUTE).await;
    let asked = world.server.asked();
    let revoked =
        r#"POST sys/leases/revoke | hvs.1 | {"lease_id":"database/creds/orders/lease-2"}"#;
    assert_eq!(asked, [revoked]);
    assert_eq!(world.fetch(&user()).await.unwrap(), "v-orders-3");
}
