//! One request from its first byte to its line in the access log, which is written exactly once: when
//! it ends, however it ends.

use std::sync::Arc;
use std::time::Duration;

use fender_identity::Peer;
use fender_runtime::id::OpaqueId;
use fender_wire::{Fields, RequestHead};
use tokio::time::Instant;

use crate::Limits;
use crate::access::{Asked, RequestLine};
use crate::fault::{Fault, PeerFault};
use crate::headers;
use crate::metrics::Meter;
use crate::node::Node;
use crate::permit::{Allowed, Ask, AskedRequest, Caller, Policy};
use crate::record::Direction;
use crate::span::{Own, Span, beginning, well_known};
use crate::trace::Trace;

/// Where a request came in.
#[derive(Clone, Debug)]
pub(crate) struct Entrance {
    pub(crate) node: Arc<Node>,
    pub(crate) direction: Direction,
    pub(crate) caller: Arc<Caller>,
}

impl Entrance {
    /// A request that came in here. `path` is the one spelling of its path, where that is another.
    pub(crate) fn asked(&self, head: RequestHead, path: Option<String>) -> AskedRequest {
        let trace = Trace::of(head.fields(), self.caller.traces, &self.node.recorder);
        AskedRequest::new(head, path, trace)
    }
}

/// One request, while it is being lived.
#[derive(Debug)]
pub(crate) struct Exchange {
    entrance: Entrance,
    protocol: &'static str,
    /// None where it could not even be read.
    request: Option<Arc<AskedRequest>>,
    /// What the app called, as it is named in the documents.
    destination: Option<Arc<str>>,
    /// Where a call of the app's is counted.
    meter: Option<Arc<Meter>>,
    /// Who answers a call of the app's.
    server: Option<Arc<Peer>>,
    status: Option<u16>,
    allowed: Option<Allowed>,
    received: u64,
    sent: u64,
    began: Instant,
    /// When the head of the response was there.
    answered: Option<Instant>,
    /// The fault id the peer was told.
    told: Option<OpaqueId>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Ended,
}

impl Exchange {
    pub(crate) fn begin(
        entrance: &Entrance,
        request: Option<Arc<AskedRequest>>,
        protocol: &'static str,
    ) -> Self {
        let exchange = Self {
            entrance: entrance.clone(),
            protocol,
            request,
            destination: None,
            meter: None,
            server: None,
            status: None,
            allowed: None,
            received: 0,
            sent: 0,
            began: Instant::now(),
            answered: None,
            told: None,
            state: State::Open,
        };
        exchange.moved();
        exchange
    }

    /// The request as policy is asked about it.
    pub(crate) fn ask(&self) -> Ask {
        Ask {
            caller: self.entrance.caller.clone(),
            request: self.request.clone(),
        }
    }

    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// Policy said yes.
    pub(crate) fn let_in(&mut self, allowed: Allowed) {
        self.allowed = Some(allowed);
    }

    /// Whoever was asked has begun to answer.
    pub(crate) fn answered(&mut self, status: u16) {
        self.status = Some(status);
        self.answered = Some(Instant::now());
    }

    pub(crate) fn goes_to(&mut self, destination: Arc<str>, meter: Arc<Meter>) {
        self.destination = Some(destination);
        self.meter = Some(meter);
    }

    pub(crate) fn reaches(&mut self, server: Arc<Peer>) {
        self.server = Some(server);
    }

    /// What no longer holds by the newest policy: the permission of who asked, or the trust in who
    /// answers. Asks only where there is a newer policy than was asked last; every snapshot wakes the
    /// task of a connection ([`Caller::cuts`]), and that of one of HTTP/2 calls its streams.
    pub(crate) fn ended_by(&self, policy: &mut Policy) -> Option<Fault> {
        if !policy.has_news() {
            return None;
        }
        match self.entrance.direction {
            Direction::Inbound => policy.uphold(&self.ask()).err().map(Fault::from),
            Direction::Outbound => {
                let server = self.server.as_deref()?;
                policy.newest();
                policy.denies(server).map(Fault::from)
            }
        }
    }

    /// Its trailers that go on.
    pub(crate) fn passing_trailers<'a>(
        &self,
        trailers: impl Iterator<Item = (&'a [u8], &'a [u8])>,
        policy: &Policy,
    ) -> Fields {
        let newest = policy.peek();
        let rules = match self.entrance.direction {
            Direction::Inbound => Some(&*newest.policies),
            // Nothing was decided by what is in it.
            Direction::Outbound => None,
        };
        headers::passing_trailers(trailers, rules)
    }

    /// Counts what comes from who asked. A body that is larger than it may be is not taken any further.
    pub(crate) fn received(&mut self, bytes: usize, limits: &Limits) -> Result<(), PeerFault> {
        self.received = self.received.saturating_add(bytes as u64);
        self.moved();
        match self.received > limits.body_bytes {
            true => Err(PeerFault::SendsTooMuch),
            false => Ok(()),
        }
    }

    /// Counts what goes to who asked.
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.sent = self.sent.saturating_add(bytes as u64);
        self.moved();
    }

    /// What a connection that changed protocols carried.
    pub(crate) fn carried(&mut self, carried: crate::relay::Carried) {
        self.sent = carried.sent;
        self.received = carried.received;
    }

    /// The app uses its way out.
    pub(crate) fn moved(&self) {
        if self.entrance.direction == Direction::Outbound {
            self.entrance.node.metrics.outbound_used();
        }
    }

    pub(crate) fn succeed(&mut self) {
        if self.state == State::Open {
            self.end(Ok(()));
        }
    }

    pub(crate) fn fail(&mut self, fault: Fault) {
        if self.state == State::Open {
            let node = &self.entrance.node;
            if let Fault::Policy(denied) = &fault
                && self.entrance.direction == Direction::Inbound
                && self.request.is_some()
            {
                node.records.leave(denied, &self.ask());
            }
            self.end(Err(&fault));
        }
    }

    fn end(&mut self, outcome: Result<(), &Fault>) {
        self.state = State::Ended;
        let line = RequestLine {
            protocol: self.protocol,
            preamble: self.entrance.caller.preamble(),
            server: self.server.as_deref().and_then(Peer::id),
            destination: self.destination.as_deref(),
            asked: self.request.as_deref().map(|request| Asked {
                method: request.method(),
                authority: request.host(),
                path: request.path(),
                client: request.named_client(),
                trace: request.trace(),
            }),
            status: self.status,
            allowed: self.allowed.as_ref(),
            received: self.received,
            sent: self.sent,
            took: self.began.elapsed(),
            first_byte: self.answered.map(|answered| answered - self.began),
        };
        let Entrance {
            node,
            direction,
            caller,
        } = &self.entrance;
        let meter = self.meter.as_deref().unwrap_or(caller.meter());
        node.metrics.request(*direction, meter, &line, outcome);
        line.write(&node.access, outcome, self.told);
        if let Some(request) = &self.request
            && let Some(own) = &request.trace().own
        {
            let took = line.took;
            let span = || self.span(own, request, took, outcome.err());
            node.recorder.leave(span);
        }
    }

    /// What whoever collects traces is told.
    fn span(
        &self,
        own: &Own,
        request: &AskedRequest,
        took: Duration,
        fault: Option<&Fault>,
    ) -> Span {
        let Entrance {
            node,
            direction,
            caller,
        } = &self.entrance;
        let (peer, client) = match direction {
            Direction::Inbound => (caller.peer.id(), self.ask().remote_ip()),
            Direction::Outbound => (self.server.as_deref().and_then(Peer::id), None),
        };
        let authority = request.head().authority();
        Span {
            trace: own.trace,
            id: own.id,
            parent: request.trace().parent.map(|parent| parent.span),
            direction: *direction,
            began: node.clock.since_1970().saturating_sub(took),
            took,
            method: well_known(request.method()),
            path: beginning(request.path(), node.limits.span_path),
            host: Some(authority.host().to_owned()),
            port: authority.port(),
            protocol: self.protocol,
            plaintext: caller.plaintext,
            status: self.status,
            client,
            peer: peer.cloned(),
            destination: self.destination.clone(),
            decision: match fault {
                Some(Fault::Policy(denied)) => Some(denied.id),
                Some(Fault::Peer(_) | Fault::Upstream(_) | Fault::Ours(_)) | None => None,
            },
            fault: fault.map(|fault| fault.reason().label()),
        }
    }

    /// Our own answer to a request that failed, and the end of its line. It names no policy, no
    /// address and no reason, only an id under which we wrote them down (A5).
    pub(crate) fn answer(mut self, fault: Fault) -> Answer {
        let (status, error) = fault.answer().unwrap_or((500, "internal error"));
        let (name, kind, id) = match &fault {
            Fault::Policy(denied) => (headers::DECISION, "decision", denied.id),
            Fault::Peer(_) | Fault::Upstream(_) | Fault::Ours(_) => {
                let id = OpaqueId::random();
                self.told = Some(id);
                (headers::FAULT, "fault", id)
            }
        };
        self.status = Some(status);
        self.fail(fault);
        Answer {
            status,
            field: (name, id.to_string()),
            text: format!("{{\"error\":\"{error}\",\"{kind}\":\"{id}\"}}\n"),
            message: format!("{error} ({kind} {id})"),
        }
    }
}

impl Drop for Exchange {
    /// Nobody waited for the end: the connection was cut, or the peer has gone.
    fn drop(&mut self) {
        if self.state == State::Ended {
            return;
        }
        match self.entrance.caller.cut() {
            // The record is the connection's to leave.
            Some(cut) => {
                let fault = Fault::from(cut.clone());
                self.end(Err(&fault));
            }
            None => self.fail(PeerFault::Abandons.into()),
        }
    }
}

/// A response of ours.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The id under which we wrote down why.
    pub(crate) field: (&'static str, String),
    /// JSON.
    pub(crate) text: String,
    /// The same in a line of words.
    pub(crate) message: String,
}
