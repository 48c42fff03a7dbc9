//! Which of two processes has the cache in hand: during an upgrade the one before, until it hands over, and from then on its
//! successor. The other one reads it and changes nothing, so nothing that the successor has removed is written again by the one
//! before.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// How often it is looked whether what is being written is there.
const LOOK: Duration = Duration::from_millis(20);

/// Whether a cache is this process's to change. Clones are the same.
#[derive(Clone)]
pub struct Hand(Arc<Inner>);

struct Inner {
    /// Read for as long as something is changed.
    holds: RwLock<bool>,
    changes: watch::Sender<bool>,
}

/// For as long as it lives, the cache does not pass to another process.
pub(super) struct Held<'a>(#[expect(dead_code, reason = "it is held")] RwLockReadGuard<'a, bool>);

impl Hand {
    /// It is this process's.
    pub(super) fn new() -> Self {
        let (holds, changes) = (RwLock::new(true), watch::channel(true).0);
        Self(Arc::new(Inner { holds, changes }))
    }

    /// It is this process's from now on.
    pub fn take(&self) {
        let holds = self.0.holds.write();
        self.pass(holds.unwrap_or_else(PoisonError::into_inner), true);
    }

    /// It is another process's from now on, and nothing that is being written is unfinished. False where that takes longer than
    /// `patience`, as on a disk that hangs: then it is still this process's.
    pub async fn give(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        while !self.gives() {
            if Instant::now() >= until {
                return false;
            }
            tokio::time::sleep(LOOK).await;
        }
        true
    }

    /// Nobody waits for it: whoever waited would have all others wait that change something else.
    fn gives(&self) -> bool {
        let holds = match self.0.holds.try_write() {
            Ok(holds) => holds,
            Err(TryLockError::Poisoned(holds)) => holds.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        self.pass(holds, false);
        true
    }

    fn pass(&self, mut holds: RwLockWriteGuard<'_, bool>, is_ours: bool) {
        *holds = is_ours;
        self.0.changes.send_if_modified(|known| {
            let news = *known != is_ours;
            *known = is_ours;
            news
        });
    }

    /// To be held while something is changed. None: it is not this process's to change, for now.
    pub(super) fn hold(&self) -> Option<Held<'_>> {
        let holds = self.0.holds.read().unwrap_or_else(PoisonError::into_inner);
        holds.then_some(()).map(|()| Held(holds))
    }

    /// Whether it is this process's, as that changes.
    pub(super) fn changes(&self) -> watch::Receiver<bool> {
        self.0.changes.subscribe()
    }
}
