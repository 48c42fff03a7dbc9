//! What the proxy records of requests, as OpenTelemetry names it, on its way to a collector.
//!
//! The names are those of the semantic conventions for HTTP, as far as they are stable; what they have no name for begins with
//! `fender.`. A span says less than the access log and nothing else: no query, no field of a head, no body.

use std::borrow::Cow;
use std::sync::Arc;

use anyhow::Context as _;
use fender_api::otlp::{Attribute, Collector, Exported, Exporter, Kind, Outcome, Span, Value};
use fender_identity::SpiffeId;
use fender_proxy::{Direction, Recording};
use fender_runtime::clock::SharedClock;
use fender_runtime::drain::Drain;
use fender_runtime::id::OpaqueId;
use tokio::sync::mpsc;

use crate::cli;
use crate::exit::Failure;

/// How many spans may wait for being carried on: some two MiB of ordinary ones, six of the largest.
const WAITING: usize = 4096;

/// The collector that the command line names, if it names one; it was looked at as far as that can be done from here.
pub(super) fn collector(
    args: &cli::Tracing,
    clock: &SharedClock,
) -> Result<Option<Collector>, Failure> {
    let Some(url) = args.otlp_endpoint.clone() else {
        return Ok(None);
    };
    let collector = Collector::new(url, args.otlp_roots.clone(), Arc::clone(clock))
        .context("use the collector of --otlp-endpoint")
        .map_err(Failure::usage_of)?;
    Ok(Some(collector))
}

/// Begins to carry spans to `collector`; what the proxy leaves them by.
pub(super) fn record(
    collector: Collector,
    begins: fender_proxy::Share,
    own: &SpiffeId,
    exported: Arc<Exported>,
    drain: &Drain,
) -> Recording {
    if collector.url().is_exposed() {
        tracing::warn!(
            collector = %collector.url(),
            "spans travel in the clear: whoever is on their way reads who calls whom and which paths"
        );
    }
    let version = env!("CARGO_PKG_VERSION");
    let exporter = Exporter::new(collector, resource(own), version, exported);
    let (spans, recorded) = mpsc::channel(WAITING);
    drain.spawn(exporter.run(recorded, tell, drain.clone()));
    Recording { spans, begins }
}

/// Who tells: the workload, as one of its processes.
fn resource(own: &SpiffeId) -> Vec<Attribute> {
    let mut resource = match own.workload() {
        Some(workload) => vec![
            ("service.name", workload.name().to_owned().into()),
            ("service.namespace", workload.namespace().to_owned().into()),
        ],
        None => vec![("service.name", own.as_str().to_owned().into())],
    };
    resource.push(("service.instance.id", OpaqueId::random().to_string().into()));
    resource.push(("fender.identity", own.as_str().to_owned().into()));
    resource
}

fn tell(span: &fender_proxy::Span) -> Span {
    let error = error(span);
    Span {
        trace: *span.trace.as_bytes(),
        id: *span.id.as_bytes(),
        parent: span.parent.map(|parent| *parent.as_bytes()),
        kind: match span.direction {
            Direction::Inbound => Kind::Server,
            Direction::Outbound => Kind::Client,
        },
        // A path is no name: there are as many as callers like.
        name: Cow::Borrowed(span.method.unwrap_or("HTTP")),
        began: span.began,
        took: span.took,
        outcome: match error {
            Some(_) => Outcome::Error,
            None => Outcome::Unset,
        },
        attributes: attributes(span, error),
    }
}

fn attributes(span: &fender_proxy::Span, error: Option<Cow<'static, str>>) -> Vec<Attribute> {
    let version = match span.protocol {
        "h2" => "2",
        _ => "1.1",
    };
    // What an application of ours called was called in the clear, and that says nothing of how it went on.
    let scheme = match (span.direction, span.plaintext) {
        (Direction::Inbound, true) => Some("http"),
        (Direction::Inbound, false) => Some("https"),
        (Direction::Outbound, _) => None,
    };
    let text = |text: &str| Value::from(text.to_owned());
    let mut attributes = vec![
        (
            "http.request.method",
            span.method.unwrap_or("_OTHER").into(),
        ),
        ("url.path", text(&span.path)),
        ("network.protocol.version", version.into()),
    ];
    let further = [
        ("url.scheme", scheme.map(Value::from)),
        ("server.address", span.host.as_deref().map(text)),
        ("server.port", span.port.map(Value::from)),
        (
            "client.address",
            span.client.map(|client| client.to_string().into()),
        ),
        ("http.response.status_code", span.status.map(Value::from)),
        ("error.type", error.map(Value::Text)),
        (
            "fender.peer",
            span.peer.as_ref().map(|peer| text(peer.as_str())),
        ),
        ("fender.destination", span.destination.as_deref().map(text)),
        (
            "fender.decision",
            span.decision.map(|decision| decision.to_string().into()),
        ),
    ];
    attributes.extend(
        further
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    attributes
}

/// What went wrong, as the conventions see it: a caller's mistake is no error of who answers, and an error of who made it. What
/// was answered before it went wrong stays an error.
fn error(span: &fender_proxy::Span) -> Option<Cow<'static, str>> {
    let by_status = match (span.status, span.direction) {
        (Some(500..), _) | (Some(400..500), Direction::Outbound) => true,
        (Some(400..500), Direction::Inbound) => return None,
        (Some(_) | None, _) => false,
    };
    match (span.fault, span.status) {
        (Some(fault), _) => Some(Cow::Borrowed(fault)),
        (None, Some(status)) if by_status => Some(Cow::Owned(status.to_string())),
        (None, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fender_wire::trace::{SpanId, TraceId};

    use super::*;

    fn recorded(
        direction: Direction,
        status: Option<u16>,
        fault: Option<&'static str>,
    ) -> fender_proxy::Span {
        fender_proxy::Span {
            trace: TraceId::of_random([1; 16]),
            id: SpanId::of_random([2; 8]),
            parent: Some(SpanId::of_random([3; 8])),
            direction,
            began: Duration::from_secs(5),
            took: Duration::from_millis(7),
            method: Some("GET"),
            path: "/orders/7".to_owned(),
            host: Some("orders".to_owned()),
            port: Some(8443),
            protocol: "h2",
            plaintext: false,
            status,
            client: Some([10, 0, 0, 2].into()),
            peer: Some("spiffe://mesh.test/ns/shop/sa/web".parse().unwrap()),
            destination: None,
            decision: None,
            fault,
        }
    }

    fn attribute(span: &Span, name: &str) -> Option<Value> {
        let found = span.attributes.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| value.clone())
    }

    #[test]
    fn a_request_is_told_by_the_names_of_the_conventions() {
        let span = tell(&recorded(Direction::Inbound, Some(200), None));
        assert_eq!(
            (span.trace, span.id, span.parent),
            ([1; 16], [2; 8], Some([3; 8]))
        );
        assert_eq!(
            (span.kind, &*span.name, span.outcome),
            (Kind::Server, "GET", Outcome::Unset)
        );
        let expected: Vec<Attribute> = vec![
            ("http.request.method", "GET".into()),
            ("url.path", "/orders/7".into()),
            ("network.protocol.version", "2".into()),
            ("url.scheme", "https".into()),
            ("server.address", "orders".into()),
            ("server.port", 8443.into()),
            ("client.address", "10.0.0.2".into()),
            ("http.response.status_code", 200.into()),
            ("fender.peer", "spiffe://mesh.test/ns/shop/sa/web".into()),
        ];
        assert_eq!(span.attributes, expected);
    }

    #[test]
    fn a_method_that_a_stranger_made_up_names_nothing() {
        let unknown = fender_proxy::Span {
            method: None,
            ..recorded(Direction::Inbound, Some(501), None)
        };
        let span = tell(&unknown);
        assert_eq!(span.name, "HTTP");
        assert_eq!(
            attribute(&span, "http.request.method"),
            Some("_OTHER".into())
        );
    }

    #[test]
    fn a_callers_mistake_is_an_error_of_the_caller_alone() {
        use Direction::{Inbound, Outbound};
        for (direction, status, fault, error) in [
            (Inbound, Some(200), None, None),
            (Inbound, Some(404), None, None),
            (Inbound, Some(403), Some("denied"), None),
            (Inbound, Some(500), None, Some("500")),
            (Inbound, Some(503), Some("unreachable"), Some("unreachable")),
            (Inbound, Some(200), Some("abandoned"), Some("abandoned")),
            (Inbound, None, Some("abandoned"), Some("abandoned")),
            (Outbound, Some(302), None, None),
            (Outbound, Some(404), None, Some("404")),
            (
                Outbound,
                Some(503),
                Some("wrong_identity"),
                Some("wrong_identity"),
            ),
        ] {
            let span = tell(&recorded(direction, status, fault));
            let told = attribute(&span, "error.type");
            assert_eq!(
                told,
                error.map(Value::from),
                "{direction:?} {status:?} {fault:?}"
            );
            let outcome = match error {
                Some(_) => Outcome::Error,
                None => Outcome::Unset,
            };
            assert_eq!(span.outcome, outcome, "{direction:?} {status:?} {fault:?}");
        }
    }

    #[test]
    fn who_tells_is_the_workload_and_each_process_is_another() {
        let own = "spiffe://mesh.test/ns/shop/sa/orders".parse().unwrap();
        let (one, other) = (resource(&own), resource(&own));
        assert_eq!(one[0], ("service.name", "orders".into()));
        assert_eq!(one[1], ("service.namespace", "shop".into()));
        assert_ne!(one[2], other[2]);
        assert_eq!(
            one[3],
            ("fender.identity", Value::from(own.as_str().to_owned()))
        );
    }
}
