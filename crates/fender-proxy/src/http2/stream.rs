//! One stream: a request and its response.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use fender_identity::Peer;
use fender_wire::head::{Http2Body, Http2Request};
use fender_wire::{Fields, RequestHead, ResponseHead};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response, StatusCode};
use pin_project_lite::pin_project;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::piece::Piece;
use super::streams::Times;
use super::{PROTOCOL, grpc};
use crate::Limits;
use crate::call::{Call, Near, Step};
use crate::exchange::{Answer, Exchange};
use crate::fault::{Fault, OurFault, PeerFault, UpstreamFault};
use crate::headers;
use crate::inflow::Inflow;
use crate::permit::Policy;
use crate::request::{Admitted, Desk, Gate};

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Answered,
    /// By the peer, before its response had begun.
    GivenUp,
}

/// The way back of one stream.
pub(super) struct Back {
    pub(super) respond: SendResponse<Piece>,
    /// For what its connection holds of responses.
    pub(super) room: Arc<Semaphore>,
    /// What it waits with for moments.
    pub(super) times: Times,
}

/// Frames of a body that are written to the app together: of 16 KiB, the most there is in one, what one turn brings.
const GATHERED: usize = 4;

/// A body that is taken as its request goes on, and parked by the stream while it does not.
type Body = Arc<Mutex<Inflow>>;

/// Serves one stream to its end, whichever side brings it.
pub(super) fn serve(
    gate: &Gate,
    policy: Policy,
    limits: Arc<Limits>,
    request: Request<RecvStream>,
    back: Back,
) -> impl Future<Output = Ended> {
    let (parts, body) = request.into_parts();
    let body = (!body.is_end_stream()).then(|| Arc::new(Mutex::new(Inflow::new(body))));
    Served {
        work: converse(gate, policy, limits, parts, body.clone(), back),
        body,
    }
}

pin_project! {
    /// The work on a request, and its body, if it has one.
    struct Served<F> {
        #[pin]
        work: F,
        body: Option<Body>,
    }
}

impl<F: Future> Future for Served<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let ended = this.work.poll(cx);
        if ended.is_pending()
            && let Some(body) = this.body
        {
            locked(body).park(cx);
        }
        ended
    }
}

/// Nobody else waits for it: both are in one task.
fn locked(body: &Body) -> MutexGuard<'_, Inflow> {
    body.lock().unwrap_or_else(PoisonError::into_inner)
}

#[expect(
    clippy::manual_async_fn,
    reason = "an `async fn` holds its arguments twice"
)]
fn converse(
    gate: &Gate,
    mut policy: Policy,
    limits: Arc<Limits>,
    parts: http::request::Parts,
    body: Option<Body>,
    back: Back,
) -> impl Future<Output = Ended> {
    async move {
        let Back {
            mut respond,
            room,
            times,
        } = back;
        let told = match grpc::asks(&parts.method, &parts.headers) {
            true => Told::Grpc,
            false => Told::Http,
        };
        let head = match read(&parts, body.is_some(), &limits) {
            Ok(head) => head,
            Err(fault) => {
                answer(&mut respond, &gate.refuse(fault, PROTOCOL), told);
                return Ended::Answered;
            }
        };
        drop(parts);
        let Admitted {
            pass: permit,
            onward,
            mut exchange,
        } = match gate.admit(head, PROTOCOL, &mut policy, &limits) {
            Ok(admitted) => admitted,
            Err(refused) => {
                answer(&mut respond, &refused, told);
                return Ended::Answered;
            }
        };
        let mut turn = Turn {
            respond_by: exchange
                .began()
                .checked_add(limits.response.min(limits.request)),
            end_by: exchange.began().checked_add(limits.request),
            exchange: &mut exchange,
            policy: &mut policy,
            body,
            ended: false,
            way: Way::Unanswered(&mut respond),
            room,
            times,
            limits: &limits,
            stalled: None,
        };
        match gate.send(&permit, &onward, &mut turn).await {
            Ok((head, _)) if head.status() == StatusCode::SWITCHING_PROTOCOLS => {
                let why = "it changed protocols unasked".to_owned();
                let fault = UpstreamFault::Breaks(why).into();
                answer(&mut respond, &exchange.answer(fault), told);
            }
            Ok((head, mut call)) => match turn.respond(&head, &mut call).await {
                Ok(()) => exchange.succeed(),
                Err(fault) => {
                    respond.send_reset(Reason::INTERNAL_ERROR);
                    exchange.fail(fault);
                }
            },
            // It was reset, and nobody waits for an answer.
            Err(fault @ Fault::Peer(PeerFault::Abandons)) => {
                exchange.fail(fault);
                return Ended::GivenUp;
            }
            Err(fault) => answer(&mut respond, &exchange.answer(fault), told),
        }
        Ended::Answered
    }
}

/// The request, if it can be read in one way only, whichever version carries it on.
fn read(
    parts: &http::request::Parts,
    has_body: bool,
    limits: &Limits,
) -> Result<RequestHead, PeerFault> {
    let request = Http2Request {
        method: parts.method.as_str(),
        target: parts
            .uri
            .path_and_query()
            .map_or("", |target| target.as_str()),
        authority: parts.uri.authority().map(|authority| authority.as_str()),
        body: match has_body {
            true => Http2Body::Follows,
            false => Http2Body::None,
        },
    };
    let fields = parts
        .headers
        .iter()
        .map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
    Ok(RequestHead::of_http2(request, fields, &limits.head())?)
}

/// In which form a peer understands an answer of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Http,
    Grpc,
}

/// Sends an answer of ours. A peer that has gone does not get it.
fn answer(respond: &mut SendResponse<Piece>, answer: &Answer, told: Told) {
    if told == Told::Grpc {
        if let Ok(response) = grpc::response(answer) {
            let _ = respond.send_response(response, true);
        }
        return;
    }
    let (name, id) = &answer.field;
    let response = Response::builder()
        .status(answer.status)
        .header(http::header::CONTENT_TYPE, "application/json")
        .header(http::header::CONTENT_LENGTH, answer.text.len())
        .header(http::header::CACHE_CONTROL, headers::NO_STORE)
        .header(*name, id)
        .body(());
    if let Ok(response) = response
        && let Ok(mut stream) = respond.send_response(response, false)
    {
        let text = Bytes::copy_from_slice(answer.text.as_bytes());
        let _ = stream.send_data(Piece::of_ours(text), true);
    }
}

/// One request's turn on its stream.
struct Turn<'a> {
    exchange: &'a mut Exchange,
    policy: &'a mut Policy,
    body: Option<Body>,
    /// The end of it was taken.
    ended: bool,
    way: Way<'a>,
    room: Arc<Semaphore>,
    /// By when the response must have begun.
    respond_by: Option<Instant>,
    /// By when it must have ended.
    end_by: Option<Instant>,
    times: Times,
    limits: &'a Limits,
    /// Until when a body is awaited.
    stalled: Option<Instant>,
}

/// The way back.
enum Way<'a> {
    Unanswered(&'a mut SendResponse<Piece>),
    Answered(SendStream<Piece>),
    /// Everything is said.
    Closed,
}

impl Turn<'_> {
    /// Sends the response as it comes, as far as the peer makes room for it.
    async fn respond(&mut self, head: &ResponseHead, call: &mut Call) -> Result<(), Fault> {
        self.respond_by = None;
        self.exchange.answered(head.status());
        let response = response(head)?;
        let Way::Unanswered(respond) = &mut self.way else {
            return Ok(());
        };
        let ends = call.is_done();
        let sent = respond.send_response(response, ends).map_err(gone)?;
        self.way = match ends {
            true => Way::Closed,
            false => Way::Answered(sent),
        };
        loop {
            match poll_fn(|cx| call.poll_step(self, cx)).await? {
                Step::Data(data) => {
                    self.exchange.sent(data.len());
                    self.send(data, call).await?;
                }
                Step::End(trailers) => {
                    let trailers = headers::returning_trailers(trailers, head, headers::returns);
                    if let Way::Answered(stream) = &mut self.way {
                        match trailers.is_empty() {
                            true => stream.send_data(Piece::of_ours(Bytes::new()), true),
                            false => stream.send_trailers(headers::map(&trailers)),
                        }
                        .map_err(gone)?;
                    }
                    self.way = Way::Closed;
                    return Ok(());
                }
            }
        }
    }

    async fn send(&mut self, mut data: Bytes, call: &mut Call) -> Result<(), Fault> {
        let ends = call.is_done();
        while !data.is_empty() {
            let window = poll_fn(|cx| self.poll_window(data.len(), call, cx)).await?;
            let size = window.min(data.len()).min(self.limits.unwritten as usize);
            let room = self.room(size, call).await?;
            let piece = Piece::new(data.split_to(size), room);
            let Way::Answered(stream) = &mut self.way else {
                return Err(PeerFault::Abandons.into());
            };
            let last = ends && data.is_empty();
            stream.send_data(piece, last).map_err(gone)?;
            if last {
                self.way = Way::Closed;
            }
        }
        Ok(())
    }

    /// Room on the connection for so much that is not written yet.
    async fn room(&mut self, size: usize, call: &mut Call) -> Result<OwnedSemaphorePermit, Fault> {
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        if let Ok(room) = self.room.clone().try_acquire_many_owned(size) {
            return Ok(room);
        }
        // Boxed: most streams never wait for it.
        let mut waits = Box::pin(self.room.clone().acquire_many_owned(size));
        poll_fn(|cx| match waits.as_mut().poll(cx) {
            Poll::Ready(Ok(room)) => {
                self.respond_by = None;
                Poll::Ready(Ok(room))
            }
            Poll::Ready(Err(_)) => Poll::Ready(Err(PeerFault::Abandons.into())),
            Poll::Pending => self.poll_stuck(call, cx).map(Err),
        })
        .await
    }

    /// How much the peer takes. While it takes nothing the rest of the request still goes on.
    fn poll_window(
        &mut self,
        wanted: usize,
        call: &mut Call,
        cx: &mut Context<'_>,
    ) -> Poll<Result<usize, Fault>> {
        let Way::Answered(stream) = &mut self.way else {
            return Poll::Ready(Err(PeerFault::Abandons.into()));
        };
        stream.reserve_capacity(wanted);
        loop {
            let room = stream.capacity();
            if room > 0 {
                self.respond_by = None;
                return Poll::Ready(Ok(room));
            }
            match stream.poll_capacity(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(gone(error))),
                Poll::Ready(None) => return Poll::Ready(Err(PeerFault::Abandons.into())),
                Poll::Pending => break,
            }
        }
        self.poll_stuck(call, cx).map(Err)
    }

    /// Ready when nothing moved for too long, or the request must end.
    fn poll_stuck(&mut self, call: &mut Call, cx: &mut Context<'_>) -> Poll<Fault> {
        if let Poll::Ready(fault) = call.poll_while_stuck(self, cx) {
            return Poll::Ready(fault);
        }
        let until = *self
            .respond_by
            .get_or_insert_with(|| Instant::now() + self.limits.stall);
        self.times.poll(until).map(|()| PeerFault::Stalls.into())
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Step, Fault>> {
        let failed = |error: h2::Error| match error.is_remote() && error.is_reset() {
            true => Fault::from(PeerFault::Abandons),
            false => PeerFault::Http2(error.to_string()).into(),
        };
        let Some(body) = self.body.as_ref().filter(|_| !self.ended) else {
            return Poll::Ready(Ok(Step::End(Fields::default())));
        };
        let mut inflow = locked(body);
        match ready!(inflow.poll_data(cx)) {
            Some(Ok(data)) => {
                let within = self.exchange.received(data.len(), self.limits);
                return Poll::Ready(within.map(|()| Step::Data(data)).map_err(Fault::from));
            }
            Some(Err(error)) => return Poll::Ready(Err(failed(error))),
            None => {}
        }
        let trailers = ready!(inflow.poll_trailers(cx)).map_err(failed)?;
        drop(inflow);
        self.ended = true;
        let Some(trailers) = trailers else {
            return Poll::Ready(Ok(Step::End(Fields::default())));
        };
        let trailers = trailers.iter();
        let trailers = trailers.map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
        let passing = self.exchange.passing_trailers(trailers, self.policy);
        Poll::Ready(Ok(Step::End(passing)))
    }
}

impl Near for Turn<'_> {
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Step, Fault>> {
        if let Poll::Ready(step) = self.poll_piece(cx) {
            self.stalled = None;
            return Poll::Ready(step);
        }
        // Once it is answered, both sides converse.
        let Way::Unanswered(_) = &self.way else {
            return Poll::Pending;
        };
        let until = *self
            .stalled
            .get_or_insert_with(|| Instant::now() + self.limits.stall);
        self.times
            .poll(until)
            .map(|()| Err(PeerFault::Stalls.into()))
    }

    fn pieces(&self) -> usize {
        GATHERED
    }

    fn passed_on(&mut self) {
        if let Some(body) = &self.body {
            locked(body).passed_on();
        }
        // Until now it may have had no room to send into: its time begins anew.
        self.stalled = None;
    }

    fn ended(&mut self) -> Option<Fault> {
        self.exchange.ended_by(self.policy)
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Fault> {
        if let Some(fault) = self.ended() {
            return Poll::Ready(fault);
        }
        let reset = match &mut self.way {
            Way::Unanswered(respond) => respond.poll_reset(cx),
            Way::Answered(stream) => stream.poll_reset(cx),
            Way::Closed => Poll::Pending,
        };
        if reset.is_ready() {
            return Poll::Ready(PeerFault::Abandons.into());
        }
        match (&self.way, self.respond_by) {
            (Way::Unanswered(_), Some(until)) => self
                .times
                .poll(until)
                .map(|()| UpstreamFault::StaysSilent.into()),
            (Way::Answered(_) | Way::Closed, _) => match self.end_by {
                Some(until) => self.times.poll(until).map(|()| PeerFault::Outlives.into()),
                None => Poll::Pending,
            },
            (Way::Unanswered(_), None) => Poll::Pending,
        }
    }

    fn takes(&mut self, _: &Arc<Peer>) -> bool {
        true
    }
}

/// A stream that cannot be written to any more: the peer reset it, or the connection is gone.
fn gone(_: h2::Error) -> Fault {
    PeerFault::Abandons.into()
}

fn response(head: &ResponseHead) -> Result<Response<()>, Fault> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(head.status())
        .map_err(|error| OurFault::Unwritable(error.to_string()))?;
    *response.headers_mut() = HeaderMap::with_capacity(head.fields().len());
    let map = response.headers_mut();
    for field in head.fields().iter() {
        // A 204 has no length (RFC 9110 §8.6).
        let void = head.status() == StatusCode::NO_CONTENT && field.is("content-length");
        if headers::returns(head, field.name_bytes()) && !void {
            headers::append(map, head.fields(), field);
        }
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each stream holds for as long as it is open, besides what is on the heap: it is allocated, moved and freed with
    /// each request. It is a budget, like that of a connection.
    #[test]
    fn an_open_stream_is_small() {
        fn size<F>(
            _: impl Fn(&'static Gate, Policy, Arc<Limits>, Request<RecvStream>, Back) -> F,
        ) -> usize {
            size_of::<F>()
        }
        let stream = size(serve);
        assert!(stream <= 2240, "a stream: {stream} bytes");
    }
}
