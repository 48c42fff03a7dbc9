//! Certificate authorities, with their keys sealed. What unseals them is not here.

use std::collections::BTreeSet;

use fender_identity::{Serial, Validity};
use rustls::pki_types::{CertificateDer, UnixTime};
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Command, Store, StoreError, audit};
use crate::time::{moment, seconds};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Root,
    Intermediate,
}

impl Role {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Role::Root => "root",
            Role::Intermediate => "intermediate",
        }
    }
}

/// One authority as it is stored.
#[derive(Clone)]
pub(crate) struct AuthorityRow {
    pub(crate) serial: Serial,
    pub(crate) role: Role,
    /// The root that an intermediate chains to.
    pub(crate) root: Option<Serial>,
    pub(crate) certificate: CertificateDer<'static>,
    /// What lies between an intermediate and its root, from the intermediate up.
    pub(crate) path: Vec<CertificateDer<'static>>,
    /// None of a root that is kept elsewhere.
    pub(crate) sealed_key: Option<Vec<u8>>,
    pub(crate) validity: Validity,
    /// Before this it is in every bundle and signs nothing.
    pub(crate) signs_from: UnixTime,
}

/// All authorities: intermediates, then roots, of each the youngest first.
pub(crate) async fn all(store: &Store) -> Result<Vec<AuthorityRow>, StoreError> {
    sqlx::query(
        "SELECT serial, role, root, certificate, path, sealed_key, not_before, not_after, signs_from \
         FROM authorities ORDER BY role, not_before DESC",
    )
    .fetch_all(store.reads())
    .await?
    .iter()
    .map(read)
    .collect()
}

fn read(row: &SqliteRow) -> Result<AuthorityRow, StoreError> {
    let damaged = || StoreError::Damaged("certificate authority");
    let serial = |text: &str| text.parse().map_err(|_| damaged());
    Ok(AuthorityRow {
        serial: serial(row.try_get("serial")?)?,
        role: match row.try_get("role")? {
            "root" => Role::Root,
            "intermediate" => Role::Intermediate,
            _ => return Err(damaged()),
        },
        root: row
            .try_get::<Option<&str>, _>("root")?
            .map(serial)
            .transpose()?,
        certificate: row.try_get::<Vec<u8>, _>("certificate")?.into(),
        path: path_from_der(row.try_get("path")?)?,
        sealed_key: row.try_get("sealed_key")?,
        validity: Validity {
            not_before: moment(row.try_get("not_before")?),
            not_after: moment(row.try_get("not_after")?),
        },
        signs_from: moment(row.try_get("signs_from")?),
    })
}

/// Certificates written one after the other.
pub(super) fn path_from_der(mut der: &[u8]) -> Result<Vec<CertificateDer<'static>>, StoreError> {
    let mut path = Vec::new();
    while !der.is_empty() {
        let (rest, _) = X509Certificate::from_der(der)
            .map_err(|_| StoreError::Damaged("path of a certificate authority"))?;
        let length = der.len().saturating_sub(rest.len());
        let (one, rest) = der.split_at(length);
        path.push(one.to_vec().into());
        der = rest;
    }
    Ok(path)
}

/// Adds authorities, all or none, if the roots are those that were known when they were made: two who decide at once do
/// not both make one.
pub(crate) struct Succeed {
    pub(crate) known_roots: BTreeSet<Serial>,
    pub(crate) rows: Vec<AuthorityRow>,
    /// Who asked for it, if somebody did.
    pub(crate) entry: Option<audit::Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Succeeded {
    Added,
    /// Somebody else was faster: look again.
    Overtaken,
}

impl Command for Succeed {
    type Output = Succeeded;

    async fn run(self, db: &mut SqliteConnection) -> Result<Succeeded, StoreError> {
        let roots = sqlx::query("SELECT serial FROM authorities WHERE role = 'root'")
            .fetch_all(&mut *db)
            .await?
            .iter()
            .map(|row| {
                row.try_get::<&str, _>("serial")?
                    .parse()
                    .map_err(|_| StoreError::Damaged("certificate authority"))
            })
            .collect::<Result<BTreeSet<Serial>, StoreError>>()?;
        if roots != self.known_roots {
            return Ok(Succeeded::Overtaken);
        }
        for row in self.rows {
            insert(db, row).await?;
        }
        if let Some(entry) = self.entry {
            audit::append(db, entry).await?;
        }
        Ok(Succeeded::Added)
    }
}

async fn insert(db: &mut SqliteConnection, row: AuthorityRow) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO authorities \
         (serial, role, root, certificate, path, sealed_key, not_before, not_after, signs_from) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(row.serial.to_string())
    .bind(row.role.as_str())
    .bind(row.root.map(|root| root.to_string()))
    .bind(row.certificate.as_ref().to_vec())
    .bind(
        row.path
            .iter()
            .flat_map(|one| one.iter().copied())
            .collect::<Vec<u8>>(),
    )
    .bind(row.sealed_key)
    .bind(seconds(row.validity.not_before))
    .bind(seconds(row.validity.not_after))
    .bind(seconds(row.signs_from))
    .execute(db)
    .await?;
    Ok(())
}

/// Forgets authorities that ended before a moment and of which no certificate is on record any more.
pub(crate) struct Forget {
    pub(crate) before: UnixTime,
}

impl Command for Forget {
    type Output = ();

    async fn run(self, db: &mut SqliteConnection) -> Result<(), StoreError> {
        sqlx::query(
            "DELETE FROM authorities WHERE role = 'intermediate' AND not_after < ? \
             AND NOT EXISTS (SELECT 1 FROM certificates WHERE authority = authorities.serial)",
        )
        .bind(seconds(self.before))
        .execute(&mut *db)
        .await?;
        sqlx::query(
            "DELETE FROM authorities WHERE role = 'root' AND not_after < ? \
             AND NOT EXISTS (SELECT 1 FROM authorities AS below WHERE below.root = authorities.serial)",
        )
        .bind(seconds(self.before))
        .execute(db)
        .await?;
        Ok(())
    }
}
