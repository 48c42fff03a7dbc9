//! How long to wait before trying again: doubling, capped, jittered.
//!
//! Jitter keeps a thousand sidecars from returning in the same second after the control plane was
//! away; it never shortens a wait below half of its step.

use std::time::Duration;

use crate::random;

/// Some time within this one, for many who would otherwise all act at its beginning.
pub fn spread(within: Duration) -> Duration {
    within.mul_f64(random::unit())
}

/// The waits between attempts.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    step: Duration,
}

impl Backoff {
    /// The first wait is up to `base`, no wait is longer than `cap`.
    pub fn new(base: Duration, cap: Duration) -> Self {
        let base = base.min(cap);
        Self {
            base,
            cap,
            step: base,
        }
    }

    /// One that has already waited so many times.
    pub fn after(base: Duration, cap: Duration, times: u32) -> Self {
        let mut backoff = Self::new(base, cap);
        let factor = 2_u32.saturating_pow(times);
        backoff.step = backoff.base.saturating_mul(factor).min(cap);
        backoff
    }

    /// The next wait: between half and the whole of the doubling step.
    #[expect(
        clippy::should_implement_trait,
        reason = "waits never run out, so it is no iterator"
    )]
    pub fn next(&mut self) -> Duration {
        let step = self.step;
        self.step = step.saturating_mul(2).min(self.cap);
        step.mul_f64(0.5 + random::unit() / 2.0)
    }

    /// Starts over, after a success.
    pub fn reset(&mut self) {
        self.step = self.base;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_never_fall_below_half_a_step() {
        for _ in 0..100 {
            let mut backoff = Backoff::new(Duration::from_millis(5), Duration::from_secs(1));
            for step in [5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000, 1000] {
                let step = Duration::from_millis(step);
                let wait = backoff.next();
                assert!(
                    wait >= step / 2 && wait <= step,
                    "{wait:?} for a step of {step:?}"
                );
            }
            backoff.reset();
            assert!(backoff.next() <= Duration::from_millis(5));
        }
    }

    #[test]
    fn who_has_waited_before_goes_on_where_it_was() {
        let (base, cap) = (Duration::from_secs(5), Duration::from_secs(600));
        for (times, step) in [(0, 5), (1, 10), (6, 320), (7, 600), (u32::MAX, 600)] {
            let step = Duration::from_secs(step);
            let wait = Backoff::after(base, cap, times).next();
            assert!(wait >= step / 2 && wait <= step, "{wait:?} after {times}");
        }
    }

    #[test]
    fn two_clients_do_not_wait_alike() {
        let mut waits: Vec<_> = (0..16)
            .map(|_| Backoff::new(Duration::from_secs(60), Duration::from_secs(60)).next())
            .collect();
        waits.sort();
        waits.dedup();
        assert!(waits.len() > 1);
    }

    #[test]
    fn a_huge_base_does_not_overflow() {
        let mut backoff = Backoff::new(Duration::MAX / 2, Duration::from_secs(30));
        for _ in 0..200 {
            assert!(backoff.next() <= Duration::from_secs(30));
        }
    }
}
