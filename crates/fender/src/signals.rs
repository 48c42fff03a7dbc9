//! SIGTERM and SIGINT: what a process manager and a person say to end a program.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Installed before anything is started, so that no moment exists in which a signal kills what has
/// begun to serve.
pub(crate) struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    pub(crate) fn install() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Returns at the next one. Cancel safe.
    pub(crate) async fn requested(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
