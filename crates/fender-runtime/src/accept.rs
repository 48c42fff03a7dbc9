//! The accept loop's heart: slot first, then accept.
//!
//! A connection is only taken from the kernel when there is room for it; what waits longer waits in
//! the listen queue, where it costs nothing of ours. A loop that was told to turns it away instead, once no
//! room has become free for some time: who is refused can go elsewhere, who waits cannot. When the process
//! runs out of descriptors the loop pauses (5 ms doubling to 1 s), stays cancellable, says so once and
//! recovers by itself.
//!
//! It never ends because of one bad accept, and never retries one at once: a failing `accept`
//! leaves the listener readable, so an eager loop would burn a core until somebody closes a file.

use std::fmt;
use std::io;
use std::pin::pin;
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
    each: Each,
    turning: Option<TurningAway>,
    backoff: Backoff,
    episode: Option<Episode>,
}

/// How many slots the next connection takes.
struct Each(Box<dyn Fn() -> u32 + Send + Sync>);

impl fmt::Debug for Each {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Each({})", (self.0)())
    }
}

/// What becomes of connections for which there is no room.
struct TurningAway {
    after: Duration,
    told: Box<dyn Fn(PeerAddr) + Send + Sync>,
}

impl fmt::Debug for TurningAway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TurningAway(after {:?})", self.after)
    }
}

/// How a wait for slots ended.
enum Waited {
    /// None: the drain stops.
    Over(Option<Slot>),
    Anew,
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
            each: Each(Box::new(|| 1)),
            turning: None,
            backoff,
            episode: None,
        }
    }

    /// The next connection takes so many slots. What is said may change: whoever takes the connection makes its slot fit
    /// what it turns out to be ([`Slot::holds`]).
    #[must_use]
    pub fn taking(self, each: impl Fn() -> u32 + Send + Sync + 'static) -> Self {
        let each = Each(Box::new(each));
        Self { each, ..self }
    }

    /// Closes what comes once no slot has become free for `after`, and says from whom it came.
    #[must_use]
    pub fn turning_away(
        self,
        after: Duration,
        told: impl Fn(PeerAddr) + Send + Sync + 'static,
    ) -> Self {
        let told = Box::new(told);
        Self {
            turning: Some(TurningAway { after, told }),
            ..self
        }
    }

    /// The address it listens on.
    pub fn local_address(&self) -> &ListenAddress {
        self.listener.local_address()
    }

    /// The next connection, or nothing once `drain` stops. The slot counts as a task of `drain`
    /// until it is dropped.
    ///
    /// Cancel safe: a connection is either returned, turned away or still in the listen queue.
    pub async fn next(&mut self, drain: &Drain) -> Option<(Socket, PeerAddr, Slot)> {
        let slot = self.slot(drain).await?;
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

    /// Room for the next connection. Those that come while there is none are turned away, if that is wished.
    async fn slot(&mut self, drain: &Drain) -> Option<Slot> {
        loop {
            let each = (self.each.0)();
            if let Waited::Over(slot) = self.room(each, drain).await {
                return slot;
            }
        }
    }

    /// As many slots as that; or nothing, where others are asked for by now.
    async fn room(&mut self, each: u32, drain: &Drain) -> Waited {
        let mut slot = pin!(slot(self.slots.clone(), each, drain));
        let patience = self.turning.as_ref().map(|turning| turning.after);
        tokio::select! {
            biased;
            () = drain.stopping() => return Waited::Over(None),
            slot = &mut slot => return Waited::Over(slot),
            () = tokio::time::sleep(patience.unwrap_or(Duration::MAX)), if patience.is_some() => {}
        }
        while (self.each.0)() == each {
            let accepted = tokio::select! {
                biased;
                () = drain.stopping() => return Waited::Over(None),
                slot = &mut slot => return Waited::Over(slot),
                accepted = self.listener.accept() => accepted,
            };
            match (accepted, &self.turning) {
                (Ok((_, peer)), Some(TurningAway { told, .. })) => told(peer),
                (Ok(_), None) => {}
                (Err(error), _) => {
                    let pause = self.failed(&error);
                    tokio::select! {
                        biased;
                        () = drain.stopping() => return Waited::Over(None),
                        slot = &mut slot => return Waited::Over(slot),
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            }
        }
        Waited::Anew
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
    permit: OwnedSemaphorePermit,
    _registration: Registration,
}

impl Slot {
    /// Makes it as many slots as that. False where there are not enough: it is as it was.
    pub fn holds(&mut self, slots: u32) -> bool {
        let (held, slots) = (self.permit.num_permits(), slots as usize);
        if let Some(spare) = held.checked_sub(slots) {
            drop(self.permit.split(spare));
            return true;
        }
        let lacking = u32::try_from(slots - held).unwrap_or(u32::MAX);
        match self
            .permit
            .semaphore()
            .clone()
            .try_acquire_many_owned(lacking)
        {
            Ok(more) => {
                self.permit.merge(more);
                true
            }
            Err(_) => false,
        }
    }
}

async fn slot(slots: Arc<Semaphore>, each: u32, drain: &Drain) -> Option<Slot> {
    // Nobody closes this semaphore; if it were closed there would be no more room, ever.
    let permit = slots.acquire_many_owned(each).await.ok()?;
    Some(Slot {
        permit,
        _registration: drain.register(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

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
    async fn a_loop_that_turns_away_closes_what_it_has_no_room_for_and_takes_what_comes_later() {
        let drain = Drain::new();
        let (accept, address) = accept(2);
        let (told, mut turned_away) = tokio::sync::mpsc::unbounded_channel();
        let mut accept = accept
            .taking(|| 2)
            .turning_away(Duration::ZERO, move |peer| {
                let _ = told.send(peer.to_string());
            });
        let _first = tokio::net::TcpStream::connect(address).await.unwrap();
        let (_socket, _, slot) = accept.next(&drain).await.unwrap();

        let mut second = tokio::net::TcpStream::connect(address).await.unwrap();
        let mut next = pin!(accept.next(&drain));
        let refused = tokio::select! {
            _ = &mut next => panic!("there was room"),
            refused = turned_away.recv() => refused.unwrap(),
        };
        assert_eq!(refused, second.local_addr().unwrap().to_string());
        assert_eq!(second.read(&mut [0; 1]).await.unwrap(), 0);

        drop(slot);
        let third = tokio::net::TcpStream::connect(address).await.unwrap();
        let (_socket, peer, _slot) = next.await.unwrap();
        assert_eq!(peer.to_string(), third.local_addr().unwrap().to_string());
    }

    #[tokio::test]
    async fn what_a_connection_takes_is_asked_for_each_and_can_be_mended_afterwards() {
        let drain = Drain::new();
        let (accept, address) = accept(5);
        let each = Arc::new(AtomicU32::new(1));
        let asked = each.clone();
        let mut accept = accept.taking(move || asked.load(Ordering::Relaxed));
        let slots = accept.slots.clone();
        let _first = tokio::net::TcpStream::connect(address).await.unwrap();
        let (_one, _, mut slot) = accept.next(&drain).await.unwrap();
        assert_eq!(slots.available_permits(), 4);
        each.store(2, Ordering::Relaxed);
        let _second = tokio::net::TcpStream::connect(address).await.unwrap();
        let (_two, _, other) = accept.next(&drain).await.unwrap();
        assert_eq!(slots.available_permits(), 2);
        // One that turns out to be more, or less.
        assert!(slot.holds(2));
        assert_eq!(slots.available_permits(), 1);
        assert!(!slot.holds(4));
        assert_eq!(slots.available_permits(), 1);
        assert!(slot.holds(1));
        assert_eq!(slots.available_permits(), 2);
        drop((slot, other));
        assert_eq!(slots.available_permits(), 5);
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
