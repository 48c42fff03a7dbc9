//! Certificate authorities, with their keys sealed. What unseals them is not here.

use fender_identity::{Serial, Validity};
use rustls::pki_types::CertificateDer;
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use super::{Command, Store, StoreError};
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
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) sealed_key: Vec<u8>,
    pub(crate) validity: Validity,
}

/// All authorities: intermediates, then roots, of each the youngest first.
pub(crate) async fn all(store: &Store) -> Result<Vec<AuthorityRow>, StoreError> {
    sqlx::query(
        "SELECT serial, role, certificate, sealed_key, not_before, not_after FROM authorities \
         ORDER BY role, not_before DESC",
    )
    .fetch_all(store.reads())
    .await?
    .iter()
    .map(read)
    .collect()
}

fn read(row: &SqliteRow) -> Result<AuthorityRow, StoreError> {
    let damaged = || StoreError::Damaged("certificate authority");
    Ok(AuthorityRow {
        serial: row
            .try_get::<&str, _>("serial")?
            .parse()
            .map_err(|_| damaged())?,
        role: match row.try_get("role")? {
            "root" => Role::Root,
            "intermediate" => Role::Intermediate,
            _ => return Err(damaged()),
        },
        certificate: row.try_get::<Vec<u8>, _>("certificate")?.into(),
        sealed_key: row.try_get("sealed_key")?,
        validity: Validity {
            not_before: moment(row.try_get("not_before")?),
            not_after: moment(row.try_get("not_after")?),
        },
    })
}

/// Adds authorities; all or none.
pub(crate) struct Add(pub(crate) Vec<AuthorityRow>);

impl Command for Add {
    type Output = ();

    async fn run(self, db: &mut SqliteConnection) -> Result<(), StoreError> {
        for row in self.0 {
            sqlx::query(
                "INSERT INTO authorities (serial, role, certificate, sealed_key, not_before, not_after) \
                 VALUES (?, ?, ?, ?, ?, ?)",
            )
            .bind(row.serial.to_string())
            .bind(row.role.as_str())
            .bind(row.certificate.as_ref().to_vec())
            .bind(row.sealed_key)
            .bind(seconds(row.validity.not_before))
            .bind(seconds(row.validity.not_after))
            .execute(&mut *db)
            .await?;
        }
        Ok(())
    }
}
