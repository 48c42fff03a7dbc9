//! The ways to tell somebody: a signal, HTTP, a program, the supervisor of the application.
//!
//! Documents are not remote code: a program was allowed on this machine by its path, a file with a process's number lies below
//! an allowed directory and was written by nobody who may signal fewer than we do, HTTP goes to this machine's loopback only, and the signals are those by which programs are told to read
//! again.

use std::sync::Arc;

use bytes::Bytes;
use fender_config::ObjectName;
use fender_config::snapshot::{LoopbackUrl, NotifyMethod, NotifySignal, Target};
use fender_providers::Source as _;
use fender_providers::file::FileSource;
use fender_runtime::deadline::Deadline;
use fender_runtime::program::{Exit, Runner, Task};
use futures_util::future::BoxFuture;
use http_body_util::Empty;
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::net::TcpStream;

use super::{NotTold, Tell};
use crate::allow::AllowDirs;

/// What a program may answer: nobody reads it.
const MOST: usize = 64 * 1024;

/// What the supervisor is asked to do to the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppNotice {
    Signal(NotifySignal),
    Restart,
}

/// Whoever supervises the application.
pub trait App: Send + Sync + 'static {
    /// Has it done. Answers when it is, or says why not.
    fn tell(&self, notice: AppNotice) -> BoxFuture<'_, Result<(), NotTold>>;
}

/// Nobody does.
#[derive(Clone, Copy, Debug)]
pub struct NoApp;

impl App for NoApp {
    fn tell(&self, _: AppNotice) -> BoxFuture<'_, Result<(), NotTold>> {
        let why = "this process supervises no application: it was started without `-- CMD`";
        Box::pin(std::future::ready(Err(NotTold::Never(why.to_owned()))))
    }
}

/// All of them.
pub struct Ways {
    pub allow: AllowDirs,
    pub programs: Runner,
    pub app: Arc<dyn App>,
}

impl Tell for Ways {
    fn tell<'a>(
        &'a self,
        target: &'a Target,
        changed: &'a [ObjectName],
    ) -> BoxFuture<'a, Result<(), NotTold>> {
        Box::pin(async move {
            let told = match target {
                Target::App(signal) => return self.app.tell(AppNotice::Signal(*signal)).await,
                Target::Restart => return self.app.tell(AppNotice::Restart).await,
                Target::Process { signal, pid_file } => {
                    let source = match self
                        .allow
                        .check(pid_file)
                        .map_err(|error| error.to_string())?
                    {
                        None => FileSource::new(pid_file),
                        Some(root) => FileSource::below(root, pid_file),
                    };
                    // Whoever writes it decides who is told, and we may be able to tell more than they are.
                    send(&source.written_by_no_other(), *signal).await
                }
                Target::Http {
                    url,
                    method,
                    timeout,
                } => match Deadline::after(*timeout).bound(request(url, *method)).await {
                    Ok(answered) => answered,
                    Err(_) => Err("it did not answer in time".to_owned()),
                },
                Target::Command {
                    program,
                    arguments,
                    timeout,
                } => {
                    let task = Task {
                        program: program.clone(),
                        arguments: arguments.clone(),
                        input: question(changed),
                        most: MOST,
                        timeout: *timeout,
                    };
                    self.run(&task).await
                }
            };
            told.map_err(NotTold::Later)
        })
    }
}

impl Ways {
    async fn run(&self, task: &Task) -> Result<(), String> {
        match self.programs.run(task).await {
            Ok(finished) => match finished.exit {
                Exit::Code(0) => Ok(()),
                Exit::Code(code) => Err(format!("it ended with exit code {code}")),
                Exit::Signal(signal) => Err(format!("it was ended by signal {signal}")),
            },
            Err(error) => Err(error.to_string()),
        }
    }
}

/// A line of JSON; names hold nothing that would have to be escaped.
fn question(changed: &[ObjectName]) -> Vec<u8> {
    let name = |name: &ObjectName| {
        format!(
            r#"{{"name":"{}","namespace":"{}"}}"#,
            name.name(),
            name.namespace()
        )
    };
    let names: Vec<_> = changed.iter().map(name).collect();
    let names = names.join(",");
    format!("{{\"credentials\":[{names}],\"operation\":\"notify\",\"version\":1}}\n").into_bytes()
}

/// Signals the process whose number is in the file, before and after it was opened: it is that very process then.
async fn send(pid_file: &FileSource, signal: NotifySignal) -> Result<(), String> {
    let before = number(pid_file).await?;
    let process = rustix::process::pidfd_open(before, PidfdFlags::empty())
        .map_err(|error| format!("process {before}: {error}"))?;
    if number(pid_file).await? != before {
        return Err("the number in the file changed meanwhile".to_owned());
    }
    let signal = match signal {
        NotifySignal::Hup => Signal::HUP,
        NotifySignal::Usr1 => Signal::USR1,
        NotifySignal::Usr2 => Signal::USR2,
    };
    rustix::process::pidfd_send_signal(&process, signal)
        .map_err(|error| format!("process {before}: {error}"))
}

async fn number(pid_file: &FileSource) -> Result<Pid, String> {
    let fetched = pid_file.fetch().await.map_err(|error| error.to_string())?;
    let number = fetched.value.expose_str().map(str::trim);
    let number = number.and_then(|text| text.parse::<i32>().ok());
    // Neither a group, nor everybody, nor the one that started this machine or container.
    let number = number.filter(|number| *number > 1);
    let pid = number.and_then(Pid::from_raw);
    let pid = pid.ok_or("there is no number of a process in the file")?;
    match pid == rustix::process::getpid() || Some(pid) == rustix::process::getppid() {
        true => Err("that is the sidecar's own process".to_owned()),
        false => Ok(pid),
    }
}

async fn request(url: &LoopbackUrl, method: NotifyMethod) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| error.to_string();
    let stream = TcpStream::connect(url.address())
        .await
        .map_err(|error| failed(&error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed(&error))?;
    let request = Request::builder()
        .method(method.name())
        .uri(url.path())
        .header("host", url.address().to_string())
        .header("connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(&error))?;
    let answer = async {
        let answered = sender.send_request(request).await;
        let status = answered.map_err(|error| failed(&error))?.status();
        match status.is_success() {
            true => Ok(()),
            false => Err(format!("it answered {}", status.as_u16())),
        }
    };
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        biased;
        answered = &mut answer => answered,
        // What it was about may have been the answer; or the answer says why there is none.
        _ = connection => answer.await,
    }
}

#[cfg(test)]
mod tests;
