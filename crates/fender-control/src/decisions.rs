//! Decisions on their way from sidecars to the store: believed only about the workload that tells them, no more of them
//! than a bound, and never in anybody's way.

use fender_api::decision::DecisionRecord;
use fender_api::proto::control::v1 as proto;
use fender_identity::WorkloadName;
use fender_runtime::clock::SharedClock;
use prost::Message as _;
use tokio::sync::mpsc;

use crate::store::decisions::{Decision, Record};
use crate::store::{Store, StoreError};

const QUEUE: usize = 1024;
const BATCH: usize = 256;

#[derive(Clone, Debug)]
pub(crate) struct Decisions(mpsc::Sender<Decision>);

/// What became of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    Queued,
    /// Malformed, or told about somebody else.
    Refused,
    /// The queue is full.
    Dropped,
}

impl Decisions {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Decision>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), receiver)
    }

    pub(crate) fn take(&self, workload: &WorkloadName, message: proto::DecisionRecord) -> Taken {
        let Ok(record) = DecisionRecord::try_from(message) else {
            return Taken::Refused;
        };
        if record.workload != *workload {
            return Taken::Refused;
        }
        let decision = Decision {
            id: record.id.to_string(),
            workload: workload.clone(),
            record: proto::DecisionRecord::from(&record).encode_to_vec(),
        };
        match self.0.try_send(decision) {
            Ok(()) => Taken::Queued,
            Err(_) => Taken::Dropped,
        }
    }
}

/// Writes what is queued, many at a time, until nobody can queue any more.
pub(crate) async fn write(mut queue: mpsc::Receiver<Decision>, store: Store, clock: SharedClock) {
    let mut decisions = Vec::new();
    while queue.recv_many(&mut decisions, BATCH).await > 0 {
        let record = Record {
            at: clock.now(),
            decisions: std::mem::take(&mut decisions),
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
