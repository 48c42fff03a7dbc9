//! Every listener of the process, by address: inherited first, bound otherwise.
//!
//! The convention is systemd's `sd_listen_fds(3)`: descriptors from 3 on, counted by `LISTEN_FDS`,
//! meant for the process `LISTEN_PID`. The values are arguments, because the environment is read in
//! one place.

use std::io;
use std::os::fd::OwnedFd;

use super::{ListenAddress, Listener};
use crate::sys;

/// Inherited listeners that nobody has opened yet.
#[derive(Debug, Default)]
pub struct Listeners {
    inherited: Vec<Inherited>,
}

#[derive(Debug)]
struct Inherited {
    name: String,
    address: ListenAddress,
    held: Held,
}

#[derive(Debug)]
enum Held {
    /// Taken before there was a runtime that could serve it.
    Descriptor(OwnedFd),
    Listener(Listener),
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
        let inherited = sys::inherited_descriptors(count)?
            .into_iter()
            .map(|fd| {
                let name = names.next().unwrap_or_default().to_owned();
                let (fd, address) = super::examine(fd)?;
                Ok(Inherited {
                    name,
                    address,
                    held: Held::Descriptor(fd),
                })
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { inherited })
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

    /// The listener for `address`: the inherited one bound to it, or a new one.
    pub fn open(&mut self, address: &ListenAddress) -> io::Result<Listener> {
        let found = self
            .inherited
            .iter()
            .position(|one| one.address == *address);
        match found.map(|index| self.inherited.swap_remove(index).held) {
            Some(Held::Descriptor(fd)) => Listener::from_fd(fd),
            Some(Held::Listener(listener)) => Ok(listener),
            None => Listener::bind(address),
        }
    }

    /// Keeps a listener for whoever opens its address next, its queue untouched.
    pub fn keep(&mut self, listener: Listener) {
        self.inherited.push(Inherited {
            name: String::new(),
            address: listener.local_address().clone(),
            held: Held::Listener(listener),
        });
    }

    /// What was inherited and not opened: its name, if the parent gave one, and its address.
    pub fn leftover(&self) -> impl Iterator<Item = (&str, &ListenAddress)> {
        self.inherited
            .iter()
            .map(|one| (one.name.as_str(), &one.address))
    }
}
