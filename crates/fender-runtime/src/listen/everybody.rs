//! A Unix socket that is made for its owner, opened to everybody.
//!
//! A path can be changed only by its path, and between `bind` and `chmod` whoever may write to the directory can put something else
//! there. So what lies there is held by a descriptor, and a connection by way of that descriptor has to arrive at the listener before
//! its mode is changed. It refuses to change anything else, and to guess.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use socket2::{Domain, SockAddr, Type};

use super::Listener;

/// Connecting takes the right to write.
const EVERYBODY: Mode = Mode::from_raw_mode(0o666);

/// Processes of this user and of root that may have come before the mode was changed. More are nobody's mistake.
const EARLY: usize = 64;

pub(super) fn admit(listener: &Listener, path: &Path) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = rustix::fs::open(path, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&found)?;
    if !is_socket_of_ours_or_root(&stat) {
        return Err(something_else());
    }
    if Mode::from_raw_mode(stat.st_mode).contains(EVERYBODY) {
        return Ok(());
    }
    if !listener.is_ours_alone {
        return Err(io::Error::other(
            "who opened the socket, this process's parent or predecessor, opened it for its owner alone; `chmod 666` it, or let them open it for everybody (`SocketMode=0666`)",
        ));
    }
    let itself = format!("/proc/self/fd/{}", found.as_raw_fd());
    if !arrives(listener, Path::new(&itself))? {
        return Err(something_else());
    }
    Ok(rustix::fs::chmod(itself, EVERYBODY)?)
}

fn is_socket_of_ours_or_root(stat: &Stat) -> bool {
    let own = rustix::process::geteuid().as_raw();
    FileType::from_raw_mode(stat.st_mode) == FileType::Socket && [own, 0].contains(&stat.st_uid)
}

fn something_else() -> io::Error {
    io::Error::other(
        "somebody has put something else in the place of the socket; use a directory that only this user may write to",
    )
}

/// Whether who connects there comes out here.
fn arrives(listener: &Listener, socket: &Path) -> io::Result<bool> {
    let probe = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    probe.set_nonblocking(true)?;
    // The kernel chooses a name that nobody else has while the probe is open.
    probe.bind(&SockAddr::unix("")?)?;
    let name = probe.local_addr()?;
    if name.as_abstract_namespace().is_none() {
        return Err(io::Error::other("the kernel gave a socket no name"));
    }
    match probe.connect(&SockAddr::unix(socket)?) {
        Ok(()) => {}
        // Nobody listens there, or not for streams: it is no socket of ours.
        Err(error) if is_elsewhere(&error) => return Ok(false),
        Err(error) => return Err(error),
    }
    for _ in 0..EARLY {
        let accepted = rustix::net::accept_with(listener, SocketFlags::CLOEXEC);
        match accepted {
            Ok(one) => {
                if peer(one)? == name {
                    return Ok(true);
                }
            }
            Err(Errno::INTR) => {}
            // Whatever lies there, its connections come out elsewhere.
            Err(Errno::AGAIN) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::other(
        "processes of this user connect faster than the socket can be opened to everybody; start again when they have stopped",
    ))
}

fn is_elsewhere(error: &io::Error) -> bool {
    let refused = [Errno::CONNREFUSED, Errno::PROTOTYPE];
    Errno::from_io_error(error).is_some_and(|errno| refused.contains(&errno))
}

fn peer(accepted: OwnedFd) -> io::Result<SockAddr> {
    socket2::Socket::from(accepted).peer_addr()
}

#[cfg(test)]
mod tests;
