//! One API in one region, and what is needed to ask it: an address, the machine's credentials, and one budget for all.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fender_config::snapshot::{AwsRegion, AwsService, AwsStore};
use fender_identity::Secret;
use fender_runtime::clock::SharedClock;
use serde_json::Value;
use tokio::time::Instant;

use super::chain::{Chain, Login, own_address};
use super::settings::AwsSettings;
use super::sign::{Scope, Signed, sign};
use super::wire::{Address, Failure, Request, Wire, read, said_in_json};
use crate::FetchError;
use crate::budget::{Budget, Closed, Turn};
use crate::http::{HttpError, Method};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(15);
const JSON: &str = "application/x-amz-json-1.1";

#[derive(Debug)]
pub(super) struct Desk {
    service: AwsService,
    region: AwsRegion,
    roots: Option<PathBuf>,
    to: Result<Address, String>,
    wire: Arc<dyn Wire>,
    chain: Arc<Chain>,
    clock: SharedClock,
    budget: Budget,
}

impl Desk {
    /// Where a document says, else where the machine says, else at AWS's own.
    pub(super) fn new(
        store: &AwsStore,
        service: AwsService,
        settings: &AwsSettings,
        wire: Arc<dyn Wire>,
        chain: Arc<Chain>,
        clock: SharedClock,
    ) -> Self {
        let AwsStore {
            region,
            endpoint,
            roots,
        } = store;
        let to = match (endpoint, settings.endpoint(service)) {
            (Some(url), _) => Ok(Address::of_store(url)),
            (None, Some(url)) => url.map(|url| Address::of_store(&url)),
            (None, None) => own_address(region, service),
        };
        Self {
            service,
            region: region.clone(),
            roots: roots.clone(),
            to,
            wire,
            chain,
            clock,
            budget: Budget::new(),
        }
    }

    pub(super) fn region(&self) -> &AwsRegion {
        &self.region
    }

    /// When it is worth trying again after a failure that was everybody's.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        let gate = self.budget.closed().map(|closed| closed.until);
        self.chain.retry_at().max(gate)
    }

    /// Asks, with other credentials once more if those at hand are not accepted.
    pub(super) async fn ask(
        &self,
        target: &'static str,
        question: &Value,
        place: &str,
    ) -> Result<Secret, FetchError> {
        let to = self.to.as_ref();
        let to = to.map_err(|why| FetchError::Outage(format!("{place}: {why}")))?;
        let mut login = self.chain.login().await?;
        let mut again = true;
        loop {
            let (outcome, turn) = self.send(to, target, question, &login).await;
            let failure = match outcome {
                Ok(body) => return Ok(body),
                Err(failure) => failure,
            };
            let other = match (&failure, again) {
                (Failure::Keys(_), true) => self.chain.instead_of(&login).await?,
                _ => None,
            };
            if let Some(other) = other {
                login = other;
                again = false;
                continue;
            }
            if let (Failure::Keys(why), Some(turn)) = (&failure, turn) {
                // They are everybody's.
                turn.turned_away(why.clone(), None);
            }
            return Err(failure.into_error(place));
        }
    }

    /// Takes a turn, asks, and says how it went to whoever waits for one; but gives the turn back where that is to be seen yet.
    async fn send(
        &self,
        to: &Address,
        target: &'static str,
        question: &Value,
        login: &Login,
    ) -> (Result<Secret, Failure>, Option<Turn<'_>>) {
        let turn = match self.budget.turn().await {
            Ok(turn) => turn,
            Err(Closed { why, .. }) => return (Err(Failure::Away { why, wish: None }), None),
        };
        let text = |text: &str| Secret::from(text.to_owned());
        let mut headers = vec![("content-type", text(JSON)), ("x-amz-target", text(target))];
        let body = Secret::from(question.to_string());
        let scope = Scope {
            region: self.region.as_str(),
            service: self.service.name(),
            now: self.clock.now().as_secs(),
        };
        let signed = Signed {
            authority: &to.authority,
            headers: &headers,
            body: body.expose(),
        };
        let added = sign(&login.keys, scope, signed);
        headers.extend(added);
        let request = Request {
            method: Method::Post,
            to: to.clone(),
            headers,
            body: Some(body),
            patience: PATIENCE,
            roots: self.roots.clone(),
        };
        let answered = self.wire.ask(&request).await;
        let late = matches!(answered, Err(HttpError::TimedOut));
        let proofs: Vec<_> = login.keys.parts().collect();
        let outcome = read(answered, said_in_json, &proofs);
        let kept = match &outcome {
            Err(Failure::Away { why, wish }) => {
                let wish = wish.map(|wish| wish.within(self.clock.now().as_secs()));
                turn.turned_away(why.clone(), wish.map(Duration::from_secs));
                None
            }
            Err(Failure::Clock(why)) => {
                turn.turned_away(why.clone(), None);
                None
            }
            Err(Failure::Failed(why)) if late => {
                turn.unanswered(why.clone());
                None
            }
            Err(Failure::Keys(_)) => Some(turn),
            Ok(_) | Err(_) => {
                turn.answered();
                None
            }
        };
        (outcome, kept)
    }
}
