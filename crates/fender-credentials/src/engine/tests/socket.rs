//! What the engine hands over at the socket.

use std::time::Duration;

use fender_config::snapshot::SocketDelivery;

use super::*;
use crate::handover::{Doors, Handovers};

const APP: u32 = 1000;

fn handing() -> (Bench, Handovers) {
    let handovers = Handovers::new(Doors {
        socket: true,
        url: false,
    });
    let mut bench = Bench::new();
    bench.settings.handovers = Some(handovers.clone());
    (bench, handovers)
}

/// A credential for these users, and in no file.
fn handed(bench: &Bench, users: &[u32]) -> CredentialSpec {
    CredentialSpec {
        deliver: vec![Delivery::Socket(SocketDelivery {
            name: "db".parse().unwrap(),
            users: users.iter().map(ToString::to_string).collect(),
        })],
        ..bench.spec("db", &[])
    }
}

/// What a user is answered, without what it would be given.
fn answer(handovers: &Handovers, user: u32) -> String {
    let (answer, file) = handovers.look_up(user, &"db".parse().unwrap()).unwrap();
    let answer = answer.to_string();
    assert_eq!(file.is_some(), answer.starts_with("ok "));
    answer
}

#[tokio::test(start_paused = true)]
async fn a_credential_for_the_socket_alone_is_delivered_once_it_can_be_handed_over() {
    let (bench, handovers) = handing();
    bench.remote.says("db", current("one"));
    bench.publish(vec![handed(&bench, &[APP])]);
    let mut held = bench.start().await.unwrap();
    let is =
        |text: &'static str| move |holding: Option<&Holding>| holding == Some(&delivered(text));
    holding(&mut held, "db", is("one")).await;
    assert_eq!(answer(&handovers, APP), "ok one 3 0");

    bench.remote.says("db", current("other"));
    holding(&mut held, "db", is("other")).await;
    assert_eq!(answer(&handovers, APP), "ok other 5 0");
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_withdrawn_or_too_old_or_dropped_is_not_handed_over() {
    let (bench, handovers) = handing();
    bench.remote.says("db", current("one"));
    bench.publish(vec![handed(&bench, &[APP])]);
    let mut held = bench.start().await.unwrap();
    let stale = State::Stale {
        last: Some(fetched("one")),
        error: FetchError::Outage("away".to_owned()),
        since: None,
    };
    bench.remote.says("db", stale);
    let outdated = |holding: Option<&Holding>| matches!(holding, Some(Holding::Outdated { .. }));
    holding(&mut held, "db", outdated).await;
    tokio::time::advance(MAX_STALE - Duration::from_secs(1)).await;
    assert!(answer(&handovers, APP).starts_with("ok one 3 "));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(answer(&handovers, APP), "outdated");

    bench.remote.says("db", current("one"));
    holding(&mut held, "db", |holding| {
        holding == Some(&delivered("one"))
    })
    .await;
    assert_eq!(answer(&handovers, APP), "ok one 3 0");
    let refused = State::Withdrawn(FetchError::Denied("403".to_owned()));
    bench.remote.says("db", refused);
    let withdrawn = |holding: Option<&Holding>| matches!(holding, Some(Holding::Withdrawn { .. }));
    holding(&mut held, "db", withdrawn).await;
    assert_eq!(answer(&handovers, APP), "withdrawn");

    bench.remote.says("db", current("two"));
    holding(&mut held, "db", |holding| {
        holding == Some(&delivered("two"))
    })
    .await;
    assert_eq!(answer(&handovers, APP), "ok two 3 0");
    bench.publish(Vec::new());
    holding(&mut held, "db", |holding| holding.is_none()).await;
    assert_eq!(answer(&handovers, APP), "missing");
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn attack_a_document_that_cannot_be_carried_out_hands_nothing_to_those_of_the_one_before() {
    let (bench, handovers) = handing();
    bench.remote.says("db", current("one"));
    bench.publish(vec![handed(&bench, &[APP, 7])]);
    let mut held = bench.start().await.unwrap();
    assert_eq!(answer(&handovers, APP), "ok one 3 0");
    let mut ghost = handed(&bench, &[APP]);
    if let Delivery::Socket(socket) = &mut ghost.deliver[0] {
        socket.users.push("no-such-user".to_owned());
    }
    bench.publish(vec![ghost]);
    let outdated = |holding: Option<&Holding>| matches!(holding, Some(Holding::Outdated { why, .. }) if why.contains("no-such-user"));
    holding(&mut held, "db", outdated).await;
    assert_eq!(answer(&handovers, APP), "missing");
    bench.publish(vec![handed(&bench, &[APP])]);
    holding(&mut held, "db", |holding| {
        holding == Some(&delivered("one"))
    })
    .await;
    assert_eq!(
        (answer(&handovers, APP), answer(&handovers, 7)),
        ("ok one 3 0".into(), "missing".into())
    );
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn without_a_socket_nothing_starts_that_is_handed_over_at_one() {
    let bench = Bench::new();
    bench.remote.says("db", current("one"));
    bench.publish(vec![handed(&bench, &[APP])]);
    let error = bench.start().await.unwrap_err();
    assert_eq!(error.exit_code(), 64);
    assert!(
        error.to_string().contains("--credentials-socket"),
        "{error}"
    );
    bench.end().await;
}
