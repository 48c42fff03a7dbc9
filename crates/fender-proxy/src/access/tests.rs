use std::sync::Mutex;
use std::time::Duration;

use fender_policy::{Action, Default as PolicyDefault};
use fender_runtime::clock::{TestClock, UnixTime};
use fender_runtime::lines;
use fender_wire::Fields;
use serde_json::{Value, json};

use super::*;
use crate::fault::{PeerFault, UpstreamFault};
use crate::span::{Recorder, Recording, Share};
use crate::trace::Traces;

const PARENT: &[u8] = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const HOSTILE: &str = "a\"b\\c\u{1b}[2J\u{85}\u{202e}\n{\"target\":\"access\"}";

fn origin(peer: Option<&str>) -> Origin {
    Origin {
        direction: Direction::Inbound,
        listen: Arc::new("10.0.0.1:8443".parse().unwrap()),
        provenance: PeerAddr::Tcp("10.0.0.2:4711".parse().unwrap()).into(),
        peer: peer.map(|peer| peer.parse().unwrap()),
        tls: Some(ProtocolVersion::TLSv1_3),
        plaintext: false,
    }
}

fn by_policy() -> Allowed {
    Allowed {
        by: By::Policy {
            name: "shop/web".parse().unwrap(),
            action: Action::Allow,
            rule: 2,
        },
        audits: vec!["shop/watch".parse().unwrap()],
    }
}

/// Of a request that belongs to a trace.
fn trace(recorder: &Recorder) -> Trace {
    let fields = Fields::build([(b"traceparent".as_slice(), PARENT)]).unwrap();
    Trace::of(&fields, Traces::GoneOnWith, recorder)
}

fn request<'a>(
    preamble: &'a Preamble,
    allowed: Option<&'a Allowed>,
    trace: &'a Trace,
) -> RequestLine<'a> {
    RequestLine {
        protocol: "h2",
        preamble,
        server: None,
        destination: None,
        asked: Some(Asked {
            method: "POST",
            authority: "orders:8443",
            path: "/orders/7",
            client: None,
            trace,
        }),
        status: Some(201),
        allowed,
        received: 12,
        sent: 34,
        took: Duration::from_micros(2125),
        first_byte: Some(Duration::from_micros(1750)),
    }
}

/// What the log holds in the end.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The one line that is written, as text and as a parser of others reads it.
fn written(write: impl FnOnce(&AccessLog)) -> (String, Value) {
    let log = Log::default();
    let (lines, writer) = lines::start(log.clone()).unwrap();
    let clock = TestClock::new(UnixTime::since_unix_epoch(Duration::from_secs(
        1_800_000_000,
    )));
    write(&AccessLog { lines, clock });
    drop(writer);
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert_eq!(text.matches('\n').count(), 1, "{text:?}");
    let read = serde_json::from_str(&text).unwrap();
    (text, read)
}

#[test]
fn a_request_is_told_whole_and_in_the_documented_order() {
    let preamble = origin(Some("spiffe://mesh.test/ns/shop/sa/web")).preamble();
    let (allowed, trace) = (by_policy(), trace(&Recorder::default()));
    let line = request(&preamble, Some(&allowed), &trace);
    let (text, _) = written(|log| line.write(log, Ok(()), None));
    assert_eq!(
        text,
        concat!(
            r#"{"timestamp":"2027-01-15T08:00:00.000Z","target":"access","kind":"request","protocol":"h2","#,
            r#""direction":"inbound","listen":"10.0.0.1:8443","source":"10.0.0.2:4711","#,
            r#""peer":"spiffe://mesh.test/ns/shop/sa/web","tls_version":"1.3","method":"POST","#,
            r#""authority":"orders:8443","path":"/orders/7","status":201,"received":12,"sent":34,"duration_ms":2.125,"#,
            r#""first_byte_ms":1.750,"trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","parent_id":"00f067aa0ba902b7","#,
            r#""verdict":"allow","policy":"shop/web","rule":2,"#,
            r#""audit":["shop/watch"],"outcome":"ok"}"#,
            "\n"
        )
    );
}

#[test]
fn a_request_that_is_recorded_names_its_span_and_a_trace_of_ours_has_no_parent() {
    let (spans, _taken) = tokio::sync::mpsc::channel(1);
    let recorder = Recorder::new(Some(Recording {
        spans,
        begins: Share::ALL,
    }));
    let preamble = origin(None).preamble();
    let (joined, begun) = (
        trace(&recorder),
        Trace::of(&Fields::default(), Traces::BegunAnew, &recorder),
    );
    let told =
        |trace: &Trace| written(|log| request(&preamble, None, trace).write(log, Ok(()), None)).1;
    let line = told(&joined);
    assert_eq!(line["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(line["parent_id"], "00f067aa0ba902b7");
    let own = joined.own.unwrap();
    assert_eq!(line["span_id"], own.id.to_string());
    let line = told(&begun);
    let own = begun.own.unwrap();
    assert_eq!(line["trace_id"], own.trace.to_string());
    assert_eq!(line.get("parent_id"), None);
    assert_eq!(line["span_id"], own.id.to_string());
}

#[test]
fn an_anonymous_caller_has_no_peer_and_what_was_not_decided_no_verdict() {
    let preamble = origin(None).preamble();
    let trace = Trace::default();
    let line = RequestLine {
        asked: None,
        status: None,
        first_byte: None,
        ..request(&preamble, None, &trace)
    };
    let fault = PeerFault::Abandons.into();
    let (_, read) = written(|log| line.write(log, Err(&fault), None));
    for absent in [
        "peer",
        "verdict",
        "policy",
        "method",
        "path",
        "status",
        "first_byte_ms",
    ] {
        assert_eq!(read.get(absent), None, "{absent}");
    }
    assert_eq!(read["outcome"], "peer");
}

#[test]
fn a_hostile_request_is_one_line_that_says_what_was_sent() {
    let (preamble, method) = (origin(None).preamble(), "A!#$%&'*+-.^_`|~9");
    let allowed = Allowed {
        by: By::Default(PolicyDefault::Audit),
        audits: vec![],
    };
    let trace = Trace::default();
    let line = RequestLine {
        asked: Some(Asked {
            method,
            authority: HOSTILE,
            path: HOSTILE,
            client: Some("203.0.113.9".parse().unwrap()),
            trace: &trace,
        }),
        ..request(&preamble, Some(&allowed), &trace)
    };
    let fault = UpstreamFault::Breaks(HOSTILE.to_owned()).into();
    let told = OpaqueId::random();
    let (text, read) = written(|log| line.write(log, Err(&fault), Some(told)));
    assert!(
        text.trim_end()
            .bytes()
            .all(|byte| matches!(byte, b' '..=b'~')),
        "{text:?}"
    );
    assert_eq!(
        (&read["path"], &read["authority"]),
        (&json!(HOSTILE), &json!(HOSTILE))
    );
    assert_eq!(read["method"], method);
    assert_eq!(read["default"], "audit");
    assert_eq!(read["fault"], told.to_string());
    assert_eq!(
        read["reason"],
        json!(format!("connection failed: {HOSTILE}"))
    );
    assert_eq!(read["outcome"], "upstream");
}

#[tokio::test]
async fn a_connection_has_its_bytes_and_its_destination() {
    let line = ConnectionLine {
        protocol: "tcp",
        origin: Origin {
            direction: Direction::Outbound,
            ..origin(None)
        },
        destination: Some("shop/ledger".into()),
        allowed: None,
        carried: Carried {
            received: 7,
            sent: 9,
        },
        began: Instant::now(),
    };
    let (_, read) = written(|log| line.write(log, Ok(()), None));
    assert_eq!(read["kind"], "connection");
    assert_eq!(read["destination"], "shop/ledger");
    assert_eq!((&read["received"], &read["sent"]), (&json!(7), &json!(9)));
    assert!(read["duration_ms"].is_f64(), "{read}");
}
