//! One request's turn on its connection: its body on the way on, its response on the way back.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::BufMut;
use fender_identity::Peer as Identity;
use fender_wire::body::EncodeError;
use fender_wire::{BodyLimits, Decoder, Encoder, Fields, Frame, Framing, ResponseHead};
use tokio::time::Instant;

use super::peer::Peer;
use super::{Dialect, Returns, Then, Trailers, hangs_up, write_head};
use crate::Limits;
use crate::call::{Call, Near, Step};
use crate::exchange::Exchange;
use crate::fault::{Fault, OurFault, PeerFault, UpstreamFault};
use crate::headers;
use crate::patience::Patience;
use crate::permit::Policy;

/// What is read ahead while a response is awaited, to notice a peer that left.
const READ_AHEAD: usize = 16 * 1024;

#[derive(Debug)]
pub(super) struct Turn<'a> {
    peer: &'a mut Peer,
    policy: &'a mut Policy,
    exchange: &'a mut Exchange,
    limits: &'a Limits,
    decoder: Decoder,
    body: Body,
    /// By when the response must have begun, and once it has, by when it must have ended.
    due: Option<Instant>,
    responding: bool,
    /// Since when a body is awaited, and what is waited with.
    stalled: Option<(Instant, Patience)>,
}

/// How far the body of a request has been taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    Open,
    Done,
    /// Where the next request would begin cannot be known.
    Broken,
}

impl<'a> Turn<'a> {
    pub(super) fn new(
        peer: &'a mut Peer,
        policy: &'a mut Policy,
        exchange: &'a mut Exchange,
        framing: Framing,
        limits: &'a Limits,
    ) -> Self {
        let due = exchange
            .began()
            .checked_add(limits.response.min(limits.request));
        let decoder = Decoder::new(framing, BodyLimits::default());
        Self {
            peer,
            policy,
            exchange,
            limits,
            body: match decoder.is_done() {
                true => Body::Done,
                false => Body::Open,
            },
            decoder,
            due,
            responding: false,
            stalled: None,
        }
    }

    pub(super) fn body(&self) -> Body {
        self.body
    }

    /// What is unread of the request, where that can be told.
    pub(super) fn rest(self) -> Option<Decoder> {
        (self.body == Body::Open).then_some(self.decoder)
    }

    pub(super) fn into_parts(self) -> (&'a mut Peer, &'a mut Policy, &'a mut Exchange) {
        (self.peer, self.policy, self.exchange)
    }

    /// Writes the response as it comes. What is there is gathered into few writes; what is not there
    /// yet is not waited for. While a write is stuck the rest of the request still goes on, so neither
    /// side can hold the other.
    ///
    /// After an error the connection is only good for dropping: there is no other way to tell.
    pub(super) async fn respond(
        &mut self,
        head: &ResponseHead,
        call: &mut Call,
        returns: Returns,
        dialect: Dialect,
        wished: Then,
    ) -> Result<Then, Fault> {
        self.due = self.exchange.began().checked_add(self.limits.request);
        self.responding = true;
        self.exchange.answered(head.status());
        let (framing, then) = (dialect.framing(head), dialect.then(wished));
        write_head(self.peer.out.buffer(), head, returns, framing, then);
        let unwritable = |error: EncodeError| OurFault::Unwritable(error.to_string());
        let mut encoder = Encoder::new(framing);
        let mut ended = false;
        let mut stuck: Option<Stuck> = None;
        poll_fn(|cx| {
            loop {
                while !ended && self.peer.out.has_room(1) {
                    match call.poll_step(self, cx)? {
                        Poll::Ready(Step::Data(data)) => {
                            self.exchange.sent(data.len());
                            self.peer.out.put(encoder.data(data).map_err(unwritable)?);
                        }
                        Poll::Ready(Step::End(trailers)) => {
                            let trailers = match dialect.trailers {
                                Trailers::Taken => {
                                    headers::returning_trailers(trailers, head, returns)
                                }
                                Trailers::LeftOut => Fields::default(),
                            };
                            let end = encoder.end(&trailers).map_err(unwritable)?;
                            self.peer.out.buffer().put_slice(&end);
                            ended = true;
                        }
                        Poll::Pending => break,
                    }
                }
                if self.peer.out.is_empty() {
                    return match ended {
                        true => Poll::Ready(Ok(then)),
                        false => Poll::Pending,
                    };
                }
                match self.peer.out.poll_write(&mut self.peer.io, cx) {
                    Poll::Ready(Ok(())) => stuck = None,
                    Poll::Ready(Err(error)) => {
                        return Poll::Ready(Err(PeerFault::from(error).into()));
                    }
                    Poll::Pending => {
                        if let Poll::Ready(fault) = call.poll_while_stuck(self, cx) {
                            return Poll::Ready(Err(fault));
                        }
                        let written = self.peer.out.written();
                        stuck.take_if(|stuck| stuck.written != written);
                        let stuck = stuck.get_or_insert_with(|| Stuck::after(written, self.limits));
                        ready!(stuck.patience.poll(stuck.until, cx));
                        return Poll::Ready(Err(PeerFault::Stalls.into()));
                    }
                }
            }
        })
        .await
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Step, PeerFault>> {
        loop {
            match self.decoder.decode(&mut self.peer.read)? {
                Frame::Data(data) => {
                    self.stalled = None;
                    return Poll::Ready(Ok(Step::Data(data)));
                }
                Frame::End(trailers) if trailers.is_empty() => {
                    return Poll::Ready(Ok(Step::End(trailers)));
                }
                Frame::End(trailers) => {
                    let trailers = trailers.iter();
                    let trailers = trailers.map(|field| (field.name().as_bytes(), field.value()));
                    let passing = self.exchange.passing_trailers(trailers, self.policy);
                    return Poll::Ready(Ok(Step::End(passing)));
                }
                Frame::NeedMore => {}
            }
            match self.peer.poll_fill(cx) {
                Poll::Ready(Ok(0)) => {
                    self.decoder.end_of_stream()?;
                    return Poll::Ready(Err(PeerFault::Abandons));
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Pending => {
                    let (until, patience) = self.stalled.get_or_insert_with(|| {
                        (Instant::now() + self.limits.stall, Patience::default())
                    });
                    return patience.poll(*until, cx).map(|()| Err(PeerFault::Stalls));
                }
            }
        }
    }

    /// Ready once the peer has closed or lost the connection. Reads a little ahead to know.
    ///
    /// While the body is open, the body notices.
    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<PeerFault> {
        if self.body != Body::Done {
            return Poll::Pending;
        }
        while self.peer.read.len() < READ_AHEAD {
            match ready!(self.peer.poll_fill(cx)) {
                Ok(0) => return Poll::Ready(PeerFault::Abandons),
                Ok(_) => {}
                Err(error) if hangs_up(&error) => return Poll::Ready(PeerFault::Abandons),
                Err(error) => return Poll::Ready(error.into()),
            }
        }
        Poll::Pending
    }
}

/// A write that waits for the peer.
struct Stuck {
    written: u64,
    until: Instant,
    patience: Patience,
}

impl Stuck {
    fn after(written: u64, limits: &Limits) -> Self {
        Self {
            written,
            until: Instant::now() + limits.stall,
            patience: Patience::default(),
        }
    }
}

impl Near for Turn<'_> {
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Step, Fault>> {
        let step = match ready!(self.poll_piece(cx)) {
            Ok(step) => step,
            Err(fault) => {
                self.body = Body::Broken;
                return Poll::Ready(Err(fault.into()));
            }
        };
        match &step {
            Step::Data(data) => {
                if let Err(fault) = self.exchange.received(data.len(), self.limits) {
                    self.body = Body::Broken;
                    return Poll::Ready(Err(fault.into()));
                }
            }
            Step::End(_) => self.body = Body::Done,
        }
        Poll::Ready(Ok(step))
    }

    fn ended(&mut self) -> Option<Fault> {
        self.exchange.ended_by(self.policy)
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Fault> {
        if let Some(fault) = self.ended() {
            return Poll::Ready(fault);
        }
        if let Poll::Ready(fault) = self.poll_left(cx) {
            return Poll::Ready(fault.into());
        }
        let Some(due) = self.due else {
            return Poll::Pending;
        };
        ready!(self.peer.patience.poll(due, cx));
        Poll::Ready(match self.responding {
            true => PeerFault::Outlives.into(),
            false => UpstreamFault::StaysSilent.into(),
        })
    }

    fn takes(&mut self, far: &Arc<Identity>) -> bool {
        if self.policy.denies(far).is_some() {
            return false;
        }
        self.exchange.reaches(far.clone());
        true
    }
}
