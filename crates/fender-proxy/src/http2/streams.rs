//! The streams that are open on one connection, and what concerns all of them: a newer policy, and the time.
//!
//! A stream is polled when it has something to do. What it waits for besides is the connection's to watch, once for all
//! of them: it calls them all when policy has changed, and when the first moment is there that one of them waits for. Nearly
//! none of these moments comes, so a stream that has ended leaves its own behind: all are called in vain then, once in a while.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_util::stream::{FuturesUnordered, Stream as _};
use pin_project_lite::pin_project;
use tokio::time::Instant;

use crate::patience::Patience;

/// Streams, and the one timer for all their moments.
pub(super) struct Streams<F> {
    open: FuturesUnordered<Called<F>>,
    times: Times,
    patience: Patience,
}

pin_project! {
    /// A stream that can be woken though it has left its waker nowhere.
    struct Called<F> {
        #[pin]
        work: F,
        waker: Option<Waker>,
    }
}

impl<F: Future> Future for Called<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        if !this
            .waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            *this.waker = Some(cx.waker().clone());
        }
        this.work.poll(cx)
    }
}

impl<F: Future> Streams<F> {
    pub(super) fn new() -> Self {
        Self {
            open: FuturesUnordered::new(),
            times: Times(Arc::new(Mutex::new(Moments {
                now: Instant::now(),
                next: None,
            }))),
            patience: Patience::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// What the streams wait with.
    pub(super) fn times(&self) -> Times {
        self.times.clone()
    }

    pub(super) fn push(&mut self, work: F) {
        self.open.push(Called { work, waker: None });
    }

    /// Gives up all of them.
    pub(super) fn clear(&mut self) {
        self.open.clear();
    }

    /// Lets each of them look at what is new.
    pub(super) fn call(&mut self) {
        for stream in Pin::new(&mut self.open).iter_pin_mut() {
            if let Some(waker) = stream.project().waker {
                waker.wake_by_ref();
            }
        }
    }

    /// The next that has ended.
    pub(super) fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<F::Output> {
        loop {
            if let Poll::Ready(Some(ended)) = Pin::new(&mut self.open).poll_next(cx) {
                return Poll::Ready(ended);
            }
            let Some(next) = self.times.lock().next else {
                return Poll::Pending;
            };
            if self.patience.poll(next, cx).is_pending() {
                return Poll::Pending;
            }
            {
                let mut moments = self.times.lock();
                moments.now = Instant::now();
                moments.next = None;
            }
            self.call();
        }
    }
}

/// The moments that the streams of one connection wait for.
#[derive(Clone)]
pub(super) struct Times(Arc<Mutex<Moments>>);

struct Moments {
    /// When a moment was there last.
    now: Instant,
    /// The first that any of them waits for.
    next: Option<Instant>,
}

impl Times {
    /// Nobody else waits for it: all are in one task.
    fn lock(&self) -> MutexGuard<'_, Moments> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ready at `until`, or later. The stream is called then.
    pub(super) fn poll(&self, until: Instant) -> Poll<()> {
        let mut moments = self.lock();
        if moments.now >= until {
            return Poll::Ready(());
        }
        if moments.next.is_none_or(|next| until < next) {
            moments.next = Some(until);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests;
