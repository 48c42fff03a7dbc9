//! The process above proxy and application: small, not confined, it opens no socket and parses nothing from the network
//! (D3, [`fender_credentials::supervise`]).
//!
//! It is never replaced by an upgrade: it goes on with the code it was started with, and so do the arguments.

use std::ffi::{OsStr, OsString};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use fender_credentials::environment::{self, Inherit};
use fender_credentials::mask::Masks;
use fender_credentials::supervise::{self, Plan, Program};
#[cfg(feature = "stores")]
use fender_providers::aws::AwsSettings;
use fender_runtime::id::OpaqueId;
use fender_runtime::manager::Manager;
use fender_runtime::sys;
use tempfile::TempDir;

use super::abandoned::{Interfaces, network_abandoned};
use super::{ABANDONED, NOTIFY_SOCKET, upgrade};
use crate::exit::{Exit, Failure, Outcome};
use crate::{cli, signals, source, variables};

/// How long a supervisor waits before it kills the proxy: longer than any drain a document can ask
/// for, because the proxy ends by itself at its own deadline.
const DRAIN: Duration = fender_config::MAX_DRAIN.saturating_add(Duration::from_secs(30));
/// What a successor that has begun in time may take to be handed everything; it gives up earlier by itself.
const SUCCESSION: Duration = Duration::from_secs(15);

/// Runs until both are over, with the code of the application.
pub(super) async fn run(args: cli::Sidecar, descriptors: u16) -> Outcome {
    let own = Own::of(&args).map_err(Failure::unavailable)?;
    let withheld = withheld(&args)?;
    let mut command = args.command.into_iter();
    let app = match command.next() {
        Some(program) => Some(Program {
            program,
            arguments: command.collect(),
            environment: Some(
                environment::build(
                    std::env::vars_os()
                        .filter(|(name, _)| !withheld.iter().any(|it| name == it.as_str())),
                    &Inherit::All,
                    [],
                )
                .map_err(Failure::usage_of)?,
            ),
            descriptors: 0,
        }),
        None => None,
    };
    let plan = Plan {
        app,
        supply: None,
        masks: args.mask_output.then(Masks::new),
        proxy: Some(Program {
            program: own_program().map_err(Failure::unavailable)?,
            arguments: own_arguments(&own.named),
            environment: None,
            descriptors,
        }),
        succession: vec!["--take-over".into(), own.upgrade_socket.into_os_string()],
        hang_up: signals::hang_up_of_a_service(),
        restart: args.restart,
        stop_timeout: args.stop_timeout,
        drain_timeout: DRAIN,
        upgrade_timeout: args.source.start_timeout.saturating_add(SUCCESSION),
        manager: Manager::from_variable(std::env::var_os(NOTIFY_SOCKET).as_deref()),
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

/// What credentials come from, and the application does not inherit: it gets them as the documents say.
fn withheld(args: &cli::Sidecar) -> Result<Vec<String>, Failure> {
    let mut withheld = args.source.allow_environment.clone();
    #[cfg(feature = "stores")]
    let (mut asks_aws, _) = variables::allowed_aws(&args.source.allow_aws);
    if let Some(file) = &args.source.config {
        let standalone = source::read_standalone(file)?;
        let specs: Vec<_> = standalone.credentials().collect();
        let variables = specs.iter().filter_map(variables::of);
        withheld.extend(variables.map(ToOwned::to_owned));
        #[cfg(feature = "stores")]
        {
            asks_aws = specs.iter().any(variables::is_of_aws);
        }
    }
    #[cfg(feature = "stores")]
    if asks_aws {
        withheld.extend(AwsSettings::SECRETS.map(ToOwned::to_owned));
    }
    Ok(withheld)
}

/// What the proxy has beside what the command line names.
struct Own {
    upgrade_socket: PathBuf,
    /// As arguments.
    named: Vec<OsString>,
    /// Gone with this process.
    _memory: Option<TempDir>,
}

impl Own {
    /// Without a state of its own a proxy that died could not come back: its token is spent. And without a socket for
    /// it, it could not be succeeded.
    fn of(args: &cli::Sidecar) -> anyhow::Result<Self> {
        let given = args.source.state.as_deref();
        let stateless = args.source.config.is_none() && given.is_none();
        let unreachable = upgrade::socket(args.places.upgrade_socket.as_deref(), given).is_none();
        let memory = (stateless || unreachable)
            .then(private_memory)
            .transpose()?;
        let inside = |name: &str| memory.as_ref().map(|memory| memory.path().join(name));
        let state = inside("state").filter(|_| stateless);
        let state = state.as_deref().or(given);
        let upgrade_socket = upgrade::socket(args.places.upgrade_socket.as_deref(), state);
        let upgrade_socket = upgrade_socket.or_else(|| inside("upgrade.sock"));
        let upgrade_socket = upgrade_socket.context("find a place for the upgrade socket")?;
        let mut named = Vec::new();
        if let Some(state) = state.filter(|_| stateless) {
            named.extend(["--state".into(), state.as_os_str().to_owned()]);
        }
        if args.places.upgrade_socket.is_none() {
            named.extend(["--upgrade-socket".into(), upgrade_socket.clone().into()]);
        }
        Ok(Self {
            upgrade_socket,
            named,
            _memory: memory,
        })
    }
}

/// A directory that nobody else reads and that is gone with this process, in memory where there is
/// a file system for that.
fn private_memory() -> anyhow::Result<TempDir> {
    let shared_memory = Path::new("/dev/shm");
    let mut builder = tempfile::Builder::new();
    builder
        .prefix("fender-")
        .permissions(Permissions::from_mode(0o700));
    let made = if shared_memory.is_dir() {
        builder.tempdir_in(shared_memory)
    } else {
        builder.tempdir()
    };
    made.context("make a directory for the proxy's state; --state names another")
}

/// Where this program lies: what lies there at an upgrade is what succeeds. By the name it was started with if that
/// leads here, because a link may lead elsewhere then.
fn own_program() -> anyhow::Result<OsString> {
    let real = std::env::current_exe().context("find this program")?;
    let named = std::env::args_os().next().map(PathBuf::from);
    let named = named.filter(|name| name.components().count() > 1);
    let named = named.and_then(|name| std::path::absolute(name).ok());
    let leads_here = |name: &PathBuf| name.canonicalize().is_ok_and(|found| found == real);
    Ok(named.filter(leads_here).unwrap_or(real).into_os_string())
}

/// What this process was started with, up to the application's command, for the proxy it starts.
fn own_arguments(named: &[OsString]) -> Vec<OsString> {
    let own = std::env::args_os()
        .skip(1)
        .take_while(|argument| argument != OsStr::new("--"));
    let role = ["--supervised", "--tethered"].map(OsString::from);
    let run = OsString::from(format!("--app-run={}", OpaqueId::random()));
    let named = named.iter().cloned();
    own.chain(named).chain(role).chain([run]).collect()
}
