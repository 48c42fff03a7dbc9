//! Whose turn it is to run: a fair share, also beside programs that hang.
//!
//! There are two lanes. Everybody begins in the quick one; who takes longer than [`QUICK`] goes over to the slow one as soon as
//! that has room, and its place is free for the next. Who was slow the last time begins in the slow lane, behind those that
//! are slow as well, and is back in the quick one once it was quick. So programs that hang hold up each other; others wait
//! for them only the first time, and only while more hang than both lanes have room for.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

/// Who takes longer is slow.
pub(super) const QUICK: Duration = Duration::from_secs(2);

/// How many of the slow ones are remembered; more than anybody has credentials.
const REMEMBERED: usize = 16 * 1024;

/// Both lanes.
#[derive(Debug)]
pub(super) struct Lanes {
    quick: Semaphore,
    slow: Semaphore,
    /// Who was slow the last time, by a number that a random key makes of it.
    known: Mutex<HashSet<u64>>,
    key: RandomState,
}

impl Lanes {
    /// With room for so many in each.
    pub(super) fn new(room: usize) -> Self {
        Self {
            quick: Semaphore::new(room),
            slow: Semaphore::new(room),
            known: Mutex::default(),
            key: RandomState::new(),
        }
    }

    /// Does `work` when it is the turn of `who`. It says how long it ran itself, if anybody knows: what it had to wait for is none of
    /// its slowness. Cancel safe: work that is dropped was none.
    pub(super) async fn run<T>(
        &self,
        who: impl Hash,
        work: impl Future<Output = (T, Option<Duration>)>,
    ) -> T {
        let who = self.key.hash_one(who);
        let is_slow = self.known().contains(&who);
        let (came, took) = match is_slow {
            true => self.run_slow(work).await,
            false => self.run_quick(work).await,
        };
        let mut known = self.known();
        match took {
            None => {}
            Some(took) if took <= QUICK => {
                known.remove(&who);
            }
            Some(_) => {
                if known.len() >= REMEMBERED {
                    known.clear();
                }
                known.insert(who);
            }
        }
        came
    }

    async fn run_slow<T>(&self, work: impl Future<Output = T>) -> T {
        let _turn = turn(&self.slow).await;
        work.await
    }

    async fn run_quick<T>(&self, work: impl Future<Output = T>) -> T {
        let place = turn(&self.quick).await;
        let mut work = std::pin::pin!(work);
        let slow = async {
            tokio::time::sleep(QUICK).await;
            turn(&self.slow).await
        };
        tokio::select! {
            biased;
            came = &mut work => came,
            _turn = slow => {
                drop(place);
                work.await
            }
        }
    }

    /// How many are taken for slow.
    #[cfg(test)]
    pub(super) fn slow_ones(&self) -> usize {
        self.known().len()
    }

    fn known(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn turn(lane: &Semaphore) -> tokio::sync::SemaphorePermit<'_> {
    match lane.acquire().await {
        Ok(turn) => turn,
        // Nobody closes it.
        Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::Instant;

    use super::*;
    use crate::drain::Drain;

    const SECOND: Duration = Duration::from_secs(1);
    const HANGS: Duration = Duration::from_secs(30);
    const ROOM: usize = 4;

    /// Counted from when it is begun.
    async fn takes(time: Duration) -> ((), Option<Duration>) {
        tokio::time::sleep(time).await;
        ((), Some(time))
    }

    /// Starts so many that hang, each under its own number, and lets them begin.
    async fn hang(lanes: &Arc<Lanes>, numbers: std::ops::Range<usize>, drain: &Drain) {
        for number in numbers {
            let lanes = Arc::clone(lanes);
            drain.spawn(async move { lanes.run(number, takes(HANGS)).await });
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    /// How long one that takes no time has to wait.
    async fn waits(lanes: &Lanes, who: &str) -> Duration {
        let began = Instant::now();
        lanes.run(who, takes(Duration::ZERO)).await;
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_as_there_is_room_for_run_at_once_and_in_turn() {
        let lanes = Arc::new(Lanes::new(ROOM));
        let began = Instant::now();
        let all = Drain::new();
        for number in 0..3 * ROOM {
            let lanes = Arc::clone(&lanes);
            all.spawn(async move { lanes.run(number, takes(SECOND)).await });
        }
        all.drained().await;
        assert_eq!(began.elapsed(), 3 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn attack_those_that_hang_for_the_first_time_hold_up_others_for_a_moment() {
        let lanes = Arc::new(Lanes::new(ROOM));
        let drain = Drain::new();
        hang(&lanes, 0..ROOM, &drain).await;
        assert!(waits(&lanes, "healthy").await <= QUICK);
        // As many again, and both lanes are full of them. Once.
        hang(&lanes, ROOM..2 * ROOM, &drain).await;
        let waited = waits(&lanes, "healthy").await;
        assert!(waited > QUICK && waited < HANGS, "{waited:?}");
        drain.drained().await;
    }

    #[tokio::test(start_paused = true)]
    async fn attack_those_that_hang_again_and_again_hold_up_nobody_but_each_other() {
        let lanes = Arc::new(Lanes::new(ROOM));
        let drain = Drain::new();
        hang(&lanes, 0..10 * ROOM, &drain).await;
        drain.drained().await;
        let again = Instant::now();
        hang(&lanes, 0..10 * ROOM, &drain).await;
        for _ in 0..100 {
            assert_eq!(waits(&lanes, "healthy").await, Duration::ZERO);
        }
        // Beside them the quick lane is all there.
        let all = Drain::new();
        for number in 0..ROOM {
            let lanes = Arc::clone(&lanes);
            all.spawn(async move { lanes.run(1000 + number, takes(SECOND)).await });
        }
        let before = Instant::now();
        all.drained().await;
        assert_eq!(before.elapsed(), SECOND);
        drain.drained().await;
        // Of the slow ones no more than there is room for run at once.
        assert!(again.elapsed() >= 10 * HANGS, "{:?}", again.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_recovered_is_quick_again_after_one_turn_behind_the_slow() {
        let lanes = Arc::new(Lanes::new(ROOM));
        let drain = Drain::new();
        lanes.run("healthy", takes(HANGS)).await;
        hang(&lanes, 0..ROOM, &drain).await;
        drain.drained().await;
        hang(&lanes, 0..ROOM, &drain).await;
        let waited = waits(&lanes, "healthy").await;
        assert!(waited > Duration::ZERO && waited <= HANGS, "{waited:?}");
        hang(&lanes, 0..ROOM, &drain).await;
        assert_eq!(waits(&lanes, "healthy").await, Duration::ZERO);
        drain.drained().await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_had_to_wait_for_somebody_else_is_not_taken_for_slow() {
        let lanes = Arc::new(Lanes::new(ROOM));
        for took in [Some(Duration::ZERO), None] {
            let waits = async {
                tokio::time::sleep(HANGS).await;
                ((), took)
            };
            lanes.run("healthy", waits).await;
        }
        assert_eq!(lanes.slow_ones(), 0);
        // Nor is one that is slow taken for quick because nobody knows.
        lanes.run("slow", takes(HANGS)).await;
        lanes.run("slow", async { ((), None) }).await;
        assert_eq!(lanes.slow_ones(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_is_given_up_leaves_its_place() {
        let lanes = Lanes::new(1);
        for who in ["a", "a", "b"] {
            let given_up =
                tokio::time::timeout(HANGS, lanes.run(who, std::future::pending::<((), _)>()));
            assert!(given_up.await.is_err());
        }
        assert_eq!(waits(&lanes, "c").await, Duration::ZERO);
    }
}
