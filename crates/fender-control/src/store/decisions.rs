//! Why sidecars decided as they did: seven days of it, and no more than a bound for each workload, so that none can
//! crowd out another's.

use std::collections::BTreeSet;
use std::time::Duration;

use fender_identity::WorkloadName;
use rustls::pki_types::UnixTime;

use super::certificates::More;
use super::{Command, Connection, Store, StoreError, Value, execute_all, query, query_rows};
use crate::time::{earlier, seconds};

const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// Decisions kept of one workload, the newest.
const KEPT_PER_WORKLOAD: i64 = 10_000;
/// Decisions forgotten in one transaction.
const FORGET: i64 = 5000;

/// One decision; the record is the protocol's message, encoded.
#[derive(Clone, Debug)]
pub(crate) struct Decision {
    pub(crate) id: String,
    pub(crate) workload: WorkloadName,
    pub(crate) record: Vec<u8>,
}

pub(crate) struct Record {
    pub(crate) at: UnixTime,
    pub(crate) decisions: Vec<Decision>,
}

impl Command for Record {
    type Output = ();

    async fn run(&self, db: &mut Connection) -> Result<(), StoreError> {
        let rows = self.decisions.iter().map(|decision| {
            [
                Value::from(decision.id.as_str()),
                decision.workload.to_string().into(),
                seconds(self.at).into(),
                decision.record.as_slice().into(),
            ]
        });
        // An id is 128 random bits: the same one again is a repetition, and the first telling stands.
        let rows = query_rows(
            "INSERT INTO decisions (id, workload, recorded_at, record) VALUES {rows} ON CONFLICT DO NOTHING",
            rows,
        );
        execute_all(rows, db).await?;
        let touched: BTreeSet<_> = self
            .decisions
            .iter()
            .map(|decision| decision.workload.to_string())
            .collect();
        for workload in touched {
            query(
                "DELETE FROM decisions WHERE id IN (SELECT id FROM decisions WHERE workload = $1 \
                 ORDER BY recorded_at DESC, id DESC LIMIT $2 OFFSET $3)",
            )
            .bind(workload)
            .bind(i64::MAX)
            .bind(KEPT_PER_WORKLOAD)
            .execute(&mut *db)
            .await?;
        }
        Ok(())
    }
}

pub(crate) async fn find(store: &Store, id: &str) -> Result<Option<Vec<u8>>, StoreError> {
    query("SELECT record FROM decisions WHERE id = $1")
        .bind(id)
        .optional(store.reads())
        .await?
        .map(|row| row.get("record"))
        .transpose()
}

/// Forgets what is older than it may be.
pub(crate) struct Forget {
    pub(crate) now: UnixTime,
}

impl Command for Forget {
    type Output = More;

    async fn run(&self, db: &mut Connection) -> Result<More, StoreError> {
        let gone = query(
            "DELETE FROM decisions WHERE id IN (SELECT id FROM decisions WHERE recorded_at < $1 LIMIT $2)",
        )
        .bind(seconds(earlier(self.now, KEPT)))
        .bind(FORGET)
        .execute(db)
        .await?;
        Ok(if gone < FORGET.unsigned_abs() {
            More::Nothing
        } else {
            More::Perhaps
        })
    }
}
