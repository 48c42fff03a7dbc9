//! Places that are few, for which callers take turns: nobody who comes in great numbers from one place keeps out those
//! from elsewhere, or even waits long before them.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fender_runtime::deadline::Deadline;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

/// Callers of one source at once, those who wait included.
const QUEUE: usize = 64;

/// So many places in all, and so many of them for one source; first come, first served within each.
#[derive(Debug)]
pub(crate) struct Turns<S: Eq + Hash + Copy> {
    all: Semaphore,
    per_source: usize,
    sources: Mutex<HashMap<S, Source>>,
}

#[derive(Debug)]
struct Source {
    places: Arc<Semaphore>,
    callers: usize,
}

/// A caller who waits or has a place; dropping it makes room for another.
#[derive(Debug)]
struct Caller<'a, S: Eq + Hash + Copy> {
    turns: &'a Turns<S>,
    source: S,
}

/// A place; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Turn<'a, S: Eq + Hash + Copy> {
    _one_of_all: SemaphorePermit<'a>,
    _one_of_its_source: OwnedSemaphorePermit,
    _caller: Caller<'a, S>,
}

impl<S: Eq + Hash + Copy> Turns<S> {
    pub(crate) fn new(all: usize, per_source: usize) -> Self {
        Self {
            all: Semaphore::new(all),
            per_source,
            sources: Mutex::default(),
        }
    }

    /// Waits for a place until the deadline. Nothing if there was none, or if too many of the same source wait already.
    pub(crate) async fn turn(&self, source: S, deadline: Deadline) -> Option<Turn<'_, S>> {
        let (caller, places) = self.queue(source)?;
        // Of its source first: whoever waits for a place of all is one of few from where they come.
        let of_source = deadline.bound(places.acquire_owned()).await.ok()?.ok()?;
        let of_all = deadline.bound(self.all.acquire()).await.ok()?.ok()?;
        Some(Turn {
            _one_of_all: of_all,
            _one_of_its_source: of_source,
            _caller: caller,
        })
    }

    fn queue(&self, source: S) -> Option<(Caller<'_, S>, Arc<Semaphore>)> {
        let mut sources = self.lock();
        let known = sources.entry(source).or_insert_with(|| Source {
            places: Arc::new(Semaphore::new(self.per_source)),
            callers: 0,
        });
        if known.callers >= QUEUE {
            return None;
        }
        known.callers += 1;
        let caller = Caller {
            turns: self,
            source,
        };
        Some((caller, Arc::clone(&known.places)))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<S, Source>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Eq + Hash + Copy> Drop for Caller<'_, S> {
    fn drop(&mut self) {
        let mut sources = self.turns.lock();
        if let Some(source) = sources.get_mut(&self.source) {
            source.callers -= 1;
            if source.callers == 0 {
                sources.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn attack_a_crowd_from_one_place_leaves_places_for_others() {
        let turns = Turns::new(4, 2);
        let soon = || Deadline::after(Duration::from_secs(1));
        let crowd = (
            turns.turn("crowd", soon()).await.unwrap(),
            turns.turn("crowd", soon()).await.unwrap(),
        );
        assert!(turns.turn("crowd", soon()).await.is_none(), "it waits");
        let other = turns.turn("other", soon()).await;
        assert!(other.is_some());
        drop(crowd);
        assert!(turns.turn("crowd", soon()).await.is_some());
        drop(other);
        assert!(turns.lock().is_empty(), "nobody is remembered");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_comes_in_turn_and_not_all_may_wait() {
        let turns = Turns::new(1, 1);
        let late = Deadline::after(Duration::from_secs(10));
        let first = turns.turn("a", late).await.unwrap();
        let mut waiting: Vec<_> = (1..QUEUE)
            .map(|_| Box::pin(turns.turn("a", late)))
            .collect();
        for one in &mut waiting {
            assert!(futures_poll(one.as_mut()).is_none());
        }
        assert!(turns.turn("a", late).await.is_none(), "the queue is full");
        drop(first);
        assert!(waiting.remove(0).await.is_some());
    }

    fn futures_poll<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        let waker = std::task::Waker::noop();
        match future.poll(&mut std::task::Context::from_waker(waker)) {
            std::task::Poll::Ready(done) => Some(done),
            std::task::Poll::Pending => None,
        }
    }
}
