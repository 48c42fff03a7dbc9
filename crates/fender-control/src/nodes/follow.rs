//! What an agent is told without asking: whom to believe and whom not any more, and that what is placed on its node has
//! changed. What it may have it asks for: here it learns only when.
//!
//! A stream ends with the certificate it began with, with a revocation, and with the control plane.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use fender_api::code::Code;
use fender_api::proto::control::v1::NodeUpdate;
use fender_api::proto::control::v1::node_update::Kind;
use fender_identity::{NodeName, PeerSvid, Serial};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::control::Control;

/// Streams of one certificate: an agent needs one, and another while it changes connections.
const STREAMS: usize = 4;

pub(crate) type Updates = Pin<Box<dyn Stream<Item = Result<NodeUpdate, Status>> + Send>>;

/// How many streams each certificate has.
#[derive(Clone, Debug, Default)]
pub(crate) struct Followers(Arc<Mutex<HashMap<Serial, usize>>>);

/// One of them; dropping it gives it back.
struct Place {
    followers: Followers,
    serial: Serial,
}

impl Followers {
    fn place(&self, serial: &Serial) -> Option<Place> {
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = streams.entry(serial.clone()).or_default();
        if *count >= STREAMS {
            return None;
        }
        *count += 1;
        Some(Place {
            followers: self.clone(),
            serial: serial.clone(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut streams = self
            .followers
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = streams.get_mut(&self.serial) {
            *count -= 1;
            if *count == 0 {
                streams.remove(&self.serial);
            }
        }
    }
}

/// One agent that listens.
struct Following {
    control: Arc<Control>,
    node: NodeName,
    peer: PeerSvid,
    updates: mpsc::Sender<Result<NodeUpdate, Status>>,
    _place: Place,
}

/// Begins to tell the agent of a node, which knows of trust as it was at `trust_version`.
pub(super) fn follow(
    control: &Arc<Control>,
    followers: &Followers,
    node: NodeName,
    peer: PeerSvid,
    trust_version: u64,
) -> Result<Updates, Status> {
    let place = followers
        .place(peer.serial())
        .ok_or_else(|| Code::Busy.status("too many streams are open already"))?;
    let (updates, stream) = mpsc::channel(1);
    let following = Following {
        control: Arc::clone(control),
        node,
        peer,
        updates,
        _place: place,
    };
    control.drain.spawn(following.run(trust_version));
    Ok(Box::pin(ReceiverStream::new(stream)))
}

impl Following {
    async fn run(self, trust_version: u64) {
        let ended = tokio::select! {
            biased;
            status = self.control.over(&self.peer) => Err(status),
            () = self.updates.closed() => Ok(()),
            ended = self.tell(trust_version) => ended,
        };
        if let Err(status) = ended {
            tracing::info!(node = %self.node, reason = status.message(), "stream of an agent ended");
            // Best effort: whoever does not read will notice that the stream is over.
            let _ = self.updates.try_send(Err(status));
        }
    }

    async fn tell(&self, trust_version: u64) -> Result<(), Status> {
        let stopping = || Code::Unavailable.status("the control plane is stopping");
        let mut trust = self.control.trust.follow();
        if trust.borrow_and_update().trust.version != trust_version {
            trust.mark_changed();
        }
        let mut documents = self.control.library.changes();
        documents.mark_changed();
        let mut placed = None;
        loop {
            let kind = tokio::select! {
                biased;
                changed = trust.changed() => {
                    changed.map_err(|_| stopping())?;
                    Kind::Trust(trust.borrow_and_update().encoded.clone())
                }
                changed = documents.changed() => {
                    changed.map_err(|_| stopping())?;
                    let in_force = Arc::clone(&documents.borrow_and_update());
                    let node = in_force.documents.nodes.get(&self.node);
                    let now = node.map(|node| (node.groups.clone(), in_force.placed.on(node)));
                    if placed.as_ref() == Some(&now) {
                        continue;
                    }
                    placed = Some(now);
                    Kind::PlacedAt(in_force.revision)
                }
            };
            let update = NodeUpdate { kind: Some(kind) };
            let sent = self.updates.send(Ok(update)).await;
            sent.map_err(|_| Code::Unavailable.status("the client is gone"))?;
        }
    }
}
