//! Join tokens: known by their hash, bound to one identity, spent once.
//!
//! Spending one and recording the certificate it bought are one transaction. Who spent it may ask again with the same
//! key and is given the same certificate: the answer to the first call may have been lost on the way.

use fender_identity::SpiffeId;
use rustls::pki_types::UnixTime;
use sqlx::{Row, Sqlite, SqliteConnection};

use super::certificates::{self, CertificateRow, Known};
use super::{Command, StoreError, audit};
use crate::time::{moment, seconds};

pub(crate) type Hash = [u8; 32];

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

    async fn run(self, db: &mut SqliteConnection) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO tokens (secret_sha256, identity, created_at, created_by, expires_at) VALUES (?, ?, ?, ?, ?)",
        )
        .bind(self.secret_sha256.to_vec())
        .bind(self.identity.as_str().to_owned())
        .bind(seconds(self.at))
        .bind(self.by.as_str().to_owned())
        .bind(seconds(self.expires))
        .execute(&mut *db)
        .await?;
        audit::append(db, self.entry).await
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
    db: impl sqlx::Executor<'a, Database = Sqlite>,
    secret_sha256: &Hash,
) -> Result<bool, StoreError> {
    let row = sqlx::query("SELECT 1 FROM tokens WHERE secret_sha256 = ?")
        .bind(secret_sha256.to_vec())
        .fetch_optional(db)
        .await?;
    Ok(row.is_some())
}

pub(crate) struct Bearer<'a> {
    pub(crate) secret_sha256: &'a Hash,
    pub(crate) identity: &'a SpiffeId,
    pub(crate) key_sha256: &'a [u8; 32],
}

/// Decides nothing for good: only the same question inside the writer's transaction does.
pub(crate) async fn worth<'a, E>(
    db: E,
    bearer: &Bearer<'_>,
    now: UnixTime,
) -> Result<Worth, StoreError>
where
    E: sqlx::Executor<'a, Database = Sqlite>,
{
    let row = sqlx::query(
        "SELECT t.identity AS token_identity, expires_at, spent_on, \
         c.identity, leaf, a.certificate AS issuer, a.path AS issuer_path, key_sha256, c.not_after, revoked_at \
         FROM tokens t LEFT JOIN certificates c ON c.serial = t.spent_on \
         LEFT JOIN authorities a ON a.serial = c.authority WHERE secret_sha256 = ?",
    )
    .bind(bearer.secret_sha256.to_vec())
    .fetch_optional(db)
    .await?;
    let Some(row) = row else {
        return Ok(Worth::Worthless(Worthless::Unknown));
    };

    if row.try_get::<&str, _>("token_identity")? != bearer.identity.as_str() {
        return Ok(Worth::Worthless(Worthless::OtherIdentity));
    }
    if row.try_get::<Option<&str>, _>("spent_on")?.is_some() {
        let bought = certificates::read(&row)?;
        let again = bought.key_sha256 == bearer.key_sha256
            && bought.not_after.as_secs() > now.as_secs()
            && bought.standing == certificates::Standing::Good;
        return Ok(match again {
            true => Worth::Bought(Box::new(bought)),
            false => Worth::Worthless(Worthless::Spent),
        });
    }
    if moment(row.try_get("expires_at")?).as_secs() <= now.as_secs() {
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

impl Command for Spend {
    type Output = Spent;

    async fn run(self, db: &mut SqliteConnection) -> Result<Spent, StoreError> {
        let Spend {
            secret_sha256,
            certificate,
            at,
        } = self;
        let bearer = Bearer {
            secret_sha256: &secret_sha256,
            identity: &certificate.identity,
            key_sha256: &certificate.key_sha256,
        };
        match worth(&mut *db, &bearer, at).await? {
            Worth::Good => {}
            Worth::Bought(known) => return Ok(Spent::Before(known)),
            Worth::Worthless(why) => return Ok(Spent::Refused(why)),
        }

        let serial = certificate.serial.to_string();
        certificates::insert(db, certificate).await?;
        let spent = sqlx::query(
            "UPDATE tokens SET spent_at = ?, spent_on = ? WHERE secret_sha256 = ? AND spent_on IS NULL",
        )
        .bind(seconds(at))
        .bind(serial)
        .bind(secret_sha256.to_vec())
        .execute(db)
        .await?
        .rows_affected();
        if spent != 1 {
            return Err(StoreError::Damaged("join token"));
        }
        Ok(Spent::Now)
    }
}
