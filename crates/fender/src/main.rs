//! The `fender` binary: command line, files and environment into typed configuration, the wiring
//! of the crates, signals and exit codes.
//!
//! It decides nothing about identity, policy or protocol: it hands each crate what it needs and
//! starts them in order. `sidecar::run` and `control::run` show each program whole.

#[cfg(feature = "administration")]
mod admin;
mod admin_socket;
#[cfg(feature = "agent")]
mod agent;
#[cfg(feature = "administration")]
mod audit;
#[cfg(feature = "control-plane")]
mod ca;
mod cli;
#[cfg(feature = "control-plane")]
mod control;
#[cfg(feature = "administration")]
mod crl;
#[cfg(feature = "control-plane")]
mod demo;
mod exec;
mod exit;
mod features;
mod get;
mod init;
mod kept;
#[cfg(any(feature = "administration", feature = "standalone"))]
mod load;
mod local;
#[cfg(feature = "control-plane")]
mod plane;
mod programs;
mod reference;
mod render;
#[cfg(feature = "administration")]
mod revisions;
#[cfg(feature = "administration")]
mod revoke;
#[cfg(feature = "standalone")]
mod schema;
mod sidecar;
mod signals;
mod source;
mod status;
mod stores;
#[cfg(test)]
mod testing;
#[cfg(feature = "administration")]
mod tokens;
mod upgrade;
mod variables;
#[cfg(feature = "stores")]
mod workload;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use clap::error::{ContextKind, ContextValue};
use fender_runtime::{sys, telemetry};

#[cfg(feature = "administration")]
use cli::{Ca, SvidCommand, Token};
use cli::{Cli, Command};
use exit::{Exit, Failure, Outcome};

/// For threads that are about to end by themselves.
const LINGER: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    // Before any name is looked up: a static binary must not load the host's name service modules.
    sys::pin_name_service();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            if let Some(why) = left_out(&error) {
                let _ = telemetry::StandardError.write_all(format!("{why}\n").as_bytes());
                return Exit::Usage.into();
            }
            let _ = error.print();
            return if error.use_stderr() {
                Exit::Usage.into()
            } else {
                Exit::Done.into()
            };
        }
    };
    match run(cli) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            let _ = telemetry::StandardError.write_all(format!("{failure}\n").as_bytes());
            failure.exit.into()
        }
    }
}

/// What is said of a command that this build leaves out: it is no misspelled one.
fn left_out(error: &clap::Error) -> Option<String> {
    let Some(ContextValue::String(command)) = error.get(ContextKind::InvalidSubcommand) else {
        return None;
    };
    features::left_out_command(command)
}

fn run(cli: Cli) -> Outcome {
    if cli.tethered {
        sys::die_with_parent(sys::Signal::TERM).map_err(Failure::unavailable)?;
    }
    // Secrets pass through this memory: no other process of this user is to read it.
    sys::forbid_inspection().map_err(Failure::unavailable)?;
    sys::forbid_core_files().map_err(Failure::unavailable)?;
    if rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err()
    {
        return Err(Failure::unavailable(anyhow::anyhow!(
            "a cryptography provider was installed before main"
        )));
    }
    // Before any thread: it may be in the environment, which is then changed.
    #[cfg(feature = "control-plane")]
    let sealing = plane::sealing(&cli.command)?;
    telemetry::init(cli.log.log_format.into(), &cli.log.log).map_err(Failure::usage)?;
    match cli.command {
        #[cfg(feature = "control-plane")]
        Command::Plane(command) => plane::run(command, sealing),
        #[cfg(feature = "agent")]
        Command::Agent(args) => blocking(agent::run(args)),
        Command::Sidecar(args) => sidecar::run(*args),
        Command::Watch(args) => sidecar::run((*args).into()),
        Command::Init(args) => init::run(*args),
        Command::Upgrade(args) => single(upgrade::upgrade(args)),
        Command::Reload(args) => single(upgrade::reload(args)),
        Command::Exec(args) => exec::run(*args),
        Command::Get(args) => single(get::get(args)),
        #[cfg(feature = "administration")]
        Command::Apply(args) => blocking(admin::apply(args)),
        #[cfg(feature = "administration")]
        Command::Revisions(args) => blocking(revisions::list_or_show(args)),
        #[cfg(feature = "administration")]
        Command::Diff(args) => blocking(revisions::diff(args)),
        #[cfg(feature = "administration")]
        Command::Token(Token::Create(args)) => blocking(admin::create_token(args)),
        #[cfg(feature = "administration")]
        Command::Token(Token::List(args)) => blocking(tokens::list(args)),
        #[cfg(feature = "administration")]
        Command::Token(Token::Revoke(args)) => blocking(tokens::revoke(args)),
        Command::Status(args) => blocking(status::status(args)),
        Command::Explain(args) => blocking(status::explain(args)),
        #[cfg(feature = "administration")]
        Command::Svid(SvidCommand::Write(args)) => blocking(admin::write_svid(args)),
        #[cfg(feature = "administration")]
        Command::Ca(Ca::Rotate(args)) => blocking(admin::rotate_authority(args)),
        #[cfg(feature = "control-plane")]
        Command::Ca(Ca::Offline(command)) => ca::run(&command, &sealing),
        #[cfg(feature = "administration")]
        Command::Revoke(args) => blocking(revoke::revoke(args)),
        #[cfg(feature = "administration")]
        Command::Revocations(args) => blocking(revoke::list(args)),
        #[cfg(feature = "administration")]
        Command::Crl(args) => blocking(crl::write(args)),
        #[cfg(feature = "administration")]
        Command::AuditLog(args) => blocking(audit::run(args)),
        #[cfg(feature = "standalone")]
        Command::Schema => print(&schema::text()),
        Command::RunPrograms(args) => programs::run(args),
        Command::Reference { of } => print(&reference::markdown(of)),
    }
}

/// Runs on as many threads as there are processors.
pub(crate) fn blocking(work: impl Future<Output = Outcome>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Failure::unavailable)?;
    finish(runtime, work)
}

/// Runs on this thread alone, for programs that mostly wait for processes.
pub(crate) fn single(work: impl Future<Output = Outcome>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::unavailable)?;
    finish(runtime, work)
}

/// What is done when the work is done is done: a thread that hangs in a file system or in the name
/// service, which cannot be interrupted, does not keep the process from ending.
fn finish(runtime: tokio::runtime::Runtime, work: impl Future<Output = Outcome>) -> Outcome {
    let outcome = runtime.block_on(work);
    runtime.shutdown_timeout(LINGER);
    outcome
}

/// Writes a command's result to standard output.
pub(crate) fn print(text: &str) -> Outcome {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(Exit::Done),
        // The reader has seen enough, as in `fender schema | head`.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(Exit::Done),
        Err(error) => Err(Failure::unavailable(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_hangs_does_not_keep_the_process_from_ending() {
        let (release, hangs) = std::sync::mpsc::channel::<()>();
        let began = std::time::Instant::now();
        let outcome = single(async {
            tokio::task::spawn_blocking(move || hangs.recv_timeout(Duration::from_secs(20)));
            Ok(Exit::Done)
        });
        assert!(matches!(outcome, Ok(Exit::Done)));
        assert!(began.elapsed() < Duration::from_secs(10));
        drop(release);
    }
}
