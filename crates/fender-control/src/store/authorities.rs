//! Certificate authorities, with their keys sealed. What unseals them is not here.

use std::collections::BTreeSet;

use fender_identity::{Serial, Validity};
use rustls::pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::replicas::ReplicaName;
use super::{
    Command, Connection, Record, Store, StoreError, Topic, Value, Whom, audit, execute_all, query,
    query_rows,
};
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
    /// The replica that signs with an intermediate, and nobody else does; a root is nobody's.
    pub(crate) holder: Option<ReplicaName>,
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
    seen_by(store.reads()).await
}

/// The same, inside a transaction.
pub(crate) async fn seen_by<'a>(db: impl Into<Whom<'a>>) -> Result<Vec<AuthorityRow>, StoreError> {
    query(
        "SELECT serial, role, root, holder, certificate, path, sealed_key, not_before, not_after, signs_from \
         FROM authorities ORDER BY role, not_before DESC",
    )
    .all(db)
    .await?
    .iter()
    .map(read)
    .collect()
}

fn read(row: &Record) -> Result<AuthorityRow, StoreError> {
    let damaged = || StoreError::Damaged("certificate authority");
    let serial = |text: String| text.parse().map_err(|_| damaged());
    Ok(AuthorityRow {
        serial: serial(row.get("serial")?)?,
        role: match row.get::<String>("role")?.as_str() {
            "root" => Role::Root,
            "intermediate" => Role::Intermediate,
            _ => return Err(damaged()),
        },
        root: row.get::<Option<String>>("root")?.map(serial).transpose()?,
        holder: row
            .get::<Option<String>>("holder")?
            .map(|holder| holder.parse().map_err(|_| damaged()))
            .transpose()?,
        certificate: row.get::<Vec<u8>>("certificate")?.into(),
        path: path_from_der(&row.get::<Vec<u8>>("path")?)?,
        sealed_key: row.get("sealed_key")?,
        validity: Validity {
            not_before: moment(row.get("not_before")?),
            not_after: moment(row.get("not_after")?),
        },
        signs_from: moment(row.get("signs_from")?),
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

    async fn run(&self, db: &mut Connection) -> Result<Succeeded, StoreError> {
        let roots = query("SELECT serial FROM authorities WHERE role = 'root'")
            .all(&mut *db)
            .await?
            .iter()
            .map(|row| {
                row.get::<String>("serial")?
                    .parse()
                    .map_err(|_| StoreError::Damaged("certificate authority"))
            })
            .collect::<Result<BTreeSet<Serial>, StoreError>>()?;
        if roots != self.known_roots {
            return Ok(Succeeded::Overtaken);
        }
        insert(db, &self.rows).await?;
        if let Some(entry) = &self.entry {
            audit::append(db, entry).await?;
        }
        db.changed(Topic::Authorities);
        Ok(Succeeded::Added)
    }
}

async fn insert(db: &mut Connection, rows: &[AuthorityRow]) -> Result<(), StoreError> {
    let rows = rows.iter().map(|row| {
        let path: Vec<u8> = row
            .path
            .iter()
            .flat_map(|one| one.iter().copied())
            .collect();
        [
            Value::from(row.serial.to_string()),
            row.role.as_str().into(),
            row.root.as_ref().map(ToString::to_string).into(),
            row.holder.as_ref().map(ToString::to_string).into(),
            row.certificate.as_ref().into(),
            path.into(),
            row.sealed_key.clone().into(),
            seconds(row.validity.not_before).into(),
            seconds(row.validity.not_after).into(),
            seconds(row.signs_from).into(),
        ]
    });
    let rows = query_rows(
        "INSERT INTO authorities \
         (serial, role, root, holder, certificate, path, sealed_key, not_before, not_after, signs_from) \
         VALUES {rows}",
        rows,
    );
    execute_all(rows, db).await?;
    Ok(())
}

/// Forgets authorities that ended before a moment and of which no certificate is on record any more.
pub(crate) struct Forget {
    pub(crate) before: UnixTime,
}

impl Command for Forget {
    type Output = ();

    async fn run(&self, db: &mut Connection) -> Result<(), StoreError> {
        query(
            "DELETE FROM authorities WHERE role = 'intermediate' AND not_after < $1 \
             AND NOT EXISTS (SELECT 1 FROM certificates WHERE authority = authorities.serial)",
        )
        .bind(seconds(self.before))
        .execute(&mut *db)
        .await?;
        query(
            "DELETE FROM authorities WHERE role = 'root' AND not_after < $1 \
             AND NOT EXISTS (SELECT 1 FROM authorities AS below WHERE below.root = authorities.serial)",
        )
        .bind(seconds(self.before))
        .execute(db)
        .await?;
        Ok(())
    }
}
