//! D2, seen from above: a successor is started beside the proxy, and is the proxy once it says that it is ready.

use tokio::time::Instant;

use super::channel::{Order, Word};
use super::proxy::start_sibling;
use super::{App, Proxy, Sibling, Supervisor};

impl Supervisor {
    /// D2.
    pub(super) fn upgrade(&mut self) {
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

    pub(super) fn start_successor(&mut self) -> Result<Sibling, String> {
        let ready = |sibling: &Sibling| sibling.ready.is_some();
        let serves = matches!(&self.proxy, Proxy::Running(proxy) if ready(proxy));
        let stays = matches!(
            self.app,
            App::Running(_) | App::Resting { .. } | App::Absent
        ) && self.stop.is_none();
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

    pub(super) fn successor_is_ready(&mut self) {
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
        if matches!(self.app, App::Resting { .. }) {
            self.order(Order::AppRests);
        }
    }

    pub(super) fn successor_is_over(&mut self, code: u8) {
        self.successor = None;
        if !matches!(self.app, App::Over(_)) {
            tracing::error!(
                code,
                "no upgrade: the successor ended before it was ready; the proxy goes on"
            );
            self.tell_proxy(Word::UpgradeFailed(code));
        }
    }
}
