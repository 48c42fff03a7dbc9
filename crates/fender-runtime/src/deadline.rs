//! One moment by which a whole establishment must be over.
//!
//! A timeout per step lets a slow peer take the sum of them. A [`Deadline`] is made once and handed
//! to every step.

use std::time::Duration;

use tokio::time::Instant;

/// The moment after which nobody waits any more.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Deadline {
    at: Instant,
}

impl Deadline {
    /// `limit` from now.
    pub fn after(limit: Duration) -> Self {
        // A limit beyond what the clock can count means "never" to whoever wrote it.
        let far = Duration::from_secs(365 * 24 * 60 * 60);
        let now = Instant::now();
        Self {
            at: now.checked_add(limit).unwrap_or(now + far),
        }
    }

    /// The time left; zero once it has passed.
    pub fn remaining(self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// Runs `step` until it ends or the deadline passes.
    pub async fn bound<F: Future>(self, step: F) -> Result<F::Output, Elapsed> {
        tokio::time::timeout_at(self.at, step)
            .await
            .map_err(|_| Elapsed)
    }

    /// Resolves when the deadline passes.
    pub async fn passed(self) {
        tokio::time::sleep_until(self.at).await;
    }
}

/// The deadline passed first.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("deadline passed")]
pub struct Elapsed;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn steps_share_one_deadline_instead_of_adding_theirs_up() {
        let deadline = Deadline::after(Duration::from_secs(10));
        let step = || tokio::time::sleep(Duration::from_secs(6));
        assert_eq!(deadline.bound(step()).await, Ok(()));
        assert_eq!(deadline.remaining(), Duration::from_secs(4));
        assert_eq!(deadline.bound(step()).await, Err(Elapsed));
        assert_eq!(deadline.remaining(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn an_endless_limit_does_not_overflow() {
        assert!(Deadline::after(Duration::MAX).remaining() > Duration::from_secs(1_000_000));
    }
}
