//! What is decided once: the trust domain, and that the first administrator has been given their files.
//! Neither can be changed afterwards.

use fender_identity::TrustDomain;
use rustls::pki_types::UnixTime;

use super::{Command, Connection, Store, StoreError, query};
use crate::time::seconds;

#[derive(Clone, Debug)]
pub(crate) struct Founded {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) admin: Admin,
}

/// Whether the first administrator's files are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admin {
    Pending,
    Made,
}

pub(crate) async fn founded(store: &Store) -> Result<Option<Founded>, StoreError> {
    let Some(row) = query("SELECT trust_domain, admin_made FROM mesh")
        .optional(store.reads())
        .await?
    else {
        return Ok(None);
    };
    let trust_domain = row
        .get::<String>("trust_domain")?
        .parse()
        .map_err(|_| StoreError::Damaged("trust domain"))?;
    let admin = match row.get::<Option<i64>>("admin_made")? {
        Some(_) => Admin::Made,
        None => Admin::Pending,
    };
    Ok(Some(Founded {
        trust_domain,
        admin,
    }))
}

/// Settles the trust domain of an empty database.
pub(crate) struct Found {
    pub(crate) trust_domain: TrustDomain,
}

impl Command for Found {
    type Output = ();

    async fn run(&self, db: &mut Connection) -> Result<(), StoreError> {
        query("INSERT INTO mesh (singleton, trust_domain) VALUES (1, $1)")
            .bind(self.trust_domain.as_str())
            .execute(db)
            .await?;
        Ok(())
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
