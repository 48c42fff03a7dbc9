//! The socket at which credentials are handed over: opened early, so that a name or path that somebody else has taken ends the
//! start before a secret is fetched, and served once there is something to hand over.

use anyhow::Context as _;
use fender_credentials::handover::{self, Handovers, SocketLimits};
use fender_runtime::listen::{Listener, Listeners, LocalAddress};
use rustix::fs::Mode;

use super::drains::Drains;
use crate::cli;
use crate::exit::Failure;

/// Anybody may connect: who it is, the kernel says, and who receives something, the documents.
pub(super) fn open(
    args: &cli::Sidecar,
    listeners: &Listeners,
) -> Result<Option<Listener>, Failure> {
    let Some(address) = &args.credentials_socket else {
        return Ok(None);
    };
    let listener = listeners
        .open(&address.into())
        .context("open the credentials socket; --credentials-socket names another")
        .map_err(Failure::unavailable)?;
    if let LocalAddress::Path(path) = address {
        rustix::fs::chmod(path, Mode::from_raw_mode(0o666))
            .context("let others connect to the credentials socket")
            .map_err(Failure::unavailable)?;
    }
    tracing::info!(socket = %address, "handing credentials over");
    Ok(Some(listener))
}

/// Until the credentials' own end.
pub(super) fn serve(listener: Listener, handovers: Handovers, drains: &Drains) {
    let drain = drains.credentials.clone();
    drains.credentials.spawn(handover::serve(
        listener,
        handovers,
        SocketLimits::default(),
        drain,
    ));
}
