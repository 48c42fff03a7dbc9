//! The newest decision records, kept in memory so that this sidecar explains its own denials even
//! when no control plane answers. Bounded; the oldest go first.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use fender_api::decision::DecisionRecord;
use serde_json::Value;

use crate::render;

const KEPT: usize = 4096;

#[derive(Default)]
pub(crate) struct Decisions(Mutex<VecDeque<DecisionRecord>>);

impl Decisions {
    pub(super) fn keep(&self, record: DecisionRecord) {
        let mut records = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if records.len() == KEPT {
            records.pop_front();
        }
        records.push_back(record);
    }

    pub(super) fn find(&self, id: &str) -> Option<Value> {
        let id = id.parse().ok()?;
        let records = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        records
            .iter()
            .rev()
            .find(|record| record.id == id)
            .map(render::decision_json)
    }
}
