//! The documents people wrote, verbatim, one complete set per revision; and for each workload the revision that last
//! changed what it is told. Numbers only grow, across restarts too. What the documents mean is not known here.

use std::collections::BTreeMap;

use fender_config::Source;
use fender_identity::{SpiffeId, WorkloadName};
use rustls::pki_types::UnixTime;
use sqlx::{Row, SqliteConnection};

use super::{Command, Store, StoreError, audit};
use crate::time::seconds;

pub(crate) type Digest = [u8; 32];

#[derive(Clone, Debug)]
pub(crate) struct Revision {
    pub(crate) number: u64,
    pub(crate) files: Vec<Source>,
}

/// The revision in force.
pub(crate) async fn current(store: &Store) -> Result<Option<Revision>, StoreError> {
    let mut read = store.reads().begin().await?;
    let Some(number) = newest(&mut read).await? else {
        return Ok(None);
    };
    let files = read_files(&mut *read, number).await?;
    Ok(Some(Revision {
        number: number.unsigned_abs(),
        files,
    }))
}

/// The documents of one revision; none if there never was one, or they were forgotten.
pub(crate) async fn files(store: &Store, number: u64) -> Result<Vec<Source>, StoreError> {
    read_files(store.reads(), i64::try_from(number).unwrap_or(i64::MAX)).await
}

async fn read_files<'a>(
    db: impl sqlx::Executor<'a, Database = sqlx::Sqlite>,
    number: i64,
) -> Result<Vec<Source>, StoreError> {
    sqlx::query("SELECT name, text FROM revision_files WHERE revision = ? ORDER BY position")
        .bind(number)
        .fetch_all(db)
        .await?
        .iter()
        .map(|row| {
            Ok(Source {
                name: row.try_get("name")?,
                text: row.try_get("text")?,
            })
        })
        .collect()
}

async fn newest(db: &mut SqliteConnection) -> Result<Option<i64>, StoreError> {
    Ok(sqlx::query("SELECT max(revision) AS newest FROM revisions")
        .fetch_one(db)
        .await?
        .try_get("newest")?)
}

/// What one workload was last told, and since which revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) version: u64,
    pub(crate) digest: Digest,
}

pub(crate) async fn told(store: &Store) -> Result<BTreeMap<WorkloadName, Told>, StoreError> {
    let mut read = store.reads().acquire().await?;
    read_told(&mut read).await
}

async fn read_told(db: &mut SqliteConnection) -> Result<BTreeMap<WorkloadName, Told>, StoreError> {
    let damaged = || StoreError::Damaged("snapshot version");
    sqlx::query("SELECT workload, version, digest FROM snapshots")
        .fetch_all(db)
        .await?
        .iter()
        .map(|row| {
            let workload = row
                .try_get::<&str, _>("workload")?
                .parse()
                .map_err(|_| damaged())?;
            let digest = row
                .try_get::<Vec<u8>, _>("digest")?
                .try_into()
                .map_err(|_| damaged())?;
            let version = row.try_get::<i64, _>("version")?.unsigned_abs();
            Ok((workload, Told { version, digest }))
        })
        .collect()
}

/// Makes a set of documents the one in force, if the one it was compared with still is.
pub(crate) struct Apply {
    /// The revision the change was computed against, 0 for none.
    pub(crate) upon: u64,
    pub(crate) files: Vec<Source>,
    pub(crate) by: SpiffeId,
    pub(crate) at: UnixTime,
    /// What every workload is told from now on.
    pub(crate) digests: BTreeMap<WorkloadName, Digest>,
    pub(crate) entry: audit::Entry,
}

pub(crate) enum Applied {
    Revision {
        number: u64,
        told: BTreeMap<WorkloadName, Told>,
    },
    /// Somebody else was faster.
    Overtaken,
}

impl Command for Apply {
    type Output = Applied;

    async fn run(self, db: &mut SqliteConnection) -> Result<Applied, StoreError> {
        if newest(db).await?.unwrap_or(0).unsigned_abs() != self.upon {
            return Ok(Applied::Overtaken);
        }
        let number = sqlx::query("INSERT INTO revisions (applied_at, applied_by) VALUES (?, ?)")
            .bind(seconds(self.at))
            .bind(self.by.as_str().to_owned())
            .execute(&mut *db)
            .await?
            .last_insert_rowid();
        for (position, file) in (0_i64..).zip(self.files) {
            sqlx::query(
                "INSERT INTO revision_files (revision, position, name, text) VALUES (?, ?, ?, ?)",
            )
            .bind(number)
            .bind(position)
            .bind(file.name)
            .bind(file.text)
            .execute(&mut *db)
            .await?;
        }
        for (workload, digest) in self.digests {
            sqlx::query(
                "INSERT INTO snapshots (workload, version, digest) VALUES (?, ?, ?) \
                 ON CONFLICT (workload) DO UPDATE SET version = excluded.version, digest = excluded.digest \
                 WHERE digest <> excluded.digest",
            )
            .bind(workload.to_string())
            .bind(number)
            .bind(digest.to_vec())
            .execute(&mut *db)
            .await?;
        }
        let number = number.unsigned_abs();
        audit::append(
            db,
            audit::Entry {
                detail: format!("{}; revision {number}", self.entry.detail),
                ..self.entry
            },
        )
        .await?;
        Ok(Applied::Revision {
            number,
            told: read_told(db).await?,
        })
    }
}
