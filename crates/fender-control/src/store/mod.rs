//! What the control plane remembers: one SQLite database, many readers, one writer.
//!
//! Every change goes through one task, which takes whatever is queued and commits it as **one** transaction (group
//! commit). So a thousand sidecars that renew at once cost a handful of disk flushes, and two spenders of one token are
//! decided by their place in the queue. Each change runs inside its own savepoint: one that fails undoes only itself.
//! Nobody is told of success before the commit has reached the disk.
//!
//! Each aggregate has its own file and its own commands; this one knows none of them. No secret is stored in the clear.

pub(crate) mod audit;
pub(crate) mod authorities;
pub(crate) mod certificates;
pub(crate) mod decisions;
pub(crate) mod mesh;
pub(crate) mod revisions;
pub(crate) mod revocations;
pub(crate) mod tokens;
pub(crate) mod trust;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fender_runtime::drain::Drain;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use tokio::sync::{mpsc, oneshot};

/// Changes committed in one transaction, at most.
const BATCH: usize = 512;
/// Changes waiting for the writer, at most; beyond it, callers wait.
const QUEUE: usize = 4096;
/// How long a statement waits for a writer in another process (`fender control --reissue-admin` beside a running one).
const BUSY: Duration = Duration::from_secs(5);

/// One change, applied inside a savepoint of the batch it lands in.
pub(crate) trait Command: Send + 'static {
    type Output: Send + 'static;

    /// An error undoes this change and no other.
    fn run(
        self,
        db: &mut SqliteConnection,
    ) -> impl Future<Output = Result<Self::Output, StoreError>> + Send;
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
    reads: SqlitePool,
    commits: Arc<AtomicU64>,
}

impl Store {
    /// Opens the database, brings its schema up to date and starts the writer.
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
            .disable_statement_logging();
        let opening = |source| StoreError::Open {
            path: path.to_owned(),
            source,
        };

        let mut writer = options.connect().await.map_err(opening)?;
        sqlx::migrate!("./migrations")
            .run(&mut writer)
            .await
            .map_err(|source| StoreError::Migrate {
                path: path.to_owned(),
                source,
            })?;
        let reads = SqlitePoolOptions::new()
            .max_connections(4)
            .connect_with(options.read_only(true).create_if_missing(false))
            .await
            .map_err(opening)?;

        let (jobs, queue) = mpsc::channel(QUEUE);
        let commits = Arc::new(AtomicU64::new(0));
        drain.spawn(write(writer, queue, Arc::clone(&commits)));
        Ok(Self {
            jobs,
            reader: Reader { reads, commits },
        })
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

    pub(crate) fn reads(&self) -> &SqlitePool {
        self.reader.reads()
    }

    pub(crate) fn reader(&self) -> &Reader {
        &self.reader
    }
}

impl Reader {
    /// Connections for reading only; they see what is committed.
    pub(crate) fn reads(&self) -> &SqlitePool {
        &self.reads
    }

    /// Transactions committed since the store was opened.
    pub(crate) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    #[error("open the database `{}`: {source}", path.display())]
    Open { path: PathBuf, source: sqlx::Error },
    #[error("bring the database `{}` up to date: {source}", path.display())]
    Migrate {
        path: PathBuf,
        source: sqlx::migrate::MigrateError,
    },
    #[error("the database refused: {0}")]
    Database(#[from] sqlx::Error),
    #[error("the database could not commit: {0}")]
    Commit(Arc<sqlx::Error>),
    #[error("the database holds a damaged {0}")]
    Damaged(&'static str),
    #[error("the store has stopped")]
    Stopped,
}

/// The writer: drains its queue, commits, answers.
async fn write(
    mut db: SqliteConnection,
    mut queue: mpsc::Receiver<Box<dyn Job>>,
    commits: Arc<AtomicU64>,
) {
    let mut batch = Vec::with_capacity(BATCH);
    while queue.recv_many(&mut batch, BATCH).await > 0 {
        if let Some(error) = begin(&mut db).await {
            batch.drain(..).for_each(|job| job.fail(&error));
            continue;
        }
        let mut done: Vec<Box<dyn Done>> = Vec::with_capacity(batch.len());
        let mut jobs = batch.drain(..);
        let mut broken = None;
        while broken.is_none()
            && let Some(job) = jobs.next()
        {
            let ran = job.run(&mut db).await;
            broken = ran.broken();
            done.push(ran);
        }
        // What would run now ran in no transaction, or in one with half a change in it.
        if let Some(error) = &broken {
            jobs.for_each(|job| job.fail(error));
        }
        let outcome = end(&mut db, broken).await;
        if outcome.is_ok() {
            commits.fetch_add(1, Ordering::Relaxed);
        }
        done.into_iter().for_each(|job| job.settle(&outcome));
    }
    // A clean close checkpoints the log; when it fails, the next open does it.
    if let Err(error) = db.close().await {
        tracing::warn!(%error, "close the database");
    }
}

async fn begin(db: &mut SqliteConnection) -> Option<Arc<sqlx::Error>> {
    // IMMEDIATE: take the write lock now, not at the first write, when waiting for it could only end in an error.
    sqlx::query("BEGIN IMMEDIATE")
        .execute(db)
        .await
        .err()
        .map(Arc::new)
}

/// Commits, or undoes everything if the transaction is `broken` or cannot be committed.
async fn end(
    db: &mut SqliteConnection,
    broken: Option<Arc<sqlx::Error>>,
) -> Result<(), Arc<sqlx::Error>> {
    let error = match broken {
        Some(error) => error,
        None => match sqlx::query("COMMIT").execute(&mut *db).await {
            Ok(_) => return Ok(()),
            Err(error) => Arc::new(error),
        },
    };
    if let Err(rollback) = sqlx::query("ROLLBACK").execute(db).await {
        // SQLite has rolled back by itself, as it does when the disk is full.
        tracing::warn!(%rollback, %error, "undo a transaction that could not be committed");
    }
    Err(error)
}

/// A queued change of any kind.
trait Job: Send {
    fn run<'a>(
        self: Box<Self>,
        db: &'a mut SqliteConnection,
    ) -> Pin<Box<dyn Future<Output = Box<dyn Done>> + Send + 'a>>;

    fn fail(self: Box<Self>, error: &Arc<sqlx::Error>);
}

/// A change that has run and waits for its commit.
trait Done: Send {
    /// Why the transaction itself can no longer be trusted, if it cannot.
    fn broken(&self) -> Option<Arc<sqlx::Error>>;

    fn settle(self: Box<Self>, commit: &Result<(), Arc<sqlx::Error>>);
}

struct Queued<C: Command> {
    command: C,
    reply: oneshot::Sender<Result<C::Output, StoreError>>,
}

impl<C: Command> Job for Queued<C> {
    fn run<'a>(
        self: Box<Self>,
        db: &'a mut SqliteConnection,
    ) -> Pin<Box<dyn Future<Output = Box<dyn Done>> + Send + 'a>> {
        Box::pin(async move {
            let (result, broken) = match in_savepoint(self.command, db).await {
                Ok(result) => (result, None),
                Err(broken) => {
                    let broken = Arc::new(broken);
                    (Err(StoreError::Commit(Arc::clone(&broken))), Some(broken))
                }
            };
            Box::new(Ran {
                result,
                broken,
                reply: self.reply,
            }) as Box<dyn Done>
        })
    }

    fn fail(self: Box<Self>, error: &Arc<sqlx::Error>) {
        // The caller may have gone: then nobody needs the answer.
        let _ = self.reply.send(Err(StoreError::Commit(Arc::clone(error))));
    }
}

/// What the command says; an error if its change could be neither kept apart nor undone.
async fn in_savepoint<C: Command>(
    command: C,
    db: &mut SqliteConnection,
) -> Result<Result<C::Output, StoreError>, sqlx::Error> {
    sqlx::query("SAVEPOINT change").execute(&mut *db).await?;
    let result = command.run(db).await;
    if result.is_err() {
        sqlx::query("ROLLBACK TO change").execute(&mut *db).await?;
    }
    sqlx::query("RELEASE change").execute(db).await?;
    Ok(result)
}

struct Ran<T> {
    result: Result<T, StoreError>,
    broken: Option<Arc<sqlx::Error>>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<T: Send> Done for Ran<T> {
    fn broken(&self) -> Option<Arc<sqlx::Error>> {
        self.broken.clone()
    }

    fn settle(self: Box<Self>, commit: &Result<(), Arc<sqlx::Error>>) {
        let answer = match commit {
            Ok(()) => self.result,
            Err(error) => Err(StoreError::Commit(Arc::clone(error))),
        };
        let _ = self.reply.send(answer);
    }
}

#[cfg(test)]
mod tests;
