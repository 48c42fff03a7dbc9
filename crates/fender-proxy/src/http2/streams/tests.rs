use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::advance;

use super::*;

/// A stream that waits for its moment and notes how often it was polled.
async fn waits(times: Times, after: Duration, polls: Arc<AtomicUsize>) -> Duration {
    let until = Instant::now() + after;
    poll_fn(|_| {
        polls.fetch_add(1, Ordering::Relaxed);
        times.poll(until)
    })
    .await;
    after
}

/// Polls once, with nothing that could wake it.
fn look<F: Future>(streams: &mut Streams<F>) -> Poll<F::Output> {
    streams.poll_ended(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test(start_paused = true)]
async fn each_stream_ends_at_its_moment_in_whatever_order_they_began() {
    let began = Instant::now();
    let mut streams = Streams::new();
    let polls = Arc::<AtomicUsize>::default();
    for seconds in [30, 5, 300, 5] {
        let after = Duration::from_secs(seconds);
        streams.push(waits(streams.times(), after, polls.clone()));
    }
    for expected in [5, 5, 30, 300] {
        let ended = poll_fn(|cx| streams.poll_ended(cx)).await;
        assert_eq!(ended, Duration::from_secs(expected));
        assert_eq!(began.elapsed(), ended);
    }
    assert!(streams.is_empty());
    // Four began, were called three times, and nobody asked in between.
    assert_eq!(polls.load(Ordering::Relaxed), 4 + 4 + 2 + 1);
}

#[tokio::test(start_paused = true)]
async fn the_moment_of_one_that_has_ended_calls_those_that_go_on_once_and_in_vain() {
    let mut streams = Streams::new();
    let polls = Arc::<AtomicUsize>::default();
    let goes_on =
        |streams: &Streams<_>| waits(streams.times(), Duration::from_secs(60), polls.clone());
    streams.push(goes_on(&streams));
    // Somebody waited for this one, and does not any more.
    let left = Instant::now() + Duration::from_secs(10);
    assert!(streams.times().poll(left).is_pending());
    assert!(look(&mut streams).is_pending());
    for (seconds, polled) in [(9, 1), (1, 2), (49, 2)] {
        advance(Duration::from_secs(seconds)).await;
        assert!(look(&mut streams).is_pending());
        assert_eq!(polls.load(Ordering::Relaxed), polled);
    }
    advance(Duration::from_secs(1)).await;
    assert!(look(&mut streams).is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_call_reaches_every_stream_whatever_it_waits_for() {
    let news = Arc::<AtomicBool>::default();
    let mut streams = Streams::new();
    for _ in 0..3 {
        let news = news.clone();
        // It leaves its waker nowhere.
        streams.push(poll_fn(move |_| match news.load(Ordering::Relaxed) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }));
    }
    assert!(look(&mut streams).is_pending());
    news.store(true, Ordering::Relaxed);
    assert!(look(&mut streams).is_pending(), "nobody called");
    streams.call();
    let ended = std::iter::from_fn(|| match look(&mut streams) {
        Poll::Ready(()) => Some(()),
        Poll::Pending => None,
    });
    assert_eq!(ended.count(), 3);
    assert_eq!(streams.len(), 0);
}

#[tokio::test]
async fn what_is_over_is_dropped_though_it_could_be_called() {
    let held = Arc::new(());
    let mut streams = Streams::new();
    for ends in [true, false] {
        let held = held.clone();
        streams.push(poll_fn(move |_| {
            let _held = &held;
            match ends {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        }));
    }
    assert!(look(&mut streams).is_ready());
    assert!(look(&mut streams).is_pending());
    assert_eq!(Arc::strong_count(&held), 2, "one goes on");
    drop(streams);
    assert_eq!(Arc::strong_count(&held), 1);
}
