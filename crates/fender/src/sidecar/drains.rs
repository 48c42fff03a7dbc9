//! What ends when. Five drains, because they end in this order: inbound, outbound, credentials, the
//! sockets at which this sidecar is asked how it is, and last what all of them live on (the
//! certificate's renewal, the control plane's stream).

use std::time::Duration;

use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use tokio::time::Instant;

/// For goodbyes that cost nothing when they are not heard.
const FAREWELL: Duration = Duration::from_secs(2);

/// For giving back what was leased, and the tokens it was leased with, to whoever does not answer at once.
const GIVING_BACK: Duration = Duration::from_secs(5);

/// How long the application's way out must have been unused to be closed.
const UNUSED: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What is known of the application when its sidecar ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum App {
    /// It has exited: we are asked after it.
    Over,
    /// It is not our child.
    Unknown,
    /// A successor serves it.
    Succeeded,
}

pub(super) struct Drains {
    pub(super) inbound: Drain,
    pub(super) outbound: Drain,
    pub(super) credentials: Drain,
    /// Admin socket, Workload API, upgrade socket.
    pub(super) local: Drain,
    pub(super) work: Drain,
}

impl Drains {
    pub(super) fn new() -> Self {
        Self {
            inbound: Drain::new(),
            outbound: Drain::new(),
            credentials: Drain::new(),
            local: Drain::new(),
            work: Drain::new(),
        }
    }

    /// D1: inbound has stopped; one deadline for it and for the application's own calls.
    ///
    /// A supervised proxy is asked to end only after the application has, so its way out can close.
    /// One that has a successor keeps what the application has opened, and the rest is the successor's.
    /// Otherwise nobody says when the application has ended: its way out stays until it has been
    /// unused for a while, by the count of `used`, or until the deadline.
    pub(super) async fn end(&self, grace: Duration, app: App, used: impl Fn() -> Option<u64>) {
        let deadline = Deadline::after(grace);
        let whole = match app {
            App::Over | App::Succeeded => {
                self.outbound.stop();
                self.inbound.close(deadline).await & self.outbound.close(deadline).await
            }
            App::Unknown => {
                let whole = self.inbound.close(deadline).await & unused(used, deadline).await;
                // What is open still is idle, and idle connections lose nothing.
                self.outbound.close(Deadline::after(Duration::ZERO)).await;
                whole
            }
        };
        if !whole {
            tracing::warn!(?grace, "connections were cut at the end of the drain");
        }
        self.credentials.close(Deadline::after(GIVING_BACK)).await;
        self.local.close(Deadline::after(FAREWELL)).await;
        self.work.close(Deadline::after(FAREWELL)).await;
    }

    /// D2: a successor serves. Nothing new is taken here, and nothing kept that is its own now.
    pub(super) fn hand_over(&self) {
        self.inbound.retire();
        self.outbound.retire();
        self.credentials.stop();
        self.local.stop();
    }

    /// Somebody waits for the end: what is idle goes, what is busy keeps its time.
    pub(super) fn hurry(&self) {
        self.inbound.hurry();
        self.outbound.hurry();
    }

    /// Ends everything at once: nobody depends on it yet.
    pub(super) async fn abandon(&self) {
        let Self {
            inbound,
            outbound,
            credentials,
            local,
            work,
        } = self;
        for drain in [inbound, outbound, credentials, local, work] {
            drain.close(Deadline::after(FAREWELL)).await;
        }
    }
}

/// Waits until `used` has stood still for a while; false if that was not before the deadline. There
/// is nothing to wait for when it counts nothing.
async fn unused(used: impl Fn() -> Option<u64>, deadline: Deadline) -> bool {
    let quiet = async {
        let (mut last, mut since) = (used(), Instant::now());
        while last.is_some() && since.elapsed() < UNUSED {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = used();
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
    };
    deadline.bound(quiet).await.is_ok()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_way_out_in_use_stays_until_it_is_not() {
        let (count, asked) = (Cell::new(0), Cell::new(0));
        let used = || {
            asked.set(asked.get() + 1);
            // In use for the first fifty looks: ten seconds.
            count.set(asked.get().min(50));
            Some(count.get())
        };
        let begun = Instant::now();
        assert!(unused(used, Deadline::after(Duration::from_secs(60))).await);
        let lasted = begun.elapsed();
        assert!(
            lasted >= Duration::from_secs(11) && lasted < Duration::from_secs(13),
            "{lasted:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_way_out_that_is_always_in_use_is_closed_at_the_deadline() {
        let count = Cell::new(0);
        let used = || {
            count.set(count.get() + 1);
            Some(count.get())
        };
        assert!(!unused(used, Deadline::after(Duration::from_secs(30))).await);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_way_out_nothing_is_waited_for() {
        let begun = Instant::now();
        assert!(unused(|| None, Deadline::after(Duration::from_secs(30))).await);
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}
