//! Kept connections to one place, and requests on them.
//!
//! A kept connection has no task: it lies still in the pool. It is used again only within the time it
//! is kept for, sooner than the other side closes it, and after a look whether it is still open.
//!
//! One that was made for a connection of a peer's, and whose other side was told so ([`Introduction`]), serves that connection
//! alone.
//!
//! A request is sent a second time only when nothing of it was written, or when a kept connection
//! ended before a word of response to a request that is idempotent and has no body (RFC 9110 §9.2.2).

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fender_identity::Peer;
use fender_runtime::deadline::Deadline;
use fender_wire::{HeadReader, ResponseHead};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::Limits;
use crate::call::{Fate, Head, Http1Call, Link, Near, Onward, unless_it_ends};
use crate::fault::{Fault, OurFault, UpstreamFault};
use crate::introduction::Introduction;
use crate::stream::Stream;

/// The idle connections to one place.
#[derive(Debug)]
pub(crate) struct Pool {
    idle: Mutex<VecDeque<Idle>>,
    links: Arc<Semaphore>,
    limits: Arc<Limits>,
    keeping: Keeping,
    /// How long an idle connection may be used again.
    lasts: Duration,
    /// How old a connection may be that is used again.
    ages: Duration,
}

/// To whom connections are kept, and so for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keeping {
    App,
    /// Another workload, behind a sidecar like this one.
    Peer,
    /// Whatever is outside the mesh.
    Upstream,
}

#[derive(Debug)]
struct Idle {
    link: Box<Link>,
    since: Instant,
}

impl Pool {
    /// `links` bounds the connections of all pools that share it.
    pub(crate) fn new(links: Arc<Semaphore>, limits: Arc<Limits>, keeping: Keeping) -> Self {
        let (lasts, ages) = match keeping {
            // It proves nothing, so there is nothing to prove anew.
            Keeping::App => (limits.pool_idle, Duration::MAX),
            Keeping::Peer => (limits.peer_idle, limits.link_age),
            Keeping::Upstream => (limits.upstream_idle, limits.link_age),
        };
        Self {
            idle: Mutex::default(),
            links,
            limits,
            keeping,
            lasts,
            ages,
        }
    }

    /// Sends one request on a kept connection, or on one that `open` makes, and waits for the head of
    /// its response.
    ///
    /// Dropping the future ends the request and its connection.
    pub(crate) async fn send<N, O>(
        self: &Arc<Self>,
        onward: &Onward,
        near: &mut N,
        introduction: Option<&Introduction>,
        open: impl FnOnce(Deadline) -> O,
    ) -> Result<(ResponseHead, Http1Call), Fault>
    where
        N: Near,
        O: Future<Output = Result<(Stream, Peer), UpstreamFault>>,
    {
        let Head::Http1(written) = &onward.head else {
            return Err(OurFault::Unwritable("a request of HTTP/2 here".to_owned()).into());
        };
        let mut begun = None;
        if let Some(link) = self.take(near, introduction) {
            let mut call = Http1Call::new(self.clone(), link, written, onward);
            match poll_fn(|cx| call.poll_head(near, cx)).await {
                Ok(head) => return Ok((head, call)),
                Err(failed) => match failed.fate {
                    Fate::Unsent => begun = Some(call),
                    Fate::Lost if onward.repeats() => {}
                    Fate::Lost | Fate::Other => return Err(failed.fault),
                },
            }
        }
        // Boxed: nearly every request finds a connection, and each would carry the room for this.
        let link = Box::pin(self.open(near, introduction, open)).await?;
        let mut call = match begun {
            Some(mut call) => {
                call.resume(link);
                call
            }
            None => Http1Call::new(self.clone(), link, written, onward),
        };
        let head = poll_fn(|cx| call.poll_head(near, cx)).await;
        head.map(|head| (head, call)).map_err(|failed| failed.fault)
    }

    async fn open<N, O>(
        &self,
        near: &mut N,
        introduction: Option<&Introduction>,
        open: impl FnOnce(Deadline) -> O,
    ) -> Result<Box<Link>, Fault>
    where
        N: Near,
        O: Future<Output = Result<(Stream, Peer), UpstreamFault>>,
    {
        let deadline = Deadline::after(self.limits.establish);
        let opened = async {
            let slot = self.slot(deadline).await?;
            let (io, far) = open(deadline).await?;
            let (far, introduced) = (Arc::new(far), introduction.cloned());
            let link = Link::new(io, far, introduced, slot, self.heads());
            Ok::<_, Fault>(Box::new(link))
        };
        let link = unless_it_ends(near, opened).await??;
        match near.takes(link.far()) {
            true => Ok(link),
            false => Err(UpstreamFault::Breaks("its certificate was revoked".to_owned()).into()),
        }
    }

    /// Room for one more connection.
    pub(crate) async fn slot(&self, deadline: Deadline) -> Result<OwnedSemaphorePermit, Fault> {
        match deadline.bound(self.links.clone().acquire_owned()).await {
            Ok(Ok(slot)) => Ok(slot),
            Ok(Err(_)) | Err(_) => Err(OurFault::Crowded.into()),
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The youngest idle connection that is still open, of those that were made for nobody else.
    fn take(&self, near: &mut impl Near, introduction: Option<&Introduction>) -> Option<Box<Link>> {
        let mut idle = self.idle();
        let is_ours = |idle: &Idle| idle.link.introduced() == introduction;
        let now = Instant::now();
        loop {
            let youngest = idle.iter().rposition(is_ours)?;
            let Idle { mut link, since } = idle.remove(youngest)?;
            if now - since >= self.lasts {
                // All before it are older.
                idle.drain(..youngest);
                return None;
            }
            if link.age(now) < self.ages && link.is_open() && near.takes(link.far()) {
                return Some(link);
            }
        }
    }

    /// Takes a connection back on which nothing is open.
    pub(crate) fn keep(&self, link: Box<Link>) {
        let now = Instant::now();
        // Somebody may be waiting for the slot.
        if self.links.available_permits() == 0 || link.age(now) >= self.ages {
            return;
        }
        let mut idle = self.idle();
        if idle.len() >= self.limits.pool {
            idle.pop_front();
        }
        idle.push_back(Idle { link, since: now });
    }

    /// Closes the idle connections nobody will use any more.
    pub(crate) fn prune(&self) {
        self.idle().retain(|idle| idle.since.elapsed() < self.lasts);
    }

    /// What reads the responses.
    fn heads(&self) -> HeadReader {
        let heads = HeadReader::new(self.limits.head());
        match self.keeping {
            Keeping::App => heads.forgiving_applications(),
            Keeping::Peer | Keeping::Upstream => heads,
        }
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
