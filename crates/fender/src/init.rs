//! `fender init`: credentials as files, all or none, and then this process is over: for an init container, or a service of
//! Compose that others wait for to be completed.
//!
//! The files stay, whatever their documents say of an end. What needs somebody who stays is not done: no socket, no URL, no
//! notification, and nothing that was leased is renewed; `fender watch` does that.

use std::sync::Arc;

use fender_config::snapshot::CredentialSpec;
use fender_credentials::engine::{self, OnExit, Settings};
use fender_credentials::notify::{NoApp, Notifier, Record, Ways};
use fender_credentials::{AllowDirs, Gathered, NoRemote, RemoteSecrets, Sources, gather};
use fender_runtime::clock;
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use fender_runtime::sys;
use tokio::sync::watch;

use crate::exit::{Exit, Failure, Outcome};
use crate::sidecar::confine::{self, Reach};
use crate::sidecar::{Local, remote::ByControl};
use crate::signals::{self, Stop};
use crate::source::{self, Tenure};
use crate::workload::OwnIdentity;
use crate::{cli, kept, single, variables};

/// How long the goodbye to the control plane may take.
const FAREWELL: std::time::Duration = std::time::Duration::from_secs(1);

pub(crate) fn run(args: cli::Init) -> Outcome {
    sys::harden_process().map_err(Failure::unavailable)?;
    let mut reach = Reach::of_source(&args.source)?;
    let hang_up = signals::hang_up();
    let local = Local::take(&mut reach, &args.source)?;
    confine::confine(&reach).map_err(Failure::unavailable)?;
    single(async {
        let mut stop = Stop::install(hang_up).map_err(Failure::unavailable)?;
        let drain = Drain::new();
        let gathered = tokio::select! {
            gathered = obtain(&args.source, reach, local, &drain) => gathered,
            () = stop.requested() => Err(Failure::unavailable(anyhow::anyhow!(
                "stopped before the credentials were there; nothing was written"
            ))),
        };
        // Not to be interrupted: all of them or none.
        let left = match gathered {
            Ok((gathered, settings)) => leave(gathered, &settings).await,
            Err(failure) => Err(failure),
        };
        drain.close(Deadline::after(FAREWELL)).await;
        left
    })
}

/// Every value, and what writing them takes.
async fn obtain(
    args: &cli::Source,
    reach: Reach,
    local: Local,
    drain: &Drain,
) -> Result<(Vec<Gathered>, Settings), Failure> {
    let deadline = Deadline::after(args.start_timeout);
    let clock = clock::system();
    let admit = Box::new(move |documents: &_| reach.admit(documents));
    let feed = source::open(args, Tenure::Own, admit, &clock, drain, deadline).await?;
    let all = feed.snapshot.borrow().credentials.clone();
    let specs = for_files(&all);
    let workload = OwnIdentity::of(&feed);
    let cache = kept::of(local.cache, &feed);
    let remote: Arc<dyn RemoteSecrets> = match feed.session {
        Some(session) => Arc::new(ByControl::new(session, Arc::clone(&clock), drain.clone())),
        None => Arc::new(NoRemote),
    };
    let allow = match args.config {
        Some(_) => AllowDirs::Any,
        None => AllowDirs::Below(args.allow_dir.clone()),
    };
    let programs = local.helper.runner().map_err(Failure::unavailable)?;
    // The files go on with what was leased, and nobody is left to renew it.
    let kept = || true;
    let sources = Sources::new(
        allow.clone(),
        programs.clone(),
        local.environment,
        remote,
        kept,
        clock,
        drain,
    );
    let mut sources = sources.in_cluster(variables::cluster()).kept_in(cache);
    if let Some(workload) = workload {
        sources = sources.of_workload(workload);
    }
    sources.keep_only(&all).await;
    let gathered = gather(&specs, &sources, deadline, drain)
        .await
        .map_err(|error| Failure::new(Exit::from_code(error.exit_code()), error))?;
    let ways = Ways {
        allow,
        programs,
        app: Arc::new(NoApp),
    };
    let record = Record::open(None, "").map_err(Failure::unavailable)?;
    let settings = Settings {
        certificates: None,
        sources,
        // What was written before a failure is removed again.
        on_exit: watch::channel(OnExit::Wipe).1,
        notifier: Notifier::new(Arc::new(ways), record, drain),
        handovers: None,
        hider: None,
    };
    Ok((gathered, settings))
}

async fn leave(gathered: Vec<Gathered>, settings: &Settings) -> Outcome {
    let count = gathered.len();
    engine::leave(gathered, settings)
        .await
        .map_err(|error| Failure::new(Exit::from_code(error.exit_code()), error))?;
    tracing::info!(credentials = count, "delivered");
    Ok(Exit::Done)
}

fn for_files(specs: &[CredentialSpec]) -> Vec<CredentialSpec> {
    let mut kept = Vec::with_capacity(specs.len());
    for spec in specs {
        let name = &spec.name;
        match engine::files_alone(spec) {
            Some(files) => {
                if files.deliver.len() < spec.deliver.len() {
                    tracing::warn!(credential = %name, "only its files are delivered: the rest needs a process that stays");
                }
                kept.push(files);
            }
            None => tracing::warn!(
                credential = %name,
                "not delivered: it goes to no file, and all else needs a process that stays"
            ),
        }
    }
    kept
}
