//! Programs that are run for what they answer: a task on standard input, bytes on standard output, and then the end.
//!
//! Only programs that were allowed by their exact paths are run, [`AT_ONCE`] of them at once and as many that take long; the others
//! wait, and those that hang hold up each other. Each starts
//! with nothing of its parent: in `/`, with `PATH` and no other variable, no descriptor beside the three, every signal at
//! its default, no way to gain privileges, and a process group of its own, of which nothing is left when it is over. What it
//! writes is bounded, and so is its time. What it complains of on standard error is counted and not read: there may be a
//! secret in it.
//!
//! A process that confined itself can start nothing that needs more than itself has. It has a helper, a process of the
//! same program that was started before: [`Runner::by`] asks it, [`serve`] is what it does. The helper has the list of what
//! is allowed from its own command line and believes nobody else about it.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::courier::Courier;
use crate::deadline::Deadline;
use crate::drain::Drain;
use lanes::Lanes;

mod child;
mod lanes;
mod wire;

/// How many programs run at once. Those that take longer than two seconds have as many places of their own.
pub const AT_ONCE: usize = 4;

/// How long a helper that has ended may take to be started again, beside the time of its task.
const HELPLESS: Duration = Duration::from_secs(60);

/// No program has more time than this.
pub const LONGEST: Duration = Duration::from_secs(300);

/// No program answers more than this.
pub const MOST: usize = 4 * 1024 * 1024;

/// What a program finds in `PATH`.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the helper is told over its channel: a socket for one task comes along.
const TASK: &str = "task";

/// A program to run, and how much it may take.
#[derive(Clone, Debug)]
pub struct Task {
    /// Absolute.
    pub program: PathBuf,
    pub arguments: Vec<String>,
    /// What it reads.
    pub input: Vec<u8>,
    /// How many bytes it may answer; at most [`MOST`].
    pub most: usize,
    /// From its start to its end; at most [`LONGEST`].
    pub timeout: Duration,
}

/// What came of a program that ran to its end.
#[derive(Debug)]
pub struct Finished {
    pub exit: Exit,
    /// It may hold a secret, and is wiped.
    pub output: Zeroizing<Vec<u8>>,
    /// How many bytes it wrote to standard error.
    pub complaints: u64,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
}

/// Why a program did not run to its end. The text names the program and nothing that it wrote.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    #[error("it is not allowed on this machine; name it with --allow-command")]
    NotAllowed,
    #[error("it cannot be started: {0}")]
    Start(String),
    #[error("it did not end in time and was killed")]
    Timeout,
    #[error("it answered more than it may and was killed")]
    TooMuch,
    #[error(
        "the process that starts programs has ended meanwhile; if it does not start again, start this one again"
    )]
    Gone,
}

/// Runs programs. Clones share one budget.
#[derive(Clone, Debug)]
pub struct Runner {
    allowed: Arc<[PathBuf]>,
    /// Whose turn it is; none where whoever asks sees to that.
    lanes: Option<Arc<Lanes>>,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    /// As children of this process.
    Here,
    /// As children of a helper.
    Helper(Arc<Courier>),
}

impl Runner {
    /// Runs nothing.
    pub fn none() -> Self {
        Self::here([])
    }

    /// Runs these, as children of this process. They are killed when the thread that started them ends.
    pub fn here(allowed: impl IntoIterator<Item = PathBuf>) -> Self {
        Self {
            allowed: allowed.into_iter().collect(),
            lanes: Some(Arc::new(Lanes::new(AT_ONCE))),
            place: Place::Here,
        }
    }

    /// Has these run by the helper at the other end of `channel`.
    pub fn by(channel: UnixStream, allowed: impl IntoIterator<Item = PathBuf>) -> Self {
        Self {
            place: Place::Helper(Arc::new(Courier::new(channel))),
            ..Self::here(allowed)
        }
    }

    /// Whether `program` may be run here: it was named so, letter by letter.
    pub fn allows(&self, program: &Path) -> bool {
        let named = |allowed: &PathBuf| allowed.as_os_str() == program.as_os_str();
        program.is_absolute() && self.allowed.iter().any(named)
    }

    /// Runs a program to its end. Waits for its turn first, which is not counted as its time. Cancel safe: what runs is
    /// killed.
    pub async fn run(&self, task: &Task) -> Result<Finished, RunError> {
        if !self.allows(&task.program) {
            return Err(RunError::NotAllowed);
        }
        let run = async {
            match &self.place {
                Place::Here => {
                    let began = Instant::now();
                    let finished = child::run(task).await;
                    (finished, Some(began.elapsed()))
                }
                Place::Helper(courier) => {
                    let deadline = Deadline::after(task.timeout.min(LONGEST) + HELPLESS);
                    let asked = deadline.bound(ask(courier, task)).await;
                    match asked.unwrap_or(Err(RunError::Gone)) {
                        Ok((answer, took)) => (answer, Some(took)),
                        // Whether it was slow nobody knows.
                        Err(error) => (Err(error), None),
                    }
                }
            }
        };
        match &self.lanes {
            Some(lanes) => {
                let who = (&task.program, &task.arguments, &task.input);
                lanes.run(who, run).await
            }
            None => run.await.0,
        }
    }
}

/// What came of it, and how long it ran: not counted is how long the helper took to hear of it.
async fn ask(
    courier: &Courier,
    task: &Task,
) -> Result<(Result<Finished, RunError>, Duration), RunError> {
    let gone = |_| RunError::Gone;
    let (mut ours, theirs) =
        UnixStream::pair().map_err(|error| RunError::Start(error.to_string()))?;
    // So short that the kernel takes it whole or not at all.
    courier.say(TASK, &[theirs.as_fd()]).await.map_err(gone)?;
    drop(theirs);
    ours.write_all(&wire::task(task)).await.map_err(gone)?;
    wire::read_taken(&mut ours).await.map_err(gone)?;
    let began = Instant::now();
    let answer = wire::read_answer(&mut ours).await.map_err(gone)?;
    Ok((answer, began.elapsed()))
}

/// Runs what is asked for over `channel`, as long as it is one of `allowed`; until the channel ends, and then nothing runs
/// any more. It needs a runtime of one thread, which is the thread that its programs end with.
///
/// The error says why nothing is heard any more, though somebody may still ask: whoever serves the channel next hears what follows.
/// What runs then ends with the runtime.
pub async fn serve(channel: UnixStream, allowed: Vec<PathBuf>) -> io::Result<()> {
    let runner = Runner {
        lanes: None,
        ..Runner::here(allowed)
    };
    let mut courier = Courier::new(channel);
    // Whoever asks sees to whose turn it is; this is for one that does not.
    let (drain, turns) = (Drain::new(), Arc::new(Semaphore::new(2 * AT_ONCE)));
    loop {
        let Ok(turn) = Arc::clone(&turns).acquire_owned().await else {
            break;
        };
        let socket = match courier.hear().await {
            Ok(Some((_, brought))) => brought.into_iter().next(),
            Ok(None) => break,
            Err(error) => {
                tracing::error!(%error, "whoever wants programs run makes no sense");
                return Err(error);
            }
        };
        let Some(stream) = socket.and_then(|socket| connected(socket.into()).ok()) else {
            continue;
        };
        let runner = runner.clone();
        drain.spawn(async move {
            attend(stream, &runner).await;
            drop(turn);
        });
    }
    // Whoever asked is gone, and so every socket: each notices by itself.
    drain.drained().await;
    Ok(())
}

fn connected(stream: std::os::unix::net::UnixStream) -> io::Result<UnixStream> {
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// One task, for as long as somebody waits for its answer.
async fn attend(mut stream: UnixStream, runner: &Runner) {
    let Ok(task) = wire::read_task(&mut stream).await else {
        return;
    };
    if wire::write_taken(&mut stream).await.is_err() {
        return;
    }
    let answer = tokio::select! {
        answer = runner.run(&task) => answer,
        () = wire::closed(&stream) => return,
    };
    // Who does not take it is gone.
    let _ = wire::write_answer(&mut stream, answer).await;
}

#[cfg(test)]
mod tests;
