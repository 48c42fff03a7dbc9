//! `fender sidecar`: the whole program, in the order in which it comes up.
//!
//! With an application to run, this process is the supervisor: small, unconfined, with two
//! children, the proxy and the application (D3). Without one it is the proxy. The proxy confines
//! itself first; then learns who it is, what it must do and which secrets it has; only then does it
//! listen, and last of all it says that it is ready.
//!
//! `fender watch` is the same without a proxy ([`cli::Role::Watch`]), and so is a sidecar that runs from a file without an
//! identity: there is nothing that it could show at a port.

mod abandoned;
#[cfg_attr(not(feature = "acme"), path = "no_acme.rs")]
mod acme;
mod asked;
mod attend;
#[cfg(feature = "agent")]
mod callers;
pub(crate) mod confine;
mod decisions;
mod drains;
mod notices;
mod paths;
mod records;
pub(crate) mod remote;
mod spans;
mod start;
mod status;
mod supervisor;
pub(crate) mod upgrade;
pub(crate) mod usage;

pub(crate) use status::METRICS;

use std::convert::Infallible;
use std::time::Duration;

use anyhow::Context;
use fender_credentials::cache::Opened;
use fender_credentials::supervise::{HangUp, RestartOn, Superior};
#[cfg(feature = "stores")]
use fender_providers::aws::AllowAws;
use fender_providers::environment::Environment;
use fender_runtime::lines;
use fender_runtime::listen::Listeners;
use fender_runtime::manager::Manager;
use fender_runtime::sys;

use crate::exit::{Exit, Failure, Outcome};
use crate::programs::Helper;
use crate::signals::{self, Signals};
use crate::{blocking, cli, kept, single, variables};
use abandoned::Interfaces;
use attend::{End, Watch};
use confine::Reach;
use drains::{App as AppState, Drains};
use notices::Waiting;
use start::start;

const ABANDONED: &str = "every network interface but loopback is gone: the owner of the network namespace restarted; start this sidecar again to join the new one";
/// Where a service manager wants to be told how we are.
pub(crate) const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
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
    if !app && args.mask_output {
        return Err(Failure::usage(
            "--mask-output is about what an application writes: give one after `--`",
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
    let mut reach = Reach::of(&args)?;
    // A supervisor looks for itself: a proxy that ended would only be started again.
    let interfaces = (!args.supervised).then(Interfaces::open).flatten();
    let hang_up = match args.supervised {
        // It belongs to its supervisor, which says what a signal means.
        true => HangUp::Reloads,
        false => signals::hang_up_of_a_service(),
    };
    let local = Local::take(&mut reach, &args.source)?;
    confine::confine(&reach).map_err(Failure::unavailable)?;
    blocking(serve(args, reach, local, listeners, interfaces, hang_up))
}

/// What documents may use of this machine, but for its files.
pub(crate) struct Local {
    pub(crate) helper: Helper,
    pub(crate) environment: Environment,
    pub(crate) cache: Option<Opened>,
}

impl Local {
    /// To be called before threads, and before this process confines itself.
    pub(crate) fn take(reach: &mut Reach, source: &cli::Source) -> Result<Self, Failure> {
        let environment = variables::take(reach.variables.iter().cloned());
        #[cfg(feature = "stores")]
        let environment = {
            // A file on this machine was written by whoever may use its credentials.
            let (asks_aws, allow) = match &source.config {
                Some(_) => (reach.asks_aws, AllowAws::Any),
                None => variables::allowed_aws(&source.allow_aws),
            };
            environment.with_aws(variables::take_aws(asks_aws, allow))
        };
        #[cfg(feature = "stores")]
        for file in environment.aws().settings.files() {
            reach.read_file(&file);
        }
        let cache = kept::open(source)?;
        reach.write.extend(source.credentials_cache.clone());
        let helper = Helper::start(&reach.programs).map_err(Failure::unavailable)?;
        Ok(Self {
            helper,
            environment,
            cache,
        })
    }
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
    match &serving.feed.svid {
        Some(svid) => tracing::info!(identity = %svid.borrow().id(), "ready"),
        None => tracing::info!("ready, without an identity"),
    }

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
