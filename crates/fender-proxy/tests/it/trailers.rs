//! Trailers come after the decision (A1): nothing that it looked at, and nothing that is ours to say (H1), may be one of them.
//! Many servers make no difference between them and the fields of the head.

use std::convert::Infallible;

use bytes::Bytes;
use fender_config::snapshot::{AppProtocol, Inbound, Protocol};
use fender_policy::{Action, Condition, Policy, Rule};
use fender_proxy::Limits;
use fender_runtime::drain::Drain;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::io::AsyncWriteExt;

use crate::harness::*;

/// A guest may come in, and root may not.
fn by_field() -> Vec<Policy> {
    let rule = |value: &str| Rule {
        when: vec![Condition::Header {
            name: "x-user".to_owned(),
            values: vec![value.parse().unwrap()],
            not_values: vec![],
        }],
        ..Rule::default()
    };
    let deny = Policy {
        name: "shop/no-root".parse().unwrap(),
        action: Action::Deny,
        rules: vec![rule("root")],
    };
    vec![allow(vec![rule("guest")]), deny]
}

/// Those that would change whom the app takes the caller for: policy looked at the first two, the others are ours to say.
const FORGED: [&str; 7] = [
    "x-user",
    "x_user",
    "x-forwarded-client-cert",
    "x_forwarded-client_cert",
    "x-forwarded-for",
    "x-real-ip",
    "x-fender-peer",
];

async fn worlds(tasks: &Drain) -> [World; 2] {
    let plain = inbound(echo_app(tasks).await, Protocol::Http);
    let app = crate::h2c::app(tasks, crate::h2c::echo).await;
    let h2c = Inbound {
        app_protocol: AppProtocol::H2c,
        ..inbound(app, Protocol::Http)
    };
    [plain, h2c].map(|port| {
        let world = World::start(vec![port], vec![], Limits::default());
        world.change(|snapshot| snapshot.policies = policies(by_field()));
        world
    })
}

fn only_the_harmless_one_arrived(seen: &str) {
    assert!(seen.contains("x-user: guest"), "{seen}");
    assert!(!seen.contains("root"), "{seen}");
    assert!(seen.contains("{\"x-sum\": \"42\"}"), "{seen}");
}

#[tokio::test]
async fn attack_a_field_that_policy_matched_is_not_said_otherwise_in_the_trailers_of_http1() {
    let tasks = Drain::new();
    for world in worlds(&tasks).await {
        for forged in FORGED {
            let request = format!(
                "POST / HTTP/1.1\r\nhost: o\r\nx-user: guest\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n\
                 1\r\nx\r\n0\r\n{forged}: root\r\nx-sum: 42\r\n\r\n"
            );
            let answer = world.raw(&request).await;
            // Who says what only we may say is not carried at all.
            let is_policys = forged.ends_with("user");
            if !is_policys && answer.starts_with("HTTP/1.1 400 ") {
                continue;
            }
            only_the_harmless_one_arrived(&answer);
        }
    }
}

#[tokio::test]
async fn attack_nor_in_those_of_http2() {
    let tasks = Drain::new();
    for world in worlds(&tasks).await {
        let trailers = FORGED.map(|name| (name, "root")).into_iter();
        let trailers: HeaderMap = trailers
            .chain([("x-sum", "42")])
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect();
        let frames = [
            Frame::data(Bytes::from_static(b"x")),
            Frame::trailers(trailers),
        ];
        let frames = frames.map(Ok::<_, Infallible>);
        let body = StreamBody::new(futures_util::stream::iter(frames));
        let stream = world.client(&world.authority.svid(WEB), &[b"h2"]).await;
        let (executor, io) = (
            hyper_util::rt::TokioExecutor::new(),
            hyper_util::rt::TokioIo::new(stream),
        );
        let (mut client, connection) = hyper::client::conn::http2::handshake(executor, io)
            .await
            .unwrap();
        world.tasks.spawn(async move {
            let _ = connection.await;
        });
        let request = Request::post("https://o/")
            .header("x-user", "guest")
            .body(body);
        let answer = soon(client.send_request(request.unwrap())).await.unwrap();
        let seen = soon(answer.into_body().collect()).await.unwrap().to_bytes();
        only_the_harmless_one_arrived(&String::from_utf8_lossy(&seen));
    }
}

/// A rule that came while the body was on its way is a rule.
#[tokio::test]
async fn attack_a_field_of_a_newer_policy_is_judged_by_that() {
    let tasks = Drain::new();
    let [world, _] = worlds(&tasks).await;
    world.change(|snapshot| snapshot.policies = everybody());
    let mut stream = world.web().await;
    let begins = b"POST / HTTP/1.1\r\nhost: o\r\nx-user: guest\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n1\r\nx\r\n";
    stream.write_all(begins).await.unwrap();
    stream.flush().await.unwrap();
    world.change(|snapshot| snapshot.policies = policies(by_field()));
    let ends = b"0\r\nx-user: root\r\nx-sum: 42\r\n\r\n";
    stream.write_all(ends).await.unwrap();
    only_the_harmless_one_arrived(&rest(&mut stream).await);
}
