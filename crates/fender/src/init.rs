//! `fender init`: credentials as files, all or none, and then this process is over: for an init container, or a service of
//! Compose that others wait for to be completed.
//!
//! The files stay, whatever their documents say of an end. What needs somebody who stays is not done: no socket, no URL, no
//! notification, and nothing that was leased is renewed; `fender watch` does that. A control plane is told what was left, so that
//! it is known there; whether it takes that changes nothing of the outcome.

use std::sync::Arc;
use std::time::Duration;

use fender_api::client::Session;
use fender_api::usage::{State, Usage};
use fender_config::snapshot::CredentialSpec;
use fender_credentials::engine::{self, Left, OnExit, Settings};
use fender_credentials::notify::{NoApp, Notifier, Record, Ways};
use fender_credentials::{Gathered, gather};
use fender_runtime::clock;
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use fender_runtime::sys;
use tokio::sync::watch;

use crate::exit::{Exit, Failure, Outcome};
use crate::sidecar::confine::{self, Reach};
use crate::sidecar::{Local, usage};
use crate::signals::{self, Stop};
use crate::source::{self, Tenure};
use crate::stores::{self, Machine, Whose};
use crate::{cli, single};

/// How long the goodbye to the control plane may take.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long a control plane may take to hear what was delivered, within the deadline of all.
const TOLD_WITHIN: Duration = Duration::from_secs(10);

pub(crate) fn run(args: cli::Init) -> Outcome {
    sys::harden_process().map_err(Failure::unavailable)?;
    let mut reach = Reach::of_source(&args.source)?;
    let hang_up = signals::hang_up();
    let local = Local::take(&mut reach, &args.source)?;
    confine::confine(&reach).map_err(Failure::unavailable)?;
    single(async {
        let mut stop = Stop::install(hang_up).map_err(Failure::unavailable)?;
        let drain = Drain::new();
        let deadline = Deadline::after(args.source.start_timeout);
        let gathered = tokio::select! {
            gathered = obtain(&args.source, reach, local, &drain, deadline) => gathered,
            () = stop.requested() => Err(Failure::unavailable(anyhow::anyhow!(
                "stopped before the credentials were there; nothing was written"
            ))),
        };
        // Not to be interrupted: all of them or none.
        let left = match gathered {
            Ok(Obtained {
                gathered,
                settings,
                session,
            }) => match leave(gathered, &settings).await {
                Ok(left) => {
                    if let Some(session) = session {
                        tokio::select! {
                            () = tell(&session, &left, deadline) => {}
                            () = stop.requested() => tracing::warn!("stopped before the control plane knew what was delivered"),
                        }
                    }
                    Ok(Exit::Done)
                }
                Err(failure) => Err(failure),
            },
            Err(failure) => Err(failure),
        };
        drain.close(Deadline::after(FAREWELL)).await;
        left
    })
}

/// What there is to write, and who is told of it.
struct Obtained {
    gathered: Vec<Gathered>,
    settings: Settings,
    session: Option<Arc<Session>>,
}

/// Every value, and what writing them takes.
async fn obtain(
    args: &cli::Source,
    reach: Reach,
    local: Local,
    drain: &Drain,
    deadline: Deadline,
) -> Result<Obtained, Failure> {
    let clock = clock::system();
    let admit = Box::new(move |documents: &_| reach.admit(documents));
    let feed = source::open(args, Tenure::Own, admit, &clock, drain, deadline).await?;
    let all = feed.snapshot.borrow().credentials.clone();
    let specs = for_files(&all);
    // The files go on with what was leased, and nobody is left to renew it.
    let kept = || true;
    let machine = Machine::try_from(local)?;
    let sources = stores::sources(args, Whose::Feed(&feed), machine, kept, &clock, drain);
    sources.keep_only(&all, drain).await;
    let gathered = gather(&specs, &sources, deadline, drain)
        .await
        .map_err(|error| Failure::new(Exit::from_code(error.exit_code()), error))?;
    let ways = Ways {
        allow: sources.allow.clone(),
        programs: sources.programs.clone(),
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
    Ok(Obtained {
        gathered,
        settings,
        session: feed.session,
    })
}

async fn leave(gathered: Vec<Gathered>, settings: &Settings) -> Result<Vec<Left>, Failure> {
    let left = engine::leave(gathered, settings)
        .await
        .map_err(|error| Failure::new(Exit::from_code(error.exit_code()), error))?;
    tracing::info!(credentials = left.len(), "delivered");
    Ok(left)
}

/// Has the control plane know what lies in the files, for as long as it may take.
async fn tell(session: &Session, left: &[Left], deadline: Deadline) {
    let now = clock::system().now();
    let usages = left.iter().map(|left| Usage {
        name: left.spec.name.clone(),
        state: State::Delivered,
        generation: Some(left.generation.as_str().to_owned()),
        since: Some(now),
        newer: None,
        why: String::new(),
        files: left.spec.deliver.iter().map(usage::files).sum(),
        uses: Vec::new(),
    });
    let limit = Deadline::after(TOLD_WITHIN.min(deadline.remaining()));
    match session.leave(usages.collect(), limit).await {
        Ok(()) => tracing::debug!("the control plane knows what was delivered"),
        Err(_) => tracing::warn!(
            "the control plane did not take what was delivered: `fender status credentials` does not show it. It is away, is older than this report, or there was no time left"
        ),
    }
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
