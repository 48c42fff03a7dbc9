//! Trace contexts of callers: what is one goes on, what is none does not, whose is taken up is configured, and what is recorded of
//! it is what its caller records.

use fender_config::snapshot::{AppProtocol, ClientCertificate, Mtls, Protocol};
use fender_proxy::{Direction, Recording, Share, Span, TracesFrom};
use fender_runtime::drain::Drain;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

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
        let world = World::tracing(from, None, vec![port]);
        let mut stranger = crate::attacks::anybody(&world, None).await.unwrap();
        let request = format!("GET /s HTTP/1.1\r\nhost: o\r\nconnection: close\r\n{PARENT}\r\n");
        stranger.write_all(request.as_bytes()).await.unwrap();
        let answer = rest(&mut stranger).await;
        assert_eq!(trace_fields(&answer).len(), expected, "{answer}");
        assert_eq!(seen(&world, "/m", PARENT).await.len(), 1);
    }
}

/// A proxy whose spans are taken, before an app that shows what it sees.
async fn recording(
    tasks: &Drain,
    begins: Share,
    client: ClientCertificate,
) -> (World, mpsc::Receiver<Span>) {
    let mut port = inbound(echo_app(tasks).await, Protocol::Http);
    port.mtls = Mtls::Strict(client);
    let (spans, taken) = mpsc::channel(8);
    let recording = Recording { spans, begins };
    (
        World::tracing(TracesFrom::Mesh, Some(recording), vec![port]),
        taken,
    )
}

#[tokio::test]
async fn a_request_that_its_caller_records_is_a_span_and_the_parent_of_what_the_app_records() {
    let tasks = Drain::new();
    let (world, mut taken) = recording(&tasks, Share::NONE, ClientCertificate::Require).await;
    let seen = seen(
        &world,
        "/recorded?query=canary",
        &format!("{PARENT}tracestate: rojo=1\r\n"),
    )
    .await;
    let span = soon(taken.recv()).await.unwrap();
    assert_eq!(span.trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(span.parent.unwrap().to_string(), "00f067aa0ba902b7");
    let own = format!("traceparent: 00-{}-{}-01", span.trace, span.id);
    assert_eq!(seen, ["tracestate: rojo=1", &own]);
    assert_eq!(
        (span.direction, span.status, span.fault),
        (Direction::Inbound, Some(200), None)
    );
    assert_eq!(
        (span.method, span.path.as_str()),
        (Some("GET"), "/recorded")
    );
    assert_eq!((span.host.as_deref(), span.port), (Some("o"), None));
    assert_eq!(span.peer, Some(id(WEB)));
    assert_eq!(span.client, Some([127, 0, 0, 1].into()));
    let line = logs_line("/recorded").await;
    assert!(
        line.contains(&format!("\"span_id\":\"{}\"", span.id)),
        "{line}"
    );
    assert!(!format!("{span:?}").contains("canary"), "{span:?}");
}

#[tokio::test]
async fn an_app_of_http2_has_the_same_parent() {
    let tasks = Drain::new();
    let app = crate::h2c::app(&tasks, crate::h2c::echo).await;
    let mut port = inbound(app, Protocol::Http);
    port.app_protocol = AppProtocol::H2c;
    let (spans, mut taken) = mpsc::channel(8);
    let begins = Share::NONE;
    let recording = Recording { spans, begins };
    let world = World::tracing(TracesFrom::Mesh, Some(recording), vec![port]);
    let seen = seen(&world, "/recorded-by-http2", PARENT).await;
    let span = soon(taken.recv()).await.unwrap();
    assert_eq!(
        seen,
        [format!("traceparent: 00-{}-{}-01", span.trace, span.id)]
    );
}

#[tokio::test]
async fn a_request_that_its_caller_does_not_record_is_none_and_its_context_goes_on_as_it_is() {
    let tasks = Drain::new();
    // Not even where traces are begun: that it is not recorded was decided where this one began.
    let (world, mut taken) = recording(&tasks, Share::ALL, ClientCertificate::Require).await;
    let parent = PARENT.replace("-01", "-00");
    assert_eq!(
        seen(&world, "/not-recorded", &parent).await,
        [parent.trim_end()]
    );
    assert!(!logs_line("/not-recorded").await.contains("span_id"));
    // The next one is the first that is taken.
    assert_eq!(seen(&world, "/begun", "").await.len(), 1);
    let span = soon(taken.recv()).await.unwrap();
    assert_eq!((span.path.as_str(), span.parent), ("/begun", None));
    assert!(taken.try_recv().is_err());
}

#[tokio::test]
async fn attack_a_stranger_cannot_make_us_record_by_its_flag() {
    let tasks = Drain::new();
    let (world, mut taken) = recording(&tasks, Share::NONE, ClientCertificate::Accept).await;
    let mut stranger = crate::attacks::anybody(&world, None).await.unwrap();
    let request = format!("GET /s HTTP/1.1\r\nhost: o\r\nconnection: close\r\n{PARENT}\r\n");
    stranger.write_all(request.as_bytes()).await.unwrap();
    assert_eq!(trace_fields(&rest(&mut stranger).await).len(), 0);
    // Of two requests the one of a caller that is believed is a span.
    assert_eq!(seen(&world, "/m", PARENT).await.len(), 1);
    assert_eq!(soon(taken.recv()).await.unwrap().path, "/m");
    assert!(taken.try_recv().is_err());
}

#[tokio::test]
async fn attack_an_endless_path_and_a_made_up_method_are_not_kept() {
    let tasks = Drain::new();
    let (world, mut taken) = recording(&tasks, Share::NONE, ClientCertificate::Require).await;
    let path = format!("/{}", "x".repeat(5000));
    let request = format!("BREW {path} HTTP/1.1\r\nhost: o\r\nconnection: close\r\n{PARENT}\r\n");
    world.raw(&request).await;
    let span = soon(taken.recv()).await.unwrap();
    assert_eq!(span.path, path[..1024]);
    assert_eq!(span.method, None);
}

#[tokio::test]
async fn a_denial_is_a_span_that_names_its_decision() {
    let tasks = Drain::new();
    let (world, mut taken) = recording(&tasks, Share::NONE, ClientCertificate::Require).await;
    world.change(|snapshot| snapshot.policies = policies(vec![]));
    world.settled().await;
    let request = format!("GET /denied HTTP/1.1\r\nhost: o\r\nconnection: close\r\n{PARENT}\r\n");
    let answer = world.raw(&request).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    let span = soon(taken.recv()).await.unwrap();
    assert_eq!((span.status, span.fault), (Some(403), Some("denied")));
    let decision = span.decision.unwrap().to_string();
    assert!(answer.contains(&decision), "{answer}");
}
