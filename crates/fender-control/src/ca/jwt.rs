//! Tokens for workloads: the keys that sign JWT-SVIDs, and the pipeline every token runs through.
//!
//! A key is in every bundle for its *publication* before it signs, so that whoever verifies tokens has it by then. It
//! signs until its successor does, and stays in the bundles until the last token it signed has ended. All replicas sign
//! with the same key, which lies sealed in the database: a replica that starts needs no publication of its own, and the
//! sets that verifiers outside the mesh fetch stay small ([ADR 15](../../../../docs/adr/0015-jwt-keys-are-shared.md)).
//!
//! A token lives too short to be taken back, and is not recorded: who got one for whom is a line in the log.

use std::sync::Arc;
use std::time::Duration;

use fender_config::Lifetimes;
use fender_identity::jwt::svid::{self, NotAudiences, check_audiences};
use fender_identity::jwt::{JwtBundles, Keys, Refusal, SKEW, SigningError, SigningKey, Statement};
use fender_identity::{Secret, SpiffeId, TrustDomain};
use fender_runtime::id::OpaqueId;
use rustls::pki_types::UnixTime;
use tokio::sync::watch;

use super::make::Workshop;
use super::{Authority, CaError};
use crate::store::Store;
use crate::store::authorities::Succeeded;
use crate::store::jwt_keys::{self, JwtKeyRow, Succeed};
use crate::time::{later, until};

/// Of a token, if nobody asks for less or more.
pub(crate) const USUAL: Duration = Duration::from_secs(5 * 60);
/// The longest that is given.
const LONGEST: Duration = Duration::from_secs(3600);
/// The longest publication: who fetches sets by itself does so more often than daily.
const PUBLICATION: Duration = Duration::from_secs(24 * 3600);
/// A key that was made later than this from now was made while a clock was ahead: its time has not come.
const AHEAD: Duration = Duration::from_secs(3600);
/// Keys in a bundle; of too many, the youngest.
const MAX_KEYS: usize = 32;
/// Steps of one look: a key, and again if another process was faster.
const STEPS: usize = 4;

/// What signs tokens now, and what they are verified with.
pub(crate) struct Mint(watch::Sender<Arc<Signing>>);

struct Signing {
    key: SigningKey,
    bundles: Arc<JwtBundles>,
    longest: Duration,
}

/// A token that holds.
#[derive(Debug)]
pub(crate) struct Token {
    pub(crate) text: Secret,
    pub(crate) expires: UnixTime,
    /// Its `jti`, by which it is found in the log.
    pub(crate) id: OpaqueId,
    pub(crate) key: String,
}

impl Mint {
    pub(super) async fn open(
        store: &Store,
        workshop: &Workshop,
        lifetimes: &Lifetimes,
        now: UnixTime,
    ) -> Result<Self, CaError> {
        let signing = look(store, workshop, lifetimes, now).await?;
        Ok(Self(watch::Sender::new(Arc::new(signing))))
    }

    pub(super) async fn refresh(
        &self,
        store: &Store,
        workshop: &Workshop,
        lifetimes: &Lifetimes,
        now: UnixTime,
    ) -> Result<(), CaError> {
        let signing = look(store, workshop, lifetimes, now).await?;
        self.0.send_replace(Arc::new(signing));
        Ok(())
    }
}

/// How long after its successor signs a key's tokens may still be shown, somewhere with a clock that is behind.
pub(crate) fn lingers(lifetimes: &Lifetimes) -> Duration {
    longest(lifetimes).saturating_mul(2).saturating_add(SKEW)
}

fn longest(lifetimes: &Lifetimes) -> Duration {
    LONGEST.min(lifetimes.jwt_key)
}

/// Makes a key if one is due, and opens the one that signs.
async fn look(
    store: &Store,
    workshop: &Workshop,
    lifetimes: &Lifetimes,
    now: UnixTime,
) -> Result<Signing, CaError> {
    for _ in 0..STEPS {
        let rows = jwt_keys::all(store).await?;
        let Some(signs_from) = due(&rows, lifetimes, now) else {
            return workshop.signing(&rows, lifetimes, now);
        };
        let row = workshop.jwt_key(signs_from, now)?;
        let (id, signs_in) = (row.id.clone(), until(now, signs_from).as_secs());
        let known = rows.into_iter().map(|row| row.id).collect();
        if store.write(Succeed { known, row }).await? == Succeeded::Added {
            tracing::info!(id, signs_in, "a key that signs tokens made");
        }
    }
    workshop.signing(&jwt_keys::all(store).await?, lifetimes, now)
}

/// Those whose time has come.
fn counting(rows: &[JwtKeyRow], now: UnixTime) -> impl Iterator<Item = &JwtKeyRow> {
    rows.iter()
        .filter(move |row| row.made_at <= later(now, AHEAD))
}

/// The latest whose publication is over. If the clock was put back: what is nearest to signing.
fn signing(rows: &[JwtKeyRow], now: UnixTime) -> Option<&JwtKeyRow> {
    counting(rows, now)
        .filter(|row| row.signs_from <= now)
        .max_by_key(|row| (row.signs_from, &row.id))
        .or_else(|| counting(rows, now).min_by_key(|row| (row.signs_from, &row.id)))
}

/// If a key must be made now: from when it signs.
fn due(rows: &[JwtKeyRow], lifetimes: &Lifetimes, now: UnixTime) -> Option<UnixTime> {
    let Some(current) = signing(rows, now) else {
        return Some(now);
    };
    if counting(rows, now).any(|row| row.signs_from > now) {
        return None;
    }
    let publication = PUBLICATION
        .min(lifetimes.publication)
        .min(lifetimes.jwt_key / 4);
    let served = until(current.signs_from, now);
    (served.saturating_add(publication) >= lifetimes.jwt_key).then(|| later(now, publication))
}

/// What is in the bundles: what signs, what will, and what signed a token that may not have ended.
fn published<'a>(
    rows: &'a [JwtKeyRow],
    lifetimes: &Lifetimes,
    now: UnixTime,
) -> Vec<&'a JwtKeyRow> {
    let lingers = lingers(lifetimes);
    let mut all: Vec<_> = counting(rows, now).collect();
    all.sort_by_key(|row| (row.signs_from, &row.id));
    let successor = |row: &JwtKeyRow| {
        all.iter()
            .map(|later| later.signs_from)
            .find(|from| *from > row.signs_from)
    };
    let kept: Vec<_> = all
        .iter()
        .copied()
        .filter(|row| successor(row).is_none_or(|from| later(from, lingers) > now))
        .collect();
    let surplus = kept.len().saturating_sub(MAX_KEYS);
    kept.into_iter().skip(surplus).collect()
}

impl Workshop {
    fn jwt_key(&self, signs_from: UnixTime, now: UnixTime) -> Result<JwtKeyRow, CaError> {
        let key = SigningKey::generate()?;
        let place = self.jwt_place(key.id());
        Ok(JwtKeyRow {
            id: key.id().to_owned(),
            sealed_key: self.sealing.seal(&place, key.to_pkcs8()?.expose())?,
            made_at: now,
            signs_from,
        })
    }

    fn signing(
        &self,
        rows: &[JwtKeyRow],
        lifetimes: &Lifetimes,
        now: UnixTime,
    ) -> Result<Signing, CaError> {
        let row = signing(rows, now).ok_or(CaError::NoJwtKey)?;
        let key = self.open_jwt_key(row)?;
        Ok(Signing {
            key,
            bundles: self.jwt_bundles(rows, lifetimes, now)?,
            longest: longest(lifetimes),
        })
    }

    fn jwt_bundles(
        &self,
        rows: &[JwtKeyRow],
        lifetimes: &Lifetimes,
        now: UnixTime,
    ) -> Result<Arc<JwtBundles>, CaError> {
        let public = published(rows, lifetimes, now)
            .into_iter()
            .map(|row| Ok(self.open_jwt_key(row)?.public().clone()))
            .collect::<Result<Vec<_>, CaError>>()?;
        let keys = Keys::new(public)?;
        Ok(Arc::new(
            [(self.trust_domain.clone(), keys)].into_iter().collect(),
        ))
    }

    /// Only what was sealed is believed, its public half as well: whoever can write to the database must not be able to
    /// publish a key of theirs.
    fn open_jwt_key(&self, row: &JwtKeyRow) -> Result<SigningKey, CaError> {
        let opened = self
            .sealing
            .open(&self.jwt_place(&row.id), &row.sealed_key)?;
        let key = SigningKey::from_pkcs8(&opened)?;
        match key.id() == row.id {
            true => Ok(key),
            false => Err(CaError::JwtKeyMisnamed),
        }
    }

    fn jwt_place(&self, id: &str) -> Vec<u8> {
        format!("fender jwt key v1\0{}\0{id}", self.trust_domain).into_bytes()
    }
}

impl Authority {
    /// By which the tokens of this trust domain are verified.
    #[cfg(test)]
    pub(crate) fn jwt_bundles(&self) -> Arc<JwtBundles> {
        Arc::clone(&self.mint.0.borrow().bundles)
    }

    /// The same of these keys, for whoever announces what is in the database.
    pub(crate) fn jwt_bundles_of(
        &self,
        rows: &[JwtKeyRow],
        lifetimes: &Lifetimes,
        now: UnixTime,
    ) -> Result<Arc<JwtBundles>, CaError> {
        self.workshop.jwt_bundles(rows, lifetimes, now)
    }

    /// A token for an identity that was proven: signed, then verified as its reader will.
    pub(crate) fn sign_token(
        &self,
        subject: &SpiffeId,
        audiences: &[String],
        lifetime: Option<Duration>,
        now: UnixTime,
    ) -> Result<Token, TokenError> {
        check_audiences(audiences)?;
        if subject.trust_domain() != self.trust_domain() || subject.workload().is_none() {
            return Err(TokenError::NotAWorkload);
        }
        // One of the second of a revocation would be refused with those before it.
        if self.denied.borrow().denies_token(subject, Some(now)) {
            return Err(TokenError::JustRevoked);
        }
        let signing = Arc::clone(&self.mint.0.borrow());
        let lifetime = lifetime.unwrap_or(USUAL).min(signing.longest);
        let (id, expires) = (OpaqueId::random(), later(now, lifetime));
        let text = signing.key.sign(&Statement {
            subject,
            audiences,
            issued: now,
            expires,
            token_id: &id.to_string(),
        })?;
        signing.check(&text, subject, audiences, expires, now)?;
        Ok(Token {
            text,
            expires,
            id,
            key: signing.key.id().to_owned(),
        })
    }
}

impl Signing {
    fn check(
        &self,
        token: &Secret,
        subject: &SpiffeId,
        audiences: &[String],
        expires: UnixTime,
        now: UnixTime,
    ) -> Result<(), TokenError> {
        let (Some(text), Some(audience)) = (token.expose_str(), audiences.first()) else {
            return Err(TokenError::NotAsMeant);
        };
        let keys = |trust_domain: &TrustDomain| self.bundles.get(trust_domain);
        let read = svid::verify(text, audience, &keys, now)?;
        let claims = read.claims();
        match read.id() == subject && claims.audiences == audiences && claims.expires == expires {
            true => Ok(()),
            false => Err(TokenError::NotAsMeant),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    #[error(transparent)]
    Audiences(#[from] NotAudiences),
    #[error("only a workload of this trust domain gets a token")]
    NotAWorkload,
    #[error("this identity was revoked just now")]
    JustRevoked,
    #[error("the token does not hold: {0}")]
    Unverifiable(#[from] Refusal),
    #[error("the token does not say what was meant")]
    NotAsMeant,
    #[error(transparent)]
    Sign(#[from] SigningError),
}

#[cfg(test)]
mod tests;
