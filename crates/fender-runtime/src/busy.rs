//! Busy polling: who had something to read looks for more, for a while, before it sleeps.
//!
//! A thread that sleeps is woken by the scheduler, and on an idle or a virtual processor that takes longer than most requests
//! take in a proxy. Who looks instead is there when the next byte comes. The price is processor time: up to a whole processor
//! for as long as there is traffic, whether much or little.
//!
//! So it is off until somebody asks for it ([`begin`]), and how long is bounded ([`LONGEST`]). It takes no turn from anybody: every
//! task that is ready and every timer runs between two looks. When nothing has come for as long as was asked for, the threads sleep
//! as they do without it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::drain::Drain;

/// Who waits longer than this for the next byte does not notice the scheduler.
pub const LONGEST: Duration = Duration::from_millis(1);

/// Of this process: every socket asks it.
static POLL: OnceLock<BusyPoll> = OnceLock::new();

/// From now on, until `drain` stops, whoever reads from a [`Socket`](crate::listen::Socket) in this runtime looks for `window`, or
/// for [`LONGEST`], before it sleeps. The first call of a process counts.
pub fn begin(window: Duration, drain: &Drain) {
    let poll = POLL.get_or_init(|| BusyPoll::new(window.min(LONGEST)));
    let stopping = drain.clone();
    drain.spawn(async move {
        tokio::select! {
            biased;
            () = stopping.stopping() => {}
            () = poll.look() => {}
        }
    });
}

/// Something was read.
pub(crate) fn stir() {
    if let Some(poll) = POLL.get() {
        poll.stir();
    }
}

#[derive(Debug)]
struct BusyPoll {
    window: Duration,
    began: Instant,
    /// How long to look, in nanoseconds since it began.
    until: AtomicU64,
    asleep: AtomicBool,
    wake: Notify,
}

impl BusyPoll {
    fn new(window: Duration) -> Self {
        Self {
            window,
            began: Instant::now(),
            until: AtomicU64::new(0),
            asleep: AtomicBool::new(false),
            wake: Notify::new(),
        }
    }

    fn stir(&self) {
        let until = nanoseconds(self.began.elapsed() + self.window);
        self.until.store(until, Ordering::SeqCst);
        // Most of the time it looks already.
        if self.asleep.load(Ordering::SeqCst) && self.asleep.swap(false, Ordering::SeqCst) {
            self.wake.notify_one();
        }
    }

    fn is_over(&self) -> bool {
        nanoseconds(self.began.elapsed()) >= self.until.load(Ordering::SeqCst)
    }

    /// A task that is always ready keeps its runtime from sleeping: it asks the kernel what there is, and goes on.
    async fn look(&self) {
        loop {
            while !self.is_over() {
                tokio::task::yield_now().await;
            }
            self.asleep.store(true, Ordering::SeqCst);
            // Who stirred just before has not seen that.
            if self.is_over() {
                self.wake.notified().await;
            }
        }
    }
}

fn nanoseconds(since: Duration) -> u64 {
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;

    const WINDOW: Duration = Duration::from_micros(200);

    /// Looks until the test is over. The clock stands still but for what a test moves.
    async fn looking() -> Arc<BusyPoll> {
        tokio::time::pause();
        let poll = Arc::new(BusyPoll::new(WINDOW));
        let looks = poll.clone();
        #[expect(
            clippy::disallowed_methods,
            reason = "it ends with the runtime of the test"
        )]
        tokio::spawn(async move { looks.look().await });
        turns().await;
        poll
    }

    /// What is ready runs.
    async fn turns() {
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
    }

    fn sleeps(poll: &BusyPoll) -> bool {
        poll.asleep.load(Ordering::SeqCst)
    }

    #[tokio::test]
    async fn who_read_something_looks_for_as_long_as_was_asked_and_then_sleeps() {
        let poll = looking().await;
        assert!(sleeps(&poll), "nothing was read yet");
        for _ in 0..3 {
            poll.stir();
            turns().await;
            assert!(!sleeps(&poll));
            tokio::time::advance(WINDOW - Duration::from_nanos(1)).await;
            turns().await;
            assert!(!sleeps(&poll));
            tokio::time::advance(Duration::from_nanos(1)).await;
            turns().await;
            assert!(sleeps(&poll));
        }
    }

    #[tokio::test]
    async fn who_reads_more_meanwhile_looks_longer() {
        let poll = looking().await;
        for _ in 0..5 {
            poll.stir();
            tokio::time::advance(WINDOW / 2).await;
            turns().await;
            assert!(!sleeps(&poll));
        }
        tokio::time::advance(WINDOW / 2).await;
        turns().await;
        assert!(sleeps(&poll));
    }

    #[tokio::test]
    async fn sockets_and_timers_are_served_between_two_looks() {
        let poll = looking().await;
        let (mut near, mut far) = UnixStream::pair().unwrap();
        let timer = tokio::time::sleep(WINDOW / 2);
        poll.stir();
        near.write_all(b"ahoy").await.unwrap();
        let mut heard = [0; 4];
        far.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"ahoy");
        tokio::time::advance(WINDOW / 2).await;
        // Rounded up to the timer's own unit.
        tokio::time::advance(Duration::from_millis(1)).await;
        timer.await;
    }

    #[tokio::test]
    async fn it_ends_with_its_drain_while_it_looks() {
        let drain = Drain::new();
        begin(Duration::from_secs(3600), &drain);
        stir();
        let poll = POLL.get().unwrap();
        assert_eq!(poll.window, LONGEST);
        drain
            .close(crate::deadline::Deadline::after(Duration::from_secs(20)))
            .await;
    }
}
