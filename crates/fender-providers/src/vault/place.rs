//! One place in a Vault, read once for all credentials that name it: user name and password are of one answer, of one lease.
//!
//! A lease is renewed at a jittered part of what is left of it, and read anew when no renewal moves its end any more, or
//! when the token has changed that it ends with. While it is valid, so is what was leased, even if nobody can be asked.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fender_config::snapshot::VaultPlace;
use fender_identity::Secret;
use fender_runtime::random;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::json;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use super::Desk;
use super::session::Verdict;
use super::token::Login;
use super::wire::{Body, Call, Failure, Versioned, parse};
use crate::FetchError;
use crate::fields::Fields;
use crate::schedule::{Answer, Known, Schedule};

/// No lease is looked after more often.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);

pub(super) struct Place {
    desk: Arc<Desk>,
    at: VaultPlace,
    schedule: Schedule,
    state: Mutex<State>,
    /// The login whose end is the end of what was read.
    leased: watch::Sender<Option<u64>>,
}

#[derive(Debug)]
struct State {
    known: Known<Fields>,
    lease: Option<Lease>,
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

impl Place {
    pub(super) fn new(desk: Arc<Desk>, at: VaultPlace) -> Self {
        Self {
            desk,
            at,
            schedule: Schedule::new(),
            state: Mutex::new(State {
                known: Known::new(),
                lease: None,
            }),
            leased: watch::Sender::new(None),
        }
    }

    /// When it is asked.
    pub(super) fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Whether what was read last came with a lease.
    pub(super) fn is_leased(&self) -> bool {
        self.leased.borrow().is_some()
    }

    /// What is there, and the number of the answer. Asks only if it is time, or if what was leased has ended with its login.
    pub(super) async fn read(&self) -> (u64, Answer<Fields>) {
        let mut state = self.state.lock().await;
        let epoch = self.epoch();
        let outlived = state.lease.as_ref().is_some_and(|it| it.epoch != epoch);
        if let Some(standing) = state.known.standing().filter(|_| !outlived) {
            return standing;
        }
        let began = Instant::now();
        let answer = self.ask(&mut state).await;
        // A lease says itself when it is looked after.
        if answer.is_err() || state.lease.is_none() {
            let retry_at = || self.desk.session.retry_at();
            state.known.next = self.schedule.after(&mut state.known, &answer, retry_at);
        }
        let epoch = self.epoch();
        if let Some(lease) = state.lease.as_mut().filter(|lease| lease.epoch != epoch) {
            // It could not be read anew yet. That is done when it is time again, and no renewal instead.
            lease.epoch = epoch;
            lease.last = true;
        }
        let told = state.known.answered(began, answer, Fields::equals);
        self.schedule.tell(&state.known);
        let leased = state.lease.as_ref().map(|lease| lease.epoch);
        self.leased.send_replace(leased);
        (told.number, told.answer)
    }

    /// Resolves when there is news for who has seen answer `seen`, when it is time to ask, or when what was leased has ended.
    pub(super) async fn due(&self, seen: u64) {
        tokio::select! {
            () = self.schedule.due(seen) => {}
            () = self.outlived() => {}
        }
    }

    async fn outlived(&self) {
        let mut leased = self.leased.subscribe();
        let mut upkeep = self.desk.session.upkeep();
        loop {
            let epoch = upkeep.borrow_and_update().epoch;
            if leased.borrow_and_update().is_some_and(|of| of != epoch) {
                return;
            }
            tokio::select! {
                Ok(()) = leased.changed() => {}
                Ok(()) = upkeep.changed() => {}
                else => return,
            }
        }
    }

    /// Of the login in use.
    fn epoch(&self) -> u64 {
        self.desk.session.upkeep().borrow().epoch
    }

    async fn ask(&self, state: &mut State) -> Answer<Fields> {
        let lives = |lease: &Lease| Instant::now() < lease.until;
        let lives = state.lease.as_ref().is_some_and(lives);
        let kept = state.known.reading().filter(|_| lives).cloned();
        let asked = match kept.clone() {
            Some(reading) => self.prolong(state, reading).await,
            None => self.read_anew(state).await,
        };
        match (asked, kept) {
            // It is valid to its end, whether somebody can be asked or not.
            (Err(FetchError::Outage(why)), Some(reading)) => {
                tracing::warn!(%why, "a lease was not renewed yet");
                let retry = Instant::now() + state.known.backoff.next();
                let ends = state.lease.as_ref().map_or(retry, |lease| lease.until);
                state.known.next = retry.min(ends);
                Ok(reading)
            }
            (Err(FetchError::Outage(why)), None) if state.lease.is_some() => Err(
                FetchError::Outage(format!("{why}; and the lease of what was there has ended")),
            ),
            (asked, _) => asked,
        }
    }

    /// Renews a lease, if that is still worth it.
    async fn prolong(&self, state: &mut State, reading: Arc<Fields>) -> Answer<Fields> {
        let login = self.desk.session.login().await?;
        let Some(lease) = state.lease.clone() else {
            return self.read_anew(state).await;
        };
        if !lease.renewable || lease.last || lease.epoch != login.epoch {
            return self.read_anew(state).await;
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
                self.adopt(state, renewed);
                Ok(reading)
            }
            Err(failure @ (Failure::Away { .. } | Failure::Failed(_) | Failure::Malformed(_))) => {
                Err(failure.into_error(&self.name()))
            }
            Err(Failure::Denied(why) | Failure::Refused(why) | Failure::Missing { why, .. }) => {
                tracing::info!(place = %self.name(), %why, "a lease is not renewed any more");
                self.read_anew(state).await
            }
        }
    }

    async fn read_anew(&self, state: &mut State) -> Answer<Fields> {
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
        state.known.backoff.reset();
        match lease {
            Some(lease) => self.adopt(state, lease),
            None => state.lease = None,
        }
        Ok(Arc::new(fields))
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
    fn adopt(&self, state: &mut State, lease: Lease) {
        self.desk.leases.enter(&lease.id, lease.epoch, lease.until);
        state.known.next = lease.next();
        state.lease = Some(lease);
    }

    fn name(&self) -> String {
        format!("`{}` in Vault", self.at)
    }

    /// One value of a reading, or all of it as one JSON object.
    pub(super) fn value(&self, reading: &Fields, key: Option<&str>) -> Result<Secret, FetchError> {
        match key {
            Some(key) => reading.value(key, &self.name()),
            None => reading.whole(&self.name()),
        }
    }

    /// The id of the lease that was held, for who lets the place go.
    pub(super) fn into_lease(self) -> Option<String> {
        self.state.into_inner().lease.map(|lease| lease.id)
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
