//! D2: one sidecar takes the place of another without a connection lost.
//!
//! A sidecar that serves keeps a socket, 0600 in a directory of its own user's (0700). A successor, which has its
//! identity, its Snapshot and its credentials by then, connects there. Each proves to the other, by the key of its
//! certificate, that it is the same workload: keys never cross, and who can merely open the socket gets nothing. The
//! successor then receives every listening socket and the lock of the state directory, opens what its own configuration
//! wants of them, says that it is ready, and is told that all of it is its own. Only then does the one before take
//! nothing new any more and end what it has (D1); whatever happens until then, it goes on as if nothing had been.
//!
//! At the same socket an operator asks for an upgrade (`fender upgrade`) or for documents to be read again
//! (`fender reload`).
//!
//! What is not done: nothing is proven about who stands *between* the two. Whoever may write in the socket's directory,
//! which is this user alone, could pass their messages on and keep the sockets, never the keys.

mod predecessor;
mod proof;
mod successor;
mod wire;

use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Error, Result, anyhow, ensure};

pub(super) use predecessor::{Answer, Desk, Failed, Handed, Request, serve};
pub(super) use proof::Own;
pub(super) use successor::{Succession, begin, has_one_before};
pub(crate) use wire::{Message, Talk, Wants};

/// What writing a credential into the cache may take before it is handed over; less than a successor waits for its answer.
pub(super) const CACHE: Duration = Duration::from_secs(5);

/// Why nothing is handed over.
pub(super) fn the_cache_is_being_written(patience: Duration) -> Error {
    let seconds = patience.as_secs();
    anyhow!(
        "the credentials cache cannot be handed over: something has been written there for {seconds} s; see whether its disk hangs"
    )
}

/// In the state directory, where nobody named another.
const SOCKET: &str = "upgrade.sock";

/// Where this sidecar can be succeeded, if anywhere.
pub(super) fn socket(named: Option<&Path>, state: Option<&Path>) -> Option<PathBuf> {
    let in_state = || state.map(|state| state.join(SOCKET));
    named.map(Path::to_owned).or_else(in_state)
}

/// The directory of the socket: made for this user alone if it is not there, refused if it is anybody else's.
pub(super) fn private_directory(socket: &Path) -> Result<()> {
    let directory = super::confine::Reach::parent(socket);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .with_context(|| format!("make `{}` for the upgrade socket", directory.display()))?;
    let found = std::fs::metadata(&directory)
        .with_context(|| format!("look at `{}`", directory.display()))?;
    let ours = rustix::process::geteuid().as_raw();
    ensure!(
        found.uid() == ours && found.mode() & 0o077 == 0,
        "the upgrade socket is not opened in `{}`, which others can reach (owner {}, mode {:04o}): name a directory in it that is not there yet, with --upgrade-socket",
        directory.display(),
        found.uid(),
        found.mode() & 0o7777,
    );
    Ok(())
}
