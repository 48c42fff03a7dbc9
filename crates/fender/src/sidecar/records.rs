//! Carries the proxy's decision records to where they are asked for: this sidecar's own memory, and
//! the control plane.
//!
//! The proxy has never heard of either. Neither holds it up: what does not fit is dropped there, and
//! the count shows in the log.

use std::sync::Arc;

use fender_api::client::Report;
use fender_api::decision::{DecisionRecord, HttpRequest};
use fender_policy::Verdict;
use fender_proxy::{Reason, Record};
use fender_runtime::drain::Drain;
use tokio::sync::mpsc;

use super::decisions::Decisions;

/// How many records may wait here for being carried on.
pub(super) const WAITING: usize = 1024;

pub(super) async fn carry(
    mut records: mpsc::Receiver<Record>,
    kept: Arc<Decisions>,
    reports: Option<mpsc::Sender<Report>>,
    drain: Drain,
) {
    let mut dropped = 0_u64;
    loop {
        // What was recorded before the end is still carried; nothing is waited for after it.
        let record = tokio::select! {
            biased;
            record = records.recv() => record,
            () = drain.stopping() => None,
        };
        let Some(record) = record else {
            return;
        };
        let Some(record) = decision(record) else {
            continue;
        };
        if let Some(reports) = &reports
            && reports
                .try_send(Report::Decision(Box::new(record.clone())))
                .is_err()
        {
            dropped += 1;
            // Powers of two: a flood of denials is not to become a flood of lines.
            if dropped.is_power_of_two() {
                tracing::warn!(
                    dropped,
                    "decision records are kept here only: the control plane does not take them"
                );
            }
        }
        kept.keep(record);
    }
}

fn decision(record: Record) -> Option<DecisionRecord> {
    let (decided_by, nearest) = match record.reason {
        Reason::Policy(explanation) => (explanation.decided_by, explanation.nearest),
        Reason::Revoked => ("the caller's certificate is revoked".to_owned(), Vec::new()),
        Reason::Expired => (
            "the caller's certificate expired while the connection was open".to_owned(),
            Vec::new(),
        ),
    };
    Some(DecisionRecord {
        id: record.id,
        time: record.time,
        workload: record.workload?.workload()?,
        verdict: Verdict::Deny,
        peer: record.facts.peer,
        source_ip: record.facts.source_ip,
        remote_ip: record.facts.remote_ip,
        port: record.facts.port,
        http: record.facts.request.map(|request| HttpRequest {
            method: request.method,
            host: request.host,
            path: request.path,
        }),
        decided_by,
        nearest,
        snapshot_version: record.snapshot,
    })
}
