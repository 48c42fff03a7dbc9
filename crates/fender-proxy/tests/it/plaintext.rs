//! M1: ports that take plaintext, beside TLS or instead of it, and what a peer cannot make of that.

use fender_config::snapshot::{ClientCertificate, Mtls, Protocol};
use fender_policy::{Rule, Source, TextMatch};
use fender_proxy::Limits;
use fender_runtime::drain::Drain;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::attacks::anybody;
use crate::harness::{
    Authority, HOUR, NOW, ORDERS, WEB, World, allow, echo_app, inbound, last_get, logs_line,
    params, policies, raw_app, rest, soon,
};

async fn world(tasks: &Drain, mtls: Mtls) -> World {
    let mut port = inbound(echo_app(tasks).await, Protocol::Http);
    port.mtls = mtls;
    World::start(vec![port], vec![], Limits::default())
}

/// What comes back for these bytes without TLS, until the proxy closes. Some of it, if the connection broke.
async fn in_the_clear(world: &World, request: &str) -> String {
    let mut stream = TcpStream::connect(world.address()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    let _ = soon(stream.read_to_end(&mut all)).await;
    String::from_utf8_lossy(&all).into_owned()
}

#[tokio::test]
async fn a_permissive_port_takes_both_and_counts_who_came_in_the_clear() {
    let tasks = Drain::new();
    let world = world(&tasks, Mtls::Permissive).await;
    let seen = in_the_clear(&world, &last_get("/clear")).await;
    assert!(seen.starts_with("HTTP/1.1 200"), "{seen}");
    assert!(seen.contains("x-forwarded-proto: http\n"), "{seen}");
    assert!(!seen.contains("client-cert"), "{seen}");
    let line = logs_line("/clear").await;
    assert!(line.contains("\"tls_version\":\"none\""), "{line}");

    let seen = world.raw(&last_get("/sealed")).await;
    assert!(seen.contains(&format!("URI={WEB}")), "{seen}");
    assert!(seen.contains("x-forwarded-proto: https\n"), "{seen}");

    let counts = world.running.status().counts;
    assert_eq!((counts.connections, counts.plaintext), (2, 1));
}

#[tokio::test]
async fn attack_a_peer_in_the_clear_is_nobody_whatever_it_says() {
    let tasks = Drain::new();
    for mtls in [Mtls::Permissive, Mtls::Disabled] {
        let mut world = world(&tasks, mtls).await;
        let named = Source {
            principals: vec![TextMatch::Present],
            ..Source::default()
        };
        let rule = Rule {
            from: vec![named],
            ..Rule::default()
        };
        world.change(|snapshot| snapshot.policies = policies(vec![allow(vec![rule])]));
        for name in [
            "x-forwarded-client-cert",
            "X_Forwarded_Client_Cert",
            "X-Forwarded-Client-Cert",
        ] {
            let request = format!(
                "GET /x HTTP/1.1\r\nhost: o\r\nconnection: close\r\n{name}: By={ORDERS};URI={WEB}\r\n\r\n"
            );
            let answer = in_the_clear(&world, &request).await;
            assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
            assert_eq!(soon(world.records.recv()).await.unwrap().facts.peer, None);
        }
        world.change(|snapshot| snapshot.policies = crate::harness::everybody());
        let request = format!(
            "GET /x HTTP/1.1\r\nhost: o\r\nconnection: close\r\nx-forwarded-client-cert: URI={WEB}\r\n\
             x-forwarded-proto: https\r\n\r\n"
        );
        let seen = in_the_clear(&world, &request).await;
        assert!(seen.starts_with("HTTP/1.1 200"), "{seen}");
        assert!(!seen.contains(WEB) && !seen.contains("https"), "{seen}");
    }
}

#[tokio::test]
async fn attack_a_strict_port_answers_nobody_in_the_clear() {
    let tasks = Drain::new();
    for asked in [
        ClientCertificate::Require,
        ClientCertificate::Accept,
        ClientCertificate::Ignore,
    ] {
        let world = world(&tasks, Mtls::Strict(asked)).await;
        let answer = in_the_clear(&world, &last_get("/strict")).await;
        assert!(!answer.contains("HTTP"), "{answer}");
        assert_eq!(world.running.status().counts.plaintext, 0);
    }
}

#[tokio::test]
async fn attack_a_wrong_certificate_is_refused_where_none_would_do() {
    let tasks = Drain::new();
    let world = world(&tasks, Mtls::Permissive).await;
    let stranger = Authority::new().sign(params(&[WEB], NOW - HOUR, NOW + HOUR));
    let expired = world.authority.sign(params(&[WEB], NOW - HOUR, NOW - 1));
    for leaf in [stranger, expired] {
        let attempt = async {
            let mut stream = anybody(&world, Some(leaf)).await?;
            stream.write_all(last_get("/stolen").as_bytes()).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await
        };
        let error = soon(attempt).await.unwrap_err();
        assert!(error.to_string().contains("alert"), "{error}");
    }
    // Who shows none over TLS is nobody, as in the clear.
    let mut none = anybody(&world, None).await.unwrap();
    none.write_all(last_get("/none").as_bytes()).await.unwrap();
    let seen = rest(&mut none).await;
    assert!(seen.starts_with("HTTP/1.1 200"), "{seen}");
    assert!(!seen.contains("client-cert"), "{seen}");
}

#[tokio::test]
async fn a_port_without_tls_speaks_none() {
    let tasks = Drain::new();
    let clear = world(&tasks, Mtls::Disabled).await;
    let seen = in_the_clear(&clear, &last_get("/x")).await;
    assert!(seen.starts_with("HTTP/1.1 200"), "{seen}");
    let web = clear.authority.svid(WEB);
    assert!(clear.try_client(&web, &[b"http/1.1"]).await.is_err());

    let app = raw_app(&tasks, |mut socket| async move {
        // The server speaks first, and nobody waits for the client.
        socket.write_all(b"220 ready\r\n").await.unwrap();
        let mut asked = [0; 4];
        socket.read_exact(&mut asked).await.unwrap();
        socket.write_all(&asked).await.unwrap();
    });
    let mut port = inbound(app.await, Protocol::Tcp);
    port.mtls = Mtls::Disabled;
    let world = World::start(vec![port], vec![], Limits::default());
    let mut stream = TcpStream::connect(world.address()).await.unwrap();
    let mut greeting = [0; 11];
    soon(stream.read_exact(&mut greeting)).await.unwrap();
    assert_eq!(&greeting, b"220 ready\r\n");
    stream.write_all(b"QUIT").await.unwrap();
    assert_eq!(rest(&mut stream).await, "QUIT");
}

#[tokio::test]
async fn what_is_said_of_a_port_is_in_force_at_its_next_connection() {
    let tasks = Drain::new();
    let require = Mtls::Strict(ClientCertificate::Require);
    let world = world(&tasks, require).await;
    let set = |mtls| {
        world.change(|snapshot| {
            let mut ports = snapshot.inbound.clone();
            ports[0].mtls = mtls;
            snapshot.inbound = ports;
        });
    };
    for _ in 0..2 {
        set(Mtls::Permissive);
        world.settled().await;
        let seen = in_the_clear(&world, &last_get("/x")).await;
        assert!(seen.starts_with("HTTP/1.1 200"), "{seen}");
        set(require);
        world.settled().await;
        assert!(!in_the_clear(&world, &last_get("/x")).await.contains("HTTP"));
        assert!(world.raw(&last_get("/x")).await.starts_with("HTTP/1.1 200"));
    }
}

#[tokio::test]
async fn attack_silence_before_the_first_byte_is_held_to_the_deadline_of_a_handshake() {
    let tasks = Drain::new();
    let mut port = inbound(echo_app(&tasks).await, Protocol::Http);
    port.mtls = Mtls::Permissive;
    let limits = Limits {
        establish: std::time::Duration::from_millis(50),
        ..Limits::default()
    };
    let world = World::start(vec![port], vec![], limits);
    let mut silent = TcpStream::connect(world.address()).await.unwrap();
    let mut all = Vec::new();
    let _ = soon(silent.read_to_end(&mut all)).await;
    assert_eq!(all, b"");
}
