//! H1: what an app is told of the way of a request, and by whom nothing of it can be forged.

use std::net::IpAddr;

use fender_config::snapshot::{AppProtocol, Behind, Forwarded, ForwardedFields, Inbound, Protocol};
use fender_policy::{Rule, Source};
use fender_proxy::Limits;
use fender_runtime::drain::Drain;
use tokio::io::AsyncWriteExt;

use crate::harness::*;

/// What an attacker would like to be told of them.
const FORGED: &str = "x-forwarded-for: 10.66.66.66\r\nX_Forwarded_For: 10.66.66.66\r\nx-forwarded_for: 10.66.66.66\r\n\
     X-Forwarded-Proto: forged\r\nx-forwarded-host: forged\r\nx-forwarded-port: forged\r\nx-forwarded-prefix: forged\r\n\
     forwarded: for=10.66.66.66\r\nFORWARDED: for=10.66.66.66\r\nx-real-ip: 10.66.66.66\r\nx_real_ip: 10.66.66.66\r\n";

fn rules(fields: ForwardedFields, behind: Option<Behind>) -> Forwarded {
    Forwarded { fields, behind }
}

/// Behind proxies of which the last has this address or this identity.
fn behind(hops: u8, from: &[&str], identities: &[&str]) -> Option<Behind> {
    Some(Behind {
        hops: hops.try_into().unwrap(),
        from: from.iter().map(|text| text.parse().unwrap()).collect(),
        identities: identities.iter().map(|text| id(text)).collect(),
    })
}

async fn world(tasks: &Drain, forwarded: Forwarded) -> World {
    let port = Inbound {
        forwarded,
        ..inbound(echo_app(tasks).await, Protocol::Http)
    };
    World::start(vec![port], vec![], Limits::default())
}

/// What the app was told: its fields of this family, as they came.
fn told(answer: &str) -> Vec<&str> {
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let (_, seen) = answer.split_once("\r\n\r\n").unwrap();
    let family = |line: &&str| {
        let folded = line.to_lowercase().replace('_', "-");
        let kin = ["x-forwarded-", "forwarded", "x-real-ip"];
        kin.iter().any(|name| folded.starts_with(name))
            && !folded.starts_with("x-forwarded-client-cert")
    };
    seen.lines().filter(family).collect()
}

fn request(fields: &str) -> String {
    format!("GET /way HTTP/1.1\r\nhost: o\r\nconnection: close\r\n{fields}\r\n")
}

#[tokio::test]
async fn nobody_is_believed_by_default_and_nothing_of_the_family_passes() {
    let tasks = Drain::new();
    let x = vec!["x-forwarded-for: 127.0.0.1", "x-forwarded-proto: https"];
    let rfc = vec!["forwarded: for=127.0.0.1;proto=https"];
    for (fields, expected) in [
        (ForwardedFields::XForwarded, x.clone()),
        (ForwardedFields::Forwarded, rfc.clone()),
        (ForwardedFields::Both, [x, rfc].concat()),
        (ForwardedFields::Nothing, vec![]),
    ] {
        let world = world(&tasks, rules(fields, None)).await;
        for forged in ["", FORGED] {
            let answer = world.raw(&request(forged)).await;
            assert_eq!(told(&answer), expected, "{fields:?}");
            assert!(
                !answer.contains("10.66.66.66") && !answer.contains("forged"),
                "{answer}"
            );
        }
    }
}

/// The attack: to be from wherever one likes, in front of a port that believes others.
#[tokio::test]
async fn whoever_is_not_the_proxy_is_believed_about_nothing() {
    let tasks = Drain::new();
    let elsewhere = behind(
        1,
        &["192.0.2.0/24", "::ffff:0:0/97"],
        &["spiffe://mesh.test/ns/edge/sa/gateway"],
    );
    let mut world = world(&tasks, rules(ForwardedFields::Both, elsewhere)).await;
    let answer = world.raw(&request(FORGED)).await;
    let expected = [
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-proto: https",
        "forwarded: for=127.0.0.1;proto=https",
    ];
    assert_eq!(told(&answer), expected);
    // Nor does policy judge whom they name.
    world
        .change(|snapshot| snapshot.policies = policies(vec![allow(vec![only("10.66.66.66/32")])]));
    let answer = world.raw(&request(FORGED)).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    let facts = soon(world.records.recv()).await.unwrap().facts;
    assert_eq!(facts.remote_ip, Some(IpAddr::from([127, 0, 0, 1])));
}

fn only(remote: &str) -> Rule {
    let source = Source {
        remote_ip_blocks: vec![remote.parse().unwrap()],
        ..Source::default()
    };
    Rule {
        from: vec![source],
        ..Rule::default()
    }
}

/// What the proxies did not add a client wrote.
#[tokio::test]
async fn a_proxy_is_believed_for_as_many_hops_as_there_are() {
    let tasks = Drain::new();
    let sent = "x-forwarded-for: 10.66.66.66, <script>, 203.0.113.9\r\nx-forwarded-for: 198.51.100.2:4711\r\n\
                X_Forwarded_For: 10.66.66.66\r\nx-forwarded-proto: HTTP\r\nx-forwarded-host: forged\r\n\
                forwarded: for=10.66.66.66\r\nx-real-ip: 10.66.66.66\r\n";
    for (hops, chain) in [
        (1, vec!["198.51.100.2", "127.0.0.1"]),
        (2, vec!["203.0.113.9", "198.51.100.2", "127.0.0.1"]),
    ] {
        for last in [
            behind(hops, &["127.0.0.0/8"], &[]),
            behind(hops, &[], &[WEB]),
        ] {
            let world = world(&tasks, rules(ForwardedFields::Both, last)).await;
            let answer = world.raw(&request(sent)).await;
            let list = format!("x-forwarded-for: {}", chain.join(", "));
            let (first, rest) = chain.split_first().unwrap();
            let elements = rest
                .iter()
                .map(|hop| format!(", for={hop}"))
                .collect::<String>();
            let elements = format!("forwarded: for={first};proto=http{elements};proto=https");
            assert_eq!(
                told(&answer),
                [&*list, "x-forwarded-proto: http", &elements]
            );
            assert!(
                !answer.contains("66.66") && !answer.contains("forged"),
                "{answer}"
            );
        }
    }
}

#[tokio::test]
async fn policies_and_lines_mean_the_client_and_the_proxy_by_their_names() {
    let tasks = Drain::new();
    let mut world = world(
        &tasks,
        rules(ForwardedFields::default(), behind(1, &[], &[WEB])),
    )
    .await;
    let mut rule = only("203.0.113.9/32");
    rule.from[0].ip_blocks = vec!["127.0.0.1/32".parse().unwrap()];
    world.change(|snapshot| snapshot.policies = policies(vec![allow(vec![rule])]));
    let ask = |path: &str, client: &str| {
        format!("GET {path} HTTP/1.1\r\nhost: o\r\nx-forwarded-for: {client}\r\n\r\n")
    };
    // One connection, for two clients.
    let mut stream = world.web().await;
    stream
        .write_all(ask("/way-of-nine", "203.0.113.9").as_bytes())
        .await
        .unwrap();
    let (head, _) = response(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    stream
        .write_all(ask("/way-of-ten", "203.0.113.10").as_bytes())
        .await
        .unwrap();
    let (head, _) = response(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    let facts = soon(world.records.recv()).await.unwrap().facts;
    assert_eq!(facts.remote_ip, Some(IpAddr::from([203, 0, 113, 10])));
    assert_eq!(facts.source_ip, Some(IpAddr::from([127, 0, 0, 1])));
    let line = logs_line("/way-of-nine").await;
    assert!(line.contains("\"client\":\"203.0.113.9\""), "{line}");
    assert!(line.contains("\"source\":\"127.0.0.1:"), "{line}");
}

/// A proxy that forgets to say whom it asks for does not lend its callers its own address, nor one proxy that of another.
#[tokio::test]
async fn attack_a_client_whom_the_proxies_do_not_name_is_nobody_to_policies() {
    let tasks = Drain::new();
    let block = || "127.0.0.0/8".parse().unwrap();
    let not = Rule {
        from: vec![Source {
            not_remote_ip_blocks: vec!["203.0.113.0/24".parse().unwrap()],
            ..Source::default()
        }],
        ..Rule::default()
    };
    let inside = only("127.0.0.0/8");
    let deny_outside = fender_policy::Policy {
        name: "shop/outside".parse().unwrap(),
        action: fender_policy::Action::Deny,
        rules: vec![only("203.0.113.0/24")],
    };
    for (hops, fields) in [(1, ""), (2, ""), (2, "x-forwarded-for: 127.0.0.7\r\n")] {
        let behind = Some(Behind {
            hops: hops.try_into().unwrap(),
            from: vec![block()],
            identities: vec![],
        });
        let mut world = world(&tasks, rules(ForwardedFields::default(), behind)).await;
        for all in [
            vec![allow(vec![inside.clone()])],
            vec![allow(vec![not.clone()])],
            // Whoever it is may be the one who is kept out.
            vec![allow(vec![Rule::default()]), deny_outside.clone()],
        ] {
            world.change(|snapshot| snapshot.policies = policies(all));
            let answer = world.raw(&request(fields)).await;
            assert!(
                answer.starts_with("HTTP/1.1 403 "),
                "{hops} {fields:?}: {answer}"
            );
            let facts = soon(world.records.recv()).await.unwrap().facts;
            assert_eq!(facts.remote_ip, None);
            // Who connected is known all the same.
            assert_eq!(facts.source_ip, Some(IpAddr::from([127, 0, 0, 1])));
        }
        // A health check asks for nobody, where nobody is asked about; the app is told who connected.
        world.change(|snapshot| snapshot.policies = everybody());
        let answer = world.raw(&request(fields)).await;
        let list = match fields {
            "" => "x-forwarded-for: 127.0.0.1",
            _ => "x-forwarded-for: 127.0.0.7, 127.0.0.1",
        };
        assert_eq!(told(&answer), [list, "x-forwarded-proto: https"]);
    }
}

/// A gateway that is no longer trusted, on the connection that it has.
#[tokio::test]
async fn whom_a_port_stands_behind_is_asked_for_each_request_by_the_newest_rules() {
    let tasks = Drain::new();
    let trusted = rules(ForwardedFields::default(), behind(1, &[], &[WEB]));
    let mut world = world(&tasks, trusted.clone()).await;
    let mut stream = world.web().await;
    let ask = "GET /way HTTP/1.1\r\nhost: o\r\nx-forwarded-for: 203.0.113.9\r\n\r\n";
    let through = "x-forwarded-for: 203.0.113.9, 127.0.0.1";
    let direct = "x-forwarded-for: 127.0.0.1";
    let nobody = rules(ForwardedFields::default(), None);
    for (rules, expected) in [
        (trusted.clone(), through),
        (nobody.clone(), direct),
        (trusted, through),
        (nobody, direct),
    ] {
        world.change(|snapshot| snapshot.inbound[0].forwarded = rules);
        stream.write_all(ask.as_bytes()).await.unwrap();
        let (head, seen) = response(&mut stream).await;
        assert_eq!(
            told(&format!("{head}{seen}")),
            [expected, "x-forwarded-proto: https"]
        );
    }
    // Nor does policy judge whom it names.
    world
        .change(|snapshot| snapshot.policies = policies(vec![allow(vec![only("203.0.113.9/32")])]));
    stream.write_all(ask.as_bytes()).await.unwrap();
    let (head, _) = response(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    let facts = soon(world.records.recv()).await.unwrap().facts;
    assert_eq!(facts.remote_ip, Some(IpAddr::from([127, 0, 0, 1])));
}

/// Nobody could say whom a policy would judge.
#[tokio::test]
async fn what_a_proxy_says_is_refused_where_it_can_be_read_in_two_ways() {
    let tasks = Drain::new();
    let world = world(
        &tasks,
        rules(ForwardedFields::default(), behind(2, &[], &[WEB])),
    )
    .await;
    for sent in [
        "x-forwarded-for: unknown",
        "x-forwarded-for: 203.0.113.9, localhost",
        "x-forwarded-for: 203.0.113.9 198.51.100.2",
        "x-forwarded-for: 203.0.113.09",
        "x-forwarded-for: 203.0.113.9\r\nx-forwarded-proto: https, http",
        "x-forwarded-proto: http\r\nx-forwarded-proto: https",
        "x-forwarded-proto: javascript",
    ] {
        let answer = world.raw(&request(&format!("{sent}\r\n"))).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{sent}: {answer}");
        assert!(!answer.contains("GET /way"), "{sent}: {answer}");
    }
    logs_line("an entry of `X-Forwarded-For` that counts is no address").await;
}

#[tokio::test]
async fn an_app_of_http2_is_told_the_same() {
    let tasks = Drain::new();
    let port = Inbound {
        app_protocol: AppProtocol::H2c,
        forwarded: rules(ForwardedFields::Both, behind(1, &[], &[WEB])),
        ..inbound(
            crate::h2c::app(&tasks, crate::h2c::echo).await,
            Protocol::Http,
        )
    };
    let world = World::start(vec![port], vec![], Limits::default());
    let answer = world
        .raw(&request("x-forwarded-for: 10.66.66.66, 2001:db8::1\r\n"))
        .await;
    let expected = [
        "x-forwarded-for: 2001:db8::1, 127.0.0.1",
        "x-forwarded-proto: https",
        "forwarded: for=\"[2001:db8::1]\";proto=https, for=127.0.0.1;proto=https",
    ];
    assert_eq!(told(&answer), expected);
}
