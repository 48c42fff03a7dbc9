//! What changed, told to whoever follows it on any replica: a number per topic that grows in the transaction of the
//! change.
//!
//! Within a process the writer tells right after its commit. From other replicas PostgreSQL's NOTIFY says that it is
//! time to look, and looking every second covers a broken LISTEN. Only numbers travel: a follower reads the change
//! itself from the database, so that missing a message loses nothing, and two changes in one look are one.

use std::sync::Arc;
use std::time::Duration;

use fender_runtime::drain::Drain;
use sqlx::postgres::{PgListener, PgPool};
use tokio::sync::watch;

use super::db::{Connection, Kind, query};
use super::{Reader, StoreError};

/// How often is looked without being told: half of what a change may take to reach every replica.
const LOOK: Duration = Duration::from_secs(1);
/// How long a listener that could not be opened, or broke, stays away.
const PAUSE: Duration = Duration::from_secs(2);
/// What replicas of all meshes in one database listen to.
const CHANNEL: &str = "fender";

/// What can be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Topic {
    /// The documents in force.
    Documents,
    /// The certificate authorities, and with them the bundle.
    Authorities,
    /// What is revoked.
    Revocations,
}

impl Topic {
    const ALL: [Topic; 3] = [Topic::Documents, Topic::Authorities, Topic::Revocations];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Topic::Documents => "documents",
            Topic::Authorities => "authorities",
            Topic::Revocations => "revocations",
        }
    }
}

/// The numbers as this process knows them. They start at whatever is first read, so a follower reads before it waits.
#[derive(Clone, Debug)]
pub(super) struct Feed(Arc<[(Topic, watch::Sender<i64>)]>);

impl Feed {
    pub(super) fn new() -> Self {
        Self(
            Topic::ALL
                .into_iter()
                .map(|topic| (topic, watch::Sender::new(0)))
                .collect(),
        )
    }

    pub(super) fn follow(&self, topic: Topic) -> watch::Receiver<i64> {
        self.0
            .iter()
            .find(|(known, _)| *known == topic)
            .map_or_else(|| watch::channel(0).1, |(_, sender)| sender.subscribe())
    }

    pub(super) fn advance(&self, topic: &str, number: i64) {
        for (known, sender) in self.0.iter() {
            if known.as_str() == topic {
                sender.send_if_modified(|held| {
                    let news = number > *held;
                    *held = number.max(*held);
                    news
                });
            }
        }
    }

    /// Reads all numbers.
    async fn look(&self, reader: &Reader) -> Result<(), StoreError> {
        for row in query("SELECT topic, number FROM topics")
            .all(reader)
            .await?
        {
            self.advance(&row.get::<String>("topic")?, row.get("number")?);
        }
        Ok(())
    }
}

/// Counts up the topics that a transaction changed, inside it. What followers are told once it is committed.
pub(super) async fn count(db: &mut Connection) -> Result<Vec<(&'static str, i64)>, StoreError> {
    let mut counted = Vec::new();
    for topic in db.take_changed() {
        let number = query(
            "INSERT INTO topics (topic, number) VALUES ($1, 1) \
             ON CONFLICT (topic) DO UPDATE SET number = topics.number + 1 RETURNING number",
        )
        .bind(topic.as_str())
        .one(&mut *db)
        .await?
        .get("number")?;
        counted.push((topic.as_str(), number));
    }
    if !counted.is_empty() && db.kind() == Kind::Postgres {
        // Delivered at the commit, or never.
        query("SELECT pg_notify($1, '')")
            .bind(CHANNEL)
            .one(db)
            .await?;
    }
    Ok(counted)
}

/// Follows what other replicas commit, until the process is told to stop.
pub(super) async fn follow(feed: Feed, reader: Reader, pool: PgPool, drain: Drain) {
    let listening = async {
        loop {
            match listen(&feed, &reader, &pool).await {
                Ok(never) => match never {},
                Err(error) => {
                    tracing::warn!(%error, "changes of other replicas are looked for and not listened to");
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    let looking = async {
        loop {
            if let Err(error) = feed.look(&reader).await {
                tracing::warn!(%error, "look for changes of other replicas");
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        biased;
        () = drain.stopping() => {}
        () = looking => {}
        () = listening => {}
    }
}

async fn listen(
    feed: &Feed,
    reader: &Reader,
    pool: &PgPool,
) -> Result<std::convert::Infallible, StoreError> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.eager_reconnect(false);
    listener.listen(CHANNEL).await?;
    tracing::debug!("listening for changes of other replicas");
    loop {
        if listener.try_recv().await?.is_none() {
            return Err(StoreError::Database(sqlx::Error::Io(
                std::io::ErrorKind::ConnectionAborted.into(),
            )));
        }
        feed.look(reader).await?;
    }
}
