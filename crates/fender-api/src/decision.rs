//! The record of one decision as it travels to the control plane and back to whoever asks `fender explain`.
//!
//! No query string, no token, no body is ever part of one.

use std::net::IpAddr;
use std::time::Duration;

use fender_identity::{SpiffeId, WorkloadName};
use fender_runtime::clock::UnixTime;
use fender_runtime::id::OpaqueId;

use crate::convert::{InvalidField, parse, port};
use crate::proto::control::v1 as proto;

/// The longest text in a record; what a peer sent beyond it is cut.
pub const MAX_TEXT: usize = 2048;

/// The most sentences about rules that nearly allowed.
const MAX_NEAREST: usize = 16;

/// Why something was decided as it was.
#[derive(Clone, Debug, PartialEq)]
pub struct DecisionRecord {
    /// What the peer may quote.
    pub id: OpaqueId,
    /// When, to the second.
    pub time: UnixTime,
    /// Who decided.
    pub workload: WorkloadName,
    /// What.
    pub verdict: fender_policy::Verdict,
    /// Who asked; none if anonymous.
    pub peer: Option<SpiffeId>,
    /// From where; none on a Unix socket.
    pub source_ip: Option<IpAddr>,
    /// Whom it came from: another than `source_ip` behind a balancer that says so.
    pub remote_ip: Option<IpAddr>,
    /// The port that was reached.
    pub port: u16,
    /// What was asked for, if it was HTTP.
    pub http: Option<HttpRequest>,
    /// The rule or default that decided, in a sentence.
    pub decided_by: String,
    /// What was missing from the rule that came nearest to allowing it, in sentences.
    pub nearest: Vec<String>,
    /// The Snapshot it was decided on.
    pub snapshot_version: u64,
}

/// The part of a request that policies see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpRequest {
    /// `GET`.
    pub method: String,
    /// `:authority` or `Host`.
    pub host: String,
    /// Normalised, without the query.
    pub path: String,
}

impl TryFrom<proto::DecisionRecord> for DecisionRecord {
    type Error = InvalidField;

    fn try_from(message: proto::DecisionRecord) -> Result<Self, InvalidField> {
        let seconds = u64::try_from(message.time_unix_millis)
            .map_err(|_| InvalidField::new("time_unix_millis", "lies before 1970"))?
            / 1000;
        Ok(Self {
            id: parse("id", &message.id)?,
            time: UnixTime::since_unix_epoch(Duration::from_secs(seconds)),
            workload: parse("workload", &message.workload)?,
            verdict: match message.allowed {
                true => fender_policy::Verdict::Allow,
                false => fender_policy::Verdict::Deny,
            },
            peer: optional("peer", &message.peer)?,
            source_ip: optional("source_ip", &message.source_ip)?,
            remote_ip: optional("remote_ip", &message.remote_ip)?,
            port: port("port", message.port)?,
            http: (!message.method.is_empty()).then(|| HttpRequest {
                method: cut(message.method),
                host: cut(message.host),
                path: cut(message.path),
            }),
            decided_by: cut(message.decided_by),
            nearest: message
                .nearest
                .into_iter()
                .take(MAX_NEAREST)
                .map(cut)
                .collect(),
            snapshot_version: message.snapshot_version,
        })
    }
}

impl From<&DecisionRecord> for proto::DecisionRecord {
    fn from(record: &DecisionRecord) -> Self {
        let http = record.http.as_ref();
        let text = |part: fn(&HttpRequest) -> &String| http.map(part).cloned().map(cut);
        Self {
            id: record.id.to_string(),
            time_unix_millis: i64::try_from(record.time.as_secs())
                .unwrap_or(i64::MAX)
                .saturating_mul(1000),
            workload: record.workload.to_string(),
            allowed: record.verdict == fender_policy::Verdict::Allow,
            peer: record
                .peer
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            source_ip: record
                .source_ip
                .map(|ip| ip.to_string())
                .unwrap_or_default(),
            remote_ip: record
                .remote_ip
                .map(|ip| ip.to_string())
                .unwrap_or_default(),
            port: record.port.into(),
            method: text(|http| &http.method).unwrap_or_default(),
            host: text(|http| &http.host).unwrap_or_default(),
            path: text(|http| &http.path).unwrap_or_default(),
            decided_by: cut(record.decided_by.clone()),
            nearest: record
                .nearest
                .iter()
                .take(MAX_NEAREST)
                .cloned()
                .map(cut)
                .collect(),
            snapshot_version: record.snapshot_version,
        }
    }
}

fn optional<T>(field: &str, text: &str) -> Result<Option<T>, InvalidField>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    match text {
        "" => Ok(None),
        text => parse(field, text).map(Some),
    }
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_TEXT));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> DecisionRecord {
        DecisionRecord {
            id: OpaqueId::random(),
            time: UnixTime::since_unix_epoch(Duration::from_secs(1_700_000_000)),
            workload: "shop/orders".parse().unwrap(),
            verdict: fender_policy::Verdict::Deny,
            peer: Some("spiffe://acme.test/ns/shop/sa/web".parse().unwrap()),
            source_ip: Some("2001:db8::1".parse().unwrap()),
            remote_ip: Some("192.0.2.7".parse().unwrap()),
            port: 8443,
            http: Some(HttpRequest {
                method: "GET".to_owned(),
                host: "orders".to_owned(),
                path: "/orders/1".to_owned(),
            }),
            decided_by: "no rule allowed it".to_owned(),
            nearest: vec!["`shop/web`, rule 1: the method is not `POST`".to_owned()],
            snapshot_version: 7,
        }
    }

    #[test]
    fn a_record_survives_the_wire() {
        for record in [
            record(),
            DecisionRecord {
                peer: None,
                source_ip: None,
                remote_ip: None,
                http: None,
                ..record()
            },
        ] {
            let message = proto::DecisionRecord::from(&record);
            assert_eq!(DecisionRecord::try_from(message).unwrap(), record);
        }
    }

    #[test]
    fn a_path_without_end_is_cut_on_the_way_out_and_on_the_way_in() {
        let mut long = record();
        long.http.as_mut().unwrap().path = format!("/{}", "ä".repeat(MAX_TEXT));
        let mut message = proto::DecisionRecord::from(&long);
        assert!(message.path.len() <= MAX_TEXT);
        message.path = format!("/{}", "ä".repeat(MAX_TEXT));
        message.nearest = vec!["x".to_owned(); 1000];
        let read = DecisionRecord::try_from(message).unwrap();
        assert!(read.http.unwrap().path.len() <= MAX_TEXT);
        assert_eq!(read.nearest.len(), MAX_NEAREST);
    }

    #[test]
    fn an_error_names_the_field() {
        let mut message = proto::DecisionRecord::from(&record());
        message.peer = "web".to_owned();
        assert_eq!(
            DecisionRecord::try_from(message).unwrap_err().field(),
            "peer"
        );
    }
}
