//! The adapter: a day in the life of a connection from a peer.
//!
//! Each step consumes the proof made by the last: who it is (a finished handshake), whether it may (a
//! `Permit`), where it goes (only a permit leads to the app). An HTTP connection asks again for each
//! request; every connection is cut when its peer is revoked.

use std::sync::Arc;

use fender_config::snapshot::{AppProtocol, AppProxyProtocol, Protocol};
use fender_identity::tls::ACME_TLS;
use fender_identity::{Peer, PeerSvid, SpiffeId, Svid};
use fender_runtime::accept::{Accept, Slot};
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use fender_runtime::listen::{ListenAddress, PeerAddr, Socket};
use rustls::CommonState;
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;

use crate::access::ConnectionLine;
use crate::app::h2c::Trunk;
use crate::challenges::http::{self as challenges, ChallengeTerms};
use crate::crowd::Seat;
use crate::exchange::Entrance;
use crate::fault::{Fault, OurFault, PeerFault};
use crate::introduction::{self, Introduction};
use crate::metrics::Open;
use crate::node::{Closing, Node};
use crate::permit::{Ask, Caller, Policy};
use crate::provenance::{self, Provenance};
use crate::record::Direction;
use crate::request::Gate;
use crate::stream::Stream;
use crate::tls::{self, H2, InboundTerms, Terms};
use crate::{http1, http2, tcp};

/// Takes connections until the drain stops.
pub(crate) async fn serve(mut accept: Accept, door: Arc<Door>, drain: Drain) {
    while let Some((socket, from, mut slot)) = accept.next(&drain).await {
        // One look: what a connection counts as is what it is served as, whatever changes meanwhile.
        let terms = door.node.terms.load_full();
        if !slot.holds(terms.weight(&door.listen)) {
            turn_away(&door, &drain, from, OurFault::Full);
            continue;
        }
        let Some(seat) = door.admit(&from, &terms) else {
            turn_away(&door, &drain, from, PeerFault::Crowds);
            continue;
        };
        let conn = Conn {
            seat,
            ..Conn::new(&door, &drain, from)
        };
        drain.spawn(conn.run(socket, slot, terms));
    }
}

/// Says that a connection was closed at once, for want of room.
pub(crate) fn turn_away(door: &Arc<Door>, drain: &Drain, from: PeerAddr, fault: impl Into<Fault>) {
    Conn::new(door, drain, from).record(Err(fault.into()));
}

/// One inbound listener.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) node: Arc<Node>,
    /// As it is configured: the key to its terms.
    pub(crate) listen: Arc<ListenAddress>,
    /// The port peers reach.
    pub(crate) port: u16,
    /// Room for connections, shared by all inbound listeners.
    pub(crate) slots: Arc<Semaphore>,
}

impl Door {
    /// A place for a connection from there, unless those of its address are taken.
    fn admit(&self, from: &PeerAddr, terms: &Terms) -> Option<Seat> {
        let port = terms.inbound.get(&*self.listen);
        let senders = port.and_then(|port| port.senders.as_ref());
        match provenance::may_pass_on(from, senders) {
            // It takes one when it is known where it comes from.
            true => Some(Seat::UNCOUNTED),
            false => self.node.crowd.admit(from.ip(), terms.weight(&self.listen)),
        }
    }

    /// Resolves when a handshake must give way: it had its time, and others find no room. Silence
    /// costs a stranger nothing, so it may not keep out those who speak.
    async fn crowded(&self) {
        let grace = self.node.limits.handshake;
        loop {
            tokio::time::sleep(grace).await;
            if self.slots.available_permits() == 0 {
                return;
            }
        }
    }
}

/// One connection.
struct Conn {
    door: Arc<Door>,
    drain: Drain,
    line: ConnectionLine,
    _open: Open,
    seat: Seat,
    /// Known once the handshake is over.
    caller: Option<Arc<Caller>>,
    kind: Kind,
}

/// What a connection leaves when it ends well: an HTTP connection has left a line for each request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Requests,
    Bytes,
}

impl Conn {
    fn new(door: &Arc<Door>, drain: &Drain, from: PeerAddr) -> Self {
        let line = ConnectionLine::begin(Direction::Inbound, "tls", door.listen.clone(), from);
        let open = door.node.metrics.opened(Direction::Inbound);
        let (door, drain) = (door.clone(), drain.clone());
        Self {
            door,
            drain,
            line,
            _open: open,
            seat: Seat::UNCOUNTED,
            caller: None,
            kind: Kind::Bytes,
        }
    }

    /// Its seat and slot are free when all is over.
    // Not an `async fn`: that would have room for its arguments twice.
    #[expect(clippy::manual_async_fn, reason = "smaller")]
    fn run(mut self, socket: Socket, slot: Slot, terms: Arc<Terms>) -> impl Future<Output = ()> {
        async move {
            let outcome = self.carry(socket, terms).await;
            self.record(outcome); // the one line and the decision record
            drop(slot);
        }
    }

    async fn carry(&mut self, socket: Socket, current: Arc<Terms>) -> Result<(), Fault> {
        let node = self.door.node.clone();
        let deadline = Deadline::after(node.limits.establish); // one, for all steps to come
        let mut policy = node.policy.clone();
        if let Some(terms) = current.challenges.get(&*self.door.listen) {
            return Box::pin(self.answer(socket, terms, deadline)).await;
        }
        let terms = current
            .inbound
            .get(&*self.door.listen)
            .ok_or(OurFault::Removed)?
            .clone();
        if current.has_expired(&*node.clock) {
            return Err(OurFault::Expired.into());
        }

        let local = match terms.app_proxy_protocol {
            AppProxyProtocol::Absent => None,
            AppProxyProtocol::V2 => introduction::local_address(&socket),
        };
        let accept = introduction::hearing(self.accept(socket, &terms, deadline));
        // Boxed, like whatever an open connection does not need later.
        let (accepted, named) = Box::pin(accept).await;
        let (stream, peer) = accepted?; // who
        if stream.alpn() == Some(ACME_TLS) {
            return Box::pin(self.dismiss(stream, deadline)).await;
        }
        let provenance = &self.line.origin.provenance;
        let introduction = match terms.app_proxy_protocol {
            AppProxyProtocol::Absent => None,
            AppProxyProtocol::V2 => {
                Some(Introduction::of(provenance, local, &stream, named, &peer)?)
            }
        };
        let expires = peer.svid().map(PeerSvid::not_after);
        let caller = self.identified(peer, &stream, &current.svid, &terms)?;
        drop(current);
        let gate = Gate {
            entrance: Entrance {
                node: node.clone(),
                direction: Direction::Inbound,
                caller: caller.clone(),
            },
            introduction,
            trunk: match terms.app_protocol {
                AppProtocol::Http1 => None,
                AppProtocol::H2c => Some(Arc::new(Trunk::new(
                    self.drain.clone(),
                    terms.limits.streams,
                ))),
            },
            terms,
        };
        let asked = policy.clone();
        let closing = Closing::new(self.drain.clone(), node.clock.clone(), expires);
        let drain = self.drain.clone();

        tokio::select! {
            biased; // a revoked peer loses even a race it was about to win
            cut = caller.cuts(&mut policy, &drain) => Err(cut.into()),
            carried = self.converse(gate, asked, stream, deadline, &closing) => carried, // may it, where
        }
    }

    /// An authority has seen in the handshake what it wanted to see (RFC 8737, 3): nothing follows.
    async fn dismiss(&mut self, mut stream: Stream, deadline: Deadline) -> Result<(), Fault> {
        self.line.protocol = "acme-tls/1";
        self.line.origin.tls = stream.tls().and_then(CommonState::protocol_version);
        match deadline.bound(stream.shutdown()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(PeerFault::from(error).into()),
            Err(elapsed) => Err(PeerFault::from(elapsed).into()),
        }
    }

    /// At a port where authorities are answered in the clear, and nothing else is done.
    async fn answer(
        &mut self,
        socket: Socket,
        terms: &ChallengeTerms,
        deadline: Deadline,
    ) -> Result<(), Fault> {
        self.line.protocol = "http-01";
        self.line.origin.plaintext = true;
        let node = &self.door.node;
        let answer = challenges::answer(socket, terms, &node.challenges, &node.limits, deadline);
        tokio::select! {
            biased;
            () = self.drain.forced() => Err(OurFault::Drained.into()),
            answered = answer => Ok(answered?),
            () = self.door.crowded() => Err(PeerFault::EstablishesTooSlowly.into()),
        }
    }

    /// Speaks what the port is for.
    #[expect(clippy::manual_async_fn, reason = "smaller, as `run`")]
    fn converse(
        &mut self,
        gate: Gate,
        mut policy: Policy,
        stream: Stream,
        deadline: Deadline,
        closing: &Closing,
    ) -> impl Future<Output = Result<(), Fault>> {
        async move {
            match gate.terms.protocol {
                Protocol::Tcp => {
                    let line = &mut self.line;
                    line.protocol = "tcp";
                    Box::pin(tcp::carry(&gate, &mut policy, stream, deadline, line)).await
                }
                Protocol::Http => {
                    self.kind = Kind::Requests;
                    if stream.alpn() == Some(H2) {
                        self.line.protocol = "h2";
                        Box::pin(http2::serve(gate, policy, stream, closing)).await
                    } else {
                        self.line.protocol = "http/1.1";
                        Box::pin(http1::serve(gate, policy, stream, closing)).await
                    }
                }
            }
        }
    }

    async fn accept(
        &mut self,
        socket: Socket,
        terms: &InboundTerms,
        deadline: Deadline,
    ) -> Result<(Stream, Peer), Fault> {
        let (provenance, seat, node) = (
            &mut self.line.origin.provenance,
            &mut self.seat,
            &self.door.node,
        );
        tokio::select! {
            biased;
            () = self.drain.forced() => Err(OurFault::Drained.into()),
            accepted = establish(socket, provenance, seat, node, terms, deadline) => Ok(accepted?),
            () = self.door.crowded() => Err(PeerFault::EstablishesTooSlowly.into()),
        }
    }

    /// What the handshake has shown.
    fn identified(
        &mut self,
        peer: Peer,
        stream: &Stream,
        own: &Svid,
        terms: &InboundTerms,
    ) -> Result<Arc<Caller>, OurFault> {
        let origin = &mut self.line.origin;
        origin.peer = peer.id().cloned();
        origin.tls = stream.tls().and_then(CommonState::protocol_version);
        origin.plaintext = stream.tls().is_none();
        let metrics = &self.door.node.metrics;
        match origin.plaintext {
            true => metrics.came_without_tls(),
            false => metrics.shook_hands(),
        }
        let traces = self.door.node.traces.judge(&peer, own.id().trust_domain());
        let meter = metrics.meter(Direction::Inbound, peer.id().map(SpiffeId::as_str));
        let mut caller = Caller::new(peer, origin.provenance, self.door.port);
        caller.plaintext = origin.plaintext;
        caller.share = self.seat.room();
        let caller = caller
            .traced(traces)
            .written_down(origin.preamble(), meter)
            .told_to_the_app(own.id(), &terms.forwarded)
            .map_err(|error| OurFault::Unwritable(error.to_string()))?;
        let caller = Arc::new(caller);
        self.caller = Some(caller.clone());
        Ok(caller)
    }

    fn record(&self, outcome: Result<(), Fault>) {
        let node = &self.door.node;
        let allowed = self.line.allowed.as_ref();
        node.metrics
            .connection(Direction::Inbound, allowed, outcome.as_ref().copied());
        if let (Kind::Bytes, Some(caller)) = (self.kind, &self.caller) {
            caller.meter().carried(self.line.carried);
        }
        match outcome {
            Ok(()) if self.kind == Kind::Requests => {}
            Ok(()) => self.line.write(&node.access, Ok(()), None),
            Err(fault) => {
                if let (Fault::Policy(denied), Some(caller)) = (&fault, &self.caller) {
                    let ask = Ask {
                        caller: caller.clone(),
                        request: None,
                    };
                    node.records.leave(denied, &ask);
                }
                if fault.handshake().is_some() {
                    // Anybody can cause these, so they are held to a pace.
                    let Some(suppressed) = node.handshakes.admit() else {
                        return;
                    };
                    if suppressed > 0 {
                        tracing::info!(suppressed, "lines about failed handshakes were held back");
                    }
                }
                self.line.write(&node.access, Err(&fault), None);
            }
        }
    }
}

/// Whom it comes from, and then who that is.
async fn establish(
    mut socket: Socket,
    provenance: &mut Provenance,
    seat: &mut Seat,
    node: &Node,
    terms: &InboundTerms,
    deadline: Deadline,
) -> Result<(Stream, Peer), PeerFault> {
    let (from, senders) = (provenance.remote(), terms.senders.as_ref());
    *provenance = deadline
        .bound(provenance::find(&mut socket, from, senders))
        .await??;
    if provenance.via().is_some() {
        let from = provenance.remote().ip();
        let taken = node.crowd.admit(from, terms.weight());
        *seat = taken.ok_or(PeerFault::Crowds)?;
    }
    tls::accept(socket, terms, &node.limits, deadline).await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sizes of what an open connection holds for as long as it is open, without what is on the heap.
    /// They are a budget: what makes them larger makes every idle connection larger.
    #[test]
    fn an_open_connection_is_small() {
        fn conn<F>(_: impl Fn(Conn, Socket, Slot, Arc<Terms>) -> F) -> usize {
            size_of::<F>()
        }
        fn serve<F>(_: impl Fn(Gate, Policy, Stream, &'static Closing) -> F) -> usize {
            size_of::<F>()
        }
        let conn = conn(Conn::run);
        assert!(conn <= 1440, "a connection: {conn} bytes");
        let http1 = serve(http1::serve);
        assert!(http1 <= 1280, "HTTP/1 between requests: {http1} bytes");
        let tls = crate::stream::SERVER_SIZE;
        assert!(tls <= 1344, "TLS: {tls} bytes");
    }
}
