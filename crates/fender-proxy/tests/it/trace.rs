//! Trace contexts of callers: what is one goes on as it is, what is none does not, and whose is taken up is configured.

use fender_config::snapshot::{ClientCertificate, Mtls, Protocol};
use fender_proxy::{Limits, TracesFrom};
use fender_runtime::drain::Drain;
use tokio::io::AsyncWriteExt;

use crate::harness::*;

const PARENT: &str = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n";

/// What the app sees of these fields.
async fn seen(world: &World, path: &str, fields: &str) -> Vec<String> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: o\r\nconnection: close\r\n{fields}\r\n");
    trace_fields(&world.raw(&request).await)
}

fn trace_fields(answer: &str) -> Vec<String> {
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let lines = answer
        .lines()
        .filter(|line| line.to_ascii_lowercase().starts_with("trace"));
    lines.map(ToOwned::to_owned).collect()
}

#[tokio::test]
async fn a_context_goes_on_as_it_is_and_its_ids_are_in_the_line() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    let fields = format!("{PARENT}tracestate: rojo=1\r\nTraceState: congo=2 , t@v=x\r\n");
    assert_eq!(
        seen(&world, "/traced-line", &fields).await,
        [
            PARENT.trim_end(),
            "tracestate: rojo=1",
            "tracestate: congo=2 , t@v=x"
        ]
    );
    let line = logs_line("/traced-line").await;
    assert!(
        line.contains("\"trace_id\":\"4bf92f3577b34da6a3ce929d0e0e4736\""),
        "{line}"
    );
    assert!(
        line.contains("\"parent_id\":\"00f067aa0ba902b7\""),
        "{line}"
    );
}

#[tokio::test]
async fn what_is_not_a_context_does_not_reach_the_app() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    let nothing: [&str; 0] = [];
    for fields in [
        "tracestate: rojo=1\r\n".to_owned(),
        format!("{PARENT}{PARENT}tracestate: rojo=1\r\n"),
        format!("{}tracestate: rojo=1\r\n", PARENT.to_uppercase()),
        PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
        PARENT.replace("00-4", "ff-4"),
        PARENT.replace("-01", "-01-x"),
    ] {
        assert_eq!(
            seen(&world, "/untraced", &fields).await,
            nothing,
            "{fields}"
        );
    }
    let fields = format!("{PARENT}tracestate: Rojo=1\r\n");
    assert_eq!(
        seen(&world, "/stateless", &fields).await,
        [PARENT.trim_end()]
    );
    assert!(!logs_line("/untraced").await.contains("trace_id"));
}

#[tokio::test]
async fn a_stranger_writes_into_no_trace_unless_anybody_may() {
    for (from, expected) in [(TracesFrom::Mesh, 0), (TracesFrom::Anybody, 1)] {
        let tasks = Drain::new();
        let mut port = inbound(echo_app(&tasks).await, Protocol::Http);
        port.mtls = Mtls::Strict(ClientCertificate::Accept);
        let world = World::tracing(from, vec![port], Limits::default());
        let mut stranger = crate::attacks::anybody(&world, None).await.unwrap();
        let request = format!("GET /s HTTP/1.1\r\nhost: o\r\nconnection: close\r\n{PARENT}\r\n");
        stranger.write_all(request.as_bytes()).await.unwrap();
        let answer = rest(&mut stranger).await;
        assert_eq!(trace_fields(&answer).len(), expected, "{answer}");
        assert_eq!(seen(&world, "/m", PARENT).await.len(), 1);
    }
}
