//! The proxy, and whoever is on the way to be it or was it: all that have a channel.

use std::io;
use std::os::fd::OwnedFd;
use std::process::Stdio;

use fender_runtime::sys::Signal;
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::channel::{Channel, Order, Word};
use super::process::{Program, send, start};
use super::{App, Proxy, SOUND, Sibling, Supervisor, UNAVAILABLE};

impl Supervisor {
    /// The proxy, the one that may take its place, and those that had it.
    pub(super) fn siblings(&mut self) -> impl Iterator<Item = &mut Sibling> {
        let proxy = match &mut self.proxy {
            Proxy::Running(sibling) => Some(sibling),
            Proxy::Resting { .. } | Proxy::Over => None,
        };
        let others = self.successor.iter_mut().chain(&mut self.retired);
        proxy.into_iter().chain(others)
    }

    /// At once, or when the proxy is ready: before, it would die of the signal.
    pub(super) fn reload(&mut self) {
        if let Proxy::Running(proxy) = &mut self.proxy {
            proxy.stale = proxy.ready.is_none();
            if !proxy.stale {
                self.plan.manager.reloading();
                send(proxy.pid, Signal::HUP);
            }
        }
    }

    pub(super) fn proxy_is_ready(&mut self) {
        let over = matches!(self.app, App::Over(_));
        let mut stale = false;
        if let Proxy::Running(proxy) = &mut self.proxy {
            proxy.ready.get_or_insert_with(Instant::now);
            proxy.kill = proxy.kill.filter(|_| over);
            stale = std::mem::take(&mut proxy.stale) && !over;
        }
        match self.app {
            App::Waiting => self.start_app(),
            App::Resting { .. } => self.order(Order::AppRests),
            App::Running(_) | App::Absent | App::Over(_) => {}
        }
        if stale {
            self.reload();
        }
    }

    pub(super) fn proxy_is_over(&mut self, code: u8) {
        if let Some(successor) = self.successor.take() {
            // It may have handed over and had nothing left to end: only the word of it is still on its way.
            match code {
                0 => tracing::info!(
                    pid = successor.pid.as_raw_pid(),
                    "upgrade: the successor is the proxy now"
                ),
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
            App::Running(_) | App::Resting { .. } | App::Absent => {
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

    pub(super) fn restart_proxy(&mut self) {
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

    pub(super) fn kill_late(&mut self) {
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
    pub(super) fn order(&mut self, order: Order) {
        for sibling in self.siblings() {
            if let Err(error) = sibling.channel.say(Word::from(order)) {
                tracing::warn!(%error, "cannot tell the proxy to drain");
            }
        }
    }

    pub(super) fn tell_proxy(&mut self, word: Word) {
        if let Proxy::Running(proxy) = &mut self.proxy
            && let Err(error) = proxy.channel.say(word)
        {
            tracing::warn!(%error, "cannot tell the proxy what became of what it asked for");
        }
    }
}

pub(super) fn start_sibling(program: &Program) -> io::Result<Sibling> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let channel = Channel::new(UnixStream::from_std(ours)?);
    let pid = start(
        program,
        None,
        Stdio::from(OwnedFd::from(theirs)),
        None,
        None,
    )?;
    Ok(Sibling {
        pid,
        channel,
        ready: None,
        stale: false,
        kill: None,
    })
}
