//! The writer: takes whatever is queued and commits it as **one** transaction (group commit).
//!
//! Changes of one kind are made together, in as few statements as their aggregate can; if any fails, all is undone and
//! the batch is made again with each change in a savepoint of its own, so that one that fails undoes only itself.
//! Nobody is told of success before the commit is known to be on disk.
//!
//! **One writer at a time.** SQLite's BEGIN IMMEDIATE admits one; with PostgreSQL every batch begins by taking one
//! advisory lock, so that replicas take turns and a command is right on both databases or on neither: what it reads
//! stays so until its commit. Who holds the lock and falls silent is ended by the server ([`super::postgres`]).
//!
//! **A connection lost before COMMIT** was sent has changed nothing: the batch is made again on the next one. **Lost
//! during COMMIT**, either may be. Each batch writes its number into the writer's own row first; asking for that row
//! under the lock, which the old transaction holds until it has ended one way or the other, says which. Only then is
//! anybody answered. If even that cannot be found out for long, callers are told that it is not known, which no caller
//! takes for success: a token that was spent answers its spender again with the certificate on record, and a recorded
//! certificate nobody was given harms nobody.

use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use fender_runtime::backoff::Backoff;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::db::{Connection, Fate, Health, Kind, Pool, query};
use super::feed::{self, Feed};
use super::meter::Meter;
use super::{Command, StoreError};

/// Changes committed in one transaction, at most.
const BATCH: usize = 512;
/// How long callers wait for a database that is away; when it is away longer, they are told at once.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often a batch that others were in the way of is made again.
const CONFLICTS: u32 = 8;
/// The advisory lock of whoever writes: "fender" in ASCII.
const TURN: u64 = 0x6665_6e64_6572;

/// A queued change of any kind.
pub(super) trait Job: Send {
    /// Goes to the others of its kind.
    fn join(self: Box<Self>, groups: &mut Vec<Box<dyn Group>>);
}

pub(super) struct Queued<C: Command> {
    pub(super) command: C,
    pub(super) reply: oneshot::Sender<Result<C::Output, StoreError>>,
}

impl<C: Command> Job for Queued<C> {
    fn join(self: Box<Self>, groups: &mut Vec<Box<dyn Group>>) {
        let Self { command, reply } = *self;
        let alike = groups
            .iter_mut()
            .find_map(|group| group.any().downcast_mut::<Alike<C>>());
        match alike {
            Some(alike) => {
                alike.commands.push(command);
                alike.replies.push(reply);
            }
            None => groups.push(Box::new(Alike {
                commands: vec![command],
                replies: vec![reply],
                results: Vec::new(),
            })),
        }
    }
}

type Ran<'a> = Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + 'a>>;

/// All changes of one kind in a batch.
pub(super) trait Group: Send {
    fn any(&mut self) -> &mut dyn Any;

    /// Makes all of them; an error says only that one failed.
    fn together<'a>(&'a mut self, db: &'a mut Connection) -> Ran<'a>;

    /// Makes each in a savepoint; an error says that the transaction itself can no longer be trusted.
    fn apart<'a>(&'a mut self, db: &'a mut Connection) -> Ran<'a>;

    fn settle(self: Box<Self>, commit: &Result<(), Arc<StoreError>>);
}

struct Alike<C: Command> {
    commands: Vec<C>,
    replies: Vec<oneshot::Sender<Result<C::Output, StoreError>>>,
    results: Vec<Result<C::Output, StoreError>>,
}

impl<C: Command> Group for Alike<C> {
    fn any(&mut self) -> &mut dyn Any {
        self
    }

    fn together<'a>(&'a mut self, db: &'a mut Connection) -> Ran<'a> {
        Box::pin(async move {
            let outputs = C::run_all(&self.commands, db).await?;
            if outputs.len() != self.commands.len() {
                return Err(StoreError::Damaged("batch"));
            }
            self.results = outputs.into_iter().map(Ok).collect();
            Ok(())
        })
    }

    fn apart<'a>(&'a mut self, db: &'a mut Connection) -> Ran<'a> {
        Box::pin(async move {
            self.results.clear();
            for command in &self.commands {
                self.results.push(in_savepoint(command, db).await?);
            }
            Ok(())
        })
    }

    fn settle(self: Box<Self>, commit: &Result<(), Arc<StoreError>>) {
        let Self {
            replies, results, ..
        } = *self;
        let mut results = results.into_iter();
        for reply in replies {
            let answer = match (commit, results.next()) {
                (Ok(()), Some(result)) => result,
                (Ok(()), None) => Err(StoreError::Damaged("batch")),
                (Err(error), _) => Err(StoreError::Commit(Arc::clone(error))),
            };
            // The caller may have gone: then nobody needs the answer.
            let _ = reply.send(answer);
        }
    }
}

/// What the command says; an error if its change could be neither kept apart nor undone.
async fn in_savepoint<C: Command>(
    command: &C,
    db: &mut Connection,
) -> Result<Result<C::Output, StoreError>, StoreError> {
    db.script("SAVEPOINT change".to_owned()).await?;
    let result = match (command.run(db).await, db.health()) {
        (Ok(_), Health::Failed | Health::Lost) => Err(StoreError::Damaged("change")),
        (result, _) => result,
    };
    let Err(error) = result else {
        db.script("RELEASE SAVEPOINT change".to_owned()).await?;
        return Ok(result);
    };
    if error.fate() != Fate::Final {
        return Err(error);
    }
    db.undone();
    db.script("ROLLBACK TO SAVEPOINT change; RELEASE SAVEPOINT change".to_owned())
        .await?;
    Ok(Err(error))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Together,
    Apart,
}

/// What became of one attempt at a batch.
enum Attempt {
    Committed(Vec<(&'static str, i64)>),
    /// Nothing of it is in the database, nor ever will be.
    Undone(StoreError),
    /// The connection was lost while it was being committed.
    Unknown(StoreError),
}

pub(super) struct Writer {
    pub(super) pool: Pool,
    pub(super) feed: Feed,
    pub(super) meter: Meter,
    /// Under which this writer numbers its batches, if connections can be lost.
    pub(super) name: String,
    number: u64,
    connection: Option<Connection>,
    /// Since when the database has been away.
    away: Option<Instant>,
}

impl Writer {
    pub(super) fn new(pool: Pool, name: String, feed: Feed, meter: Meter) -> Self {
        Self {
            pool,
            feed,
            meter,
            name,
            number: 0,
            connection: None,
            away: None,
        }
    }

    /// Drains the queue until nobody can reach it any more.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Box<dyn Job>>) {
        let mut queued = Vec::with_capacity(BATCH);
        while queue.recv_many(&mut queued, BATCH).await > 0 {
            let (began, changes) = (Instant::now(), queued.len());
            let mut groups = Vec::new();
            queued.drain(..).for_each(|job| job.join(&mut groups));
            let outcome = self.commit(&mut groups).await;
            self.meter
                .answered(changes, began.elapsed(), outcome.is_err());
            if let Err(error) = &outcome {
                tracing::warn!(%error, "changes were not committed");
            }
            groups.into_iter().for_each(|group| group.settle(&outcome));
        }
        drop(self.connection);
        // SQLite checkpoints its log at a clean close; when it cannot, the next open does it.
        self.pool.close().await;
    }

    async fn commit(&mut self, groups: &mut [Box<dyn Group>]) -> Result<(), Arc<StoreError>> {
        let mut manner = Manner::Together;
        let mut conflicts = 0;
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
        loop {
            self.number = self.number.wrapping_add(1);
            let mut attempt = self.attempt(groups, manner).await;
            if let Attempt::Unknown(error) = attempt {
                attempt = self.find_out(error).await;
            }
            let error = match attempt {
                Attempt::Committed(changed) => {
                    self.away = None;
                    self.meter.committed();
                    for (topic, number) in changed {
                        self.feed.advance(topic, number);
                    }
                    return Ok(());
                }
                Attempt::Undone(error) => error,
                Attempt::Unknown(error) => {
                    return Err(Arc::new(StoreError::Unknown(Box::new(error))));
                }
            };
            match (error.fate(), manner) {
                (Fate::Final, Manner::Together) => {
                    manner = Manner::Apart;
                    continue;
                }
                (Fate::Again, _) if conflicts < CONFLICTS && self.patient() => conflicts += 1,
                (Fate::Lost, _) if self.patient() => {}
                (Fate::Final | Fate::Again | Fate::Lost, _) => return Err(Arc::new(error)),
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    /// Whether the database has not been away for long.
    fn patient(&mut self) -> bool {
        self.away.get_or_insert_with(Instant::now).elapsed() < PATIENCE
    }

    async fn attempt(&mut self, groups: &mut [Box<dyn Group>], manner: Manner) -> Attempt {
        let mut db = match self.connection.take() {
            Some(db) => db,
            None => match self.pool.acquire().await {
                Ok(db) => db,
                Err(error) => return Attempt::Undone(error),
            },
        };
        let attempt = self.attempt_on(&mut db, groups, manner).await;
        // One that is lost goes back to the pool to be closed.
        if db.health() != Health::Lost {
            self.connection = Some(db);
        }
        attempt
    }

    async fn attempt_on(
        &self,
        db: &mut Connection,
        groups: &mut [Box<dyn Group>],
        manner: Manner,
    ) -> Attempt {
        let changed = match self.make(db, groups, manner).await {
            Ok(changed) => changed,
            Err(error) => {
                undo(db, &error).await;
                return Attempt::Undone(error);
            }
        };
        match db.script("COMMIT".to_owned()).await {
            Ok(()) => Attempt::Committed(changed),
            Err(error) if error.fate() == Fate::Lost && db.kind() == Kind::Postgres => {
                Attempt::Unknown(error)
            }
            Err(error) => {
                undo(db, &error).await;
                Attempt::Undone(error)
            }
        }
    }

    /// Everything of a transaction but its end.
    async fn make(
        &self,
        db: &mut Connection,
        groups: &mut [Box<dyn Group>],
        manner: Manner,
    ) -> Result<Vec<(&'static str, i64)>, StoreError> {
        db.take_changed();
        self.begin(db).await?;
        for group in groups {
            match manner {
                Manner::Together => group.together(db).await?,
                Manner::Apart => group.apart(db).await?,
            }
        }
        if db.health() != Health::Well {
            // A command took a failed statement for none.
            return Err(StoreError::Damaged("change"));
        }
        feed::count(db).await
    }

    async fn begin(&self, db: &mut Connection) -> Result<(), StoreError> {
        match db.kind() {
            // IMMEDIATE: take the write lock now, not at the first write, when waiting for it could only end in an error.
            Kind::Sqlite => db.script("BEGIN IMMEDIATE".to_owned()).await,
            // Each statement sees what was committed before it began, and after the lock nobody else commits.
            Kind::Postgres => {
                db.script(format!(
                    "BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock({TURN}); \
                     INSERT INTO writers (name, batch, used_at) VALUES ('{}', {}, extract(epoch FROM now())::bigint) \
                     ON CONFLICT (name) DO UPDATE SET batch = excluded.batch, used_at = excluded.used_at",
                    self.name, self.number,
                ))
                .await
            }
        }
    }

    /// Whether the batch whose commit was not answered is in the database.
    async fn find_out(&mut self, mut error: StoreError) -> Attempt {
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
        loop {
            match self.last_committed().await {
                // Topics it counted up are looked for like those of another replica.
                Ok(number) if number == i64::try_from(self.number).ok() => {
                    return Attempt::Committed(Vec::new());
                }
                Ok(_) => return Attempt::Undone(error),
                Err(again) if again.fate() == Fate::Final || !self.patient() => {
                    return Attempt::Unknown(again);
                }
                Err(again) => error = again,
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    /// The last batch of this writer that was committed, once none of them can be on its way any more.
    async fn last_committed(&mut self) -> Result<Option<i64>, StoreError> {
        let mut db = self.pool.acquire().await?;
        let number = last_committed(&self.name, &mut db).await;
        if let Err(error) = &number {
            // Whoever gets this connection next must not find a transaction on it.
            undo(&mut db, error).await;
        }
        if db.health() != Health::Lost {
            self.connection = Some(db);
        }
        number
    }
}

async fn last_committed(name: &str, db: &mut Connection) -> Result<Option<i64>, StoreError> {
    db.script(format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock({TURN})"
    ))
    .await?;
    let row = query("SELECT batch FROM writers WHERE name = $1")
        .bind(name)
        .optional(&mut *db)
        .await?;
    db.script("ROLLBACK".to_owned()).await?;
    row.map(|row| row.get("batch")).transpose()
}

/// Forgets writers that made their last batch before a moment: their process has long ended, or writes a new row.
pub(super) async fn forget(before: i64, db: &mut Connection) -> Result<(), StoreError> {
    if db.kind() == Kind::Postgres {
        query("DELETE FROM writers WHERE used_at < $1")
            .bind(before)
            .execute(db)
            .await?;
    }
    Ok(())
}

async fn undo(db: &mut Connection, error: &StoreError) {
    if db.health() == Health::Lost {
        return;
    }
    db.undone();
    if let Err(rollback) = db.script("ROLLBACK".to_owned()).await {
        // SQLite has rolled back by itself, as it does when the disk is full.
        tracing::warn!(%rollback, %error, "undo a transaction that could not be committed");
        db.undone();
    }
}
