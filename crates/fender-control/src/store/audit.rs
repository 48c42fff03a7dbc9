//! The audit log: who asked for what, when, and what became of it. Rows are only ever added, and each carries a
//! SHA-256 over itself and the row before, so that changing, removing or reordering one shows in every later one.
//!
//! What it does not prove: that the newest rows were not cut off, or that all of it was not written anew by whoever
//! owns the database. Ship the head elsewhere for that. It never holds a secret.

use aws_lc_rs::digest::{Context, SHA256};
use fender_identity::SpiffeId;
use rustls::pki_types::UnixTime;
use sqlx::{Row, SqliteConnection};

use super::{Command, Reader, StoreError};
use crate::time::seconds;

/// Rows read at a time when the chain is verified.
const PAGE: i64 = 1000;

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) time: UnixTime,
    pub(crate) actor: SpiffeId,
    pub(crate) action: Action,
    pub(crate) subject: String,
    pub(crate) outcome: Outcome,
    pub(crate) detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Initialize,
    LoadDocuments,
    Apply,
    DryRun,
    CreateToken,
    IssueSvid,
    ReissueAdmin,
    RotateAuthority,
    Status,
    Explain,
    Revoke,
    Revocations,
    /// A call refused before it was looked at.
    AnyAdministration,
}

impl Action {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Action::Initialize => "initialize",
            Action::LoadDocuments => "load-documents",
            Action::Apply => "apply",
            Action::DryRun => "dry-run",
            Action::CreateToken => "create-token",
            Action::IssueSvid => "issue-svid",
            Action::ReissueAdmin => "reissue-admin",
            Action::RotateAuthority => "rotate-authority",
            Action::Status => "status",
            Action::Explain => "explain",
            Action::Revoke => "revoke",
            Action::Revocations => "revocations",
            Action::AnyAdministration => "any-administration",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Refused,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Outcome::Done => "done",
            Outcome::Refused => "refused",
        }
    }
}

/// Adds an entry as part of a larger change.
pub(crate) async fn append(db: &mut SqliteConnection, entry: Entry) -> Result<(), StoreError> {
    let last = sqlx::query("SELECT sequence, hash FROM audit ORDER BY sequence DESC LIMIT 1")
        .fetch_optional(&mut *db)
        .await?;
    let (sequence, previous) = match last {
        Some(row) => (
            row.try_get::<i64, _>("sequence")?.saturating_add(1),
            row.try_get("hash")?,
        ),
        None => (1, Vec::new()),
    };
    let row = Link {
        sequence,
        time: seconds(entry.time),
        actor: entry.actor.as_str(),
        action: entry.action.as_str(),
        subject: &entry.subject,
        outcome: entry.outcome.as_str(),
        detail: &entry.detail,
    };
    let hash = row.hash(&previous);
    sqlx::query(
        "INSERT INTO audit (sequence, time, actor, action, subject, outcome, detail, hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(row.sequence)
    .bind(row.time)
    .bind(row.actor.to_owned())
    .bind(row.action)
    .bind(row.subject.to_owned())
    .bind(row.outcome)
    .bind(row.detail.to_owned())
    .bind(hash)
    .execute(db)
    .await?;
    Ok(())
}

/// Adds an entry on its own.
pub(crate) struct Append(pub(crate) Entry);

impl Command for Append {
    type Output = ();

    async fn run(self, db: &mut SqliteConnection) -> Result<(), StoreError> {
        append(db, self.0).await
    }
}

/// What following the chain from its first row showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chain {
    /// Every row is as it was written. The head is worth keeping elsewhere.
    Whole { entries: u64, head: Option<String> },
    /// The first row that is not, or is missing.
    Broken { sequence: u64 },
}

pub(crate) async fn verify(reader: &Reader) -> Result<Chain, StoreError> {
    let mut read = reader.reads().begin().await?;
    let mut previous = Vec::new();
    let mut sequence = 0_i64;
    loop {
        let rows = sqlx::query(
            "SELECT sequence, time, actor, action, subject, outcome, detail, hash FROM audit \
             WHERE sequence > ? ORDER BY sequence LIMIT ?",
        )
        .bind(sequence)
        .bind(PAGE)
        .fetch_all(&mut *read)
        .await?;
        if rows.is_empty() {
            let head = (!previous.is_empty()).then(|| hex(&previous));
            return Ok(Chain::Whole {
                entries: sequence.unsigned_abs(),
                head,
            });
        }
        for row in rows {
            sequence = sequence.saturating_add(1);
            let link = Link {
                sequence: row.try_get("sequence")?,
                time: row.try_get("time")?,
                actor: row.try_get("actor")?,
                action: row.try_get("action")?,
                subject: row.try_get("subject")?,
                outcome: row.try_get("outcome")?,
                detail: row.try_get("detail")?,
            };
            let hash = link.hash(&previous);
            if link.sequence != sequence || row.try_get::<&[u8], _>("hash")? != hash {
                return Ok(Chain::Broken {
                    sequence: sequence.unsigned_abs(),
                });
            }
            previous = hash;
        }
    }
}

/// A row without its hash.
struct Link<'a> {
    sequence: i64,
    time: i64,
    actor: &'a str,
    action: &'a str,
    subject: &'a str,
    outcome: &'a str,
    detail: &'a str,
}

impl Link<'_> {
    /// Lengths go in before the texts, so that no two rows read the same.
    fn hash(&self, previous: &[u8]) -> Vec<u8> {
        let mut context = Context::new(&SHA256);
        context.update(b"fender audit v1\0");
        context.update(previous);
        context.update(&self.sequence.to_be_bytes());
        context.update(&self.time.to_be_bytes());
        for text in [
            self.actor,
            self.action,
            self.subject,
            self.outcome,
            self.detail,
        ] {
            context.update(&u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
            context.update(text.as_bytes());
        }
        context.finish().as_ref().to_vec()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The newest entries first, for whoever reviews them.
#[cfg(test)]
pub(crate) async fn newest(reader: &Reader, count: i64) -> Result<Vec<[String; 5]>, StoreError> {
    sqlx::query(
        "SELECT actor, action, subject, outcome, detail FROM audit ORDER BY sequence DESC LIMIT ?",
    )
    .bind(count)
    .fetch_all(reader.reads())
    .await?
    .iter()
    .map(|row| {
        Ok([
            row.try_get("actor")?,
            row.try_get("action")?,
            row.try_get("subject")?,
            row.try_get("outcome")?,
            row.try_get("detail")?,
        ])
    })
    .collect()
}
