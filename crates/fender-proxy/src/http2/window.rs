//! How much one connection's peer may have on its way to us, and with us unread.
//!
//! A window that was given cannot be taken back: it ends with its connection. So what is given counts from then on as if it were
//! held already, against a bound for all connections together ([`Limits::windows`]). A connection begins with the least that
//! HTTP/2 knows, and is given room for one stream more with each body that is on its way at the same time as all before it.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::Limits;

/// What every connection has (RFC 9113, 6.9.2).
const LEAST: u32 = 65_535;

/// The window of one connection.
#[derive(Debug)]
pub(super) struct Window {
    all: Arc<Semaphore>,
    /// For one stream.
    each: u32,
    given: u32,
    held: Option<OwnedSemaphorePermit>,
}

impl Window {
    pub(super) fn new(all: Arc<Semaphore>, limits: &Limits) -> Self {
        Self {
            all,
            each: limits.stream_window,
            given: 0,
            held: None,
        }
    }

    /// The window from here on, where it is a larger one because so many streams are open.
    pub(super) fn widened_for(&mut self, streams: usize) -> Option<u32> {
        if streams <= self.given as usize {
            return None;
        }
        let more = self.all.clone().try_acquire_many_owned(self.each).ok()?;
        match &mut self.held {
            Some(held) => held.merge(more),
            None => self.held = Some(more),
        }
        self.given += 1;
        Some(LEAST.saturating_add(self.each.saturating_mul(self.given)))
    }
}
