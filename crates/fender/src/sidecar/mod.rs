//! `fender sidecar`: the whole program, in the order in which it comes up.
//!
//! With an application to run, this process is the supervisor: small, unconfined, with two
//! children, the proxy and the application (D3). Without one it is the proxy. The proxy confines
//! itself first; then learns who it is, what it must do and which secrets it has; only then does it
//! listen, and last of all it says that it is ready.

mod abandoned;
mod acme;
mod asked;
mod attend;
mod callers;
mod confine;
mod decisions;
mod drains;
mod notices;
mod paths;
mod records;
pub(crate) mod remote;
mod spans;
mod status;
mod supervisor;
pub(crate) mod upgrade;
mod usage;

pub(crate) use status::METRICS;

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use fender_api::client::Received;
use fender_config::snapshot::{CredentialSpec, Delivery};
use fender_credentials::engine::{self, OnExit, Settings};
use fender_credentials::handover::Handovers;
use fender_credentials::notify::{App, NoApp, Notifier, Record, Ways};
use fender_credentials::supervise::{HangUp, RestartOn, Superior};
use fender_credentials::{AllowDirs, NoRemote, RemoteSecrets, Sources};
use fender_providers::environment::Environment;
use fender_proxy::{Challenges, Inputs, Limits, Proxy};
use fender_runtime::clock::{self, SharedClock};
use fender_runtime::deadline::Deadline;
use fender_runtime::lines::{self, Lines};
use fender_runtime::listen::{ListenAddress, Listeners};
use fender_runtime::manager::Manager;
use fender_runtime::sys;
use tokio::sync::{Mutex, mpsc, watch};

use crate::exit::{Exit, Failure, Outcome};
use crate::programs::Helper;
use crate::signals::{self, Signals};
use crate::source::{self, Feed, Tenure};
use crate::{admin_socket, blocking, cli, single, variables};
use abandoned::Interfaces;
use attend::{End, Serving, Watch};
use confine::Reach;
use drains::{App as AppState, Drains};
use notices::{BySupervisor, Waiting};
use status::Status;
use upgrade::{Desk, Request, Succession};

const ABANDONED: &str = "every network interface but loopback is gone: the owner of the network namespace restarted; start this sidecar again to join the new one";
/// Where `fender status` finds a sidecar that has a state directory.
const ADMIN_SOCKET: &str = "admin.sock";
/// In the state directory: what applications were told.
const NOTIFIED: &str = "notified";
/// Where a service manager wants to be told how we are.
const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
/// How many may wait for an upgrade or a reload.
const REQUESTS: usize = 8;
/// When the start is over, once everything serves: what runs once has run.
const STARTED: Duration = Duration::from_secs(1);

pub(crate) fn run(args: cli::Sidecar) -> Outcome {
    if args.workload_api.workload_api.is_some() && args.source.config.is_some() {
        return Err(Failure::usage(
            "--workload-api needs --control: every caller receives a key of its own, and nobody signs it for a sidecar that runs from a file",
        ));
    }
    let app = !args.command.is_empty() || args.supervised;
    if !app && args.restart.on != RestartOn::No {
        return Err(Failure::usage(
            "--restart is about an application that ends: give one after `--`",
        ));
    }
    if (args.supervise || !args.command.is_empty()) && !args.supervised {
        // The proxy serves them; the application has no business with them.
        let [pid, fds, _] = announcement();
        let descriptors =
            Listeners::announced(pid.as_deref(), fds.as_deref()).map_err(Failure::usage_of)?;
        sys::withhold_descriptors(descriptors).map_err(Failure::usage_of)?;
        return single(supervisor::run(args, descriptors));
    }
    // Before this process opens anything: inherited descriptors are known by their numbers.
    let listeners = inherited_listeners(args.supervised)?;
    sys::harden_process().map_err(Failure::unavailable)?;
    if let Err(error) = sys::raise_descriptor_limit() {
        tracing::warn!(%error, "cannot raise the limit on open descriptors");
    }
    let reach = Reach::of(&args)?;
    // A supervisor looks for itself: a proxy that ended would only be started again.
    let interfaces = (!args.supervised).then(Interfaces::open).flatten();
    let hang_up = match args.supervised {
        // It belongs to its supervisor, which says what a signal means.
        true => HangUp::Reloads,
        false => signals::hang_up_of_a_service(),
    };
    let environment = variables::take(reach.variables.iter().cloned());
    let helper = Helper::start(&reach.programs).map_err(Failure::unavailable)?;
    let local = Local {
        helper,
        environment,
    };
    confine::confine(&reach).map_err(Failure::unavailable)?;
    blocking(serve(args, reach, local, listeners, interfaces, hang_up))
}

/// What documents may use of this machine, but for its files.
struct Local {
    helper: Helper,
    environment: Environment,
}

/// The proxy from nothing to serving, and from serving to its end.
async fn serve(
    args: cli::Sidecar,
    reach: Reach,
    local: Local,
    listeners: Listeners,
    interfaces: Option<Interfaces>,
    hang_up: HangUp,
) -> Outcome {
    let mut signals = Signals::install(hang_up).map_err(Failure::unavailable)?;
    // Its writer goes last: whatever ends below leaves its line first.
    let (access, _writer) = lines::open(&args.telemetry.access_log)
        .context("open the access log")
        .map_err(|error| Failure::new(Exit::Usage, error))?;
    let drains = Drains::new();
    let started = tokio::select! {
        started = start(&args, reach, local, listeners, access, &drains) => started,
        () = signals.stop.requested() => {
            tracing::info!("stopped before it was ready");
            drains.abandon().await;
            return Ok(Exit::Done);
        }
    };
    // Not to be interrupted: nobody may know of a successor that does not know it itself.
    let settled = match started {
        Ok((serving, legacy)) => legacy.settle(&serving).await.map(|()| serving),
        Err(failure) => Err(failure),
    };
    let serving = match settled {
        Ok(serving) => serving,
        Err(failure) => {
            drains.abandon().await;
            return Err(failure);
        }
    };
    let superior = args
        .supervised
        .then(Superior::from_stdin)
        .transpose()
        .map_err(Failure::unavailable)?;
    if let Some(superior) = &superior {
        superior.ready().map_err(Failure::unavailable)?;
    }
    // A supervisor is the service; it speaks for the proxy.
    let variable = std::env::var_os(NOTIFY_SOCKET).filter(|_| !args.supervised);
    let manager = Manager::from_variable(variable.as_deref());
    manager.ready();
    tracing::info!(identity = %serving.feed.svid.borrow().id(), "ready");

    let mut watch = Watch {
        serving,
        drains,
        manager,
        superior,
        upgrade: None,
        waiting: Waiting::default(),
    };
    let end = tokio::select! {
        end = watch.attend(&mut signals, interfaces) => end,
        never = leave_the_start_behind() => match never {},
    };
    let app = match end {
        End::Asked if args.supervised && !args.supervise => AppState::Over,
        End::Asked => AppState::Unknown,
        End::Succeeded => AppState::Succeeded,
        End::Abandoned => {
            watch.drains.abandon().await;
            return Err(Failure::unavailable(anyhow::anyhow!(ABANDONED)));
        }
    };
    let Watch {
        serving, drains, ..
    } = watch;
    let grace = serving.feed.snapshot.borrow().drain;
    let mut ends = std::pin::pin!(drains.end(grace, app, || serving.status.outbound_activity()));
    tokio::select! {
        () = &mut ends => {}
        // Who asks by now wants the process gone, though a successor has left what is idle its time.
        () = signals.stop.requested() => {
            drains.hurry();
            ends.await;
        }
    }
    Ok(Exit::Done)
}

/// Most of the program was for the start. What is still needed comes back by itself, from the kernel's cache of the file.
async fn leave_the_start_behind() -> Infallible {
    tokio::time::sleep(STARTED).await;
    if let Err(error) = sys::release_code() {
        tracing::debug!(%error, "cannot give back the pages of the program");
    }
    std::future::pending().await
}

async fn start(
    args: &cli::Sidecar,
    reach: Reach,
    local: Local,
    listeners: Listeners,
    access: Lines,
    drains: &Drains,
) -> Result<(Serving, Legacy), Failure> {
    let clock = clock::system();
    let deadline = Deadline::after(args.source.start_timeout);
    let tracing = &args.telemetry.tracing;
    let collector = spans::collector(tracing, &clock)?;

    // Who we are, and what we must do.
    let tenure = match args.take_over {
        Some(_) => Tenure::Succeed,
        None => Tenure::Own,
    };
    let admit = Box::new(move |documents: &_| reach.admit(documents));
    let feed = source::open(&args.source, tenure, admit, &clock, &drains.work, deadline).await?;

    // Whoever asks how it goes is answered from here on.
    let status = Arc::new(Status::new(
        feed.svid.clone(),
        feed.snapshot.clone(),
        feed.link(),
        feed.session.clone(),
        Arc::clone(&clock),
    ));
    // A successor leaves that to the sidecar before, until it serves.
    if tenure == Tenure::Own {
        open_admin_socket(args, &listeners, &status, drains)?;
    }

    // Where they are asked for: whoever comes now waits until there is something. A successor takes the socket over.
    let handovers = asked::handovers(args);
    let mut opened = match tenure {
        Tenure::Own => asked::open(args, &listeners)?,
        Tenure::Succeed => asked::Opened::default(),
    };

    // Its secrets, all or none. Those of a sidecar that goes on are not a successor's to remove.
    let (on_exit, leaves) = watch::channel(match tenure {
        Tenure::Own => OnExit::Wipe,
        Tenure::Succeed => OnExit::Keep,
    });
    let sources = sources(args, &feed, local, leaves.clone(), &clock, drains)
        .map_err(Failure::unavailable)?;
    let served = paths::within(feed.snapshot.clone(), &sources.allow, &drains.work);
    let (app, notices) = BySupervisor::new();
    let app: Arc<dyn App> = match args.supervised && !args.supervise {
        true => Arc::new(app),
        false => Arc::new(NoApp),
    };
    let ways = Ways {
        allow: sources.allow.clone(),
        programs: sources.programs.clone(),
        app,
    };
    let record = args.source.state.as_ref().map(|state| state.join(NOTIFIED));
    let record = Record::open(record, args.app_run.as_deref().unwrap_or_default())
        .context("read what applications were told")
        .map_err(Failure::unavailable)?;
    let notifier = Notifier::new(Arc::new(ways), record, &drains.credentials);
    let notified = notifier.outcomes();
    let settings = Settings {
        sources,
        on_exit: leaves,
        notifier,
        handovers: handovers.clone(),
    };
    let holdings = engine::start(
        feed.snapshot.clone(),
        settings,
        deadline,
        &drains.credentials,
    )
    .await
    .map_err(|error| Failure::new(Exit::from_code(error.exit_code()), error))?;
    for credential in feed
        .snapshot
        .borrow()
        .credentials
        .iter()
        .filter(|spec| is_for_exec_only(spec))
    {
        tracing::warn!(
            credential = %credential.name,
            "delivered into an environment only, which is what `fender exec` does; this sidecar does not deliver it"
        );
    }
    let used = usage::Sources {
        snapshot: feed.snapshot.clone(),
        holdings,
        notified,
        taken: handovers.as_ref().map(Handovers::takings),
        clock: Arc::clone(&clock),
    };
    status.set_credentials(used.clone());
    let reports = feed.session.as_ref().map(|session| session.reports.clone());
    if let Some(reports) = reports.clone() {
        drains.work.spawn(usage::report(used, reports));
    }

    // D2: what another sidecar serves with, if this one is to take its place.
    let own = upgrade::Own {
        svid: feed.svid.clone(),
        snapshot: feed.snapshot.clone(),
        clock: Arc::clone(&clock),
    };
    let succession = match &args.take_over {
        Some(socket) => upgrade::begin(socket, &own, &listeners).await?,
        None => None,
    };
    if succession.is_none() {
        on_exit.send_replace(OnExit::Wipe);
    }
    if tenure == Tenure::Succeed {
        open_admin_socket(args, &listeners, &status, drains)?;
        opened = asked::open(args, &listeners)?;
    }
    if let Some(handovers) = handovers {
        asked::serve(opened, &handovers, drains);
        status.set_handovers(handovers);
    }

    // Local processes that ask for the identity themselves.
    if let Some(session) = &feed.session {
        callers::serve(
            &args.workload_api,
            session,
            &clock,
            &listeners,
            &drains.local,
        )
        .map_err(Failure::unavailable)?;
    }

    // Certificates for consumers, from whoever issues them.
    let (owns_state, owned) = watch::channel(tenure == Tenure::Own);
    let challenges = Arc::new(Challenges::default());
    let settings = fender_providers::acme::Settings {
        state: args.source.state.clone(),
        owned,
        answers: Arc::new(acme::AtThePorts(Arc::clone(&challenges))),
        clock: Arc::clone(&clock),
    };
    let issued = fender_providers::acme::follow(served.clone(), settings, &drains.inbound);

    // The data plane.
    let (records, recorded) = mpsc::channel(records::WAITING);
    drains.work.spawn(records::carry(
        recorded,
        Arc::clone(&status.decisions),
        reports,
        drains.work.clone(),
    ));
    let exported = Arc::clone(&status.exported);
    let recording = collector.map(|collector| {
        let own = feed.svid.borrow().id().clone();
        spans::record(
            collector,
            tracing.traces_begin,
            &own,
            exported,
            &drains.work,
        )
    });
    let proxy = Proxy::start(Inputs {
        svid: feed.svid.clone(),
        snapshot: served,
        issued,
        challenges,
        clock,
        inbound: drains.inbound.clone(),
        outbound: drains.outbound.clone(),
        listeners: listeners.clone(),
        records,
        access,
        traces: args.telemetry.traces_from.into(),
        recording,
        limits: Limits::within(sys::descriptor_limit()),
    })
    .map_err(Failure::unavailable)?;
    status.set_started(proxy);
    let requests = open_upgrade_socket(args, &listeners, &feed, own, drains)?;

    let serving = Serving {
        feed,
        status,
        on_exit,
        requests,
        notices,
    };
    let legacy = Legacy {
        succession,
        listeners,
        owns_state,
    };
    Ok((serving, legacy))
}

/// What a sidecar that is ready has yet to take over, if there was one before it.
struct Legacy {
    succession: Option<Succession>,
    listeners: Listeners,
    /// Whoever waits to write into the state directory.
    owns_state: watch::Sender<bool>,
}

impl Legacy {
    /// Everything is ready: all of it is ours from here on, and nobody else's. Not cancel safe.
    async fn settle(self, serving: &Serving) -> Result<(), Failure> {
        let lock = match self.succession {
            Some(succession) => succession.complete().await?,
            None => None,
        };
        serving.on_exit.send_replace(OnExit::Wipe);
        for listen in self.listeners.close_leftover() {
            tracing::info!(%listen, "no longer listening where the sidecar before did");
        }
        let Some(state) = &serving.feed.state else {
            return Ok(());
        };
        let received = match lock {
            Some(lock) => state.receive(lock),
            None => state.claim(),
        };
        // The lock of a directory that is not this one, in another container for instance.
        let received = match received {
            Ok(Received::AnotherOne) => state.claim(),
            received => received,
        };
        match (received.map_err(Failure::usage_of)?, &serving.feed.session) {
            (Received::Behind, Some(session)) => session.keep_identity().await,
            (Received::Behind | Received::Nothing | Received::AnotherOne, _) => {}
        }
        self.owns_state.send_replace(true);
        Ok(())
    }
}

fn open_admin_socket(
    args: &cli::Sidecar,
    listeners: &Listeners,
    status: &Arc<Status>,
    drains: &Drains,
) -> Result<(), Failure> {
    if let Some(address) = args.telemetry.health.telemetry_listen {
        let listener = admin_socket::bind_tcp(address, listeners).map_err(Failure::unavailable)?;
        drains.local.spawn(admin_socket::serve(
            listener,
            Arc::clone(status),
            drains.local.clone(),
        ));
    }
    let Some(path) = admin_socket_path(args) else {
        tracing::info!(
            "no admin socket: `fender status` and `fender explain` need --admin-socket or --state"
        );
        return Ok(());
    };
    let listener = admin_socket::bind(&path, listeners).map_err(Failure::unavailable)?;
    drains.local.spawn(admin_socket::serve(
        listener,
        Arc::clone(status),
        drains.local.clone(),
    ));
    Ok(())
}

/// Where this sidecar can be succeeded, and what is asked there.
fn open_upgrade_socket(
    args: &cli::Sidecar,
    listeners: &Listeners,
    feed: &Feed,
    own: upgrade::Own,
    drains: &Drains,
) -> Result<mpsc::Receiver<Request>, Failure> {
    let (requests, requested) = mpsc::channel(REQUESTS);
    let socket = upgrade::socket(args.upgrade_socket.as_deref(), args.source.state.as_deref());
    let Some(socket) = socket else {
        return Ok(requested);
    };
    let listener = listeners
        .open(&ListenAddress::Unix(socket))
        .context("open the upgrade socket")
        .map_err(Failure::unavailable)?;
    let desk = Desk {
        listeners: listeners.clone(),
        own,
        state: feed.state.clone(),
        ending: drains.inbound.clone(),
        requests,
        turn: Mutex::default(),
    };
    drains.local.spawn(upgrade::serve(
        listener,
        Arc::new(desk),
        drains.local.clone(),
    ));
    Ok(requested)
}

/// Systemd's socket activation: listeners that exist before this process and outlive it.
fn inherited_listeners(supervised: bool) -> Result<Listeners, Failure> {
    let [mut pid, fds, names] = announcement();
    // A supervisor passes on what was meant for it.
    let parent = rustix::process::getppid().map(|parent| parent.to_string());
    if supervised && pid.is_some() && pid == parent {
        pid = Some(std::process::id().to_string());
    }
    Listeners::inherit(pid.as_deref(), fds.as_deref(), names.as_deref())
        .map_err(|error| Failure::new(Exit::Usage, error))
}

/// `LISTEN_PID`, `LISTEN_FDS` and `LISTEN_FDNAMES`.
fn announcement() -> [Option<String>; 3] {
    ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"]
        .map(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
}

fn sources(
    args: &cli::Sidecar,
    feed: &Feed,
    local: Local,
    on_exit: watch::Receiver<OnExit>,
    clock: &SharedClock,
    drains: &Drains,
) -> anyhow::Result<Sources> {
    let remote: Arc<dyn RemoteSecrets> = match &feed.session {
        Some(session) => Arc::new(remote::ByControl::new(
            Arc::clone(session),
            drains.credentials.clone(),
        )),
        None => Arc::new(NoRemote),
    };
    // A file on this machine was written by whoever may name its paths; a control plane was not.
    let allow = match args.source.config {
        Some(_) => AllowDirs::Any,
        None => AllowDirs::Below(args.source.allow_dir.clone()),
    };
    // What was leased stays with whoever is left with the files.
    let keeps_leases = move || *on_exit.borrow() == OnExit::Keep;
    Ok(Sources::new(
        allow,
        local.helper.runner()?,
        local.environment,
        remote,
        keeps_leases,
        Arc::clone(clock),
        &drains.credentials,
    ))
}

fn is_for_exec_only(credential: &CredentialSpec) -> bool {
    let environment = |delivery| matches!(delivery, &Delivery::Environment { .. });
    credential.deliver.iter().all(environment)
}

fn admin_socket_path(args: &cli::Sidecar) -> Option<PathBuf> {
    let in_state = || {
        args.source
            .state
            .as_ref()
            .map(|state| state.join(ADMIN_SOCKET))
    };
    args.admin_socket.clone().or_else(in_state)
}
