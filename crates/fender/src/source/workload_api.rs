//! Identity from a SPIFFE Workload API (SPIRE's, say), without a control plane: asked, verified, then followed.
//!
//! Every change is taken from the stream as it comes, once it would convince every peer. Until then, while the API is away,
//! and whenever what it says cannot be used, the sidecar keeps what it has and says so once. It never takes another
//! identity than the one it started with, whatever the API names first later.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use fender_api::workload::{self, Endpoint, FetchError, Received, Updates};
use fender_config::snapshot::Snapshot;
use fender_config::standalone::WorkloadApi;
use fender_identity::{DenyList, SpiffeId, Svid, Trust};
use fender_runtime::backoff::Backoff;
use fender_runtime::clock::{SharedClock, UnixTime};
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use tokio::sync::watch;

use super::documents::{self, Documents};
use super::standalone::{Following, vouched_for};
use crate::exit::{Exit, Failure};

/// What connecting and the first answer may take.
const ANSWER: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Asks until there is an identity that can be used or the deadline passes, and follows it until the drain stops.
pub(super) async fn follow(
    documents: Documents,
    api: WorkloadApi,
    clock: &SharedClock,
    drain: &Drain,
    deadline: Deadline,
) -> Result<Following, Failure> {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    let (updates, svid, trust) = loop {
        let began = begin(&api, clock.now(), deadline).await;
        let error = match began {
            Ok(began) => break began,
            Err(error) => error,
        };
        let wait = backoff.next();
        if deadline.remaining() <= wait {
            return Err(given_up(&api.socket, error));
        }
        tracing::info!(
            error = format!("{error:#}"),
            "no identity from the Workload API yet"
        );
        tokio::time::sleep(wait).await;
    };
    let snapshot = documents.borrow().snapshot(svid.id(), trust, 1);
    tracing::info!(id = %svid.id(), serial = %svid.serial(), "identity from the Workload API");
    let id = svid.id().clone();
    let (svid_sender, svid) = watch::channel(Arc::new(svid));
    let (snapshot_sender, snapshot) = watch::channel(Arc::new(snapshot));
    documents::apply(documents.clone(), snapshot_sender.clone(), drain);
    let follower = Follower {
        documents,
        api: WorkloadApi {
            id: Some(id),
            ..api
        },
        clock: Arc::clone(clock),
        svid: svid_sender,
        snapshot: snapshot_sender,
    };
    let stopping = drain.clone();
    drain.spawn(async move {
        tokio::select! {
            () = stopping.stopping() => {}
            () = follower.run(updates) => {}
        }
    });
    Ok(Following {
        svid: Some(svid),
        snapshot,
    })
}

async fn begin(
    api: &WorkloadApi,
    now: UnixTime,
    deadline: Deadline,
) -> Result<(Updates, Svid, Trust)> {
    let limit = Deadline::after(ANSWER.min(deadline.remaining()));
    let (updates, received) = connect(api, limit).await?;
    let (svid, trust) = usable(received, api.id.as_ref(), &Arc::default(), now)?;
    Ok((updates, svid, trust))
}

/// Where it is, as it is asked.
pub(super) fn endpoint(api: &WorkloadApi) -> Endpoint {
    Endpoint {
        socket: api.socket.clone(),
        uid: api.uid,
    }
}

/// A stream and the first thing it says.
async fn connect(api: &WorkloadApi, limit: Deadline) -> Result<(Updates, Received)> {
    let endpoint = endpoint(api);
    let first = async {
        let mut updates = workload::watch(&endpoint).await?;
        let received = updates.next().await?;
        Ok::<_, FetchError>((updates, received))
    };
    match limit.bound(first).await {
        Ok(first) => Ok(first?),
        Err(_) => Err(anyhow!(
            "the Workload API at `{}` did not answer in time",
            endpoint.socket.display()
        )),
    }
}

/// Who we are of those the API names, if every peer would believe it now. Who is known to be denied stays so if its
/// revocation lists cannot be taken: the next certificate must not be lost over them.
fn usable(
    received: Received,
    expected: Option<&SpiffeId>,
    known: &Arc<DenyList>,
    now: UnixTime,
) -> Result<(Svid, Trust)> {
    let Received {
        svids,
        bundles,
        denied,
    } = received;
    let offered: Vec<_> = svids
        .iter()
        .map(|svid| format!("`{}`", svid.id()))
        .collect();
    let mut fitting = svids
        .into_iter()
        .filter(|svid| expected.is_none_or(|id| svid.id() == id));
    let svid = fitting.next().with_context(|| {
        let expected = expected.map(ToString::to_string).unwrap_or_default();
        format!(
            "the Workload API offers {} and not `{expected}`; restart this sidecar to change its identity",
            offered.join(", ")
        )
    })?;
    ensure!(
        svid.validity().includes(now),
        "the certificate of `{}` from the Workload API is not valid now",
        svid.id()
    );
    vouched_for(&svid, &bundles, now).with_context(|| {
        format!(
            "verify the certificate of `{}` by the bundle that the Workload API gave with it, as every peer will",
            svid.id()
        )
    })?;
    let denied = match denied {
        Ok(denied) => Arc::new(denied),
        Err(error) => {
            tracing::error!(
                %error,
                "the revocation lists of the Workload API are not taken: only whoever was denied before them is"
            );
            Arc::clone(known)
        }
    };
    let trust = Trust {
        denied,
        ..bundles.into()
    };
    Ok((svid, trust))
}

fn given_up(socket: &Path, error: anyhow::Error) -> Failure {
    let denied = matches!(
        error.downcast_ref(),
        Some(FetchError::Denied { .. } | FetchError::Squatted { .. })
    );
    let exit = match denied {
        true => Exit::Refused,
        false => Exit::Unavailable,
    };
    let asked = format!(
        "get an identity from the Workload API at `{}`",
        socket.display()
    );
    Failure::new(exit, error.context(asked))
}

struct Follower {
    documents: Documents,
    /// With the identity we started with.
    api: WorkloadApi,
    clock: SharedClock,
    svid: watch::Sender<Arc<Svid>>,
    snapshot: watch::Sender<Arc<Snapshot>>,
}

impl Follower {
    async fn run(self, mut updates: Updates) {
        let mut complaint = String::new();
        loop {
            let lost = loop {
                match updates.next().await {
                    Ok(received) => self.hear(received, &mut complaint),
                    Err(error) => break error,
                }
            };
            complain(&mut complaint, &lost.into());
            updates = self.reconnect(&mut complaint).await;
        }
    }

    /// Until it succeeds.
    async fn reconnect(&self, complaint: &mut String) -> Updates {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            tokio::time::sleep(backoff.next()).await;
            match connect(&self.api, Deadline::after(ANSWER)).await {
                Ok((updates, received)) => {
                    tracing::info!("the Workload API answers again");
                    self.hear(received, complaint);
                    return updates;
                }
                Err(error) => complain(complaint, &error),
            }
        }
    }

    fn hear(&self, received: Received, complaint: &mut String) {
        let known = Arc::clone(&self.snapshot.borrow().trust.denied);
        match usable(received, self.api.id.as_ref(), &known, self.clock.now()) {
            Ok((svid, trust)) => {
                complaint.clear();
                self.publish(svid, trust);
            }
            Err(error) => complain(complaint, &error),
        }
    }

    fn publish(&self, svid: Svid, trust: Trust) {
        // Bundle first: a peer with a certificate of a new root may come as soon as ours is new.
        if self.snapshot.borrow().trust != trust {
            documents::publish(&self.snapshot, &self.documents, Some(trust));
        }
        self.svid.send_if_modified(|current| {
            if current.chain() == svid.chain() {
                return false;
            }
            tracing::info!(serial = %svid.serial(), not_after = svid.validity().not_after.as_secs(), "serving the certificate from the Workload API");
            *current = Arc::new(svid);
            true
        });
    }
}

/// Once for each reason.
fn complain(said: &mut String, error: &anyhow::Error) {
    let text = format!("{error:#}");
    if text != *said {
        tracing::warn!(
            error = text,
            "the Workload API gives nothing; keeping the certificate in use"
        );
        *said = text;
    }
}
