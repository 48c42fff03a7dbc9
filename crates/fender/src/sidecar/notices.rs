//! The way from whoever tells applications of changes to the supervisor, which alone can tell the one it started.

use std::collections::HashMap;

use fender_credentials::notify::{App, AppNotice, NotTold};
use fender_credentials::supervise::Superior;
use fender_runtime::random;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

/// How many may wait to be passed on: one for each thing that can be asked of an application.
const NOTICES: usize = 8;

/// What the application is to be told, and who waits for it.
pub(super) struct Notice {
    what: AppNotice,
    done: oneshot::Sender<Result<(), String>>,
}

/// Asks by way of whoever holds the channel to the supervisor.
pub(super) struct BySupervisor(mpsc::Sender<Notice>);

impl BySupervisor {
    pub(super) fn new() -> (Self, mpsc::Receiver<Notice>) {
        let (notices, asked) = mpsc::channel(NOTICES);
        (Self(notices), asked)
    }
}

impl App for BySupervisor {
    fn tell(&self, what: AppNotice) -> BoxFuture<'_, Result<(), NotTold>> {
        Box::pin(async move {
            let ends = || NotTold::Later("this sidecar is about to end".to_owned());
            let (done, told) = oneshot::channel();
            let notice = Notice { what, done };
            self.0.send(notice).await.map_err(|_| ends())?;
            let told = told.await.map_err(|_| ends())?;
            told.map_err(NotTold::Later)
        })
    }
}

/// Whoever waits for the supervisor's answer, by the number of the request: drawn at random, so that no answer to a proxy before
/// this one is taken for one to this.
#[derive(Default)]
pub(super) struct Waiting(HashMap<u64, oneshot::Sender<Result<(), String>>>);

impl Waiting {
    pub(super) fn tell(&mut self, superior: Option<&Superior>, notice: Notice) {
        self.0.retain(|_, done| !done.is_closed());
        let number = u64::from_le_bytes(random::bytes());
        let asked = match superior {
            Some(superior) => superior
                .tell_app(notice.what, number)
                .map_err(|error| format!("the supervisor does not hear: {error}")),
            None => Err("nobody supervises the application".to_owned()),
        };
        match asked {
            Ok(()) => {
                self.0.insert(number, notice.done);
            }
            Err(why) => {
                let _ = notice.done.send(Err(why));
            }
        }
    }

    pub(super) fn answer(&mut self, number: u64, told: bool) {
        let Some(done) = self.0.remove(&number) else {
            return;
        };
        // Whoever asked may be gone.
        let _ = done.send(match told {
            true => Ok(()),
            false => Err("the application does not run, or is about to end".to_owned()),
        });
    }
}
