//! The socket at which credentials are handed over, and the URL at which they are served: opened early, so that a name or path that somebody else has taken ends the
//! start before a secret is fetched, and served once there is something to hand over.

use anyhow::Context as _;
use fender_credentials::handover::{self, Doors, Handovers, SocketLimits, UrlLimits, url};
use fender_runtime::listen::{ListenAddress, Listener, Listeners, LocalAddress};

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
        socket: args.places.credentials_socket.is_some(),
        url: !args.places.credentials_url.is_empty(),
    };
    (doors.socket || doors.url).then(|| Handovers::new(doors))
}

pub(super) fn open(args: &cli::Sidecar, listeners: &Listeners) -> Result<Opened, Failure> {
    let socket = args.places.credentials_socket.as_ref();
    Ok(Opened {
        socket: socket
            .map(|address| open_socket(address, listeners))
            .transpose()?,
        urls: args
            .places
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
    listener
        .admit_everybody()
        .context("open the credentials socket")
        .map_err(Failure::unavailable)?;
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
    listener
        .admit_everybody()
        .context("open the credentials URL")
        .map_err(Failure::unavailable)?;
    match address {
        ListenAddress::Tcp(address) => {
            tracing::info!(url = %format!("http://{address}/v1/"), "serving credentials");
        }
        ListenAddress::Unix(_) | ListenAddress::Abstract(_) => {
            tracing::info!(socket = %address, "serving credentials");
        }
    }
    Ok(listener)
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
