//! DESIGN §11: one line of JSON for each request, whatever was sent, in a file that rotates, from a process that is confined.

use std::fs;
use std::path::Path;

use fender_tests::process::{PATIENCE, free_address, output};
use fender_tests::{binary, wait_until};
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::standalone::{CALLER, Standalone};

fn logging_to(destination: &str) -> Standalone {
    Standalone::start_with(|command| {
        let home = Path::new(command.get_args().last().unwrap())
            .parent()
            .unwrap()
            .to_owned();
        // A relative path begins where the process was started.
        command
            .current_dir(&home)
            .args(["--access-log", destination]);
    })
}

/// Every line, as a parser of others reads it.
fn lines(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect()
}

/// Sends the bytes on a connection of their own and waits until it is closed.
async fn send(sidecar: &Standalone, request: &[u8]) {
    let client = sidecar.client(CALLER).with_alpn(&[b"http/1.1"]);
    let mut stream = client.connect().await.unwrap();
    stream.write_all(request).await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = Vec::new();
    // How the proxy ends a connection that it refused is not the point here.
    let _ = stream.read_to_end(&mut answer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_peer_sends_is_one_line_that_a_parser_reads() {
    let mut sidecar = logging_to("./access.log");
    let hostile: [&[u8]; 8] = [
        b"GET /public/\"},{\"peer\":\"admin HTTP/1.1\r\nhost: o\r\nconnection: close\r\n\r\n",
        b"GET /public/%22%0a%1b[2J HTTP/1.1\r\nhost: o\r\nconnection: close\r\n\r\n",
        b"GET /public/\xff\xfe HTTP/1.1\r\nhost: o\r\nconnection: close\r\n\r\n",
        b"GET /public/\x1b[2J HTTP/1.1\r\nhost: o\r\nconnection: close\r\n\r\n",
        b"GET /public/caf\xc3\xa9 HTTP/1.1\r\nhost: o\r\nconnection: close\r\n\r\n",
        b"A!#$%&'*+-.^_`|~9 /public/method HTTP/1.1\r\nhost: o\r\nconnection: close\r\n\r\n",
        b"GET /public/host HTTP/1.1\r\nhost: \"}\\\r\nconnection: close\r\n\r\n",
        b"\x16\x03\x01 not http at all\r\n\r\n",
    ];
    for request in hostile {
        send(&sidecar, request).await;
    }
    let last = b"GET /public/last?token=canary-query HTTP/1.1\r\nhost: orders\r\nauthorization: Bearer canary-header\r\n\
                 connection: close\r\n\r\n";
    send(&sidecar, last).await;
    sidecar.process.signal(Signal::TERM);
    assert_eq!(sidecar.process.wait(PATIENCE).code(), Some(0));

    let file = sidecar.directory.path().join("access.log");
    let text = fs::read_to_string(&file).unwrap();
    assert!(
        text.bytes().all(|byte| matches!(byte, b'\n' | b' '..=b'~')),
        "{text:?}"
    );
    assert!(!text.contains("canary"), "{text}");
    let lines = lines(&file);
    // The probes for readiness are not requests: each of these is, and has its line.
    assert_eq!(lines.len(), hostile.len() + 1, "{text}");
    for line in &lines {
        assert_eq!(line["peer"], CALLER, "{line}");
        assert!(
            line["duration_ms"].is_number() && line["timestamp"].is_string(),
            "{line}"
        );
    }
    let last = lines.last().unwrap();
    assert_eq!(last["path"], "/public/last");
    assert_eq!(last["status"], 200);
    assert_eq!(
        (&last["verdict"], &last["policy"]),
        (&"allow".into(), &"shop/callers".into())
    );
    assert!(last["first_byte_ms"].is_number(), "{last}");
}

#[tokio::test]
async fn a_renamed_file_is_followed_without_a_signal_and_no_line_is_lost() {
    let sidecar = logging_to("./access.log");
    let file = sidecar.directory.path().join("access.log");
    let client = sidecar.client(CALLER);
    assert_eq!(client.get("/public/before").await.unwrap().status, 200);
    wait_until("the line is written", PATIENCE, || lines(&file).len() == 1);
    let rotated = sidecar.directory.path().join("access.log.1");
    fs::rename(&file, &rotated).unwrap();
    assert_eq!(client.get("/public/after").await.unwrap().status, 200);
    wait_until("the new file is there", PATIENCE, || {
        lines(&file).len() == 1
    });
    assert_eq!(lines(&file)[0]["path"], "/public/after");
    assert_eq!(lines(&rotated)[0]["path"], "/public/before");
}

#[tokio::test]
async fn the_log_can_be_off_and_go_to_standard_output() {
    let sidecar = logging_to("off");
    assert_eq!(
        sidecar
            .client(CALLER)
            .get("/public/unseen")
            .await
            .unwrap()
            .status,
        200
    );
    let mut heard = logging_to("stdout");
    assert_eq!(
        heard
            .client(CALLER)
            .get("/public/seen")
            .await
            .unwrap()
            .status,
        200
    );
    heard.process.signal(Signal::TERM);
    heard.process.wait(PATIENCE);
    // Both outputs are one file here; lines of neither end in the other.
    let log = heard.process.log();
    let line = log
        .lines()
        .find(|line| line.contains("/public/seen"))
        .unwrap();
    assert_eq!(serde_json::from_str::<Value>(line).unwrap()["status"], 200);
    assert!(!sidecar.process.log().contains("/public/unseen"));
}

#[test]
fn a_log_that_cannot_be_opened_is_said_before_anything_is_served() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("sidecar.yaml");
    let address = free_address();
    fs::write(
        &config,
        format!(
            "apiVersion: fender.dev/v1\nkind: Sidecar\nmetadata: {{ namespace: shop, name: orders }}\nspec:\n  \
             identity: {{ files: {{ certificate: /c.pem, key: /k.pem, bundle: /b.pem }} }}\n  \
             inbound: [ {{ listen: \"{address}\", app: \"127.0.0.1:1\", protocol: http }} ]\n"
        ),
    )
    .unwrap();
    let log = directory.path().join("missing/access.log");
    let (code, _, err) = output(
        binary(),
        &[
            "sidecar",
            "--config",
            &config.to_string_lossy(),
            "--access-log",
            &log.to_string_lossy(),
        ],
    );
    assert_eq!(code, 64, "{err}");
    assert!(err.contains("missing/access.log"), "{err}");
}
