//! The login at one Vault that all its secrets share: made once however many wait for it, renewed at half of its time, made
//! anew when it has ended, given back at the end.
//!
//! A login that was refused is not tried again by each of them: the answer stands for a doubling, jittered while. Who was logged
//! in before is not turned away by one refusal: only when it lasts ([`PATIENCE`]) it is a word about the secrets. A 403 is
//! not believed before the token is known to be alive; only then it is about the secret.
//!
//! Who logs in by the workload's certificate shows the one of the moment, and logs in anew when there is another.

use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use fender_config::StoreUrl;
use fender_config::snapshot::{VaultCertificate, VaultLogin, VaultStore};
use fender_identity::Svid;
use fender_runtime::backoff::Backoff;
use fender_runtime::clock::SharedClock;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::json;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use super::dial::{Dial, Pem, unusable};
use super::login::{self, Begun};
use super::token::{Life, Login};
use super::wire::{Auth, Body, Call, Failure, TokenFacts, parse};
use crate::FetchError;
use crate::budget::Budget;
use crate::host::{ReadFiles, Workload};

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(5 * 60);
/// The same, where nobody has refused it.
const LONGEST_OUTAGE: Duration = Duration::from_secs(30);
/// A token as young as this that is not known is not made anew once more.
const YOUNG: Duration = Duration::from_secs(10);
/// How long a login is refused before that counts, where there was one: whoever changes roles, policies or mounts refuses
/// for a moment what was right and will be.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// How many tokens of before are remembered, to be given back.
const REMEMBERED: usize = 4;

/// What a 403 was about.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The secret: the token is alive.
    Secret,
    /// The token, and this is a new one.
    Token(Arc<Login>),
}

#[derive(Debug)]
pub(super) struct Session {
    store: VaultStore,
    dial: Arc<dyn Dial>,
    files: Arc<dyn ReadFiles>,
    workload: Option<Arc<dyn Workload>>,
    clock: SharedClock,
    pub(super) budget: Budget,
    state: Mutex<State>,
    /// The epoch of the login in use, and when it is to be looked after.
    upkeep: watch::Sender<Upkeep>,
    /// When a login may be tried again that failed.
    retry: StdMutex<Option<Instant>>,
}

#[derive(Debug)]
struct State {
    current: Option<Arc<Login>>,
    failed: Option<(FetchError, Instant)>,
    /// Since when a login is refused.
    refused: Option<Instant>,
    backoff: Backoff,
    epoch: u64,
    /// Ours, and perhaps alive.
    before: Vec<Arc<Login>>,
}

/// What whoever looks after a login follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Upkeep {
    pub(super) epoch: u64,
    pub(super) next: Option<Instant>,
}

impl Session {
    pub(super) fn new(
        store: VaultStore,
        dial: Arc<dyn Dial>,
        files: Arc<dyn ReadFiles>,
        workload: Option<Arc<dyn Workload>>,
        clock: SharedClock,
    ) -> Self {
        Self {
            store,
            dial,
            files,
            workload,
            clock,
            budget: Budget::new(),
            state: Mutex::new(State {
                current: None,
                failed: None,
                refused: None,
                backoff: Backoff::new(FIRST_RETRY, LONGEST_RETRY),
                epoch: 0,
                before: Vec::new(),
            }),
            upkeep: watch::Sender::new(Upkeep::default()),
            retry: StdMutex::new(None),
        }
    }

    pub(super) fn upkeep(&self) -> watch::Receiver<Upkeep> {
        self.upkeep.subscribe()
    }

    /// When it is worth trying again after a failure that was everybody's.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        let login = *self.retry.lock().unwrap_or_else(PoisonError::into_inner);
        let gate = self.budget.closed().map(|closed| closed.until);
        login.max(gate)
    }

    /// The login to ask with.
    pub(super) async fn login(&self) -> Result<Arc<Login>, FetchError> {
        let mut state = self.state.lock().await;
        if let Some(current) = &state.current {
            if !current.is_over() {
                return Ok(Arc::clone(current));
            }
            state.current = None;
        }
        self.anew(&mut state).await
    }

    /// Whether a 403 to a question that was asked at `asked` was about the token.
    pub(super) async fn judge(
        &self,
        login: &Arc<Login>,
        asked: Instant,
    ) -> Result<Verdict, FetchError> {
        let mut state = self.state.lock().await;
        match &state.current {
            Some(current) if current.epoch != login.epoch => {
                return Ok(Verdict::Token(Arc::clone(current)));
            }
            Some(_) if login.life().verified > asked => return Ok(Verdict::Secret),
            Some(_) | None => {}
        }
        let call = Call::get("auth/token/lookup-self".to_owned(), &login.token);
        match self.ask::<IgnoredAny>(login, &call).await {
            Ok(_) => {
                login.life().verified = Instant::now();
                return Ok(Verdict::Secret);
            }
            Err(Failure::Denied(_)) if login.made.elapsed() < YOUNG => return Ok(Verdict::Secret),
            Err(Failure::Denied(_)) => {}
            Err(failure) => return Err(failure.into_error("login to Vault")),
        }
        // Nothing is ended that is dead.
        state.current = None;
        let fresh = self.anew(&mut state).await?;
        Ok(match fresh.token.ct_eq(&login.token) {
            // Nobody has put another one into the file.
            true => Verdict::Secret,
            false => Verdict::Token(fresh),
        })
    }

    /// Does what is due about the token: renews it, or makes another while it lives.
    pub(super) async fn look_after(&self) {
        let mut state = self.state.lock().await;
        let Some(login) = state.current.clone() else {
            self.announce(&state);
            return;
        };
        let life = *login.life();
        let due = life.next.is_some_and(|next| Instant::now() >= next);
        if !due {
            return;
        }
        if life.renewable && !life.last {
            match self.renew(&login).await {
                Ok(()) => {
                    state.backoff.reset();
                    return self.announce(&state);
                }
                Err(Failure::Away { why, .. } | Failure::Failed(why) | Failure::Malformed(why)) => {
                    tracing::warn!(vault = %self.store.address, %why, "the token was not renewed yet");
                    login.life().next = Some(self.again(&mut state));
                    return self.announce(&state);
                }
                Err(
                    Failure::Denied(why) | Failure::Refused(why) | Failure::Missing { why, .. },
                ) => {
                    tracing::info!(vault = %self.store.address, %why, "the token is not renewed any more");
                }
            }
        }
        self.replace(&mut state, &login).await;
        self.announce(&state);
    }

    /// The certificate that logs in, if that is the workload's own.
    pub(super) fn svid(&self) -> Option<watch::Receiver<Arc<Svid>>> {
        let own = matches!(
            &self.store.login,
            VaultLogin::Certificate { shown, .. } if *shown == VaultCertificate::Svid
        );
        self.workload.as_ref().filter(|_| own).map(|own| own.svid())
    }

    /// Logs in anew where the one of before showed another certificate: it may be used up before the token is, and nobody renews a
    /// token who shows another one than it was given for.
    pub(super) async fn show_another(&self) {
        let mut state = self.state.lock().await;
        let serial = self.svid().map(|svid| svid.borrow().serial().clone());
        let Some(login) = state.current.clone() else {
            return;
        };
        if login.serial != serial {
            login.life().last = true;
            self.replace(&mut state, &login).await;
            self.announce(&state);
        }
    }

    /// Another login for one that goes on living until it is over, and what was leased with it.
    async fn replace(&self, state: &mut State, login: &Arc<Login>) {
        match self.log_in(state.epoch + 1).await {
            Ok(fresh) if fresh.token.ct_eq(&login.token) => {
                // The same file, the same token: whoever keeps it fresh is not there yet.
                login.life().next = Some(self.again(state));
            }
            Ok(fresh) => {
                state.backoff.reset();
                state.epoch = fresh.epoch;
                if login.is_ours {
                    state.before.retain(|before| !before.is_over());
                    if state.before.len() == REMEMBERED {
                        state.before.remove(0);
                    }
                    state.before.push(Arc::clone(login));
                }
                state.current = Some(Arc::new(fresh));
            }
            Err(error) => {
                tracing::warn!(vault = %self.store.address, %error, "no new token yet");
                login.life().next = Some(self.again(state));
            }
        }
    }

    fn again(&self, state: &mut State) -> Instant {
        let retry = Instant::now() + state.backoff.next();
        retry.max(self.retry_at().unwrap_or(retry))
    }

    async fn renew(&self, login: &Login) -> Result<(), Failure> {
        let call = Call::post("auth/token/renew-self", &login.token, json!({}));
        let body: Body<IgnoredAny> = self.ask(login, &call).await?;
        let auth = body.auth.ok_or_else(|| {
            Failure::Malformed("its answer to a renewal has no `auth`".to_owned())
        })?;
        let mut life = login.life();
        let verified = life.verified;
        let whole = life.whole;
        *life = Life::new(auth.renewable, auth.lease_duration, verified);
        life.whole = whole;
        // What is given for less than before is near the end that no renewal moves.
        life.last = Duration::from_secs(auth.lease_duration) < whole / 2;
        Ok(())
    }

    /// A login, unless one has failed just now.
    async fn anew(&self, state: &mut State) -> Result<Arc<Login>, FetchError> {
        if let Some((error, until)) = &state.failed
            && Instant::now() < *until
        {
            return Err(error.clone());
        }
        let made = self.log_in(state.epoch + 1).await;
        let made = made.map_err(|error| patient(state, error));
        let failed = match &made {
            Ok(_) => {
                state.backoff.reset();
                state.refused = None;
                None
            }
            Err(error) => {
                let wait = state.backoff.next();
                let wait = match error.is_refusal() {
                    true => wait,
                    false => wait.min(LONGEST_OUTAGE),
                };
                Some((error.clone(), Instant::now() + wait))
            }
        };
        *self.retry.lock().unwrap_or_else(PoisonError::into_inner) =
            failed.as_ref().map(|(_, until)| *until);
        state.failed = failed;
        let login = Arc::new(made?);
        state.epoch = login.epoch;
        state.current = Some(Arc::clone(&login));
        self.announce(state);
        Ok(login)
    }

    async fn log_in(&self, epoch: u64) -> Result<Login, FetchError> {
        let place = "login to Vault";
        let svid = self.svid().map(|svid| Arc::clone(&svid.borrow()));
        let pem = Pem::read(&self.store, &*self.files, svid, &self.clock).await?;
        let serial = pem.svid().map(|svid| svid.serial().clone());
        let transport = self.dial.dial(&self.store, pem, &self.clock);
        let transport = transport.map_err(unusable)?;
        let workload = self.workload.as_deref();
        let begun = login::begin(&self.store.login, &*self.files, workload).await?;
        let (token, is_ours, life) = match begun {
            Begun::Token(token) => (token, false, Life::new(false, 0, Instant::now())),
            Begun::Ask(call) => {
                let answer: Result<Body<IgnoredAny>, _> = self.send(&*transport, &call).await;
                let body = answer.map_err(|failure| refused(failure).into_error(place))?;
                let auth = body.auth.ok_or_else(|| {
                    FetchError::Malformed(format!("{place}: its answer has no `auth`"))
                })?;
                let Auth {
                    client_token,
                    lease_duration,
                    renewable,
                } = auth;
                if client_token.0.is_empty() {
                    return Err(FetchError::Denied(format!(
                        "{place}: it gives no token for this login alone; does it ask for a second factor?"
                    )));
                }
                let life = Life::new(renewable, lease_duration, Instant::now());
                (client_token.0, true, life)
            }
        };
        let login = Login {
            epoch,
            transport,
            serial,
            token,
            is_ours,
            made: Instant::now(),
            life: StdMutex::new(life),
        };
        if !is_ours {
            self.inquire(&login).await?;
        }
        tracing::info!(vault = %self.store.address, "logged in");
        Ok(login)
    }

    /// How long a token lives that somebody else made. One that may not even ask that may still read secrets.
    async fn inquire(&self, login: &Login) -> Result<(), FetchError> {
        let call = Call::get("auth/token/lookup-self".to_owned(), &login.token);
        let answer: Result<Body<TokenFacts>, _> = self.ask(login, &call).await;
        match answer {
            Ok(body) => {
                if let Some(facts) = body.data {
                    let verified = Instant::now();
                    *login.life() = Life::new(facts.renewable, facts.ttl, verified);
                }
                Ok(())
            }
            Err(Failure::Denied(_)) => Ok(()),
            Err(failure) => Err(failure.into_error("login to Vault")),
        }
    }

    /// Asks with a login.
    pub(super) async fn ask<D: DeserializeOwned>(
        &self,
        login: &Login,
        call: &Call,
    ) -> Result<Body<D>, Failure> {
        self.send(&*login.transport, call).await
    }

    /// Takes a turn, asks, and says how it went to whoever waits for one.
    async fn send<D: DeserializeOwned>(
        &self,
        transport: &dyn super::wire::Transport,
        call: &Call,
    ) -> Result<Body<D>, Failure> {
        let turn = self.budget.turn().await.map_err(|closed| Failure::Away {
            why: closed.why,
            wish: None,
        })?;
        let proofs: Vec<_> = call.token.iter().chain(&call.proof).collect();
        let answered = transport.ask(call).await;
        let failure = match &answered {
            Ok(answer) => Failure::in_answer(answer, &proofs),
            Err(error) => Some(Failure::of(error.clone(), &proofs)),
        };
        match (&failure, &answered) {
            (Some(Failure::Away { why, wish }), _) => {
                let wish = wish.map(|wish| wish.within(self.clock.now().as_secs()));
                turn.turned_away(why.clone(), wish.map(Duration::from_secs));
            }
            (Some(Failure::Failed(why)), Err(_)) => turn.unanswered(why.clone()),
            _ => turn.answered(),
        }
        match (failure, answered) {
            (Some(failure), _) => Err(failure),
            (None, Ok(answer)) => parse(&answer.body),
            (None, Err(error)) => Err(Failure::of(error, &proofs)),
        }
    }

    fn announce(&self, state: &State) {
        let now = Upkeep {
            epoch: state.epoch,
            next: state.current.as_ref().and_then(|login| login.life().next),
        };
        self.upkeep
            .send_if_modified(|known| std::mem::replace(known, now) != now);
    }

    /// Gives back what we were given: every token of ours, and with it whatever was leased, but those that `keeps` names by
    /// their epochs.
    pub(super) async fn end(&self, keeps: impl Fn(u64) -> bool) {
        let mut state = self.state.lock().await;
        let mut logins = std::mem::take(&mut state.before);
        logins.extend(state.current.take());
        // By the newest way: a certificate of before may have expired.
        let Some(way) = logins.last().map(|login| Arc::clone(&login.transport)) else {
            return;
        };
        for login in logins {
            if !login.is_ours || login.is_over() || keeps(login.epoch) {
                continue;
            }
            let call = Call::post("auth/token/revoke-self", &login.token, json!({}));
            let ended: Result<Body<IgnoredAny>, _> = self.send(&*way, &call).await;
            match ended {
                Ok(_) => {
                    tracing::info!(vault = %self.store.address, "logged out");
                }
                Err(failure) => {
                    let error = failure.into_error("logout from Vault");
                    tracing::warn!(vault = %self.store.address, %error, "a token was not given back");
                }
            }
        }
    }

    /// Whether leases end with our logout.
    pub(super) fn ends_leases(&self) -> bool {
        !matches!(self.store.login, VaultLogin::Token { .. })
    }

    pub(super) fn address(&self) -> &StoreUrl {
        &self.store.address
    }
}

/// What a login's failure means: one that is refused is no word about the secrets while it may be a moment's.
fn patient(state: &mut State, error: FetchError) -> FetchError {
    let (FetchError::Denied(why) | FetchError::Missing(why)) = &error else {
        return error;
    };
    if state.epoch == 0 {
        return error;
    }
    let since = *state.refused.get_or_insert_with(Instant::now);
    match since.elapsed() < PATIENCE {
        true => FetchError::Outage(format!("{why}; it is tried again before that counts")),
        false => FetchError::Denied(why.clone()),
    }
}

/// Whatever Vault has against a login, it is not ours to ask again as it was.
fn refused(failure: Failure) -> Failure {
    match failure {
        Failure::Refused(why) | Failure::Missing { why, .. } => Failure::Denied(why),
        other @ (Failure::Away { .. }
        | Failure::Failed(_)
        | Failure::Denied(_)
        | Failure::Malformed(_)) => other,
    }
}
