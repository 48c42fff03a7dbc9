//! The number of what sidecars are told of whom to believe. It only grows, and only when that changes.

use super::revisions::Digest;
use super::{Command, Connection, StoreError, query};

/// The number of what has this digest: the one it has, or the next.
pub(crate) struct Number {
    pub(crate) digest: Digest,
}

impl Command for Number {
    type Output = u64;

    async fn run(&self, db: &mut Connection) -> Result<u64, StoreError> {
        let version: i64 = query(
            "INSERT INTO trust (single, version, digest) VALUES (1, 1, $1) \
             ON CONFLICT (single) DO UPDATE SET digest = excluded.digest, \
             version = CASE WHEN trust.digest = excluded.digest THEN trust.version ELSE trust.version + 1 END \
             RETURNING version",
        )
        .bind(&self.digest)
        .one(db)
        .await?
        .get("version")?;
        Ok(version.unsigned_abs())
    }
}
