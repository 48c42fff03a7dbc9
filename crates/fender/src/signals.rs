//! SIGTERM, SIGINT and SIGHUP: what a process manager, a person and a closing terminal say to end a
//! program.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The bit of SIGHUP in the mask of ignored signals.
const HANG_UP: u64 = 1;

/// Installed before anything is started, so that no moment exists in which a signal kills what has
/// begun to serve.
pub(crate) struct Stop {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Option<Signal>,
}

/// What a closing terminal means to this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HangUp {
    Stops,
    /// Whoever started it wants it to outlive the terminal, as `nohup` does.
    Ignored,
}

impl HangUp {
    /// As it was inherited. Reads `/proc`: call before the process confines itself.
    pub(crate) fn inherited() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self::from_status(&status)
    }

    fn from_status(status: &str) -> Self {
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        match mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()) {
            Some(mask) if mask & HANG_UP != 0 => Self::Ignored,
            Some(_) | None => Self::Stops,
        }
    }
}

impl Stop {
    pub(crate) fn install(hang_up: HangUp) -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: match hang_up {
                HangUp::Stops => Some(signal(SignalKind::hangup())?),
                HangUp::Ignored => None,
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
        assert_eq!(HangUp::from_status(nohup), HangUp::Ignored);
        // A pipe's end, ignored by every Rust program, is another bit.
        let plain = "SigIgn:\t0000000000001000\n";
        assert_eq!(HangUp::from_status(plain), HangUp::Stops);
        assert_eq!(HangUp::from_status(""), HangUp::Stops);
    }
}
