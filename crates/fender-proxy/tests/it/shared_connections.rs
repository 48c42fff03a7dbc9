//! Attacks on the connections to an app that requests of many peers share: whatever one of them or the app writes, nobody
//! else's request is answered with it, and nothing becomes a request that nobody judged.

use fender_runtime::drain::Drain;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use crate::harness::*;

#[tokio::test]
async fn what_an_app_sends_after_a_head_response_answers_nobody_elses_request() {
    let tasks = Drain::new();
    let (ask, asked) = watch::channel(false);
    let app = raw_app(&tasks, move |mut socket| {
        let mut asked = asked.clone();
        async move {
            loop {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = socket.read_u8().await else {
                        return;
                    };
                    request.push(byte);
                }
                if request.starts_with(b"HEAD") {
                    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 46\r\n\r\n";
                    let _ = socket.write_all(head).await;
                    // The attacker's words, where HEAD allows none, once somebody waits for an answer.
                    let _ = asked.wait_for(|asked| *asked).await;
                    let poison = b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\npoisoned";
                    let _ = socket.write_all(poison).await;
                } else {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nclean";
                    let _ = socket.write_all(answer).await;
                }
            }
        }
    })
    .await;
    let world = World::http(app);
    let (mut attacker, mut victim) = (world.web().await, world.web().await);
    let request = "HEAD /echo HTTP/1.1\r\nhost: o\r\n\r\n";
    attacker.write_all(request.as_bytes()).await.unwrap();
    head(&mut attacker).await;
    victim.write_all(get("/mine").as_bytes()).await.unwrap();
    ask.send_replace(true);
    let (_, seen) = response(&mut victim).await;
    assert_eq!(seen, "clean");
}

#[tokio::test]
async fn a_response_that_can_be_read_in_two_ways_is_502_and_none_of_it_is_passed_on() {
    let tasks = Drain::new();
    let heads = [
        "content-length: 5\r\ntransfer-encoding: chunked\r\n",
        "content-length: 5\r\ncontent-length: 5\r\n",
        "content-length: 5, 5\r\n",
        "content-length: +5\r\n",
        "transfer-encoding: chunked, chunked\r\n",
        "transfer-encoding: gzip\r\n",
        "transfer_encoding: chunked\r\n",
        "content-length : 5\r\n",
        "x: a\r\n folded\r\n",
        "x: a\rcontent-length: 5\r\n",
    ];
    for fields in heads {
        let app = raw_app(&tasks, move |mut socket| async move {
            head(&mut socket).await;
            let answer = format!("HTTP/1.1 200 OK\r\n{fields}\r\n5\r\nsplit\r\n0\r\n\r\n");
            let _ = socket.write_all(answer.as_bytes()).await;
        })
        .await;
        let world = World::http(app);
        let answer = world.raw(&last_get("/split")).await;
        assert!(answer.starts_with("HTTP/1.1 502"), "{fields:?}: {answer}");
        assert!(!answer.contains("split"), "{fields:?}: {answer}");
    }
}

#[tokio::test]
async fn what_an_app_sends_behind_a_response_answers_nobody_elses_request() {
    let tasks = Drain::new();
    let app = raw_app(&tasks, |mut socket| async move {
        loop {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let Ok(byte) = socket.read_u8().await else {
                    return;
                };
                request.push(byte);
            }
            let ours = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nclean";
            let poison = b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\npoisoned";
            let answer = [&ours[..], poison].concat();
            let _ = socket.write_all(&answer).await;
        }
    })
    .await;
    let world = World::http(app);
    let mut stream = world.web().await;
    for _ in 0..5 {
        stream.write_all(get("/mine").as_bytes()).await.unwrap();
        assert_eq!(response(&mut stream).await.1, "clean");
    }
}

/// P4: an app that does not look for the body of a GET would read it as the next request, which nobody judged.
#[tokio::test]
async fn a_body_that_an_app_may_not_look_for_is_no_second_request() {
    let tasks = Drain::new();
    let (seen, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let app = raw_app(&tasks, move |mut socket| {
        let seen = seen.clone();
        async move {
            // As long as nobody asks it to close, it takes whatever comes for requests.
            loop {
                let head = head(&mut socket).await;
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                let closes = head.contains("connection: close");
                let _ = seen.send(head);
                if socket.write_all(answer).await.is_err() || closes {
                    return;
                }
            }
        }
    })
    .await;
    let world = World::http(app);
    let hidden = get("/hidden");
    let first = format!(
        "GET /first HTTP/1.1\r\nhost: orders\r\ncontent-length: {}\r\n\r\n{hidden}",
        hidden.len()
    );
    let answers = world.raw(&format!("{first}{}", last_get("/second"))).await;
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2, "{answers}");
    for path in ["/first", "/second"] {
        let head = heard.recv().await.unwrap();
        assert!(head.starts_with(&format!("GET {path} ")), "{head}");
        assert_eq!(
            head.contains("connection: close"),
            path == "/first",
            "{head}"
        );
    }
    assert!(heard.try_recv().is_err());
}
