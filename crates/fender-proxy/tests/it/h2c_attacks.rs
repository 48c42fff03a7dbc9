//! Attacks across the border between a peer and an app of HTTP/2: what either of them writes means one thing to
//! the other.

use std::future::poll_fn;

use fender_runtime::drain::Drain;
use h2::Reason;
use http::{HeaderMap, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::frames::*;
use crate::h2c::*;
use crate::harness::*;

/// RFC 3986 §3.4: what HTTP/1 forgives and HTTP/2 cannot say is nobody's fault but the peer's.
#[tokio::test]
async fn a_query_that_http2_cannot_say_is_refused_and_not_changed() {
    let tasks = Drain::new();
    let world = world(app(&tasks, echo).await);
    for held in ["\"", "<", ">"] {
        let answer = world.raw(&last_get(&format!("/a?q={held}x"))).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{held}: {answer}");
    }
    for held in ["%22", "{}", "|", "'", "?", "[1]"] {
        let answer = world.raw(&last_get(&format!("/a?q={held}x"))).await;
        let whole = format!("GET http://orders/a?q={held}x\n");
        assert!(answer.contains(&whole), "{held}: {answer}");
    }
}

/// RFC 9113 §8.2.2, §8.3.2, and what HTTP/1 would make of it.
#[tokio::test]
async fn a_head_that_is_not_one_of_http2_is_no_response() {
    let ok = (":status".to_owned(), "200".to_owned());
    let with = |name: &str, value: &str| vec![ok.clone(), (name.to_owned(), value.to_owned())];
    let many = |count: usize, value: &str| {
        let field = |number| (format!("x-{number}"), value.to_owned());
        [ok.clone()]
            .into_iter()
            .chain((0..count).map(field))
            .collect()
    };
    let status = |status: &str| vec![(":status".to_owned(), status.to_owned())];
    let heads: Vec<(&str, Vec<(String, String)>)> = vec![
        ("a transfer coding", with("transfer-encoding", "chunked")),
        ("a connection option", with("connection", "close")),
        ("another", with("keep-alive", "timeout=5")),
        ("a change of protocols", with("upgrade", "h2c")),
        ("the same by its status", status("101")),
        ("no status", vec![("x-a".to_owned(), "1".to_owned())]),
        ("half a status", status("20")),
        ("a second status", with(":status", "403")),
        ("a length that never comes", with("content-length", "3")),
        ("no length", with("content-length", "+0")),
        ("two lengths", with("content-length", "0, 0")),
        ("a name in upper case", with("X-A", "1")),
        ("a name with a colon", with("x-a: 1\r\nx-b", "1")),
        (
            "a value with a line",
            with("x-a", "1\r\n\r\nHTTP/1.1 200 OK"),
        ),
        ("a value with a zero", with("x-a", "\0")),
        ("more fields than there may be", many(101, "")),
        ("more bytes than there may be", many(20, &"x".repeat(2048))),
        ("far more", many(90, &"x".repeat(32 * 1024))),
    ];
    for (what, head) in heads {
        let tasks = Drain::new();
        let app = app_of_frames(&tasks, move |stream| {
            headers(END_STREAM, stream, &block(head.clone()))
        })
        .await;
        let world = world(app);
        let answer = world.raw(&last_get("/")).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{what}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{what}: {answer}");
        let (response, _) = peer(&world).await.send_request(get2("/"), true).unwrap();
        let status = soon(response).await.unwrap().status();
        assert_eq!(status, StatusCode::BAD_GATEWAY, "{what}");
    }
}

/// The attack: bytes where the receiver expects the next response.
#[tokio::test]
async fn a_body_is_what_its_head_said_or_its_connection_ends() {
    // Method, head, body, and how many responses there may be on a connection.
    let answers = [
        ("HEAD", vec![(":status", "200")], "poison", 2),
        (
            "HEAD",
            vec![(":status", "200"), ("content-length", "6")],
            "poison",
            2,
        ),
        ("GET", vec![(":status", "204")], "poison", 2),
        ("GET", vec![(":status", "304")], "poison", 2),
        (
            "GET",
            vec![(":status", "304"), ("content-length", "6")],
            "poison",
            2,
        ),
        (
            "GET",
            vec![(":status", "200"), ("content-length", "1")],
            "xpoison",
            1,
        ),
        (
            "GET",
            vec![(":status", "200"), ("content-length", "9")],
            "short",
            1,
        ),
    ];
    for (method, head, body, responses) in answers {
        let tasks = Drain::new();
        let sent = head.clone();
        let app = app_of_frames(&tasks, move |stream| {
            let mut answer = headers(0, stream, &block(sent.clone()));
            answer.extend(frame(DATA, END_STREAM, stream, body.as_bytes()));
            answer
        })
        .await;
        let world = world(app);
        let request = format!("{method} / HTTP/1.1\r\nhost: o\r\n\r\n");
        let last = format!("{method} / HTTP/1.1\r\nhost: o\r\nconnection: close\r\n\r\n");
        let mut stream = world.web().await;
        stream
            .write_all((request + &last).as_bytes())
            .await
            .unwrap();
        // How it ends is how the peer knows that something is missing.
        let mut answer = Vec::new();
        let ended = soon(stream.read_to_end(&mut answer)).await;
        let answer = String::from_utf8(answer).unwrap();
        assert_eq!(ended.is_ok(), responses == 2, "{method} {head:?}: {answer}");
        let count = answer.matches("HTTP/1.1").count();
        assert!(count <= responses, "{method} {head:?}: {answer}");
        assert!(!answer.contains("poison"), "{method} {head:?}: {answer}");

        let mut request = get2("/");
        *request.method_mut() = method.parse().unwrap();
        let (response, _) = peer(&world).await.send_request(request, true).unwrap();
        let Ok(mut response) = soon(response).await else {
            continue;
        };
        match soon(collect(response.body_mut())).await {
            Ok((body, _)) if responses == 2 => assert_eq!(body, b"", "{method} {head:?}"),
            Ok(body) => assert_eq!(response.status(), StatusCode::BAD_GATEWAY, "{body:?}"),
            Err(_) => assert_eq!(responses, 1, "{method} {head:?}"),
        }
    }
}

/// An empty piece is a common way to say that there is nothing.
#[tokio::test]
async fn an_empty_piece_is_no_body() {
    for (method, status, length, said) in [
        ("HEAD", "200", "6", Some("6")),
        ("GET", "304", "6", Some("6")),
        ("GET", "204", "0", None),
        ("GET", "200", "0", Some("0")),
    ] {
        let tasks = Drain::new();
        let app = app_of_frames(&tasks, move |stream| {
            let fields = [(":status", status), ("content-length", length)];
            let mut answer = headers(0, stream, &block(fields));
            answer.extend(frame(DATA, END_STREAM, stream, b""));
            answer
        })
        .await;
        let request = format!("{method} / HTTP/1.1\r\nhost: o\r\nconnection: close\r\n\r\n");
        let answer = world(app).raw(&request).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        let told = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        assert_eq!(told, said, "{method} {answer}");
        assert_eq!(body, "", "{method} {status}");
    }
}

/// P4 and H1 on the way to an app of HTTP/2: no field of HTTP/1 becomes one that frames or routes there.
#[tokio::test]
async fn fields_of_http1_mean_nothing_else_to_the_app() {
    let tasks = Drain::new();
    let world = world(app(&tasks, echo).await);
    let ask = async |fields: &str| {
        let head = "POST /judged HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n";
        world.raw(&format!("{head}{fields}\r\n\r\n")).await
    };
    for field in [
        ":path: /admin",
        ":authority: admin",
        ":method: DELETE",
        ":scheme: https",
        "content-length: 1\r\ntransfer-encoding: chunked",
        "content-length: 0\r\ncontent-length: 1",
        "x-a: 1\n:path: /admin",
        "x a: 1",
        "connection: x-forwarded-client-cert",
    ] {
        let answer = ask(field).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{field}: {answer}");
    }
    for (field, name) in [
        ("connection: keep-alive\r\nkeep-alive: 5", "keep-alive"),
        ("proxy-connection: keep-alive", "proxy-connection"),
        (
            "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__",
            "upgrade",
        ),
        ("http2-settings: AAMAAABkAAQAAP__", "http2-settings"),
        ("proxy-authorization: Basic eA==", "proxy-authorization"),
        (
            "X_Forwarded_Client_Cert: URI=spiffe://mesh.test/ns/x/sa/y",
            "x_forwarded_client_cert",
        ),
        ("Forwarded: for=1.2.3.4", "forwarded"),
        ("Proxy: http://evil", "proxy"),
    ] {
        let answer = ask(field).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{field}: {answer}");
        assert!(
            answer.contains("POST http://orders/judged\n"),
            "{field}: {answer}"
        );
        assert!(
            !answer.contains(&format!("\n{name}: ")),
            "{field}: {answer}"
        );
    }
    let answer = ask("te: gzip, trailers;q=0.5").await;
    assert_eq!(answer.matches("\nte: ").count(), 1, "{answer}");
    assert!(answer.contains("\nte: trailers\n"), "{answer}");
}

/// P1: what was matched is what is forwarded, whatever the app speaks.
#[tokio::test]
async fn a_path_is_the_same_for_an_app_of_either_version() {
    let tasks = Drain::new();
    let worlds = [
        world(app(&tasks, echo).await),
        World::http(echo_app(&tasks).await),
    ];
    for byte in (0x21..=0xff_u8).filter(|byte| *byte != b'?') {
        let mut request = b"GET /a".to_vec();
        request.push(byte);
        request.extend(b"b?q%41 HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n");
        let mut targets = Vec::new();
        for world in &worlds {
            let mut stream = world.web().await;
            stream.write_all(&request).await.unwrap();
            let answer = rest(&mut stream).await;
            targets.push(match answer.split_once("GET ") {
                Some((_, seen)) => {
                    let target = seen.lines().next().unwrap();
                    target.trim_start_matches("http://orders").to_owned()
                }
                None => answer.lines().next().unwrap().to_owned(),
            });
        }
        assert_eq!(targets[0], targets[1], "{byte:#x}");
    }
}

/// RFC 9113 §8.1: a server that wants no more of a request says so after its answer.
#[tokio::test]
async fn an_answer_that_comes_before_the_end_of_the_request_is_passed_on_whole() {
    let tasks = Drain::new();
    let app = app(&tasks, |_, request, mut respond| async move {
        let mut stream = respond.send_response(Response::new(()), false).unwrap();
        stream.send_data("early".into(), false).unwrap();
        let trailers =
            HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
        stream.send_trailers(trailers).unwrap();
        // With it goes a reset without an error.
        drop(request);
    })
    .await;
    let world = world(app);
    let (response, mut sending) = peer(&world).await.send_request(post("/"), false).unwrap();
    let mut response = soon(response).await.unwrap();
    let (body, trailers) = soon(collect(response.body_mut())).await.unwrap();
    assert_eq!(body, b"early");
    assert_eq!(trailers.unwrap()["grpc-status"], "0");
    let reset = soon(poll_fn(|cx| sending.poll_reset(cx))).await;
    assert!(
        matches!(reset, Ok(Reason::NO_ERROR | Reason::CANCEL)),
        "{reset:?}"
    );
}

/// A5: what only we may say no app says, before its body or behind it.
#[tokio::test]
async fn an_app_cannot_say_that_we_refused() {
    let tasks = Drain::new();
    let app = app(&tasks, |_, _, mut respond| async move {
        let mut response = Response::new(());
        let ours = [
            ("x-fender-decision", "forged"),
            ("x-fender-fault", "forged"),
        ];
        for (name, value) in ours {
            response.headers_mut().insert(name, value.parse().unwrap());
        }
        let mut trailers = response.headers().clone();
        trailers.insert("grpc-status", "7".parse().unwrap());
        trailers.insert("content-length", "7".parse().unwrap());
        let mut stream = respond.send_response(response, false).unwrap();
        stream.send_trailers(trailers).unwrap();
    })
    .await;
    let world = world(app);
    let (response, _) = peer(&world).await.send_request(post("/"), true).unwrap();
    let mut response = soon(response).await.unwrap();
    let (_, trailers) = soon(collect(response.body_mut())).await.unwrap();
    let expected = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "7".parse().unwrap())]);
    assert_eq!(trailers, Some(expected));
    assert!(response.headers().is_empty(), "{:?}", response.headers());

    let request = "GET / HTTP/1.1\r\nhost: o\r\nte: trailers\r\nconnection: te, close\r\n\r\n";
    let answer = world.raw(request).await;
    assert!(answer.contains("grpc-status: 7\r\n"), "{answer}");
    assert!(!answer.contains("forged"), "{answer}");
}
