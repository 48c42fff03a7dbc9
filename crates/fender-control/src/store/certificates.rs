//! Every certificate issued, until long after its expiry. Their keys were never here.

use std::collections::HashMap;
use std::time::Duration;

use fender_identity::{Serial, SpiffeId, Validity};
use rustls::pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{
    Command, Connection, Record as Row, Store, StoreError, Value, Whom, audit, authorities,
    execute_all, query, query_rows,
};
use crate::evidence::Provenance;
use crate::time::{earlier, moment, seconds};

/// How long after its expiry a certificate is remembered for whoever asks what happened; a longer renewal grace needs it
/// longer.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Certificates and tokens forgotten in one transaction, so that housekeeping never holds up issuance for long.
const FORGET: i64 = 1000;

/// A certificate as it is recorded.
#[derive(Clone, Debug)]
pub(crate) struct CertificateRow {
    pub(crate) serial: Serial,
    pub(crate) identity: SpiffeId,
    pub(crate) leaf: CertificateDer<'static>,
    pub(crate) authority: Serial,
    pub(crate) key_sha256: [u8; 32],
    pub(crate) validity: Validity,
    pub(crate) provenance: Provenance,
}

/// A certificate as it is found again.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) identity: SpiffeId,
    pub(crate) leaf: CertificateDer<'static>,
    /// From the one that signed it up; the root is not part of it.
    pub(crate) issuers: Vec<CertificateDer<'static>>,
    pub(crate) key_sha256: Vec<u8>,
    pub(crate) not_after: UnixTime,
    pub(crate) standing: Standing,
    /// What was attested when its line of renewals began, as it was written.
    pub(crate) attested: Option<String>,
    /// The first of its line, if it is another.
    pub(crate) lineage: Option<Serial>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Good,
    Revoked,
}

/// The certificate with this serial, if it was issued here.
pub(crate) async fn find<'a>(
    db: impl Into<Whom<'a>>,
    serial: &str,
) -> Result<Option<Known>, StoreError> {
    query(
        "SELECT identity, leaf, a.certificate AS issuer, a.path AS issuer_path, key_sha256, c.not_after, \
         (SELECT revoked FROM certificate_standing s WHERE s.serial = c.serial) AS revoked, attested, lineage FROM certificates c JOIN authorities a ON a.serial = c.authority WHERE c.serial = $1",
    )
    .bind(serial)
    .optional(db)
    .await?
    .as_ref()
    .map(read)
    .transpose()
}

/// The standing of the newest certificate of an identity, if there is one on record.
pub(crate) async fn newest_standing(
    store: &Store,
    identity: &SpiffeId,
) -> Result<Option<Standing>, StoreError> {
    let row = query(
        "SELECT revoked FROM certificate_standing WHERE identity = $1 \
         ORDER BY not_before DESC, revoked DESC LIMIT 1",
    )
    .bind(identity.as_str().to_owned())
    .optional(store.reads())
    .await?;
    row.map(|row| standing(&row)).transpose()
}

/// Whether these very bytes were issued here.
pub(crate) async fn is_leaf_on_record<'a>(
    db: impl Into<Whom<'a>>,
    leaf: &CertificateDer<'_>,
) -> Result<bool, StoreError> {
    let Some(serial) = X509Certificate::from_der(leaf)
        .ok()
        .and_then(|(_, leaf)| Serial::from_bytes(leaf.raw_serial()).ok())
    else {
        return Ok(false);
    };
    let known = find(db, &serial.to_string()).await?;
    Ok(known.is_some_and(|known| known.leaf == *leaf))
}

pub(super) fn read(row: &Row) -> Result<Known, StoreError> {
    let mut issuers = vec![row.get::<Vec<u8>>("issuer")?.into()];
    issuers.extend(authorities::path_from_der(
        &row.get::<Vec<u8>>("issuer_path")?,
    )?);
    Ok(Known {
        identity: row
            .get::<String>("identity")?
            .parse()
            .map_err(|_| StoreError::Damaged("certificate record"))?,
        leaf: row.get::<Vec<u8>>("leaf")?.into(),
        issuers,
        key_sha256: row.get("key_sha256")?,
        not_after: moment(row.get("not_after")?),
        standing: standing(row)?,
        attested: row.get("attested")?,
        lineage: row
            .get::<Option<String>>("lineage")?
            .map(|serial| serial.parse())
            .transpose()
            .map_err(|_| StoreError::Damaged("certificate record"))?,
    })
}

fn standing(row: &Row) -> Result<Standing, StoreError> {
    Ok(match row.get("revoked")? {
        0_i64 => Standing::Good,
        _ => Standing::Revoked,
    })
}

pub(super) async fn insert<'a>(
    db: &mut Connection,
    certificates: impl IntoIterator<Item = &'a CertificateRow>,
) -> Result<(), StoreError> {
    let text = |serial: &Option<Serial>| serial.as_ref().map(ToString::to_string);
    let rows = certificates.into_iter().map(|row| {
        let Provenance {
            evidence,
            attested,
            lineage,
            through,
            node,
        } = &row.provenance;
        [
            Value::from(row.serial.to_string()),
            row.identity.as_str().into(),
            row.leaf.as_ref().into(),
            row.authority.to_string().into(),
            (&row.key_sha256).into(),
            seconds(row.validity.not_before).into(),
            seconds(row.validity.not_after).into(),
            evidence.as_str().into(),
            attested.clone().into(),
            text(lineage).into(),
            text(through).into(),
            node.as_ref().map(ToString::to_string).into(),
        ]
    });
    let rows = query_rows(
        "INSERT INTO certificates \
         (serial, identity, leaf, authority, key_sha256, not_before, not_after, evidence, attested, lineage, through, node) \
         VALUES {rows}",
        rows,
    );
    execute_all(rows, db).await?;
    Ok(())
}

/// Records a certificate for a caller whose evidence is not used up by it.
pub(crate) struct Record(pub(crate) CertificateRow);

impl Command for Record {
    type Output = ();

    async fn run(&self, db: &mut Connection) -> Result<(), StoreError> {
        insert(db, [&self.0]).await
    }

    async fn run_all(these: &[Self], db: &mut Connection) -> Result<Vec<()>, StoreError> {
        insert(db, these.iter().map(|this| &this.0)).await?;
        Ok(vec![(); these.len()])
    }
}

/// Records a certificate an administrator had made, and that they did.
pub(crate) struct RecordAudited(pub(crate) CertificateRow, pub(crate) audit::Entry);

impl Command for RecordAudited {
    type Output = ();

    async fn run(&self, db: &mut Connection) -> Result<(), StoreError> {
        insert(db, [&self.0]).await?;
        audit::append(db, &self.1).await
    }
}

/// How many certificates an identity got, and when the last of them ends.
pub(crate) struct Tally {
    pub(crate) issued: u64,
    pub(crate) last_not_after: i64,
}

/// Of those of these identities that ever got one.
pub(crate) async fn tallies(
    store: &Store,
    identities: &[String],
) -> Result<HashMap<String, Tally>, StoreError> {
    let mut all = HashMap::new();
    for identity in identities {
        let row = query(
            "SELECT count(*) AS issued, max(not_after) AS last FROM certificates WHERE identity = $1",
        )
        .bind(identity.as_str())
        .one(store.reads())
        .await?;
        if let Some(last_not_after) = row.get("last")? {
            let issued = row.get::<i64>("issued")?.unsigned_abs();
            let tally = Tally {
                issued,
                last_not_after,
            };
            all.insert(identity.clone(), tally);
        }
    }
    Ok(all)
}

/// Those of these identities that somebody can still show a valid certificate for, and until when.
pub(crate) async fn in_use(
    store: &Store,
    identities: &[String],
    now: UnixTime,
) -> Result<HashMap<String, i64>, StoreError> {
    let mut all = HashMap::new();
    for identity in identities {
        let row = query(
            "SELECT max(not_after) AS last FROM certificate_standing \
             WHERE identity = $1 AND not_after > $2 AND revoked = 0",
        )
        .bind(identity.as_str())
        .bind(seconds(now))
        .one(store.reads())
        .await?;
        if let Some(last) = row.get("last")? {
            all.insert(identity.clone(), last);
        }
    }
    Ok(all)
}

/// Forgets what expired long ago. Answers whether there may be more.
pub(crate) struct Forget {
    pub(crate) now: UnixTime,
    pub(crate) renewal_grace: Duration,
}

impl Command for Forget {
    type Output = More;

    async fn run(&self, db: &mut Connection) -> Result<More, StoreError> {
        let kept = KEPT.max(self.renewal_grace.saturating_add(DAY));
        let before = seconds(earlier(self.now, kept));
        // Tokens first: a spent one refers to its certificate.
        let tokens = query(
            "DELETE FROM tokens WHERE secret_sha256 IN (SELECT secret_sha256 FROM tokens WHERE expires_at < $1 \
             AND (spent_on IS NULL OR spent_on IN (SELECT serial FROM certificates WHERE not_after < $1)) LIMIT $2)",
        )
        .bind(before)
        .bind(FORGET)
        .execute(&mut *db)
        .await?;
        let gone = query(
            "DELETE FROM certificates WHERE serial IN (SELECT serial FROM certificates \
             WHERE not_after < $1 AND NOT EXISTS (SELECT 1 FROM tokens WHERE spent_on = serial) LIMIT $2)",
        )
        .bind(before)
        .bind(FORGET)
        .execute(db)
        .await?;
        Ok(if tokens.max(gone) < FORGET.unsigned_abs() {
            More::Nothing
        } else {
            More::Perhaps
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum More {
    Nothing,
    Perhaps,
}
