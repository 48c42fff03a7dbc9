//! One login at a Vault: its token, and how long that lives as far as anybody said. It asks nobody.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fender_identity::{Secret, Serial};
use fender_runtime::random;
use tokio::time::Instant;

use super::wire::SharedTransport;

/// One login.
#[derive(Debug)]
pub(super) struct Login {
    /// Which one of successive logins it is: leases of another one end with that one.
    pub(super) epoch: u64,
    pub(super) transport: SharedTransport,
    /// Of the workload's certificate, if that is by what we are known.
    pub(super) serial: Option<Serial>,
    pub(super) token: Secret,
    /// Whether we made the token, and may end it.
    pub(super) is_ours: bool,
    pub(super) made: Instant,
    pub(super) life: Mutex<Life>,
}

/// What is known of a token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    pub(super) renewable: bool,
    /// As long as it was given for at first.
    pub(super) whole: Duration,
    /// None: it never ends, or nobody said when.
    pub(super) until: Option<Instant>,
    /// When something is to be done about that.
    pub(super) next: Option<Instant>,
    /// Whether it has been renewed for the last time.
    pub(super) last: bool,
    /// When it was last seen to be alive by being asked about.
    pub(super) verified: Instant,
}

impl Login {
    pub(super) fn token(&self) -> &Secret {
        &self.token
    }

    /// When it ends, as far as anybody said.
    pub(super) fn until(&self) -> Option<Instant> {
        self.life().until
    }

    pub(super) fn is_over(&self) -> bool {
        self.until().is_some_and(|until| Instant::now() >= until)
    }

    pub(super) fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Life {
    /// As it is said at this moment.
    pub(super) fn new(renewable: bool, seconds: u64, verified: Instant) -> Self {
        let whole = Duration::from_secs(seconds);
        let now = Instant::now();
        let ends = seconds > 0;
        let half = whole.mul_f64(0.45 + 0.1 * random::unit());
        Self {
            renewable,
            whole,
            until: now.checked_add(whole).filter(|_| ends),
            next: now.checked_add(half).filter(|_| ends),
            last: false,
            verified,
        }
    }
}
