//! The socket at which credentials are handed over, and the URL at which they are served: opened early, so that a name or path that somebody else has taken ends the
//! start before a secret is fetched, and served once there is something to hand over.

use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use anyhow::Context as _;
use fender_credentials::handover::{self, Doors, Handovers, SocketLimits, UrlLimits, url};
use fender_runtime::listen::{ListenAddress, Listener, Listeners, LocalAddress};
use rustix::fs::{FileType, Mode, OFlags, Uid};

use super::drains::Drains;
use crate::cli;
use crate::exit::Failure;

/// What was opened.
#[derive(Default)]
pub(super) struct Opened {
    socket: Option<Listener>,
    urls: Vec<Listener>,
}

/// Where credentials can be asked for, if anywhere.
pub(super) fn handovers(args: &cli::Sidecar) -> Option<Handovers> {
    let doors = Doors {
        socket: args.credentials_socket.is_some(),
        url: !args.credentials_url.is_empty(),
    };
    (doors.socket || doors.url).then(|| Handovers::new(doors))
}

pub(super) fn open(args: &cli::Sidecar, listeners: &Listeners) -> Result<Opened, Failure> {
    let socket = args.credentials_socket.as_ref();
    Ok(Opened {
        socket: socket
            .map(|address| open_socket(address, listeners))
            .transpose()?,
        urls: args
            .credentials_url
            .iter()
            .map(|address| open_url(address, listeners))
            .collect::<Result<_, _>>()?,
    })
}

/// Anybody may connect: who it is, the kernel says, and who receives something, the documents.
fn open_socket(address: &LocalAddress, listeners: &Listeners) -> Result<Listener, Failure> {
    let listener = listeners
        .open(&address.into())
        .context("open the credentials socket; --credentials-socket names another")
        .map_err(Failure::unavailable)?;
    if let LocalAddress::Path(path) = address {
        publish(path)
            .context("let others connect to the credentials socket")
            .map_err(Failure::unavailable)?;
    }
    tracing::info!(socket = %address, "handing credentials over");
    Ok(listener)
}

fn open_url(address: &ListenAddress, listeners: &Listeners) -> Result<Listener, Failure> {
    let listener = listeners
        .open(address)
        .context("open the credentials URL; --credentials-url names another")
        .map_err(Failure::unavailable)?;
    url::confine(&listener)
        .context("keep the credentials URL to this host")
        .map_err(Failure::unavailable)?;
    match address {
        ListenAddress::Tcp(address) => {
            tracing::info!(url = %format!("http://{address}/v1/"), "serving credentials");
        }
        ListenAddress::Unix(path) => {
            publish(path)
                .context("let others connect to the credentials URL")
                .map_err(Failure::unavailable)?;
            tracing::info!(socket = %address, "serving credentials");
        }
        ListenAddress::Abstract(_) => tracing::info!(socket = %address, "serving credentials"),
    }
    Ok(listener)
}

/// Lets everybody connect to a socket that was opened here. In a directory of others something else may lie at its path by now,
/// such as a link to a file that is nobody else's business: only a socket of this user's own is touched.
fn publish(path: &Path) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = rustix::fs::open(path, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&found)?;
    let ours = Uid::from_raw(stat.st_uid) == rustix::process::geteuid();
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket || !ours {
        let why = format!("`{}` is not the socket that was opened", path.display());
        return Err(io::Error::other(why));
    }
    let itself = format!("/proc/self/fd/{}", found.as_raw_fd());
    Ok(rustix::fs::chmod(itself, Mode::from_raw_mode(0o666))?)
}

/// Until the credentials' own end.
pub(super) fn serve(opened: Opened, handovers: &Handovers, drains: &Drains) {
    let drain = &drains.credentials;
    let Opened { socket, urls } = opened;
    if let Some(socket) = socket {
        let limits = SocketLimits::default();
        let serve = handover::serve(socket, handovers.clone(), limits, drain.clone());
        drain.spawn(serve);
    }
    for listener in urls {
        let limits = UrlLimits::default();
        drain.spawn(url::serve(
            listener,
            handovers.clone(),
            limits,
            drain.clone(),
        ));
    }
}
