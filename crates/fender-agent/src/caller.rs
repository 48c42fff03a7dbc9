//! Who is at the other end of a local socket, as the kernel says it.
//!
//! Nothing the caller sends counts. A caller from another user or process namespace, whose numbers mean nothing here, is
//! nobody. The process is held by a descriptor from the first moment: a number alone may be given to another process.
//! That descriptor is the kernel's own word ([ADR 17](../../../docs/adr/0017-a-caller-is-held-or-not-attested.md)); a
//! kernel that has none to give attests nobody, and lets in only where the user alone decides.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use fender_runtime::listen::Socket;
use fender_runtime::sys;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

use crate::Caller;
use crate::process::{Moment, Process};
use crate::tenant::Tenant;

/// What the kernel shows for a user that has no number in our namespace.
const NOBODY: u32 = 65_534;

impl Caller {
    /// Whoever opened the other end of `socket`, to be attested: as it was when it did, and which program it is now.
    pub fn of(socket: &Socket) -> Result<Self, UnknownCaller> {
        let peer = Peer::of(socket)?;
        let process = sys::peer_process(socket.as_fd()).map_err(or_old_kernel)?;
        let mut caller = peer.held(process)?;
        caller.seen = Some(Moment::of(&caller).map_err(|_| UnknownCaller::Ended)?);
        Ok(caller)
    }

    /// The same where anybody in the network namespace can connect: only a process of our own user and process namespaces is
    /// of this host, whatever network a container shares with it.
    pub fn of_host(socket: &Socket) -> Result<Self, UnknownCaller> {
        let caller = Self::of(socket)?;
        let of_host = Process::of(&caller).and_then(|process| process.is_of_host());
        match of_host {
            Ok(true) => Ok(caller),
            Ok(false) => Err(UnknownCaller::Elsewhere),
            Err(_) => Err(UnknownCaller::Ended),
        }
    }

    /// The same where nothing but its user is asked. Before Linux 6.5 the process that is held may be one that has its
    /// number by now.
    pub fn user_of(socket: &Socket) -> Result<Self, UnknownCaller> {
        let peer = Peer::of(socket)?;
        let process = match sys::peer_process(socket.as_fd()) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                rustix::process::pidfd_open(peer.pid, PidfdFlags::empty()).map_err(io::Error::from)
            }
            held => held,
        }?;
        peer.held(process)
    }

    /// Whether the process is over. While it is not, nobody else has its number.
    pub fn has_ended(&self) -> bool {
        has_ended(&*self.process)
    }
}

/// Whether a process is over, by its descriptor.
pub(crate) fn has_ended(process: impl AsFd) -> bool {
    let mut wait = [PollFd::new(&process, PollFlags::IN)];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // What cannot be told alive is over.
    !matches!(rustix::event::poll(&mut wait, Some(&at_once)), Ok(0))
}

/// Whether this kernel hands over the process at the other end of a socket.
pub(crate) fn check_kernel() -> Result<(), UnknownCaller> {
    let (ours, _theirs) = std::os::unix::net::UnixStream::pair()?;
    sys::peer_process(ours.as_fd())
        .map(drop)
        .map_err(or_old_kernel)
}

fn or_old_kernel(error: io::Error) -> UnknownCaller {
    match error.kind() == io::ErrorKind::Unsupported {
        true => UnknownCaller::OldKernel,
        false => error.into(),
    }
}

/// The numbers of whoever opened the other end, at that moment.
struct Peer {
    uid: u32,
    gid: u32,
    pid: Pid,
}

impl Peer {
    fn of(socket: &Socket) -> Result<Self, UnknownCaller> {
        let Socket::Unix(socket) = socket else {
            return Err(UnknownCaller::NotLocal);
        };
        let peer = rustix::net::sockopt::socket_peercred(socket).map_err(io::Error::from)?;
        let (uid, gid) = (peer.uid.as_raw(), peer.gid.as_raw());
        if uid == NOBODY || uid == u32::MAX {
            return Err(UnknownCaller::Unmapped);
        }
        match peer.pid.as_raw_pid() {
            ..=0 => Err(UnknownCaller::Unmapped),
            _ => Ok(Self {
                uid,
                gid,
                pid: peer.pid,
            }),
        }
    }

    fn held(self, process: OwnedFd) -> Result<Caller, UnknownCaller> {
        let pid = self.pid.as_raw_pid().unsigned_abs();
        let caller = Caller {
            uid: self.uid,
            gid: self.gid,
            pid,
            process: Arc::new(process),
            tenant: Tenant::of(self.uid, pid),
            seen: None,
        };
        match caller.has_ended() {
            true => Err(UnknownCaller::Ended),
            false => Ok(caller),
        }
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
    #[error(
        "it is in another user or process namespace: a container in the host's network reaches an abstract socket, and must \
         be given the path of one instead"
    )]
    Elsewhere,
    #[error(
        "this kernel does not hand over the process at the other end of a socket, and a number may have another owner by \
         now: Linux 6.5 or newer is needed to attest processes"
    )]
    OldKernel,
    #[error("the kernel does not say who it is: {0}")]
    Kernel(#[from] io::Error),
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use fender_runtime::listen::Listener;
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
    async fn attack_a_container_in_the_hosts_network_does_not_come_in_by_an_abstract_socket() {
        const CALL: &str = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect('\\0' + sys.argv[1]); sys.stdin.read()";
        let name = format!("fender-test-host-{}", std::process::id());
        let address = format!("unix-abstract:{name}").parse().unwrap();
        let listener = Listener::bind(&address).unwrap();
        for (before, of_host) in [
            (&["unshare", "--pid", "--fork", "--kill-child"][..], false),
            (&["unshare", "--user", "--map-root-user"], false),
            (&["env"], true),
        ] {
            let mut child = Command::new(before[0])
                .args(&before[1..])
                .args(["python3", "-c", CALL, &name])
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            let (socket, _) = listener.accept().await.unwrap();
            let caller = Caller::of_host(&socket);
            drop(child.stdin.take());
            child.wait().unwrap();
            match of_host {
                true => assert!(caller.is_ok(), "{before:?}"),
                false => assert!(
                    matches!(caller, Err(UnknownCaller::Elsewhere)),
                    "{before:?}"
                ),
            }
        }
    }

    #[tokio::test]
    async fn a_peer_over_the_network_is_nobody() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connected = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await;
        let error = Caller::of(&connected.unwrap().into()).unwrap_err();
        assert!(matches!(error, UnknownCaller::NotLocal));
    }
}
