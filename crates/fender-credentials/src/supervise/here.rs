//! Whoever supplies the application, in the supervisor's own process: where there is no proxy, credentials of its environment are
//! kept fresh here, and it is told of changes, or started again for one, when that is asked for here.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};

use crate::environment::AppEnvironment;
use crate::notify::{App, AppNotice, NotTold};

/// How many may wait to be passed on: more than there are things to ask of an application.
const REQUESTS: usize = 8;

/// What the application is started with, each time anew, and who has it told.
#[derive(Debug)]
pub struct Supply {
    /// The whole environment, as it is now; nothing while a credential of it is withdrawn: then nothing is started.
    pub environment: watch::Receiver<Option<Arc<AppEnvironment>>>,
    /// What is asked of the application.
    pub requests: Requests,
}

impl Supply {
    pub(super) fn environment(&self) -> Option<Arc<AppEnvironment>> {
        self.environment.borrow().clone()
    }
}

/// Asks the supervisor. Clones are the same.
#[derive(Clone, Debug)]
pub struct Desk(mpsc::Sender<Request>);

/// What is asked of the supervisor.
#[derive(Debug)]
pub struct Requests(mpsc::Receiver<Request>);

#[derive(Debug)]
pub(super) struct Request {
    pub(super) what: AppNotice,
    /// Whether it was done.
    pub(super) done: oneshot::Sender<bool>,
}

/// Who waits to hear what came of it.
#[derive(Debug)]
pub(super) enum Asker {
    /// The proxy, by this number.
    Proxy(u64),
    Here(oneshot::Sender<bool>),
}

impl Desk {
    /// Where it is asked, and where that is heard.
    pub fn open() -> (Self, Requests) {
        let (ask, asked) = mpsc::channel(REQUESTS);
        (Self(ask), Requests(asked))
    }
}

impl App for Desk {
    fn tell(&self, what: AppNotice) -> BoxFuture<'_, Result<(), NotTold>> {
        Box::pin(async move {
            let ends = || NotTold::Later("the application has ended, or is about to".to_owned());
            let (done, told) = oneshot::channel();
            let request = Request { what, done };
            self.0.send(request).await.map_err(|_| ends())?;
            match told.await {
                Ok(true) => Ok(()),
                Ok(false) => Err(NotTold::Later(
                    "the application does not run, is about to end, or lacks a credential that was withdrawn"
                        .to_owned(),
                )),
                Err(_) => Err(ends()),
            }
        })
    }
}

/// The next one; never where nobody is to ask. Cancel safe.
pub(super) async fn asked(supply: Option<&mut Supply>) -> Request {
    if let Some(supply) = supply
        && let Some(request) = supply.requests.0.recv().await
    {
        return request;
    }
    std::future::pending().await
}
