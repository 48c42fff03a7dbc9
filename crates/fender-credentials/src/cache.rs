//! What was fetched last, kept on disk under a key that lies elsewhere, so that a start during an outage has something to
//! begin with.
//!
//! It is read when a source cannot be asked and has not answered this process yet, and never otherwise: a source that says no is
//! believed, and what it said before is removed here, too. What is kept is used for as long as its document's `maxStale`, counted by the
//! wall clock from when the source was asked for it last, whoever was started how often since.
//!
//! It fails closed: what does not open, is too old, comes from the future, or is of another owner, credential or source than
//! asked for is not used, and the error names the file and the way out. What is lent (the leases of a Vault) is not kept at
//! all: whoever lent it takes it back. That an older file was put back cannot be told from the file. Of two that follow a
//! credential, because its document has changed, the earlier one brings nothing back that the later one removed.
//!
//! During an upgrade one of the two processes changes it, and not the other.
//!
//! Format and cryptography: `format`. Where key and files may lie: `key`, `directory`. What is done when, and what is still to be: `keep`, `left`. Whose word counts: `place`, and of two
//! processes `hand`.

mod directory;
mod format;
mod hand;
mod keep;
mod key;
mod left;
mod place;
mod readers;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256, digest};
use fender_config::ObjectName;
use fender_config::snapshot::CredentialSource;
use fender_identity::SpiffeId;
use fender_providers::Fetched;
use fender_runtime::clock;
use tokio::sync::Semaphore;

use directory::Directory;
use format::{Belongs, Kept, OpenError};
use key::Key;
use left::{Left, Removed, Rest, Said, of_file, together};
use place::{Follower, Place, Turn};

pub use hand::Hand;
pub use key::KeyPlace;

pub(crate) use keep::{keep, keep_only};

/// How far in the future something may have been fetched: clocks are set, by a little.
const SKEW: Duration = Duration::from_secs(60);
/// No writing takes as long.
const LEFT: Duration = Duration::from_secs(60);
/// How many files are written at once: that waits for a disk.
const WRITERS: usize = 4;
/// The end of the name of every file.
const ENDING: &str = ".sealed";

/// For `fuzz/`: what must hold for any bytes at all.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    /// A file of the cache: see `format::checks`.
    pub fn cached(data: &[u8]) {
        super::format::checks::cached(data);
    }
}

/// Whose a cache is: nobody else reads or removes what is kept in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A workload, by its identity.
    Workload(SpiffeId),
    /// A process without one, by the name of the `Sidecar` that it runs from.
    Sidecar(ObjectName),
}

/// Directory and key of a cache that is nobody's yet.
pub struct Opened {
    directory: Directory,
    key: Key,
}

/// The cache of one owner.
pub struct Cache {
    directory: Directory,
    key: Key,
    /// Whose it is.
    whose: String,
    hand: Hand,
    known: Mutex<Known>,
    /// What no document names and could not be removed yet. Whoever changes what they name, or removes the rest, holds it.
    left: Mutex<Left>,
    /// Of each file, by its name, who follows what is in it.
    places: Mutex<BTreeMap<String, Arc<Place>>>,
    /// Who may write.
    writers: Arc<Semaphore>,
    /// What happens right before a file takes its place, once.
    #[cfg(test)]
    before: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

/// What this process has learned.
#[derive(Debug, Default)]
struct Known {
    /// What its documents name; none: whatever is asked for.
    named: Option<BTreeSet<ObjectName>>,
    /// Whose sources have answered: what is kept of them is not read any more.
    answered: BTreeSet<ObjectName>,
}

/// Why there is no cache.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The directory is not fit for it.
    #[error("the credentials cache: {0}")]
    Directory(String),
    /// The key is not.
    #[error("the key of the credentials cache: {0}")]
    Key(String),
}

/// Why what is kept is not used. Names the file, and the way out.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("what is kept of it is not used: `{}` {why}", path.display())]
pub(crate) struct Refused {
    path: PathBuf,
    why: Why,
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
enum Why {
    #[error("{0}")]
    Unreadable(String),
    #[error("{0}; remove it, or put back what belongs there")]
    Closed(OpenError),
    #[error("is of another source than the document names now; it is removed")]
    OtherSource,
    #[error(
        "was fetched {} s ago, and `maxStale` is {} s; it is removed",
        age.as_secs(),
        most.as_secs()
    )]
    TooOld { age: Duration, most: Duration },
    #[error("has ended, by its source's own word; it is removed")]
    Ended,
    #[error("was fetched {} s in the future; set the clock, or remove it", ahead.as_secs())]
    Future { ahead: Duration },
}

impl Why {
    /// Whether it can never be used again.
    fn is_final(&self) -> bool {
        match self {
            Self::OtherSource | Self::TooOld { .. } | Self::Ended => true,
            Self::Unreadable(_) | Self::Closed(_) | Self::Future { .. } => false,
        }
    }
}

/// Where one credential comes from, to be compared.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct SourceDigest([u8; SourceDigest::LENGTH]);

impl SourceDigest {
    const LENGTH: usize = 32;

    /// Equal sources are equal here, and others are not. A Fender that describes sources otherwise finds them all changed.
    pub(crate) fn of(source: &CredentialSource) -> Self {
        let mut fed = Fed(Context::new(&SHA256));
        fed.write(b"fender credentials cache source 1");
        match source {
            // What a control plane has it from does not travel.
            CredentialSource::Control(_) => fed.write_u8(0),
            CredentialSource::Direct(origin) => {
                fed.write_u8(1);
                origin.hash(&mut fed);
            }
        }
        let mut bytes = [0; Self::LENGTH];
        for (byte, made) in bytes.iter_mut().zip(fed.0.finish().as_ref()) {
            *byte = *made;
        }
        Self(bytes)
    }
}

/// Everything that tells two values apart, into a digest.
struct Fed(Context);

impl Hasher for Fed {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Nobody asks for so little of it.
    fn finish(&self) -> u64 {
        0
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) name: ObjectName,
    pub(crate) source: SourceDigest,
    pub(crate) max_stale: Duration,
}

impl Opened {
    /// The cache in it that is this owner's.
    #[must_use]
    pub fn of(self, owner: &Owner) -> Cache {
        let Self { directory, key } = self;
        Cache {
            directory,
            key,
            whose: owner.to_string(),
            hand: Hand::new(),
            known: Mutex::default(),
            left: Mutex::default(),
            places: Mutex::default(),
            writers: Arc::new(Semaphore::new(WRITERS)),
            #[cfg(test)]
            before: Mutex::default(),
        }
    }
}

impl Cache {
    /// The one in `directory`, which is made if it is not there, under this key. To be called before this process confines itself: the key is
    /// not read again.
    pub fn open(directory: &Path, key: &KeyPlace) -> Result<Opened, CacheError> {
        let directory = Directory::open(directory).map_err(CacheError::Directory)?;
        let key = Key::open(key, directory.path()).map_err(CacheError::Key)?;
        Ok(Opened { directory, key })
    }

    /// Removes what a crash has left half written; another process of this owner may be writing.
    fn tidy(&self) {
        let own = format!(".{}-", self.prefix());
        let now = clock::system().since_1970();
        let left = |name: &str| {
            let since = |name| self.directory.modified(name);
            name.starts_with(&own)
                && since(name).is_some_and(|since| now.saturating_sub(since) >= LEFT)
        };
        let names = self.directory.names();
        let problem = match names {
            Ok(names) => self.remove_all(names.into_iter().filter(|name| left(name))),
            Err(error) => Some(error.to_string()),
        };
        if let Some(problem) = problem {
            tracing::warn!(directory = %self.directory.path().display(), problem, "cannot tidy the credentials cache");
        }
    }

    /// All that can be removed is, whatever cannot be. Says what cannot.
    fn remove_all(&self, files: impl Iterator<Item = String>) -> Option<String> {
        let problems = files.filter_map(|file| match self.directory.remove(&file) {
            Ok(true) => {
                self.say_removed(&file);
                None
            }
            Ok(false) => None,
            Err(error) => Some(of_file(&file, &error)),
        });
        together(problems.collect())
    }

    /// Removes what no document names any more, and keeps nothing else from now on. Whoever is told [`Rest::Untended`] is to call
    /// [`Cache::retain_again`] after a while.
    pub(crate) fn retain(&self, names: BTreeSet<ObjectName>) -> Rest {
        let mut left = self.left();
        let same = self.known().named.replace(names.clone()).as_ref() == Some(&names);
        if !same || left.is_something {
            self.remove_unnamed(&names, &mut left);
        }
        if !left.is_something || left.is_seen_to {
            return Rest::SeenTo;
        }
        left.is_seen_to = true;
        Rest::Untended
    }

    /// Removes what could not be removed before. The same again is for whoever is told so.
    fn retain_again(&self) -> Rest {
        let mut left = self.left();
        let names = self.known().named.clone();
        if let (true, Some(names)) = (left.is_something, names) {
            self.remove_unnamed(&names, &mut left);
        }
        left.is_seen_to = left.is_something;
        match left.is_something {
            true => Rest::Untended,
            false => Rest::SeenTo,
        }
    }

    /// All that can be removed is, whatever cannot be: that is said, once for each thing that is wrong, and when it is over.
    fn remove_unnamed(&self, names: &BTreeSet<ObjectName>, left: &mut Left) {
        if !left.is_tidy
            && let Some(_held) = self.hand.hold()
        {
            left.is_tidy = true;
            self.tidy();
        }
        let files: BTreeSet<_> = names.iter().map(|name| self.file(name)).collect();
        let own = format!("{}-", self.prefix());
        // Nobody follows them any more, whoever is about to write: the same name may be back before that is done.
        let mut followers: Vec<_> = {
            let places = self.places();
            let gone = places.iter().filter(|(file, _)| !files.contains(*file));
            gone.map(|(_, place)| place.follow()).collect()
        };
        let over = |name: &String| name.starts_with(&own) && !files.contains(name);
        let mut problems = Vec::new();
        let there = self.directory.names().unwrap_or_else(|error| {
            problems.push(error.to_string());
            Vec::new()
        });
        let others = there.into_iter().filter(over);
        followers.extend(others.map(|file| self.place(file).follow()));
        // Another process may write more until it hands over.
        left.is_something = !left.is_tidy || self.hand.hold().is_none();
        for gone in &followers {
            let turn = gone.turn();
            match self.discard(gone.file(), &turn) {
                Ok(Removed::Gone | Removed::Absent) => {}
                Ok(Removed::NotOurs) => left.is_something = true,
                Err(error) => problems.push(of_file(gone.file(), &error)),
            }
        }
        drop(followers);
        // Those whose followers are gone, too, are forgotten.
        self.places()
            .retain(|file, place| files.contains(file) || Arc::strong_count(place) > 1);
        problems.sort();
        problems.dedup();
        left.is_something |= !problems.is_empty();
        let directory = self.directory.path().display();
        match together(problems) {
            Some(problem) if left.said.is_news(&problem) => {
                tracing::error!(%directory, problem, "cannot remove what is kept of credentials that no document names any more; it is tried again");
            }
            None if !left.is_something && left.said.is_over() => {
                tracing::info!(%directory, "what could not be removed from the credentials cache is gone");
            }
            Some(_) | None => {}
        }
    }

    fn say_removed(&self, file: &str) {
        tracing::info!(path = %self.directory.path().join(file).display(), "removed from the credentials cache");
    }

    /// From now on whoever followed this credential before writes nothing of it.
    pub(crate) fn follow(&self, name: &ObjectName) -> Follower {
        self.place(self.file(name)).follow()
    }

    /// The same where nobody follows it instead.
    pub(crate) fn unfollow(&self, name: &ObjectName) {
        if let Some(place) = self.places().get(&self.file(name)) {
            place.follow();
        }
    }

    fn place(&self, file: String) -> Arc<Place> {
        let mut places = self.places();
        let place = places.entry(file.clone());
        Arc::clone(place.or_insert_with(|| Place::of(file)))
    }

    /// What is kept, if it may be used at `now`, counted from 1970. None: nothing is kept, or the source has spoken since.
    fn read(
        &self,
        follower: &Follower,
        wanted: &Wanted,
        now: Duration,
    ) -> Result<Option<Kept>, Refused> {
        let turn = follower.turn();
        if self.known().answered.contains(&wanted.name) {
            return Ok(None);
        }
        let file = follower.file();
        let refused = |why| Refused {
            path: self.directory.path().join(file),
            why,
        };
        let read = self.directory.read(file, format::MOST);
        let read = read.map_err(|why| refused(Why::Unreadable(why)))?;
        let Some(bytes) = read else {
            return Ok(None);
        };
        let opened = format::open(&self.key, &self.belongs(&wanted.name), &bytes);
        let judged = opened
            .map_err(Why::Closed)
            .and_then(|kept| judge(kept, wanted, now));
        if judged.as_ref().is_err_and(Why::is_final)
            && turn.may_remove()
            // What is not ours to remove is left for when it is.
            && let Err(error) = self.discard(file, &turn)
        {
            tracing::error!(path = %self.directory.path().join(file).display(), %error, "cannot remove what is kept of a credential and may not be used any more");
        }
        judged.map(Some).map_err(refused)
    }

    /// What another process has kept of the same source, whether it may be used or not.
    fn find(&self, follower: &Follower, wanted: &Wanted) -> Option<Kept> {
        let _turn = follower.turn();
        let read = self.directory.read(follower.file(), format::MOST);
        let bytes = read.ok().flatten()?;
        let opened = format::open(&self.key, &self.belongs(&wanted.name), &bytes);
        opened.ok().filter(|kept| kept.source == wanted.source)
    }

    /// Keeps this value, if documents name it, nobody follows it since and the cache is this process's; whether it was. Of what could not be kept, nothing older is
    /// left.
    fn write(&self, follower: &Follower, wanted: &Wanted, kept: &Kept) -> io::Result<bool> {
        let mut turn = follower.turn();
        if !turn.is_latest() || !self.names(&wanted.name) {
            return Ok(false);
        }
        let Some(_held) = self.hand.hold() else {
            return Ok(false);
        };
        #[cfg(test)]
        if let Some(before) = self.before.lock().unwrap().take() {
            before();
        }
        let sealed = format::seal(&self.key, &self.belongs(&wanted.name), kept);
        let written = sealed.and_then(|bytes| self.directory.replace(follower.file(), &bytes));
        turn.has_written();
        match written {
            Ok(()) => Ok(true),
            Err(error) => Err(match self.directory.remove(follower.file()) {
                Ok(_) => error,
                Err(removal) => io::Error::new(
                    error.kind(),
                    format!("{error}; and what was kept before cannot be removed: {removal}"),
                ),
            }),
        }
    }

    /// Whether documents name it.
    fn names(&self, name: &ObjectName) -> bool {
        let known = self.known();
        known
            .named
            .as_ref()
            .is_none_or(|named| named.contains(name))
    }

    /// What was kept of a credential is used no more, unless it is of somebody who follows it since.
    fn remove(&self, follower: &Follower) -> io::Result<Removed> {
        let turn = follower.turn();
        match turn.may_remove() {
            true => self.unlink(follower.file(), &turn),
            false => Ok(Removed::Absent),
        }
    }

    fn discard(&self, file: &str, turn: &Turn<'_>) -> io::Result<Removed> {
        let removed = self.unlink(file, turn)?;
        if removed == Removed::Gone {
            self.say_removed(file);
        }
        Ok(removed)
    }

    fn unlink(&self, file: &str, _turn: &Turn<'_>) -> io::Result<Removed> {
        let Some(_held) = self.hand.hold() else {
            return Ok(Removed::NotOurs);
        };
        Ok(match self.directory.remove(file)? {
            true => Removed::Gone,
            false => Removed::Absent,
        })
    }

    /// Which of two processes may change it.
    pub fn hand(&self) -> Hand {
        self.hand.clone()
    }

    /// The source of a credential has answered.
    fn answered(&self, name: &ObjectName) {
        let mut known = self.known();
        if !known.answered.contains(name) {
            known.answered.insert(name.clone());
        }
    }

    fn belongs<'a>(&'a self, name: &'a ObjectName) -> Belongs<'a> {
        Belongs {
            whose: &self.whose,
            name,
        }
    }

    fn file(&self, name: &ObjectName) -> String {
        let prefix = self.prefix();
        format!("{prefix}-{}.{}{ENDING}", name.namespace(), name.name())
    }

    /// Owners that share a directory do not share files.
    fn prefix(&self) -> String {
        let of = digest(&SHA256, self.whose.as_bytes());
        hexadecimal(of.as_ref().get(..8).unwrap_or_default())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn left(&self) -> MutexGuard<'_, Left> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn places(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Place>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether something that opened may be used.
fn judge(kept: Kept, wanted: &Wanted, now: Duration) -> Result<Kept, Why> {
    if kept.source != wanted.source {
        return Err(Why::OtherSource);
    }
    let ahead = kept.at.saturating_sub(now);
    if ahead > SKEW {
        return Err(Why::Future { ahead });
    }
    let age = now.saturating_sub(kept.at);
    if age >= wanted.max_stale {
        let most = wanted.max_stale;
        return Err(Why::TooOld { age, most });
    }
    if kept.until.is_some_and(|until| until <= now) {
        return Err(Why::Ended);
    }
    Ok(kept)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// No identity has the form of a `Sidecar`'s.
impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload(id) => id.fmt(f),
            Self::Sidecar(name) => write!(f, "Sidecar {name}"),
        }
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened")
            .field("directory", &self.directory.path())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("directory", &self.directory.path())
            .finish_non_exhaustive()
    }
}
