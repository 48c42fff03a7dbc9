//! The ambassador: the app speaks plainly to a local listener, and we carry it to where the snapshot
//! says, with the workload's identity.
//!
//! The other side must prove to be the expected one (M4): for a workload the exact SPIFFE ID, for an
//! upstream its DNS name under the roots that were given. Addresses are tried in order within one
//! deadline. What cannot be carried is said in the app's own protocol: an HTTP client gets a proper
//! response with a fault id, and no address it did not know.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use fender_config::HostPort;
use fender_config::snapshot::Protocol;
use fender_identity::Peer;
use fender_runtime::accept::Accept;
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use fender_runtime::id::OpaqueId;
use fender_runtime::listen::{ListenAddress, PeerAddr, Socket};
use fender_wire::body::Framing;
use fender_wire::write::HeadWriter;
use rustls::CommonState;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, lookup_host};

use crate::access::{ConnectionLine, Preamble};
use crate::fault::{Fault, OurFault, UpstreamFault};
use crate::headers;
use crate::node::Node;
use crate::permit::Caller;
use crate::record::Direction;
use crate::relay::{discard, relay};
use crate::stream::{Fill, Stream};
use crate::tls::{self, OutboundTerms};

/// Takes connections of the app until the drain stops.
pub(crate) async fn serve(mut accept: Accept, door: Arc<Door>, drain: Drain) {
    while let Some((socket, from, slot)) = accept.next(&drain).await {
        let conn = Conn::new(&door, &drain, from);
        drain.spawn(async move {
            conn.run(socket).await;
            drop(slot);
        });
    }
}

/// One outbound listener.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) node: Arc<Node>,
    /// As it is configured: the key to its terms.
    pub(crate) listen: Arc<ListenAddress>,
}

/// One connection.
struct Conn {
    door: Arc<Door>,
    drain: Drain,
    from: PeerAddr,
    line: ConnectionLine,
    /// The fault id the app was told.
    told: Option<OpaqueId>,
}

impl Conn {
    fn new(door: &Arc<Door>, drain: &Drain, from: PeerAddr) -> Self {
        door.node.counters.connection();
        door.node.counters.outbound();
        let line = ConnectionLine::begin(Direction::Outbound, "tcp", door.listen.clone(), from);
        Self {
            door: door.clone(),
            drain: drain.clone(),
            from,
            line,
            told: None,
        }
    }

    async fn run(mut self, socket: Socket) {
        let outcome = self.carry(socket).await;
        let node = &self.door.node;
        if let Err(fault) = &outcome {
            node.counters.fault(fault.blame());
        }
        self.line
            .write(&node.access, outcome.as_ref().copied(), self.told);
    }

    async fn carry(&mut self, mut socket: Socket) -> Result<(), Fault> {
        let node = self.door.node.clone();
        let deadline = Deadline::after(node.limits.establish); // one, for all steps to come
        let mut policy = node.policy.clone();
        let current = node.terms.load_full();
        let terms = current
            .outbound
            .get(&*self.door.listen)
            .ok_or(OurFault::Removed)?
            .clone();
        self.line.destination = Some(terms.name.clone());
        let _ = socket.set_nodelay();

        if current.has_expired(&*node.clock) {
            let fault = OurFault::Expired.into();
            self.apologise(&terms, socket, &fault).await;
            return Err(fault);
        }
        let reached = tokio::select! {
            biased;
            () = self.drain.forced() => Err(OurFault::Drained.into()),
            reached = reach(&terms, deadline) => reached.map_err(Fault::from), // where, and who
        };
        let (stream, peer) = match reached {
            Ok(reached) => reached,
            Err(fault) => {
                self.apologise(&terms, socket, &fault).await;
                return Err(fault);
            }
        };
        self.line.origin.peer = peer.id().cloned();
        self.line.origin.tls = stream.tls().and_then(CommonState::protocol_version);
        // It is asked nothing, so it has no lines but this one.
        let server = Caller::new(peer, self.from, 0, Preamble::default());

        let carried = tokio::select! {
            biased; // a revoked server loses even a race it was about to win
            cut = server.cuts(&mut policy, &self.drain) => Err(cut.into()),
            carried = relay(
                &mut socket,
                stream,
                node.limits.half_closed,
                &mut self.line.carried,
                || node.counters.outbound(),
            ) => carried.map_err(Fault::from),
        };
        if let Err(fault @ Fault::Upstream(_)) = &carried {
            self.apologise(&terms, socket, fault).await;
        }
        carried
    }

    /// Tells an HTTP client what went wrong, if it was not told anything yet.
    async fn apologise(&mut self, terms: &OutboundTerms, mut socket: Socket, fault: &Fault) {
        if terms.protocol != Protocol::Http || self.line.carried.sent > 0 {
            return;
        }
        let Some((status, error)) = fault.answer() else {
            return;
        };
        let id = OpaqueId::random();
        let text = format!("{{\"error\":\"{error}\",\"fault\":\"{id}\"}}\n");
        let mut out = BytesMut::new();
        let mut head = HeadWriter::response(&mut out, status.as_u16());
        let written = head
            .field("content-type", b"application/json")
            .and_then(|()| head.field(headers::FAULT.as_str(), id.to_string().as_bytes()));
        head.framing(Framing::Length(text.len() as u64));
        head.close();
        head.end();
        if written.is_err() {
            return;
        }
        out.extend_from_slice(text.as_bytes());
        self.told = Some(id);
        let limits = &self.door.node.limits;
        if self.line.carried.received == 0 && !asks(&mut socket, limits.linger).await {
            return;
        }
        answer(&mut socket, &out, limits.linger, limits.linger_bytes).await;
    }
}

/// Waits for a request to begin. Where nobody asks, there is nothing to answer.
async fn asks(socket: &mut Socket, patience: Duration) -> bool {
    let mut request = BytesMut::new();
    let first = poll_fn(|cx| socket.poll_fill(cx, &mut request));
    matches!(Deadline::after(patience).bound(first).await, Ok(Ok(1..)))
}

/// Writes the answer and reads on for a moment, so that it is not lost in a reset.
async fn answer(socket: &mut Socket, response: &[u8], patience: Duration, left: usize) {
    let deadline = Deadline::after(patience);
    let write = async {
        socket.write_all(response).await?;
        socket.shutdown().await
    };
    if matches!(deadline.bound(write).await, Ok(Ok(()))) {
        discard(socket, deadline, left).await;
    }
}

/// A connection to the destination that has proven to be it: the first address that can be had.
async fn reach(terms: &OutboundTerms, deadline: Deadline) -> Result<(Stream, Peer), UpstreamFault> {
    let mut worst = None;
    for (address, left) in terms
        .addresses
        .iter()
        .zip((1..=terms.addresses.len()).rev())
    {
        // A dead address may not eat the time of those after it.
        let share = u32::try_from(left).map_or(Duration::ZERO, |left| deadline.remaining() / left);
        match Deadline::after(share)
            .bound(reach_one(terms, address))
            .await
        {
            Ok(Ok(reached)) => return Ok(reached),
            Ok(Err(fault)) => worst = Some(graver(worst, fault)),
            Err(_) => {
                let late = UpstreamFault::TakesTooLong(terms.addresses.len());
                worst = Some(graver(worst, late));
            }
        }
    }
    Err(worst.unwrap_or(UpstreamFault::TakesTooLong(0)))
}

/// An impostor is worth more attention than a machine that is down.
fn graver(one: Option<UpstreamFault>, other: UpstreamFault) -> UpstreamFault {
    match one {
        Some(one @ UpstreamFault::ProvesWrongIdentity { .. }) => one,
        Some(_) | None => other,
    }
}

async fn reach_one(
    terms: &OutboundTerms,
    address: &HostPort,
) -> Result<(Stream, Peer), UpstreamFault> {
    let unreachable = |error| UpstreamFault::Unreachable {
        address: address.to_string(),
        error,
    };
    let mut last = std::io::ErrorKind::NotFound.into();
    for candidate in lookup_host((address.host(), address.port()))
        .await
        .map_err(unreachable)?
    {
        match TcpStream::connect(candidate).await {
            Ok(stream) => {
                stream.set_nodelay(true).map_err(unreachable)?;
                return tls::connect(stream.into(), terms, address).await;
            }
            Err(error) => last = error,
        }
    }
    Err(unreachable(last))
}
