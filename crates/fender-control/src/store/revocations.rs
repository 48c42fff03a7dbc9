//! What was revoked: single certificates by their serial, and rules that refuse what begins before a moment.
//!
//! A revocation, the standing of every certificate on record that it concerns, and the end of the join tokens that would
//! bring its owner back are one transaction. The database itself refuses to record what a rule in force would refuse at
//! once, and what was asked for with a revoked certificate, for its owner or by an agent for others: an issuance that was
//! under way when the revocation came is undone.
//!
//! A rule ends everything it concerns by itself, however long ago that expired, and stays as long as any of it is on record:
//! a longer renewal grace must not bring it back. So a revocation takes the same time for ten certificates as for millions.
//! What still lives is marked besides, a part at a time and afterwards, for the lists that authorities sign; a node's are
//! marked at once, because the deny list names them.

mod aftermath;

use std::time::Duration;

use fender_identity::{DenyList, NodeName, Serial, SpiffeId, TrustDomain};
use rustls::pki_types::UnixTime;

use super::{Command, Connection, Record, StoreError, Topic, Whom, audit, query, tokens};
use crate::time::{earlier, later, moment, seconds};

pub(crate) use aftermath::Forget;
#[cfg(test)]
pub(crate) use aftermath::Mark;

/// How long after the end of the last certificate it concerns a revocation is announced, beside the renewal grace: the
/// clock of a sidecar may be behind.
const SLACK: Duration = Duration::from_secs(3600);

/// By how much a sidecar's clock may be behind: what ended longer ago is in no peer's eyes still valid.
const BEHIND: Duration = Duration::from_secs(5 * 60);

/// Living certificates of one identity that a node's agent obtained, beyond which the identity is revoked as a whole.
const HEAVY: i64 = 128;

/// Certificates on record that are looked at for whether there is anything to revoke.
const LOOKED: i64 = 1000;

/// Certificates an administrator had made that are named when they are revoked.
const MADE: i64 = 1000;

/// Every workload's identity, and no other.
const WORKLOADS: &str = "spiffe://%/ns/%";

const SECOND: Duration = Duration::from_secs(1);

/// What an administrator revokes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Certificate(Serial),
    /// All that this identity has.
    Identity(SpiffeId),
    /// What was issued before a moment: to one identity, or to every workload.
    Before(Option<SpiffeId>, UnixTime),
    /// All that a node's agent has, and all that began with its word.
    Node(NodeName, SpiffeId),
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
    /// What a revoked administrator had made for others and lives on. Only whoever revokes them is told.
    pub(crate) made: Vec<Made>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Made {
    pub(crate) serial: Serial,
    pub(crate) identity: SpiffeId,
    pub(crate) until: UnixTime,
}

/// What it puts on the deny list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Denial {
    Serial(Serial),
    Identity(SpiffeId, UnixTime),
    Workloads(UnixTime),
    /// Its agent, and single certificates it obtained for others.
    Node(NodeName, UnixTime, Vec<Serial>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotRevoked {
    /// No certificate on record that is not revoked already is concerned, and no join token.
    Nothing,
    /// The deny list would become longer than a sidecar takes.
    TooMany,
}

#[derive(Clone)]
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
        let mut wholes = Vec::new();
        if let What::Node(node, _) = &self.what {
            // Of whom very much was obtained with one node's word is ended as a whole: a list of serials has an end.
            let Some(heavy) = self.weigh(node, &mut *db).await? else {
                return Ok(Err(NotRevoked::TooMany));
            };
            for id in heavy {
                let whole = Self {
                    what: What::Identity(id),
                    ..self.clone()
                };
                wholes.extend(whole.one(&[], &mut *db).await?.ok());
            }
        }
        self.one(&wholes, db).await
    }
}

/// What of the record a revocation ends.
struct Concerned {
    /// Whether there is anything that was good before it.
    any: bool,
    /// How many of them still live, when the last of these ends, and when the youngest began.
    living: u64,
    last_end: Option<UnixTime>,
    youngest: Option<UnixTime>,
}

/// Certificates a revocation may concern, as a condition on `$1`.
macro_rules! of_one {
    (serial) => {
        "serial = $1"
    };
    (identity) => {
        "identity = $1"
    };
    (node) => {
        "node = $1"
    };
    (workloads) => {
        "identity LIKE $1"
    };
}

/// Asks what of them began before `$2`, lives at `$3`, and is good. Of what has ended only the newest are looked at: if
/// there is more, a rule is made for it unseen.
macro_rules! concerned {
    ($whose:tt) => {
        concat!(
            "SELECT living, last_end, youngest, looked, good FROM \
             (SELECT count(*) AS living, max(not_after) AS last_end, max(not_before) AS youngest \
             FROM certificate_standing WHERE ",
            of_one!($whose),
            " AND not_before < $2 AND not_after >= $3 AND revoked = 0) AS those_that_live, \
             (SELECT count(*) AS looked, count(CASE WHEN not_before < $2 AND revoked = 0 THEN 1 END) AS good \
             FROM (SELECT not_before, revoked FROM certificate_standing WHERE ",
            of_one!($whose),
            " ORDER BY not_after DESC LIMIT $4) AS newest) AS seen"
        )
    };
}

impl Revoke {
    /// One revocation, of which these have become part.
    async fn one(
        &self,
        parts: &[Revocation],
        db: &mut Connection,
    ) -> Result<Result<Revocation, NotRevoked>, StoreError> {
        if self.is_full(&mut *db).await? {
            return Ok(Err(NotRevoked::TooMany));
        }
        let concerned = self.concerned(&mut *db).await?;
        let tokens = match &self.what {
            // An administrator bears none; those they made would let in whom they meant to.
            What::Identity(id) if id.admin_name().is_some() => {
                tokens::withdraw(&tokens::Which::By(id.clone()), self.at, &mut *db).await?
            }
            What::Identity(id) | What::Node(_, id) => {
                tokens::withdraw(&tokens::Which::Of(id.clone()), self.at, &mut *db).await?
            }
            What::Certificate(_) | What::Before(..) => 0,
        };
        if !concerned.any && tokens == 0 && parts.is_empty() {
            return Ok(Err(NotRevoked::Nothing));
        }
        let count = parts.iter().fold(concerned.living, |count, part| {
            count.saturating_add(part.certificates)
        });
        let ends = concerned.last_end.into_iter();
        let ends = ends.chain(parts.iter().map(|part| part.until));
        // What has ended already has done so before now.
        let until = ends.fold(self.at, UnixTime::max);
        // What was issued in this very second, after a revocation just before, begins with it.
        let youngest = concerned.youngest;
        let behind = youngest.map_or(self.at, |begins| later(begins, SECOND));
        let behind = behind.max(self.at);
        let denial = match self.what.clone() {
            What::Certificate(serial) => {
                self.mark(&serial, &mut *db).await?;
                Denial::Serial(serial)
            }
            What::Identity(id) => Denial::Identity(id, behind),
            What::Node(node, _) => {
                let serials = self.mark_obtained(&node, &mut *db).await?;
                Denial::Node(node, behind, serials)
            }
            What::Before(Some(id), moment) => Denial::Identity(id, moment),
            What::Before(None, moment) => Denial::Workloads(moment),
        };
        let mut revocation = self.insert(denial, count, until, &mut *db).await?;
        if let What::Identity(id) = &self.what
            && id.admin_name().is_some()
        {
            revocation.made = self.made_by(id, &mut *db).await?;
        }
        let tokens = match tokens {
            0 => String::new(),
            tokens => format!("{tokens} join tokens; "),
        };
        let made = match revocation.made.len() {
            0 => String::new(),
            made => format!("{made} certificates made by them live on; "),
        };
        let detail = format!("{count} certificates; {tokens}{made}{}", self.entry.detail);
        let entry = audit::Entry {
            detail,
            ..self.entry.clone()
        };
        audit::append(db, &entry).await?;
        db.changed(Topic::Revocations);
        Ok(Ok(revocation))
    }

    async fn concerned(&self, db: &mut Connection) -> Result<Concerned, StoreError> {
        let (sql, whose, before) = match &self.what {
            What::Certificate(serial) => (concerned!(serial), serial.to_string(), i64::MAX),
            What::Identity(id) => (concerned!(identity), id.to_string(), i64::MAX),
            What::Node(node, _) => (concerned!(node), node.to_string(), i64::MAX),
            What::Before(Some(id), moment) => {
                (concerned!(identity), id.to_string(), seconds(*moment))
            }
            What::Before(None, moment) => (
                concerned!(workloads),
                WORKLOADS.to_owned(),
                seconds(*moment),
            ),
        };
        let row = query(sql)
            .bind(whose)
            .bind(before)
            .bind(seconds(earlier(self.at, BEHIND)))
            .bind(LOOKED)
            .one(db)
            .await?;
        let (looked, good): (i64, i64) = (row.get("looked")?, row.get("good")?);
        let living = row.get::<i64>("living")?.unsigned_abs();
        let last_end: Option<i64> = row.get("last_end")?;
        let youngest: Option<i64> = row.get("youngest")?;
        Ok(Concerned {
            any: living > 0 || good > 0 || looked >= LOOKED,
            living,
            last_end: last_end.map(moment),
            youngest: youngest.map(moment),
        })
    }

    /// What an administrator had made and still lives: people's and other administrators' certificates, which nobody takes
    /// from them unseen.
    async fn made_by(&self, id: &SpiffeId, db: &mut Connection) -> Result<Vec<Made>, StoreError> {
        query(
            "SELECT serial, identity, not_after FROM certificate_standing WHERE not_after >= $1 \
             AND attested IS NULL AND evidence LIKE $2 AND revoked = 0 ORDER BY not_after DESC LIMIT $3",
        )
        .bind(seconds(earlier(self.at, BEHIND)))
        .bind(format!("%\"by\":\"{id}\"%"))
        .bind(MADE)
        .all(db)
        .await?
        .iter()
        .map(|row| {
            Ok(Made {
                serial: serial(row)?,
                identity: row
                    .get::<String>("identity")?
                    .parse()
                    .map_err(|_| StoreError::Damaged("certificate record"))?,
                until: moment(row.get("not_after")?),
            })
        })
        .collect()
    }

    async fn mark(&self, serial: &Serial, db: &mut Connection) -> Result<(), StoreError> {
        query("UPDATE certificates SET revoked_at = $1 WHERE revoked_at IS NULL AND serial = $2")
            .bind(seconds(self.at))
            .bind(serial.to_string())
            .execute(db)
            .await?;
        Ok(())
    }

    /// Marks what a node's agent obtained and what still lives: the list names each of them, and has an end.
    async fn mark_obtained(
        &self,
        node: &NodeName,
        db: &mut Connection,
    ) -> Result<Vec<Serial>, StoreError> {
        query(
            "UPDATE certificates SET revoked_at = $1 WHERE serial IN (SELECT serial FROM certificate_standing \
             WHERE node = $2 AND not_after >= $3 AND revoked = 0) RETURNING serial",
        )
        .bind(seconds(self.at))
        .bind(node.as_str())
        .bind(seconds(earlier(self.at, BEHIND)))
        .all(db)
        .await?
        .iter()
        .map(serial)
        .collect()
    }

    /// The identities of which a node's agent obtained so many living certificates that they are not listed one by one;
    /// nothing if even the others are more than the list takes.
    async fn weigh(
        &self,
        node: &NodeName,
        db: &mut Connection,
    ) -> Result<Option<Vec<SpiffeId>>, StoreError> {
        let rows = query(
            "SELECT identity, count(*) AS living FROM certificate_standing \
             WHERE node = $1 AND revoked = 0 AND not_after >= $2 GROUP BY identity",
        )
        .bind(node.as_str())
        .bind(seconds(earlier(self.at, BEHIND)))
        .all(&mut *db)
        .await?;
        let (mut heavy, mut light) = (Vec::new(), 0);
        for row in rows {
            match row.get::<i64>("living")? {
                living if living <= HEAVY => light += living,
                _ => heavy.push(
                    row.get::<String>("identity")?
                        .parse()
                        .map_err(|_| StoreError::Damaged("certificate record"))?,
                ),
            }
        }
        let (serials, rules) = self.listed(db).await?;
        let fits =
            |count: i64, most: usize| usize::try_from(count).is_ok_and(|count| count <= most);
        let rules = rules.saturating_add(i64::try_from(heavy.len()).unwrap_or(i64::MAX));
        // One more rule is the agent's own.
        let fits = fits(serials.saturating_add(light), DenyList::MAX_SERIALS)
            && fits(rules.saturating_add(1), DenyList::MAX_RULES);
        Ok(fits.then_some(heavy))
    }

    /// Serials and rules on the list.
    async fn listed(&self, db: &mut Connection) -> Result<(i64, i64), StoreError> {
        let since = seconds(ended_before(self.at, self.renewal_grace));
        let row = query(
            "SELECT count(CASE WHEN kind = 'serial' THEN 1 END) AS serials, \
             count(DISTINCT CASE WHEN kind <> 'serial' THEN kind || subject END) AS rules \
             FROM revocations WHERE ends_at >= $1",
        )
        .bind(since)
        .one(&mut *db)
        .await?;
        let (serials, rules): (i64, i64) = (row.get("serials")?, row.get("rules")?);
        let row = query(
            "SELECT count(*) AS serials FROM revocations r JOIN certificates c \
             ON c.node = r.subject AND c.revoked_at = r.revoked_at AND c.not_after >= r.revoked_at - $2 \
             WHERE r.kind = 'node' AND r.ends_at >= $1 AND NOT EXISTS (SELECT 1 FROM revocations w \
             WHERE w.kind = 'identity' AND w.subject = c.identity AND w.revoked_at = c.revoked_at)",
        )
        .bind(since)
        .bind(i64::try_from(BEHIND.as_secs()).unwrap_or(i64::MAX))
        .one(db)
        .await?;
        Ok((serials.saturating_add(row.get("serials")?), rules))
    }

    async fn is_full(&self, db: &mut Connection) -> Result<bool, StoreError> {
        let (serials, rules) = self.listed(db).await?;
        let reaches =
            |count: i64, most: usize| usize::try_from(count).is_ok_and(|count| count >= most);
        Ok(match self.what {
            What::Certificate(_) => reaches(serials, DenyList::MAX_SERIALS),
            What::Identity(_) | What::Before(..) | What::Node(..) => {
                reaches(rules, DenyList::MAX_RULES)
            }
        })
    }

    async fn insert(
        &self,
        denial: Denial,
        certificates: u64,
        until: UnixTime,
        db: &mut Connection,
    ) -> Result<Revocation, StoreError> {
        let (kind, subject, begins) = match &denial {
            Denial::Serial(serial) => ("serial", serial.to_string(), None),
            Denial::Identity(id, moment) => ("identity", id.to_string(), Some(*moment)),
            Denial::Workloads(moment) => ("workloads", String::new(), Some(*moment)),
            Denial::Node(node, moment, _) => ("node", node.to_string(), Some(*moment)),
        };
        let row = query(
            "INSERT INTO revocations (number, kind, subject, moment, reason, revoked_at, revoked_by, certificates, ends_at) \
             VALUES ((SELECT coalesce(max(number), 0) + 1 FROM revocations), $1, $2, $3, $4, $5, $6, $7, $8) \
             RETURNING number",
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
        Ok(Revocation {
            number: row.get::<i64>("number")?.unsigned_abs(),
            denial,
            reason: self.reason.clone(),
            by: self.by.to_string(),
            at: self.at,
            certificates,
            until,
            made: Vec::new(),
        })
    }
}

/// Those in force, the oldest first.
pub(crate) async fn in_force<'a>(
    db: impl Into<Whom<'a>>,
    now: UnixTime,
    renewal_grace: Duration,
) -> Result<Vec<Revocation>, StoreError> {
    let mut db = db.into();
    let mut revocations = query("SELECT * FROM revocations WHERE ends_at >= $1 ORDER BY number")
        .bind(seconds(ended_before(now, renewal_grace)))
        .all(db.again())
        .await?
        .iter()
        .map(read)
        .collect::<Result<Vec<_>, _>>()?;
    for revocation in &mut revocations {
        let at = revocation.at;
        if let Denial::Node(node, _, serials) = &mut revocation.denial {
            *serials = obtained(db.again(), node, at).await?;
        }
    }
    Ok(revocations)
}

/// What an agent had obtained that still lived when its node was revoked. It is the same whenever it is asked, so that
/// the deny list does not change with every certificate that ends.
async fn obtained(
    db: Whom<'_>,
    node: &NodeName,
    revoked: UnixTime,
) -> Result<Vec<Serial>, StoreError> {
    query(
        "SELECT serial FROM certificates c WHERE node = $1 AND revoked_at = $2 AND not_after >= $3 \
         AND NOT EXISTS (SELECT 1 FROM revocations w \
         WHERE w.kind = 'identity' AND w.subject = c.identity AND w.revoked_at = c.revoked_at) ORDER BY serial",
    )
    .bind(node.as_str())
    .bind(seconds(revoked))
    .bind(seconds(earlier(revoked, BEHIND)))
    .all(db)
    .await?
    .iter()
    .map(serial)
    .collect()
}

fn serial(row: &Record) -> Result<Serial, StoreError> {
    row.get::<String>("serial")?
        .parse()
        .map_err(|_| StoreError::Damaged("certificate record"))
}

/// What those in force deny.
pub(crate) fn deny_list(in_force: Vec<Revocation>, trust_domain: &TrustDomain) -> DenyList {
    let mut list = DenyList::default();
    for revocation in in_force {
        match revocation.denial {
            Denial::Serial(serial) => list.deny_serial(serial),
            Denial::Identity(id, moment) => list.deny_identity_before(id, moment),
            Denial::Workloads(moment) => list.deny_workloads_before(trust_domain.clone(), moment),
            Denial::Node(node, moment, serials) => {
                list.deny_identity_before(SpiffeId::for_agent(trust_domain, &node), moment);
                serials
                    .into_iter()
                    .for_each(|serial| list.deny_serial(serial));
            }
        }
    }
    list
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
        ("node", Some(begins)) => {
            let node = subject.parse().map_err(|_| damaged())?;
            Denial::Node(node, begins, Vec::new())
        }
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
        made: Vec::new(),
    })
}
