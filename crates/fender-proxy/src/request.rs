//! One HTTP request of a peer's, whatever version carried it: in order, what it is, may it, and on to
//! the app.
//!
//! The path is brought into one spelling and the fields are judged in their final form, so policy
//! judges exactly what the app will see. Nothing reaches the app without a [`Permit`]. Query strings
//! are forwarded untouched, and neither matched nor logged (P2).

use std::borrow::Cow;
use std::sync::Arc;

use bytes::BytesMut;
use fender_wire::write::{HeadWriter, WriteError};
use fender_wire::{Fields, Framing, RequestHead, ResponseHead, path};

use crate::call::{Asks, Call, Near, Onward};
use crate::exchange::{Answer, Entrance, Exchange};
use crate::fault::{Fault, OurFault, PeerFault};
use crate::headers;
use crate::introduction::Introduction;
use crate::permit::{AskedRequest, Permit, Policy};
use crate::tls::InboundTerms;

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
    ) -> Result<Admitted<Self::Pass>, Answer>;

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
    ) -> Result<Admitted<Permit>, Answer> {
        // 1. One spelling of the path (P1–P3).
        let (path, refused) = match path::normalize(head.path(), &self.terms.paths) {
            Ok(Cow::Borrowed(_)) => (None, None),
            Ok(Cow::Owned(path)) => (Some(path), None),
            Err(error) => (None, Some(PeerFault::from(error))),
        };
        let traces = self.entrance.caller.traces;
        let request = Arc::new(AskedRequest::new(head, path, traces));
        let mut exchange = Exchange::begin(&self.entrance, Some(request.clone()), protocol);
        if let Some(fault) = refused {
            return Err(exchange.answer(fault.into()));
        }

        // 2. May it: asked with what the app will see, of the newest policy.
        let permit = match policy.authorize(&exchange.ask()) {
            Ok(permit) => permit,
            Err(denied) => return Err(exchange.answer(denied.into())),
        };
        exchange.let_in(permit.allowed().clone());

        // 3. As it goes on: what the peer may say, and who it is, which we say (H1).
        let said = self.entrance.caller.said();
        match onward(&request, said, headers::passes) {
            Ok(onward) => Ok(Admitted {
                pass: permit,
                onward,
                exchange,
            }),
            Err(fault) => Err(exchange.answer(fault)),
        }
    }

    async fn send(
        &self,
        permit: &Permit,
        onward: &Onward,
        near: &mut (impl Near + Send),
    ) -> Result<(ResponseHead, Call), Fault> {
        let introduction = self.introduction.as_ref();
        self.terms
            .app
            .send(permit, introduction, onward, near)
            .await
    }
}

/// Writes a head in the form in which it goes on: its own fields that pass, then what we say of it.
pub(crate) fn onward(
    request: &AskedRequest,
    said: &Fields,
    passes: fn(&RequestHead, &[u8]) -> bool,
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
    let written = write(request, said, passes, framing, alone);
    Ok(Onward {
        head: written.map_err(|error| OurFault::Unwritable(error.to_string()))?,
        framing,
        asks: match head.method() {
            "HEAD" => Asks::HeadOnly,
            _ => Asks::Whole,
        },
        idempotent: matches!(
            head.method(),
            "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE"
        ),
        upgrades: head.upgrade().is_some(),
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
    if let Some(authority) = head.authority() {
        writer.field("host", authority.as_str().as_bytes())?;
    }
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
