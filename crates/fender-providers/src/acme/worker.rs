//! One certificate's task: ask, keep, publish, wait, and again.

use std::sync::Arc;
use std::time::Duration;

use fender_config::snapshot::{Acme, AcmeChallenge, PortCertificate};
use fender_identity::Validity;
use fender_identity::csr::NewKey;
use fender_identity::tls::{Issued, NamedCertificate, PemPair};
use fender_runtime::backoff::spread;
use fender_runtime::clock::{SharedClock, UnixTime, sleep_until};
use fender_runtime::deadline::Deadline;
use instant_acme::{Account, CertificateIdentifier, Order};
use tokio::sync::watch;

use super::account::Accounts;
use super::attempts::{Attempts, Failed, Failure, Suggested};
use super::https::Heard;
use super::order::{Given, find, finish, place};
use super::renewal::{self, LOOK_AT_LEAST, LOOK_EVERY};
use super::store::{Pending, Store};
use super::{AcmeError, Answers, Settings, Standings, clean};
use crate::http::Wish;

/// How long an attempt may take, from the directory to the certificate. An order that is not finished by then is taken up
/// again by the next.
const ATTEMPT: Duration = Duration::from_secs(5 * 60);
/// Between a certificate and the next order, whatever clocks and authorities say: a third of its lifetime, and at most this.
/// Who issues what is due at once, or suggests it, must not be asked on and on.
const APART: Duration = Duration::from_secs(24 * 60 * 60);
/// Within this much sidecars that start together begin to ask.
const START: Duration = Duration::from_secs(1);
/// How long a port may take to be opened before it is said that it is not.
const LISTEN: Duration = Duration::from_secs(3);
/// Before an authority is asked again for a suggestion that was not heard to its end.
const LOOK_AGAIN: Duration = Duration::from_secs(10 * 60);

pub(super) struct Worker {
    wanted: PortCertificate,
    acme: Acme,
    shared: Shared,
    answers: Arc<dyn Answers>,
    given: Given,
    clock: SharedClock,
    owned: watch::Receiver<bool>,
    held: Option<Held>,
    /// What was got for other names, while there is none for these.
    stand_in: Option<Arc<PemPair>>,
    problem: Option<String>,
}

/// What the tasks of all certificates have in common.
pub(super) struct Shared {
    pub(super) store: Arc<Store>,
    pub(super) accounts: Arc<Accounts>,
    pub(super) attempts: Arc<Attempts>,
    pub(super) publish: watch::Sender<Arc<Standings>>,
}

/// What is there, and fits.
#[derive(Clone)]
struct Held {
    pair: Arc<PemPair>,
    certificate: NamedCertificate,
}

impl Held {
    fn new(pair: PemPair, wanted: &PortCertificate) -> Result<Self, AcmeError> {
        let certificate = NamedCertificate::from_pem(&pair, &wanted.names)?;
        let pair = Arc::new(pair);
        Ok(Self { pair, certificate })
    }

    fn validity(&self) -> Validity {
        self.certificate.validity()
    }

    /// As its authority calls it, if it has what that takes.
    fn identifier(&self) -> Option<CertificateIdentifier<'static>> {
        let leaf = self.certificate.leaf()?;
        let identifier = CertificateIdentifier::try_from(leaf).ok()?;
        Some(identifier.into_owned())
    }
}

impl Worker {
    /// With what was kept, if it fits.
    pub(super) fn new(
        wanted: PortCertificate,
        acme: Acme,
        shared: Shared,
        settings: &Settings,
    ) -> Self {
        let store = &shared.store;
        let kept = store.pair(&wanted);
        let kept = kept.and_then(|pair| pair.map(|pair| Held::new(pair, &wanted)).transpose());
        let (held, problem) = match kept {
            Ok(held) => (held, None),
            Err(error) => (None, Some(error.to_string())),
        };
        let stand_in = match &held {
            None => store.stand_in(&wanted, settings.clock.now()).map(Arc::new),
            Some(_) => None,
        };
        Self {
            wanted,
            acme,
            shared,
            answers: Arc::clone(&settings.answers),
            given: Given::new(Arc::clone(&settings.answers)),
            clock: Arc::clone(&settings.clock),
            owned: settings.owned.clone(),
            held,
            stand_in,
            problem,
        }
    }

    pub(super) fn standing(&self) -> Issued {
        let waiting = || format!("none yet from `{}`", self.acme.directory);
        let problem = self.problem.clone();
        match &self.held {
            Some(held) => Issued {
                pair: Some(Arc::clone(&held.pair)),
                problem,
                ..Issued::default()
            },
            None => Issued {
                pair: self.stand_in.clone(),
                stands_in: self.stand_in.is_some(),
                problem: problem.or_else(|| Some(waiting())),
                ..Issued::default()
            },
        }
    }

    pub(super) async fn run(mut self) {
        // One who hands on a state directory may still be writing into it. What it had begun is gone on with at once.
        let mut goes_on = !*self.owned.borrow();
        if goes_on {
            if self.owned.wait_for(|owned| *owned).await.is_err() {
                return;
            }
            self.read_again();
        }
        tokio::time::sleep(spread(START)).await;
        loop {
            if let Some(held) = self.held.clone() {
                self.wait(&held).await;
            }
            self.pause(std::mem::take(&mut goes_on)).await;
            // One that is about to end may just have finished the order that this one would take up.
            if self.read_again() {
                continue;
            }
            self.listen().await;
            let heard = Heard::default();
            let attempt = Deadline::after(ATTEMPT).bound(self.attempt(&heard)).await;
            match attempt.unwrap_or(Err(AcmeError::TimedOut)) {
                Ok((held, kept)) => {
                    let apart = (renewal::lifetime(held.validity()) / 3).min(APART);
                    self.take(held, kept);
                    tokio::time::sleep(apart).await;
                }
                Err(error) => {
                    let next = self.failed(&error, heard.last());
                    sleep_until(&*self.clock, next).await;
                }
            }
        }
    }

    /// Until it is to be renewed.
    async fn wait(&self, held: &Held) {
        let validity = held.validity();
        let (usual, latest) = (renewal::usual(validity), renewal::latest(validity));
        loop {
            let now = self.clock.now();
            if latest <= now {
                return;
            }
            let suggested = self.suggestion(held, now).await;
            let at = suggested.at.map(after_1970);
            let due = at.map_or(usual, |at| at.min(latest));
            if due <= now {
                return;
            }
            sleep_until(&*self.clock, due.min(after_1970(suggested.again))).await;
        }
    }

    /// What the authority suggests; asked for again when it is time, whoever asked before.
    async fn suggestion(&self, held: &Held, now: UnixTime) -> Suggested {
        let Shared {
            store,
            attempts,
            accounts,
            ..
        } = &self.shared;
        let known = attempts.suggestion(store, &self.wanted);
        let seconds = now.as_secs();
        let from_now = |wait: Duration| seconds.saturating_add(wait.as_secs());
        // One further ahead is of a clock that was wrong.
        let is_fresh =
            |known: &Suggested| (seconds + 1..=from_now(LOOK_AT_LEAST)).contains(&known.again);
        if let Some(fresh) = known.filter(is_fresh) {
            return fresh;
        }
        let unheard = Suggested {
            at: known.and_then(|known| known.at),
            again: from_now(LOOK_AGAIN),
        };
        // Where that cannot be written down nobody is asked: each that starts would.
        if attempts.suggested(store, &self.wanted, unheard).is_err() {
            return unheard;
        }
        let ask = async {
            let heard = Heard::default();
            let account = accounts.with(&self.acme, store, &self.clock, &heard).await;
            renewal::suggested(&account.ok()?, &held.identifier()?).await
        };
        let suggestion = Deadline::after(ATTEMPT).bound(ask).await.ok().flatten();
        let suggested = match suggestion {
            Some(suggestion) => Suggested {
                at: Some(suggestion.at.as_secs()),
                again: from_now(suggestion.again),
            },
            None => Suggested {
                at: None,
                again: from_now(LOOK_EVERY),
            },
        };
        // If not, it is asked for again a little earlier.
        let _ = attempts.suggested(store, &self.wanted, suggested);
        suggested
    }

    /// As long as whoever tried before would have waited.
    async fn pause(&mut self, goes_on: bool) {
        let Shared {
            store, attempts, ..
        } = &self.shared;
        let Some(pause) = attempts.pause(store, &self.wanted, self.clock.now()) else {
            return;
        };
        if pause.is_open && goes_on {
            return;
        }
        if self.problem.is_none() && pause.problem.is_some() {
            self.problem = pause.problem;
            self.tell();
        }
        sleep_until(&*self.clock, pause.until).await;
    }

    /// Until an authority would find somebody where it asks. Nobody is asked before: it would count against us.
    async fn listen(&mut self) {
        let challenge = self.acme.challenge;
        let AcmeChallenge::Http { listen } = challenge else {
            return;
        };
        let ready = self.answers.ready(challenge);
        if Deadline::after(LISTEN).bound(ready).await.is_err() {
            let problem = self.described(&AcmeError::Deaf(listen));
            tracing::error!(names = ?self.wanted.names, problem, "a certificate waits");
            self.problem = Some(problem);
            self.tell();
            self.answers.ready(challenge).await;
        }
    }

    /// A new certificate, and whether it could be kept.
    async fn attempt(&mut self, heard: &Heard) -> Result<(Held, Result<(), AcmeError>), AcmeError> {
        let now = self.clock.now();
        // Before anything is asked for that could then not be kept.
        self.shared.store.can_be_written()?;
        self.shared
            .attempts
            .begin(&self.shared.store, &self.wanted, now)?;
        let ordered = self.order(heard).await;
        let Shared {
            store, attempts, ..
        } = &self.shared;
        let held = match ordered {
            Ok(held) => held,
            Err(error) => {
                if !error.leaves_order() {
                    self.given.withdraw();
                    store.forget_order(&self.wanted)?;
                }
                if matches!(error, AcmeError::Forgotten) {
                    store.forget_account(&self.acme)?;
                }
                return Err(error);
            }
        };
        // The order stays until what came of it is kept.
        let kept = store.keep_pair(&self.wanted, &held.pair);
        let kept = kept.and_then(|()| store.forget_order(&self.wanted));
        let kept = kept.and_then(|()| attempts.succeeded(store, &self.wanted));
        Ok((held, kept))
    }

    async fn order(&mut self, heard: &Heard) -> Result<Held, AcmeError> {
        let Shared {
            store, accounts, ..
        } = &self.shared;
        let account = accounts.with(&self.acme, store, &self.clock, heard);
        let account = account.await?;
        let (mut order, key, is_new) = match self.pending(&account).await? {
            Some((order, key)) => (order, key, false),
            None => {
                let (order, key) = self.place(&account).await?;
                (order, key, true)
            }
        };
        let (wanted, challenge) = (&self.wanted, self.acme.challenge);
        let finished = finish(&mut order, &key, wanted, challenge, &mut self.given);
        let held = Held::new(finished.await?, &self.wanted)?;
        if !is_new && renewal::latest(held.validity()) <= self.clock.now() {
            self.shared.store.forget_order(&self.wanted)?;
            let why = "what it had issued for an order of long ago has ended";
            return Err(AcmeError::Outage(why.to_owned()));
        }
        Ok(held)
    }

    /// The order that an attempt before this one has left, if something may still come of it.
    async fn pending(&self, account: &Account) -> Result<Option<(Order, NewKey)>, AcmeError> {
        let store = &self.shared.store;
        let Some(pending) = store.order(&self.wanted) else {
            return Ok(None);
        };
        let held = self.held.as_ref();
        // What came of it was got, and could not be kept.
        let is_over = held.is_some_and(|held| held.pair.key.ct_eq(&pending.key.to_pem()));
        if !is_over
            && pending.account == account.id()
            && let Some(order) = find(account, &pending.order).await?
        {
            tracing::info!(
                names = ?self.wanted.names,
                order = pending.order,
                "taking up an order that was not finished"
            );
            return Ok(Some((order, pending.key)));
        }
        store.forget_order(&self.wanted)?;
        Ok(None)
    }

    /// Kept with its key, before anything is proven for it.
    async fn place(&self, account: &Account) -> Result<(Order, NewKey), AcmeError> {
        let Shared {
            store, attempts, ..
        } = &self.shared;
        attempts.may_order(store, &self.wanted, self.clock.now())?;
        let key = NewKey::generate().map_err(|error| AcmeError::Ours(error.to_string()))?;
        let before = self.held.as_ref().and_then(Held::identifier);
        let order = match place(account, &self.wanted, before).await {
            Err(AcmeError::NotReplaceable) => place(account, &self.wanted, None).await?,
            placed => placed?,
        };
        attempts.ordered(store, &self.wanted, self.clock.now())?;
        let pending = Pending {
            account: account.id().to_owned(),
            order: order.url().to_owned(),
            key,
        };
        store.keep_order(&self.wanted, &pending)?;
        Ok((order, pending.key))
    }

    /// What whoever had the state directory before may have got meanwhile. Whether it is another one than is held.
    fn read_again(&mut self) -> bool {
        let Ok(Some(pair)) = self.shared.store.pair(&self.wanted) else {
            return false;
        };
        let is_held = |held: &Held| held.pair.equals(&pair);
        if self.held.as_ref().is_some_and(is_held) {
            return false;
        }
        match Held::new(pair, &self.wanted) {
            // One that could not be kept is newer than what is there.
            Ok(found) if !self.holds_newer_than(&found) => {
                self.hold(found);
                self.problem = None;
                self.tell();
                true
            }
            Ok(_) | Err(_) => false,
        }
    }

    fn holds_newer_than(&self, found: &Held) -> bool {
        let held = self.held.as_ref();
        held.is_some_and(|held| held.validity().not_after >= found.validity().not_after)
    }

    fn hold(&mut self, held: Held) {
        self.held = Some(held);
        self.stand_in = None;
    }

    /// One that could not be kept is served all the same, for as long as this process lives.
    fn take(&mut self, held: Held, kept: Result<(), AcmeError>) {
        tracing::info!(
            directory = %self.acme.directory,
            names = ?self.wanted.names,
            not_after = held.validity().not_after.as_secs(),
            "an authority has issued a certificate"
        );
        self.hold(held);
        self.problem = kept
            .err()
            .map(|error| format!("issued, and lost at the next start: {error}"));
        if let Some(problem) = &self.problem {
            tracing::error!(names = ?self.wanted.names, problem, "a certificate cannot be kept");
        }
        self.tell();
    }

    /// Says that the task before this one died.
    pub(super) fn died(&mut self, wait: Duration) {
        let why = "its answer broke the task that asks it".to_owned();
        let error = AcmeError::Outage(why);
        self.complain(self.described(&error), wait.as_secs());
    }

    /// When to try again.
    fn failed(&mut self, error: &AcmeError, wish: Option<Wish>) -> UnixTime {
        let Shared {
            store, attempts, ..
        } = &self.shared;
        let (now, problem) = (self.clock.now(), self.described(error));
        let failed = Failed {
            failure: match error.is_outage() {
                true => Failure::Outage,
                false => Failure::Refusal,
            },
            wish,
            not_before: error.not_before(),
            problem: &problem,
        };
        let next = attempts.failed(store, &self.wanted, now, failed);
        self.complain(problem, next.as_secs().saturating_sub(now.as_secs()));
        next
    }

    fn described(&self, error: &AcmeError) -> String {
        format!("`{}`: {}", self.acme.directory, clean(&error.to_string()))
    }

    fn complain(&mut self, problem: String, again: u64) {
        let names = &self.wanted.names;
        let ends = self
            .held
            .as_ref()
            .map(|held| renewal::latest(held.validity()));
        match ends.is_some_and(|end| self.clock.now() < end) {
            true => tracing::warn!(
                ?names,
                problem,
                again,
                "no new certificate, keeping the one before"
            ),
            false => tracing::error!(?names, problem, again, "no certificate from an authority"),
        }
        self.problem = Some(problem);
        self.tell();
    }

    fn tell(&self) {
        let standing = self.standing();
        self.shared.publish.send_if_modified(|standings| {
            // Not wanted any more: the task is about to end.
            let Some(held) = Arc::make_mut(standings).get_mut(&self.wanted) else {
                return false;
            };
            *held = standing;
            true
        });
    }
}

fn after_1970(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests;
