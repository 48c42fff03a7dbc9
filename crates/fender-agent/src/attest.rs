//! What a host can say of a caller, and for how long it holds.
//!
//! Kernel and engine are asked, never the caller. An [`Attestation`] is of one moment: whoever acts on it confirms it once
//! more before the caller has anything of it.

use std::sync::Arc;

use fender_api::facts::Facts;
use fender_runtime::clock::SharedClock;
use fender_runtime::deadline::Deadline;

use crate::Caller;
use crate::container::Engine;
use crate::process::{Process, Unattested};
use crate::programs::{Digests, Turns};
use crate::rate::Rates;

/// Attestations of one user at once, and per second thereafter: enough for a host that starts all of its containers, whose
/// user may be the same.
const BURST: u32 = 256;
const PER_SECOND: u32 = 16;

/// The host an agent speaks for.
#[derive(Debug)]
pub(crate) struct Host {
    engine: Option<Engine>,
    clock: SharedClock,
    turns: Turns,
    digests: Arc<Digests>,
    rates: Rates<u32>,
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

    pub(crate) async fn attest(
        &self,
        caller: &Caller,
        deadline: Deadline,
    ) -> Result<Attestation, Unattested> {
        if !self.rates.take(&caller.uid) {
            return Err(Unattested::TooOften);
        }
        let (read, digests) = (caller.clone(), Arc::clone(&self.digests));
        let now = self.clock.now();
        let reading = self.turns.take(caller.uid, deadline, move |given_up| {
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
