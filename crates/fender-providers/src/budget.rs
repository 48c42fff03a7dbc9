//! What one store of secrets is asked at most, by all who ask it together: so many questions a second, so many at once, and
//! none while it wants none.
//!
//! A store that cannot be asked, or says so itself (429, 503), closes the gate for everybody, for a doubling and jittered
//! while or for as long as it wishes. Then one question goes first, and the rest follow if it is answered: five hundred
//! credentials are no stampede.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fender_runtime::backoff::{Backoff, spread};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// How many questions wait for an answer at the same time.
const AT_ONCE: usize = 8;
/// How far apart questions begin, on average.
const GAP: Duration = Duration::from_millis(20);
/// How many may begin together after a quiet time.
const BURST: u32 = 25;
const FIRST_CLOSED: Duration = Duration::from_millis(500);
const LONGEST_CLOSED: Duration = Duration::from_secs(30);
/// The longest that is waited because a store wishes it.
const LONGEST_WISH: Duration = Duration::from_secs(60 * 60);

#[derive(Debug)]
pub(crate) struct Budget {
    turns: Semaphore,
    /// When the next question may begin.
    next: Mutex<Instant>,
    gate: Mutex<Gate>,
}

#[derive(Debug)]
struct Gate {
    backoff: Backoff,
    closed: Option<Closed>,
    /// Whether somebody asks on trial.
    trying: bool,
}

/// Why nobody is let through, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Closed {
    pub(crate) why: String,
    pub(crate) until: Instant,
}

impl Budget {
    pub(crate) fn new() -> Self {
        Self {
            turns: Semaphore::new(AT_ONCE),
            next: Mutex::new(rested()),
            gate: Mutex::new(Gate {
                backoff: Backoff::new(FIRST_CLOSED, LONGEST_CLOSED),
                closed: None,
                trying: false,
            }),
        }
    }

    /// Waits for a turn. Cancel safe: a turn that is dropped was none.
    pub(crate) async fn turn(&self) -> Result<Turn<'_>, Closed> {
        // Who would be turned away need not wait for it.
        self.admit(false)?;
        let Ok(permit) = self.turns.acquire().await else {
            // Nobody closes it.
            std::future::pending().await
        };
        tokio::time::sleep_until(self.slot()).await;
        let tries = self.admit(true)?;
        Ok(Turn {
            budget: self,
            tries,
            _permit: permit,
        })
    }

    /// Since when the gate is closed and until when, if it is.
    pub(crate) fn closed(&self) -> Option<Closed> {
        self.gate().closed.clone()
    }

    /// When the next question may begin; that moment is taken.
    fn slot(&self) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = (*next).max(rested());
        *next = slot + GAP;
        slot
    }

    /// Whether whoever comes now goes on trial. Only one does, and only if it `enters`.
    fn admit(&self, enters: bool) -> Result<bool, Closed> {
        let mut gate = self.gate();
        let Some(closed) = gate.closed.clone() else {
            return Ok(false);
        };
        if gate.trying || Instant::now() < closed.until {
            return Err(closed);
        }
        gate.trying = enters;
        Ok(enters)
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the next moment stands after a quiet time: so many of them lie behind.
fn rested() -> Instant {
    let now = Instant::now();
    now.checked_sub(GAP * (BURST - 1)).unwrap_or(now)
}

/// The right to ask once.
#[derive(Debug)]
#[must_use = "a turn that is dropped asked nothing"]
pub(crate) struct Turn<'a> {
    budget: &'a Budget,
    tries: bool,
    _permit: SemaphorePermit<'a>,
}

impl Turn<'_> {
    /// The store answered.
    pub(crate) fn answered(mut self) {
        if std::mem::take(&mut self.tries) {
            let mut gate = self.budget.gate();
            gate.trying = false;
            gate.closed = None;
            gate.backoff.reset();
        }
    }

    /// Nobody answered this question; another may be answered, unless this one was to tell.
    pub(crate) fn unanswered(self, why: String) {
        if self.tries {
            self.turned_away(why, None);
        }
    }

    /// The store cannot be asked; `wish` is how long it wants to be left alone.
    pub(crate) fn turned_away(mut self, why: String, wish: Option<Duration>) {
        let mut gate = self.budget.gate();
        let tried = std::mem::take(&mut self.tries);
        if tried {
            gate.trying = false;
        }
        // Of several who are turned away together only the first counts.
        let first = tried || gate.closed.is_none();
        let wished = wish.map(|wish| {
            let wish = wish.min(LONGEST_WISH);
            wish + spread(wish / 10)
        });
        if first {
            let wait = gate.backoff.next();
            gate.closed = Some(Closed {
                why,
                until: Instant::now() + wished.unwrap_or_default().max(wait),
            });
        } else if let (Some(wished), Some(closed)) = (wished, &mut gate.closed) {
            closed.until = closed.until.max(Instant::now() + wished);
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.tries {
            self.budget.gate().trying = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn so_many_begin_together_and_then_so_many_a_second() {
        let budget = Budget::new();
        let began = Instant::now();
        for _ in 0..BURST {
            budget.turn().await.unwrap().answered();
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
        for _ in 0..50 {
            budget.turn().await.unwrap().answered();
        }
        assert_eq!(began.elapsed(), SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_ask_at_once() {
        let budget = Budget::new();
        let mut turns = Vec::new();
        for _ in 0..AT_ONCE {
            turns.push(budget.turn().await.unwrap());
        }
        let waits = tokio::time::timeout(60 * SECOND, budget.turn()).await;
        assert!(waits.is_err());
        turns.pop();
        budget.turn().await.unwrap().answered();
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_away_is_asked_by_one_and_then_by_the_rest() {
        let budget = Budget::new();
        let (one, other) = (budget.turn().await.unwrap(), budget.turn().await.unwrap());
        one.turned_away("away".to_owned(), None);
        other.turned_away("away as well".to_owned(), None);
        let closed = budget.turn().await.unwrap_err();
        assert_eq!(closed.why, "away");
        assert!(closed.until <= Instant::now() + FIRST_CLOSED);
        tokio::time::sleep_until(closed.until).await;
        let trial = budget.turn().await.unwrap();
        assert!(budget.turn().await.is_err(), "another is on trial");
        trial.turned_away("away".to_owned(), None);
        let closed = budget.closed().unwrap();
        tokio::time::sleep_until(closed.until).await;
        // Who gives up in between has decided nothing.
        drop(budget.turn().await.unwrap());
        budget.turn().await.unwrap().answered();
        assert_eq!(budget.closed(), None);
        let turns = [budget.turn().await, budget.turn().await];
        assert!(turns.iter().all(Result::is_ok));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wish_to_be_left_alone_is_granted_to_an_hour() {
        for (wish, least) in [(90, 90), (u64::MAX, 3600)] {
            let budget = Budget::new();
            let wish = Some(Duration::from_secs(wish));
            let turn = budget.turn().await.unwrap();
            let late = budget.turn().await.unwrap();
            turn.turned_away("too many".to_owned(), wish);
            // What was asked before does not open the gate again.
            late.answered();
            let left = budget.closed().unwrap().until - Instant::now();
            let least = Duration::from_secs(least);
            assert!(left >= least && left <= least + least / 10, "{left:?}");
        }
    }
}
