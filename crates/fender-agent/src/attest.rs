//! What a host can say of a caller, and for how long it holds.
//!
//! Kernel and engine are asked, never the caller. An [`Attestation`] is of one moment: whoever acts on it confirms it once
//! more before the caller has anything of it.

use std::sync::Arc;

use fender_api::facts::Facts;
use fender_runtime::clock::SharedClock;
use fender_runtime::deadline::Deadline;
use fender_runtime::rate::Rates;

use crate::Caller;
use crate::container::Engine;
use crate::process::{Process, Unattested};
use crate::programs::{Digests, Turns};
use crate::tenant::Tenant;

/// Attestations of one tenant at once, and per second thereafter: enough for a host that starts all of its daemons, whose
/// user may be the same.
const BURST: u32 = 256;
const PER_SECOND: u32 = 16;

/// The host an agent speaks for.
#[derive(Debug)]
pub(crate) struct Host {
    engine: Option<Engine>,
    clock: SharedClock,
    turns: Turns<Tenant>,
    digests: Arc<Digests>,
    rates: Rates<Tenant>,
}

/// What is known of a caller at one moment.
#[derive(Debug)]
pub(crate) struct Attestation {
    caller: Caller,
    process: Process,
    /// Another one is another container.
    cgroup: String,
    facts: Facts,
}

impl Host {
    pub(crate) fn new(engine: Option<Engine>, clock: SharedClock) -> Self {
        Self {
            engine,
            clock,
            turns: Turns::new(),
            digests: Arc::default(),
            rates: Rates::new(BURST, PER_SECOND),
        }
    }

    /// For a caller that asks, as often as its tenant may.
    pub(crate) async fn attest(
        &self,
        caller: &Caller,
        deadline: Deadline,
    ) -> Result<Attestation, Unattested> {
        if !self.rates.take(&caller.tenant) {
            return Err(Unattested::TooOften);
        }
        self.attest_again(caller, deadline).await
    }

    /// For a caller whose certificates are kept fresh. It has no say in how often that is, and so nobody who asks without
    /// end keeps it from happening.
    pub(crate) async fn attest_again(
        &self,
        caller: &Caller,
        deadline: Deadline,
    ) -> Result<Attestation, Unattested> {
        let (read, digests) = (caller.clone(), Arc::clone(&self.digests));
        let now = self.clock.now();
        let reading = self.turns.take(&caller.tenant, deadline, move |given_up| {
            let process = Process::of(&read)?;
            let facts = process.facts(&read, &digests, now, given_up)?;
            Ok::<_, Unattested>((process, facts))
        });
        let (process, of_process) = reading.await??;
        let container = match &self.engine {
            Some(engine) => engine.facts(&process).await?,
            None => None,
        };
        let attested = Attestation {
            caller: caller.clone(),
            cgroup: process.cgroup()?,
            process,
            facts: Facts {
                process: of_process,
                container,
            },
        };
        attested.confirm()?;
        Ok(attested)
    }
}

impl Attestation {
    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// It still holds.
    pub(crate) fn confirm(&self) -> Result<(), Unattested> {
        self.process.confirm(&self.caller)?;
        match self.process.cgroup()? == self.cgroup {
            true => Ok(()),
            false => Err(Unattested::Changed),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fender_runtime::clock;
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn attack_a_container_that_asks_without_end_stops_no_other_and_no_renewal() {
        let host = Host::new(None, clock::system());
        let deadline = || Deadline::after(Duration::from_secs(600));
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let caller = Caller::of(&ours.into()).unwrap();
        let root_in = |cgroup: &str| Caller {
            tenant: Tenant::in_cgroup(0, cgroup),
            ..caller.clone()
        };
        let flooding = root_in(&format!("0::/docker/{}\n", "a".repeat(64)));
        let other = root_in(&format!("0::/docker/{}\n", "b".repeat(64)));
        let daemon = root_in("0::/system.slice/shop.service\n");
        let mut asked = 0;
        while host.rates.take(&flooding.tenant) {
            asked += 1;
            assert!(asked <= BURST, "nobody stops it");
        }
        let refused = host.attest(&flooding, deadline()).await;
        assert!(matches!(refused, Err(Unattested::TooOften)), "{refused:?}");
        host.attest(&other, deadline()).await.unwrap();
        host.attest(&daemon, deadline()).await.unwrap();
        // What it holds already is renewed, or its own keys would end with the flood of a neighbour in its container.
        host.attest_again(&flooding, deadline()).await.unwrap();
    }
}
