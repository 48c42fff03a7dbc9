//! `fender sidecar`: the whole program, in the order in which it comes up.
//!
//! With an application to run, this process is the supervisor: small, unconfined, with two
//! children, the proxy and the application (D3). Without one it is the proxy. The proxy confines
//! itself first; then learns who it is, what it must do and which secrets it has; only then does it
//! listen, and last of all it says that it is ready.

mod abandoned;
mod callers;
mod confine;
mod decisions;
mod drains;
mod paths;
mod records;
pub(crate) mod remote;
mod status;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use fender_api::client::Report;
use fender_config::ObjectName;
use fender_config::snapshot::{CredentialSource, CredentialSpec, Delivery};
use fender_config::standalone::Identity;
use fender_credentials::engine::{self, Holdings, OnExit, Settings};
use fender_credentials::environment::{self, Inherit};
use fender_credentials::supervise::{self, Order, Plan, Program, Superior};
use fender_credentials::{AllowDirs, NoRemote, RemoteSecrets, Sources};
use fender_providers::Generation;
use fender_proxy::{Inputs, Limits, Proxy};
use fender_runtime::clock;
use fender_runtime::deadline::Deadline;
use fender_runtime::lines::{self, Lines};
use fender_runtime::listen::Listeners;
use fender_runtime::sys;
use tokio::sync::{mpsc, watch};

use crate::exit::{Exit, Failure, Outcome};
use crate::signals::{HangUp, Stop};
use crate::source::{self, Feed};
use crate::{admin_socket, blocking, cli, single};
use abandoned::Interfaces;
use confine::Reach;
use drains::{App, Drains};
use status::Status;

/// How long a supervisor waits before it kills the proxy: longer than any drain a document can ask
/// for, because the proxy ends by itself at its own deadline.
const SUPERVISED_DRAIN: Duration = fender_config::MAX_DRAIN.saturating_add(Duration::from_secs(30));
const ABANDONED: &str = "every network interface but loopback is gone: the owner of the network namespace restarted; start this sidecar again to join the new one";
/// Where `fender status` finds a sidecar that has a state directory.
const ADMIN_SOCKET: &str = "admin.sock";

pub(crate) fn run(args: cli::Sidecar) -> Outcome {
    if args.workload_api.workload_api.is_some() && args.source.config.is_some() {
        return Err(Failure::usage(
            "--workload-api needs --control: every caller receives a key of its own, and nobody signs it for a sidecar that runs from a file",
        ));
    }
    if !args.command.is_empty() && !args.supervised {
        // The proxy serves them; the application has no business with them.
        let [pid, fds, _] = announcement();
        let descriptors = Listeners::announced(pid.as_deref(), fds.as_deref())
            .map_err(|error| Failure::new(Exit::Usage, error))?;
        sys::withhold_descriptors(descriptors).map_err(|error| Failure::new(Exit::Usage, error))?;
        return single(supervise(args, descriptors));
    }
    // Before this process opens anything: inherited descriptors are known by their numbers.
    let listeners = inherited_listeners(args.supervised)?;
    sys::harden_process().map_err(Failure::unavailable)?;
    if let Err(error) = sys::raise_descriptor_limit() {
        tracing::warn!(%error, "cannot raise the limit on open descriptors");
    }
    let reach = reach(&args)?;
    // A supervisor looks for itself: a proxy that ended would only be started again.
    let interfaces = (!args.supervised).then(Interfaces::open).flatten();
    let hang_up = HangUp::inherited();
    confine::confine(&reach).map_err(Failure::unavailable)?;
    blocking(serve(args, listeners, interfaces, hang_up))
}

/// The supervisor: the proxy first, then, once that is ready, the application.
async fn supervise(args: cli::Sidecar, descriptors: u16) -> Outcome {
    let mut command = args.command.into_iter();
    let Some(program) = command.next() else {
        return Err(Failure::usage("no application to run"));
    };
    // Without a state of its own a proxy that died could not come back: its token is spent.
    let stateless = args.source.config.is_none() && args.source.state.is_none();
    let memory = stateless
        .then(private_memory)
        .transpose()
        .map_err(Failure::unavailable)?;
    let environment = environment::build(std::env::vars_os(), &Inherit::All, [])
        .map_err(|error| Failure::new(Exit::Usage, error))?;
    let plan = Plan {
        app: Program {
            program,
            arguments: command.collect(),
            environment: Some(environment),
            descriptors: 0,
        },
        proxy: Some(Program {
            program: std::env::current_exe()
                .context("find this program")
                .map_err(Failure::unavailable)?
                .into_os_string(),
            arguments: own_arguments(memory.as_ref().map(tempfile::TempDir::path)),
            environment: None,
            descriptors,
        }),
        stop_timeout: args.stop_timeout,
        drain_timeout: SUPERVISED_DRAIN,
    };
    let interfaces = Interfaces::open();
    let mut supervised = std::pin::pin!(supervise::run(plan));
    let code = tokio::select! {
        code = &mut supervised => code.map_err(Failure::unavailable)?,
        () = network_abandoned(interfaces) => {
            tracing::error!("{ABANDONED}");
            // The application ends as it would if somebody asked us.
            rustix::process::kill_process(rustix::process::getpid(), sys::Signal::TERM)
                .map_err(Failure::unavailable)?;
            supervised.await.map_err(Failure::unavailable)?;
            return Ok(Exit::Unavailable);
        }
    };
    Ok(Exit::App(code))
}

/// A directory that nobody else reads and that is gone with this process, in memory where there is
/// a file system for that.
fn private_memory() -> anyhow::Result<tempfile::TempDir> {
    let shared_memory = Path::new("/dev/shm");
    let mut builder = tempfile::Builder::new();
    builder.prefix("fender-");
    let made = if shared_memory.is_dir() {
        builder.tempdir_in(shared_memory)
    } else {
        builder.tempdir()
    };
    made.context("make a directory for the proxy's state; --state names another")
}

/// What this process was started with, up to the application's command, for the proxy it starts.
fn own_arguments(state: Option<&Path>) -> Vec<OsString> {
    let own = std::env::args_os()
        .skip(1)
        .take_while(|argument| argument != OsStr::new("--"));
    let state = state.map(|path| {
        [
            OsString::from("--state"),
            path.join("state").into_os_string(),
        ]
    });
    let role = ["--supervised", "--tethered"].map(OsString::from);
    own.chain(state.into_iter().flatten()).chain(role).collect()
}

/// The proxy from nothing to serving, and from serving to its end.
async fn serve(
    args: cli::Sidecar,
    listeners: Listeners,
    interfaces: Option<Interfaces>,
    hang_up: HangUp,
) -> Outcome {
    let mut stop = Stop::install(hang_up).map_err(Failure::unavailable)?;
    // Its writer goes last: whatever ends below leaves its line first.
    let (access, _writer) = lines::open(&args.telemetry.access_log)
        .context("open the access log")
        .map_err(|error| Failure::new(Exit::Usage, error))?;
    let drains = Drains::new();
    let started = tokio::select! {
        started = start(&args, listeners, access, &drains) => started,
        () = stop.requested() => {
            tracing::info!("stopped before it was ready");
            drains.abandon().await;
            return Ok(Exit::Done);
        }
    };
    let serving = match started {
        Ok(serving) => serving,
        Err(failure) => {
            drains.abandon().await;
            return Err(failure);
        }
    };
    let mut superior = args
        .supervised
        .then(Superior::from_stdin)
        .transpose()
        .map_err(Failure::unavailable)?;
    if let Some(superior) = &superior {
        superior.ready().map_err(Failure::unavailable)?;
    }
    tracing::info!(identity = %serving.feed.svid.borrow().id(), "ready");
    // The start is over, and most of the program was for it. If not, it only stays where it is.
    if let Err(error) = sys::release_code() {
        tracing::debug!(%error, "cannot give back the pages of the program");
    }

    tokio::select! {
        () = stop.requested() => {}
        () = network_abandoned(interfaces) => {
            drains.abandon().await;
            return Err(Failure::unavailable(anyhow::anyhow!(ABANDONED)));
        }
        () = ordered_to_drain(superior.as_mut()) => {
            serving.begin_drain(&drains);
            tokio::select! {
                () = stop.requested() => {}
                () = left_alone(superior.as_mut()) => {}
            }
        }
    }
    serving.begin_drain(&drains);
    let grace = serving.feed.snapshot.borrow().drain;
    let app = if args.supervised {
        App::Over
    } else {
        App::Unknown
    };
    drains
        .end(grace, app, || serving.status.outbound_activity())
        .await;
    Ok(Exit::Done)
}

/// Returns when the supervisor asks for the end of inbound or is gone; never if nobody supervises.
async fn ordered_to_drain(superior: Option<&mut Superior>) {
    match superior {
        Some(superior) => match superior.next_order().await {
            Some(Order::DrainInbound) | None => {}
        },
        None => std::future::pending().await,
    }
}

/// Returns when the supervisor is gone; never if there was none. The kernel's signal says the same,
/// but not of one that went before this process could ask for it.
async fn left_alone(superior: Option<&mut Superior>) {
    match superior {
        Some(superior) => while superior.next_order().await.is_some() {},
        None => std::future::pending().await,
    }
}

/// Returns when nobody can reach this process any more; never if it was on loopback only.
async fn network_abandoned(interfaces: Option<Interfaces>) {
    match interfaces {
        Some(interfaces) => interfaces.abandoned().await,
        None => std::future::pending().await,
    }
}

/// A sidecar that serves.
struct Serving {
    feed: Feed,
    status: Arc<Status>,
}

impl Serving {
    /// D1: readiness first, then no new inbound work.
    fn begin_drain(&self, drains: &Drains) {
        self.status.set_draining();
        if !drains.inbound.is_stopping() {
            tracing::info!("draining");
            drains.inbound.stop();
        }
    }
}

async fn start(
    args: &cli::Sidecar,
    listeners: Listeners,
    access: Lines,
    drains: &Drains,
) -> Result<Serving, Failure> {
    let clock = clock::system();
    let deadline = Deadline::after(args.source.start_timeout);

    // Who we are, and what we must do.
    let feed = source::open(&args.source, &clock, &drains.work, deadline).await?;

    // Whoever asks how it goes is answered from here on.
    let status = Arc::new(Status::new(
        feed.svid.clone(),
        feed.snapshot.clone(),
        feed.link(),
        feed.session.clone(),
        Arc::clone(&clock),
    ));
    if let Some(path) = admin_socket_path(args) {
        let listener = admin_socket::bind(&path).map_err(Failure::unavailable)?;
        drains.work.spawn(admin_socket::serve(
            listener,
            Arc::clone(&status),
            drains.work.clone(),
        ));
    } else {
        tracing::info!(
            "no admin socket: `fender status` and `fender explain` need --admin-socket or --state"
        );
    }

    if let Some(address) = args.telemetry.health.telemetry_listen {
        let listener = admin_socket::bind_tcp(address).map_err(Failure::unavailable)?;
        drains.work.spawn(admin_socket::serve(
            listener,
            Arc::clone(&status),
            drains.work.clone(),
        ));
    }

    // Its secrets, all or none.
    let sources = sources(args, &feed, drains);
    let served = paths::within(feed.snapshot.clone(), &sources.allow, &drains.work);
    let settings = Settings {
        sources,
        on_exit: OnExit::Wipe,
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
    status.set_holdings(holdings.clone());
    let reports = feed.session.as_ref().map(|session| session.reports.clone());
    if let Some(reports) = reports.clone() {
        drains.work.spawn(report_holdings(holdings, reports));
    }

    // Local processes that ask for the identity themselves.
    if let Some(session) = &feed.session {
        callers::serve(&args.workload_api, session, &clock, &drains.work)
            .map_err(Failure::unavailable)?;
    }

    // The data plane.
    let (records, recorded) = mpsc::channel(records::WAITING);
    drains.work.spawn(records::carry(
        recorded,
        Arc::clone(&status.decisions),
        reports,
        drains.work.clone(),
    ));
    let proxy = Proxy::start(Inputs {
        svid: feed.svid.clone(),
        snapshot: served,
        clock,
        inbound: drains.inbound.clone(),
        outbound: drains.outbound.clone(),
        listeners,
        records,
        access,
        traces: args.telemetry.traces_from.into(),
        limits: Limits::default(),
    })
    .map_err(Failure::unavailable)?;
    status.set_started(proxy);
    Ok(Serving { feed, status })
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

fn sources(args: &cli::Sidecar, feed: &Feed, drains: &Drains) -> Sources {
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
    Sources { allow, remote }
}

fn is_for_exec_only(credential: &CredentialSpec) -> bool {
    let environment = |delivery| matches!(delivery, &Delivery::Environment { .. });
    credential.deliver.iter().all(environment)
}

/// Tells the control plane which generation of each credential is in use.
async fn report_holdings(mut holdings: watch::Receiver<Holdings>, reports: mpsc::Sender<Report>) {
    let mut reported: BTreeMap<ObjectName, Generation> = BTreeMap::new();
    loop {
        let held = holdings.borrow_and_update().clone();
        for (name, holding) in held {
            let Some(generation) = holding.generation().cloned() else {
                continue;
            };
            let text = generation.as_str().to_owned();
            // What does not fit while nobody listens is said again with the next change.
            let news = reported.get(&name) != Some(&generation);
            if news
                && reports
                    .try_send(Report::Credential {
                        name: name.clone(),
                        generation: text,
                    })
                    .is_ok()
            {
                reported.insert(name, generation);
            }
        }
        if holdings.changed().await.is_err() {
            return;
        }
    }
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

/// Everything this command line names on the file system, and nothing else.
fn reach(args: &cli::Sidecar) -> Result<Reach, Failure> {
    let mut reach = Reach::default();
    reach.write.extend(args.source.allow_dir.iter().cloned());
    if let Some(state) = &args.source.state {
        // It may not exist yet: then it is made now, so that a rule can name it.
        make_private(state).map_err(Failure::unavailable)?;
        reach.write.push(state.clone());
    }
    if let Some(token) = &args.source.token_file {
        reach.consume.push(Reach::parent(token));
    }
    // Evidence is read anew whenever it is shown, and so are the roots of the first contact.
    let evidence = [
        &args.source.kubernetes_token_file,
        &args.source.x509_certificate,
        &args.source.x509_key,
        &args.source.bundle,
    ];
    for file in evidence.into_iter().flatten() {
        reach.read_file(file);
    }
    for socket in args
        .admin_socket
        .iter()
        .chain(&args.workload_api.workload_api)
    {
        reach.sockets.push(Reach::parent(socket));
    }
    if let lines::Destination::File(path) = &args.telemetry.access_log {
        reach.logs.push(Reach::parent(path));
    }
    if let Some(file) = &args.source.config {
        let standalone = source::read_standalone(file)?;
        reach.read_file(file);
        // The socket of a Workload API needs no rule: connecting is not Landlock's to forbid.
        if let Some(Identity::Files(files)) = &standalone.identity {
            for file in [&files.certificate, &files.key, &files.bundle] {
                reach.read_file(file);
            }
        }
        reach
            .sockets
            .extend(standalone.listening_sockets().map(Reach::parent));
        for credential in standalone.credentials() {
            if let CredentialSource::File { path } = &credential.source {
                reach.read_file(path);
            }
            reach.write.extend(
                credential
                    .deliver
                    .iter()
                    .filter_map(|delivery| match delivery {
                        Delivery::File(file) => Some(Reach::parent(&file.path)),
                        Delivery::Environment { .. } => None,
                    }),
            );
        }
    }
    Ok(reach)
}

fn make_private(directory: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("make the state directory `{}`", directory.display()))
}
