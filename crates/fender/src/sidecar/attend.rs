//! A sidecar that serves: what it is asked for, and why it ends.

use std::sync::Arc;
use std::time::Duration;

use fender_credentials::engine::OnExit;
use fender_credentials::supervise::{Order, Superior};
use fender_runtime::deadline::Deadline;
use fender_runtime::manager::Manager;
use tokio::sync::{mpsc, watch};

use super::abandoned::{Interfaces, network_abandoned};
use super::drains::Drains;
use super::notices::{Notice, Waiting};
use super::status::Status;
use super::upgrade::{Answer, Failed, Handed, Request};
use crate::exit::Exit;
use crate::signals::{Asked, Signals};
use crate::source::{Feed, Reloaded};

const NO_SUPERVISOR: &str = "nobody can start a successor of this sidecar: it was started without an application and without --supervise. Start one with --take-over";
const NOT_NOW: &str = "an upgrade is under way already, or the sidecar is about to end";

/// What serves.
pub(super) struct Serving {
    pub(super) feed: Feed,
    pub(super) status: Arc<Status>,
    pub(super) on_exit: watch::Sender<OnExit>,
    pub(super) requests: mpsc::Receiver<Request>,
    /// Who wants the application told.
    pub(super) notices: mpsc::Receiver<Notice>,
}

/// How long whoever has the configuration read waits for the proxy to serve by it.
const IN_FORCE: Duration = Duration::from_secs(3);

/// Why it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Asked,
    /// Nobody can reach it any more.
    Abandoned,
    /// D2: another sidecar serves.
    Succeeded,
}

/// What serves, and who has a say in it.
pub(super) struct Watch {
    pub(super) serving: Serving,
    pub(super) drains: Drains,
    pub(super) manager: Manager,
    pub(super) superior: Option<Superior>,
    /// Who waits for an upgrade that is under way, if anybody does.
    pub(super) upgrade: Option<Option<Answer>>,
    /// Who waits to hear that the application was told.
    pub(super) waiting: Waiting,
}

impl Watch {
    /// Does what it is asked for until it has to end. Inbound has stopped by then, unless nobody is there.
    pub(super) async fn attend(
        &mut self,
        signals: &mut Signals,
        interfaces: Option<Interfaces>,
    ) -> End {
        let mut abandoned = std::pin::pin!(network_abandoned(interfaces));
        loop {
            tokio::select! {
                asked = signals.next() => match asked {
                    Asked::Stop => return self.stop(),
                    Asked::Reload => self.reload(None).await,
                    Asked::Upgrade => self.upgrade(None),
                },
                () = &mut abandoned => return End::Abandoned,
                order = next_order(self.superior.as_mut()) => match order {
                    Some(Order::DrainInbound) => self.begin_drain(),
                    Some(Order::UpgradeRefused) => self.upgrade_failed(NOT_NOW.to_owned()),
                    Some(Order::UpgradeFailed(code)) => self.upgrade_failed(format!(
                        "the successor ended with code {code} before it was ready; its log says why"
                    )),
                    Some(Order::AppTold(number)) => self.waiting.answer(number, true),
                    Some(Order::AppNotTold(number)) => self.waiting.answer(number, false),
                    Some(Order::AppRests) => self.serving.status.set_app_rests(true),
                    Some(Order::AppRuns) => self.serving.status.set_app_rests(false),
                    // The kernel's signal says the same, but not of one that went before we could ask for it.
                    None => return self.stop(),
                },
                Some(notice) = self.serving.notices.recv() => {
                    self.waiting.tell(self.superior.as_ref(), notice);
                }
                Some(request) = self.serving.requests.recv() => match request {
                    Request::Upgrade(answer) => self.upgrade(Some(answer)),
                    Request::Reload(answer) => self.reload(Some(answer)).await,
                    Request::Handed(handed) => return self.succeeded(handed),
                },
            }
        }
    }

    fn stop(&mut self) -> End {
        self.manager.stopping();
        self.begin_drain();
        End::Asked
    }

    /// D1: readiness first, then no new inbound work.
    fn begin_drain(&self) {
        self.serving.status.set_draining();
        if !self.drains.inbound.is_stopping() {
            tracing::info!("draining");
            self.drains.inbound.stop();
        }
    }

    /// D2: everything is the successor's; what is open here ends as in any drain.
    fn succeeded(&mut self, Handed { pid }: Handed) -> End {
        let shown = pid.map_or_else(
            || "another container".to_owned(),
            |pid| format!("process {pid}"),
        );
        tracing::info!(
            successor = shown,
            "a successor serves; draining what is open here"
        );
        self.serving.status.set_draining();
        self.serving.on_exit.send_replace(OnExit::Keep);
        self.drains.hand_over();
        if let Some(pid) = pid {
            self.manager.succeeded_by(pid);
        }
        if let Some(Some(answer)) = self.upgrade.take() {
            let _ = answer.send(Ok(format!(
                "{shown} serves; the one before ends what is open"
            )));
        }
        End::Succeeded
    }

    /// Asks for a successor; what becomes of it is heard of later.
    fn upgrade(&mut self, answer: Option<Answer>) {
        let refused = match &self.superior {
            None => Some((NO_SUPERVISOR.to_owned(), Exit::Usage)),
            Some(_) if self.upgrade.is_some() => Some((NOT_NOW.to_owned(), Exit::Unavailable)),
            Some(superior) => superior.upgrade().err().map(|error| {
                let why = format!("the supervisor does not hear: {error}");
                (why, Exit::Unavailable)
            }),
        };
        match refused {
            None => self.upgrade = Some(answer),
            Some((why, exit)) => {
                tracing::warn!("no upgrade: {why}");
                if let Some(answer) = answer {
                    let _ = answer.send(Err(Failed { why, exit }));
                }
            }
        }
    }

    fn upgrade_failed(&mut self, why: String) {
        if let Some(Some(answer)) = self.upgrade.take() {
            let exit = Exit::Unavailable;
            // Whoever asked may have left.
            let _ = answer.send(Err(Failed { why, exit }));
        }
    }

    async fn reload(&mut self, answer: Option<Answer>) {
        self.manager.reloading();
        let before = self.serving.feed.snapshot.borrow().version;
        let came_of = match &self.serving.feed.reloads {
            Some(reloads) => match reloads.ask().await {
                Ok(Reloaded::Applied) => self.in_force_after(before).await,
                Ok(Reloaded::Unchanged) => self
                    .in_force_after(before.saturating_sub(1))
                    .await
                    .map(|_| "the configuration has not changed"),
                Err(why) => Err(why),
            },
            None => Ok("there is no file to read: the control plane says what changes"),
        };
        if let Ok(what) = &came_of {
            tracing::info!("reload: {what}");
        }
        self.manager.ready();
        if let Some(superior) = &self.superior
            && let Err(error) = superior.reloaded()
        {
            tracing::warn!(%error, "the supervisor does not hear that the configuration was read");
        }
        if let Some(answer) = answer {
            let exit = Exit::Usage;
            let came_of = came_of.map(ToOwned::to_owned);
            let _ = answer.send(came_of.map_err(|why| Failed { why, exit }));
        }
    }
}

impl Watch {
    /// Waits until the proxy serves by what was read, which made a later snapshot than this one.
    async fn in_force_after(&mut self, version: u64) -> Result<&'static str, String> {
        let Serving { feed, status, .. } = &mut self.serving;
        let served = async {
            let newer = feed
                .snapshot
                .wait_for(|snapshot| snapshot.version > version);
            let version = newer.await.ok()?.version;
            if let Some(proxy) = status.proxy() {
                proxy.serves(version).await;
            }
            Some(())
        };
        match Deadline::after(IN_FORCE).bound(served).await {
            Ok(_) => Ok("the configuration was read and is in force"),
            Err(_) => {
                let problem = status.proxy().and_then(|proxy| proxy.status().problem);
                let problem = problem.unwrap_or_else(|| "it is busy".to_owned());
                Err(format!(
                    "the configuration was read, but the proxy does not serve by it yet: {problem}"
                ))
            }
        }
    }
}

/// Never if nobody supervises. Nothing once the supervisor is gone.
async fn next_order(superior: Option<&mut Superior>) -> Option<Order> {
    match superior {
        Some(superior) => superior.next_order().await,
        None => std::future::pending().await,
    }
}
