//! The ambassador: the app speaks plainly to a local listener, and we carry it to where the snapshot
//! says, with the workload's identity.
//!
//! The other side must prove to be the expected one (M4): for a workload the exact SPIFFE ID, for an
//! upstream its DNS name under the roots that were given. Addresses are tried in order within one
//! deadline. A TCP connection is carried as it is, on a connection of its own. HTTP is carried request
//! by request, on kept connections to the same destination, under the newest terms; what cannot be
//! carried is said in HTTP, with a fault id and no address the app did not know.

mod reach;

use std::sync::Arc;

use fender_config::snapshot::{AppProtocol, Protocol};
use fender_identity::Peer;
use fender_runtime::accept::Accept;
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use fender_runtime::listen::{ListenAddress, PeerAddr, Socket};
use fender_wire::{Fields, RequestHead, ResponseHead};
use rustls::CommonState;

use crate::Limits;
use crate::access::ConnectionLine;
use crate::call::{Call, Near, Onward};
use crate::exchange::{Answer, Entrance, Exchange};
use crate::fault::{Fault, OurFault};
use crate::metrics::{Meter, Open};
use crate::node::{Closing, Node};
use crate::permit::{Caller, Policy};
use crate::record::Direction;
use crate::relay::{Unended, relay};
use crate::request::{Admitted, AfterFault, Desk, onward};
use crate::stream::Stream;
use crate::tls::OutboundTerms;
use crate::trace::Traces;
use crate::{headers, http1};
use reach::reach;

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

impl Door {
    /// What new calls are made with.
    fn terms(&self) -> Result<Arc<OutboundTerms>, OurFault> {
        let current = self.node.terms.load();
        let terms = current.outbound.get(&*self.listen);
        let terms = terms.ok_or(OurFault::Removed)?;
        match current.has_expired(&*self.node.clock) {
            true => Err(OurFault::Expired),
            false => Ok(terms.clone()),
        }
    }
}

/// One connection.
struct Conn {
    door: Arc<Door>,
    drain: Drain,
    line: ConnectionLine,
    /// Where a relayed connection is counted.
    meter: Option<Arc<Meter>>,
    _open: Open,
}

impl Conn {
    fn new(door: &Arc<Door>, drain: &Drain, from: PeerAddr) -> Self {
        let open = door.node.metrics.opened(Direction::Outbound);
        let line = ConnectionLine::begin(Direction::Outbound, "tcp", door.listen.clone(), from);
        Self {
            door: door.clone(),
            drain: drain.clone(),
            line,
            meter: None,
            _open: open,
        }
    }

    async fn run(mut self, socket: Socket) {
        let protocol = match self.protocol() {
            Ok(protocol) => protocol,
            Err(fault) => return self.record(Err(fault.into())),
        };
        match protocol {
            Protocol::Http => {
                self.line.protocol = http1::PROTOCOL;
                // A request has left a line of its own.
                if let outcome @ Err(_) = self.converse(socket).await {
                    self.record(outcome);
                }
            }
            Protocol::Tcp => {
                let outcome = self.carry(socket).await;
                self.record(outcome);
            }
        }
    }

    /// What the listener is for, whether or not a call can be made at the moment.
    fn protocol(&self) -> Result<Protocol, OurFault> {
        let current = self.door.node.terms.load();
        let terms = current.outbound.get(&*self.door.listen);
        Ok(terms.ok_or(OurFault::Removed)?.protocol)
    }

    fn record(&self, outcome: Result<(), Fault>) {
        let node = &self.door.node;
        node.metrics
            .connection(Direction::Outbound, None, outcome.as_ref().copied());
        if let Some(meter) = &self.meter {
            meter.carried(self.line.carried);
        }
        self.line
            .write(&node.access, outcome.as_ref().copied(), None);
    }

    /// Carries the requests of the connection, each to where it goes by then.
    async fn converse(&self, socket: Socket) -> Result<(), Fault> {
        let node = &self.door.node;
        let mut policy = node.policy.clone();
        let provenance = self.line.origin.provenance;
        let caller = Caller::new(Peer::Anonymous, provenance, 0).traced(Traces::GoneOnWith);
        let meter = node.metrics.meter(Direction::Outbound, None);
        let caller = Arc::new(caller.written_down(self.line.origin.preamble(), meter));
        let ambassador = Ambassador {
            entrance: Entrance {
                node: node.clone(),
                direction: Direction::Outbound,
                caller: caller.clone(),
            },
            door: self.door.clone(),
        };
        let closing = Closing::new(self.drain.clone(), node.clock.clone(), None);
        let stream = Stream::plain(socket);
        let asked = policy.clone();
        tokio::select! {
            biased;
            // Every snapshot wakes this task: the request that is open asks whether its server is denied.
            cut = caller.cuts(&mut policy, &self.drain) => Err(cut.into()),
            served = http1::serve(ambassador, asked, stream, &closing) => served,
        }
    }

    /// Carries the bytes of the connection both ways.
    async fn carry(&mut self, socket: Socket) -> Result<(), Fault> {
        let node = self.door.node.clone();
        let deadline = Deadline::after(node.limits.establish); // one, for all steps to come
        let mut policy = node.policy.clone();
        let terms = self.door.terms()?;
        self.line.destination = Some(terms.name.clone());
        self.meter = Some(terms.meter(&node.metrics));

        let (stream, peer) = tokio::select! {
            biased;
            () = self.drain.forced() => return Err(OurFault::Drained.into()),
            reached = reach(&terms, deadline) => reached?, // where, and who
        };
        self.line.origin.peer = peer.id().cloned();
        self.line.origin.tls = stream.tls().and_then(CommonState::protocol_version);
        let server = Caller::new(peer, self.line.origin.provenance, 0);
        let mut app = Unended::new(socket);

        tokio::select! {
            biased; // a revoked server loses even a race it was about to win
            cut = server.cuts(&mut policy, &self.drain) => Err(cut.into()),
            carried = relay(
                &mut app.socket,
                stream,
                node.limits.half_closed,
                &mut self.line.carried,
                || node.metrics.outbound_used(),
            ) => {
                carried?;
                app.ended();
                Ok(())
            }
        }
    }
}

/// Who carries the app's requests.
struct Ambassador {
    entrance: Entrance,
    door: Arc<Door>,
}

impl Desk for Ambassador {
    type Pass = Arc<OutboundTerms>;

    const RETURNS: fn(&ResponseHead, &[u8]) -> bool = headers::returns_in;
    const AFTER_FAULT: AfterFault = AfterFault::Ends;

    fn entrance(&self) -> &Entrance {
        &self.entrance
    }

    /// Nothing is matched here, so nothing is rewritten: the other side decides.
    fn admit(
        &self,
        head: RequestHead,
        protocol: &'static str,
        _: &mut Policy,
        _: &Limits,
    ) -> Result<Admitted<Arc<OutboundTerms>>, Answer> {
        let request = Arc::new(self.entrance.asked(head, None));
        let mut exchange = Exchange::begin(&self.entrance, Some(request.clone()), protocol);
        let terms = match self.door.terms() {
            Ok(terms) => terms,
            Err(fault) => return Err(exchange.answer(fault.into())),
        };
        let meter = terms.meter(&self.entrance.node.metrics);
        exchange.goes_to(terms.name.clone(), meter);
        let said = Fields::default();
        let speaks = AppProtocol::Http1;
        match onward(&request, &said, headers::passes_out, speaks) {
            Ok(onward) => Ok(Admitted {
                pass: terms,
                onward,
                exchange,
            }),
            Err(fault) => Err(exchange.answer(fault)),
        }
    }

    /// The app is held to what every sidecar holds its own to.
    fn renew(&self, _: &mut Arc<Limits>) {}

    async fn send(
        &self,
        terms: &Arc<OutboundTerms>,
        onward: &Onward,
        near: &mut (impl Near + Send),
    ) -> Result<(ResponseHead, Call), Fault> {
        let open = async |deadline| reach(terms, deadline).await;
        let sent = terms.pool.send(onward, near, None, open).await;
        sent.map(|(head, call)| (head, Call::from(call)))
    }
}
