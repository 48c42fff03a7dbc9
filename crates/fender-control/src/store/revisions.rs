//! The documents people wrote, verbatim, of every revision; and for each workload the revision that last
//! changed what it is told. Numbers only grow, across restarts too. What the documents mean is not known here.
//!
//! Old revisions are forgotten, but neither the one in force nor one that last changed what a workload is told.

use std::collections::BTreeMap;
use std::time::Duration;

use fender_config::Source;
use fender_identity::{SpiffeId, WorkloadName};
use rustls::pki_types::UnixTime;

use super::certificates::More;
use super::{
    Command, Connection, Query, Reader, Record, Store, StoreError, Topic, Value, Whom, audit,
    execute_all, query, query_rows,
};
use crate::time::{earlier, seconds};

/// The newest so many are kept, however old they are;
pub(crate) const KEPT: u64 = 100;
/// and all of so many days, however many they are.
pub(crate) const KEPT_DAYS: u64 = 30;
/// Revisions, and texts, forgotten in one transaction. A text may be megabytes, and others want to write.
const FORGET: i64 = 8;

pub(crate) type Digest = [u8; 32];

#[derive(Clone, Debug)]
pub(crate) struct Revision {
    pub(crate) number: u64,
    pub(crate) files: Vec<Source>,
}

/// What is told of a revision beside its documents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) number: u64,
    pub(crate) applied_at: i64,
    pub(crate) applied_by: String,
    pub(crate) documents: u64,
}

/// Those that are kept and older than this one, the newest first.
pub(crate) async fn before(
    reader: &Reader,
    number: u64,
    limit: i64,
) -> Result<Vec<Summary>, StoreError> {
    query(
        "SELECT revision, applied_at, applied_by, documents FROM revisions WHERE revision < $1 \
         ORDER BY revision DESC LIMIT $2",
    )
    .bind(i64::try_from(number).unwrap_or(i64::MAX))
    .bind(limit)
    .all(reader)
    .await?
    .iter()
    .map(|row| {
        Ok(Summary {
            number: row.get::<i64>("revision")?.unsigned_abs(),
            applied_at: row.get("applied_at")?,
            applied_by: row.get("applied_by")?,
            documents: row.get::<i64>("documents")?.unsigned_abs(),
        })
    })
    .collect()
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
    query(
        "SELECT name, text FROM revision_files \
         WHERE since <= $1 AND (until IS NULL OR until > $1) \
         AND EXISTS (SELECT 1 FROM revisions WHERE revision = $1) ORDER BY position",
    )
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

/// What these workloads were last told, as far as they ever were.
pub(crate) async fn told<'a>(
    store: &Store,
    workloads: impl IntoIterator<Item = &'a WorkloadName>,
) -> Result<BTreeMap<WorkloadName, Told>, StoreError> {
    let mut told = BTreeMap::new();
    for query in query_told(workloads) {
        read_told(&mut told, query.all(store.reads()).await?)?;
    }
    Ok(told)
}

fn query_told<'a>(workloads: impl IntoIterator<Item = &'a WorkloadName>) -> Vec<Query> {
    query_rows(
        "SELECT workload, version, digest FROM snapshots WHERE workload IN (VALUES {rows})",
        workloads
            .into_iter()
            .map(|workload| [Value::from(workload.to_string())]),
    )
}

fn read_told(told: &mut BTreeMap<WorkloadName, Told>, rows: Vec<Record>) -> Result<(), StoreError> {
    let damaged = || StoreError::Damaged("snapshot version");
    for row in rows {
        let workload = row.get::<String>("workload")?;
        let digest = row.get::<Vec<u8>>("digest")?;
        told.insert(
            workload.parse().map_err(|_| damaged())?,
            Told {
                version: row.get::<i64>("version")?.unsigned_abs(),
                digest: digest.try_into().map_err(|_| damaged())?,
            },
        );
    }
    Ok(())
}

/// A place among the files of a revision that another text takes, or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rewritten {
    position: i64,
    file: Option<Source>,
}

/// What makes one set of files the other.
pub(crate) fn rewritten(before: &[Source], after: &[Source]) -> Vec<Rewritten> {
    let places = before.len().max(after.len());
    (0_i64..)
        .zip(0..places)
        .filter(|(_, place)| before.get(*place) != after.get(*place))
        .map(|(position, place)| Rewritten {
            position,
            file: after.get(place).cloned(),
        })
        .collect()
}

/// Makes a set of documents the one in force, if the one it was compared with still is.
pub(crate) struct Apply {
    /// The revision the change was computed against, 0 for none.
    pub(crate) upon: u64,
    pub(crate) files: Vec<Rewritten>,
    /// How many documents there are then.
    pub(crate) documents: usize,
    pub(crate) by: SpiffeId,
    pub(crate) at: UnixTime,
    /// What the workloads are told from now on that may be told something else.
    pub(crate) digests: BTreeMap<WorkloadName, Digest>,
    pub(crate) entry: audit::Entry,
}

pub(crate) enum Applied {
    Revision {
        number: u64,
        /// Of those workloads.
        told: BTreeMap<WorkloadName, Told>,
    },
    /// Somebody else was faster.
    Overtaken,
}

impl Apply {
    async fn rewrite_files(&self, number: i64, db: &mut Connection) -> Result<(), StoreError> {
        for place in &self.files {
            query("UPDATE revision_files SET until = $1 WHERE position = $2 AND until IS NULL")
                .bind(number)
                .bind(place.position)
                .execute(&mut *db)
                .await?;
        }
        let files = self.files.iter().filter_map(|place| {
            let file = place.file.as_ref()?;
            Some([
                Value::from(place.position),
                number.into(),
                file.name.as_str().into(),
                file.text.as_str().into(),
            ])
        });
        let files = query_rows(
            "INSERT INTO revision_files (position, since, name, text) VALUES {rows}",
            files,
        );
        execute_all(files, db).await?;
        Ok(())
    }
}

impl Command for Apply {
    type Output = Applied;

    async fn run(&self, db: &mut Connection) -> Result<Applied, StoreError> {
        let before = newest(&mut *db).await?.unwrap_or(0);
        if before.unsigned_abs() != self.upon {
            return Ok(Applied::Overtaken);
        }
        // The newest revision is never removed, so that this number was never used.
        let number = before.saturating_add(1);
        query(
            "INSERT INTO revisions (revision, applied_at, applied_by, documents) VALUES ($1, $2, $3, $4)",
        )
        .bind(number)
        .bind(seconds(self.at))
        .bind(self.by.as_str())
        .bind(i64::try_from(self.documents).unwrap_or(i64::MAX))
        .execute(&mut *db)
        .await?;
        self.rewrite_files(number, db).await?;
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
        audit::append(&mut *db, &entry).await?;
        let mut told = BTreeMap::new();
        for query in query_told(self.digests.keys()) {
            read_told(&mut told, query.all(&mut *db).await?)?;
        }
        Ok(Applied::Revision { number, told })
    }
}

/// Forgets a few revisions that are neither among the newest nor young nor needed. Answers whether there may be more.
pub(crate) struct Forget {
    pub(crate) now: UnixTime,
}

impl Command for Forget {
    type Output = More;

    async fn run(&self, db: &mut Connection) -> Result<More, StoreError> {
        let (kept, limit) = (i64::try_from(KEPT).unwrap_or(i64::MAX), FORGET);
        let newest = newest(&mut *db).await?.unwrap_or(0);
        let young = earlier(self.now, Duration::from_secs(KEPT_DAYS * 24 * 3600));
        let old = query(
            "SELECT revision FROM revisions WHERE revision <= $1 AND applied_at < $2 \
             AND NOT EXISTS (SELECT 1 FROM snapshots WHERE version = revision) ORDER BY revision LIMIT $3",
        )
        .bind(newest.saturating_sub(kept))
        .bind(seconds(young))
        .bind(limit)
        .all(&mut *db)
        .await?;
        for row in &old {
            query("DELETE FROM revisions WHERE revision = $1")
                .bind(row.get::<i64>("revision")?)
                .execute(&mut *db)
                .await?;
        }
        // A text that replaced another stays for as long as one revision is kept that it belongs to.
        let gone = query(
            "DELETE FROM revision_files WHERE (position, since) IN (SELECT position, since FROM revision_files \
             WHERE until <= $1 AND NOT EXISTS (SELECT 1 FROM revisions WHERE revision >= since AND revision < until) \
             LIMIT $2)",
        )
        .bind(newest.saturating_sub(kept).saturating_add(1))
        .bind(limit)
        .execute(db)
        .await?;
        Ok(
            match i64::try_from(old.len()) == Ok(limit) || gone >= limit.unsigned_abs() {
                true => More::Perhaps,
                false => More::Nothing,
            },
        )
    }
}
