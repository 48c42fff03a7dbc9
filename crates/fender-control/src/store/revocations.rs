//! What was revoked: single certificates by their serial, and rules that refuse what begins before a moment.
//!
//! A revocation and the standing of every certificate on record that it concerns are one transaction. The database
//! itself refuses to record what a rule in force would refuse at once, and what was renewed from a revoked certificate:
//! an issuance that was under way when the revocation came is undone.

use std::time::Duration;

use fender_identity::{DenyList, Serial, SpiffeId, TrustDomain, Validity};
use rustls::pki_types::UnixTime;

use super::{Command, Connection, Record, StoreError, Topic, Whom, audit, query};
use crate::time::{earlier, later, moment, seconds};

/// How long after the end of the last certificate it concerns a revocation stays in force, beside the renewal grace:
/// the clock of a sidecar may be behind.
const SLACK: Duration = Duration::from_secs(3600);

const SECOND: Duration = Duration::from_secs(1);

/// What an administrator revokes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Certificate(Serial),
    /// All that this identity has.
    Identity(SpiffeId),
    /// What was issued before a moment: to one identity, or to every workload.
    Before(Option<SpiffeId>, UnixTime),
}

/// A revocation as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Revocation {
    pub(crate) number: u64,
    pub(crate) denial: Denial,
    pub(crate) reason: String,
    pub(crate) by: String,
    pub(crate) at: UnixTime,
    pub(crate) certificates: u64,
    pub(crate) until: UnixTime,
}

/// What it puts on the deny list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Denial {
    Serial(Serial),
    Identity(SpiffeId, UnixTime),
    Workloads(UnixTime),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotRevoked {
    /// No certificate that is not revoked already and may still be used, or renewed, is concerned.
    Nothing,
    /// The deny list would become longer than a sidecar takes.
    TooMany,
}

pub(crate) struct Revoke {
    pub(crate) what: What,
    pub(crate) at: UnixTime,
    pub(crate) renewal_grace: Duration,
    pub(crate) by: SpiffeId,
    pub(crate) reason: String,
    pub(crate) entry: audit::Entry,
}

impl Command for Revoke {
    type Output = Result<Revocation, NotRevoked>;

    async fn run(&self, db: &mut Connection) -> Result<Self::Output, StoreError> {
        if self.is_full(&mut *db).await? {
            return Ok(Err(NotRevoked::TooMany));
        }
        let concerned = self.withdraw(&mut *db).await?;
        let count = u64::try_from(concerned.len()).unwrap_or(u64::MAX);
        let Some(until) = concerned.iter().map(|validity| validity.not_after).max() else {
            return Ok(Err(NotRevoked::Nothing));
        };
        let denial = match self.what.clone() {
            What::Certificate(serial) => Denial::Serial(serial),
            What::Identity(id) => {
                // What was issued in this very second, after a revocation just before, begins with it.
                let youngest = concerned.iter().map(|validity| validity.not_before).max();
                let behind = youngest.map_or(self.at, |begins| later(begins, SECOND));
                Denial::Identity(id, behind.max(self.at))
            }
            What::Before(Some(id), moment) => Denial::Identity(id, moment),
            What::Before(None, moment) => Denial::Workloads(moment),
        };
        let revocation = self.insert(&denial, count, until, &mut *db).await?;
        let detail = format!("{}; {count} certificates", self.entry.detail);
        let entry = audit::Entry {
            detail,
            ..self.entry.clone()
        };
        audit::append(db, &entry).await?;
        db.changed(Topic::Revocations);
        Ok(Ok(revocation))
    }
}

impl Revoke {
    /// Marks every certificate that is concerned and may still be used, or renewed.
    async fn withdraw(&self, db: &mut Connection) -> Result<Vec<Validity>, StoreError> {
        let alive = seconds(earlier(self.at, self.renewal_grace));
        let at = seconds(self.at);
        let update = match &self.what {
            What::Certificate(serial) => query(
                "UPDATE certificates SET revoked_at = $1 WHERE revoked_at IS NULL AND not_after >= $2 \
                 AND serial = $3 RETURNING not_before, not_after",
            )
            .bind(at)
            .bind(alive)
            .bind(serial.to_string()),
            What::Identity(id) => query(
                "UPDATE certificates SET revoked_at = $1 WHERE revoked_at IS NULL AND not_after >= $2 \
                 AND identity = $3 RETURNING not_before, not_after",
            )
            .bind(at)
            .bind(alive)
            .bind(id.to_string()),
            What::Before(Some(id), moment) => query(
                "UPDATE certificates SET revoked_at = $1 WHERE revoked_at IS NULL AND not_after >= $2 \
                 AND identity = $3 AND not_before < $4 RETURNING not_before, not_after",
            )
            .bind(at)
            .bind(alive)
            .bind(id.to_string())
            .bind(seconds(*moment)),
            What::Before(None, moment) => query(
                "UPDATE certificates SET revoked_at = $1 WHERE revoked_at IS NULL AND not_after >= $2 \
                 AND identity LIKE 'spiffe://%/ns/%' AND not_before < $3 RETURNING not_before, not_after",
            )
            .bind(at)
            .bind(alive)
            .bind(seconds(*moment)),
        };
        update
            .all(db)
            .await?
            .iter()
            .map(|row| {
                Ok(Validity {
                    not_before: moment(row.get("not_before")?),
                    not_after: moment(row.get("not_after")?),
                })
            })
            .collect()
    }

    async fn is_full(&self, db: &mut Connection) -> Result<bool, StoreError> {
        let since = ended_before(self.at, self.renewal_grace);
        let row = query(
            "SELECT count(CASE WHEN kind = 'serial' THEN 1 END) AS serials, \
             count(DISTINCT CASE WHEN kind <> 'serial' THEN subject END) AS rules \
             FROM revocations WHERE ends_at >= $1",
        )
        .bind(seconds(since))
        .one(db)
        .await?;
        let (serials, rules): (i64, i64) = (row.get("serials")?, row.get("rules")?);
        let reaches =
            |count: i64, most: usize| usize::try_from(count).is_ok_and(|count| count >= most);
        Ok(match self.what {
            What::Certificate(_) => reaches(serials, DenyList::MAX_SERIALS),
            What::Identity(_) | What::Before(..) => reaches(rules, DenyList::MAX_RULES),
        })
    }

    async fn insert(
        &self,
        denial: &Denial,
        certificates: u64,
        until: UnixTime,
        db: &mut Connection,
    ) -> Result<Revocation, StoreError> {
        let (kind, subject, begins) = match denial {
            Denial::Serial(serial) => ("serial", serial.to_string(), None),
            Denial::Identity(id, moment) => ("identity", id.to_string(), Some(*moment)),
            Denial::Workloads(moment) => ("workloads", String::new(), Some(*moment)),
        };
        let row = query(
            "INSERT INTO revocations (number, kind, subject, moment, reason, revoked_at, revoked_by, certificates, ends_at) \
             VALUES ((SELECT coalesce(max(number), 0) + 1 FROM revocations), $1, $2, $3, $4, $5, $6, $7, $8) RETURNING *",
        )
        .bind(kind)
        .bind(subject)
        .bind(begins.map(seconds))
        .bind(self.reason.clone())
        .bind(seconds(self.at))
        .bind(self.by.as_str().to_owned())
        .bind(i64::try_from(certificates).unwrap_or(i64::MAX))
        .bind(seconds(until))
        .one(db)
        .await?;
        read(&row)
    }
}

/// Those in force, the oldest first.
pub(crate) async fn in_force<'a>(
    db: impl Into<Whom<'a>>,
    now: UnixTime,
    renewal_grace: Duration,
) -> Result<Vec<Revocation>, StoreError> {
    query("SELECT * FROM revocations WHERE ends_at >= $1 ORDER BY number")
        .bind(seconds(ended_before(now, renewal_grace)))
        .all(db)
        .await?
        .iter()
        .map(read)
        .collect()
}

/// What those in force deny.
pub(crate) fn deny_list(in_force: Vec<Revocation>, trust_domain: &TrustDomain) -> DenyList {
    let mut list = DenyList::default();
    for revocation in in_force {
        match revocation.denial {
            Denial::Serial(serial) => list.deny_serial(serial),
            Denial::Identity(id, moment) => list.deny_identity_before(id, moment),
            Denial::Workloads(moment) => list.deny_workloads_before(trust_domain.clone(), moment),
        }
    }
    list
}

/// Forgets what is out of force.
pub(crate) struct Forget {
    pub(crate) now: UnixTime,
    pub(crate) renewal_grace: Duration,
}

impl Command for Forget {
    type Output = ();

    async fn run(&self, db: &mut Connection) -> Result<(), StoreError> {
        query("DELETE FROM revocations WHERE ends_at < $1")
            .bind(seconds(ended_before(self.now, self.renewal_grace)))
            .execute(db)
            .await?;
        Ok(())
    }
}

/// A revocation is out of force when the last certificate it concerns ended before this moment.
fn ended_before(now: UnixTime, renewal_grace: Duration) -> UnixTime {
    earlier(now, renewal_grace.saturating_add(SLACK))
}

fn read(row: &Record) -> Result<Revocation, StoreError> {
    let damaged = || StoreError::Damaged("revocation");
    let subject: String = row.get("subject")?;
    let begins = row.get::<Option<i64>>("moment")?.map(moment);
    let denial = match (row.get::<String>("kind")?.as_str(), begins) {
        ("serial", None) => Denial::Serial(subject.parse().map_err(|_| damaged())?),
        ("identity", Some(begins)) => {
            Denial::Identity(subject.parse().map_err(|_| damaged())?, begins)
        }
        ("workloads", Some(begins)) => Denial::Workloads(begins),
        _ => return Err(damaged()),
    };
    Ok(Revocation {
        number: row.get::<i64>("number")?.unsigned_abs(),
        denial,
        reason: row.get("reason")?,
        by: row.get("revoked_by")?,
        at: moment(row.get("revoked_at")?),
        certificates: row.get::<i64>("certificates")?.unsigned_abs(),
        until: moment(row.get("ends_at")?),
    })
}
