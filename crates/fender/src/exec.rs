//! `fender exec`: credentials into the environment of a command, and then this process is that
//! command. No shell, no parent left behind, nothing of Fender's own in what it inherits.
//!
//! What has to be looked after while the command runs, like a lease, is refused here and needs [`supervised`].

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use fender_config::ObjectName;
use fender_config::snapshot::{CredentialSource, CredentialSpec, Lifetime, Origin};
use fender_credentials::cache::Owner;
use fender_credentials::environment::{self, Inherit};
use fender_credentials::supervise::RestartOn;
use fender_credentials::{Gathered, gather};
#[cfg(feature = "stores")]
use fender_providers::aws::AllowAws;
use fender_providers::environment::Environment;
use fender_runtime::clock;
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use fender_runtime::program::Runner;
use fender_runtime::sys;

use crate::exit::{Exit, Failure, Outcome};
use crate::source::Tenure;
use crate::stores::{self, Machine, Whose};
use crate::{cli, kept, single, source, variables};

mod supervised;

/// How long the goodbye to the control plane may take before the command starts anyway.
const FAREWELL: std::time::Duration = std::time::Duration::from_secs(1);

pub(crate) fn run(args: cli::Exec) -> Outcome {
    if args.supervise {
        return supervised::run(args);
    }
    if args.restart.on != RestartOn::No {
        return Err(Failure::usage(
            "--restart is about a command that has a parent: give --supervise as well",
        ));
    }
    let mut prepared = None;
    // Before any thread, and so that the command does not inherit them.
    let alone = match &args.source.config {
        Some(file) => Some(source::read_standalone(file)?),
        None => None,
    };
    let alone = alone.map(|alone| Alone {
        name: alone.name().clone(),
        specs: alone.credentials().collect(),
    });
    let named = alone.iter().flat_map(|alone| &alone.specs);
    let named = named.filter_map(variables::of);
    let allowed = args.source.allow_environment.iter().map(String::as_str);
    let taken = variables::take(named.chain(allowed).map(ToOwned::to_owned));
    #[cfg(feature = "stores")]
    let taken = {
        let (asked, allow) = match &alone {
            Some(alone) => (alone.specs.iter().any(variables::is_of_aws), AllowAws::Any),
            None => variables::allowed_aws(&args.source.allow_aws),
        };
        taken.with_aws(variables::take_aws(asked, allow))
    };
    single(async {
        prepared = Some(environment(&args, alone, taken).await?);
        Ok(Exit::Done)
    })?;
    let (Some(environment), Some((program, arguments))) = (prepared, args.command.split_first())
    else {
        return Err(Failure::usage("no command to run"));
    };
    // Returns only if the command could not be started; every descriptor of ours closes by itself.
    let mut command = std::process::Command::new(program);
    command.args(arguments).env_clear().envs(environment);
    sys::allow_core_files(&mut command);
    let error = command.exec();
    let missing = error.kind() == std::io::ErrorKind::NotFound;
    let exit = Exit::App(if missing { 127 } else { 126 });
    Err(Failure::new(
        exit,
        anyhow::Error::new(error).context(format!("run `{}`", program.to_string_lossy())),
    ))
}

/// What a file says. The identity in it is not read: it is of use to nobody here.
struct Alone {
    /// Of its `Sidecar`.
    name: ObjectName,
    specs: Vec<CredentialSpec>,
}

async fn environment(
    args: &cli::Exec,
    alone: Option<Alone>,
    taken: Environment,
) -> Result<Vec<(OsString, OsString)>, Failure> {
    let deadline = Deadline::after(args.source.start_timeout);
    let (drain, clock) = (Drain::new(), clock::system());
    let cache = kept::open(&args.source)?;
    let feed;
    let (specs, whose) = match alone {
        Some(Alone { name, specs }) => (specs, Whose::Alone(Owner::Sidecar(name))),
        None => {
            let admit = Box::new(|_: &_| Ok(()));
            let own = Tenure::Own;
            feed = source::open(&args.source, own, admit, &clock, &drain, deadline).await?;
            let specs = feed.snapshot.borrow().credentials.clone();
            (specs, Whose::Feed(&feed))
        }
    };
    // Those of a control plane only where they were named here.
    let is_alone = matches!(whose, Whose::Alone(_));
    let named = specs.iter().filter(|_| is_alone).filter_map(program);
    let machine = Machine {
        programs: Runner::here(named.chain(args.source.allow_command.iter().cloned())),
        environment: taken,
        cache,
    };
    let kept = || true;
    let sources = stores::sources(&args.source, whose, machine, kept, &clock, &drain);
    sources.keep_only(&specs, &drain).await;
    let is_for_the_environment =
        |spec: &CredentialSpec| environment::variables(spec).next().is_some();
    let specs: Vec<_> = specs.into_iter().filter(is_for_the_environment).collect();
    if let Some(leased) = specs.iter().find(|spec| is_leased(spec)) {
        return Err(Failure::usage(format!(
            "credential `{}` comes with a lease, which nobody would renew or give back once this process is the command; give --supervise as well",
            leased.name
        )));
    }
    let gathered = gather(&specs, &sources, deadline, &drain)
        .await
        .map_err(|error| Failure::new(Exit::from_code(error.exit_code()), error))?;
    let built = environment::build(
        std::env::vars_os(),
        &Inherit::All,
        gathered.iter().flat_map(variables),
    )
    .map_err(|error| Failure::new(Exit::Usage, error))?;
    drain.close(Deadline::after(FAREWELL)).await;
    Ok(built)
}

/// What has to be run for it.
fn program(spec: &CredentialSpec) -> Option<PathBuf> {
    match &spec.source {
        CredentialSource::Direct(Origin::Command(command)) => Some(command.program.clone()),
        CredentialSource::Direct(_) | CredentialSource::Control(_) => None,
    }
}

/// Whether it ends unless somebody renews it. Of what this build cannot ask for nothing is said: it is refused for that.
fn is_leased(spec: &CredentialSpec) -> bool {
    let lifetime = match &spec.source {
        CredentialSource::Direct(_) if cfg!(not(feature = "stores")) => return false,
        CredentialSource::Direct(origin) => origin.lifetime(),
        CredentialSource::Control(lifetime) => *lifetime,
    };
    lifetime == Lifetime::Leased
}

fn variables(gathered: &Gathered) -> impl Iterator<Item = (&str, &fender_identity::Secret)> {
    environment::variables(&gathered.spec).map(|name| (name, &gathered.fetched.value))
}
