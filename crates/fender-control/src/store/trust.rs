//! The number of what sidecars are told of whom to believe. It only grows, and only when that changes.

use sqlx::{Row, SqliteConnection};

use super::revisions::Digest;
use super::{Command, StoreError};

/// The number of what has this digest: the one it has, or the next.
pub(crate) struct Number {
    pub(crate) digest: Digest,
}

impl Command for Number {
    type Output = u64;

    async fn run(self, db: &mut SqliteConnection) -> Result<u64, StoreError> {
        let version: i64 = sqlx::query(
            "INSERT INTO trust (single, version, digest) VALUES (1, 1, ?) \
             ON CONFLICT (single) DO UPDATE SET digest = excluded.digest, \
             version = version + (digest <> excluded.digest) RETURNING version",
        )
        .bind(self.digest.to_vec())
        .fetch_one(db)
        .await?
        .try_get("version")?;
        Ok(version.unsigned_abs())
    }
}
