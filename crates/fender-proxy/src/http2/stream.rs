//! One stream: a request and its response.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use fender_identity::Peer;
use fender_wire::head::{Http2Body, Http2Request};
use fender_wire::{Fields, RequestHead, ResponseHead, head};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use tokio::time::Instant;

use super::PROTOCOL;
use crate::Limits;
use crate::call::{Call, Near, Step};
use crate::exchange::{Answer, Exchange};
use crate::fault::{Fault, OurFault, PeerFault, UpstreamFault};
use crate::headers;
use crate::patience::Patience;
use crate::permit::{Denied, Policy};
use crate::request::{Admitted, Desk, Gate};

/// Serves one stream to its end, whichever side brings it.
pub(super) async fn serve(
    gate: &Gate,
    mut policy: Policy,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let limits = &gate.entrance.node.limits;
    let (parts, body) = request.into_parts();
    let has_body = !body.is_end_stream();
    let head = match read(&parts, has_body, limits) {
        Ok(head) => head,
        Err(fault) => return answer(&mut respond, &gate.refuse(fault, PROTOCOL)),
    };
    drop(parts);
    let Admitted {
        pass: permit,
        onward,
        mut exchange,
    } = match gate.admit(head, PROTOCOL, &mut policy) {
        Ok(admitted) => admitted,
        Err(refused) => return answer(&mut respond, &refused),
    };
    let ask = exchange.ask();
    let mut feed = policy.clone();
    let mut revoked = pin!(permit.revoked(&mut feed, &ask));
    let mut turn = Turn {
        respond_by: exchange.began().checked_add(limits.response),
        exchange: &mut exchange,
        policy: &mut policy,
        revoked: revoked.as_mut(),
        body: has_body.then_some(body),
        way: Way::Unanswered(&mut respond),
        patience: Patience::default(),
    };
    match gate.send(&permit, &onward, &mut turn).await {
        Ok((head, _)) if head.status() == StatusCode::SWITCHING_PROTOCOLS => {
            let why = "it changed protocols unasked".to_owned();
            let fault = UpstreamFault::Breaks(why).into();
            answer(&mut respond, &exchange.answer(fault));
        }
        Ok((head, mut call)) => match turn.respond(&head, &mut call, limits).await {
            Ok(()) => exchange.succeed(),
            Err(fault) => {
                respond.send_reset(Reason::INTERNAL_ERROR);
                exchange.fail(fault);
            }
        },
        // It was reset, and nobody waits for an answer.
        Err(fault @ Fault::Peer(PeerFault::Abandons)) => exchange.fail(fault),
        Err(fault) => answer(&mut respond, &exchange.answer(fault)),
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
    let limits = head::Limits {
        bytes: limits.head_bytes,
        headers: limits.head_fields,
        target: limits.target_bytes,
    };
    Ok(RequestHead::of_http2(request, fields, &limits)?)
}

/// Sends an answer of ours. A peer that has gone does not get it.
fn answer(respond: &mut SendResponse<Bytes>, answer: &Answer) {
    let (name, id) = &answer.field;
    let response = Response::builder()
        .status(answer.status)
        .header(http::header::CONTENT_TYPE, "application/json")
        .header(http::header::CONTENT_LENGTH, answer.text.len())
        .header(*name, id)
        .body(());
    if let Ok(response) = response
        && let Ok(mut stream) = respond.send_response(response, false)
    {
        let _ = stream.send_data(Bytes::copy_from_slice(answer.text.as_bytes()), true);
    }
}

/// One request's turn on its stream.
struct Turn<'a, R> {
    exchange: &'a mut Exchange,
    policy: &'a mut Policy,
    revoked: Pin<&'a mut R>,
    /// Until it is taken.
    body: Option<RecvStream>,
    way: Way<'a>,
    /// By when the response must have begun.
    respond_by: Option<Instant>,
    patience: Patience,
}

/// The way back.
enum Way<'a> {
    Unanswered(&'a mut SendResponse<Bytes>),
    Answered(SendStream<Bytes>),
    /// Everything is said.
    Closed,
}

impl<R: Future<Output = Denied>> Turn<'_, R> {
    /// Sends the response as it comes, as far as the peer makes room for it.
    async fn respond(
        &mut self,
        head: &ResponseHead,
        call: &mut Call,
        limits: &Limits,
    ) -> Result<(), Fault> {
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
                    self.send(data, call, limits).await?;
                }
                Step::End(trailers) => {
                    if let Way::Answered(stream) = &mut self.way {
                        match trailers.is_empty() {
                            true => stream.send_data(Bytes::new(), true),
                            false => stream.send_trailers(map(&trailers)),
                        }
                        .map_err(gone)?;
                    }
                    self.way = Way::Closed;
                    return Ok(());
                }
            }
        }
    }

    async fn send(
        &mut self,
        mut data: Bytes,
        call: &mut Call,
        limits: &Limits,
    ) -> Result<(), Fault> {
        let ends = call.is_done();
        while !data.is_empty() {
            let room = poll_fn(|cx| self.poll_room(data.len(), call, limits, cx)).await?;
            let piece = data.split_to(room.min(data.len()));
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

    /// How much the peer takes. While it takes nothing the rest of the request still goes on.
    fn poll_room(
        &mut self,
        wanted: usize,
        call: &mut Call,
        limits: &Limits,
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
        if let Poll::Ready(fault) = call.poll_while_stuck(self, cx) {
            return Poll::Ready(Err(fault));
        }
        let until = *self
            .respond_by
            .get_or_insert_with(|| Instant::now() + limits.stall);
        self.patience
            .poll(until, cx)
            .map(|()| Err(PeerFault::Stalls.into()))
    }
}

impl<R: Future<Output = Denied>> Near for Turn<'_, R> {
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Step, Fault>> {
        let failed = |error: h2::Error| Fault::from(PeerFault::Http2(error.to_string()));
        let Some(body) = &mut self.body else {
            return Poll::Ready(Ok(Step::End(Fields::default())));
        };
        loop {
            match ready!(body.poll_data(cx)) {
                Some(Ok(data)) => {
                    // It is taken: as much more may come.
                    let _ = body.flow_control().release_capacity(data.len());
                    if data.is_empty() {
                        continue;
                    }
                    self.exchange.received(data.len());
                    return Poll::Ready(Ok(Step::Data(data)));
                }
                Some(Err(error)) => return Poll::Ready(Err(failed(error))),
                None => break,
            }
        }
        let trailers = ready!(body.poll_trailers(cx)).map_err(failed)?;
        self.body = None;
        Poll::Ready(Ok(Step::End(trailers.map_or_else(Fields::default, fields))))
    }

    fn ended(&mut self) -> Option<Fault> {
        self.exchange.ended_by(self.policy)
    }

    /// Every stream hears of a newer policy by itself: the task of the connection wakes only those
    /// that have something to do.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Fault> {
        if let Poll::Ready(denied) = self.revoked.as_mut().poll(cx) {
            return Poll::Ready(denied.into());
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
                .patience
                .poll(until, cx)
                .map(|()| UpstreamFault::StaysSilent.into()),
            _ => Poll::Pending,
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
            append(map, head.fields(), field);
        }
    }
    Ok(response)
}

/// Adds a parsed field, whose value stays where it is. What the parser accepted fits.
fn append(map: &mut HeaderMap, fields: &Fields, field: fender_wire::Field<'_>) {
    let name = HeaderName::from_bytes(field.name_bytes());
    let value = HeaderValue::from_maybe_shared(fields.share(field.value()));
    if let (Ok(name), Ok(value)) = (name, value) {
        map.append(name, value);
    }
}

/// The trailers of a response.
fn map(trailers: &Fields) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(trailers.len());
    for field in trailers.iter() {
        append(&mut map, trailers, field);
    }
    map
}

/// The trailers of a request that may pass.
fn fields(trailers: HeaderMap) -> Fields {
    let trailers = trailers.iter();
    headers::passing_trailers(
        trailers.map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())),
    )
}
