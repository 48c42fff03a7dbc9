//! One HTTP request of a peer's, whatever version carried it: in order, what it is, may it, and on to
//! the app.
//!
//! The path is brought into one spelling and the fields are judged in their final form, so policy
//! judges exactly what the app will see. Nothing reaches the app without a [`Permit`]. Query strings
//! are forwarded untouched, and neither matched nor logged (P2).

use std::borrow::Cow;
use std::sync::Arc;

use bytes::BytesMut;
use fender_config::snapshot::AppProtocol;
use fender_runtime::deadline::Deadline;
use fender_wire::write::{HeadWriter, WriteError};
use fender_wire::{Fields, Framing, RequestHead, ResponseHead, path};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::Limits;
use crate::app::h2c;
use crate::call::{Asks, Call, Head, Near, Onward, unless_it_ends, unless_it_has_ended};
use crate::crowd;
use crate::exchange::{Answer, Entrance, Exchange};
use crate::fault::{Fault, OurFault, PeerFault};
use crate::headers;
use crate::introduction::Introduction;
use crate::permit::{AskedRequest, Permit, Policy};
use crate::tls::InboundTerms;
use crate::way::Told;

/// Room for most heads, in one allocation.
const USUAL_HEAD: usize = 1024;

/// The rules of one direction: what may go on, in which form, and where.
pub(crate) trait Desk: Send + Sync {
    /// The proof that a request may go on.
    type Pass: Send + Sync;

    /// Which fields of a response go back.
    const RETURNS: fn(&ResponseHead, &[u8]) -> bool;

    /// What becomes of a connection after an answer of ours to a request that was let in.
    const AFTER_FAULT: AfterFault;

    fn entrance(&self) -> &Entrance;

    /// Decides about one request. What is not admitted is answered.
    fn admit(
        &self,
        head: RequestHead,
        protocol: &'static str,
        policy: &mut Policy,
        limits: &Limits,
    ) -> Result<Admitted<Self::Pass>, Answer>;

    /// Brings the bounds of its requests up to date.
    fn renew(&self, limits: &mut Arc<Limits>);

    /// Carries an admitted request on and waits for the head of the response.
    ///
    /// Dropping the future ends the request.
    fn send(
        &self,
        pass: &Self::Pass,
        onward: &Onward,
        near: &mut (impl Near + Send),
    ) -> impl Future<Output = Result<(ResponseHead, Call), Fault>> + Send;

    /// Answers what could not even be read as a request.
    fn refuse(&self, fault: PeerFault, protocol: &'static str) -> Answer {
        Exchange::begin(self.entrance(), None, protocol).answer(fault.into())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterFault {
    GoesOn,
    Ends,
}

/// A request that may go on, in the form in which it will.
#[derive(Debug)]
pub(crate) struct Admitted<P> {
    pub(crate) pass: P,
    pub(crate) onward: Onward,
    pub(crate) exchange: Exchange,
}

/// What every request of one peer's connection goes through.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    pub(crate) entrance: Entrance,
    pub(crate) terms: Arc<InboundTerms>,
    /// What the app is told of this connection before anything else.
    pub(crate) introduction: Option<Introduction>,
    /// The way to an app of HTTP/2.
    pub(crate) trunk: Option<Arc<h2c::Trunk>>,
}

impl Desk for Gate {
    type Pass = Permit;

    const RETURNS: fn(&ResponseHead, &[u8]) -> bool = headers::returns;
    const AFTER_FAULT: AfterFault = AfterFault::GoesOn;

    fn entrance(&self) -> &Entrance {
        &self.entrance
    }

    fn admit(
        &self,
        head: RequestHead,
        protocol: &'static str,
        policy: &mut Policy,
        limits: &Limits,
    ) -> Result<Admitted<Permit>, Answer> {
        // 1. One spelling of the path (P1–P3).
        let caller = &self.entrance.caller;
        let (path, refused) = match path::normalize(head.path(), &self.terms.paths) {
            Ok(Cow::Borrowed(_)) => (None, None),
            Ok(Cow::Owned(path)) => (Some(path), None),
            Err(error) => (None, Some(PeerFault::from(error))),
        };
        let (told, unbelievable) = match self.told(&head, policy) {
            Ok(told) => (told, None),
            Err(fault) => (None, Some(fault)),
        };
        let request = Arc::new(self.entrance.asked(head, path).told(told));
        let mut exchange = Exchange::begin(&self.entrance, Some(request.clone()), protocol);
        if let Some(fault) = refused.map(Fault::from).or(unbelievable) {
            return Err(exchange.answer(fault));
        }

        // 2. May it: asked with what the app will see, of the newest policy.
        let permit = match policy.authorize(&exchange.ask()) {
            Ok(permit) => permit,
            Err(denied) => return Err(exchange.answer(denied.into())),
        };
        exchange.let_in(permit.allowed().clone());
        if let Framing::Length(length) = request.head().framing()
            && length > limits.body_bytes
        {
            return Err(exchange.answer(PeerFault::SendsTooMuch.into()));
        }

        // 3. As it goes on: what the peer may say, and who it is, which we say (H1).
        let said = request.said(caller);
        let speaks = self.terms.app_protocol;
        match onward(&request, said, headers::passes, speaks) {
            Ok(onward) => Ok(Admitted {
                pass: permit,
                onward,
                exchange,
            }),
            Err(fault) => Err(exchange.answer(fault)),
        }
    }

    fn renew(&self, limits: &mut Arc<Limits>) {
        let newest = self.entrance.node.terms.load();
        // Where the port is gone, it is as it was.
        let port = newest.inbound.get(&self.terms.listen);
        let newest = &port.unwrap_or(&self.terms).limits;
        if !Arc::ptr_eq(newest, limits) {
            *limits = newest.clone();
        }
    }

    async fn send(
        &self,
        permit: &Permit,
        onward: &Onward,
        near: &mut (impl Near + Send),
    ) -> Result<(ResponseHead, Call), Fault> {
        let node = &self.entrance.node;
        let _unanswered = (
            unanswered(
                self.entrance
                    .caller
                    .share
                    .as_ref()
                    .map(|room| &*room.unanswered),
            )?,
            unanswered(Some(&node.unanswered))?,
        );
        let introduction = self.introduction.as_ref();
        let (app, share) = (&self.terms.app, self.entrance.caller.share.as_ref());
        match &self.trunk {
            Some(trunk) => {
                let way = h2c::Way {
                    app,
                    permit,
                    introduction,
                    share,
                };
                // Boxed: who has another app carries no room for it.
                let sent = Box::pin(trunk.send(way, onward, near)).await;
                sent.map(|(head, call)| (head, Call::from(call)))
            }
            None => {
                let share = match crowd::room_at_once(share) {
                    Some(room) => {
                        // Of one whose peer has gone already the app hears nothing.
                        unless_it_has_ended(near).await?;
                        room
                    }
                    None => {
                        let deadline = Deadline::after(node.limits.establish);
                        Box::pin(unless_it_ends(near, crowd::room(share, deadline))).await??
                    }
                };
                let sent = app.send(permit, introduction, onward, near).await;
                sent.map(|(head, call)| (head, call.sharing(share)))
            }
        }
    }
}

impl Gate {
    /// What this request brings that is believed (H1): by the newest rules of the port, which may be others than when
    /// the connection began.
    fn told(&self, head: &RequestHead, policy: &mut Policy) -> Result<Option<Told>, Fault> {
        let Entrance { node, caller, .. } = &self.entrance;
        match self.terms.newest_forwarded(policy.newest()) {
            Some(rules) if *rules != self.terms.forwarded => {
                let own = node.terms.load();
                let telling = caller.telling_by(own.svid.id(), rules);
                let telling = telling.map_err(|error| OurFault::Unwritable(error.to_string()))?;
                Ok(Some(telling.into_told(head).map_err(PeerFault::from)?))
            }
            Some(_) | None => Ok(caller.telling().of_request(head).map_err(PeerFault::from)?),
        }
    }
}

/// A place among the requests whose response has not begun, until it has.
fn unanswered(room: Option<&Semaphore>) -> Result<Option<SemaphorePermit<'_>>, OurFault> {
    let taken = room.map(Semaphore::try_acquire).transpose();
    taken.map_err(|_| OurFault::Overrun)
}

/// Writes a head in the form in which it goes on: its own fields that pass, then what we say of it.
pub(crate) fn onward(
    request: &AskedRequest,
    said: &Fields,
    passes: fn(&RequestHead, &[u8]) -> bool,
    speaks: AppProtocol,
) -> Result<Onward, Fault> {
    let head = request.head();
    let framing = match head.framing() {
        framing @ (Framing::None | Framing::Length(_)) => framing,
        // Only a response may run until the end of its connection.
        Framing::Chunked | Framing::UntilClose => Framing::Chunked,
    };
    let unexpected = matches!(
        head.method(),
        "GET" | "HEAD" | "OPTIONS" | "TRACE" | "DELETE"
    );
    let alone = unexpected && !matches!(framing, Framing::None | Framing::Length(0));
    let unwritable = |error: WriteError| OurFault::Unwritable(error.to_string());
    Ok(Onward {
        head: match speaks {
            AppProtocol::Http1 => {
                let written = write(request, said, passes, framing, alone);
                Head::Http1(written.map_err(unwritable)?)
            }
            AppProtocol::H2c => Head::Http2(Box::new(h2c::request(request, said, passes)?)),
        },
        framing,
        asks: match head.method() {
            "HEAD" => Asks::HeadOnly,
            _ => Asks::Whole,
        },
        idempotent: matches!(
            head.method(),
            "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE"
        ),
        // HTTP/2 knows none: the app is asked as if the peer had not.
        upgrades: head.upgrade().is_some() && speaks == AppProtocol::Http1,
        alone,
    })
}

fn write(
    request: &AskedRequest,
    said: &Fields,
    passes: fn(&RequestHead, &[u8]) -> bool,
    framing: Framing,
    alone: bool,
) -> Result<BytesMut, WriteError> {
    let (head, trace) = (request.head(), request.trace());
    let mut out = BytesMut::with_capacity(USUAL_HEAD);
    let mut writer = HeadWriter::request(&mut out, head.method(), request.path(), head.query())?;
    writer.field("host", request.host().as_bytes())?;
    for field in head.fields().iter() {
        // The length is said once, below.
        let name = field.name_bytes();
        let passes = passes(head, name) && trace.passes(name);
        if passes && !field.is("content-length") {
            writer.copy(field);
        }
    }
    for field in said.iter() {
        writer.copy(field);
    }
    if let Some(parent) = trace.said() {
        writer.field(fender_wire::trace::PARENT, parent.as_bytes())?;
    }
    if let Some(protocol) = head.upgrade() {
        writer.upgrade(protocol)?;
    }
    writer.framing(framing);
    if alone {
        writer.close();
    }
    writer.end();
    Ok(out)
}
