//! Whatever secrets come from, put together in one place for all commands that fetch them: this machine as far as it may be used, the
//! control plane if there is one, and who this process is.

use std::sync::Arc;

use fender_credentials::cache::{Opened, Owner};
use fender_credentials::{AllowDirs, NoRemote, RemoteSecrets, Sources};
use fender_providers::AtEnd;
use fender_providers::environment::Environment;
use fender_runtime::clock::SharedClock;
use fender_runtime::drain::Drain;
use fender_runtime::program::Runner;

use crate::cli;
use crate::exit::Failure;
use crate::sidecar::Local;
use crate::sidecar::remote::ByControl;
use crate::source::Feed;
#[cfg(feature = "stores")]
use crate::variables;
#[cfg(feature = "stores")]
use crate::workload::OwnIdentity;

/// What of this machine is used.
pub(crate) struct Machine {
    pub(crate) programs: Runner,
    pub(crate) environment: Environment,
    pub(crate) cache: Option<Opened>,
}

impl TryFrom<Local> for Machine {
    type Error = Failure;

    /// Needs a runtime.
    fn try_from(local: Local) -> Result<Self, Failure> {
        Ok(Self {
            programs: local.helper.runner().map_err(Failure::unavailable)?,
            environment: local.environment,
            cache: local.cache,
        })
    }
}

/// Whose documents they are for.
pub(crate) enum Whose<'a> {
    Feed(&'a Feed),
    /// Of a file that nothing else was opened for.
    Alone(Owner),
}

/// What is logged in to, is logged out of when `drain` stops; `at_end` says whether what was leased stays then.
pub(crate) fn sources(
    args: &cli::Source,
    whose: Whose<'_>,
    machine: Machine,
    at_end: impl AtEnd,
    clock: &SharedClock,
    drain: &Drain,
) -> Sources {
    // A file on this machine was written by whoever may name its paths; a control plane was not.
    let allow = match args.config {
        Some(_) => AllowDirs::Any,
        None => AllowDirs::Below(args.allow_dir.clone()),
    };
    let (owner, feed) = match whose {
        Whose::Feed(feed) => (feed.owner.clone(), Some(feed)),
        Whose::Alone(owner) => (owner, None),
    };
    let session = feed.and_then(|feed| feed.session.clone());
    let remote: Arc<dyn RemoteSecrets> = match session {
        Some(session) => Arc::new(ByControl::new(session, Arc::clone(clock), drain.clone())),
        None => Arc::new(NoRemote),
    };
    let cache = machine.cache.map(|opened| opened.of(&owner));
    let sources = Sources::new(
        allow,
        machine.programs,
        machine.environment,
        remote,
        at_end,
        Arc::clone(clock),
        drain,
    );
    let sources = sources.kept_in(cache);
    #[cfg(feature = "stores")]
    let sources = {
        let sources = sources.in_cluster(variables::cluster());
        match feed.and_then(OwnIdentity::of) {
            Some(workload) => sources.of_workload(workload),
            None => sources,
        }
    };
    sources
}
