//! What may be handed to whom at this moment. The keepers of the credentials write it, the socket reads it.
//!
//! It fails closed: what its keeper does not stand behind is not here. A user that a document no longer names receives
//! nothing from the moment on at which that document arrives, whatever becomes of the rest of it; one that a document names
//! anew receives no value that came from the source of the document before.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fender_config::ObjectName;
use fender_config::snapshot::{ServedName, SocketDelivery, UrlForm};
use fender_identity::Secret;
use fender_providers::Generation;
use tokio::sync::watch;
use tokio::time::Instant;

use super::aws;
use super::protocol::{Answer, HERE, Refusal};
use super::sealed::Sealed;
use super::takings::{Consumer, Takings};
use super::token::{Reader, Tokens};
use crate::deliver::{Change, DeliveryError, accounts};

/// As the kernel shows a user that has no number in our namespace: it may be anybody.
pub(super) const OVERFLOW_USER: u32 = 65_534;

/// A [`SocketDelivery`] that can be carried out: who receives it, by number.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Handed {
    name: ServedName,
    users: BTreeSet<u32>,
}

impl Handed {
    pub(crate) fn new(delivery: &SocketDelivery) -> Result<Self, DeliveryError> {
        let users: Result<_, _> = delivery.users.iter().map(|user| number(user)).collect();
        Ok(Self {
            name: delivery.name.clone(),
            users: users.map_err(|why| DeliveryError::Unserved {
                name: delivery.name.clone(),
                why,
            })?,
        })
    }
}

/// Whom one credential is for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Audience {
    pub(crate) users: Vec<Handed>,
    pub(crate) readers: Vec<Reader>,
}

impl Audience {
    fn is_empty(&self) -> bool {
        self.users.is_empty() && self.readers.is_empty()
    }

    /// Whether it is for this consumer.
    pub(super) fn names(&self, consumer: &Consumer) -> bool {
        match consumer {
            Consumer::User(user) => self.users.iter().any(|it| it.users.contains(user)),
            Consumer::Reader(file) => self.readers.iter().any(|it| it.file() == file),
        }
    }

    /// Who is in both.
    fn of_both(&self, other: &Self) -> Self {
        let readers = self.readers.iter();
        let readers = readers.filter(|reader| other.readers.contains(reader));
        Self {
            users: of_both(&self.users, &other.users),
            readers: readers.cloned().collect(),
        }
    }
}

/// Only a document that says the number means the user that may be anybody.
fn number(user: &str) -> Result<u32, String> {
    let number = accounts::user(user, "user")?.as_raw();
    match number == OVERFLOW_USER && user.parse() != Ok(number) {
        true => Err(format!(
            "`{user}` is the user {number}, as which the kernel shows every user of another namespace, too; give the application a \
            user of its own"
        )),
        false => Ok(number),
    }
}

/// Where this process serves credentials.
#[derive(Clone, Copy, Debug, Default)]
pub struct Doors {
    pub socket: bool,
    pub url: bool,
}

/// Every credential that is handed over at the socket or served at the URL. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Handovers(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    doors: Doors,
    tokens: Tokens,
    entries: Mutex<Entries>,
    takings: Takings,
    handed: AtomicU64,
    refused: [AtomicU64; Refusal::ALL.len()],
}

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    by_keeper: BTreeMap<u64, Entry>,
}

/// One credential.
#[derive(Debug)]
struct Entry {
    credential: ObjectName,
    to: Audience,
    value: Value,
}

#[derive(Debug, Default)]
enum Value {
    #[default]
    Waiting,
    Withdrawn,
    Here {
        sealed: Arc<Sealed>,
        generation: Generation,
        outdated: Option<Outdated>,
    },
}

/// A value that may be used.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) credential: ObjectName,
    pub(super) sealed: Arc<Sealed>,
    pub(super) generation: Generation,
    /// For how long it may not have been the newest.
    pub(super) age: Duration,
}

impl Entry {
    fn is_for(&self, user: u32, name: &ServedName) -> bool {
        let mut to = self.to.users.iter();
        to.any(|handed| handed.name == *name && handed.users.contains(&user))
    }

    /// As it was at first.
    fn clear(&mut self) {
        (self.to, self.value) = (Audience::default(), Value::default());
    }

    fn value(&self) -> Result<Found, Refusal> {
        let (sealed, generation, outdated) = match &self.value {
            Value::Waiting => return Err(Refusal::Waiting),
            Value::Withdrawn => return Err(Refusal::Withdrawn),
            Value::Here {
                sealed,
                generation,
                outdated,
            } => (Arc::clone(sealed), generation.clone(), outdated),
        };
        let now = Instant::now();
        if outdated.is_some_and(|it| it.too_old.is_some_and(|moment| moment <= now)) {
            return Err(Refusal::Outdated);
        }
        let age = outdated.map(|it| now.saturating_duration_since(it.since));
        Ok(Found {
            credential: self.credential.clone(),
            sealed,
            generation,
            age: age.unwrap_or_default(),
        })
    }
}

#[derive(Clone, Copy, Debug)]
struct Outdated {
    since: Instant,
    too_old: Option<Instant>,
}

impl Handovers {
    /// Nothing yet.
    pub fn new(doors: Doors) -> Self {
        Self(Arc::new(Inner {
            doors,
            ..Inner::default()
        }))
    }

    pub(crate) fn doors(&self) -> Doors {
        self.0.doors
    }

    /// The tokens of this process.
    pub(crate) fn tokens(&self) -> &Tokens {
        &self.0.tokens
    }

    /// What can be answered, and how often it was.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        let refused = Refusal::ALL.into_iter().zip(&self.0.refused);
        let refused = refused.map(|(refusal, count)| (refusal.word(), count));
        [(HERE, &self.0.handed)]
            .into_iter()
            .chain(refused)
            .map(|(word, count)| (word, count.load(Ordering::Relaxed)))
            .collect()
    }

    /// The words that [`Self::counts`] has.
    pub fn answers() -> Vec<&'static str> {
        let refusals = Refusal::ALL.into_iter().map(Refusal::word);
        [HERE].into_iter().chain(refusals).collect()
    }

    pub(super) fn count(&self, answer: &Answer) {
        let counted = match answer {
            Answer::Here { .. } => Some(&self.0.handed),
            Answer::Refused(refusal) => Refusal::ALL
                .iter()
                .position(|known| known == refusal)
                .and_then(|at| self.0.refused.get(at)),
        };
        if let Some(counted) = counted {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Who took which generation of what, from now on.
    pub fn takings(&self) -> watch::Receiver<super::takings::ByCredential> {
        self.0.takings.follow()
    }

    /// A user of the socket was given what it asked for.
    pub(super) fn took_at_socket(&self, user: u32, name: &ServedName, generation: &Generation) {
        let credential = {
            let entries = self.entries();
            let entry = entries.by_keeper.values().find(|it| it.is_for(user, name));
            entry.map(|entry| entry.credential.clone())
        };
        if let Some(credential) = credential {
            let consumer = Consumer::User(user);
            self.0.takings.enter(&credential, consumer, generation);
        }
    }

    /// The consumer with the token in this file was given what it asked for.
    pub(super) fn took_at_url(&self, file: &Path, found: &Found) {
        let consumer = Consumer::Reader(file.to_owned());
        let takings = &self.0.takings;
        takings.enter(&found.credential, consumer, &found.generation);
    }

    /// A place for one credential.
    pub(crate) fn offer(&self, credential: &ObjectName) -> Offer {
        let mut entries = self.entries();
        let keeper = entries.next;
        entries.next += 1;
        let entry = Entry {
            credential: credential.clone(),
            to: Audience::default(),
            value: Value::default(),
        };
        entries.by_keeper.insert(keeper, entry);
        Offer {
            of: self.clone(),
            keeper,
        }
    }

    /// Whether anything is handed to this user at all.
    pub(super) fn know(&self, user: u32) -> bool {
        let entries = self.entries();
        let mut to = entries.by_keeper.values().flat_map(|entry| &entry.to.users);
        to.any(|handed| handed.users.contains(&user))
    }

    /// Whether anything at the URL is for this user at all.
    pub(super) fn know_reader(&self, user: u32) -> bool {
        let entries = self.entries();
        let mut to = entries
            .by_keeper
            .values()
            .flat_map(|entry| &entry.to.readers);
        to.any(|reader| reader.user() == user)
    }

    /// What a user is answered who asks for this. Fails where there is no descriptor left to hand over.
    pub(crate) fn look_up(
        &self,
        user: u32,
        name: &ServedName,
    ) -> io::Result<(Answer, Option<OwnedFd>)> {
        let found = {
            let entries = self.entries();
            let entry = entries.by_keeper.values().find(|it| it.is_for(user, name));
            entry.ok_or(Refusal::Missing).and_then(Entry::value)
        };
        match found {
            Err(refusal) => Ok((Answer::Refused(refusal), None)),
            Ok(found) => {
                let file = found.sealed.open()?;
                let answer = Answer::Here {
                    generation: found.generation,
                    length: found.sealed.length(),
                    age: found.age,
                };
                Ok((answer, Some(file)))
            }
        }
    }

    /// The consumer that has this token for what is served in this form under this name, and what it gets; nothing if
    /// nobody has: there may be no such credential, or the token may be another's. Where the kernel says who asks, it must be the
    /// consumer's own user.
    pub(super) fn read(
        &self,
        form: UrlForm,
        name: &ServedName,
        token: &Secret,
        user: Option<u32>,
    ) -> Option<(PathBuf, Result<Found, Refusal>)> {
        let entries = self.entries();
        let mut mine = None;
        // Each token is compared, whatever is asked for: how long it takes tells nothing.
        for entry in entries.by_keeper.values() {
            for reader in &entry.to.readers {
                let its_user = user.is_none_or(|user| reader.user() == user);
                if reader.is_shown(token) & reader.reads(form, name) & its_user {
                    mine = Some((reader.file().to_owned(), entry.value()));
                }
            }
        }
        mine
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        let entries = self.0.entries.lock();
        entries.unwrap_or_else(PoisonError::into_inner)
    }
}

/// One credential's place; dropping it takes the credential back.
#[derive(Debug)]
pub(crate) struct Offer {
    of: Handovers,
    keeper: u64,
}

impl Offer {
    /// Another document says who receives it, from the same source or another one.
    pub(crate) fn follow(&self, to: Audience, same_source: bool) {
        self.change(|entry| {
            entry.to = match (&entry.value, same_source) {
                (Value::Here { .. }, false) => entry.to.of_both(&to),
                (Value::Here { .. }, true) | (Value::Waiting | Value::Withdrawn, _) => to,
            };
            if let (Value::Withdrawn, false) = (&entry.value, same_source) {
                entry.value = Value::Waiting;
            }
        });
    }

    /// The value, for all of these.
    pub(crate) fn put(
        &self,
        to: &Audience,
        value: &Secret,
        generation: &Generation,
    ) -> Result<Change, DeliveryError> {
        let known = {
            let entries = self.of.entries();
            let entry = entries.by_keeper.get(&self.keeper);
            matches!(entry.map(|entry| &entry.value), Some(Value::Here { generation: known, .. }) if known == generation)
        };
        if to.is_empty() {
            self.change(Entry::clear);
            return Ok(Change::Unchanged);
        }
        if let Some(reader) = to
            .readers
            .iter()
            .find(|reader| reader.form() == UrlForm::Aws)
        {
            aws::check(value).map_err(|why| DeliveryError::Unserved {
                name: reader.name().clone(),
                why: why.to_owned(),
            })?;
        }
        let fresh = (!known).then(|| Sealed::new(value)).transpose()?;
        let change = match fresh {
            Some(_) => Change::Written,
            None => Change::Unchanged,
        };
        self.change(|entry| {
            entry.to = to.clone();
            if let Some(sealed) = fresh {
                let outdated = match &entry.value {
                    Value::Here { outdated, .. } => *outdated,
                    Value::Waiting | Value::Withdrawn => None,
                };
                entry.value = Value::Here {
                    sealed: Arc::new(sealed),
                    generation: generation.clone(),
                    outdated,
                };
            }
        });
        Ok(change)
    }

    /// Since when the value may not be the newest, and from when on it may not be used any more.
    pub(crate) fn age(&self, since: Option<Instant>, too_old: Option<Instant>) {
        self.change(|entry| {
            if let Value::Here { outdated, .. } = &mut entry.value {
                *outdated = since.map(|since| Outdated { since, too_old });
            }
        });
    }

    /// The source took it back.
    pub(crate) fn withdraw(&self) {
        self.change(|entry| entry.value = Value::Withdrawn);
    }

    /// Nobody receives it any more.
    pub(crate) fn close(&self) {
        self.change(Entry::clear);
    }

    /// This process ends: who was let in already is given what they came for.
    pub(crate) fn leave(self) {
        std::mem::forget(self);
    }

    fn change(&self, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.of.entries().by_keeper.get_mut(&self.keeper) {
            change(entry);
            // Who had it and is no longer named is followed no more; what became of a credential that nobody receives
            // for the moment is not forgotten.
            if !entry.to.is_empty() {
                self.of.0.takings.retain(&entry.credential, &entry.to);
            }
        }
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        let gone = self.of.entries().by_keeper.remove(&self.keeper);
        if let Some(entry) = gone {
            self.of.0.takings.forget(&entry.credential);
        }
    }
}

/// Who receives it by both.
fn of_both(one: &[Handed], other: &[Handed]) -> Vec<Handed> {
    let shared = |handed: &Handed| {
        let same_name = other.iter().filter(|it| it.name == handed.name);
        let others: BTreeSet<_> = same_name.flat_map(|it| &it.users).copied().collect();
        Handed {
            name: handed.name.clone(),
            users: handed.users.intersection(&others).copied().collect(),
        }
    };
    one.iter().map(shared).collect()
}

#[cfg(test)]
mod tests;
