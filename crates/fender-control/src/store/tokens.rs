//! Join tokens: known by their hash, bound to one identity, spent once.
//!
//! Spending one and recording the certificate it bought are one transaction. Who spent it may ask again with the same
//! key and is given the same certificate: the answer to the first call may have been lost on the way.

use std::collections::{HashMap, HashSet};

use fender_identity::{Serial, SpiffeId};
use rustls::pki_types::UnixTime;

use super::certificates::{self, CertificateRow, Known};
use super::{
    Command, Connection, Record, StoreError, Value, Whom, audit, execute_all, query, query_rows,
};
use crate::time::{moment, seconds};

pub(crate) type Hash = [u8; 32];

/// Tokens told at once.
pub(crate) const PAGE: usize = 500;
/// Bytes of a hash that people and the record call a token by.
const SHORT: usize = 8;

/// By what a token is called: enough to find it again, too little to be one.
pub(crate) fn short(hash: &[u8]) -> String {
    hash.iter()
        .take(SHORT)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// A token with the certificate it bought.
macro_rules! worth_columns {
    () => {
        "SELECT secret_sha256, t.identity AS token_identity, expires_at, spent_on, withdrawn_at, \
         c.identity, leaf, a.certificate AS issuer, a.path AS issuer_path, key_sha256, c.not_after, \
         (SELECT revoked FROM certificate_standing s WHERE s.serial = t.spent_on) AS revoked, attested, lineage \
         FROM tokens t LEFT JOIN certificates c ON c.serial = t.spent_on \
         LEFT JOIN authorities a ON a.serial = c.authority "
    };
}

/// Makes a token, and records who did.
pub(crate) struct Create {
    pub(crate) secret_sha256: Hash,
    pub(crate) identity: SpiffeId,
    pub(crate) by: SpiffeId,
    /// The certificate it was asked for with, which must be good to the last.
    pub(crate) through: Option<Serial>,
    pub(crate) at: UnixTime,
    pub(crate) expires: UnixTime,
    pub(crate) entry: audit::Entry,
}

impl Command for Create {
    type Output = ();

    async fn run(&self, db: &mut Connection) -> Result<(), StoreError> {
        if let Some(through) = &self.through {
            let asked = certificates::find(&mut *db, &through.to_string()).await?;
            if asked.is_none_or(|asked| asked.standing == certificates::Standing::Revoked) {
                return Err(StoreError::Revoked);
            }
        }
        query(
            "INSERT INTO tokens (secret_sha256, identity, created_at, created_by, expires_at) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(&self.secret_sha256)
        .bind(self.identity.as_str())
        .bind(seconds(self.at))
        .bind(self.by.as_str())
        .bind(seconds(self.expires))
        .execute(&mut *db)
        .await?;
        audit::append(db, &self.entry).await
    }
}

/// What a token is worth to one caller at one moment.
#[derive(Debug)]
pub(crate) enum Worth {
    /// It buys a certificate.
    Good,
    /// This caller has already bought this certificate with it.
    Bought(Box<Known>),
    Worthless(Worthless),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Worthless {
    Unknown,
    OtherIdentity,
    Spent,
    Expired,
    Withdrawn,
}

pub(crate) struct Bearer<'a> {
    pub(crate) secret_sha256: &'a Hash,
    pub(crate) identity: &'a SpiffeId,
    pub(crate) key_sha256: &'a [u8; 32],
}

/// Decides nothing for good: only the same question inside the writer's transaction does.
pub(crate) async fn worth<'a>(
    db: impl Into<Whom<'a>>,
    bearer: &Bearer<'_>,
    now: UnixTime,
) -> Result<Worth, StoreError> {
    let row = query(concat!(worth_columns!(), "WHERE secret_sha256 = $1"))
        .bind(bearer.secret_sha256)
        .optional(db)
        .await?;
    match row {
        Some(row) => worth_of(&row, bearer, now),
        None => Ok(Worth::Worthless(Worthless::Unknown)),
    }
}

fn worth_of(row: &Record, bearer: &Bearer<'_>, now: UnixTime) -> Result<Worth, StoreError> {
    if row.get::<String>("token_identity")? != bearer.identity.as_str() {
        return Ok(Worth::Worthless(Worthless::OtherIdentity));
    }
    if row.get::<Option<String>>("spent_on")?.is_some() {
        let bought = certificates::read(row)?;
        let again = bought.key_sha256 == bearer.key_sha256
            && bought.not_after.as_secs() > now.as_secs()
            && bought.standing == certificates::Standing::Good;
        return Ok(match again {
            true => Worth::Bought(Box::new(bought)),
            false => Worth::Worthless(Worthless::Spent),
        });
    }
    if row.get::<Option<i64>>("withdrawn_at")?.is_some() {
        return Ok(Worth::Worthless(Worthless::Withdrawn));
    }
    if moment(row.get("expires_at")?).as_secs() <= now.as_secs() {
        return Ok(Worth::Worthless(Worthless::Expired));
    }
    Ok(Worth::Good)
}

/// Spends a token on a certificate, if it is still worth one.
pub(crate) struct Spend {
    pub(crate) secret_sha256: Hash,
    pub(crate) certificate: CertificateRow,
    pub(crate) at: UnixTime,
}

#[derive(Debug)]
pub(crate) enum Spent {
    /// The certificate is recorded and the token is used up.
    Now,
    /// It had bought another one for the same caller before: that one stands.
    Before(Box<Known>),
    Refused(Worthless),
}

impl Spend {
    fn bearer(&self) -> Bearer<'_> {
        Bearer {
            secret_sha256: &self.secret_sha256,
            identity: &self.certificate.identity,
            key_sha256: &self.certificate.key_sha256,
        }
    }
}

impl Command for Spend {
    type Output = Spent;

    async fn run(&self, db: &mut Connection) -> Result<Spent, StoreError> {
        match worth(&mut *db, &self.bearer(), self.at).await? {
            Worth::Good => {}
            Worth::Bought(known) => return Ok(Spent::Before(known)),
            Worth::Worthless(why) => return Ok(Spent::Refused(why)),
        }
        spend(db, &[self]).await?;
        Ok(Spent::Now)
    }

    async fn run_all(these: &[Self], db: &mut Connection) -> Result<Vec<Spent>, StoreError> {
        let mut known = HashMap::new();
        let hashes = these.iter().map(|this| [Value::from(&this.secret_sha256)]);
        for query in query_rows(
            concat!(worth_columns!(), "WHERE secret_sha256 IN (VALUES {rows})"),
            hashes,
        ) {
            for row in query.all(&mut *db).await? {
                known.insert(row.get::<Vec<u8>>("secret_sha256")?, row);
            }
        }

        // Of several spenders of one token the first is decided with the others, and the rest once it is.
        let mut outputs = Vec::with_capacity(these.len());
        let mut first = HashSet::new();
        let mut good = Vec::new();
        for this in these {
            if !first.insert(this.secret_sha256) {
                outputs.push(None);
                continue;
            }
            let worth = match known.get(this.secret_sha256.as_slice()) {
                Some(row) => worth_of(row, &this.bearer(), this.at)?,
                None => Worth::Worthless(Worthless::Unknown),
            };
            outputs.push(Some(match worth {
                Worth::Good => {
                    good.push(this);
                    Spent::Now
                }
                Worth::Bought(known) => Spent::Before(known),
                Worth::Worthless(why) => Spent::Refused(why),
            }));
        }
        spend(db, &good).await?;
        let mut spent = Vec::with_capacity(these.len());
        for (this, output) in these.iter().zip(outputs) {
            spent.push(match output {
                Some(output) => output,
                None => this.run(db).await?,
            });
        }
        Ok(spent)
    }
}

/// Records the certificates, then marks the tokens, each of which must still be unspent.
async fn spend(db: &mut Connection, good: &[&Spend]) -> Result<(), StoreError> {
    certificates::insert(db, good.iter().map(|this| &this.certificate)).await?;
    let rows = good.iter().map(|this| {
        [
            Value::from(&this.secret_sha256),
            seconds(this.at).into(),
            this.certificate.serial.to_string().into(),
        ]
    });
    let rows = query_rows(
        "UPDATE tokens SET spent_at = now.column2, spent_on = now.column3 FROM (VALUES {rows}) AS now \
         WHERE secret_sha256 = now.column1 AND spent_on IS NULL AND withdrawn_at IS NULL",
        rows,
    );
    let spent = execute_all(rows, db).await?;
    if usize::try_from(spent) != Ok(good.len()) {
        return Err(StoreError::Damaged("join token"));
    }
    Ok(())
}

/// A token that can still be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unspent {
    pub(crate) secret_sha256: Vec<u8>,
    pub(crate) identity: SpiffeId,
    pub(crate) by: String,
    pub(crate) created: UnixTime,
    pub(crate) expires: UnixTime,
}

/// Tokens that can still be used, a page of them, from behind the one whose hash begins with `after`.
pub(crate) async fn unspent<'a>(
    db: impl Into<Whom<'a>>,
    now: UnixTime,
    after: &[u8],
) -> Result<Vec<Unspent>, StoreError> {
    // No hash lies between a beginning followed by nothing but ones and the next beginning.
    let mut behind = after.to_vec();
    if !behind.is_empty() {
        behind.resize(32, 0xff);
    }
    query(
        "SELECT secret_sha256, identity, created_by, created_at, expires_at FROM tokens \
         WHERE spent_on IS NULL AND withdrawn_at IS NULL AND expires_at > $1 AND secret_sha256 > $2 \
         ORDER BY secret_sha256 LIMIT $3",
    )
    .bind(seconds(now))
    .bind(behind)
    .bind(i64::try_from(PAGE).unwrap_or(i64::MAX))
    .all(db)
    .await?
    .iter()
    .map(read_unspent)
    .collect()
}

/// The one that can still be used and is called so.
pub(crate) async fn called<'a>(
    db: impl Into<Whom<'a>>,
    now: UnixTime,
    called: &[u8],
) -> Result<Option<Unspent>, StoreError> {
    let (mut least, mut most) = (called.to_vec(), called.to_vec());
    least.resize(32, 0);
    most.resize(32, 0xff);
    query(
        "SELECT secret_sha256, identity, created_by, created_at, expires_at FROM tokens \
         WHERE spent_on IS NULL AND withdrawn_at IS NULL AND expires_at > $1 \
         AND secret_sha256 >= $2 AND secret_sha256 <= $3 LIMIT 1",
    )
    .bind(seconds(now))
    .bind(least)
    .bind(most)
    .optional(db)
    .await?
    .as_ref()
    .map(read_unspent)
    .transpose()
}

fn read_unspent(row: &Record) -> Result<Unspent, StoreError> {
    Ok(Unspent {
        secret_sha256: row.get("secret_sha256")?,
        identity: row
            .get::<String>("identity")?
            .parse()
            .map_err(|_| StoreError::Damaged("join token"))?,
        by: row.get("created_by")?,
        created: moment(row.get("created_at")?),
        expires: moment(row.get("expires_at")?),
    })
}

/// Which tokens are withdrawn.
#[derive(Clone, Debug)]
pub(crate) enum Which {
    /// The one with this hash.
    One(Vec<u8>),
    /// All of one bearer.
    Of(SpiffeId),
    /// All that one administrator made.
    By(SpiffeId),
}

/// Takes tokens back that are not spent yet, and records who did. Answers how many.
pub(crate) struct Withdraw {
    pub(crate) which: Which,
    pub(crate) at: UnixTime,
    pub(crate) entry: audit::Entry,
}

impl Command for Withdraw {
    type Output = u64;

    async fn run(&self, db: &mut Connection) -> Result<u64, StoreError> {
        let withdrawn = withdraw(&self.which, self.at, &mut *db).await?;
        if withdrawn > 0 {
            let detail = format!("{withdrawn} withdrawn; {}", self.entry.detail);
            let entry = audit::Entry {
                detail,
                ..self.entry.clone()
            };
            audit::append(db, &entry).await?;
        }
        Ok(withdrawn)
    }
}

/// Those that have expired are left as they are: they buy nothing.
pub(super) async fn withdraw(
    which: &Which,
    at: UnixTime,
    db: &mut Connection,
) -> Result<u64, StoreError> {
    let update = match which {
        Which::One(hash) => query(
            "UPDATE tokens SET withdrawn_at = $1 WHERE spent_on IS NULL AND withdrawn_at IS NULL AND expires_at > $1 \
             AND secret_sha256 = $2",
        )
        .bind(seconds(at))
        .bind(hash.as_slice()),
        Which::Of(id) => query(
            "UPDATE tokens SET withdrawn_at = $1 WHERE spent_on IS NULL AND withdrawn_at IS NULL AND expires_at > $1 \
             AND identity = $2",
        )
        .bind(seconds(at))
        .bind(id.as_str()),
        Which::By(id) => query(
            "UPDATE tokens SET withdrawn_at = $1 WHERE spent_on IS NULL AND withdrawn_at IS NULL AND expires_at > $1 \
             AND created_by = $2",
        )
        .bind(seconds(at))
        .bind(id.as_str()),
    };
    update.execute(db).await
}
