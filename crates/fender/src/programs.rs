//! The helper that runs programs for a process that cannot, or should not: the proxy is confined, and what it starts would
//! be too.
//!
//! It is this program again, started before the proxy confines itself, with the programs it may run on its command line. It
//! reads no document and opens no socket; it runs what is asked for over its standard input, if it is one of those, and
//! ends with whoever asks.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use fender_runtime::program::{self, Runner};
use fender_runtime::sys;
use tokio::net::UnixStream;

use crate::exit::{Exit, Failure, Outcome};
use crate::{cli, single};

/// This very program, also if another lies at its path by now.
const OWN: &str = "/proc/self/exe";
/// What of the environment is the helper's business: how it logs.
const VARIABLES: [&str; 2] = ["FENDER_LOG", "FENDER_LOG_FORMAT"];

/// A helper that was started, if there is anything that it may run.
#[derive(Debug)]
pub(crate) struct Helper {
    channel: Option<std::os::unix::net::UnixStream>,
    allowed: Vec<PathBuf>,
}

impl Helper {
    /// Starts one for these programs; none for none. Call it when nothing is open that it should not have.
    pub(crate) fn start(allowed: &[PathBuf]) -> Result<Self> {
        let mut helper = Self {
            channel: None,
            allowed: allowed.to_vec(),
        };
        if allowed.is_empty() {
            return Ok(helper);
        }
        let (ours, theirs) =
            std::os::unix::net::UnixStream::pair().context("make a socket pair")?;
        ours.set_nonblocking(true).context("prepare a socket")?;
        let kept = VARIABLES.map(|name| (name, std::env::var_os(name)));
        let kept = kept
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)));
        let mut command = Command::new(OWN);
        command
            .arg0("fender")
            .arg("run-programs")
            .args(allowed)
            .env_clear()
            .envs(kept)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            // A key pressed at a terminal is for whoever it works for.
            .process_group(0);
        // Not reaped: it ends with this process, or is the loss of a process that goes on without.
        command
            .spawn()
            .context("start the helper that runs programs")?;
        helper.channel = Some(ours);
        Ok(helper)
    }

    /// Whoever may be asked to run them. Needs a runtime.
    pub(crate) fn runner(self) -> Result<Runner> {
        match self.channel {
            Some(channel) => {
                let channel = UnixStream::from_std(channel).context("use a socket")?;
                Ok(Runner::by(channel, self.allowed))
            }
            None => Ok(Runner::none()),
        }
    }
}

/// `fender run-programs`: the helper.
pub(crate) fn run(args: cli::RunPrograms) -> Outcome {
    sys::harden_process().map_err(Failure::unavailable)?;
    let descriptor = std::io::stdin().as_fd().try_clone_to_owned();
    let channel = std::os::unix::net::UnixStream::from(descriptor.map_err(Failure::unavailable)?);
    // Fails on anything but such a socket.
    channel
        .peer_addr()
        .context("find at standard input who wants programs run; a sidecar or a control plane starts this, nobody else")
        .map_err(Failure::usage_of)?;
    channel
        .set_nonblocking(true)
        .map_err(Failure::unavailable)?;
    single(async {
        let channel = UnixStream::from_std(channel).map_err(Failure::unavailable)?;
        program::serve(channel, args.allowed).await;
        Ok(Exit::Done)
    })
}
