//! The wall clock as a value, so that time is an argument and never ambient.
//!
//! Timers are `tokio::time`, which stops while a machine is suspended and ignores a corrected
//! clock. Whoever waits for a moment on the wall uses [`sleep_until`], the one place where the two
//! meet.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use rustls_pki_types::UnixTime;

/// How long [`sleep_until`] trusts a timer before it looks at the wall again: a suspended machine
/// or a corrected clock is noticed within this time.
const RECHECK: Duration = Duration::from_secs(30);

/// Wall-clock time.
pub trait Clock: Send + Sync + fmt::Debug + 'static {
    /// The present moment, to the second.
    fn now(&self) -> UnixTime;

    /// How long 1970 is ago, as precisely as this clock knows it: for what is written down.
    fn since_1970(&self) -> Duration;
}

/// A clock that many may hold.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's own clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the machine's clock"
    )]
    fn since_1970(&self) -> Duration {
        // A clock before 1970 reads as 1970: every certificate is then not yet valid, and refused.
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
    }

    fn now(&self) -> UnixTime {
        UnixTime::since_unix_epoch(self.since_1970())
    }
}

/// The machine's own clock, ready to share.
pub fn system() -> SharedClock {
    Arc::new(SystemClock)
}

/// A clock that moves only when told to.
#[derive(Debug)]
pub struct TestClock {
    milliseconds: AtomicU64,
}

impl TestClock {
    /// A clock standing still at `now`.
    pub fn new(now: UnixTime) -> Arc<Self> {
        Arc::new(Self {
            milliseconds: AtomicU64::new(now.as_secs().saturating_mul(1000)),
        })
    }

    /// Moves forward.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.milliseconds.fetch_add(by, Ordering::Relaxed);
    }

    /// Jumps, in either direction.
    pub fn set(&self, now: UnixTime) {
        self.milliseconds
            .store(now.as_secs().saturating_mul(1000), Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn now(&self) -> UnixTime {
        UnixTime::since_unix_epoch(self.since_1970())
    }

    fn since_1970(&self) -> Duration {
        Duration::from_millis(self.milliseconds.load(Ordering::Relaxed))
    }
}

/// Lets rustls read the same clock as everybody else.
#[derive(Clone, Debug)]
pub struct TlsClock(pub SharedClock);

impl rustls::time_provider::TimeProvider for TlsClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0.now())
    }
}

/// Waits until the wall clock shows `moment`, looking at it at least every 30 s.
pub async fn sleep_until(clock: &dyn Clock, moment: UnixTime) {
    loop {
        let left = moment.as_secs().saturating_sub(clock.now().as_secs());
        if left == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_secs(left).min(RECHECK)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    #[test]
    fn a_test_clock_moves_only_when_told_to() {
        let clock = TestClock::new(at(1000));
        assert_eq!(clock.now(), at(1000));
        clock.advance(Duration::from_millis(2500));
        assert_eq!(clock.now(), at(1002));
        clock.set(at(10));
        assert_eq!(clock.now(), at(10));
    }

    #[test]
    fn rustls_reads_the_same_clock() {
        use rustls::time_provider::TimeProvider;

        let clock = TestClock::new(at(77));
        assert_eq!(TlsClock(clock).current_time(), Some(at(77)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_jump_of_the_wall_clock_is_noticed_within_half_a_minute() {
        let clock = TestClock::new(at(0));
        let began = tokio::time::Instant::now();
        let jump = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            clock.set(at(10_000));
        };
        tokio::join!(sleep_until(&*clock, at(9_000)), jump);
        assert_eq!(began.elapsed(), RECHECK);
    }
}
