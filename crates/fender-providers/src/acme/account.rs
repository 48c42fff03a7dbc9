//! The account that a sidecar has with an authority: made once, kept, and shared by all certificates that are asked of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fender_config::snapshot::{Acme, ExternalAccount};
use fender_identity::Secret;
use fender_runtime::clock::SharedClock;
use fender_runtime::file::{self, Others};
use instant_acme::{Account, ExternalAccountKey, NewAccount};
use zeroize::Zeroizing;

use super::AcmeError;
use super::https::{Heard, Https};
use super::store::Store;

/// The largest file of an HMAC key that is read.
const MAX_KEY: u64 = 4096;

/// Sees to it that no two are made with one authority at a time.
#[derive(Debug, Default)]
pub(super) struct Accounts(Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>);

impl Accounts {
    /// The account with this authority, made if there is none yet. What its answers say of when to come back is `heard`.
    pub(super) async fn with(
        &self,
        acme: &Acme,
        store: &Store,
        clock: &SharedClock,
        heard: &Heard,
    ) -> Result<Account, AcmeError> {
        let turn = self.turn(acme);
        let _turn = turn.lock().await;
        let builder = Account::builder_with_http(Box::new(Https::to(acme, clock, heard)?));
        if let Some(credentials) = store.account(acme)? {
            return Ok(builder.from_credentials(credentials).await?);
        }
        // An account that cannot be kept is another one with each attempt.
        store.can_be_written()?;
        let contact = acme.contact.as_ref().map(|mail| format!("mailto:{mail}"));
        let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
        let account = NewAccount {
            contact: &contact,
            // No document without these words is read.
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let binding = acme.external_account.as_ref().map(binding).transpose()?;
        let directory = acme.directory.to_string();
        let made = builder.create(&account, directory, binding.as_ref()).await;
        let (account, credentials) = made?;
        store.keep_account(acme, &credentials)?;
        tracing::info!(directory = %acme.directory, account = account.id(), "made an account with an authority");
        Ok(account)
    }

    fn turn(&self, acme: &Acme) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        turns.entry(acme.directory.to_string()).or_default().clone()
    }
}

fn binding(account: &ExternalAccount) -> Result<ExternalAccountKey, AcmeError> {
    let text = file::read(&account.key, MAX_KEY, Others::GroupReads);
    let text = Secret::new(text.map_err(|error| AcmeError::Ours(error.to_string()))?);
    let text = text.expose().trim_ascii();
    let unpadded = text.strip_suffix(b"==").or(text.strip_suffix(b"="));
    let key = URL_SAFE_NO_PAD.decode(unpadded.unwrap_or(text));
    let key = key.map_err(|_| {
        let path = account.key.display();
        AcmeError::Ours(format!(
            "`{path}` is not a key in base64url, as authorities give it"
        ))
    })?;
    let key = Zeroizing::new(key);
    Ok(ExternalAccountKey::new(account.key_id.clone(), &key))
}
