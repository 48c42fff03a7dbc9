//! What a process manager, a person and a closing terminal say by signals.
//!
//! SIGTERM, SIGINT and SIGHUP end a program. To a sidecar that belongs to no terminal SIGHUP says to read its documents
//! again, and SIGUSR2 to be succeeded by a newer one.

use fender_credentials::supervise::HangUp;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The bit of SIGHUP in the mask of ignored signals.
const HANG_UP: u64 = 1;

/// What SIGHUP means to a program that has nothing to read again, as it was inherited. Reads `/proc`: call before the
/// process confines itself.
pub(crate) fn hang_up() -> HangUp {
    from_status(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
}

/// The same for one that has: only a terminal means the end by it.
pub(crate) fn hang_up_of_a_service() -> HangUp {
    // There is such a file for every process, and a terminal behind it for those that belong to one.
    let terminal = std::fs::File::open("/dev/tty").is_ok();
    match hang_up() {
        HangUp::Stops if !terminal => HangUp::Reloads,
        inherited @ (HangUp::Stops | HangUp::Reloads | HangUp::Ignored) => inherited,
    }
}

fn from_status(status: &str) -> HangUp {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    match mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()) {
        Some(mask) if mask & HANG_UP != 0 => HangUp::Ignored,
        Some(_) | None => HangUp::Stops,
    }
}

/// Installed before anything is started, so that no moment exists in which a signal kills what has
/// begun to serve.
pub(crate) struct Stop {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Option<Signal>,
}

impl Stop {
    pub(crate) fn install(hang_up: HangUp) -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: match hang_up {
                HangUp::Stops => Some(signal(SignalKind::hangup())?),
                HangUp::Reloads | HangUp::Ignored => None,
            },
        })
    }

    /// Returns at the next one. Cancel safe.
    pub(crate) async fn requested(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            () = next(self.hang_up.as_mut()) => {}
        }
    }
}

/// Everything a sidecar listens to; installed as [`Stop`] is.
pub(crate) struct Signals {
    pub(crate) stop: Stop,
    reload: Option<Signal>,
    upgrade: Signal,
}

/// What somebody asks for by a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Stop,
    Reload,
    Upgrade,
}

impl Signals {
    pub(crate) fn install(hang_up: HangUp) -> std::io::Result<Self> {
        Ok(Self {
            stop: Stop::install(hang_up)?,
            reload: match hang_up {
                HangUp::Reloads => Some(signal(SignalKind::hangup())?),
                HangUp::Stops | HangUp::Ignored => None,
            },
            upgrade: signal(SignalKind::user_defined2())?,
        })
    }

    /// The next one. Cancel safe.
    pub(crate) async fn next(&mut self) -> Asked {
        tokio::select! {
            () = self.stop.requested() => Asked::Stop,
            () = next(self.reload.as_mut()) => Asked::Reload,
            _ = self.upgrade.recv() => Asked::Upgrade,
        }
    }
}

async fn next(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_started_to_outlive_its_terminal_does() {
        let nohup = "Name:\tfender\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000001\n";
        assert_eq!(from_status(nohup), HangUp::Ignored);
        // A pipe's end, ignored by every Rust program, is another bit.
        let plain = "SigIgn:\t0000000000001000\n";
        assert_eq!(from_status(plain), HangUp::Stops);
        assert_eq!(from_status(""), HangUp::Stops);
    }
}
