//! How many requests a peer may give up: so many at once, and more as time passes.
//!
//! A stream that is reset takes none of the room for streams any more, but the app may be at work on it still. So whoever
//! asks and gives up makes the app do more than there is room for at a time (CVE-2023-44487). h2 counts only the streams
//! that were reset before they were taken up, and a peer can wait for that.

use std::time::Duration;

use tokio::time::Instant;

use crate::Limits;

/// What is left to the peer of one connection.
pub(super) struct Allowance {
    /// After what time one more is allowed.
    each: Duration,
    /// After what time all are.
    all: Duration,
    /// When all will be, if none is taken.
    whole_at: Instant,
}

impl Allowance {
    pub(super) fn new(limits: &Limits) -> Self {
        let each = Duration::from_secs(1) / limits.streams.max(1);
        Self {
            each,
            all: each * limits.given_up,
            whole_at: Instant::now(),
        }
    }

    /// Takes one; false if there is none.
    pub(super) fn take(&mut self) -> bool {
        let now = Instant::now();
        let whole_at = self.whole_at.max(now) + self.each;
        let takes = whole_at - now <= self.all;
        if takes {
            self.whole_at = whole_at;
        }
        takes
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn so_many_at_once_and_more_as_time_passes_but_never_more_than_that() {
        let limits = Limits {
            given_up: 10,
            streams: 4,
            ..Limits::default()
        };
        let mut allowance = Allowance::new(&limits);
        let mut takes = || (0..100).take_while(|_| allowance.take()).count();
        assert_eq!((takes(), takes()), (10, 0));
        advance(Duration::from_millis(249)).await;
        assert_eq!(takes(), 0);
        advance(Duration::from_millis(1)).await;
        assert_eq!(takes(), 1);
        advance(Duration::from_secs(1)).await;
        assert_eq!(takes(), 4);
        advance(Duration::from_secs(60 * 60)).await;
        assert_eq!(takes(), 10);
    }

    /// All streams of a connection run into a deadline of a second, again and again: an app hangs, and its clients are honest.
    #[tokio::test(start_paused = true)]
    async fn deadlines_of_a_second_never_come_to_the_end_of_it() {
        let limits = Limits::default();
        let mut allowance = Allowance::new(&limits);
        for second in 0..1000 {
            for _ in 0..limits.streams {
                assert!(allowance.take(), "{second}");
            }
            advance(Duration::from_secs(1)).await;
        }
    }
}
