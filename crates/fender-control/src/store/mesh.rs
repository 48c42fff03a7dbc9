//! What is decided once: the trust domain, the sealing key, and which replica gives the first administrator their files.
//! None of it can be changed afterwards. Of several that found at once one does, and the others take what it decided.

use fender_identity::TrustDomain;
use rustls::pki_types::UnixTime;

use super::replicas::{self, ReplicaName};
use super::{Command, Connection, Record, Store, StoreError, db, query};
use crate::time::seconds;

#[derive(Clone, Debug)]
pub(crate) struct Founded {
    pub(crate) trust_domain: TrustDomain,
    /// Opens with the key that everything is sealed with.
    pub(crate) sealing_check: Vec<u8>,
    pub(crate) admin: Admin,
}

/// Whether the first administrator's files are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admin {
    Pending,
    Made,
}

const FOUNDED: &str = "SELECT trust_domain, sealing_check, admin_made FROM mesh";

pub(crate) async fn founded(store: &Store) -> Result<Option<Founded>, StoreError> {
    query(FOUNDED)
        .optional(store.reads())
        .await?
        .as_ref()
        .map(read)
        .transpose()
}

fn read(row: &Record) -> Result<Founded, StoreError> {
    Ok(Founded {
        trust_domain: row
            .get::<String>("trust_domain")?
            .parse()
            .map_err(|_| StoreError::Damaged("trust domain"))?,
        sealing_check: row.get("sealing_check")?,
        admin: match row.get::<Option<i64>>("admin_made")? {
            Some(_) => Admin::Made,
            None => Admin::Pending,
        },
    })
}

/// Settles trust domain and sealing key of an empty database; what is settled there once that is done, by whomever.
pub(crate) struct Found {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) sealing_check: Vec<u8>,
}

impl Command for Found {
    type Output = Founded;

    async fn run(&self, db: &mut Connection) -> Result<Founded, StoreError> {
        query(
            "INSERT INTO mesh (singleton, trust_domain, sealing_check) VALUES (1, $1, $2) \
             ON CONFLICT (singleton) DO NOTHING",
        )
        .bind(self.trust_domain.as_str())
        .bind(self.sealing_check.clone())
        .execute(&mut *db)
        .await?;
        read(&query(FOUNDED).one(db).await?)
    }
}

/// Takes it upon a replica to write the first administrator's files.
pub(crate) struct UndertakeAdmin {
    pub(crate) by: ReplicaName,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Undertaken {
    Ours,
    /// It is being done, or was done before.
    Others,
}

impl Command for UndertakeAdmin {
    type Output = Undertaken;

    async fn run(&self, db: &mut Connection) -> Result<Undertaken, StoreError> {
        // Whoever undertook it and fell silent did not finish.
        let silent = db::moment(&mut *db).await? - replicas::SILENT_SECONDS;
        let undertaken = query(
            "UPDATE mesh SET admin_by = $1 WHERE admin_made IS NULL AND (admin_by IS NULL OR admin_by = $1 OR NOT EXISTS \
             (SELECT 1 FROM replicas WHERE name = admin_by AND seen_at >= $2))",
        )
        .bind(self.by.as_str())
        .bind(silent)
        .execute(db)
        .await?;
        Ok(match undertaken {
            0 => Undertaken::Others,
            _ => Undertaken::Ours,
        })
    }
}

/// The first administrator's files are on disk.
pub(crate) struct AdminMade {
    pub(crate) at: UnixTime,
}

impl Command for AdminMade {
    type Output = ();

    async fn run(&self, db: &mut Connection) -> Result<(), StoreError> {
        query("UPDATE mesh SET admin_made = $1")
            .bind(seconds(self.at))
            .execute(db)
            .await?;
        Ok(())
    }
}
