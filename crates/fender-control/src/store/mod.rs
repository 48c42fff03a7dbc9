//! What the control plane remembers, in SQLite or in PostgreSQL: many readers, one writer.
//!
//! Every change goes through one task, which takes whatever is queued and commits it as **one** transaction (group
//! commit, [`writer`]). So a thousand sidecars that renew at once cost a handful of disk flushes, and two spenders of one
//! token are decided by their place in the queue, or by whose replica's turn came first. Each change stands alone: one
//! that fails undoes only itself. Nobody is told of success before the commit has reached the disk.
//!
//! Each aggregate has its own file and its own commands, written once for both databases ([`db`]); this one knows none
//! of them. No secret is stored in the clear.

pub(crate) mod audit;
pub(crate) mod authorities;
pub(crate) mod certificates;
pub(crate) mod crls;
mod db;
pub(crate) mod decisions;
mod feed;
pub(crate) mod jwt_keys;
pub(crate) mod mesh;
mod meter;
pub(crate) mod place;
mod postgres;
pub(crate) mod replicas;
pub(crate) mod revisions;
pub(crate) mod revocations;
pub(crate) mod tokens;
pub(crate) mod trust;
mod writer;

use std::fmt;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fender_runtime::drain::Drain;
use fender_runtime::id::OpaqueId;
use sqlx::ConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use tokio::sync::{mpsc, oneshot, watch};

pub(crate) use db::{Connection, Query, Record, Value, Whom, execute_all, query, query_rows};
pub(crate) use feed::Topic;

use db::{Fate, Pool, STATEMENTS};
use feed::Feed;
use meter::Meter;
use place::Access;
use writer::{Job, Queued, Writer};

/// Changes waiting for the writer, at most; beyond it, callers wait.
const QUEUE: usize = 4096;
/// How long a statement waits for a writer in another process (`fender control --reissue-admin` beside a running one).
const BUSY: Duration = Duration::from_secs(5);

/// One change. It may have to be made more than once before it is committed, so it changes nothing but the database.
pub(crate) trait Command: Send + Sync + Sized + 'static {
    type Output: Send + 'static;

    /// An error undoes this change and no other.
    fn run(
        &self,
        db: &mut Connection,
    ) -> impl Future<Output = Result<Self::Output, StoreError>> + Send;

    /// Makes all of these, as if one after the other, in fewer statements if it can; an output for each. After an error
    /// each is made by itself.
    fn run_all(
        these: &[Self],
        db: &mut Connection,
    ) -> impl Future<Output = Result<Vec<Self::Output>, StoreError>> + Send {
        async move {
            let mut outputs = Vec::with_capacity(these.len());
            for this in these {
                outputs.push(this.run(db).await?);
            }
            Ok(outputs)
        }
    }
}

/// The database. Cheap to clone; the writer ends when the last clone is gone and its queue is empty.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    jobs: mpsc::Sender<Box<dyn Job>>,
    reader: Reader,
}

/// The half of it that changes nothing.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    pool: Pool,
    feed: Feed,
    meter: Meter,
}

impl Store {
    /// Opens a SQLite database, brings its schema up to date and starts the writer.
    pub(crate) async fn open(path: &Path, drain: &Drain) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // In WAL mode NORMAL may lose the last commits when the machine loses power: a spent token would be
            // unspent again and a certificate would exist that no record knows. FULL flushes at every commit; group
            // commit is what makes that affordable.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY)
            .statement_cache_capacity(STATEMENTS)
            .disable_statement_logging();
        let place = || path.display().to_string();
        let opening = |source| StoreError::Open {
            place: place(),
            source,
        };

        let writes = SqlitePoolOptions::new()
            .max_connections(1)
            .test_before_acquire(false)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options.clone())
            .await
            .map_err(opening)?;
        sqlx::migrate!("./migrations/sqlite")
            .run(&writes)
            .await
            .map_err(|source| StoreError::Migrate {
                place: place(),
                source,
            })?;
        let reads = SqlitePoolOptions::new()
            .max_connections(4)
            .test_before_acquire(false)
            .connect_with(options.read_only(true).create_if_missing(false))
            .await
            .map_err(opening)?;
        Ok(Self::over(Pool::Sqlite(writes), Pool::Sqlite(reads), drain))
    }

    /// Connects to a PostgreSQL database, brings its schema up to date, starts the writer, and follows what other
    /// replicas change.
    pub(crate) async fn connect(server: &Access, drain: &Drain) -> Result<Self, StoreError> {
        let (writes, reads) = server.connect().await?;
        let store = Self::over(Pool::Postgres(writes), Pool::Postgres(reads.clone()), drain);
        drain.spawn(feed::follow(
            store.reader.feed.clone(),
            store.reader.clone(),
            reads,
            drain.clone(),
        ));
        Ok(store)
    }

    fn over(writes: Pool, reads: Pool, drain: &Drain) -> Self {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let meter = Meter::new();
        let feed = Feed::new();
        let name = OpaqueId::random().to_string();
        let writer = Writer::new(writes, name, feed.clone(), meter.clone());
        drain.spawn(writer.run(queue));
        Self {
            jobs,
            reader: Reader {
                pool: reads,
                feed,
                meter,
            },
        }
    }

    /// Queues a change and waits until it is on disk. Dropping the future does not undo a change already queued.
    pub(crate) async fn write<C: Command>(&self, command: C) -> Result<C::Output, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.jobs
            .send(Box::new(Queued { command, reply }))
            .await
            .map_err(|_| StoreError::Stopped)?;
        answer.await.map_err(|_| StoreError::Stopped)?
    }

    /// Whom to ask what is committed.
    pub(crate) fn reads(&self) -> &Reader {
        &self.reader
    }

    pub(crate) fn reader(&self) -> &Reader {
        &self.reader
    }
}

impl Reader {
    /// Transactions committed since the store was opened.
    pub(crate) fn commits(&self) -> u64 {
        self.meter.commits()
    }

    pub(crate) fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Whether the database is there.
    pub(crate) async fn answers(&self) -> Result<(), StoreError> {
        query("SELECT 1 AS one").one(self).await.map(drop)
    }

    /// Wakes after a change of `topic`, by whichever replica. Subscribe first, then read, then wait: a change in between
    /// is not missed.
    pub(crate) fn changes(&self, topic: Topic) -> watch::Receiver<i64> {
        self.feed.follow(topic)
    }
}

impl fmt::Debug for dyn Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Job")
    }
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    #[error("open the database `{place}`: {source}")]
    Open { place: String, source: sqlx::Error },
    #[error("bring the database `{place}` up to date: {source}")]
    Migrate {
        place: String,
        source: sqlx::migrate::MigrateError,
    },
    #[error("the database refused: {0}")]
    Database(#[from] sqlx::Error),
    #[error("the database could not commit: {0}")]
    Commit(Arc<StoreError>),
    #[error(
        "the connection to the database was lost during a commit, and whether it was made is not known: {0}"
    )]
    Unknown(Box<StoreError>),
    #[error("the database holds a damaged {0}")]
    Damaged(&'static str),
    #[error("what was to be recorded was revoked meanwhile")]
    Revoked,
    #[error("the store has stopped")]
    Stopped,
}

impl StoreError {
    /// Whether the database is away or busy, and the same question may be answered later or by another replica.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Commit(error) => error.is_passing(),
            Self::Unknown(_) => true,
            Self::Open { .. }
            | Self::Migrate { .. }
            | Self::Database(_)
            | Self::Damaged(_)
            | Self::Revoked
            | Self::Stopped => self.fate() != Fate::Final,
        }
    }

    fn fate(&self) -> Fate {
        match self {
            Self::Database(error) | Self::Open { source: error, .. } => Fate::of(error),
            Self::Migrate { .. }
            | Self::Commit(_)
            | Self::Unknown(_)
            | Self::Damaged(_)
            | Self::Revoked
            | Self::Stopped => Fate::Final,
        }
    }
}

#[cfg(test)]
mod tests;
