//! The helper that runs programs for a process that cannot, or should not: the proxy is confined, and what it starts would
//! be too.
//!
//! It is this program again, started before the proxy confines itself, with the programs it may run on its command line. It
//! reads no document and opens no socket; it runs what is asked for over its standard input, if it is one of those, and
//! ends with whoever asks.
//!
//! It is two processes. One does the work; the other waits for it, ends what it leaves behind when it dies, and starts it
//! again after a rest that grows. The one that works notices when the other dies, and takes its place. What was under way then is an
//! outage, and is asked for again.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fender_runtime::backoff::Backoff;
use fender_runtime::program::{self, Runner};
use fender_runtime::sys;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitOptions, WaitStatus, pidfd_open};
use tokio::net::UnixStream;

use crate::exit::{Exit, Failure, Outcome};
use crate::{cli, single};

/// This very program, also if another lies at its path by now.
const OWN: &str = "/proc/self/exe";
/// What of the environment is the helper's business: how it logs.
const VARIABLES: [&str; 2] = ["FENDER_LOG", "FENDER_LOG_FORMAT"];

/// How long the helper rests at first when it has died, and at most.
const FIRST_REST: Duration = Duration::from_millis(200);
const LONGEST_REST: Duration = Duration::from_secs(30);
/// How often a worker looks who its parent is, where the kernel does not say when that ends.
const LOOK: Duration = Duration::from_secs(1);
/// One that lived so long did not die of what killed it before.
const SOUND: Duration = Duration::from_secs(60);

fn helper_for(allowed: &[PathBuf]) -> Command {
    let mut command = Command::new(OWN);
    command.arg0("fender").arg("run-programs").args(allowed);
    command
}

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
        let mut command = helper_for(allowed);
        command
            .env_clear()
            .envs(kept)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            // A key pressed at a terminal is for whoever it works for.
            .process_group(0);
        // Not reaped: it ends with this process.
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
    let descriptor = io::stdin().as_fd().try_clone_to_owned();
    let channel = std::os::unix::net::UnixStream::from(descriptor.map_err(Failure::unavailable)?);
    // Fails on anything but such a socket.
    channel
        .peer_addr()
        .context("find at standard input who wants programs run; a sidecar or a control plane starts this, nobody else")
        .map_err(Failure::usage_of)?;
    channel
        .set_nonblocking(true)
        .map_err(Failure::unavailable)?;
    match args.watched_by {
        None => watch(&args.allowed, &channel),
        Some(watcher) => work(args.allowed, channel, watcher),
    }
}

/// Runs programs, until nobody asks any more, or nobody would start this process again.
fn work(allowed: Vec<PathBuf>, channel: std::os::unix::net::UnixStream, watcher: i32) -> Outcome {
    let worked = single(async {
        let channel = UnixStream::from_std(channel).map_err(Failure::unavailable)?;
        tokio::select! {
            // Nobody asks any more; after an error somebody may, and another is started to hear it.
            served = program::serve(channel, allowed.clone()) => {
                served.map(|()| Exit::Done).map_err(Failure::unavailable)
            }
            () = orphaned(watcher) => Ok(Exit::Unavailable),
        }
    })?;
    if worked == Exit::Done {
        return Ok(worked);
    }
    tracing::warn!(
        "whoever would start the helper that runs programs again is gone; another takes its place"
    );
    // At standard input is still who asks.
    let error = helper_for(&allowed).exec();
    Err(Failure::unavailable(error))
}

/// Resolves once this process has another parent than the one it was started by.
async fn orphaned(watcher: i32) {
    let watcher = Pid::from_raw(watcher);
    let process = watcher.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    orphaned_of(watcher, process).await;
}

/// The same by who that is, and by a descriptor of it where the kernel gives one: that it cannot be had, or not be waited for, says nothing
/// about who the parent is.
async fn orphaned_of(watcher: Option<Pid>, process: Option<OwnedFd>) {
    let is_orphan = || rustix::process::getppid() != watcher;
    if let Some(process) = process
        && !is_orphan()
    {
        let _ = sys::ended(process).await;
    }
    while !is_orphan() {
        tokio::time::sleep(LOOK).await;
    }
}

/// Starts whoever runs programs, again and again, until nobody asks any more.
fn watch(allowed: &[PathBuf], channel: &std::os::unix::net::UnixStream) -> Outcome {
    if let Err(error) = sys::become_subreaper() {
        tracing::warn!(%error, "what a program leaves behind is not ended if the helper dies");
    }
    // Of the one whose place this process may have taken.
    end_children();
    let mut backoff = Backoff::new(FIRST_REST, LONGEST_REST);
    loop {
        let began = Instant::now();
        let ended = start_worker(allowed, channel).and_then(wait_for);
        end_children();
        let how = match ended {
            Ok(status) if status.exit_status() == Some(0) => return Ok(Exit::Done),
            Ok(status) => match status.terminating_signal() {
                Some(signal) => format!("ended by signal {signal}"),
                None => "ended by itself".to_owned(),
            },
            Err(error) => format!("not started: {error}"),
        };
        if began.elapsed() >= SOUND {
            backoff.reset();
        }
        let rest = backoff.next();
        tracing::error!(
            how,
            ?rest,
            "the helper that runs programs died, starting it again"
        );
        if is_left(channel, rest) {
            return Ok(Exit::Done);
        }
    }
}

fn start_worker(allowed: &[PathBuf], channel: &std::os::unix::net::UnixStream) -> io::Result<Pid> {
    let mut command = Command::new(OWN);
    let child = command
        .arg0("fender")
        .arg("run-programs")
        .arg(format!("--watched-by={}", std::process::id()))
        .args(allowed)
        .stdin(Stdio::from(OwnedFd::from(channel.try_clone()?)))
        .spawn()?;
    // The handle is dropped: whoever waits for any child waits for this one too.
    Ok(Pid::from_child(&child))
}

/// Waits for a child, and reaps meanwhile what others have left to this process.
fn wait_for(worker: Pid) -> io::Result<WaitStatus> {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == worker => return Ok(status),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Kills every child, and theirs as they become ours.
fn end_children() {
    loop {
        // Where `/proc` does not say, those that end by themselves are reaped.
        let children = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        for child in children.split_ascii_whitespace() {
            if let Some(pid) = child.parse().ok().and_then(Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, sys::Signal::KILL);
            }
        }
        let options = match children.is_empty() {
            true => WaitOptions::NOHANG,
            false => WaitOptions::empty(),
        };
        match rustix::process::wait(options) {
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) | Err(_) => return,
        }
    }
}

/// Rests for so long, unless whoever asked leaves: whether they did.
fn is_left(channel: &std::os::unix::net::UnixStream, rest: Duration) -> bool {
    // Nothing to read or write is waited for, so only the end is heard.
    let mut channel = [PollFd::new(channel, PollFlags::empty())];
    let rest = Timespec {
        tv_sec: i64::try_from(rest.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: rest.subsec_nanos().into(),
    };
    matches!(rustix::event::poll(&mut channel, Some(&rest)), Ok(1..))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As where a filter of system calls, or an old kernel, gives no descriptor; and where what it gives is of somebody else.
    #[tokio::test(start_paused = true)]
    async fn only_who_has_another_parent_is_orphaned() {
        let parent = rustix::process::getppid();
        let mut child = Command::new("/bin/true").spawn().unwrap();
        let ended = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        child.wait().unwrap();
        for process in [None, Some(ended)] {
            let orphaned = orphaned_of(parent, process);
            let waited = tokio::time::timeout(1000 * LOOK, orphaned).await;
            assert!(waited.is_err(), "it has its parent");
        }
        let other = Some(rustix::process::getpid());
        orphaned_of(other, None).await;
    }
}
