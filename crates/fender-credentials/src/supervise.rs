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
//! The proxy may ask to have the application told, by a signal, that something has changed, or to have it stopped and started
//! again; that is answered when it is done.
//!
//! There may be no application: then the proxy is kept running, and upgraded, all the same.
//!
//! As process 1, or as the subreaper it makes itself, it reaps every orphan. Because it waits for
//! any child, nothing else in its process may start one.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;

use fender_config::snapshot::NotifySignal;
use fender_runtime::backoff::Backoff;
use fender_runtime::manager::Manager;
use fender_runtime::sys::{self, Signal};
use rustix::process::{Pid, WaitOptions};
use tokio::net::UnixStream;
use tokio::signal::unix::SignalKind;
use tokio::time::Instant;

pub use channel::{Order, Superior};
pub use process::Program;

use channel::{Channel, Word};
use process::{code, code_of_signal, hand_over_terminal, send, start};
use signals::Signals;

mod channel;
mod process;
mod signals;

const FIRST_REST: Duration = Duration::from_millis(100);
const LONGEST_REST: Duration = Duration::from_secs(10);

/// A proxy that lived this long after it was ready did not die of what killed it before.
const SOUND: Duration = Duration::from_secs(30);

/// What to exit with when a proxy that never became ready claims success.
const UNAVAILABLE: u8 = 69;

/// Whom to supervise, and with how much patience.
#[derive(Debug)]
pub struct Plan {
    /// Started when the proxy is ready, if there is one.
    pub app: Option<Program>,
    /// Started first; its standard input is the channel of [`Superior::from_stdin`].
    pub proxy: Option<Program>,
    /// What a successor is told beside what the proxy is told.
    pub succession: Vec<OsString>,
    /// What SIGHUP means where there is no application to pass it on to.
    pub hang_up: HangUp,
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
    let mut supervisor = Supervisor {
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
    Ok(supervisor.attend().await)
}

struct Supervisor {
    plan: Plan,
    signals: Signals,
    children: tokio::signal::unix::Signal,
    app: App,
    proxy: Proxy,
    /// Not ready yet.
    successor: Option<Sibling>,
    /// Those that had one, and end what they have.
    retired: Vec<Sibling>,
    /// When the application was asked to stop: when it is killed.
    stop: Option<Instant>,
    /// It was asked to end so that it can be started again.
    restart: Option<Restart>,
    backoff: Backoff,
}

enum App {
    /// For the proxy.
    Waiting,
    Running(Pid),
    /// There is none, and the proxy serves.
    Absent,
    Over(u8),
}

/// The application is started again once it has ended.
struct Restart {
    /// Who asked for it.
    asked: Vec<u64>,
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
    AppIsLate,
    SiblingIsLate,
    ProxyIsRested,
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
                    self.signal_app(signal, number)
                }
                Event::ProxySays(Word::RestartApp(number)) => self.restart_app(number),
                Event::SuccessorSays(Word::Ready) => self.successor_is_ready(),
                // Nothing that a proxy has to say, or that one has to say who is none yet.
                Event::ProxySays(_) | Event::SuccessorSays(_) => {}
                Event::AppIsLate => self.kill_app(),
                Event::SiblingIsLate => self.kill_late(),
                Event::ProxyIsRested => self.restart_proxy(),
            }
        }
    }

    async fn event(&mut self) -> Event {
        let app_is_late = match self.app {
            App::Running(_) => {
                let kill = self.restart.as_ref().and_then(|restart| restart.kill);
                self.stop.into_iter().chain(kill).min()
            }
            App::Waiting | App::Absent | App::Over(_) => None,
        };
        let late = self.siblings().filter_map(|sibling| sibling.kill).min();
        let (channel, rested) = match &mut self.proxy {
            Proxy::Running(sibling) => (Some(&mut sibling.channel), None),
            Proxy::Resting { until } => (None, Some(*until)),
            Proxy::Over => (None, None),
        };
        let successor = self.successor.as_mut();
        tokio::select! {
            signal = self.signals.next() => Event::Signal(signal),
            _ = self.children.recv() => Event::Children,
            word = said(channel) => Event::ProxySays(word),
            word = said(successor.map(|it| &mut it.channel)) => Event::SuccessorSays(word),
            () = at(app_is_late) => Event::AppIsLate,
            () = at(late) => Event::SiblingIsLate,
            () = at(rested) => Event::ProxyIsRested,
        }
    }

    /// The proxy, the one that may take its place, and those that had it.
    fn siblings(&mut self) -> impl Iterator<Item = &mut Sibling> {
        let proxy = match &mut self.proxy {
            Proxy::Running(sibling) => Some(sibling),
            Proxy::Resting { .. } | Proxy::Over => None,
        };
        let others = self.successor.iter_mut().chain(&mut self.retired);
        proxy.into_iter().chain(others)
    }

    fn forward(&mut self, signal: Signal) {
        let stops = matches!(signal, Signal::TERM | Signal::INT);
        match self.app {
            App::Running(pid) => {
                send(pid, signal);
                if stops && self.stop.is_none() {
                    // Whoever ends it does not want it back.
                    self.give_up_restart();
                    self.stop = Some(Instant::now() + self.plan.stop_timeout);
                    self.plan.manager.stopping();
                    self.order(Order::DrainInbound);
                }
            }
            App::Waiting | App::Absent if signal == Signal::HUP && self.plan.app.is_none() => {
                self.hang_up();
            }
            App::Waiting if stops || matches!(signal, Signal::HUP | Signal::QUIT) => {
                let code = self
                    .plan
                    .app
                    .as_ref()
                    .map(|_| code_of_signal(signal.as_raw()));
                self.app_is_over(code.unwrap_or_default());
            }
            App::Absent if stops || signal == Signal::QUIT => self.app_is_over(0),
            App::Waiting | App::Absent | App::Over(_) => {}
        }
    }

    fn hang_up(&mut self) {
        match self.plan.hang_up {
            HangUp::Reloads => self.reload(),
            HangUp::Stops => self.app_is_over(0),
            HangUp::Ignored => {}
        }
    }

    /// At once, or when the proxy is ready: before, it would die of the signal.
    fn reload(&mut self) {
        if let Proxy::Running(proxy) = &mut self.proxy {
            proxy.stale = proxy.ready.is_none();
            if !proxy.stale {
                self.plan.manager.reloading();
                send(proxy.pid, Signal::HUP);
            }
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

    fn start_app(&mut self) {
        let Some(app) = &self.plan.app else {
            self.app = App::Absent;
            return self.plan.manager.ready();
        };
        match start(app, Stdio::inherit()) {
            Ok(pid) => {
                hand_over_terminal(pid);
                self.app = App::Running(pid);
                self.plan.manager.ready();
            }
            Err(error) => {
                tracing::error!(program = %app.program.display(), %error, "cannot start the application");
                // What a shell says of such a command.
                let missing = error.kind() == io::ErrorKind::NotFound;
                self.app_is_over(if missing { 127 } else { 126 });
            }
        }
    }

    /// Somebody else has changed what it reads.
    fn signal_app(&mut self, signal: NotifySignal, number: u64) {
        let told = match self.app {
            App::Running(pid) => {
                send(
                    pid,
                    match signal {
                        NotifySignal::Hup => Signal::HUP,
                        NotifySignal::Usr1 => Signal::USR1,
                        NotifySignal::Usr2 => Signal::USR2,
                    },
                );
                true
            }
            // It will read what there is when it starts.
            App::Waiting => true,
            App::Absent | App::Over(_) => false,
        };
        self.answer_proxy(number, told);
    }

    fn restart_app(&mut self, number: u64) {
        match (&self.app, &mut self.restart) {
            // It has not read anything since it was asked to end.
            (App::Running(_), Some(restart)) => restart.asked.push(number),
            (App::Running(pid), None) if self.stop.is_none() => {
                tracing::info!("restarting the application: what it reads has changed");
                send(*pid, Signal::TERM);
                self.restart = Some(Restart {
                    asked: vec![number],
                    kill: Some(Instant::now() + self.plan.stop_timeout),
                });
            }
            (App::Waiting, _) => self.answer_proxy(number, true),
            (App::Running(_) | App::Absent | App::Over(_), _) => self.answer_proxy(number, false),
        }
    }

    fn app_ended(&mut self, code: u8) {
        let Some(restart) = self.restart.take() else {
            return self.app_is_over(code);
        };
        tracing::info!(code, "the application has ended, starting it again");
        self.start_app();
        let runs = matches!(self.app, App::Running(_));
        for number in restart.asked {
            self.answer_proxy(number, runs);
        }
    }

    fn give_up_restart(&mut self) {
        for number in self.restart.take().into_iter().flat_map(|it| it.asked) {
            self.answer_proxy(number, false);
        }
    }

    fn answer_proxy(&mut self, number: u64, told: bool) {
        self.tell_proxy(match told {
            true => Word::AppTold(number),
            false => Word::AppNotTold(number),
        });
    }

    fn app_is_over(&mut self, code: u8) {
        self.app = App::Over(code);
        self.plan.manager.stopping();
        let kill = Instant::now() + self.plan.drain_timeout;
        for sibling in self.siblings() {
            sibling.kill = Some(kill);
            send(sibling.pid, Signal::TERM);
        }
    }

    fn kill_app(&mut self) {
        self.stop = None;
        if let Some(restart) = &mut self.restart {
            restart.kill = None;
        }
        if let App::Running(pid) = self.app {
            tracing::warn!("the application did not stop in time, killing it");
            send(pid, Signal::KILL);
            // And what it started, as far as it stayed together.
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
    }

    fn proxy_is_ready(&mut self) {
        let over = matches!(self.app, App::Over(_));
        let mut stale = false;
        if let Proxy::Running(proxy) = &mut self.proxy {
            proxy.ready.get_or_insert_with(Instant::now);
            proxy.kill = proxy.kill.filter(|_| over);
            stale = std::mem::take(&mut proxy.stale) && !over;
        }
        if matches!(self.app, App::Waiting) {
            self.start_app();
        }
        if stale {
            self.reload();
        }
    }

    fn proxy_is_over(&mut self, code: u8) {
        if let Some(successor) = self.successor.take() {
            // It may have handed over and had nothing left to end: only the word of it is still on its way.
            match code {
                0 => tracing::debug!(code, "the proxy before has ended"),
                _ => tracing::warn!(code, "the proxy died while its successor was on its way"),
            }
            self.proxy = Proxy::Running(successor);
            return;
        }
        let Proxy::Running(proxy) = std::mem::replace(&mut self.proxy, Proxy::Over) else {
            return;
        };
        match self.app {
            App::Over(_) => {}
            App::Waiting => self.app = App::Over(if code == 0 { UNAVAILABLE } else { code }),
            App::Running(_) | App::Absent => {
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
        match start_sibling(&program) {
            Ok(sibling) => {
                self.proxy = Proxy::Running(sibling);
                if self.stop.is_some() {
                    self.order(Order::DrainInbound);
                }
            }
            Err(error) => {
                tracing::error!(%error, "cannot start the proxy again, trying later");
                self.proxy = Proxy::Resting {
                    until: Instant::now() + self.backoff.next(),
                };
            }
        }
    }

    /// D2.
    fn upgrade(&mut self) {
        match self.start_successor() {
            Ok(successor) => {
                tracing::info!(
                    pid = successor.pid.as_raw_pid(),
                    "upgrade: the successor of the proxy is started"
                );
                self.successor = Some(successor);
            }
            Err(why) => {
                tracing::warn!("no upgrade: {why}");
                self.tell_proxy(Word::UpgradeRefused);
            }
        }
    }

    fn start_successor(&mut self) -> Result<Sibling, String> {
        let ready = |sibling: &Sibling| sibling.ready.is_some();
        let serves = matches!(&self.proxy, Proxy::Running(proxy) if ready(proxy));
        let stays = matches!(self.app, App::Running(_) | App::Absent) && self.stop.is_none();
        let Some(mut program) = self.plan.proxy.clone().filter(|_| serves && stays) else {
            return Err("the proxy is not ready, or about to end".to_owned());
        };
        if self.successor.is_some() {
            return Err("one is under way".to_owned());
        }
        program
            .arguments
            .extend(self.plan.succession.iter().cloned());
        let mut successor = start_sibling(&program)
            .map_err(|error| format!("cannot start `{}`: {error}", program.program.display()))?;
        successor.kill = Some(Instant::now() + self.plan.upgrade_timeout);
        Ok(successor)
    }

    fn successor_is_ready(&mut self) {
        let Some(mut successor) = self.successor.take() else {
            return;
        };
        tracing::info!(
            pid = successor.pid.as_raw_pid(),
            "upgrade: the successor is the proxy now"
        );
        (successor.ready, successor.kill) = (Some(Instant::now()), None);
        let next = Proxy::Running(successor);
        if let Proxy::Running(mut before) = std::mem::replace(&mut self.proxy, next) {
            before.kill = Some(Instant::now() + self.plan.drain_timeout);
            self.retired.push(before);
        }
    }

    fn successor_is_over(&mut self, code: u8) {
        self.successor = None;
        if !matches!(self.app, App::Over(_)) {
            tracing::error!(
                code,
                "no upgrade: the successor ended before it was ready; the proxy goes on"
            );
            self.tell_proxy(Word::UpgradeFailed(code));
        }
    }

    fn kill_late(&mut self) {
        let now = Instant::now();
        for sibling in self
            .siblings()
            .filter(|it| it.kill.is_some_and(|kill| kill <= now))
        {
            let pid = sibling.pid.as_raw_pid();
            match sibling.ready {
                Some(_) => tracing::warn!(pid, "the proxy did not drain in time, killing it"),
                None => tracing::warn!(pid, "the proxy was not ready in time, killing it"),
            }
            sibling.kill = None;
            send(sibling.pid, Signal::KILL);
        }
    }

    /// Also to one that is about to be the proxy: it hears it then.
    fn order(&mut self, order: Order) {
        for sibling in self.siblings() {
            if let Err(error) = sibling.channel.say(Word::from(order)) {
                tracing::warn!(%error, "cannot tell the proxy to drain");
            }
        }
    }

    fn tell_proxy(&mut self, word: Word) {
        if let Proxy::Running(proxy) = &mut self.proxy
            && let Err(error) = proxy.channel.say(word)
        {
            tracing::warn!(%error, "cannot tell the proxy what became of what it asked for");
        }
    }
}

fn start_sibling(program: &Program) -> io::Result<Sibling> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let channel = Channel::new(UnixStream::from_std(ours)?);
    let pid = start(program, Stdio::from(OwnedFd::from(theirs)))?;
    Ok(Sibling {
        pid,
        channel,
        ready: None,
        stale: false,
        kill: None,
    })
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
