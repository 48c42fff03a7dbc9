//! The audit log: who asked for what, when, and what became of it. Rows are only ever added, and each carries a
//! SHA-256 over itself and the row before, so that changing, removing or reordering one shows in every later one.
//!
//! What it does not prove: that the newest rows were not cut off, or that all of it was not written anew by whoever
//! owns the database. Ship the head elsewhere for that. It never holds a secret.

use fender_api::audit;
use fender_identity::SpiffeId;
use rustls::pki_types::UnixTime;

use super::{Command, Connection, Reader, StoreError, query};
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    Initialize,
    LoadDocuments,
    Apply,
    DryRun,
    CreateToken,
    ListTokens,
    RevokeTokens,
    IssueSvid,
    ReissueAdmin,
    RotateAuthority,
    Status,
    Credentials,
    Explain,
    Revoke,
    Revocations,
    AuditLog,
    Revisions,
    ShowRevision,
    Compare,
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
            Action::ListTokens => "list-tokens",
            Action::RevokeTokens => "revoke-tokens",
            Action::IssueSvid => "issue-svid",
            Action::ReissueAdmin => "reissue-admin",
            Action::RotateAuthority => "rotate-authority",
            Action::Status => "status",
            Action::Credentials => "credentials",
            Action::Explain => "explain",
            Action::Revoke => "revoke",
            Action::Revocations => "revocations",
            Action::AuditLog => "audit-log",
            Action::Revisions => "revisions",
            Action::ShowRevision => "show-revision",
            Action::Compare => "compare",
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
pub(crate) async fn append(db: &mut Connection, entry: &Entry) -> Result<(), StoreError> {
    let last = query("SELECT sequence, hash FROM audit ORDER BY sequence DESC LIMIT 1")
        .optional(&mut *db)
        .await?;
    let (sequence, previous) = match last {
        Some(row) => (
            row.get::<i64>("sequence")?.saturating_add(1),
            row.get("hash")?,
        ),
        None => (1, Vec::new()),
    };
    let mut row = audit::Entry {
        sequence: sequence.unsigned_abs(),
        time_unix: seconds(entry.time),
        actor: entry.actor.to_string(),
        action: entry.action.as_str().to_owned(),
        subject: entry.subject.clone(),
        outcome: entry.outcome.as_str().to_owned(),
        detail: entry.detail.clone(),
        hash: Vec::new(),
    };
    row.hash = audit::hash(&row, &previous);
    query(
        "INSERT INTO audit (sequence, time, actor, action, subject, outcome, detail, hash) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(sequence)
    .bind(row.time_unix)
    .bind(row.actor)
    .bind(row.action)
    .bind(row.subject)
    .bind(row.outcome)
    .bind(row.detail)
    .bind(row.hash)
    .execute(db)
    .await?;
    Ok(())
}

/// Adds an entry on its own.
pub(crate) struct Append(pub(crate) Entry);

impl Command for Append {
    type Output = ();

    async fn run(&self, db: &mut Connection) -> Result<(), StoreError> {
        append(db, &self.0).await
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
    let mut chain = audit::Chain::default();
    loop {
        // Rows are only ever added: page by page reads the same as all at once.
        let rows = page(reader, chain.entries(), i64::MIN, PAGE).await?;
        if rows.is_empty() {
            return Ok(Chain::Whole {
                entries: chain.entries(),
                head: chain.head().map(|head| head.hash()),
            });
        }
        for row in rows {
            if let Err(broken) = chain.follow(&row) {
                return Ok(Chain::Broken {
                    sequence: broken.sequence(),
                });
            }
        }
    }
}

/// Entries after this one and not before a moment, in order.
pub(crate) async fn page(
    reader: &Reader,
    after: u64,
    since: i64,
    limit: i64,
) -> Result<Vec<audit::Entry>, StoreError> {
    query(
        "SELECT sequence, time, actor, action, subject, outcome, detail, hash FROM audit \
         WHERE sequence > $1 AND time >= $2 ORDER BY sequence LIMIT $3",
    )
    .bind(i64::try_from(after).unwrap_or(i64::MAX))
    .bind(since)
    .bind(limit)
    .all(reader)
    .await?
    .iter()
    .map(|row| {
        Ok(audit::Entry {
            sequence: row.get::<i64>("sequence")?.unsigned_abs(),
            time_unix: row.get("time")?,
            actor: row.get("actor")?,
            action: row.get("action")?,
            subject: row.get("subject")?,
            outcome: row.get("outcome")?,
            detail: row.get("detail")?,
            hash: row.get("hash")?,
        })
    })
    .collect()
}

/// How many there are, if none is missing.
pub(crate) async fn length(reader: &Reader) -> Result<u64, StoreError> {
    let row = query("SELECT coalesce(max(sequence), 0) AS newest FROM audit")
        .one(reader)
        .await?;
    Ok(row.get::<i64>("newest")?.unsigned_abs())
}

/// The newest entries first, for whoever reviews them.
#[cfg(test)]
pub(crate) async fn newest(reader: &Reader, count: i64) -> Result<Vec<[String; 5]>, StoreError> {
    query(
        "SELECT actor, action, subject, outcome, detail FROM audit ORDER BY sequence DESC LIMIT $1",
    )
    .bind(count)
    .all(reader)
    .await?
    .iter()
    .map(|row| {
        Ok([
            row.get("actor")?,
            row.get("action")?,
            row.get("subject")?,
            row.get("outcome")?,
            row.get("detail")?,
        ])
    })
    .collect()
}
