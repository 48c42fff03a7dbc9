//! Who is at the other end of a local socket, as the kernel says it.
//!
//! Nothing the caller sends counts. A caller from another user or process namespace, whose numbers mean nothing here, is
//! nobody. The process is held by a descriptor from the first moment: a number alone may be given to another process.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use fender_runtime::listen::Socket;
use fender_runtime::sys;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::PidfdFlags;

use crate::Caller;

/// What the kernel shows for a user that has no number in our namespace.
const NOBODY: u32 = 65_534;

impl Caller {
    /// Whoever opened the other end of `socket`.
    pub fn of(socket: &Socket) -> Result<Self, UnknownCaller> {
        let Socket::Unix(socket) = socket else {
            return Err(UnknownCaller::NotLocal);
        };
        let peer = rustix::net::sockopt::socket_peercred(socket).map_err(io::Error::from)?;
        let (uid, gid) = (peer.uid.as_raw(), peer.gid.as_raw());
        if uid == NOBODY || uid == u32::MAX {
            return Err(UnknownCaller::Unmapped);
        }
        let pid = u32::try_from(peer.pid.as_raw_pid()).map_err(|_| UnknownCaller::Unmapped)?;
        if pid == 0 {
            return Err(UnknownCaller::Unmapped);
        }
        let process = match sys::peer_process(socket.as_fd()) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                rustix::process::pidfd_open(peer.pid, PidfdFlags::empty()).map_err(io::Error::from)
            }
            held => held,
        }?;
        let caller = Self {
            uid,
            gid,
            pid,
            process: Arc::new(process),
        };
        if caller.has_ended() {
            return Err(UnknownCaller::Ended);
        }
        Ok(caller)
    }

    /// Whether the process is over. While it is not, nobody else has its number.
    pub fn has_ended(&self) -> bool {
        let mut wait = [PollFd::new(&*self.process, PollFlags::IN)];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // What cannot be told alive is over.
        !matches!(rustix::event::poll(&mut wait, Some(&at_once)), Ok(0))
    }
}

/// Why a caller is nobody.
#[derive(Debug, thiserror::Error)]
pub enum UnknownCaller {
    #[error("it is not on a local socket")]
    NotLocal,
    #[error("its user or process has no number in this namespace")]
    Unmapped,
    #[error("its process has ended")]
    Ended,
    #[error("the kernel does not say who it is: {0}")]
    Kernel(#[from] io::Error),
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn the_kernel_says_who_calls() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let caller = Caller::of(&ours.into()).unwrap();
        assert_eq!(caller.pid, std::process::id());
        assert_eq!(caller.uid, rustix::process::getuid().as_raw());
        assert!(!caller.has_ended());
    }

    #[tokio::test]
    async fn attack_a_process_that_ended_after_it_connected_is_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let mut child = Command::new("python3")
            .args(["-c", "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); sys.stdin.read()"])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let socket = Socket::from(listener.accept().await.unwrap().0);
        let caller = Caller::of(&socket).unwrap();
        assert_eq!(caller.pid, child.id());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(caller.has_ended());
        assert!(Caller::of(&socket).is_err());
    }

    #[tokio::test]
    async fn a_peer_over_the_network_is_nobody() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connected = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await;
        let error = Caller::of(&connected.unwrap().into()).unwrap_err();
        assert!(matches!(error, UnknownCaller::NotLocal));
    }
}
