//! One program as a child of this process, from its start to its end.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use zeroize::Zeroizing;

use super::{Exit, Finished, LONGEST, MOST, PATH, RunError, Task};
use crate::deadline::Deadline;
use crate::sys;

/// What is read at once of what is thrown away.
const PIECE: usize = 4096;
/// Anybody but owner and group may write.
const OPEN: u32 = 0o002;

pub(super) async fn run(task: &Task) -> Result<Finished, RunError> {
    let mut running = Running::start(task).map_err(|error| RunError::Start(error.to_string()))?;
    let deadline = Deadline::after(task.timeout.min(LONGEST));
    match deadline
        .bound(running.finish(&task.input, task.most.min(MOST)))
        .await
    {
        Ok(finished) => finished,
        Err(_) => Err(RunError::Timeout),
    }
}

/// A child and its group; both are gone when this is.
struct Running {
    child: Child,
    group: Pid,
    /// For the moment it is over: its number stays its own until it is reaped.
    process: Option<OwnedFd>,
    reaped: bool,
    input: Option<pipe::Sender>,
    output: pipe::Receiver,
    complaints: pipe::Receiver,
}

impl Running {
    fn start(task: &Task) -> io::Result<Self> {
        check(&task.program)?;
        let mut command = Command::new(&task.program);
        command
            .args(&task.arguments)
            .env_clear()
            .env("PATH", PATH)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        sys::default_signals(&mut command, None);
        sys::isolate(&mut command);
        let mut child = command.spawn()?;
        let group = Pid::from_child(&child);
        let opened = open(&mut child, group);
        match opened {
            Ok((process, input, output, complaints)) => Ok(Self {
                child,
                group,
                process: Some(process),
                reaped: false,
                input: Some(input),
                output,
                complaints,
            }),
            Err(error) => {
                end(&mut child, group);
                Err(error)
            }
        }
    }

    async fn finish(&mut self, input: &[u8], most: usize) -> Result<Finished, RunError> {
        let failed = |error: io::Error| RunError::Start(error.to_string());
        let Some(process) = self.process.take() else {
            return Err(RunError::Gone);
        };
        let sender = self.input.take();
        let (output, complaints) = (&mut self.output, &mut self.complaints);
        let (output, complaints) = {
            let mut talk = std::pin::pin!(async {
                tokio::try_join!(
                    collect(output, most),
                    async { Ok(count(complaints).await) },
                    async {
                        tell(sender, input).await;
                        Ok(())
                    },
                )
            });
            let mut over = std::pin::pin!(sys::ended(process));
            tokio::select! {
                said = &mut talk => {
                    let (output, complaints, ()) = said?;
                    over.await.map_err(failed)?;
                    (output, complaints)
                }
                // What it started and left behind may hold its output open.
                over = &mut over => {
                    over.map_err(failed)?;
                    kill(self.group);
                    let (output, complaints, ()) = talk.await?;
                    (output, complaints)
                }
            }
        };
        let status = self.reap().map_err(failed)?;
        let exit = match (status.code(), status.signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, signal) => Exit::Signal(signal.unwrap_or_default()),
        };
        Ok(Finished {
            exit,
            output,
            complaints,
        })
    }

    /// The group goes first: once its leader is reaped, its number may be somebody else's.
    fn reap(&mut self) -> io::Result<ExitStatus> {
        kill(self.group);
        self.reaped = true;
        self.child.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.reaped {
            end(&mut self.child, self.group);
        }
    }
}

/// A killed process ends at once, unless the kernel itself hangs.
fn end(child: &mut Child, group: Pid) {
    kill(group);
    let _ = child.kill();
    let _ = child.wait();
}

fn kill(group: Pid) {
    // Nobody of it may be left.
    let _ = rustix::process::kill_process_group(group, Signal::KILL);
}

type Ends = (OwnedFd, pipe::Sender, pipe::Receiver, pipe::Receiver);

fn open(child: &mut Child, pid: Pid) -> io::Result<Ends> {
    let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let missing = || io::Error::other("a pipe is missing");
    let input = OwnedFd::from(child.stdin.take().ok_or_else(missing)?);
    let output = OwnedFd::from(child.stdout.take().ok_or_else(missing)?);
    let complaints = OwnedFd::from(child.stderr.take().ok_or_else(missing)?);
    Ok((
        process,
        pipe::Sender::from_owned_fd(input)?,
        pipe::Receiver::from_owned_fd(output)?,
        pipe::Receiver::from_owned_fd(complaints)?,
    ))
}

/// A program that anybody may change is anybody's program.
fn check(program: &Path) -> io::Result<()> {
    let metadata = std::fs::metadata(program)?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if metadata.permissions().mode() & OPEN != 0 {
        return Err(io::Error::other("everybody may write to it"));
    }
    Ok(())
}

/// Who does not read what it is told need not.
async fn tell(sender: Option<pipe::Sender>, input: &[u8]) {
    if let Some(mut sender) = sender {
        let _ = sender.write_all(input).await;
    }
}

async fn collect(output: &mut pipe::Receiver, most: usize) -> Result<Zeroizing<Vec<u8>>, RunError> {
    // At once, because a buffer that grows leaves copies behind. Pages that nobody writes to cost nothing.
    let mut collected = Zeroizing::new(Vec::with_capacity(most + 1));
    while collected.len() <= most {
        match output.read_buf(&mut *collected).await {
            Ok(0) => return Ok(collected),
            Ok(_) => {}
            Err(error) => return Err(RunError::Start(error.to_string())),
        }
    }
    Err(RunError::TooMuch)
}

async fn count(complaints: &mut pipe::Receiver) -> u64 {
    let mut piece = Zeroizing::new([0; PIECE]);
    let mut bytes = 0_u64;
    while let Ok(read @ 1..) = complaints.read(&mut *piece).await {
        bytes = bytes.saturating_add(read as u64);
    }
    bytes
}
