//! One place in a Vault, read once for all credentials that name it: user name and password are of one answer, of one lease.
//!
//! A lease is renewed at a jittered part of what is left of it, and read anew when no renewal moves its end any more, or
//! when the token has changed that it ends with. While it is valid, so is what was leased, even if nobody can be asked.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fender_config::snapshot::VaultPlace;
use fender_identity::Secret;
use fender_runtime::backoff::{Backoff, spread};
use fender_runtime::random;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::json;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use super::Desk;
use super::session::{Login, Verdict};
use super::wire::{Body, Call, Failure, Field, Fields, Versioned, parse};
use crate::FetchError;

const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// Those who wait for the same moment come within this time after it.
const SPREAD: Duration = Duration::from_secs(1);
/// A day, in milliseconds: as long as a document may want.
const LONGEST_REFRESH: u64 = 24 * 60 * 60 * 1000;
/// No lease is looked after more often.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);

/// What was read, in one go.
#[derive(Debug)]
pub(super) struct Reading {
    fields: Fields,
}

impl Reading {
    fn equals(&self, other: &Self) -> bool {
        let same = |one: &Field, other: &Field| match (one, other) {
            (Field::Text(one), Field::Text(other)) => one.ct_eq(other),
            (Field::Other, Field::Other) => true,
            (Field::Text(_), Field::Other) | (Field::Other, Field::Text(_)) => false,
        };
        self.fields.len() == other.fields.len()
            && self
                .fields
                .iter()
                .all(|(key, one)| other.fields.get(key).is_some_and(|other| same(one, other)))
    }
}

pub(super) struct Place {
    desk: Arc<Desk>,
    at: VaultPlace,
    /// In milliseconds: the shortest that somebody wants.
    refresh: AtomicU64,
    known: Mutex<Known>,
    schedule: watch::Sender<Schedule>,
}

#[derive(Debug)]
struct Known {
    answer: Option<Result<Arc<Reading>, FetchError>>,
    /// When it was asked for the last answer that it gave.
    asked: Instant,
    /// When it is to be asked again.
    next: Instant,
    backoff: Backoff,
    lease: Option<Lease>,
    number: u64,
}

#[derive(Clone, Debug)]
struct Lease {
    id: String,
    /// Of the login it ends with.
    epoch: u64,
    renewable: bool,
    /// As long as it was given for at first.
    whole: Duration,
    until: Instant,
    /// Whether it has been renewed for the last time.
    last: bool,
}

/// What whoever follows a place waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Schedule {
    /// Of the answer; another one is news.
    number: u64,
    asked: Instant,
    next: Instant,
    /// Whose end is the end of what was read.
    epoch: Option<u64>,
}

impl Place {
    pub(super) fn new(desk: Arc<Desk>, at: VaultPlace) -> Self {
        let next = Instant::now();
        let backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        Self {
            desk,
            at,
            refresh: AtomicU64::new(LONGEST_REFRESH),
            known: Mutex::new(Known {
                answer: None,
                asked: next,
                next,
                backoff,
                lease: None,
                number: 0,
            }),
            schedule: watch::Sender::new(Schedule {
                number: 0,
                asked: next,
                next,
                epoch: None,
            }),
        }
    }

    /// Somebody wants to know of changes within this time.
    pub(super) fn at_least_every(&self, refresh: Duration) {
        let refresh = u64::try_from(refresh.as_millis()).unwrap_or(u64::MAX);
        self.refresh.fetch_min(refresh, Ordering::Relaxed);
    }

    pub(super) fn refresh(&self) -> Duration {
        Duration::from_millis(self.refresh.load(Ordering::Relaxed))
    }

    /// Whether what was read last came with a lease.
    pub(super) fn is_leased(&self) -> bool {
        self.schedule.borrow().epoch.is_some()
    }

    /// How long ago it was asked for the last answer that it gave.
    pub(super) fn age(&self) -> Duration {
        self.schedule.borrow().asked.elapsed()
    }

    /// What is there, and the number of the answer. Asks only if it is time.
    pub(super) async fn read(&self) -> (u64, Result<Arc<Reading>, FetchError>) {
        let mut known = self.known.lock().await;
        let epoch = self.desk.session.upkeep().borrow().epoch;
        let outlived = known
            .lease
            .as_ref()
            .is_some_and(|lease| lease.epoch != epoch);
        if let Some(answer) = &known.answer
            && Instant::now() < known.next
            && !outlived
        {
            return (known.number, answer.clone());
        }
        let began = Instant::now();
        let mut answer = self.ask(&mut known).await;
        if answer.is_ok() {
            known.asked = began;
        }
        known.next = self.next(&mut known, &answer);
        let epoch = self.desk.session.upkeep().borrow().epoch;
        if let Some(lease) = known.lease.as_mut().filter(|lease| lease.epoch != epoch) {
            // It could not be read anew yet. That is done when it is time again, and no renewal instead.
            lease.epoch = epoch;
            lease.last = true;
        }
        match (&known.answer, &answer) {
            (Some(Ok(one)), Ok(other)) if one.equals(other) => answer = Ok(Arc::clone(one)),
            (Some(Err(one)), Err(other)) if one == other => {}
            _ => {
                known.number += 1;
                known.answer = Some(answer.clone());
            }
        }
        self.schedule.send_replace(Schedule {
            number: known.number,
            asked: known.asked,
            next: known.next,
            epoch: known.lease.as_ref().map(|lease| lease.epoch),
        });
        (known.number, answer)
    }

    /// Resolves when there is news for who has seen answer `seen`, or when it is time to ask.
    pub(super) async fn due(&self, seen: u64) {
        let mut schedule = self.schedule.subscribe();
        let mut upkeep = self.desk.session.upkeep();
        loop {
            let now = *schedule.borrow_and_update();
            let epoch = upkeep.borrow_and_update().epoch;
            if now.number != seen || now.epoch.is_some_and(|of| of != epoch) {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(now.next) => return,
                Ok(()) = schedule.changed() => {}
                Ok(()) = upkeep.changed() => {}
            }
        }
    }

    fn next(&self, known: &mut Known, answer: &Result<Arc<Reading>, FetchError>) -> Instant {
        let now = Instant::now();
        let refreshed = now + self.refresh().mul_f64(0.9 + 0.2 * random::unit());
        match (answer, &known.lease) {
            (Ok(_), Some(_)) => known.next,
            (Ok(_), None) => {
                known.backoff.reset();
                refreshed
            }
            (Err(FetchError::Outage(_)), _) => {
                let retry = now + known.backoff.next();
                match self.desk.session.retry_at() {
                    Some(at) if at > now => retry.max(at + spread(SPREAD)),
                    Some(_) | None => retry,
                }
            }
            (Err(_), _) => refreshed,
        }
    }

    async fn ask(&self, known: &mut Known) -> Result<Arc<Reading>, FetchError> {
        let kept = match (&known.answer, &known.lease) {
            (Some(Ok(reading)), Some(lease)) if Instant::now() < lease.until => {
                Some(Arc::clone(reading))
            }
            _ => None,
        };
        let asked = match kept.clone() {
            Some(reading) => self.prolong(known, reading).await,
            None => self.read_anew(known).await,
        };
        match (asked, kept) {
            // It is valid to its end, whether somebody can be asked or not.
            (Err(FetchError::Outage(why)), Some(reading)) => {
                tracing::warn!(%why, "a lease was not renewed yet");
                let retry = Instant::now() + known.backoff.next();
                let ends = known.lease.as_ref().map_or(retry, |lease| lease.until);
                known.next = retry.min(ends);
                Ok(reading)
            }
            (Err(FetchError::Outage(why)), None) if known.lease.is_some() => Err(
                FetchError::Outage(format!("{why}; and the lease of what was there has ended")),
            ),
            (asked, _) => asked,
        }
    }

    /// Renews a lease, if that is still worth it.
    async fn prolong(
        &self,
        known: &mut Known,
        reading: Arc<Reading>,
    ) -> Result<Arc<Reading>, FetchError> {
        let login = self.desk.session.login().await?;
        let Some(lease) = known.lease.clone() else {
            return self.read_anew(known).await;
        };
        if !lease.renewable || lease.last || lease.epoch != login.epoch {
            return self.read_anew(known).await;
        }
        let body = json!({ "lease_id": lease.id, "increment": lease.whole.as_secs() });
        let call = Call::post("sys/leases/renew", login.token(), body);
        let renewed: Result<Body<IgnoredAny>, _> = self.desk.session.ask(&login, &call).await;
        match renewed {
            Ok(body) => {
                let mut renewed = Lease::of(&body, &login);
                renewed.id = lease.id;
                renewed.whole = lease.whole;
                // What is given for less than before is near the end that no renewal moves.
                renewed.last = Duration::from_secs(body.lease_duration) < lease.whole / 2;
                self.adopt(known, renewed);
                Ok(reading)
            }
            Err(failure @ (Failure::Away { .. } | Failure::Failed(_) | Failure::Malformed(_))) => {
                Err(failure.into_error(&self.name()))
            }
            Err(Failure::Denied(why) | Failure::Refused(why) | Failure::Missing { why, .. }) => {
                tracing::info!(place = %self.name(), %why, "a lease is not renewed any more");
                self.read_anew(known).await
            }
        }
    }

    async fn read_anew(&self, known: &mut Known) -> Result<Arc<Reading>, FetchError> {
        let (login, fields, lease) = match &self.at {
            VaultPlace::Kv1 { mount, path } => {
                let path = format!("{}/{}", mount.escaped(), path.escaped());
                let (login, body) = self.get::<Fields>(path).await?;
                (login, body.data, None)
            }
            VaultPlace::Kv2 {
                mount,
                path,
                version,
            } => {
                let mut path = format!("{}/data/{}", mount.escaped(), path.escaped());
                if let Some(version) = version {
                    path.push_str(&format!("?version={version}"));
                }
                let (login, body) = self.get::<Versioned>(path).await?;
                let data = body.data.and_then(|versioned| versioned.data);
                (login, data, None)
            }
            VaultPlace::Engine { path } => {
                let (login, body) = self.get::<Fields>(path.escaped()).await?;
                let lease = Lease::of(&body, &login);
                let lease =
                    Some(lease).filter(|lease| !lease.id.is_empty() && !lease.whole.is_zero());
                (login, body.data, lease)
            }
        };
        drop(login);
        let fields = fields.ok_or_else(|| {
            let why = "its answer has no `data`; is it another version of the KV engine?";
            FetchError::Malformed(format!("{}: {why}", self.name()))
        })?;
        known.backoff.reset();
        match lease {
            Some(lease) => self.adopt(known, lease),
            None => known.lease = None,
        }
        Ok(Arc::new(Reading { fields }))
    }

    /// What there is, by a login that was alive when it said no.
    async fn get<D: DeserializeOwned>(
        &self,
        path: String,
    ) -> Result<(Arc<Login>, Body<D>), FetchError> {
        let session = &self.desk.session;
        let mut login = session.login().await?;
        let mut again = true;
        loop {
            let asked = Instant::now();
            let call = Call::get(path.clone(), login.token());
            let failure = match session.ask(&login, &call).await {
                Ok(body) => return Ok((login, body)),
                Err(failure) => failure,
            };
            if let (Failure::Denied(_), true) = (&failure, again)
                && let Verdict::Token(fresh) = session.judge(&login, asked).await?
            {
                login = fresh;
                again = false;
                continue;
            }
            return Err(self.explained(failure));
        }
    }

    /// A version of KV 2 that was deleted is told by what comes with the 404.
    fn explained(&self, failure: Failure) -> FetchError {
        if let (VaultPlace::Kv2 { .. }, Failure::Missing { body, .. }) = (&self.at, &failure) {
            let versioned = parse::<Versioned>(body).ok().and_then(|body| body.data);
            if let Some(facts) = versioned.and_then(|versioned| versioned.metadata) {
                let how = match facts.destroyed {
                    true => "destroyed",
                    false => "deleted",
                };
                let why = format!("version {} is {how}", facts.version);
                return FetchError::Missing(format!("{}: {why}", self.name()));
            }
        }
        failure.into_error(&self.name())
    }

    /// From now on this lease is the one; the one before ends by itself, and is not in the way of who still uses it.
    fn adopt(&self, known: &mut Known, lease: Lease) {
        self.desk.leases.enter(&lease.id, lease.epoch, lease.until);
        known.next = lease.next();
        known.lease = Some(lease);
    }

    fn name(&self) -> String {
        format!("`{}` in Vault", self.at)
    }

    /// One value of a reading.
    pub(super) fn value(&self, reading: &Reading, key: &str) -> Result<Secret, FetchError> {
        let place = self.name();
        match reading.fields.get(key) {
            Some(Field::Text(value)) if value.is_empty() => {
                Err(FetchError::Malformed(format!("{place}: `{key}` is empty")))
            }
            Some(Field::Text(value)) if value.len() as u64 > crate::file::LIMIT => Err(
                FetchError::Malformed(format!("{place}: `{key}` is larger than 1 MiB")),
            ),
            Some(Field::Text(value)) => Ok(value.clone()),
            Some(Field::Other) => Err(FetchError::Malformed(format!(
                "{place}: `{key}` is neither text nor a whole number nor true or false"
            ))),
            None => Err(FetchError::Missing(format!("{place} has no `{key}`"))),
        }
    }

    /// The id of the lease that was held, for who lets the place go.
    pub(super) fn into_lease(self) -> Option<String> {
        self.known.into_inner().lease.map(|lease| lease.id)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Place").field(&self.at).finish()
    }
}

impl Lease {
    fn of<D>(body: &Body<D>, login: &Login) -> Self {
        let whole = Duration::from_secs(body.lease_duration);
        let now = Instant::now();
        let far = Duration::from_secs(365 * 24 * 60 * 60);
        let until = now.checked_add(whole).unwrap_or(now + far);
        Self {
            id: body.lease_id.clone(),
            epoch: login.epoch,
            renewable: body.renewable,
            whole,
            // It ends with the token, whatever was said.
            until: login.until().map_or(until, |token| token.min(until)),
            last: false,
        }
    }

    /// Between half and two thirds of what is left.
    fn next(&self) -> Instant {
        let now = Instant::now();
        let left = self.until.saturating_duration_since(now);
        now + left.mul_f64(0.5 + random::unit() / 6.0).max(SHORTEST_WAIT)
    }
}
