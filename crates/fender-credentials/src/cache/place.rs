//! The file of one credential, and whose word counts for it.
//!
//! When a document changes, its credential is followed anew while whoever followed it before is still about to hear of that, or is
//! writing. Each follower has a number, and nobody writes once there is a later one: what the later one has removed, because
//! its source says no, does not come back by the hand of the one before. Asking for that and writing, reading or removing are one turn, and
//! the turns of one file are taken one after the other.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(super) struct Place {
    file: String,
    /// The number of the latest follower.
    latest: AtomicU64,
    /// The number of whoever has written it last, in this process.
    writer: Mutex<u64>,
}

/// One that follows a credential. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Follower {
    place: Arc<Place>,
    number: u64,
}

/// For as long as it lives, nobody else touches the file.
pub(super) struct Turn<'a> {
    place: &'a Place,
    number: u64,
    writer: MutexGuard<'a, u64>,
}

impl Place {
    pub(super) fn of(file: String) -> Arc<Self> {
        let (latest, writer) = (AtomicU64::default(), Mutex::default());
        Arc::new(Self {
            file,
            latest,
            writer,
        })
    }

    /// The next one that follows. Waits for no turn.
    pub(super) fn follow(self: &Arc<Self>) -> Follower {
        Follower {
            number: self.latest.fetch_add(1, Ordering::SeqCst) + 1,
            place: Arc::clone(self),
        }
    }

    #[cfg(test)]
    pub(super) fn is_somebodys_turn(&self) -> bool {
        self.writer.try_lock().is_err()
    }
}

impl Follower {
    pub(super) fn file(&self) -> &str {
        &self.place.file
    }

    /// Waits for whoever has it; on a thread that may.
    pub(super) fn turn(&self) -> Turn<'_> {
        let writer = self.place.writer.lock();
        Turn {
            place: &self.place,
            number: self.number,
            writer: writer.unwrap_or_else(PoisonError::into_inner),
        }
    }
}

impl Turn<'_> {
    /// Whether nobody follows since.
    pub(super) fn is_latest(&self) -> bool {
        self.place.latest.load(Ordering::SeqCst) == self.number
    }

    /// Whether what lies there may be removed: a later one may have written it.
    pub(super) fn may_remove(&self) -> bool {
        *self.writer <= self.number
    }

    /// What lies there is this one's.
    pub(super) fn has_written(&mut self) {
        *self.writer = self.number;
    }
}
