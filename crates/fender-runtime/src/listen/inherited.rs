//! Every listener of the process, by address: inherited or handed over first, bound otherwise.
//!
//! The convention is systemd's `sd_listen_fds(3)`: descriptors from 3 on, counted by `LISTEN_FDS`,
//! meant for the process `LISTEN_PID`. The values are arguments, because the environment is read in
//! one place.
//!
//! It knows every listener that is open and keeps none of them open: whoever opened one does. So it
//! can hand all of them to a successor at any time, and a port that is closed is closed.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::{Kind, ListenAddress, Listener};
use crate::sys;

/// The listeners of one process. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Listeners(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// What nobody has opened yet.
    waiting: Vec<Waiting>,
    open: Vec<Weak<Kind>>,
}

/// Taken before there was anybody to serve it.
#[derive(Debug)]
struct Waiting {
    name: String,
    address: ListenAddress,
    descriptor: OwnedFd,
    origin: Origin,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Origin {
    /// It stays, whoever wants it when: it is not ours to close.
    Parent,
    Predecessor,
}

impl Listeners {
    /// Nothing inherited: every address is bound anew.
    pub fn none() -> Self {
        Self::default()
    }

    /// Takes what `LISTEN_PID`, `LISTEN_FDS` and `LISTEN_FDNAMES` announce; nothing when they are
    /// meant for another process. Works once per process, before it opens descriptors of its own
    /// and so before there is a runtime.
    pub fn inherit(pid: Option<&str>, fds: Option<&str>, names: Option<&str>) -> io::Result<Self> {
        let count = Self::announced(pid, fds)?;
        if count == 0 {
            return Ok(Self::none());
        }
        let mut names = names.unwrap_or_default().split(':');
        let listeners = Self::none();
        for descriptor in sys::inherited_descriptors(count)? {
            let name = names.next().unwrap_or_default();
            listeners.add(descriptor, name, Origin::Parent)?;
        }
        Ok(listeners)
    }

    /// How many are announced to this process; nothing is taken.
    pub fn announced(pid: Option<&str>, fds: Option<&str>) -> io::Result<u16> {
        let (Some(pid), Some(fds)) = (pid, fds) else {
            return Ok(0);
        };
        if pid.parse() != Ok(std::process::id()) {
            return Ok(0);
        }
        fds.parse().map_err(|_| {
            let message = format!("LISTEN_FDS is `{fds}`, which is no number of descriptors");
            io::Error::new(io::ErrorKind::InvalidInput, message)
        })
    }

    /// Takes what a predecessor handed over. A socket that is here already, because a parent left it
    /// to both, is not taken twice.
    pub fn take_over(&self, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        let here = |fd: &OwnedFd| -> io::Result<bool> {
            let socket = rustix::fs::fstat(fd)?.st_ino;
            let same = |one: &Waiting| {
                rustix::fs::fstat(&one.descriptor).is_ok_and(|known| known.st_ino == socket)
            };
            Ok(self.inner().waiting.iter().any(same))
        };
        for descriptor in descriptors {
            if !here(&descriptor)? {
                self.add(descriptor, "", Origin::Predecessor)?;
            }
        }
        Ok(())
    }

    fn add(&self, descriptor: OwnedFd, name: &str, origin: Origin) -> io::Result<()> {
        let (descriptor, address) = super::examine(descriptor)?;
        self.inner().waiting.push(Waiting {
            name: name.to_owned(),
            address,
            descriptor,
            origin,
        });
        Ok(())
    }

    /// The listener for `address`: the one bound to it that waits here, or a new one. Must be called
    /// inside a tokio runtime.
    pub fn open(&self, address: &ListenAddress) -> io::Result<Listener> {
        let mut inner = self.inner();
        let found = inner.waiting.iter().position(|one| one.address == *address);
        let listener = match found {
            Some(at) => Listener::from_fd(inner.waiting.swap_remove(at).descriptor),
            None => Listener::bind(address),
        }?;
        inner.open.retain(|one| one.strong_count() > 0);
        inner.open.push(Arc::downgrade(&listener.kind));
        Ok(listener)
    }

    /// Every listening socket of this process once more, open or waiting, to be handed over; what
    /// waits in their queues stays there.
    pub fn descriptors(&self) -> io::Result<Vec<OwnedFd>> {
        let inner = self.inner();
        let open = inner.open.iter().filter_map(Weak::upgrade);
        let open = open.map(|listener| listener.as_fd().try_clone_to_owned());
        let waiting = inner.waiting.iter().map(|one| one.descriptor.try_clone());
        open.chain(waiting).collect()
    }

    /// What is here and not opened: its name, if the parent gave one, and its address.
    pub fn leftover(&self) -> Vec<(String, ListenAddress)> {
        let inner = self.inner();
        let shown = |one: &Waiting| (one.name.clone(), one.address.clone());
        inner.waiting.iter().map(shown).collect()
    }

    /// Closes what a predecessor had and nobody here has opened, once the predecessor is done with it.
    pub fn close_leftover(&self) -> Vec<ListenAddress> {
        let mut inner = self.inner();
        let unwanted = |one: &mut Waiting| one.origin == Origin::Predecessor;
        let closed = inner.waiting.extract_if(.., unwanted);
        closed.map(|one| one.address).collect()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
