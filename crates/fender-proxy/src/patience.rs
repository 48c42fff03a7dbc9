//! One timer for the many moments up to which a connection waits for something.
//!
//! Nearly all of these moments never come. So a moment that is later than the one the timer is set to
//! costs nothing: the timer is only set anew when it goes off too early.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer that is set when it is first needed.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    timer: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    /// Ready at `until`, or later. Wakes whoever asked last.
    pub(crate) fn poll(&mut self, until: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(until)));
        if timer.deadline() > until {
            timer.as_mut().reset(until);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= until || Instant::now() >= until {
                return Poll::Ready(());
            }
            timer.as_mut().reset(until);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_moment_comes_when_it_is_due_whatever_was_waited_for_before() {
        let began = Instant::now();
        let mut patience = Patience::default();
        for (seconds, expected) in [(5, 5), (3, 5), (300, 300), (310, 310)] {
            let until = began + Duration::from_secs(seconds);
            poll_fn(|cx| patience.poll(until, cx)).await;
            assert_eq!(began.elapsed(), Duration::from_secs(expected));
        }
        // A moment that is given up for a later one, and one for a sooner one.
        for seconds in [400, 500, 450] {
            let until = began + Duration::from_secs(seconds);
            let waits = poll_fn(|cx| Poll::Ready(patience.poll(until, cx).is_pending()));
            assert!(waits.await);
        }
        let until = began + Duration::from_secs(450);
        poll_fn(|cx| patience.poll(until, cx)).await;
        assert_eq!(began.elapsed(), Duration::from_secs(450));
    }
}
