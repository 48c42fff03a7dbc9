//! Who took which generation of which credential, at the socket or at the URL, and when first.
//!
//! That is what was handed over; what became of it afterwards nobody here knows. It is in memory only, and there is one line
//! for each consumer that documents name, whoever asks how often.

use std::collections::BTreeMap;
use std::path::PathBuf;

use fender_config::ObjectName;
use fender_providers::Generation;
use tokio::sync::watch;
use tokio::time::Instant;

use super::registry::Audience;

/// Who takes.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Consumer {
    /// At the socket: a user, by number.
    User(u32),
    /// At the URL: whoever has the token in this file.
    Reader(PathBuf),
}

/// What somebody took last.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Taking {
    pub generation: Generation,
    /// When it took this generation first.
    pub since: Instant,
}

/// What was taken by whom, by credential.
pub type ByCredential = BTreeMap<ObjectName, BTreeMap<Consumer, Taking>>;

#[derive(Debug)]
pub(super) struct Takings(watch::Sender<ByCredential>);

impl Default for Takings {
    fn default() -> Self {
        Self(watch::channel(ByCredential::new()).0)
    }
}

impl Takings {
    pub(super) fn follow(&self) -> watch::Receiver<ByCredential> {
        self.0.subscribe()
    }

    /// Again the same is no news.
    pub(super) fn enter(
        &self,
        credential: &ObjectName,
        consumer: Consumer,
        generation: &Generation,
    ) {
        self.0.send_if_modified(|taken| {
            let known = taken.get(credential).and_then(|by| by.get(&consumer));
            let news = known.is_none_or(|known| known.generation != *generation);
            if news {
                let taking = Taking {
                    generation: generation.clone(),
                    since: Instant::now(),
                };
                let by = taken.entry(credential.clone()).or_default();
                by.insert(consumer, taking);
            }
            news
        });
    }

    /// Others than these are not to receive it any more.
    pub(super) fn retain(&self, credential: &ObjectName, to: &Audience) {
        self.0.send_if_modified(|taken| {
            let Some(by) = taken.get_mut(credential) else {
                return false;
            };
            let before = by.len();
            by.retain(|consumer, _| to.names(consumer));
            by.len() != before
        });
    }

    pub(super) fn forget(&self, credential: &ObjectName) {
        self.0
            .send_if_modified(|taken| taken.remove(credential).is_some());
    }
}
