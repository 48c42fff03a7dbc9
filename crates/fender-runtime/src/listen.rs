//! Listeners as descriptors that can be passed on.
//!
//! A listener is never rebound and never dropped between two processes: closing one resets the
//! connections in its queue. So every listener of the process is opened by way of [`Listeners`],
//! which takes what was inherited (systemd's `LISTEN_FDS` convention) or handed over by a
//! predecessor before it binds anything, and hands all of them on to a successor.
//!
//! Connected sockets are of two kinds, TCP and Unix; [`Socket`] is either.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rustix::fs::Mode;
use socket2::{Domain, SockAddr, Type};
use tokio::net::{TcpListener, UnixListener};

pub use inherited::Listeners;
pub use local::{AbstractName, LocalAddress};
pub use socket::Socket;

mod everybody;
mod inherited;
mod local;
mod socket;

/// How many connections may wait in the kernel; it lowers this to its own limit.
const QUEUE: i32 = 4096;

/// Where to listen: `0.0.0.0:8443`, `[::]:8443`, `unix:/run/app.sock` or `unix-abstract:app`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum ListenAddress {
    /// An IP address and port; port 0 lets the kernel choose.
    Tcp(SocketAddr),
    /// The absolute path of a Unix socket.
    Unix(PathBuf),
    /// A Unix socket without a file.
    Abstract(AbstractName),
}

impl FromStr for ListenAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let invalid = || InvalidAddress(text.to_owned());
        if let Some(name) = text.strip_prefix("unix-abstract:") {
            return name.parse().map(Self::Abstract);
        }
        match text.strip_prefix("unix:") {
            // 108 bytes are what the kernel takes, the closing zero included.
            Some(path) if path.len() > 107 || path.contains('\0') => Err(invalid()),
            Some(path) if Path::new(path).is_absolute() => Ok(Self::Unix(path.into())),
            Some(_) => Err(invalid()),
            None => text.parse().map(Self::Tcp).map_err(|_| invalid()),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Abstract(name) => write!(f, "unix-abstract:{name}"),
        }
    }
}

/// Not an address to listen on.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "`{0}` is no address to listen on: write `IP:PORT`, `unix:/absolute/path` or `unix-abstract:NAME` (107 bytes at most)"
)]
pub struct InvalidAddress(String);

/// Whom a connection comes from.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum PeerAddr {
    /// An IP peer. An IPv4 peer of a dual-stack listener reads as IPv4.
    Tcp(SocketAddr),
    /// A process of this machine, over a Unix socket.
    Unix,
}

impl PeerAddr {
    /// The peer's IP address, if it has one.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(address) => Some(address.ip()),
            Self::Unix => None,
        }
    }
}

impl From<SocketAddr> for PeerAddr {
    fn from(address: SocketAddr) -> Self {
        // Rules that name an IPv4 network must also hold where `::ffff:10.0.0.1` knocks.
        Self::Tcp(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }
}

impl fmt::Display for PeerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

/// A bound, listening socket.
#[derive(Debug)]
pub struct Listener {
    /// [`Listeners`] knows it as long as it is open, and does not keep it open.
    kind: Arc<Kind>,
    address: ListenAddress,
    /// Nobody else accepts what comes: it was neither inherited nor handed over.
    is_ours_alone: bool,
}

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Binds and listens. A Unix socket is made for its owner only; a socket file nobody listens on
    /// any more is replaced, any other file is not.
    pub fn bind(address: &ListenAddress) -> io::Result<Self> {
        let bound = match address {
            ListenAddress::Tcp(address) => bind_tcp(*address),
            ListenAddress::Unix(path) => bind_unix(path),
            ListenAddress::Abstract(name) => bind_abstract(name),
        };
        let bound = bound.and_then(|socket| Self::from_fd(socket.into()));
        let listener = bound.map_err(|error| {
            let text = format!("cannot listen on `{address}`: {error}");
            io::Error::new(error.kind(), text)
        })?;
        Ok(Self {
            is_ours_alone: true,
            ..listener
        })
    }

    /// Takes over a listening socket made elsewhere. Must be called inside a tokio runtime.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let (fd, address) = examine(fd)?;
        let kind = match &address {
            ListenAddress::Tcp(_) => Kind::Tcp(TcpListener::from_std(fd.into())?),
            ListenAddress::Unix(_) | ListenAddress::Abstract(_) => {
                Kind::Unix(UnixListener::from_std(fd.into())?)
            }
        };
        Ok(Self {
            kind: Arc::new(kind),
            address,
            is_ours_alone: false,
        })
    }

    /// The address it is bound to, with the port the kernel chose.
    pub fn local_address(&self) -> &ListenAddress {
        &self.address
    }

    /// Lets every user of the host connect to a Unix socket with a path; the kernel says who it is. Of others there is nothing to do.
    ///
    /// In a directory of others something else may lie at its path by now: a link to a file that is nobody else's business, or another
    /// socket of this user that is private. So what lies there is changed only if a connection to it arrives here; who else connects
    /// before everybody may is dropped. A listener that was inherited or handed over is left as it is: whoever opened it has said by its
    /// mode whom it is for, and it is an error if that is not everybody.
    pub fn admit_everybody(&self) -> io::Result<()> {
        let ListenAddress::Unix(path) = &self.address else {
            return Ok(());
        };
        everybody::admit(self, path).map_err(|error| {
            let text = format!("cannot let others connect to `{}`: {error}", path.display());
            io::Error::new(error.kind(), text)
        })
    }

    /// The next connection.
    ///
    /// Cancel safe. Loops use [`crate::accept::Accept`], which paces errors.
    pub async fn accept(&self) -> io::Result<(Socket, PeerAddr)> {
        match &*self.kind {
            Kind::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Socket::Tcp(stream), peer.into()))
            }
            Kind::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Socket::Unix(stream), PeerAddr::Unix))
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.kind.as_fd()
    }
}

impl AsFd for Kind {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Kind::Tcp(listener) => listener.as_fd(),
            Kind::Unix(listener) => listener.as_fd(),
        }
    }
}

/// Makes sure that it is a listening socket we know, and ready for a runtime; none is needed yet.
fn examine(fd: OwnedFd) -> io::Result<(OwnedFd, ListenAddress)> {
    let invalid = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    let socket = socket2::Socket::from(fd);
    if !socket.is_listener()? {
        return invalid("socket is not listening");
    }
    socket.set_nonblocking(true)?;
    socket.set_cloexec(true)?;
    let local = socket.local_addr()?;
    let address = if let Some(address) = local.as_socket() {
        // Small answers are not held back; connections inherit this from here, without a call for each.
        socket.set_tcp_nodelay(true)?;
        ListenAddress::Tcp(address)
    } else if let Some(path) = local.as_pathname() {
        ListenAddress::Unix(path.to_owned())
    } else if let Some(name) = local.as_abstract_namespace() {
        match std::str::from_utf8(name).map(str::parse) {
            Ok(Ok(name)) => ListenAddress::Abstract(name),
            Ok(Err(_)) | Err(_) => {
                return invalid("the name of the abstract socket is none of ours");
            }
        }
    } else {
        return invalid("only TCP sockets and Unix sockets with a name can be listened on");
    };
    Ok((socket.into(), address))
}

fn bind_tcp(address: SocketAddr) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(QUEUE)?;
    Ok(socket)
}

fn bind_unix(path: &Path) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Linux gives the file the mode of the socket, so there is no moment at which others may enter.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    let address = SockAddr::unix(path)?;
    match socket.bind(&address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_abandoned(path)? => {
            std::fs::remove_file(path)?;
            socket.bind(&address)?;
        }
        bound => bound?,
    }
    socket.listen(QUEUE)?;
    Ok(socket)
}

/// Whoever comes first has the name, whatever user they are: there is no file whose owner could be asked.
fn bind_abstract(name: &AbstractName) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    let address = SockAddr::unix(name.to_path())?;
    match socket.bind(&address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            return Err(io::Error::new(error.kind(), holder(&address)));
        }
        bound => bound?,
    }
    socket.listen(QUEUE)?;
    Ok(socket)
}

/// Who has an abstract name, for people.
fn holder(address: &SockAddr) -> String {
    let ask = || -> io::Result<String> {
        let probe = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
        probe.set_nonblocking(true)?;
        probe.connect(address)?;
        let peer = rustix::net::sockopt::socket_peercred(&probe)?;
        let (uid, pid) = (peer.uid.as_raw(), peer.pid.as_raw_pid());
        Ok(format!("process {pid} of user {uid} has taken this name"))
    };
    ask().unwrap_or_else(|_| "somebody else has taken this name".to_owned())
}

/// Whether `path` is a socket that nobody listens on.
fn is_abandoned(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::FileTypeExt;

    if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
        return Ok(false);
    }
    let probe = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    probe.set_nonblocking(true)?;
    Ok(probe
        .connect(&SockAddr::unix(path)?)
        .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused))
}

#[cfg(test)]
mod tests;
