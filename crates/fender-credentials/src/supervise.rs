//! The parent of the application and of the proxy beside it: small, not confined, and never wiser
//! than they are.
//!
//! The two are siblings. The application starts when the proxy says that it is ready, gets every
//! signal this process gets, and ends it with its own exit code. The proxy is told to stop inbound
//! when the application is told to stop, but carries outbound until the application has exited;
//! only then is it asked to end. A proxy that dies is started again without the application noticing
//! more than refused connections.
//!
//! As process 1, or as the subreaper it makes itself, it reaps every orphan. Because it waits for
//! any child, nothing else in its process may start one.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use fender_runtime::backoff::Backoff;
use fender_runtime::sys::{self, Signal};
use rustix::process::{Pid, WaitOptions, WaitStatus};
use tokio::net::UnixStream;
use tokio::signal::unix::SignalKind;
use tokio::time::Instant;

pub use channel::{Order, Superior};

use channel::{Channel, Word};
use signals::Signals;

mod channel;
mod signals;

const FIRST_REST: Duration = Duration::from_millis(100);
const LONGEST_REST: Duration = Duration::from_secs(10);

/// A proxy that lived this long after it was ready did not die of what killed it before.
const SOUND: Duration = Duration::from_secs(30);

/// What to exit with when a proxy that never became ready claims success.
const UNAVAILABLE: u8 = 69;

/// A program to run.
#[derive(Clone, Debug)]
pub struct Program {
    pub program: OsString,
    pub arguments: Vec<OsString>,
    /// Its whole environment; this process's own if none is given.
    pub environment: Option<Vec<(OsString, OsString)>>,
    /// How many of the descriptors 3, 4, … it inherits, if they are withheld from others.
    pub descriptors: u16,
}

/// Whom to supervise, and with how much patience.
#[derive(Clone, Debug)]
pub struct Plan {
    pub app: Program,
    /// Started first; its standard input is the channel of [`Superior::from_stdin`].
    pub proxy: Option<Program>,
    /// From the request to stop until the application is killed.
    pub stop_timeout: Duration,
    /// From the application's exit until the proxy is killed.
    pub drain_timeout: Duration,
}

/// Why there is nothing to supervise.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    #[error("cannot receive signals: {0}")]
    Signals(io::Error),
    #[error("cannot start the proxy `{}`: {error}", program.display())]
    Proxy { program: OsString, error: io::Error },
}

/// Runs both until both are over, and returns the code to exit with: the application's own, 128 and
/// the signal that ended it, or the proxy's if the application was never started.
pub async fn run(plan: Plan) -> Result<u8, SuperviseError> {
    let children =
        tokio::signal::unix::signal(SignalKind::child()).map_err(SuperviseError::Signals)?;
    let signals = Signals::new().map_err(SuperviseError::Signals)?;
    if let Err(error) = sys::become_subreaper() {
        tracing::warn!(%error, "orphans of the application will not be reaped");
    }
    let backoff = Backoff::new(FIRST_REST, LONGEST_REST);
    let (app, proxy) = (App::Waiting, Proxy::Over);
    let mut supervisor = Supervisor {
        plan,
        signals,
        children,
        app,
        proxy,
        stop: None,
        backoff,
    };
    supervisor.begin()?;
    Ok(supervisor.attend().await)
}

struct Supervisor {
    plan: Plan,
    signals: Signals,
    children: tokio::signal::unix::Signal,
    app: App,
    proxy: Proxy,
    /// When the application was asked to stop: when it is killed.
    stop: Option<Instant>,
    backoff: Backoff,
}

enum App {
    /// For the proxy.
    Waiting,
    Running(Pid),
    Over(u8),
}

enum Proxy {
    Running(Sibling),
    Resting {
        until: Instant,
    },
    /// Or never there.
    Over,
}

struct Sibling {
    pid: Pid,
    channel: Channel,
    ready: Option<Instant>,
    kill: Option<Instant>,
}

enum Event {
    Signal(Signal),
    Children,
    Ready,
    AppIsLate,
    ProxyIsLate,
    ProxyIsRested,
}

impl Supervisor {
    fn begin(&mut self) -> Result<(), SuperviseError> {
        match self.plan.proxy.clone() {
            Some(proxy) => self
                .start_proxy(&proxy)
                .map_err(|error| SuperviseError::Proxy {
                    program: proxy.program,
                    error,
                }),
            None => {
                self.start_app();
                Ok(())
            }
        }
    }

    async fn attend(&mut self) -> u8 {
        loop {
            if let (App::Over(code), Proxy::Over | Proxy::Resting { .. }) = (&self.app, &self.proxy)
            {
                return *code;
            }
            match self.event().await {
                Event::Signal(signal) => self.forward(signal),
                Event::Children => self.reap(),
                Event::Ready => self.proxy_is_ready(),
                Event::AppIsLate => self.kill_app(),
                Event::ProxyIsLate => self.kill_proxy(),
                Event::ProxyIsRested => self.restart_proxy(),
            }
        }
    }

    async fn event(&mut self) -> Event {
        let app_is_late = match self.app {
            App::Running(_) => self.stop,
            App::Waiting | App::Over(_) => None,
        };
        let (channel, proxy_is_late, rested) = match &mut self.proxy {
            Proxy::Running(sibling) => (Some(&mut sibling.channel), sibling.kill, None),
            Proxy::Resting { until } => (None, None, Some(*until)),
            Proxy::Over => (None, None, None),
        };
        tokio::select! {
            signal = self.signals.next() => Event::Signal(signal),
            _ = self.children.recv() => Event::Children,
            () = ready(channel) => Event::Ready,
            () = at(app_is_late) => Event::AppIsLate,
            () = at(proxy_is_late) => Event::ProxyIsLate,
            () = at(rested) => Event::ProxyIsRested,
        }
    }

    fn forward(&mut self, signal: Signal) {
        let stops = matches!(signal, Signal::TERM | Signal::INT);
        match self.app {
            App::Running(pid) => {
                send(pid, signal);
                if stops && self.stop.is_none() {
                    self.stop = Some(Instant::now() + self.plan.stop_timeout);
                    self.order(Order::DrainInbound);
                }
            }
            App::Waiting if stops || matches!(signal, Signal::HUP | Signal::QUIT) => {
                self.app_is_over(code_of_signal(signal.as_raw()));
            }
            App::Waiting | App::Over(_) => {}
        }
    }

    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            match (&self.app, &self.proxy) {
                (App::Running(app), _) if *app == pid => self.app_is_over(code(status)),
                (_, Proxy::Running(proxy)) if proxy.pid == pid => self.proxy_is_over(code(status)),
                _ => tracing::debug!(pid = pid.as_raw_pid(), "reaped an orphan"),
            }
        }
    }

    fn start_app(&mut self) {
        let Program { program, .. } = &self.plan.app;
        match start(&self.plan.app, Stdio::inherit()) {
            Ok(pid) => {
                hand_over_terminal(pid);
                self.app = App::Running(pid);
            }
            Err(error) => {
                tracing::error!(program = %program.display(), %error, "cannot start the application");
                // What a shell says of such a command.
                let missing = error.kind() == io::ErrorKind::NotFound;
                self.app_is_over(if missing { 127 } else { 126 });
            }
        }
    }

    fn app_is_over(&mut self, code: u8) {
        self.app = App::Over(code);
        if let Proxy::Running(proxy) = &mut self.proxy {
            proxy.kill = Some(Instant::now() + self.plan.drain_timeout);
            send(proxy.pid, Signal::TERM);
        }
    }

    fn kill_app(&mut self) {
        self.stop = None;
        if let App::Running(pid) = self.app {
            tracing::warn!("the application did not stop in time, killing it");
            send(pid, Signal::KILL);
            // And what it started, as far as it stayed together.
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
    }

    fn start_proxy(&mut self, program: &Program) -> io::Result<()> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let channel = Channel::new(UnixStream::from_std(ours)?);
        let pid = start(program, Stdio::from(OwnedFd::from(theirs)))?;
        self.proxy = Proxy::Running(Sibling {
            pid,
            channel,
            ready: None,
            kill: None,
        });
        if self.stop.is_some() {
            self.order(Order::DrainInbound);
        }
        Ok(())
    }

    fn proxy_is_ready(&mut self) {
        if let Proxy::Running(proxy) = &mut self.proxy {
            proxy.ready.get_or_insert_with(Instant::now);
        }
        if matches!(self.app, App::Waiting) {
            self.start_app();
        }
    }

    fn proxy_is_over(&mut self, code: u8) {
        let Proxy::Running(proxy) = std::mem::replace(&mut self.proxy, Proxy::Over) else {
            return;
        };
        match self.app {
            App::Over(_) => {}
            App::Waiting => self.app = App::Over(if code == 0 { UNAVAILABLE } else { code }),
            App::Running(_) => {
                if proxy.ready.is_some_and(|since| since.elapsed() >= SOUND) {
                    self.backoff.reset();
                }
                let rest = self.backoff.next();
                tracing::error!(code, ?rest, "the proxy died, starting it again");
                self.proxy = Proxy::Resting {
                    until: Instant::now() + rest,
                };
            }
        }
    }

    fn restart_proxy(&mut self) {
        let Some(program) = self.plan.proxy.clone() else {
            return;
        };
        if let Err(error) = self.start_proxy(&program) {
            tracing::error!(%error, "cannot start the proxy again, trying later");
            self.proxy = Proxy::Resting {
                until: Instant::now() + self.backoff.next(),
            };
        }
    }

    fn kill_proxy(&mut self) {
        if let Proxy::Running(proxy) = &mut self.proxy {
            tracing::warn!("the proxy did not drain in time, killing it");
            proxy.kill = None;
            send(proxy.pid, Signal::KILL);
        }
    }

    fn order(&mut self, order: Order) {
        if let Proxy::Running(proxy) = &mut self.proxy
            && let Err(error) = proxy.channel.say(Word::from(order))
        {
            tracing::warn!(%error, "cannot tell the proxy to drain");
        }
    }
}

/// Starts `program` in a process group of its own, with every signal at its default: a key pressed
/// at a terminal reaches it through us only, and it inherits nothing we ignore or block.
fn start(program: &Program, input: Stdio) -> io::Result<Pid> {
    let mut command = Command::new(&program.program);
    command
        .args(&program.arguments)
        .stdin(input)
        .process_group(0);
    if let Some(environment) = &program.environment {
        command
            .env_clear()
            .envs(environment.iter().map(|(name, value)| (name, value)));
    }
    sys::default_signals(&mut command);
    sys::pass_descriptors(&mut command, program.descriptors);
    // The handle is dropped: whoever waits for any child waits for this one too.
    let child = command.spawn()?;
    Ok(Pid::from_child(&child))
}

/// Makes the application the terminal's foreground, if there is a terminal: in a group of its own it
/// would be stopped at its first read from it. Nobody takes it back: the shell does when we end.
fn hand_over_terminal(app: Pid) {
    let input = io::stdin();
    if !rustix::termios::isatty(&input) {
        return;
    }
    match rustix::termios::tcsetpgrp(&input, app) {
        // It may have read already, and been stopped.
        Ok(()) => send(app, Signal::CONT),
        Err(error) => tracing::debug!(%error, "the terminal stays with somebody else"),
    }
}

fn send(pid: Pid, signal: Signal) {
    match rustix::process::kill_process(pid, signal) {
        // It is over and not yet reaped, or was reaped a moment ago.
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => tracing::warn!(signal = signal.as_raw(), %error, "cannot forward a signal"),
    }
}

/// A shell's view of how a process ended.
fn code(status: WaitStatus) -> u8 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, Some(signal)) => code_of_signal(signal),
        (None, None) => u8::MAX,
    }
}

fn code_of_signal(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

async fn ready(channel: Option<&mut Channel>) {
    if let Some(channel) = channel {
        while let Some(word) = channel.next().await {
            if word == Word::Ready {
                return;
            }
        }
    }
    // It says nothing more; its end is heard of as a child's.
    std::future::pending().await
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
