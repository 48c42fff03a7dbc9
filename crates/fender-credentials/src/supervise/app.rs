//! The application: started when the proxy is ready, told, started again, and over.
//!
//! It is started again for two reasons that have nothing to do with each other: because somebody asked for it, as what it
//! reads has changed, at once and as often as that happens; and because it ended by itself, if [`super::RestartPolicy`] says so.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use fender_config::snapshot::NotifySignal;
use fender_runtime::sys::Signal;
use tokio::time::Instant;

use super::channel::{Order, Word};
use super::process::{hand_over_terminal, send, start};
use super::revival::After;
use super::{App, Restart, Supervisor};

impl Supervisor {
    /// Says with what code it is over if it cannot be started: what a shell says of such a command.
    fn try_to_start_app(&mut self) -> Result<(), u8> {
        let Some(app) = &self.plan.app else {
            self.app = App::Absent;
            self.plan.manager.ready();
            return Ok(());
        };
        match start(app, Stdio::inherit()) {
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
    pub(super) fn signal_app(&mut self, signal: NotifySignal, number: u64) {
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
        self.answer_proxy(number, told);
    }

    pub(super) fn restart_app(&mut self, number: u64) {
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
            (App::Waiting | App::Resting { .. }, _) => self.answer_proxy(number, true),
            (App::Running(_) | App::Absent | App::Over(_), _) => self.answer_proxy(number, false),
        }
    }

    pub(super) fn app_ended(&mut self, code: u8) {
        let Some(restart) = self.restart.take() else {
            return match self.stop {
                Some(_) => self.app_is_over(code),
                None => self.app_failed(code, self.app_started.elapsed()),
            };
        };
        tracing::info!(code, "the application has ended, starting it again");
        self.start_app();
        let runs = matches!(self.app, App::Running(_));
        for number in restart.asked {
            self.answer_proxy(number, runs);
        }
    }

    pub(super) fn give_up_restart(&mut self) {
        for number in self.restart.take().into_iter().flat_map(|it| it.asked) {
            self.answer_proxy(number, false);
        }
    }

    pub(super) fn answer_proxy(&mut self, number: u64, told: bool) {
        self.tell_proxy(match told {
            true => Word::AppTold(number),
            false => Word::AppNotTold(number),
        });
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
}
