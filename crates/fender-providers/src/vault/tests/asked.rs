//! How much is asked, by many, of a server that is well and of one that is not.

use std::collections::BTreeSet;

use super::server::{away, ok, status, too_many, versioned};
use super::*;
use crate::State;

/// Five hundred credentials, followed as a sidecar follows them.
fn five_hundred(world: &World) -> Vec<watch::Receiver<State>> {
    (0..500)
        .map(|number| {
            let source = world.source(&kv2(&format!("s{number}"), "password"));
            crate::watch(source, &world.drain)
        })
        .collect()
}

async fn all(states: &mut [watch::Receiver<State>], is: impl Fn(&State) -> bool) {
    for state in states {
        state.wait_for(|state| is(state)).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn five_hundred_credentials_log_in_once_and_take_turns() {
    let world = World::new();
    let began = Instant::now();
    let mut states = five_hundred(&world);
    all(&mut states, |state| matches!(state, State::Current(_))).await;
    let asked = world.server.asked();
    assert_eq!(Server::count(&asked, "POST auth/approle/login"), 1);
    assert_eq!(asked.len(), 501);
    let places: BTreeSet<_> = asked.iter().collect();
    assert_eq!(places.len(), 501, "each of them once");
    assert!(world.server.most_at_once() <= 8);
    // Twenty-five at once and fifty a second.
    let took = began.elapsed();
    assert!(took >= 9 * SECOND && took <= 11 * SECOND, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn five_hundred_credentials_ask_a_server_that_is_away_as_one() {
    let world = World::new();
    let mut states = five_hundred(&world);
    all(&mut states, |state| matches!(state, State::Current(_))).await;
    world.server.answer("", away);
    world.server.asked();
    all(&mut states, |state| {
        matches!(state, State::Stale { last: Some(_), .. })
    })
    .await;
    // Those that were on their way, and then one at a time: the waits double to half a minute.
    tokio::time::sleep(10 * MINUTE).await;
    let asked = world.server.asked();
    assert!(asked.len() <= 8 + 60, "{}", asked.len());

    world.server.recover();
    all(&mut states, |state| matches!(state, State::Current(_))).await;
    let asked = world.server.asked();
    assert!(asked.len() <= 2 * 500, "{}", asked.len());
    assert_eq!(Server::count(&asked, "POST auth/approle/login"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_was_asked_too_often_is_left_alone_for_as_long_as_it_wishes() {
    let world = World::new();
    let mut states = five_hundred(&world);
    all(&mut states, |state| matches!(state, State::Current(_))).await;
    world.server.answer("", || too_many(300));
    world.server.asked();
    all(&mut states, |state| matches!(state, State::Stale { .. })).await;
    let asked = world.server.asked().len();
    assert!(asked <= 8, "{asked}");
    tokio::time::sleep(250 * SECOND).await;
    assert_eq!(world.server.asked(), Vec::<String>::new());
    // It wished for 300 s, and gets up to a tenth more; who comes then is told the same.
    tokio::time::sleep(110 * SECOND).await;
    assert_eq!(world.server.asked().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn one_place_that_fails_delays_no_other() {
    let world = World::new();
    let failed = status(
        500,
        &serde_json::json!({ "errors": ["no connection to the database"] }),
    );
    world
        .server
        .answer("GET secret/data/s0 ", move || Ok(failed.clone()));
    let mut states = five_hundred(&world);
    all(&mut states[1..], |state| matches!(state, State::Current(_))).await;
    all(&mut states[..1], |state| {
        matches!(state, State::Stale { last: None, .. })
    })
    .await;

    // What changes at another place is there with its next look.
    world.server.answer("GET secret/data/s1 ", || {
        ok(&versioned(&serde_json::json!({ "password": "next" })))
    });
    let began = Instant::now();
    let next = |state: &State| {
        let value = state.value().and_then(|fetched| fetched.value.expose_str());
        value == Some("next")
    };
    all(&mut states[1..2], next).await;
    assert!(began.elapsed() <= 70 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_comes_back_is_seen_within_its_backoff() {
    let world = World::new();
    world.server.answer("", away);
    let mut states = crate::watch(world.source(&kv2("smtp", "password")), &world.drain);
    states
        .wait_for(|state| matches!(state, State::Stale { .. }))
        .await
        .unwrap();
    tokio::time::sleep(10 * MINUTE).await;
    world.server.recover();
    let began = Instant::now();
    states
        .wait_for(|state| matches!(state, State::Current(_)))
        .await
        .unwrap();
    assert!(began.elapsed() <= 35 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_is_taken_away_is_withdrawn_and_comes_back() {
    let world = World::new();
    let mut states = crate::watch(world.source(&kv2("smtp", "password")), &world.drain);
    states
        .wait_for(|state| matches!(state, State::Current(_)))
        .await
        .unwrap();
    world
        .server
        .answer("GET secret/data/", || server::deleted(false));
    states
        .wait_for(|state| matches!(state, State::Withdrawn(FetchError::Missing(_))))
        .await
        .unwrap();
    world.server.recover();
    states
        .wait_for(|state| matches!(state, State::Current(_)))
        .await
        .unwrap();
}
