//! Requests that arrive as they should, and what the app sees of them.

use std::sync::Arc;

use bytes::Bytes;
use fender_config::AppAddress;
use fender_config::snapshot::{ClientCertificate, Mtls, Protocol};
use fender_identity::tls;
use fender_policy::{Rule, Source, TextMatch};
use fender_proxy::{Limits, Reason};
use fender_runtime::drain::Drain;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use rustls::HandshakeKind::{Full as Anew, Resumed};
use rustls::client::Resumption;
use rustls::{ClientConfig, HandshakeKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::harness::*;

#[tokio::test]
async fn http1_arrives_with_the_callers_identity_and_nothing_of_the_hop() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    let svid = world.authority.svid(WEB);
    let mut stream = world.client(&svid, &[b"http/1.1"]).await;
    let request = "POST /orders?id=7 HTTP/1.1\r\nHost: Orders:8443\r\nKeep-Alive: 5\r\n\
                   Connection: x-hop\r\nX-Hop: 1\r\nX-Kept: yes\r\nContent-Length: 5\r\n\r\nhello";
    stream.write_all(request.as_bytes()).await.unwrap();
    let (head, seen) = response(&mut stream).await;

    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(seen.starts_with("POST /orders?id=7\n"), "{seen}");
    assert!(
        seen.contains("host: orders:8443\n") && seen.contains("x-kept: yes\n"),
        "{seen}"
    );
    assert!(seen.contains("x-forwarded-for: 127.0.0.1\n"), "{seen}");
    assert!(seen.contains("x-forwarded-proto: https\n"), "{seen}");
    assert!(
        !seen.contains("x-hop") && !seen.contains("keep-alive"),
        "{seen}"
    );
    assert!(seen.ends_with("\n\nhello"), "{seen}");
    let hash: String = peer_fingerprint(&svid)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let identity = format!("x-forwarded-client-cert: By={ORDERS};Hash={hash};URI={WEB}\n");
    assert!(seen.contains(&identity), "{seen}");
}

fn peer_fingerprint(svid: &fender_identity::Svid) -> [u8; 32] {
    *tls::CaPin::of(&svid.chain()[0]).as_bytes()
}

#[tokio::test]
async fn http2_arrives_with_the_callers_identity() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    let mut client = world.web2().await;
    let request = Request::post("https://orders/things?a=b")
        .header(
            "x-forwarded-client-cert",
            "URI=spiffe://mesh.test/ns/shop/sa/admin",
        )
        .body(Full::new(Bytes::from_static(b"payload")))
        .unwrap();
    let response = soon(client.send_request(request)).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let seen = soon(response.into_body().collect())
        .await
        .unwrap()
        .to_bytes();
    let seen = String::from_utf8(seen.to_vec()).unwrap();
    assert!(
        seen.starts_with("POST /things?a=b\n") && seen.contains("host: orders\n"),
        "{seen}"
    );
    assert!(
        seen.contains(&format!(";URI={WEB}\n")) && !seen.contains("admin"),
        "{seen}"
    );
    assert!(seen.ends_with("\n\npayload"), "{seen}");
}

#[tokio::test]
async fn a_cookie_that_http2_cut_into_crumbs_arrives_whole() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    let mut client = world.web2().await;
    let request = Request::get("https://orders/")
        .header("cookie", "a=1")
        .header("x-between", "yes")
        .header("cookie", "b=2")
        .header("cookie", "c=3; d=4")
        .body(Full::default())
        .unwrap();
    let response = soon(client.send_request(request)).await.unwrap();
    let seen = soon(response.into_body().collect())
        .await
        .unwrap()
        .to_bytes();
    let seen = String::from_utf8(seen.to_vec()).unwrap();
    assert!(seen.contains("cookie: a=1; b=2; c=3; d=4\n"), "{seen}");
    assert_eq!(seen.matches("cookie").count(), 1, "{seen}");
}

#[tokio::test]
async fn an_answer_without_content_declares_no_length_and_the_connection_goes_on() {
    let tasks = Drain::new();
    let app = raw_app(&tasks, |mut socket| async move {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(socket.read_u8().await.unwrap());
        }
        let answer = "HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\nHTTP/";
        socket.write_all(answer.as_bytes()).await.unwrap();
    })
    .await;
    let world = World::http(app);
    let mut stream = world.web().await;
    for _ in 0..2 {
        stream.write_all(get("/none").as_bytes()).await.unwrap();
        let answer = head(&mut stream).await;
        assert!(
            answer.starts_with("HTTP/1.1 204") && !answer.contains("content-length"),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn a_body_declared_empty_stays_declared_empty() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    let request = "POST /e HTTP/1.1\r\nhost: o\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let seen = world.raw(request).await;
    assert!(seen.contains("\ncontent-length: 0\n"), "{seen}");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_on_one_connection() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    let mut stream = world.web().await;
    let two_bodies = "POST /b HTTP/1.1\r\nhost: o\r\ntransfer-encoding: chunked\r\n\r\n\
                      3\r\nabc\r\n0\r\n\r\nPUT /c HTTP/1.1\r\nhost: o\r\ncontent-length: 2\r\n\r\nxy";
    let all = format!("{}{two_bodies}{}", get("/a"), last_get("/d"));
    stream.write_all(all.as_bytes()).await.unwrap();
    for (expected, body) in [
        ("GET /a", ""),
        ("POST /b", "abc"),
        ("PUT /c", "xy"),
        ("GET /d", ""),
    ] {
        let (head, seen) = response(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(
            seen.starts_with(expected) && seen.ends_with(&format!("\n\n{body}")),
            "{seen}"
        );
    }
    assert_eq!(rest(&mut stream).await, "");
}

#[tokio::test]
async fn a_denied_request_gets_403_with_an_id_and_leaves_a_record() {
    let tasks = Drain::new();
    let mut world = World::http(echo_app(&tasks).await);
    world.change(|snapshot| {
        snapshot.policies = policies(vec![
            allow(vec![Rule::default()]),
            deny("shop/secret-name", &["/admin*"]),
        ]);
    });
    let mut stream = world.web().await;
    let request = "GET /admin/denied-line?token=hunter2 HTTP/1.1\r\nhost: o\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let (head, body) = response(&mut stream).await;
    let record = soon(world.records.recv()).await.unwrap();

    assert!(head.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{head}");
    assert!(head.contains("cache-control: no-store\r\n"), "{head}");
    assert!(
        head.contains(&format!("x-fender-decision: {}\r\n", record.id)),
        "{head}"
    );
    assert!(
        body.contains(&record.id.to_string()) && !body.contains("secret-name"),
        "{body}"
    );
    assert_eq!(record.facts.peer, Some(id(WEB)));
    assert_eq!((record.snapshot, record.workload), (2, Some(id(ORDERS))));
    assert_eq!(record.facts.request.unwrap().path, "/admin/denied-line");
    let Reason::Policy(explanation) = record.reason else {
        panic!("{:?}", record.reason)
    };
    assert!(
        explanation.decided_by.contains("shop/secret-name"),
        "{explanation:?}"
    );

    // The connection is still good.
    stream.write_all(get("/fine").as_bytes()).await.unwrap();
    assert!(response(&mut stream).await.0.starts_with("HTTP/1.1 200"));

    let line = logs_line("/admin/denied-line").await;
    assert!(
        line.contains("\"status\":403") && line.contains(&record.id.to_string()),
        "{line}"
    );
    assert!(line.contains("\"target\":\"access\""), "{line}");
    assert!(logged("hunter2").is_empty(), "a query string was logged");
}

#[tokio::test]
async fn http2_is_denied_alike() {
    let tasks = Drain::new();
    let mut world = World::http(echo_app(&tasks).await);
    world.change(|snapshot| snapshot.policies = policies(vec![]));
    let mut client = world.web2().await;
    let request = Request::get("https://orders/x")
        .body(Full::default())
        .unwrap();
    let response = soon(client.send_request(request)).await.unwrap();
    let record = soon(world.records.recv()).await.unwrap();
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert_eq!(
        response.headers()["x-fender-decision"],
        record.id.to_string()
    );
}

#[tokio::test]
async fn an_anonymous_peer_is_nobody_where_certificates_are_optional() {
    let tasks = Drain::new();
    let mut port = inbound(echo_app(&tasks).await, Protocol::Http);
    port.mtls = Mtls::Strict(ClientCertificate::Accept);
    let mut world = World::start(vec![port], vec![], Limits::default());
    let named = Source {
        principals: vec![TextMatch::Present],
        ..Source::default()
    };
    let rule = Rule {
        from: vec![named],
        ..Rule::default()
    };
    world.change(|snapshot| snapshot.policies = policies(vec![allow(vec![rule])]));

    let request = format!(
        "GET /x HTTP/1.1\r\nhost: o\r\nconnection: close\r\nx-forwarded-client-cert: URI={WEB}\r\n\r\n"
    );
    let mut anonymous = crate::attacks::anybody(&world, None).await.unwrap();
    anonymous.write_all(request.as_bytes()).await.unwrap();
    assert!(rest(&mut anonymous).await.starts_with("HTTP/1.1 403"));
    assert_eq!(soon(world.records.recv()).await.unwrap().facts.peer, None);
    assert!(world.raw(&request).await.starts_with("HTTP/1.1 200"));

    world.change(|snapshot| snapshot.policies = everybody());
    let mut anonymous = crate::attacks::anybody(&world, None).await.unwrap();
    anonymous.write_all(request.as_bytes()).await.unwrap();
    let seen = rest(&mut anonymous).await;
    assert!(
        seen.starts_with("HTTP/1.1 200") && !seen.contains("client-cert"),
        "{seen}"
    );
}

#[tokio::test]
async fn the_body_is_asked_for_only_after_the_decision() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    world.change(|snapshot| {
        snapshot.policies = policies(vec![allow(vec![Rule::default()]), deny("shop/d", &["/no"])]);
    });
    let ask = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nhost: o\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n"
        )
    };
    let mut stream = world.web().await;
    stream.write_all(ask("/yes").as_bytes()).await.unwrap();
    assert_eq!(head(&mut stream).await, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"body").await.unwrap();
    let (answer, seen) = response(&mut stream).await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && seen.ends_with("body"),
        "{seen}"
    );
    assert!(!seen.contains("expect"), "{seen}");

    stream.write_all(ask("/no").as_bytes()).await.unwrap();
    let all = rest(&mut stream).await;
    assert!(
        all.starts_with("HTTP/1.1 403") && all.contains("connection: close\r\n"),
        "{all}"
    );
}

#[tokio::test]
async fn request_trailers_reach_the_app() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    let request = "POST /t HTTP/1.1\r\nhost: o\r\nconnection: close\r\ntrailer: x-sum\r\n\
                   transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-sum: 42\r\n\r\n";
    let seen = world.raw(request).await;
    assert!(seen.contains("trailers: {\"x-sum\": \"42\"}"), "{seen}");
}

/// An app that merged it with the head would go on with a trace that nobody judged.
#[tokio::test]
async fn attack_a_trace_context_in_the_trailers_does_not_reach_the_app() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    let request = "POST /t HTTP/1.1\r\nhost: o\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\
                   TraceParent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\ntracestate: a=b\r\nx-sum: 42\r\n\r\n";
    let seen = world.raw(request).await;
    assert!(seen.contains("trailers: {\"x-sum\": \"42\"}"), "{seen}");
}

#[tokio::test]
async fn head_requests_keep_the_length_and_send_no_body() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    let mut stream = world.web().await;
    stream
        .write_all(b"HEAD /h HTTP/1.1\r\nhost: o\r\n\r\n")
        .await
        .unwrap();
    let answer = head(&mut stream).await;
    assert!(
        answer.contains("content-length: ") && !answer.contains("length: 0"),
        "{answer}"
    );
    stream
        .write_all(last_get("/after").as_bytes())
        .await
        .unwrap();
    assert!(rest(&mut stream).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn an_empty_answer_over_http2_is_a_whole_one() {
    let tasks = Drain::new();
    let app = hyper_app(&tasks, |_: Request<hyper::body::Incoming>| async {
        let mut response = http::Response::new(Full::<Bytes>::default());
        *response.status_mut() = StatusCode::NO_CONTENT;
        Ok::<_, std::convert::Infallible>(response)
    })
    .await;
    let world = World::http(app);
    let mut client = world.web2().await;
    let request = Request::get("https://o/empty-line")
        .body(Full::default())
        .unwrap();
    assert_eq!(
        soon(client.send_request(request)).await.unwrap().status(),
        204
    );
    assert!(
        logs_line("/empty-line")
            .await
            .contains("\"outcome\":\"ok\"")
    );
}

#[tokio::test]
async fn an_app_behind_a_unix_socket_is_served() {
    let tasks = Drain::new();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("app.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    tasks.spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        head(&mut socket).await;
        let answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nfrom a socket";
        socket.write_all(answer).await.unwrap();
    });
    let mut port = inbound(nobody().await, Protocol::Http);
    port.app = AppAddress::Unix(path);
    let world = World::start(vec![port], vec![], Limits::default());
    let answer = world.raw(&last_get("/")).await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("from a socket"),
        "{answer}"
    );
}

#[tokio::test]
async fn options_of_the_whole_server_reach_the_app() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    let request = "OPTIONS * HTTP/1.1\r\nhost: o\r\nconnection: close\r\n\r\n";
    assert!(world.raw(request).await.contains("OPTIONS *\n"));
}

#[tokio::test]
async fn an_http_1_0_client_is_served_once() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    for request in [
        "GET /old HTTP/1.0\r\nhost: o\r\n\r\n",
        "GET http://o/old HTTP/1.0\r\n\r\n",
    ] {
        let seen = world.raw(request).await;
        assert!(
            seen.starts_with("HTTP/1.1 200") && seen.contains("GET /old\n"),
            "{seen}"
        );
        assert!(seen.contains("host: o\n"), "{seen}");
    }
}

/// It would go on as HTTP/1.1, which must name a host, and no policy has judged one.
#[tokio::test]
async fn a_request_that_names_no_host_is_refused_in_http_1_0_too() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    let answer = world.raw("GET /old HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[tokio::test]
async fn an_app_that_is_down_is_503_with_a_fault_id_and_no_address() {
    let nobody = nobody().await;
    let world = World::http(nobody);
    let answer = world.raw(&last_get("/down-line")).await;
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("x-fender-fault: "),
        "{answer}"
    );
    assert!(!answer.contains(&nobody.port().to_string()), "{answer}");
    let line = logs_line("/down-line").await;
    assert!(line.contains("\"outcome\":\"upstream\""), "{line}");
    assert!(line.contains(&nobody.to_string()), "{line}");
}

#[tokio::test]
async fn bytes_are_carried_on_a_tcp_port_and_a_denied_peer_is_closed() {
    let tasks = Drain::new();
    let app = raw_app(&tasks, |mut socket| async move {
        let (mut read, mut write) = socket.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let mut world = World::tcp(app);
    let mut stream = world.client(&world.authority.svid(WEB), &[]).await;
    stream.write_all(b"ping").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(rest(&mut stream).await, "ping");

    world.change(|snapshot| snapshot.policies = policies(vec![]));
    let mut stream = world.client(&world.authority.svid(WEB), &[]).await;
    let mut nothing = Vec::new();
    let _ = soon(AsyncReadExt::read_to_end(&mut stream, &mut nothing)).await;
    assert!(nothing.is_empty());
    assert_eq!(
        soon(world.records.recv()).await.unwrap().facts.request,
        None
    );
}

#[tokio::test]
async fn an_app_that_writes_bare_line_feeds_is_heard_with_proper_ones() {
    let tasks = Drain::new();
    let app = raw_app(&tasks, |mut socket| async move {
        head(&mut socket).await;
        let answer = b"HTTP/1.0 200 OK\nContent-Type: text/plain\n\nby a script";
        let _ = socket.write_all(answer).await;
    })
    .await;
    let world = World::http(app);
    let answer = world.raw(&last_get("/cgi-bin/x")).await;
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"),
        "{answer}"
    );
    assert!(answer.contains("by a script"), "{answer}");
}

#[tokio::test]
async fn a_session_goes_on_after_a_change_of_the_rules_and_not_after_one_of_trust() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    let web = world.authority.svid(WEB);
    let mut client = ClientConfig::clone(&world.client_config(&web, &[b"http/1.1"]));
    client.resumption = Resumption::in_memory_sessions(8);
    let client = Arc::new(client);
    let again = async || {
        let socket = TcpStream::connect(world.address()).await.unwrap();
        let connecting = TlsConnector::from(client.clone());
        let connecting = connecting.connect(tls::server_name(&id(ORDERS)), socket);
        let mut stream = soon(connecting).await.unwrap();
        // The ticket comes before the answer.
        stream.write_all(get("/").as_bytes()).await.unwrap();
        let (head, _) = response(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        stream.get_ref().1.handshake_kind().unwrap()
    };
    let mut kinds: Vec<HandshakeKind> = vec![again().await];
    world.change(|snapshot| snapshot.drain *= 2);
    world.settled().await;
    kinds.push(again().await);
    let stranger = world.authority.svid("spiffe://mesh.test/ns/shop/sa/other");
    world.change(|snapshot| {
        Arc::make_mut(&mut snapshot.trust.denied).deny_serial(stranger.serial().clone());
    });
    world.settled().await;
    kinds.push(again().await);
    assert_eq!(kinds, [Anew, Resumed, Anew]);
}
