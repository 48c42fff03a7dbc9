//! Revocation lists as they were signed last, one of each authority, for every replica to tell.

use fender_identity::Serial;
use rustls::pki_types::{CertificateRevocationListDer, UnixTime};

use super::revisions::Digest;
use super::{Command, Connection, Store, StoreError, Topic, Whom, query};
use crate::time::{moment, seconds};

#[derive(Clone, Debug)]
pub(crate) struct CrlRow {
    pub(crate) authority: Serial,
    pub(crate) number: u64,
    pub(crate) list: CertificateRevocationListDer<'static>,
    pub(crate) this_update: UnixTime,
    pub(crate) next_update: UnixTime,
    /// Of what it says.
    pub(crate) digest: Digest,
}

/// A certificate that was revoked before its end.
#[derive(Clone, Debug)]
pub(crate) struct Revoked {
    pub(crate) serial: Serial,
    pub(crate) at: UnixTime,
}

/// Those of authorities that are on record, in the order of their serials.
pub(crate) async fn all(store: &Store) -> Result<Vec<CrlRow>, StoreError> {
    seen_by(store.reads()).await
}

/// The same, inside a transaction.
pub(crate) async fn seen_by<'a>(db: impl Into<Whom<'a>>) -> Result<Vec<CrlRow>, StoreError> {
    let damaged = || StoreError::Damaged("revocation list");
    query(
        "SELECT authority, number, list, this_update, next_update, digest FROM crls ORDER BY authority",
    )
    .all(db)
    .await?
    .iter()
    .map(|row| {
        let authority: String = row.get("authority")?;
        let digest: Vec<u8> = row.get("digest")?;
        Ok(CrlRow {
            authority: authority.parse().map_err(|_| damaged())?,
            number: row.get::<i64>("number")?.unsigned_abs(),
            list: row.get::<Vec<u8>>("list")?.into(),
            this_update: moment(row.get("this_update")?),
            next_update: moment(row.get("next_update")?),
            digest: digest.try_into().map_err(|_| damaged())?,
        })
    })
    .collect()
}

/// What an authority signed, was revoked, and lives.
pub(crate) async fn revoked(
    store: &Store,
    authority: &Serial,
    now: UnixTime,
) -> Result<Vec<Revoked>, StoreError> {
    query(
        "SELECT serial, revoked_at FROM certificates \
         WHERE authority = $1 AND revoked_at IS NOT NULL AND not_after > $2 ORDER BY serial",
    )
    .bind(authority.to_string())
    .bind(seconds(now))
    .all(store.reads())
    .await?
    .iter()
    .map(|row| {
        let serial: String = row.get("serial")?;
        Ok(Revoked {
            serial: serial
                .parse()
                .map_err(|_| StoreError::Damaged("certificate record"))?,
            at: moment(row.get("revoked_at")?),
        })
    })
    .collect()
}

/// The next list of an authority; of two with one number the first stays.
pub(crate) struct Put(pub(crate) CrlRow);

impl Command for Put {
    type Output = ();

    async fn run(&self, db: &mut Connection) -> Result<(), StoreError> {
        let Self(row) = self;
        let put = query(
            "INSERT INTO crls (authority, number, list, this_update, next_update, digest) \
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (authority) DO UPDATE SET number = excluded.number, \
             list = excluded.list, this_update = excluded.this_update, next_update = excluded.next_update, \
             digest = excluded.digest WHERE crls.number < excluded.number",
        )
        .bind(row.authority.to_string())
        .bind(i64::try_from(row.number).unwrap_or(i64::MAX))
        .bind(row.list.as_ref())
        .bind(seconds(row.this_update))
        .bind(seconds(row.next_update))
        .bind(&row.digest)
        .execute(&mut *db)
        .await?;
        if put > 0 {
            db.changed(Topic::Authorities);
        }
        Ok(())
    }
}
