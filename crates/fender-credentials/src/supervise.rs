//! The parent of the application and of the proxy beside it: small, not confined, and never wiser
//! than they are.
//!
//! The two are siblings. The application starts when the proxy says that it is ready, gets every
//! signal this process gets but, where there is a proxy, SIGUSR2, and ends it with its own exit code. The proxy is told to
//! stop inbound when the application is told to stop, but carries outbound until the application has
//! exited; only then is it asked to end. A proxy that dies is started again without the application
//! noticing more than refused connections.
//!
//! D2: at SIGUSR2, or when the proxy passes on that somebody asks for it, a successor is started
//! beside the proxy from the program that lies at its path now. The two settle between themselves
//! what is handed over; here only counts that the successor says it is ready. Until then the proxy is
//! the proxy, whatever becomes of the successor; from then on the successor is, and the one before
//! has the time of a drain to end by itself. The application notices nothing.
//!
//! An application that ends by itself is started again if [`RestartPolicy`] says so, after a rest that grows. The proxy is told
//! when there is none to serve. Whoever asks to stop meanwhile ends everything.
//!
//! The proxy may ask to have the application told, by a signal, that something has changed, or to have it stopped and started
//! again; that is answered when it is done.
//!
//! There may be no application: then the proxy is kept running, and upgraded, all the same. Or no proxy: then whoever supplies the
//! application with its environment is in this process ([`Supply`]), and is heard as a proxy would be.
//!
//! As process 1, or as the subreaper it makes itself, it reaps every orphan. Because it waits for
//! any child, nothing else in its process may start one.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use fender_runtime::backoff::Backoff;
use fender_runtime::drain::Drain;
use fender_runtime::manager::Manager;
use fender_runtime::sys::{self, Signal};
use rustix::process::{Pid, WaitOptions};
use tokio::signal::unix::SignalKind;
use tokio::sync::Semaphore;
use tokio::time::Instant;

pub use channel::{Order, Superior};
pub use here::{Desk, Requests, Supply};
pub use hidden::Hider;
pub use process::Program;
pub use revival::{InvalidRestartPolicy, RestartOn, RestartPolicy};
pub use signals::Signals;

use crate::environment::AppEnvironment;
use crate::mask::{Held, Masks};
use channel::{Channel, Word};
use here::{Asker, Request};
use hidden::Proxies;
use output::Output;
use process::{code, code_of_signal, send};
use proxy::start_sibling;
use revival::Revival;

mod app;
mod channel;
mod here;
pub(crate) mod hidden;
mod output;
mod process;
mod proxy;
mod revival;
mod signals;
mod succession;

const FIRST_REST: Duration = Duration::from_millis(100);
const LONGEST_REST: Duration = Duration::from_secs(10);

/// A proxy that lived this long after it was ready did not die of what killed it before.
const SOUND: Duration = Duration::from_secs(30);

/// How many proxies may tell at once what they deliver: the one there is, a successor, and some that end.
const LISTENING: usize = 8;

/// What to exit with when a proxy that never became ready claims success.
const UNAVAILABLE: u8 = 69;

/// What an application ends with that could not be started for want of a credential.
const MISSING: u8 = 66;

/// Whom to supervise, and with how much patience.
#[derive(Debug)]
pub struct Plan {
    /// Started when the proxy is ready, if there is one.
    pub app: Option<Program>,
    /// Where the application's environment comes from, if it can change; what [`Program::environment`] says counts for nothing then.
    pub supply: Option<Supply>,
    /// What is hidden in what the application writes, if anything is to be: then it writes into pipes. A proxy says of what it delivers by
    /// [`Hider`].
    pub masks: Option<Masks>,
    /// Started first; its standard input is the channel of [`Superior::from_stdin`].
    pub proxy: Option<Program>,
    /// What a successor is told beside what the proxy is told.
    pub succession: Vec<OsString>,
    /// What SIGHUP means where there is no application to pass it on to; one that is ignored is ignored for the application, too.
    pub hang_up: HangUp,
    /// Whether the application is started again when it ends by itself.
    pub restart: RestartPolicy,
    /// From the request to stop until the application is killed.
    pub stop_timeout: Duration,
    /// From the end of its work until a proxy is killed.
    pub drain_timeout: Duration,
    /// From its start until a successor that is not ready is killed.
    pub upgrade_timeout: Duration,
    /// Who started us and wants to know how we are.
    pub manager: Manager,
}

/// What SIGHUP means to a program that is a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HangUp {
    /// Read again what can be read again.
    Reloads,
    /// The terminal is gone that it was started from.
    Stops,
    /// Whoever started it wants it to outlive the terminal, as `nohup` does.
    Ignored,
}

impl HangUp {
    /// What nobody hears of, and an application inherits as it is.
    fn ignored(self) -> Option<Signal> {
        (self == Self::Ignored).then_some(Signal::HUP)
    }
}

/// Why there is nothing to supervise.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    #[error("cannot receive signals: {0}")]
    Signals(io::Error),
    #[error("cannot open pipes for what the application writes: {0}")]
    Output(io::Error),
    #[error("cannot start the proxy `{}`: {error}", program.display())]
    Proxy { program: OsString, error: io::Error },
}

/// Runs both until both are over, and returns the code to exit with: the application's own, 128 and
/// the signal that ended it, or the proxy's if the application was never started.
pub async fn run(plan: Plan) -> Result<u8, SuperviseError> {
    let signals = listen(plan.hang_up)?;
    run_hearing(plan, signals).await
}

/// Every signal to this process from now on, for whoever is going to be supervised.
pub fn listen(hang_up: HangUp) -> Result<Signals, SuperviseError> {
    Signals::new(hang_up.ignored()).map_err(SuperviseError::Signals)
}

/// The same as [`run`], with the signals that came since [`listen`].
pub async fn run_hearing(plan: Plan, signals: Signals) -> Result<u8, SuperviseError> {
    let children =
        tokio::signal::unix::signal(SignalKind::child()).map_err(SuperviseError::Signals)?;
    if let Err(error) = sys::become_subreaper() {
        tracing::warn!(%error, "orphans of the application will not be reaped");
    }
    let output = plan.masks.as_ref().map(Output::open).transpose();
    let output = output.map_err(SuperviseError::Output)?;
    let backoff = Backoff::new(FIRST_REST, LONGEST_REST);
    let mut supervisor = Supervisor {
        revival: Revival::new(&plan.restart),
        app_started: Instant::now(),
        app_environment: None,
        app_may_have: Vec::new(),
        proxies: Proxies::default(),
        output,
        tasks: Drain::new(),
        listening: Arc::new(Semaphore::new(LISTENING)),
        plan,
        signals,
        children,
        app: App::Waiting,
        proxy: Proxy::Over,
        successor: None,
        retired: Vec::new(),
        stop: None,
        restart: None,
        backoff,
    };
    supervisor.begin()?;
    let code = supervisor.attend().await;
    if let Some(output) = supervisor.output {
        output.close().await;
    }
    Ok(code)
}

struct Supervisor {
    plan: Plan,
    /// How often the application was started again.
    revival: Revival,
    app_started: Instant,
    /// What it was started with, if that can change.
    app_environment: Option<Arc<AppEnvironment>>,
    /// What was delivered when it was started, and is hidden for as long as it runs.
    app_may_have: Vec<Held>,
    /// What those that there are have hidden.
    proxies: Proxies,
    /// Where it writes; none: where this process does.
    output: Option<Output>,
    /// Each ends with who it listens to, or with this process.
    tasks: Drain,
    listening: Arc<Semaphore>,
    signals: Signals,
    children: tokio::signal::unix::Signal,
    app: App,
    proxy: Proxy,
    /// Not ready yet.
    successor: Option<Sibling>,
    /// Those that had one, and end what they have.
    retired: Vec<Sibling>,
    /// The application was asked to stop, and is not started again.
    stop: Option<Stop>,
    /// It was asked to end so that it can be started again.
    restart: Option<Restart>,
    backoff: Backoff,
}

enum App {
    /// For the proxy.
    Waiting,
    Running(Pid),
    /// It ended by itself and is started again then.
    Resting {
        until: Instant,
    },
    /// There is none, and the proxy serves.
    Absent,
    Over(u8),
}

/// Whoever asked for it gets the end, also if the application has to be killed for it.
struct Stop {
    /// If it does not end by itself.
    kill: Option<Instant>,
}

/// The application is started again once it has ended.
struct Restart {
    /// Who asked for it.
    asked: Vec<Asker>,
    /// If it does not end by itself.
    kill: Option<Instant>,
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
    /// A change that it may have read too early for, because it was not ready yet.
    stale: bool,
    kill: Option<Instant>,
}

enum Event {
    Signal(Signal),
    Children,
    ProxySays(Word),
    SuccessorSays(Word),
    AskedHere(Request),
    AppIsLate,
    SiblingIsLate,
    ProxyIsRested,
    AppIsRested,
}

impl Supervisor {
    fn begin(&mut self) -> Result<(), SuperviseError> {
        match self.plan.proxy.clone() {
            Some(proxy) => match start_sibling(&proxy) {
                Ok(sibling) => {
                    self.proxy = Proxy::Running(sibling);
                    Ok(())
                }
                Err(error) => Err(SuperviseError::Proxy {
                    program: proxy.program,
                    error,
                }),
            },
            None => {
                self.start_app();
                Ok(())
            }
        }
    }

    async fn attend(&mut self) -> u8 {
        loop {
            let others = self.successor.is_some() || !self.retired.is_empty();
            if let (App::Over(code), Proxy::Over | Proxy::Resting { .. }, false) =
                (&self.app, &self.proxy, others)
            {
                return *code;
            }
            match self.event().await {
                Event::Signal(Signal::USR2) if self.plan.proxy.is_some() => self.upgrade(),
                Event::Signal(signal) => self.forward(signal),
                Event::Children => self.reap(),
                Event::ProxySays(Word::Ready) => self.proxy_is_ready(),
                Event::ProxySays(Word::Upgrade) => self.upgrade(),
                Event::ProxySays(Word::Reloaded) => self.plan.manager.ready(),
                Event::ProxySays(Word::SignalApp(signal, number)) => {
                    self.signal_app(signal, Asker::Proxy(number));
                }
                Event::ProxySays(Word::RestartApp(number)) => {
                    self.restart_app(Asker::Proxy(number));
                }
                Event::ProxySays(Word::Masks) => {
                    let told = match &mut self.proxy {
                        Proxy::Running(proxy) => proxy.channel.brought(),
                        Proxy::Resting { .. } | Proxy::Over => None,
                    };
                    self.learn_from(told);
                }
                Event::SuccessorSays(Word::Masks) => {
                    let successor = self.successor.as_mut();
                    let told = successor.and_then(|successor| successor.channel.brought());
                    self.learn_from(told);
                }
                Event::AskedHere(request) => self.asked_here(request),
                Event::SuccessorSays(Word::Ready) => self.successor_is_ready(),
                // Nothing that a proxy has to say, or that one has to say who is none yet.
                Event::ProxySays(_) | Event::SuccessorSays(_) => {}
                Event::AppIsLate => self.kill_app(),
                Event::SiblingIsLate => self.kill_late(),
                Event::ProxyIsRested => self.restart_proxy(),
                Event::AppIsRested => self.start_app_again(),
            }
        }
    }

    /// Hides what is told over this socket. Of a proxy that brings one after the other only so many are heard.
    fn learn_from(&self, told: Option<OwnedFd>) {
        let turn = Arc::clone(&self.listening).try_acquire_owned();
        if let (Some(told), Some(masks), Ok(turn)) = (told, &self.plan.masks, turn) {
            let hearing = hidden::hear(told, masks.clone(), self.proxies.clone());
            self.tasks.spawn(async move {
                hearing.await;
                drop(turn);
            });
        }
    }

    async fn event(&mut self) -> Event {
        let app_is_late = match self.app {
            App::Running(_) => {
                let kill = self.restart.as_ref().and_then(|restart| restart.kill);
                let stop = self.stop.as_ref().and_then(|stop| stop.kill);
                stop.into_iter().chain(kill).min()
            }
            App::Waiting | App::Resting { .. } | App::Absent | App::Over(_) => None,
        };
        let app_is_rested = match self.app {
            App::Resting { until } => Some(until),
            App::Waiting | App::Running(_) | App::Absent | App::Over(_) => None,
        };
        let late = self.siblings().filter_map(|sibling| sibling.kill).min();
        let (channel, rested) = match &mut self.proxy {
            Proxy::Running(sibling) => (Some(&mut sibling.channel), None),
            Proxy::Resting { until } => (None, Some(*until)),
            Proxy::Over => (None, None),
        };
        let successor = self.successor.as_mut();
        let supply = self.plan.supply.as_mut();
        tokio::select! {
            signal = self.signals.next() => Event::Signal(signal),
            _ = self.children.recv() => Event::Children,
            word = said(channel) => Event::ProxySays(word),
            word = said(successor.map(|it| &mut it.channel)) => Event::SuccessorSays(word),
            request = here::asked(supply) => Event::AskedHere(request),
            () = at(app_is_late) => Event::AppIsLate,
            () = at(late) => Event::SiblingIsLate,
            () = at(rested) => Event::ProxyIsRested,
            () = at(app_is_rested) => Event::AppIsRested,
        }
    }

    fn forward(&mut self, signal: Signal) {
        let stops = matches!(signal, Signal::TERM | Signal::INT);
        match self.app {
            App::Running(pid) => {
                send(pid, signal);
                if stops && self.stop.is_none() {
                    // Whoever ends it does not want it back.
                    self.give_up_restart();
                    self.stop = Some(Stop {
                        kill: Some(Instant::now() + self.plan.stop_timeout),
                    });
                    self.plan.manager.stopping();
                    self.order(Order::DrainInbound);
                }
            }
            App::Waiting | App::Absent if signal == Signal::HUP && self.plan.app.is_none() => {
                self.hang_up();
            }
            App::Waiting | App::Resting { .. }
                if stops || matches!(signal, Signal::HUP | Signal::QUIT) =>
            {
                let code = self
                    .plan
                    .app
                    .as_ref()
                    .map(|_| code_of_signal(signal.as_raw()));
                self.app_is_over(code.unwrap_or_default());
            }
            App::Absent if stops || signal == Signal::QUIT => self.app_is_over(0),
            App::Waiting | App::Resting { .. } | App::Absent | App::Over(_) => {}
        }
    }

    fn hang_up(&mut self) {
        match self.plan.hang_up {
            HangUp::Reloads => self.reload(),
            HangUp::Stops => self.app_is_over(0),
            HangUp::Ignored => {}
        }
    }

    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let code = code(status);
            let is = |sibling: &Sibling| sibling.pid == pid;
            match (&self.app, &self.proxy) {
                (App::Running(app), _) if *app == pid => self.app_ended(code),
                (_, Proxy::Running(proxy)) if is(proxy) => self.proxy_is_over(code),
                _ if self.successor.as_ref().is_some_and(is) => self.successor_is_over(code),
                _ if self.retired.iter().any(is) => {
                    self.retired.retain(|sibling| !is(sibling));
                    tracing::debug!(pid = pid.as_raw_pid(), code, "the proxy before has ended");
                }
                _ => tracing::debug!(pid = pid.as_raw_pid(), "reaped an orphan"),
            }
        }
    }
}

async fn said(channel: Option<&mut Channel>) -> Word {
    if let Some(channel) = channel
        && let Some(word) = channel.next().await
    {
        return word;
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
