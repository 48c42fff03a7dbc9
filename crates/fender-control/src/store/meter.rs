//! How the writer fares.

use std::time::Duration;

use fender_runtime::metrics::Exposition;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use crate::telemetry::declared;

/// From a commit that cost no flush to one that somebody waited for: 1 ms to 16 s.
const BUCKETS: u16 = 15;

/// Cheap to clone; all clones count together.
#[derive(Clone, Debug)]
pub(crate) struct Meter {
    committed: Counter,
    failed: Counter,
    changes: Counter,
    seconds: Histogram,
}

impl Meter {
    pub(super) fn new() -> Self {
        Self {
            committed: Counter::default(),
            failed: Counter::default(),
            changes: Counter::default(),
            seconds: Histogram::new(exponential_buckets(0.001, 2.0, BUCKETS)),
        }
    }

    /// Transactions that are on disk.
    pub(super) fn commits(&self) -> u64 {
        self.committed.get()
    }

    pub(super) fn committed(&self) {
        self.committed.inc();
    }

    /// A batch of changes has its answer.
    pub(super) fn answered(&self, changes: usize, took: Duration, failed: bool) {
        self.seconds.observe(took.as_secs_f64());
        match failed {
            true => drop(self.failed.inc()),
            false => drop(
                self.changes
                    .inc_by(u64::try_from(changes).unwrap_or(u64::MAX)),
            ),
        }
    }

    pub(crate) fn tell(&self, told: &mut Exposition) {
        told.register(&declared::TRANSACTIONS, self.committed.clone());
        told.register(&declared::TRANSACTIONS_FAILED, self.failed.clone());
        told.register(&declared::CHANGES, self.changes.clone());
        told.register(&declared::TRANSACTION_SECONDS, self.seconds.clone());
    }
}
