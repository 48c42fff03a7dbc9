//! The application: started when the proxy is ready, told, started again, and over.
//!
//! It is started again for two reasons that have nothing to do with each other: because somebody asked for it, as what it
//! reads has changed, at once and as often as that happens; and because it ended by itself, if [`super::RestartPolicy`] says so.

use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use fender_config::snapshot::NotifySignal;
use fender_runtime::sys::Signal;
use tokio::time::Instant;

use super::channel::{Order, Word};
use super::here::{Asker, Request, Supply};
use super::output::Output;
use super::process::{code_of_signal, hand_over_terminal, send, start};
use super::revival::After;
use super::{App, MISSING, Restart, Supervisor};
use crate::mask::Masks;
use crate::notify::AppNotice;

impl Supervisor {
    /// Says with what code it is over if it cannot be started: what a shell says of such a command.
    fn try_to_start_app(&mut self) -> Result<(), u8> {
        let Some(app) = &self.plan.app else {
            self.app = App::Absent;
            self.plan.manager.ready();
            return Ok(());
        };
        let environment = self.plan.supply.as_ref().map(Supply::environment);
        if matches!(environment, Some(None)) {
            tracing::error!(
                "the application is not started: a credential of its environment was withdrawn"
            );
            return Err(MISSING);
        }
        self.app_environment = environment.flatten();
        // What only the run before had is held no longer.
        self.app_may_have.clear();
        let masks = self.plan.masks.as_ref();
        self.app_may_have = masks.map(Masks::hold_all).unwrap_or_default();
        let environment = self.app_environment.as_ref();
        let environment = environment.map(|it| it.variables());
        let output = self.output.as_ref().map(Output::ends).transpose();
        let ignored = self.plan.hang_up.ignored();
        let started =
            output.and_then(|output| start(app, environment, Stdio::inherit(), output, ignored));
        match started {
            Ok(pid) => {
                hand_over_terminal(pid);
                self.app = App::Running(pid);
                self.app_started = Instant::now();
                self.plan.manager.ready();
                Ok(())
            }
            Err(error) => {
                tracing::error!(program = %app.program.display(), %error, "cannot start the application");
                let missing = error.kind() == io::ErrorKind::NotFound;
                Err(if missing { 127 } else { 126 })
            }
        }
    }

    /// One that could not be started even once is not tried again.
    pub(super) fn start_app(&mut self) {
        if let Err(code) = self.try_to_start_app() {
            self.app_is_over(code);
        }
    }

    /// It had ended by itself.
    pub(super) fn start_app_again(&mut self) {
        match self.try_to_start_app() {
            Ok(()) => self.order(Order::AppRuns),
            Err(code) => self.app_failed(code, Duration::ZERO),
        }
    }

    /// It ended by itself, after so long.
    fn app_failed(&mut self, code: u8, ran: Duration) {
        match self.revival.after(&self.plan.restart, code, ran) {
            After::End => self.app_is_over(code),
            After::GiveUp(attempts) => {
                tracing::error!(
                    code,
                    attempts,
                    "the application has ended once more: it is not started again"
                );
                self.app_is_over(code);
            }
            After::Rest(rest) => {
                tracing::warn!(code, ?rest, "the application has ended, starting it again");
                let until = Instant::now() + rest;
                self.app = App::Resting { until };
                self.order(Order::AppRests);
            }
        }
    }

    /// Somebody else has changed what it reads.
    pub(super) fn signal_app(&mut self, signal: NotifySignal, asker: Asker) {
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
            App::Waiting | App::Resting { .. } => true,
            App::Absent | App::Over(_) => false,
        };
        self.answer(asker, told);
    }

    /// Somebody in this process asks what a proxy could ask.
    pub(super) fn asked_here(&mut self, request: Request) {
        let Request { what, done } = request;
        // Whoever gave up asks again.
        if done.is_closed() {
            return;
        }
        match what {
            AppNotice::Signal(signal) => self.signal_app(signal, Asker::Here(done)),
            AppNotice::Restart => self.restart_app(Asker::Here(done)),
        }
    }

    pub(super) fn restart_app(&mut self, asker: Asker) {
        let environment = self.plan.supply.as_ref().map(Supply::environment);
        if matches!(environment, Some(None)) {
            // It runs with what it has until there is all that it needs.
            return self.answer(asker, false);
        }
        let has_newest = environment.is_some_and(|newest| match (&newest, &self.app_environment) {
            (Some(newest), Some(started)) => Arc::ptr_eq(newest, started),
            (None, _) | (_, None) => false,
        });
        match (&self.app, &mut self.restart) {
            // It has not read anything since it was asked to end.
            (App::Running(_), Some(restart)) => restart.asked.push(asker),
            // It was started after the change, for another reason.
            (App::Running(_), None) if has_newest => self.answer(asker, true),
            (App::Running(pid), None) if self.stop.is_none() => {
                tracing::info!("restarting the application: what it reads has changed");
                send(*pid, Signal::TERM);
                self.restart = Some(Restart {
                    asked: vec![asker],
                    kill: Some(Instant::now() + self.plan.stop_timeout),
                });
            }
            (App::Waiting | App::Resting { .. }, _) => self.answer(asker, true),
            (App::Running(_) | App::Absent | App::Over(_), _) => self.answer(asker, false),
        }
    }

    pub(super) fn app_ended(&mut self, code: u8) {
        let Some(restart) = self.restart.take() else {
            return match self.stop {
                Some(_) => self.app_is_over(code),
                None => self.app_failed(code, self.app_started.elapsed()),
            };
        };
        if code == code_of_signal(Signal::TERM.as_raw()) {
            tracing::info!(
                "the application has ended by the SIGTERM that it was asked by, starting it again"
            );
        } else {
            tracing::info!(
                code,
                "the application has ended, as it was asked to, starting it again"
            );
        }
        match self.try_to_start_app() {
            Ok(()) => {}
            // Withdrawn just now: it may come back.
            Err(MISSING) => self.app_failed(MISSING, Duration::ZERO),
            Err(code) => self.app_is_over(code),
        }
        let runs = matches!(self.app, App::Running(_));
        for asker in restart.asked {
            self.answer(asker, runs);
        }
    }

    pub(super) fn give_up_restart(&mut self) {
        for asker in self.restart.take().into_iter().flat_map(|it| it.asked) {
            self.answer(asker, false);
        }
    }

    fn answer(&mut self, asker: Asker, told: bool) {
        match (asker, told) {
            (Asker::Proxy(number), true) => self.tell_proxy(Word::AppTold(number)),
            (Asker::Proxy(number), false) => self.tell_proxy(Word::AppNotTold(number)),
            // Whoever asked may be gone.
            (Asker::Here(done), told) => drop(done.send(told)),
        }
    }

    pub(super) fn app_is_over(&mut self, code: u8) {
        self.app = App::Over(code);
        self.plan.manager.stopping();
        let kill = Instant::now() + self.plan.drain_timeout;
        for sibling in self.siblings() {
            sibling.kill = Some(kill);
            send(sibling.pid, Signal::TERM);
        }
    }

    pub(super) fn kill_app(&mut self) {
        if let Some(stop) = &mut self.stop {
            stop.kill = None;
        }
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
}
