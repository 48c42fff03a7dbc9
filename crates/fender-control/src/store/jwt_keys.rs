//! Keys that sign tokens, sealed. What unseals them is not here.

use std::collections::BTreeSet;

use rustls::pki_types::UnixTime;

use super::authorities::Succeeded;
use super::{Command, Connection, Store, StoreError, Topic, Whom, query};
use crate::time::{moment, seconds};

#[derive(Clone, Debug)]
pub(crate) struct JwtKeyRow {
    /// The `kid`.
    pub(crate) id: String,
    pub(crate) sealed_key: Vec<u8>,
    pub(crate) made_at: UnixTime,
    /// Before this it is in every bundle and signs nothing.
    pub(crate) signs_from: UnixTime,
}

/// All of them, the one that signs first first.
pub(crate) async fn all(store: &Store) -> Result<Vec<JwtKeyRow>, StoreError> {
    seen_by(store.reads()).await
}

/// The same, inside a transaction.
pub(crate) async fn seen_by<'a>(db: impl Into<Whom<'a>>) -> Result<Vec<JwtKeyRow>, StoreError> {
    query("SELECT id, sealed_key, made_at, signs_from FROM jwt_keys ORDER BY signs_from, id")
        .all(db)
        .await?
        .iter()
        .map(|row| {
            Ok(JwtKeyRow {
                id: row.get("id")?,
                sealed_key: row.get("sealed_key")?,
                made_at: moment(row.get("made_at")?),
                signs_from: moment(row.get("signs_from")?),
            })
        })
        .collect()
}

/// Adds a key, if those known when it was made are those there are: two replicas that decide at once do not both make
/// one.
pub(crate) struct Succeed {
    pub(crate) known: BTreeSet<String>,
    pub(crate) row: JwtKeyRow,
}

impl Command for Succeed {
    type Output = Succeeded;

    async fn run(&self, db: &mut Connection) -> Result<Succeeded, StoreError> {
        let there = query("SELECT id FROM jwt_keys").all(&mut *db).await?;
        let there: Result<BTreeSet<String>, _> = there.iter().map(|row| row.get("id")).collect();
        if there? != self.known {
            return Ok(Succeeded::Overtaken);
        }
        query("INSERT INTO jwt_keys (id, sealed_key, made_at, signs_from) VALUES ($1, $2, $3, $4)")
            .bind(self.row.id.as_str())
            .bind(self.row.sealed_key.as_slice())
            .bind(seconds(self.row.made_at))
            .bind(seconds(self.row.signs_from))
            .execute(&mut *db)
            .await?;
        db.changed(Topic::Authorities);
        Ok(Succeeded::Added)
    }
}

/// Forgets keys of which no token is left: those whose successor has signed since before a moment.
pub(crate) struct Forget {
    pub(crate) succeeded_before: UnixTime,
}

impl Command for Forget {
    type Output = ();

    async fn run(&self, db: &mut Connection) -> Result<(), StoreError> {
        query(
            "DELETE FROM jwt_keys WHERE signs_from < \
             (SELECT max(signs_from) FROM jwt_keys AS later WHERE later.signs_from < $1)",
        )
        .bind(seconds(self.succeeded_before))
        .execute(db)
        .await?;
        Ok(())
    }
}
