//! Lines in a log that somebody else can cause: so many a second, and no more.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

/// Lets so many lines a second through and counts the rest.
#[derive(Debug)]
pub struct Pace {
    started: Instant,
    limit: u64,
    /// The second in the upper half, the lines of it in the lower.
    state: AtomicU64,
    suppressed: AtomicU64,
}

impl Pace {
    /// So many lines in each second.
    pub fn new(limit: u32) -> Self {
        Self {
            started: Instant::now(),
            limit: u64::from(limit),
            state: AtomicU64::new(0),
            suppressed: AtomicU64::new(0),
        }
    }

    /// How many lines were held back before this one, or nothing if it is to be held back itself.
    pub fn admit(&self) -> Option<u64> {
        let second = self.started.elapsed().as_secs() & u64::from(u32::MAX);
        let next = |state: u64| {
            let lines = if state >> 32 == second {
                state & u64::from(u32::MAX)
            } else {
                0
            };
            (lines < self.limit).then_some(second << 32 | (lines + 1))
        };
        match self
            .state
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next)
        {
            Ok(_) => Some(self.suppressed.swap(0, Ordering::Relaxed)),
            Err(_) => {
                self.suppressed.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_lines_is_held_back_and_counted() {
        let pace = Pace::new(2);
        assert_eq!((pace.admit(), pace.admit()), (Some(0), Some(0)));
        assert_eq!((pace.admit(), pace.admit()), (None, None));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(
            (pace.admit(), pace.admit(), pace.admit()),
            (Some(2), Some(0), None)
        );
    }
}
