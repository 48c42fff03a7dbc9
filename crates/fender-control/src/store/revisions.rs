//! The documents people wrote, verbatim, one complete set per revision; and for each workload the revision that last
//! changed what it is told. Numbers only grow, across restarts too. What the documents mean is not known here.

use std::collections::BTreeMap;

use fender_config::Source;
use fender_identity::{SpiffeId, WorkloadName};
use rustls::pki_types::UnixTime;

use super::{
    Command, Connection, Store, StoreError, Topic, Value, Whom, audit, execute_all, query,
    query_rows,
};
use crate::time::seconds;

pub(crate) type Digest = [u8; 32];

#[derive(Clone, Debug)]
pub(crate) struct Revision {
    pub(crate) number: u64,
    pub(crate) files: Vec<Source>,
}

/// The revision in force.
pub(crate) async fn current(store: &Store) -> Result<Option<Revision>, StoreError> {
    newer(store, 0).await
}

/// The revision in force, if it is not this one.
pub(crate) async fn newer(store: &Store, than: u64) -> Result<Option<Revision>, StoreError> {
    let Some(number) = newest(store.reads()).await? else {
        return Ok(None);
    };
    if number.unsigned_abs() <= than {
        return Ok(None);
    }
    // A revision never changes once it is there, so that reading it in two steps reads one thing.
    let files = read_files(store.reads(), number).await?;
    Ok(Some(Revision {
        number: number.unsigned_abs(),
        files,
    }))
}

/// The documents of one revision; none if there never was one, or they were forgotten.
pub(crate) async fn files(store: &Store, number: u64) -> Result<Vec<Source>, StoreError> {
    read_files(store.reads(), i64::try_from(number).unwrap_or(i64::MAX)).await
}

async fn read_files<'a>(db: impl Into<Whom<'a>>, number: i64) -> Result<Vec<Source>, StoreError> {
    query("SELECT name, text FROM revision_files WHERE revision = $1 ORDER BY position")
        .bind(number)
        .all(db)
        .await?
        .iter()
        .map(|row| {
            Ok(Source {
                name: row.get("name")?,
                text: row.get("text")?,
            })
        })
        .collect()
}

async fn newest<'a>(db: impl Into<Whom<'a>>) -> Result<Option<i64>, StoreError> {
    query("SELECT max(revision) AS newest FROM revisions")
        .one(db)
        .await?
        .get("newest")
}

/// What one workload was last told, and since which revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) version: u64,
    pub(crate) digest: Digest,
}

pub(crate) async fn told(store: &Store) -> Result<BTreeMap<WorkloadName, Told>, StoreError> {
    read_told(store.reads()).await
}

async fn read_told<'a>(
    db: impl Into<Whom<'a>>,
) -> Result<BTreeMap<WorkloadName, Told>, StoreError> {
    let damaged = || StoreError::Damaged("snapshot version");
    query("SELECT workload, version, digest FROM snapshots")
        .all(db)
        .await?
        .iter()
        .map(|row| {
            let workload = row
                .get::<String>("workload")?
                .parse()
                .map_err(|_| damaged())?;
            let digest = row
                .get::<Vec<u8>>("digest")?
                .try_into()
                .map_err(|_| damaged())?;
            let version = row.get::<i64>("version")?.unsigned_abs();
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

    async fn run(&self, db: &mut Connection) -> Result<Applied, StoreError> {
        let before = newest(&mut *db).await?.unwrap_or(0);
        if before.unsigned_abs() != self.upon {
            return Ok(Applied::Overtaken);
        }
        // Revisions are never removed, so that this number was never used.
        let number = before.saturating_add(1);
        query("INSERT INTO revisions (revision, applied_at, applied_by) VALUES ($1, $2, $3)")
            .bind(number)
            .bind(seconds(self.at))
            .bind(self.by.as_str())
            .execute(&mut *db)
            .await?;
        let files = (0_i64..).zip(&self.files).map(|(position, file)| {
            [
                Value::from(number),
                position.into(),
                file.name.as_str().into(),
                file.text.as_str().into(),
            ]
        });
        let files = query_rows(
            "INSERT INTO revision_files (revision, position, name, text) VALUES {rows}",
            files,
        );
        execute_all(files, db).await?;
        let digests = self.digests.iter().map(|(workload, digest)| {
            [
                Value::from(workload.to_string()),
                number.into(),
                digest.into(),
            ]
        });
        let digests = query_rows(
            "INSERT INTO snapshots (workload, version, digest) VALUES {rows} \
             ON CONFLICT (workload) DO UPDATE SET version = excluded.version, digest = excluded.digest \
             WHERE snapshots.digest <> excluded.digest",
            digests,
        );
        execute_all(digests, db).await?;
        db.changed(Topic::Documents);
        let number = number.unsigned_abs();
        let entry = audit::Entry {
            detail: format!("{}; revision {number}", self.entry.detail),
            ..self.entry.clone()
        };
        audit::append(db, &entry).await?;
        Ok(Applied::Revision {
            number,
            told: read_told(db).await?,
        })
    }
}
