//! `fender exec --supervise`: the same, and this process stays as the command's parent.
//!
//! It keeps the credentials of the environment fresh, renews what is leased and gives it back at the end; what the command is
//! started with is always the newest. It is a supervisor as `fender sidecar -- CMD` has one
//! ([`fender_credentials::supervise`]), with nobody beside it: identity, stores and command have one parent, which is not
//! confined, because the command would be, too. It opens no socket that anybody could connect to.

use std::sync::Arc;

use fender_config::snapshot::Snapshot;
use fender_credentials::engine::Holdings;
use fender_credentials::environment::{self, Keep, Kept};
use fender_credentials::gather;
use fender_credentials::mask::Masks;
use fender_credentials::notify::{Notifier, Outcomes, Record, Ways};
use fender_credentials::supervise::{self, Desk, HangUp, Plan, Program, Requests, Supply};
use fender_runtime::clock::{self, SharedClock};
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use fender_runtime::manager::Manager;
use tokio::sync::watch;

use crate::exit::{Exit, Failure, Outcome};
use crate::sidecar::confine::Reach;
use crate::sidecar::{Local, NOTIFY_SOCKET, usage};
use crate::signals::{self, Stop};
use crate::source::{self, Feed, Tenure};
use crate::stores::{self, Machine, Whose};
use crate::{cli, single};

/// For giving back what was leased.
const GIVING_BACK: std::time::Duration = std::time::Duration::from_secs(5);
/// For the goodbye to the control plane.
const FAREWELL: std::time::Duration = std::time::Duration::from_secs(2);

pub(super) fn run(args: cli::Exec) -> Outcome {
    let mut reach = Reach::of_source(&args.source)?;
    let hang_up = signals::hang_up();
    let local = Local::take(&mut reach, &args.source)?;
    single(supervise(args, reach, local, hang_up))
}

/// What ends after the command.
struct Drains {
    credentials: Drain,
    /// What all of it lives on: the stream to the control plane, the certificate's renewal.
    work: Drain,
}

impl Drains {
    async fn close(&self) {
        self.credentials.close(Deadline::after(GIVING_BACK)).await;
        self.work.close(Deadline::after(FAREWELL)).await;
    }
}

async fn supervise(args: cli::Exec, reach: Reach, local: Local, hang_up: HangUp) -> Outcome {
    let mut stop = Stop::install(hang_up).map_err(Failure::unavailable)?;
    let drains = Drains {
        credentials: Drain::new(),
        work: Drain::new(),
    };
    let (desk, requests) = Desk::open();
    let masks = args.mask_output.then(Masks::new);
    let prepared = prepare(&args.source, reach, local, desk, masks.clone(), &drains);
    let ended = match unless(stop.requested(), prepared).await {
        Some(Ok(prepared)) => watch_over(args, prepared, requests, masks, stop, hang_up).await,
        Some(Err(failure)) => Err(failure),
        None => Err(stopped()),
    };
    drains.close().await;
    ended
}

/// What comes of the work, unless a stop was asked for meanwhile: also if both are there at once.
async fn unless<T>(stop: impl Future<Output = ()>, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = stop => None,
        came = work => Some(came),
    }
}

fn stopped() -> Failure {
    Failure::unavailable(anyhow::anyhow!(
        "stopped before the credentials were there; the command was not started"
    ))
}

/// Everything that the command is started with.
struct Prepared {
    kept: Kept,
    /// On which its identity and its documents are kept.
    _feed: Feed,
}

async fn prepare(
    args: &cli::Source,
    reach: Reach,
    local: Local,
    desk: Desk,
    masks: Option<Masks>,
    drains: &Drains,
) -> Result<Prepared, Failure> {
    let deadline = Deadline::after(args.start_timeout);
    let clock = clock::system();
    let admit = Box::new(move |documents: &_| reach.admit(documents));
    let feed = source::open(args, Tenure::Own, admit, &clock, &drains.work, deadline).await?;
    let mut snapshots = feed.snapshot.clone();
    let snapshot = snapshots.borrow_and_update().clone();
    let specs = environment::for_environment(&snapshot);
    // Nobody goes on with what was leased: the command has ended by then.
    let keeps_leases = || false;
    let sources = stores::sources(
        args,
        Whose::Feed(&feed),
        Machine::try_from(local)?,
        keeps_leases,
        &clock,
        &drains.credentials,
    );
    let ways = Ways {
        allow: sources.allow.clone(),
        programs: sources.programs.clone(),
        app: Arc::new(desk),
    };
    // A command that is started reads everything anew: what one before it was told is nothing to it.
    let record = Record::open(None, "").map_err(Failure::unavailable)?;
    let notifier = Notifier::new(Arc::new(ways), record, &drains.credentials);
    let notified = notifier.outcomes();
    sources
        .keep_only(&snapshot.credentials, &drains.credentials)
        .await;
    let gathered = gather(&specs, &sources, deadline, &drains.credentials)
        .await
        .map_err(|error| Failure::new(Exit::from_code(error.exit_code()), error))?;
    let keep = Keep {
        sources,
        notifier,
        inherited: std::env::vars_os().collect(),
        masks,
    };
    let kept = environment::keep(gathered, snapshots.clone(), keep, &drains.credentials)
        .map_err(Failure::usage_of)?;
    report(
        &feed,
        snapshots,
        kept.holdings.clone(),
        notified,
        clock,
        drains,
    );
    Ok(Prepared { kept, _feed: feed })
}

/// Tells the control plane, if there is one, what the command is started with.
fn report(
    feed: &Feed,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    holdings: watch::Receiver<Holdings>,
    notified: watch::Receiver<Outcomes>,
    clock: SharedClock,
    drains: &Drains,
) {
    let Some(session) = &feed.session else {
        return;
    };
    let used = usage::Sources {
        snapshot,
        holdings,
        notified,
        taken: None,
        clock,
    };
    let reports = session.reports.clone();
    drains.work.spawn(usage::report(used, reports));
}

/// Until the command is over, with its own code.
async fn watch_over(
    args: cli::Exec,
    prepared: Prepared,
    requests: Requests,
    masks: Option<Masks>,
    mut stop: Stop,
    hang_up: HangUp,
) -> Outcome {
    let mut command = args.command.into_iter();
    let Some(program) = command.next() else {
        return Err(Failure::usage("no command to run"));
    };
    let plan = Plan {
        app: Some(Program {
            program,
            arguments: command.collect(),
            environment: None,
            descriptors: 0,
        }),
        supply: Some(Supply {
            environment: prepared.kept.environment.clone(),
            requests,
        }),
        masks,
        proxy: None,
        succession: Vec::new(),
        hang_up,
        restart: args.restart,
        stop_timeout: args.stop_timeout,
        drain_timeout: FAREWELL,
        upgrade_timeout: FAREWELL,
        manager: Manager::from_variable(std::env::var_os(NOTIFY_SOCKET).as_deref()),
    };
    // From here on signals are the command's; one that came before is not lost between the two.
    let signals = supervise::listen(hang_up).map_err(Failure::unavailable)?;
    if unless(stop.requested(), async {}).await.is_none() {
        return Err(stopped());
    }
    drop(stop);
    let supervised = supervise::run_hearing(plan, signals).await;
    let code = supervised.map_err(Failure::unavailable)?;
    Ok(Exit::App(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stop_at_the_last_moment_is_not_lost() {
        for _ in 0..64 {
            let both = unless(async {}, async { "prepared" }).await;
            assert_eq!(both, None);
        }
        let prepared = unless(std::future::pending(), async { "prepared" }).await;
        assert_eq!(prepared, Some("prepared"));
    }
}
