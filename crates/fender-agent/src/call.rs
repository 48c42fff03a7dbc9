//! What every call of a local process goes through: who it is, whether it has too many already, and how it is refused.

use std::sync::Arc;

use fender_runtime::drain::Drain;
use fender_runtime::share::Share;
use futures_util::stream::{self, Stream};
use tokio::sync::watch;
use tonic::{Request, Status};

use crate::server::Calls;
use crate::{Caller, Entitled, Identities, Refused};

/// A caller whose call counts against its process until this is dropped.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) caller: Caller,
    _share: Share<u32>,
}

impl<I: Identities> Calls<I> {
    /// The caller of a request, unless its process has too many calls under way.
    pub(crate) fn admit<T>(&self, request: &Request<T>) -> Result<Admitted, Status> {
        let caller = request.extensions().get::<Caller>();
        let caller = caller.ok_or_else(|| Status::internal("nobody knows who calls"))?;
        let share = self.shares.take(caller.pid).ok_or_else(|| {
            tracing::warn!(
                uid = caller.uid,
                pid = caller.pid,
                "refused a call: its process has too many under way"
            );
            Status::resource_exhausted("this process has too many calls under way")
        })?;
        Ok(Admitted {
            caller: caller.clone(),
            _share: share,
        })
    }

    /// What the caller may be.
    pub(crate) async fn follow(
        &self,
        caller: &Caller,
    ) -> Result<watch::Receiver<Arc<Entitled>>, Status> {
        let followed = self.identities.follow(caller).await;
        followed.map_err(|why| refusal(caller, why))
    }

    /// A message now, and one whenever what it is made of changes. A reader who is slow gets the newest when it is ready,
    /// and never what was between.
    pub(crate) fn push<K, M>(
        &self,
        admitted: Admitted,
        mut entitled: watch::Receiver<Arc<Entitled>>,
        made_of: fn(&Entitled) -> K,
        render: fn(&K) -> Result<M, Status>,
    ) -> impl Stream<Item = Result<M, Status>> + Send + use<I, K, M>
    where
        K: PartialEq + Send + 'static,
        M: Send + 'static,
    {
        entitled.mark_changed();
        let state = Push {
            entitled,
            made_of,
            render,
            sent: None,
            stop: self.drain.clone(),
            _admitted: admitted,
        };
        stream::unfold(Some(state), |state| async move {
            let mut state = state?;
            match state.next().await {
                Ok(message) => Some((Ok(message), Some(state))),
                Err(status) => Some((Err(status), None)),
            }
        })
    }
}

struct Push<K, M> {
    entitled: watch::Receiver<Arc<Entitled>>,
    made_of: fn(&Entitled) -> K,
    render: fn(&K) -> Result<M, Status>,
    sent: Option<K>,
    stop: Drain,
    _admitted: Admitted,
}

impl<K: PartialEq, M> Push<K, M> {
    async fn next(&mut self) -> Result<M, Status> {
        loop {
            tokio::select! {
                biased;
                () = self.stop.stopping() => return Err(stopping()),
                changed = self.entitled.changed() => changed.map_err(|_| nobody())?,
            }
            let news = (self.made_of)(&self.entitled.borrow_and_update());
            if self.sent.as_ref() != Some(&news) {
                return (self.render)(self.sent.insert(news));
            }
        }
    }
}

/// The caller hears no more than that; why is in the log.
pub(crate) fn refusal(caller: &Caller, why: Refused) -> Status {
    let Caller { uid, pid, .. } = caller;
    tracing::warn!(uid, pid, error = %why, "a local caller gets nothing");
    match why {
        Refused::Nobody { .. } => nobody(),
        Refused::Unavailable { .. } => Status::unavailable("identities cannot be had now"),
    }
}

pub(crate) fn nobody() -> Status {
    Status::permission_denied("no identity is meant for this process")
}

pub(crate) fn stopping() -> Status {
    Status::unavailable("this server is stopping")
}
