//! The app's side: Unix sockets, half-close, `Expect: 100-continue`, bodies without an end.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Stdio};
use std::time::Duration;

use fender_tests::process::{PATIENCE, free_address};
use fender_tests::python::script;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{Adapter, CALLERS, OPEN, app, told};

/// More than the kernels' buffers on the whole way hold, with what Fender itself does.
const HELD: u64 = 64 * 1024 * 1024;

/// An app that is told things by its standard input and tells things on its output.
struct Talking {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Talking {
    fn start(kind: &str, place: &str) -> Self {
        let mut command = script("app.py");
        command.args([kind, place]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut app = Self { child, lines };
        app.hears("listens");
        app
    }

    /// The next line, which must be about this.
    fn hears(&mut self, what: &str) -> Value {
        let line = self.lines.next().expect("the app goes on").unwrap();
        let said: Value = serde_json::from_str(&line).unwrap();
        assert!(!said[what].is_null(), "{what}: {said}");
        said[what].clone()
    }

    fn tell(&mut self) {
        let input = self.child.stdin.as_mut().unwrap();
        input.write_all(b"go on\n").unwrap();
        input.flush().unwrap();
    }
}

impl Drop for Talking {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_app_behind_a_unix_socket_speaks_http() {
    let directory = tempfile::tempdir().unwrap();
    let place = format!("unix:{}/app.sock", directory.path().display());
    let _app = app("app.py", &["http", &place], &directory);
    let adapter = Adapter::start(&place, "protocol: http", OPEN);
    for version in ["--http1.1", "--http2"] {
        let mut curl = adapter.curl(adapter.address, "/x");
        let seen = told(curl.args([version, "--data-binary", "four"]));
        let seen: Value = serde_json::from_str(&seen).unwrap();
        assert_eq!(seen["line"], "POST /x HTTP/1.1", "{version}");
        assert_eq!(seen["length"], 4, "{version}");
    }
}

#[tokio::test]
async fn an_app_behind_a_unix_socket_speaks_tcp_and_a_side_that_finished_still_receives() {
    let directory = tempfile::tempdir().unwrap();
    let place = format!("unix:{}/app.sock", directory.path().display());
    let _app = app("app.py", &["tcp", &place], &directory);
    let adapter = Adapter::start(&place, "protocol: tcp", CALLERS);
    let mut stream = adapter.client().connect().await.unwrap();
    stream.write_all(b"question").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "question");
}

/// The decision comes before the body, and for who is denied instead of it.
#[test]
fn curl_sends_a_body_only_after_the_decision() {
    let directory = tempfile::tempdir().unwrap();
    let place = free_address();
    let app = app("app.py", &["http", &place.to_string()], &directory);
    let adapter = Adapter::start(place, "protocol: http", OPEN);
    let file = directory.path().join("large");
    std::fs::write(&file, vec![b'x'; 4 << 20]).unwrap();
    let send = |path: &str| {
        let mut curl = adapter.curl(adapter.address, path);
        curl.args([
            "--http1.1",
            "--expect100-timeout",
            "50",
            "-H",
            "Expect: 100-continue",
            "-T",
        ]);
        told(
            curl.arg(&file)
                .args(["-w", "\n%{http_code} %{size_upload}"]),
        )
    };
    let accepted = send("/taken");
    let (seen, end) = accepted.rsplit_once('\n').unwrap();
    assert_eq!(end, format!("200 {}", 4 << 20));
    let seen: Value = serde_json::from_str(seen).unwrap();
    assert_eq!(seen["length"], 4 << 20);
    assert!(
        seen["fields"]["expect"].is_null(),
        "it was answered already"
    );

    let denied = send("/denied");
    assert!(denied.ends_with("\n403 0"), "{denied}");
    assert_eq!(app.log().matches("\"saw\"").count(), 1, "{}", app.log());
}

/// A chunk of so many bytes, framed.
fn chunk(length: usize) -> Vec<u8> {
    let mut chunk = format!("{length:x}\r\n").into_bytes();
    chunk.resize(chunk.len() + length, 0);
    chunk.extend_from_slice(b"\r\n");
    chunk
}

#[tokio::test]
async fn an_endless_body_to_an_app_that_stopped_reading_is_held_back() {
    let place = free_address().to_string();
    let mut app = Talking::start("idle", &place);
    let adapter = Adapter::start(&place, "protocol: http", OPEN);
    let mut stream = adapter.client().connect().await.unwrap();
    let head = "POST /endless HTTP/1.1\r\nhost: o\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    app.hears("reads_no_more");

    // Chunks, whole ones, until one is not taken.
    const SIZE: usize = 1 << 16;
    let chunk = chunk(SIZE);
    let mut sent = 0;
    let mut left = &chunk[..];
    loop {
        match tokio::time::timeout(Duration::from_secs(2), stream.write(left)).await {
            Ok(written) => left = &left[written.unwrap()..],
            Err(_) => break,
        }
        if left.is_empty() {
            left = &chunk[..];
            sent += SIZE as u64;
            assert!(sent < HELD, "nobody reads and {sent} bytes were taken");
        }
    }
    assert!(sent > 0, "some of it is on its way");

    // Nothing is lost of what was taken: the app goes on and counts it.
    app.tell();
    stream.write_all(left).await.unwrap();
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let mut answer = vec![0; 4096];
    let length = stream.read(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    let complete = sent + SIZE as u64;
    assert!(
        answer.ends_with(&format!("\r\n\r\n{complete}")),
        "{complete}: {answer}"
    );
}

#[tokio::test]
async fn an_endless_body_to_a_client_that_stopped_reading_holds_the_app_back() {
    let place = free_address().to_string();
    let mut app = Talking::start("endless", &place);
    let adapter = Adapter::start(&place, "protocol: http", OPEN);
    let mut stream = adapter.client().connect().await.unwrap();
    stream
        .write_all(b"GET /endless HTTP/1.1\r\nhost: o\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let held = app.hears("held_back_after").as_u64().unwrap();
    assert!(held < HELD, "nobody reads and {held} bytes were taken");

    // The client goes on, and gets every byte there was.
    app.tell();
    let reading = async {
        let mut got = Vec::new();
        stream.read_to_end(&mut got).await.unwrap();
        got
    };
    let got = tokio::time::timeout(PATIENCE, reading).await.unwrap();
    let sent = app.hears("sent").as_u64().unwrap();
    assert!(got.ends_with(b"0\r\n\r\n"), "the end was told");
    assert!(got.len() as u64 > sent, "{} of {sent}", got.len());
}

/// The app hears nothing of it, whatever it would make of it.
#[test]
fn connect_is_refused_and_never_reaches_the_app() {
    let directory = tempfile::tempdir().unwrap();
    let place = free_address();
    let app = app("app.py", &["http", &place.to_string()], &directory);
    let adapter = Adapter::start(place, "protocol: http", OPEN);
    let mut curl = adapter.curl(adapter.address, "/");
    let target = ["--request-target", "inside.internal:22"];
    curl.args(["--http1.1", "-X", "CONNECT"]).args(target);
    let refused = told(curl.args(["-o", "/dev/null", "-w", "%{http_code}"]));
    assert_eq!(refused, "501");
    assert!(!app.log().contains("\"saw\""), "{}", app.log());
}
