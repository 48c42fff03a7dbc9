//! Every metric of the data plane: what it is, and what bounds its series.

use std::collections::BTreeSet;

use fender_runtime::metrics::{Label, Metric};

use super::{CLASSES, DIRECTIONS, Verdict};
use crate::fault::{Blame, HandshakeFailure, Reason};

const DIRECTION: Label = Label::these("direction", || {
    DIRECTIONS.map(|direction| direction.label()).to_vec()
});
const PEER: Label = Label::bounded(
    "peer",
    "inbound the SPIFFE ID of the caller, outbound the workload or upstream that was called: the first hundred of a process \
     and direction by name, `other` for all later ones, `anonymous` for those without a certificate",
);
const BY_CERTIFICATE: &[Label] = &[
    Label::bounded("name", "the first of its names"),
    Label::bounded(
        "certificate",
        "its number; there are as many as documents name",
    ),
];
const BY_PEER: &[Label] = &[DIRECTION, PEER];

fender_runtime::metrics! {
    /// In no order that anybody may rely on.
    pub METRICS;

    CONNECTIONS = Metric::counter("fender_connections", "connections", "Connections accepted").by(&[DIRECTION]);
    CONNECTIONS_OPEN = Metric::gauge("fender_connections_open", "connections", "Connections that are open").by(&[DIRECTION]);
    REQUESTS = Metric::counter(
        "fender_requests",
        "requests",
        "Requests that have ended, by who called and the class of the status, `none` where there was no response",
    )
    .by(&[DIRECTION, PEER, Label::these("status", || CLASSES.to_vec())]);
    DURATIONS = Metric::histogram(
        "fender_request_duration_seconds",
        "seconds",
        "From the first byte of a request to the last of its response",
    )
    .by(BY_PEER);
    REQUEST_BYTES = Metric::counter("fender_request_bytes", "bytes", "Bytes of request bodies").by(BY_PEER);
    RESPONSE_BYTES = Metric::counter("fender_response_bytes", "bytes", "Bytes of response bodies").by(BY_PEER);
    RECEIVED = Metric::counter(
        "fender_connection_received_bytes",
        "bytes",
        "Bytes inside TLS from whoever connected, on connections that carry no requests",
    )
    .by(BY_PEER);
    SENT = Metric::counter(
        "fender_connection_sent_bytes",
        "bytes",
        "Bytes inside TLS to whoever connected, on connections that carry no requests",
    )
    .by(BY_PEER);
    HANDSHAKES = Metric::counter("fender_handshakes", "handshakes", "TLS handshakes of callers that were completed");
    HANDSHAKES_FAILED = Metric::counter(
        "fender_handshakes_failed",
        "handshakes",
        "TLS handshakes of callers that failed, and why",
    )
    .by(&[Label::these("reason", HandshakeFailure::labels)]);
    PLAINTEXT = Metric::counter(
        "fender_plaintext_connections",
        "connections",
        "Connections of callers that came without TLS, where a document lets them",
    );
    FAULTS = Metric::counter(
        "fender_faults",
        "requests and connections",
        "Requests and connections that did not end well: whose doing it was, and why",
    )
    .by(&[DIRECTION, Label::these("blame", Blame::labels), Label::these("reason", Reason::labels)]);
    DECISIONS = Metric::counter(
        "fender_decisions",
        "requests and connections",
        "Requests and TCP connections by what was decided about them, and by what",
    )
    .by(&[
        Label::these("verdict", || distinct(Verdict::ALL.map(|verdict| verdict.texts().0))),
        Label::these("by", || distinct(Verdict::ALL.map(|verdict| verdict.texts().1))),
    ]);
    AUDITED = Metric::counter(
        "fender_audited",
        "requests and connections",
        "Requests and TCP connections that an AUDIT policy matched",
    );
    LINES_DROPPED = Metric::counter(
        "fender_access_lines_dropped",
        "lines",
        "Access lines that were lost: nobody took them in time, or they could not be written",
    );
    RECORDS_DROPPED = Metric::counter(
        "fender_decision_records_dropped",
        "records",
        "Records of denials that nobody took in time",
    );
    PORT_CERTIFICATE_EXPIRY = Metric::gauge(
        "fender_port_certificate_expiry_timestamp_seconds",
        "seconds since 1970",
        "When a certificate ends that a port shows beside the workload's own",
    )
    .by(BY_CERTIFICATE);
    PORT_CERTIFICATE_PROBLEM = Metric::gauge(
        "fender_port_certificate_problem",
        "0 or 1",
        "1 while such a certificate is not served as it should be: `fender status --sidecar` says why",
    )
    .by(BY_CERTIFICATE);
    LISTENERS = Metric::gauge("fender_listeners", "listeners", "Listeners that are open").by(&[DIRECTION]);
    SNAPSHOT_VERSION = Metric::gauge(
        "fender_snapshot_version",
        "number",
        "The version of the Snapshot that new connections are served with",
    );
}

fn distinct<const N: usize>(texts: [&'static str; N]) -> Vec<&'static str> {
    let distinct: BTreeSet<_> = texts.into_iter().collect();
    distinct.into_iter().collect()
}
