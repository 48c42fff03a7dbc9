//! The accept loop's heart: slot first, then accept.
//!
//! A connection is only taken from the kernel when there is room for it; what waits longer waits in
//! the listen queue, where it costs nothing of ours. When the process runs out of descriptors the
//! loop pauses (5 ms doubling to 1 s), stays cancellable, says so once and recovers by itself.
//!
//! It never ends because of one bad accept, and never retries one at once: a failing `accept`
//! leaves the listener readable, so an eager loop would burn a core until somebody closes a file.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::drain::{Drain, Registration};
use crate::listen::{ListenAddress, Listener, PeerAddr, Socket};

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Takes connections from one listener, as many at a time as there are slots.
#[derive(Debug)]
pub struct Accept {
    listener: Listener,
    slots: Arc<Semaphore>,
    backoff: Backoff,
    episode: Option<Episode>,
}

/// A run of failures without a success between them.
#[derive(Debug)]
struct Episode {
    began: Instant,
    attempts: u64,
}

impl Accept {
    /// At most `slots` connections of this listener are open at a time.
    pub fn new(listener: Listener, slots: usize) -> Self {
        Self::sharing(
            listener,
            Arc::new(Semaphore::new(slots.min(Semaphore::MAX_PERMITS))),
        )
    }

    /// Shares its slots with other listeners.
    pub fn sharing(listener: Listener, slots: Arc<Semaphore>) -> Self {
        let backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        Self {
            listener,
            slots,
            backoff,
            episode: None,
        }
    }

    /// The address it listens on.
    pub fn local_address(&self) -> &ListenAddress {
        self.listener.local_address()
    }

    /// The next connection, or nothing once `drain` stops. The slot counts as a task of `drain`
    /// until it is dropped.
    ///
    /// Cancel safe: a connection is either returned or still in the listen queue.
    pub async fn next(&mut self, drain: &Drain) -> Option<(Socket, PeerAddr, Slot)> {
        let slot = tokio::select! {
            biased;
            () = drain.stopping() => return None,
            slot = slot(&self.slots, drain) => slot?,
        };
        loop {
            let accepted = tokio::select! {
                biased;
                () = drain.stopping() => return None,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, peer)) => {
                    self.recovered();
                    return Some((socket, peer, slot));
                }
                Err(error) => {
                    let pause = self.failed(&error);
                    tokio::select! {
                        biased;
                        () = drain.stopping() => return None,
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            }
        }
    }

    fn failed(&mut self, error: &io::Error) -> Duration {
        let address = self.listener.local_address();
        match &mut self.episode {
            Some(episode) => episode.attempts += 1,
            None => {
                tracing::warn!(listen = %address, %error, "cannot accept connections, pausing");
                self.episode = Some(Episode {
                    began: Instant::now(),
                    attempts: 1,
                });
            }
        }
        self.backoff.next()
    }

    fn recovered(&mut self) {
        let Some(Episode { began, attempts }) = self.episode.take() else {
            return;
        };
        self.backoff.reset();
        let address = self.listener.local_address();
        let paused_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(listen = %address, paused_ms, attempts, "accepting connections again");
    }
}

/// Room for one connection, and its registration with the drain; both end when this is dropped.
#[derive(Debug)]
#[must_use = "dropping the slot lets another connection in"]
pub struct Slot {
    _permit: OwnedSemaphorePermit,
    _registration: Registration,
}

async fn slot(slots: &Arc<Semaphore>, drain: &Drain) -> Option<Slot> {
    // Nobody closes this semaphore; if it were closed there would be no more room, ever.
    let permit = slots.clone().acquire_owned().await.ok()?;
    Some(Slot {
        _permit: permit,
        _registration: drain.register(),
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn accept(slots: usize) -> (Accept, std::net::SocketAddr) {
        let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
        let ListenAddress::Tcp(address) = *listener.local_address() else {
            unreachable!()
        };
        (Accept::new(listener, slots), address)
    }

    #[tokio::test]
    async fn a_connection_beyond_the_slots_waits_in_the_queue_until_one_is_free() {
        let drain = Drain::new();
        let (mut accept, address) = accept(1);
        let first = tokio::net::TcpStream::connect(address).await.unwrap();
        let (_socket, peer, slot) = accept.next(&drain).await.unwrap();
        assert_eq!(peer.to_string(), first.local_addr().unwrap().to_string());

        let mut second = tokio::net::TcpStream::connect(address).await.unwrap();
        let mut waiting = std::pin::pin!(accept.next(&drain));
        let polled = std::future::poll_fn(|context| {
            std::task::Poll::Ready(waiting.as_mut().poll(context).is_ready())
        });
        assert!(!polled.await);

        drop(slot);
        let (mut socket, _, _slot) = waiting.await.unwrap();
        second.write_all(b"ahoy").await.unwrap();
        let mut heard = [0; 4];
        socket.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"ahoy");
    }

    #[tokio::test]
    async fn stopping_ends_the_loop_whether_it_waits_for_a_slot_or_a_connection() {
        let drain = Drain::new();
        let (mut waits_for_connection, _) = accept(1);
        let (mut waits_for_slot, _) = accept(0);
        let stop = async { drain.stop() };
        let (connection, slot, ()) = tokio::join!(
            waits_for_connection.next(&drain),
            waits_for_slot.next(&drain),
            stop
        );
        assert!(connection.is_none() && slot.is_none());
        drain.drained().await;
    }

    #[tokio::test]
    async fn a_slot_keeps_the_drain_from_being_drained() {
        let drain = Drain::new();
        let (mut accept, address) = accept(4);
        let _client = tokio::net::TcpStream::connect(address).await.unwrap();
        let (_, _, slot) = accept.next(&drain).await.unwrap();
        drain.stop();
        let mut drained = std::pin::pin!(drain.drained());
        let polled = std::future::poll_fn(|context| {
            std::task::Poll::Ready(drained.as_mut().poll(context).is_ready())
        });
        assert!(!polled.await);
        drop(slot);
        drained.await;
    }
}
