//! The processes that serve this registry: a row for each, written again every few seconds.
//!
//! A name belongs to one process at a time. Whoever takes the name of a replica that is still heard of is refused, unless
//! it holds the same data directory: then the process before it is dead. A replica that finds its row in the hands of
//! another ends. All times are the database's, so that no replica's clock decides over another.

use std::fmt;
use std::str::FromStr;

use super::{Command, Connection, Record, Store, StoreError, Whom, db, query, writer};

/// After how long without a word a replica counts as gone.
pub(crate) const SILENT_SECONDS: i64 = 20;
/// After how long one that never came back is forgotten.
const FORGET_SECONDS: i64 = 24 * 3600;

/// What a replica is called, in authorities, in the log and in the status: a DNS label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaName(Box<str>);

impl ReplicaName {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ReplicaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ReplicaName {
    type Err = ReplicaNameError;

    fn from_str(text: &str) -> Result<Self, ReplicaNameError> {
        let letters = text
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        let ends = text.starts_with('-') || text.ends_with('-');
        match letters && !ends && (1..=63).contains(&text.len()) {
            true => Ok(Self(text.into())),
            false => Err(ReplicaNameError),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a replica's name is of 1 to 63 lower-case letters, digits and `-`, and neither begins nor ends with `-`"
)]
pub struct ReplicaNameError;

/// One life of one replica.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    pub(crate) name: ReplicaName,
    /// Of its data directory.
    pub(crate) home: String,
    pub(crate) run: String,
    pub(crate) url: String,
    pub(crate) version: String,
}

/// A replica as the others see it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) life: Life,
    pub(crate) started_ago: u64,
    pub(crate) seen_ago: u64,
}

impl Seen {
    pub(crate) fn is_silent(&self) -> bool {
        self.seen_ago > SILENT_SECONDS.unsigned_abs()
    }
}

/// All that were heard of within a day, by name.
pub(crate) async fn all(store: &Store) -> Result<Vec<Seen>, StoreError> {
    let now = db::moment(store.reads()).await?;
    query("SELECT * FROM replicas ORDER BY name")
        .all(store.reads())
        .await?
        .iter()
        .map(|row| read(row, now))
        .collect()
}

async fn named<'a>(
    db: impl Into<Whom<'a>>,
    name: &ReplicaName,
    now: i64,
) -> Result<Option<Seen>, StoreError> {
    query("SELECT * FROM replicas WHERE name = $1")
        .bind(name.as_str())
        .optional(db)
        .await?
        .as_ref()
        .map(|row| read(row, now))
        .transpose()
}

fn read(row: &Record, now: i64) -> Result<Seen, StoreError> {
    let ago = |since: i64| now.saturating_sub(since).max(0).unsigned_abs();
    Ok(Seen {
        life: Life {
            name: row
                .get::<String>("name")?
                .parse()
                .map_err(|_| StoreError::Damaged("replica"))?,
            home: row.get("home")?,
            run: row.get("run")?,
            url: row.get("url")?,
            version: row.get("version")?,
        },
        started_ago: ago(row.get("started_at")?),
        seen_ago: ago(row.get("seen_at")?),
    })
}

/// Takes a name.
pub(crate) struct Appear(pub(crate) Life);

#[derive(Debug)]
pub(crate) enum Appeared {
    Here,
    /// Another process bears this name.
    Taken(Seen),
}

impl Command for Appear {
    type Output = Appeared;

    async fn run(&self, db: &mut Connection) -> Result<Appeared, StoreError> {
        let Self(life) = self;
        let now = db::moment(&mut *db).await?;
        if let Some(before) = named(&mut *db, &life.name, now).await?
            && before.life.home != life.home
            && !before.is_silent()
        {
            return Ok(Appeared::Taken(before));
        }
        query(
            "INSERT INTO replicas (name, home, run, url, version, started_at, seen_at) VALUES ($1, $2, $3, $4, $5, $6, $6) \
             ON CONFLICT (name) DO UPDATE SET home = excluded.home, run = excluded.run, url = excluded.url, \
             version = excluded.version, started_at = excluded.started_at, seen_at = excluded.seen_at",
        )
        .bind(life.name.as_str())
        .bind(life.home.as_str())
        .bind(life.run.as_str())
        .bind(life.url.as_str())
        .bind(life.version.as_str())
        .bind(now)
        .execute(db)
        .await?;
        Ok(Appeared::Here)
    }
}

/// Says that a replica still lives.
pub(crate) struct Beat(pub(crate) Life);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beaten {
    Heard,
    /// Another process took the name.
    Superseded,
}

impl Command for Beat {
    type Output = Beaten;

    async fn run(&self, db: &mut Connection) -> Result<Beaten, StoreError> {
        let Self(life) = self;
        let now = db::moment(&mut *db).await?;
        let touched = query("UPDATE replicas SET seen_at = $1 WHERE name = $2 AND run = $3")
            .bind(now)
            .bind(life.name.as_str())
            .bind(life.run.as_str())
            .execute(&mut *db)
            .await?;
        if touched > 0 {
            return Ok(Beaten::Heard);
        }
        if named(&mut *db, &life.name, now).await?.is_some() {
            return Ok(Beaten::Superseded);
        }
        // Forgotten, because it could say nothing for a day. Nobody else has the name.
        Appear(life.clone()).run(db).await?;
        Ok(Beaten::Heard)
    }
}

/// Says that a replica ends in order.
pub(crate) struct Leave(pub(crate) Life);

impl Command for Leave {
    type Output = ();

    async fn run(&self, db: &mut Connection) -> Result<(), StoreError> {
        query("DELETE FROM replicas WHERE name = $1 AND run = $2")
            .bind(self.0.name.as_str())
            .bind(self.0.run.as_str())
            .execute(db)
            .await?;
        Ok(())
    }
}

/// Forgets replicas that never came back, and writers whose process has long ended.
pub(crate) struct Forget;

impl Command for Forget {
    type Output = ();

    async fn run(&self, db: &mut Connection) -> Result<(), StoreError> {
        let before = db::moment(&mut *db).await? - FORGET_SECONDS;
        query("DELETE FROM replicas WHERE seen_at < $1")
            .bind(before)
            .execute(&mut *db)
            .await?;
        writer::forget(before, db).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_label_and_nothing_that_could_be_more() {
        for name in ["a", "control-1", "0", &"x".repeat(63)] {
            assert_eq!(name.parse::<ReplicaName>().unwrap().as_str(), name);
        }
        for name in [
            "",
            "-a",
            "a-",
            "A",
            "a.b",
            "a b",
            "ä",
            "a\n",
            &"x".repeat(64),
        ] {
            assert!(name.parse::<ReplicaName>().is_err(), "{name:?}");
        }
    }
}
