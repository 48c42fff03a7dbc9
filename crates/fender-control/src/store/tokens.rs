//! Join tokens: known by their hash, bound to one identity, spent once.
//!
//! Spending one and recording the certificate it bought are one transaction. Who spent it may ask again with the same
//! key and is given the same certificate: the answer to the first call may have been lost on the way.

use std::collections::{HashMap, HashSet};

use fender_identity::SpiffeId;
use rustls::pki_types::UnixTime;

use super::certificates::{self, CertificateRow, Known};
use super::{
    Command, Connection, Record, StoreError, Value, Whom, audit, execute_all, query, query_rows,
};
use crate::time::{moment, seconds};

pub(crate) type Hash = [u8; 32];

/// A token with the certificate it bought.
macro_rules! worth_columns {
    () => {
        "SELECT secret_sha256, t.identity AS token_identity, expires_at, spent_on, \
         c.identity, leaf, a.certificate AS issuer, a.path AS issuer_path, key_sha256, c.not_after, revoked_at \
         FROM tokens t LEFT JOIN certificates c ON c.serial = t.spent_on \
         LEFT JOIN authorities a ON a.serial = c.authority "
    };
}

/// Makes a token, and records who did.
pub(crate) struct Create {
    pub(crate) secret_sha256: Hash,
    pub(crate) identity: SpiffeId,
    pub(crate) by: SpiffeId,
    pub(crate) at: UnixTime,
    pub(crate) expires: UnixTime,
    pub(crate) entry: audit::Entry,
}

impl Command for Create {
    type Output = ();

    async fn run(&self, db: &mut Connection) -> Result<(), StoreError> {
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
}

/// Whether a token was made here and is not forgotten, whatever it is worth.
pub(crate) async fn exists<'a>(
    db: impl Into<Whom<'a>>,
    secret_sha256: &Hash,
) -> Result<bool, StoreError> {
    let row = query("SELECT identity FROM tokens WHERE secret_sha256 = $1")
        .bind(secret_sha256)
        .optional(db)
        .await?;
    Ok(row.is_some())
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
         WHERE secret_sha256 = now.column1 AND spent_on IS NULL",
        rows,
    );
    let spent = execute_all(rows, db).await?;
    if usize::try_from(spent) != Ok(good.len()) {
        return Err(StoreError::Damaged("join token"));
    }
    Ok(())
}
