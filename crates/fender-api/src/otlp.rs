//! OpenTelemetry's protocol (OTLP 1), as one who tells: spans go to a collector, by gRPC.
//!
//! What a span says is its maker's to choose; here it becomes a message and is delivered, some time after it was left and never
//! in anybody's way. No header is sent that could hold a secret, and nothing a collector answers is believed but how many
//! spans it did not take.

mod collector;
mod exporter;

use std::borrow::Cow;
use std::time::Duration;

pub use collector::{Collector, CollectorError, CollectorUrl, CollectorUrlError};
pub use exporter::{Exported, Exporter};

use crate::proto::opentelemetry::proto::collector::trace::v1::ExportTraceServiceRequest;
use crate::proto::opentelemetry::proto::common::v1::any_value::Value as ProtoValue;
use crate::proto::opentelemetry::proto::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use crate::proto::opentelemetry::proto::resource::v1::Resource;
use crate::proto::opentelemetry::proto::trace::v1 as proto;

/// One span, as it is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    pub trace: [u8; 16],
    pub id: [u8; 8],
    /// A span of another process.
    pub parent: Option<[u8; 8]>,
    pub kind: Kind,
    pub name: Cow<'static, str>,
    /// Since 1970.
    pub began: Duration,
    pub took: Duration,
    pub outcome: Outcome,
    pub attributes: Vec<Attribute>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Server,
    Client,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing that calls for attention.
    Unset,
    Error,
}

/// A name and what it stands for.
pub type Attribute = (&'static str, Value);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Text(Cow<'static, str>),
    Number(i64),
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(Cow::Owned(text))
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

/// `sampled`, and that we know whether a parent is in another process.
const FLAGS: u32 = 0x101;
const PARENT_IS_REMOTE: u32 = 0x200;

/// Spans of one process, as one message.
fn request(
    resource: &[Attribute],
    version: &str,
    spans: impl IntoIterator<Item = Span>,
) -> ExportTraceServiceRequest {
    let scope_spans = proto::ScopeSpans {
        scope: Some(InstrumentationScope {
            name: "fender".to_owned(),
            version: version.to_owned(),
        }),
        spans: spans.into_iter().map(proto::Span::from).collect(),
    };
    ExportTraceServiceRequest {
        resource_spans: vec![proto::ResourceSpans {
            resource: Some(Resource {
                attributes: resource.iter().cloned().map(key_value).collect(),
            }),
            scope_spans: vec![scope_spans],
        }],
    }
}

impl From<Span> for proto::Span {
    fn from(span: Span) -> Self {
        let flags = match span.parent {
            Some(_) => FLAGS | PARENT_IS_REMOTE,
            None => FLAGS,
        };
        let kind = match span.kind {
            Kind::Server => proto::span::SpanKind::Server,
            Kind::Client => proto::span::SpanKind::Client,
        };
        let status = match span.outcome {
            Outcome::Unset => None,
            Outcome::Error => Some(proto::Status {
                code: proto::status::StatusCode::Error.into(),
            }),
        };
        Self {
            trace_id: span.trace.to_vec(),
            span_id: span.id.to_vec(),
            parent_span_id: span.parent.map(|id| id.to_vec()).unwrap_or_default(),
            name: span.name.into_owned(),
            kind: kind.into(),
            start_time_unix_nano: nanoseconds(span.began),
            end_time_unix_nano: nanoseconds(span.began.saturating_add(span.took)),
            attributes: span.attributes.into_iter().map(key_value).collect(),
            status,
            flags,
        }
    }
}

fn key_value((key, value): Attribute) -> KeyValue {
    let value = match value {
        Value::Text(text) => ProtoValue::StringValue(text.into_owned()),
        Value::Number(number) => ProtoValue::IntValue(number),
    };
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
    }
}

fn nanoseconds(since_1970: Duration) -> u64 {
    u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX)
}
