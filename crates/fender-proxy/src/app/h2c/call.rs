//! One request on its stream to an app of HTTP/2, and its response on the way back.
//!
//! It has no task: whoever asked drives it, both of its directions at once. A body moves as far as the other
//! side makes room for it: of a request, one piece is held and what h2 has of it; of a response, what fits the
//! window of its stream. The window of the connection has room for all of its streams, so that none of them
//! waits for another to be read.
//!
//! A response that HTTP/1 could not say in one way is none: a change of protocols, a length that is not kept.
//! Where a response has no body, what comes all the same is thrown away with its stream. Trailers that may only
//! be headers are left out.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use fender_runtime::deadline::Deadline;
use fender_wire::body::is_forbidden_trailer;
use fender_wire::head::Http2Body;
use fender_wire::{Fields, Framing, ResponseHead, head};
use h2::client::ResponseFuture;
use h2::{Reason, SendStream};
use http::{HeaderMap, Request};

use super::usage::Use;
use super::{Open, Room, breaks};
use crate::Limits;
use crate::call::{Asks, Failed, Fate, Near, Onward, Step};
use crate::fault::{Fault, UpstreamFault};
use crate::headers;
use crate::inflow::Inflow;

/// A request that is being sent and answered, on one stream.
#[derive(Debug)]
pub(crate) struct Call {
    /// None once the end is sent, or the app takes no more.
    sending: Option<SendStream<Bytes>>,
    /// Of the request, taken and without room yet.
    held: Bytes,
    /// Something of the request's body, or its end, was taken from the peer.
    taken: bool,
    receiving: Receiving,
    head_only: bool,
    limits: head::Limits,
    _held: (Use, Room),
}

#[derive(Debug)]
enum Receiving {
    Head(ResponseFuture),
    Body(Inflow),
    Done,
}

impl Call {
    /// Waits for room for one more request, and sends the head.
    pub(super) async fn begin(
        open: Open,
        held: (Use, Room),
        onward: &Onward,
        request: &Request<()>,
        limits: &Limits,
        deadline: Deadline,
    ) -> Result<Self, Failed> {
        let unsent = |fault| Failed {
            fault,
            fate: Fate::Unsent,
        };
        let Open {
            mut sender, room, ..
        } = open;
        match deadline.bound(room.acquire()).await {
            // It comes back when the head has left.
            Ok(Ok(room)) => room.forget(),
            Ok(Err(_)) => return Err(unsent(breaks("the connection has ended"))),
            Err(_) => {
                return Err(Failed {
                    fault: UpstreamFault::StaysSilent.into(),
                    fate: Fate::Other,
                });
            }
        }
        let ends = matches!(onward.framing, Framing::None | Framing::Length(0));
        let (response, stream) = sender
            .send_request(request.clone(), ends)
            .map_err(|error| unsent(breaks(&error)))?;
        Ok(Self {
            sending: (!ends).then_some(stream),
            held: Bytes::new(),
            taken: false,
            receiving: Receiving::Head(response),
            head_only: onward.asks == Asks::HeadOnly,
            _held: held,
            limits: limits.head(),
        })
    }

    /// Whether anything of the request's body was taken from the peer.
    pub(super) fn has_taken(&self) -> bool {
        self.taken
    }

    /// Sends what there is to send, and waits for the final head of the response.
    pub(super) fn poll_head(
        &mut self,
        near: &mut impl Near,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ResponseHead, Failed>> {
        let other = |fault| Failed {
            fault,
            fate: Fate::Other,
        };
        if let Err(fault) = self.poll_drive(near, cx) {
            return Poll::Ready(Err(other(fault)));
        }
        let Receiving::Head(response) = &mut self.receiving else {
            return Poll::Ready(Err(other(breaks("its response was taken already"))));
        };
        let response = match Pin::new(response).poll(cx) {
            Poll::Pending => return near.poll_end(cx).map(|fault| Err(other(fault))),
            Poll::Ready(Ok(response)) => response,
            Poll::Ready(Err(error)) => {
                let (fault, fate) = (breaks(&error), fate(&error));
                return Poll::Ready(Err(Failed { fault, fate }));
            }
        };
        let (parts, body) = response.into_parts();
        let follows = match body.is_end_stream() {
            true => Http2Body::None,
            false => Http2Body::Follows,
        };
        let fields = parts
            .headers
            .iter()
            .map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
        let method = match self.head_only {
            true => "HEAD",
            false => "GET",
        };
        let status = parts.status.as_u16();
        let head = ResponseHead::of_http2(status, fields, method, follows, &self.limits);
        let head = head.map_err(|error| other(breaks(&error)))?;
        self.receiving = match head.framing() {
            // Its end may be on its way still.
            Framing::None => Receiving::Done,
            Framing::Length(_) | Framing::Chunked | Framing::UntilClose => {
                Receiving::Body(Inflow::new(body))
            }
        };
        Poll::Ready(Ok(head))
    }

    /// What ends the request first, then its way out.
    fn poll_drive(&mut self, near: &mut impl Near, cx: &mut Context<'_>) -> Result<(), Fault> {
        if let Some(fault) = near.ended() {
            return Err(fault);
        }
        match self.poll_send(near, cx) {
            Poll::Ready(Err(fault)) => Err(fault),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }

    /// Ready once the request is sent, or the app takes no more of it: then its answer says why.
    fn poll_send(&mut self, near: &mut impl Near, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        loop {
            let Some(stream) = &mut self.sending else {
                return Poll::Ready(Ok(()));
            };
            let goes_on = match self.held.is_empty() {
                true if stream.poll_reset(cx).is_ready() => false,
                true => match ready!(near.poll_body(cx))? {
                    Step::Data(data) => {
                        stream.reserve_capacity(data.len());
                        (self.held, self.taken) = (data, true);
                        true
                    }
                    Step::End(trailers) => {
                        self.taken = true;
                        // Where it cannot be sent, the stream is over, and so says the answer.
                        let _ = match trailers.is_empty() {
                            true => stream.send_data(Bytes::new(), true),
                            false => stream.send_trailers(headers::map(&trailers)),
                        };
                        false
                    }
                },
                false => match stream.capacity() {
                    0 => match ready!(stream.poll_capacity(cx)) {
                        Some(Ok(_)) => true,
                        Some(Err(_)) | None => false,
                    },
                    room => {
                        let piece = self.held.split_to(room.min(self.held.len()));
                        let goes_on = stream.send_data(piece, false).is_ok();
                        if self.held.is_empty() {
                            near.passed_on();
                        }
                        goes_on
                    }
                },
            };
            if !goes_on {
                self.sending = None;
                // What the app does not want is held no more either.
                self.held = Bytes::new();
                near.passed_on();
            }
        }
    }

    /// The next piece of the response's body; after the end, the end again. The rest of the request
    /// goes on meanwhile.
    pub(crate) fn poll_step(
        &mut self,
        near: &mut impl Near,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Step, Fault>> {
        self.poll_drive(near, cx)?;
        match self.poll_receive(cx) {
            Poll::Ready(step) => Poll::Ready(step),
            Poll::Pending => near.poll_end(cx).map(Err),
        }
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<Step, Fault>> {
        let Receiving::Body(body) = &mut self.receiving else {
            return Poll::Ready(Ok(Step::End(Fields::default())));
        };
        match ready!(body.poll_data(cx)) {
            Some(Ok(data)) => {
                // How much of responses is held is counted on the way back.
                body.passed_on();
                return Poll::Ready(Ok(Step::Data(data)));
            }
            Some(Err(error)) => return Poll::Ready(Err(breaks(&error))),
            None => {}
        }
        let trailers = ready!(body.poll_trailers(cx)).map_err(|error| breaks(&error))?;
        self.receiving = Receiving::Done;
        Poll::Ready(Ok(Step::End(trailers.map_or_else(Fields::default, fields))))
    }

    /// Lets the request go on while the response cannot be passed on; what comes of it meanwhile is parked.
    pub(crate) fn poll_while_stuck(
        &mut self,
        near: &mut impl Near,
        cx: &mut Context<'_>,
    ) -> Result<(), Fault> {
        if let Receiving::Body(body) = &mut self.receiving {
            body.park(cx);
        }
        self.poll_drive(near, cx)
    }

    /// Whether the whole response has been taken, and no trailers are to come.
    pub(crate) fn is_done(&self) -> bool {
        match &self.receiving {
            Receiving::Head(_) => false,
            Receiving::Body(body) => body.is_end_stream(),
            Receiving::Done => true,
        }
    }
}

/// What is known of a request that got no response.
fn fate(error: &h2::Error) -> Fate {
    if error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM)) {
        return Fate::Unsent;
    }
    match error.is_io() {
        true => Fate::Lost,
        false => Fate::Other,
    }
}

/// The trailers of a response. What may only be a header is left out.
fn fields(trailers: HeaderMap) -> Fields {
    let trailers = trailers.iter();
    let trailers = trailers.map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
    let passing = trailers.filter(|(name, _)| !is_forbidden_trailer(name));
    // They are fields of HTTP/2, so they fit.
    Fields::build(passing).unwrap_or_default()
}
