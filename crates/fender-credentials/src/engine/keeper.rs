//! One credential's keeper: follows its document and its source, and keeps right what is delivered of it.

use std::time::Duration;

use fender_config::snapshot::{CredentialSource, CredentialSpec, Notification};
use fender_identity::Secret;
use fender_providers::{FetchError, Fetched, Generation, State};
use fender_runtime::backoff::Backoff;
use fender_runtime::drain::Drain;
use tokio::sync::watch;
use tokio::time::Instant;

use super::age::Age;
use super::files::{Files, Written};
use super::{Document, Holding, Ledger, OnExit, Placed, Plan, Settings, Wanted};
use crate::deliver::{Change, DeliveryError};
use crate::handover::Offer;

const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

pub(super) struct Keeper {
    documents: watch::Receiver<Document>,
    /// How often its document went, as far as is known here.
    gone: u64,
    settings: Settings,
    ledger: Ledger,
    drain: Drain,
    /// What is known of the secret; nothing when the feed ended or may not be followed.
    states: Option<watch::Receiver<State>>,
    /// Of the document that is followed.
    plan: Plan,
    spec: Option<CredentialSpec>,
    files: Files,
    /// None where nothing is handed over at all.
    offer: Option<Offer>,
    /// What every place of the plan holds.
    delivered: Option<Generation>,
    /// What was to be in them and is not.
    newer: Option<Generation>,
    age: Age,
    notify: Vec<Notification>,
    on_exit: OnExit,
    backoff: Backoff,
    retry: Option<Instant>,
}

impl Keeper {
    /// Keeps nothing yet; the document is read first thing.
    pub(super) fn new(
        mut documents: watch::Receiver<Document>,
        settings: Settings,
        ledger: Ledger,
        drain: Drain,
    ) -> Self {
        documents.mark_changed();
        let offer = settings.handovers.as_ref();
        let offer = offer.map(|all| all.offer(&ledger.name));
        Self {
            documents,
            gone: 0,
            settings,
            ledger,
            drain,
            states: None,
            plan: Plan::default(),
            spec: None,
            files: Files::default(),
            offer,
            delivered: None,
            newer: None,
            age: Age::of(Duration::ZERO),
            notify: Vec::new(),
            on_exit: OnExit::default(),
            backoff: Backoff::new(FIRST_RETRY, LONGEST_RETRY),
            retry: None,
        }
    }

    /// Takes over what was gathered and delivered at start.
    pub(super) fn holding(mut self, placed: Placed) -> Self {
        let Placed {
            gathered,
            plan,
            files,
            offer,
        } = placed;
        let generation = gathered.fetched.generation;
        let state = gathered.states.borrow().clone();
        self.delivered = Some(generation.clone());
        self.states = Some(gathered.states);
        self.files = files;
        self.offer = offer;
        self.age = Age::of(gathered.spec.max_stale);
        self.notify.clone_from(&gathered.spec.notify);
        self.told(&gathered.fetched.value, &generation);
        self.on_exit = gathered.spec.on_exit;
        self.spec = Some(gathered.spec);
        self.plan = plan;
        self.documents.mark_unchanged();
        match state {
            State::Stale { error, since, .. } => {
                self.age.not_newest_since(since);
                self.fail(error.to_string());
            }
            // The run begins with what has changed since.
            State::Pending | State::Current(_) | State::Withdrawn(_) => {
                self.ledger.enter(Holding::Delivered(generation), None);
            }
        }
        self
    }

    pub(super) async fn run(mut self) {
        let drain = self.drain.clone();
        loop {
            tokio::select! {
                biased;
                () = drain.stopping() => return self.end().await,
                Ok(()) = self.documents.changed() => self.adopt().await,
                known = changed(&mut self.states) => match known {
                    Ok(()) => self.settle().await,
                    Err(_) => self.states = None,
                },
                () = due(self.retry) => self.settle().await,
                () = due(self.age.due().filter(|_| self.delivered.is_some())) => {
                    self.age.say(&self.ledger.name);
                }
                () = due(self.files.due()) => {
                    self.files = std::mem::take(&mut self.files).tidy(Instant::now()).await;
                }
            }
        }
    }

    async fn end(self) {
        if let Some(offer) = self.offer {
            offer.leave();
        }
        let on_exit = *self.settings.on_exit.borrow();
        match (on_exit, self.on_exit) {
            // What a successor has is the successor's.
            (OnExit::Keep, _) => {}
            (OnExit::Wipe, OnExit::Wipe) => self.files.remove(&self.ledger.name).await,
            // Nobody will come for what was replaced.
            (OnExit::Wipe, OnExit::Keep) => {
                let late = Instant::now() + crate::deliver::set::GRACE;
                self.files.tidy(late).await;
            }
        }
    }

    /// Follows a changed document. What is delivered stays until the new value is.
    async fn adopt(&mut self) {
        let Document { wanted, gone } = self.documents.borrow_and_update().clone();
        let is_back = std::mem::replace(&mut self.gone, gone) != gone;
        let Some(wanted) = wanted else {
            self.settings.sources.unfollow(&self.ledger.name);
            if let Some(offer) = &self.offer {
                offer.close();
            }
            self.forget().await;
            if let Some(hider) = &self.settings.hider {
                hider.gone(&self.ledger.name).await;
            }
            self.settings.notifier.dropped(&self.ledger.name);
            if let Some(all) = &self.settings.certificates {
                all.retain(&self.ledger.name, &[]);
            }
            self.plan = Plan::default();
            self.states = None;
            self.spec = None;
            self.ledger.close();
            return;
        };
        let Wanted { spec, certificates } = wanted;
        if let Some(all) = &self.settings.certificates {
            all.retain(&self.ledger.name, &certificates);
        }
        if !is_back && self.spec.as_ref() == Some(&spec) && self.states.is_some() {
            // Only its ports have changed: nobody is asked anew for that, and no name waits for an answer.
            self.plan.certificates = certificates;
            return self.settle().await;
        }
        // The source of the document before is not followed into the places of this one, nor kept, whatever is wrong with this one.
        self.states = None;
        self.settings.sources.unfollow(&spec.name);
        self.age.allow(spec.max_stale);
        self.notify.clone_from(&spec.notify);
        self.on_exit = spec.on_exit;
        // What a control plane has it from does not travel: it may be another source each time.
        let direct = matches!(spec.source, CredentialSource::Direct(_));
        let known = self.spec.as_ref().map(|known| &known.source);
        let same_source = direct && known == Some(&spec.source);
        self.spec = Some(spec.clone());
        let offer = self.offer.as_ref();
        match Plan::of(&spec, certificates, &self.settings) {
            Ok(plan) => {
                if let Some(offer) = offer {
                    offer.follow(plan.to.clone(), same_source);
                }
                self.plan = plan;
            }
            Err(error) => {
                // Whom it would have kept, and whom not, is not known: files stay with their owners, nothing is handed over.
                if let Some(offer) = offer {
                    offer.close();
                }
                return self.fail(error.to_string());
            }
        }
        match self.settings.sources.follow(&spec, &self.drain) {
            Ok(mut states) => {
                states.mark_changed();
                self.states = Some(states);
                if self.delivered.is_none() {
                    self.ledger.enter(Holding::Waiting, None);
                }
            }
            Err(error) => self.fail(format!("source {error}")),
        }
    }

    /// Brings the files to what is known of the secret.
    async fn settle(&mut self) {
        self.retry = None;
        let Some(states) = &mut self.states else {
            return;
        };
        let state = states.borrow_and_update().clone();
        match state {
            State::Pending => {}
            State::Current(fetched) => self.deliver(fetched, None).await,
            State::Stale {
                last: Some(fetched),
                error,
                since,
            } => {
                self.age.not_newest_since(since);
                self.deliver(fetched, Some(error)).await;
            }
            State::Stale {
                last: None, error, ..
            } => self.fail(error.to_string()),
            State::Withdrawn(error) => {
                tracing::warn!(credential = %self.ledger.name, %error, "credential withdrawn");
                // Before the files: nobody is handed over meanwhile what is withdrawn.
                if let Some(offer) = &self.offer {
                    offer.withdraw();
                }
                let why = error.to_string();
                if let Some(all) = &self.settings.certificates {
                    all.withdraw(&self.ledger.name, &self.plan.certificates, &why);
                }
                self.forget().await;
                self.settings.notifier.withdrawn(&self.ledger.name);
                self.ledger.enter(Holding::Withdrawn { why }, None);
            }
        }
    }

    async fn deliver(&mut self, fetched: Fetched, stale: Option<FetchError>) {
        let Fetched { value, generation } = fetched;
        // Before anything else: what is no certificate reaches nobody.
        let certificate = match self.plan.certificate(&value, &self.settings) {
            Ok(certificate) => certificate,
            Err(error) => return self.undelivered(generation, &error),
        };
        let is_delivered = |spec: &CredentialSpec| !spec.deliver.is_empty();
        let hider = self.settings.hider.clone();
        let hider = hider.filter(|_| self.spec.as_ref().is_some_and(is_delivered));
        if let Some(hider) = &hider
            && let Err(why) = hider.hide([(&self.ledger.name, &value)]).await
        {
            self.newer = Some(generation);
            self.retry = Some(Instant::now() + self.backoff.next());
            return self.fail(why);
        }
        let files = std::mem::take(&mut self.files);
        let Written {
            files,
            change,
            failure,
        } = files.write(self.plan.work(&self.ledger.name, &value)).await;
        self.files = files;
        let offered = self
            .offer
            .as_ref()
            .map(|offer| offer.put(&self.plan.to, &value, &generation));
        let (offered, unoffered) = match offered.transpose() {
            Ok(offered) => (offered, None),
            Err(error) => (None, Some(error)),
        };
        if let Some(error) = failure.or(unoffered) {
            return self.undelivered(generation, &error);
        }
        // Not before: what could not be written leaves the one before where it is, to be hidden.
        if let Some(hider) = &hider {
            hider.settled([&self.ledger.name]).await;
        }
        if let (Some(all), Some(pair)) = (&self.settings.certificates, &certificate) {
            all.put(&self.ledger.name, &self.plan.certificates, pair);
        }
        self.backoff.reset();
        if change == Change::Written || offered == Some(Change::Written) {
            tracing::info!(credential = %self.ledger.name, %generation, "credential delivered");
        }
        self.newer = None;
        self.delivered = Some(generation.clone());
        self.told(&value, &generation);
        match stale {
            Some(error) => self.fail(error.to_string()),
            None => {
                let new = change == Change::Written || offered == Some(Change::Written);
                self.age.is_newest(&self.ledger.name, &generation, new);
                self.offer_age(None);
                self.ledger.enter(Holding::Delivered(generation), None);
            }
        }
    }

    /// It is there, and not in all of its places: they are tried again after a while.
    fn undelivered(&mut self, generation: Generation, error: &DeliveryError) {
        if let Some(all) = &self.settings.certificates {
            let problem = format!("the credential `{}` {error}", self.ledger.name);
            all.keep(&self.ledger.name, &self.plan.certificates, &problem);
        }
        self.newer = Some(generation);
        self.retry = Some(Instant::now() + self.backoff.next());
        self.fail(error.to_string());
    }

    /// All of its places hold this value.
    fn told(&self, value: &Secret, generation: &Generation) {
        let notifier = &self.settings.notifier;
        notifier.delivered(&self.ledger.name, value, generation, &self.notify);
    }

    /// Something is wrong; what was delivered before stays. Said once for each thing that is.
    fn fail(&mut self, why: String) {
        let holding = match self.delivered.clone() {
            Some(generation) => {
                let since = self.age.since();
                self.offer_age(Some(since));
                Holding::Outdated {
                    generation,
                    why: why.clone(),
                    since,
                    too_old: self.age.too_old(),
                }
            }
            None => Holding::Failed { why: why.clone() },
        };
        if self.ledger.enter(holding, self.newer.as_ref()) {
            tracing::warn!(credential = %self.ledger.name, %why, "credential cannot be refreshed");
        }
    }

    /// Since when what is handed over may not be the newest.
    fn offer_age(&self, since: Option<Instant>) {
        if let Some(offer) = &self.offer {
            offer.age(since, since.and_then(|_| self.age.too_old()));
        }
    }

    async fn forget(&mut self) {
        self.retry = None;
        self.delivered = None;
        self.newer = None;
        self.age.forget();
        std::mem::take(&mut self.files)
            .remove(&self.ledger.name)
            .await;
    }
}

async fn changed(
    states: &mut Option<watch::Receiver<State>>,
) -> Result<(), watch::error::RecvError> {
    match states {
        Some(states) => states.changed().await,
        None => std::future::pending().await,
    }
}

async fn due(retry: Option<Instant>) {
    match retry {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
