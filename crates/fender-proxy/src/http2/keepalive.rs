//! Whether a silent peer is still there.

use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::Instant;

use crate::patience::Patience;

/// Pings the peer now and then.
pub(super) struct KeepAlive {
    pings: Option<PingPong>,
    every: Duration,
    /// When the next ping or the answer to the last one is due.
    due: Instant,
    waits: bool,
    patience: Patience,
}

impl KeepAlive {
    pub(super) fn new(pings: Option<PingPong>, every: Duration) -> Self {
        Self {
            pings,
            every,
            due: Instant::now() + every,
            waits: false,
            patience: Patience::default(),
        }
    }

    /// Ready when a ping was not answered in time.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(pings) = &mut self.pings else {
            return Poll::Pending;
        };
        loop {
            if self.waits {
                match pings.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => {
                        self.waits = false;
                        self.due = Instant::now() + self.every;
                    }
                    // The connection knows why.
                    Poll::Ready(Err(_)) => return Poll::Pending,
                    Poll::Pending => {}
                }
            }
            ready!(self.patience.poll(self.due, cx));
            if self.waits {
                return Poll::Ready(());
            }
            if pings.send_ping(Ping::opaque()).is_err() {
                return Poll::Pending;
            }
            self.waits = true;
            self.due = Instant::now() + self.every;
        }
    }
}
