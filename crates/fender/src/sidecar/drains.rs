//! What ends when. Four drains, because they end in this order: inbound, outbound, credentials, and
//! last what all of them live on (the certificate's renewal, the control plane's stream).

use std::time::Duration;

use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;

/// For goodbyes that cost nothing when they are not heard.
const FAREWELL: Duration = Duration::from_secs(2);

pub(super) struct Drains {
    pub(super) inbound: Drain,
    pub(super) outbound: Drain,
    pub(super) credentials: Drain,
    pub(super) work: Drain,
}

impl Drains {
    pub(super) fn new() -> Self {
        Self {
            inbound: Drain::new(),
            outbound: Drain::new(),
            credentials: Drain::new(),
            work: Drain::new(),
        }
    }

    /// D1: inbound has stopped; one deadline for it and for the application's own calls. A
    /// supervised proxy is asked to end only after the application has; otherwise its calls may go
    /// on as long as any request it still answers.
    pub(super) async fn end(&self, grace: Duration, app_is_over: bool) {
        let deadline = Deadline::after(grace);
        if app_is_over {
            self.outbound.stop();
        }
        let whole = self.inbound.close(deadline).await & self.outbound.close(deadline).await;
        if !whole {
            tracing::warn!(?grace, "connections were cut at the end of the drain");
        }
        self.credentials.close(Deadline::after(FAREWELL)).await;
        self.work.close(Deadline::after(FAREWELL)).await;
    }

    /// Ends everything at once: nobody depends on it yet.
    pub(super) async fn abandon(&self) {
        for drain in [&self.inbound, &self.outbound, &self.credentials, &self.work] {
            drain.close(Deadline::after(FAREWELL)).await;
        }
    }
}
