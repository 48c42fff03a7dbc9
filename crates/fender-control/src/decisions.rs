//! Decisions on their way from sidecars to the store: believed only about the workload that tells them, no more of them
//! than a bound, and never in anybody's way. A workload that floods fills its own part of the queue and nobody else's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fender_api::decision::DecisionRecord;
use fender_api::proto::control::v1 as proto;
use fender_identity::WorkloadName;
use fender_runtime::clock::SharedClock;
use prost::Message as _;
use tokio::sync::mpsc;

use crate::store::decisions::{Decision, Record};
use crate::store::{Store, StoreError};

const QUEUE: usize = 1024;
/// Of those, from one workload, all its instances together.
const QUEUED_BY_ONE: usize = 256;
const BATCH: usize = 256;

#[derive(Clone, Debug)]
pub(crate) struct Decisions {
    queue: mpsc::Sender<Decision>,
    waiting: Waiting,
}

/// The far end of the queue.
#[derive(Debug)]
pub(crate) struct Queued {
    queue: mpsc::Receiver<Decision>,
    waiting: Waiting,
}

/// How many decisions of each workload are in the queue.
#[derive(Clone, Debug, Default)]
struct Waiting(Arc<Mutex<HashMap<WorkloadName, usize>>>);

/// What became of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    Queued,
    /// Malformed, or told about somebody else.
    Refused,
    /// The queue is full, or this workload's part of it.
    Dropped,
}

impl Decisions {
    pub(crate) fn new() -> (Self, Queued) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let waiting = Waiting::default();
        let decisions = Self {
            queue: sender,
            waiting: waiting.clone(),
        };
        let queued = Queued {
            queue: receiver,
            waiting,
        };
        (decisions, queued)
    }

    pub(crate) fn take(&self, workload: &WorkloadName, message: proto::DecisionRecord) -> Taken {
        let Ok(record) = DecisionRecord::try_from(message) else {
            return Taken::Refused;
        };
        if record.workload != *workload {
            return Taken::Refused;
        }
        let mut waiting = self.waiting.lock();
        let own = waiting.get(workload).copied().unwrap_or(0);
        if own >= QUEUED_BY_ONE {
            return Taken::Dropped;
        }
        let decision = Decision {
            id: record.id.to_string(),
            workload: workload.clone(),
            record: proto::DecisionRecord::from(&record).encode_to_vec(),
        };
        match self.queue.try_send(decision) {
            Ok(()) => {
                waiting.insert(workload.clone(), own + 1);
                Taken::Queued
            }
            Err(_) => Taken::Dropped,
        }
    }
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, HashMap<WorkloadName, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These have left the queue.
    fn left(&self, decisions: &[Decision]) {
        let mut waiting = self.lock();
        for decision in decisions {
            match waiting.get_mut(&decision.workload) {
                Some(count) if *count > 1 => *count -= 1,
                Some(_) | None => drop(waiting.remove(&decision.workload)),
            }
        }
    }
}

impl Queued {
    /// What is queued, at least one; nothing once nobody can queue any more.
    async fn next(&mut self) -> Option<Vec<Decision>> {
        let mut decisions = Vec::new();
        match self.queue.recv_many(&mut decisions, BATCH).await {
            0 => None,
            _ => {
                self.waiting.left(&decisions);
                Some(decisions)
            }
        }
    }
}

/// Writes what is queued, many at a time, until nobody can queue any more.
pub(crate) async fn write(mut queued: Queued, store: Store, clock: SharedClock) {
    while let Some(decisions) = queued.next().await {
        let record = Record {
            at: clock.now(),
            decisions,
        };
        if let Err(error) = store.write(record).await {
            tracing::warn!(%error, "decisions were not recorded");
        }
    }
}

pub(crate) async fn find(
    store: &Store,
    id: &str,
) -> Result<Option<proto::DecisionRecord>, StoreError> {
    let Some(bytes) = crate::store::decisions::find(store, id).await? else {
        return Ok(None);
    };
    let record = proto::DecisionRecord::decode(bytes.as_slice())
        .map_err(|_| StoreError::Damaged("decision record"))?;
    Ok(Some(record))
}

#[cfg(test)]
mod tests {
    use fender_runtime::id::OpaqueId;

    use super::*;

    fn decision(workload: &WorkloadName) -> proto::DecisionRecord {
        proto::DecisionRecord {
            id: OpaqueId::random().to_string(),
            workload: workload.to_string(),
            port: 8443,
            method: "GET".to_owned(),
            path: "/".to_owned(),
            decided_by: "no rule allowed it".to_owned(),
            ..proto::DecisionRecord::default()
        }
    }

    #[tokio::test]
    async fn attack_a_workload_that_floods_fills_its_own_part_of_the_queue_and_no_more() {
        let (decisions, mut queued) = Decisions::new();
        let flooding: WorkloadName = "shop/orders".parse().unwrap();
        let flood = || {
            let taken = |_: &usize| decisions.take(&flooding, decision(&flooding)) == Taken::Queued;
            (0..10 * QUEUE).filter(taken).count()
        };
        assert_eq!(flood(), QUEUED_BY_ONE);
        let quiet: WorkloadName = "shop/inventory".parse().unwrap();
        assert_eq!(decisions.take(&quiet, decision(&quiet)), Taken::Queued);

        // What was written makes room, and nothing is kept of whoever has nothing in the queue.
        let mut written = 0;
        while written <= QUEUED_BY_ONE {
            written += queued.next().await.unwrap().len();
        }
        assert!(queued.waiting.lock().is_empty());
        assert_eq!(flood(), QUEUED_BY_ONE);
    }
}
