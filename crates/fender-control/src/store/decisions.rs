//! Why sidecars decided as they did: seven days of it, and no more than a bound for each workload, so that none can
//! crowd out another's.

use std::collections::BTreeSet;
use std::time::Duration;

use fender_identity::WorkloadName;
use rustls::pki_types::UnixTime;
use sqlx::{Row, SqliteConnection};

use super::certificates::More;
use super::{Command, Store, StoreError};
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

    async fn run(self, db: &mut SqliteConnection) -> Result<(), StoreError> {
        let mut touched = BTreeSet::new();
        for decision in self.decisions {
            // An id is 128 random bits: the same one again is a repetition, and the first telling stands.
            sqlx::query(
                "INSERT INTO decisions (id, workload, recorded_at, record) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            )
            .bind(decision.id)
            .bind(decision.workload.to_string())
            .bind(seconds(self.at))
            .bind(decision.record)
            .execute(&mut *db)
            .await?;
            touched.insert(decision.workload.to_string());
        }
        for workload in touched {
            sqlx::query(
                "DELETE FROM decisions WHERE rowid IN (SELECT rowid FROM decisions WHERE workload = ? \
                 ORDER BY recorded_at DESC, rowid DESC LIMIT -1 OFFSET ?)",
            )
            .bind(workload)
            .bind(KEPT_PER_WORKLOAD)
            .execute(&mut *db)
            .await?;
        }
        Ok(())
    }
}

pub(crate) async fn find(store: &Store, id: &str) -> Result<Option<Vec<u8>>, StoreError> {
    sqlx::query("SELECT record FROM decisions WHERE id = ?")
        .bind(id.to_owned())
        .fetch_optional(store.reads())
        .await?
        .map(|row| Ok(row.try_get("record")?))
        .transpose()
}

/// Forgets what is older than it may be.
pub(crate) struct Forget {
    pub(crate) now: UnixTime,
}

impl Command for Forget {
    type Output = More;

    async fn run(self, db: &mut SqliteConnection) -> Result<More, StoreError> {
        let gone = sqlx::query(
            "DELETE FROM decisions WHERE rowid IN (SELECT rowid FROM decisions WHERE recorded_at < ? LIMIT ?)",
        )
        .bind(seconds(earlier(self.now, KEPT)))
        .bind(FORGET)
        .execute(db)
        .await?
        .rows_affected();
        Ok(if gone < FORGET.unsigned_abs() {
            More::Nothing
        } else {
            More::Perhaps
        })
    }
}
