//! What an attacker does with HTTP/2: many streams, streams nobody reads, heads without bounds, and
//! requests that mean something else once they are HTTP/1.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fender_proxy::Limits;
use fender_runtime::drain::Drain;
use http::Request;
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use crate::frames::block;
use crate::harness::*;

#[tokio::test]
async fn the_streams_of_one_peer_open_no_more_connections_to_the_app_than_there_are_slots() {
    let tasks = Drain::new();
    let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counts, peak) = (open.clone(), most.clone());
    let app = raw_app(&tasks, move |mut socket| {
        let (open, most) = (counts.clone(), peak.clone());
        async move {
            most.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            // Never answers.
            let _ = socket.read_to_end(&mut Vec::new()).await;
            open.fetch_sub(1, Ordering::SeqCst);
        }
    })
    .await;
    let limits = Limits {
        links: 2,
        establish: Duration::from_secs(2),
        ..Limits::default()
    };
    let port = inbound(app, fender_config::snapshot::Protocol::Http);
    let world = World::start(vec![port], vec![], limits);
    let client = world.web2().await;
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut client = client.clone();
        let request = Request::get("https://orders/held")
            .body(Full::default())
            .unwrap();
        asked.spawn(async move { client.send_request(request).await.unwrap().status() });
    }
    for _ in 0..6 {
        let status = soon(asked.join_next()).await.unwrap().unwrap();
        assert_eq!(status, http::StatusCode::SERVICE_UNAVAILABLE);
    }
    assert_eq!(most.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_stream_whose_response_is_not_taken_is_reset_and_the_others_go_on() {
    let tasks = Drain::new();
    let (ended, mut ends) = watch::channel(false);
    let ended = Arc::new(ended);
    let app = raw_app(&tasks, move |mut socket| {
        let ended = ended.clone();
        async move {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let Ok(byte) = socket.read_u8().await else {
                    return;
                };
                request.push(byte);
            }
            if request.starts_with(b"GET /short") {
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                let _ = socket.write_all(answer).await;
                return;
            }
            let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n";
            let _ = socket.write_all(head).await;
            while socket.write_all(&[b'x'; 16 * 1024]).await.is_ok() {}
            ended.send_replace(true);
        }
    })
    .await;
    let limits = Limits {
        stall: Duration::from_millis(300),
        ..Limits::default()
    };
    let port = inbound(app, fender_config::snapshot::Protocol::Http);
    let world = World::start(vec![port], vec![], limits);
    let mut client = world.web2().await;
    let ask = |path: &str| {
        Request::get(format!("https://orders{path}"))
            .body(Full::default())
            .unwrap()
    };
    let endless = soon(client.send_request(ask("/endless"))).await.unwrap();
    soon(ends.wait_for(|ended| *ended)).await.unwrap();
    let short = soon(client.send_request(ask("/short"))).await.unwrap();
    let short = soon(short.into_body().collect()).await.unwrap().to_bytes();
    assert_eq!(short, "ok");
    assert!(soon(endless.into_body().collect()).await.is_err());
}

/// A slow loris of many streams: bodies that are announced and do not come.
#[tokio::test]
async fn an_upload_that_stands_still_ends_and_a_conversation_does_not() {
    let tasks = Drain::new();
    let limits = Limits {
        stall: Duration::from_secs(2),
        ..Limits::default()
    };
    // The app awaits the body, or answers before it.
    let app = crate::h2c::app(&tasks, |_, request, mut respond| async move {
        let talks = request.uri().path() == "/talk";
        let mut body = request.into_body();
        if talks {
            let response = http::Response::new(());
            let mut stream = respond.send_response(response, false).unwrap();
            let said = body.data().await.unwrap().unwrap();
            stream.send_data(said, true).unwrap();
        } else {
            let _ = crate::h2c::collect(&mut body).await;
        }
    })
    .await;
    let world = World::start(vec![crate::h2c::port(app)], vec![], limits);
    let mut peer = crate::h2c::peer(&world).await;
    let talk = crate::h2c::post("/talk");
    let (talk, mut talks) = peer.send_request(talk, false).unwrap();
    let mut talk = soon(talk).await.unwrap().into_body();
    let stands = crate::h2c::post("/stands");
    let (answer, mut stands) = peer.send_request(stands, false).unwrap();
    stands.send_data("half".into(), false).unwrap();
    let answer = soon(answer).await.unwrap();
    assert_eq!(answer.status(), http::StatusCode::REQUEST_TIMEOUT);
    // It began before, and has been silent for longer.
    talks.send_data("well".into(), true).unwrap();
    let (said, _) = soon(crate::h2c::collect(&mut talk)).await.unwrap();
    assert_eq!(said, b"well");
}

/// What comes is gathered for the app as far as it is there, and never waited for.
#[tokio::test]
async fn a_body_that_comes_piece_by_piece_goes_on_piece_by_piece() {
    let tasks = Drain::new();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let app = raw_app(&tasks, move |mut socket| {
        let tell = tell.clone();
        async move {
            head(&mut socket).await;
            loop {
                let mut piece = vec![0; PIECE];
                if socket.read_exact(&mut piece).await.is_err() || tell.send(piece[0]).is_err() {
                    return;
                }
            }
        }
    })
    .await;
    // Small ones are copied together, large ones lie side by side.
    const PIECE: usize = 10_000;
    let world = World::http(app);
    let mut peer = crate::h2c::peer(&world).await;
    let request = Request::post("https://orders/slow").header("content-length", u32::MAX);
    let request = request.body(()).unwrap();
    let (_answer, mut body) = peer.send_request(request, false).unwrap();
    for which in 0..40 {
        let piece = vec![which; PIECE];
        let (large, small) = piece.split_at(PIECE - 1000 * usize::from(which % 2));
        for part in [large, small] {
            if !part.is_empty() {
                body.send_data(part.to_vec().into(), false).unwrap();
            }
        }
        assert_eq!(soon(told.recv()).await, Some(which));
    }
}

#[tokio::test]
async fn uploads_that_the_app_does_not_take_hold_up_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("app.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let tasks = Drain::new();
    let apps = tasks.clone();
    tasks.spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            apps.spawn(async move {
                let request = head(&mut socket).await;
                if request.starts_with("POST /stuck ") {
                    // Open, and never read.
                    return std::future::pending().await;
                }
                let mut body = vec![0; UPLOAD];
                socket.read_exact(&mut body).await.unwrap();
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                socket.write_all(answer).await.unwrap();
            });
        }
    });
    // Much more than a stream's window and what the kernel holds of a Unix socket.
    const UPLOAD: usize = 2 * 1024 * 1024;
    let mut port = inbound(nobody().await, fender_config::snapshot::Protocol::Http);
    port.app = fender_config::AppAddress::Unix(socket);
    let world = World::start(vec![port], vec![], Limits::default());
    let client = world.web2().await;
    let body = bytes::Bytes::from(vec![b'x'; UPLOAD]);
    let upload = |path: &str| {
        let request = Request::post(format!("https://orders{path}")).body(Full::new(body.clone()));
        let mut client = client.clone();
        async move { client.send_request(request.unwrap()).await }
    };
    let mut stuck = tokio::task::JoinSet::new();
    for _ in 0..Limits::default().streams - 1 {
        stuck.spawn(upload("/stuck"));
    }
    let answer = soon(upload("/taken")).await.unwrap();
    assert_eq!(answer.status(), http::StatusCode::OK);
    assert!(stuck.try_join_next().is_none(), "they are stuck");
}

#[tokio::test]
async fn an_http2_head_is_held_to_the_limits_of_an_http1_head() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    let mut client = world.web2().await;
    let long = format!("https://orders/?{}", "q".repeat(8 * 1024));
    let request = Request::get(long).body(Full::default()).unwrap();
    let answer = soon(client.send_request(request)).await.unwrap();
    assert_eq!(answer.status(), http::StatusCode::URI_TOO_LONG);

    let mut request = Request::get("https://orders/").body(Full::default());
    let headers = request.as_mut().unwrap().headers_mut();
    for at in 0..101 {
        let name = http::HeaderName::try_from(format!("x-{at}")).unwrap();
        headers.insert(name, http::HeaderValue::from_static("1"));
    }
    let answer = soon(client.send_request(request.unwrap())).await.unwrap();
    let too_large = http::StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    assert_eq!(answer.status(), too_large);
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags, 0, 0, 0, stream]);
    frame.extend(payload);
    frame
}

/// One HTTP/2 request by hand, its fields exactly as given; the kind of frame that answers it.
async fn by_hand(world: &World, fields: &[(&str, &str)]) -> Option<u8> {
    let (end_stream_and_headers, settings, headers) = (0x5, 4, 1);
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    let mut stream = world.client(&world.authority.svid(WEB), &[b"h2"]).await;
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(settings, 0, 0, &[]));
    bytes.extend(frame(headers, end_stream_and_headers, 1, &block));
    stream.write_all(&bytes).await.unwrap();
    loop {
        let mut head = [0; 9];
        if soon(stream.read_exact(&mut head)).await.is_err() {
            return None;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        soon(stream.read_exact(&mut payload)).await.ok()?;
        // A response, a reset or a farewell.
        if matches!(head[3], 1 | 3 | 7) {
            return Some(head[3]);
        }
    }
}

/// CVE-2023-44487: nobody waits for the answer, but the app would be at work on it.
#[tokio::test]
async fn attack_a_request_that_is_given_up_in_the_same_breath_does_not_reach_the_app() {
    const END_STREAM_AND_HEADERS: u8 = 0x5;
    let tasks = Drain::new();
    let (served, mut arrived) = tokio::sync::mpsc::unbounded_channel();
    // Its connection is kept, and the next request finds it.
    let app = raw_app(&tasks, move |mut socket| {
        let served = served.clone();
        async move {
            loop {
                served.send(head(&mut socket).await).unwrap();
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                socket.write_all(answer).await.unwrap();
            }
        }
    })
    .await;
    let world = World::http(app);
    let mut stream = world.client(&world.authority.svid(WEB), &[b"h2"]).await;
    let ask = |stream: u8, method: &str, path: &str| {
        let fields = [
            (":method", method),
            (":scheme", "https"),
            (":authority", "orders"),
            (":path", path),
        ];
        frame(1, END_STREAM_AND_HEADERS, stream, &block(fields))
    };
    let cancel = |stream: u8| frame(3, 0, stream, &8_u32.to_be_bytes());
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    bytes.extend(ask(1, "GET", "/first"));
    stream.write_all(&bytes).await.unwrap();
    ended(&mut stream, 1).await;
    // In one record, and so read at once.
    let breath = [
        ask(3, "DELETE", "/given-up"),
        cancel(3),
        ask(5, "GET", "/last"),
    ];
    stream.write_all(&breath.concat()).await.unwrap();
    ended(&mut stream, 5).await;
    for path in ["/first", "/last"] {
        let head = soon(arrived.recv()).await.unwrap();
        assert!(head.starts_with(&format!("GET {path} ")), "{head}");
    }
    assert!(arrived.try_recv().is_err());
}

/// Reads until the response on this stream has ended.
async fn ended(connection: &mut (impl AsyncReadExt + Unpin), stream: u8) {
    loop {
        let mut head = [0; 9];
        soon(connection.read_exact(&mut head)).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        soon(connection.read_exact(&mut payload)).await.unwrap();
        if head[8] == stream && matches!(head[3], 0 | 1) && head[4] & 1 != 0 {
            return;
        }
    }
}

#[tokio::test]
async fn smuggling_through_the_downgrade_from_http2_never_reaches_the_app() {
    let tasks = Drain::new();
    let served = Arc::new(AtomicUsize::new(0));
    let count = served.clone();
    let app = raw_app(&tasks, move |mut socket| {
        count.fetch_add(1, Ordering::SeqCst);
        async move {
            let _ = socket.read(&mut [0; 1024]).await;
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            let _ = socket.write_all(answer).await;
        }
    })
    .await;
    let world = World::http(app);
    let (method, scheme) = ((":method", "POST"), (":scheme", "https"));
    let (path, authority) = ((":path", "/"), (":authority", "orders"));
    for extra in [
        ("transfer-encoding", "chunked"),
        ("transfer_encoding", "chunked"),
        ("connection", "x-hop"),
        ("keep-alive", "1"),
        ("upgrade", "websocket"),
        ("te", "gzip"),
        ("content-length", "5"),
        ("content-length", "+0"),
        ("content-length", "0, 0"),
        ("content_length", "0"),
        ("host", "other"),
        ("x-a", "b\r\nx-evil: 1"),
        ("x-a", "b\nx-evil: 1"),
        ("x-a", "b\0"),
        ("x-a\r\nx-evil", "1"),
        ("x-a: b", "1"),
        ("X-Upper", "1"),
        ("", "1"),
        (":path", "/second"),
        (":unknown", "1"),
        (":protocol", "websocket"),
    ] {
        by_hand(&world, &[method, scheme, path, authority, extra]).await;
        assert_eq!(served.load(Ordering::SeqCst), 0, "{extra:?}");
    }
    for path in [
        "",
        "admin",
        "*",
        "/a b",
        "/a\r\nx: 1",
        "/a HTTP/1.1\r\nx: 1",
        "/\0",
        "//\t",
        "/%00",
        "https://other/",
        "?a",
    ] {
        by_hand(&world, &[method, scheme, (":path", path), authority]).await;
        assert_eq!(served.load(Ordering::SeqCst), 0, "{path:?}");
    }
    for host in [
        "",
        "a@orders",
        "orders:",
        "orders:99999",
        "a b",
        "a/b",
        "a\r\nx: 1",
        "a,b",
        "[::1",
        "a?b",
        "127.1",
    ] {
        by_hand(&world, &[method, scheme, path, (":authority", host)]).await;
        assert_eq!(served.load(Ordering::SeqCst), 0, "{host:?}");
    }
    for verb in [
        "",
        "get",
        "GET / HTTP/1.1\r\nx: 1",
        "G T",
        "CONNECT",
        "GET\0",
        "G@T",
    ] {
        by_hand(&world, &[(":method", verb), scheme, path, authority]).await;
        assert_eq!(served.load(Ordering::SeqCst), 0, "{verb:?}");
    }
    by_hand(&world, &[("x-first", "1"), method, scheme, path, authority]).await;
    by_hand(&world, &[method, scheme, path]).await;
    assert_eq!(served.load(Ordering::SeqCst), 0);

    // What is not wrong does.
    let kind = by_hand(&world, &[method, scheme, path, authority]).await;
    assert_eq!((kind, served.load(Ordering::SeqCst)), (Some(1), 1));
}
