//! What follows a revocation that is in force already, and holds up nobody: what it ended is marked for the lists that
//! authorities sign, and one day it is forgotten.

use std::time::Duration;

use rustls::pki_types::UnixTime;

use super::ended_before;
use crate::store::certificates::More;
use crate::store::{Command, Connection, Store, StoreError, Topic, query};
use crate::time::seconds;

/// Certificates marked in one transaction, so that others are not held up for long.
const MARKED: i64 = 2000;

/// Marks some of what still lives and a rule ended, for the lists that authorities sign. Answers whether there may be more.
pub(crate) struct Mark {
    pub(crate) now: UnixTime,
}

impl Command for Mark {
    type Output = More;

    async fn run(&self, db: &mut Connection) -> Result<More, StoreError> {
        let marked = query(
            "UPDATE certificates SET revoked_at = (SELECT min(r.revoked_at) FROM revocations r \
             WHERE r.moment > certificates.not_before \
             AND ((r.kind = 'identity' AND r.subject = certificates.identity) \
             OR (r.kind = 'node' AND r.subject = certificates.node) \
             OR (r.kind = 'workloads' AND certificates.identity LIKE 'spiffe://%/ns/%'))) \
             WHERE serial IN (SELECT serial FROM certificate_standing \
             WHERE revoked_at IS NULL AND revoked = 1 AND not_after > $1 LIMIT $2)",
        )
        .bind(seconds(self.now))
        .bind(MARKED)
        .execute(&mut *db)
        .await?;
        if marked > 0 {
            db.changed(Topic::Revocations);
        }
        Ok(if marked < MARKED.unsigned_abs() {
            More::Nothing
        } else {
            More::Perhaps
        })
    }
}

impl Store {
    /// All of it, in transactions that hold up nobody for long.
    pub(crate) async fn mark_revoked(&self, now: UnixTime) -> Result<(), StoreError> {
        while self.write(Mark { now }).await? == More::Perhaps {}
        Ok(())
    }
}

/// Forgets what is out of force, once no certificate is on record any more that it could concern: the last of those ended
/// when it does. Otherwise a longer renewal grace would bring back what is not marked.
pub(crate) struct Forget {
    pub(crate) now: UnixTime,
    pub(crate) renewal_grace: Duration,
}

impl Command for Forget {
    type Output = ();

    async fn run(&self, db: &mut Connection) -> Result<(), StoreError> {
        query(
            "DELETE FROM revocations WHERE ends_at < $1 \
             AND ends_at < (SELECT coalesce(min(not_after), $2) FROM certificates)",
        )
        .bind(seconds(ended_before(self.now, self.renewal_grace)))
        .bind(i64::MAX)
        .execute(db)
        .await?;
        Ok(())
    }
}
