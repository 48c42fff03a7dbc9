//! What a connection's streams say to it while its task is at work.
//!
//! A stream that has something to send wakes the connection's task. Where that is the task which drives
//! the stream, and which is about to look at the connection anyway, it need not be woken: it is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use futures_util::task::AtomicWaker;

pub(super) struct Bell {
    inner: Arc<Inner>,
    waker: Waker,
}

#[derive(Default)]
struct Inner {
    task: AtomicWaker,
    at_work: AtomicBool,
    rung: AtomicBool,
}

impl Bell {
    pub(super) fn new() -> Self {
        let inner = Arc::<Inner>::default();
        let waker = Waker::from(inner.clone());
        Self { inner, waker }
    }

    /// The task begins its work; it is told instead of woken until the turn is dropped.
    pub(super) fn turn<'a>(&'a self, cx: &Context<'_>) -> Turn<'a> {
        self.inner.task.register(cx.waker());
        self.inner.at_work.store(true, Ordering::SeqCst);
        self.inner.rung.store(true, Ordering::SeqCst);
        Turn { bell: self }
    }
}

impl Wake for Inner {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::SeqCst);
        if !self.at_work.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }
}

pub(super) struct Turn<'a> {
    bell: &'a Bell,
}

impl<'a> Turn<'a> {
    /// Whether there is something to do since this was asked last.
    pub(super) fn was_rung(&self) -> bool {
        self.bell.inner.rung.swap(false, Ordering::SeqCst)
    }

    pub(super) fn ring(&self) {
        self.bell.inner.rung.store(true, Ordering::SeqCst);
    }

    /// What rings the bell.
    pub(super) fn context(&self) -> Context<'a> {
        Context::from_waker(&self.bell.waker)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.bell.inner.at_work.store(false, Ordering::SeqCst);
        // Somebody else may have rung it after it was heard last.
        if self.bell.inner.rung.load(Ordering::SeqCst) {
            self.bell.inner.task.wake();
        }
    }
}
