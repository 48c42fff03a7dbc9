//! HTTP/2 connections from peers, on hyper and h2 with every limit set.
//!
//! Streams are requests like those of HTTP/1 and go the same way. Not offered: server push, extended
//! CONNECT. A drain sends GOAWAY and lets open streams finish; a connection without streams ends
//! after the idle limit; a silent peer is pinged; a response the peer does not take is reset.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use fender_runtime::drain::Drain;
use fender_wire::{Authority, head};
use http::header::{CONTENT_LENGTH, COOKIE, HOST};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::Sleep;

use crate::Limits;
use crate::body::{RequestBody, ResponseBody};
use crate::fault::{Fault, PeerFault, find};
use crate::http1::hangs_up;
use crate::node::{Activity, Closing, Token};
use crate::request::{Asked, Gate};
use crate::stream::Stream;

pub(crate) const PROTOCOL: &str = "h2";

/// Serves the streams of one connection until either side ends it.
pub(crate) async fn serve(
    gate: Gate,
    stream: Stream,
    closing: &Closing,
    drain: &Drain,
) -> Result<(), Fault> {
    let limits = gate.node.limits.clone();
    let activity = Activity::new();
    let service = service_fn(|request| {
        let (gate, token) = (gate.clone(), activity.enter());
        async move { Ok::<_, Infallible>(answer(gate, request, token).await) }
    });
    let builder = builder(&limits, drain);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));

    tokio::select! {
        ended = connection.as_mut() => return outcome(ended),
        () = closing.begins() => {}
        () = activity.idle(limits.idle) => {}
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        ended = connection.as_mut() => outcome(ended),
        // Nothing is open, and what is left to send is not taken.
        () = activity.idle(limits.stall) => Err(PeerFault::Stalls.into()),
    }
}

fn builder(limits: &Limits, drain: &Drain) -> http2::Builder<Tracked> {
    let mut builder = http2::Builder::new(Tracked {
        drain: drain.clone(),
        stall: limits.stall,
    });
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_pending_accept_reset_streams(limits.peer_resets)
        .max_local_error_reset_streams(limits.own_resets)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .initial_stream_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window)
        .max_send_buf_size(usize::try_from(limits.stream_window).unwrap_or(usize::MAX))
        .keep_alive_interval(limits.ping)
        .keep_alive_timeout(limits.ping)
        .auto_date_header(false);
    builder
}

fn outcome(ended: hyper::Result<()>) -> Result<(), Fault> {
    match ended {
        Ok(()) => Ok(()),
        // Requests that were open have their own lines.
        Err(error) if is_hang_up(&error) => Ok(()),
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            let text = cause.map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"));
            Err(PeerFault::Http2(text).into())
        }
    }
}

/// The peer went without GOAWAY.
fn is_hang_up(error: &hyper::Error) -> bool {
    find::<std::io::Error>(error).is_some_and(hangs_up)
}

/// One stream.
async fn answer(
    mut gate: Gate,
    request: Request<Incoming>,
    token: Token,
) -> Response<ResponseBody> {
    let (parts, body) = request.into_parts();
    // Without a path there is a query alone, before which one would be invented.
    let target = parts.uri.path_and_query().map(PathAndQuery::as_str);
    if target.is_some_and(|target| target.starts_with('?')) {
        return refused(&gate, head::HeadError::MisfitsTarget.into());
    }
    let asked = match authority(&parts.uri, &parts.headers) {
        Ok(authority) => Asked {
            method: parts.method,
            path: parts.uri.path(),
            query: parts.uri.query(),
            authority: Some(authority),
            headers: with_one_cookie(parts.headers),
            upgrade: None,
        },
        Err(fault) => return refused(&gate, fault),
    };
    if let Err(fault) = check(&asked, &gate.node.limits) {
        return refused(&gate, fault);
    }
    match gate.admit(asked, |_| false, Some(token)) {
        Ok(admitted) => gate.forward(admitted, RequestBody::http2(body)).await,
        Err(response) => *response,
    }
}

fn refused(gate: &Gate, fault: PeerFault) -> Response<ResponseBody> {
    gate.refuse(fault)
}

/// What HTTP/2 allows and HTTP/1, which the app speaks, would read in two ways.
fn check(asked: &Asked<'_>, limits: &Limits) -> Result<(), PeerFault> {
    let target = asked.path.len() + asked.query.map_or(0, |query| query.len() + 1);
    if target > limits.target_bytes {
        return Err(head::HeadError::ExceedsTarget.into());
    }
    if asked.headers.len() > limits.head_fields {
        return Err(head::HeadError::ExceedsFields.into());
    }
    if asked.method == Method::CONNECT {
        return Err(head::HeadError::AsksTunnel.into());
    }
    if !head::is_method(asked.method.as_str().as_bytes()) {
        return Err(head::HeadError::BreaksMethod.into());
    }
    if asked.path == "*" && asked.method != Method::OPTIONS {
        return Err(head::HeadError::MisfitsTarget.into());
    }
    let mut lengths = asked.headers.get_all(CONTENT_LENGTH).iter();
    let (first, second) = (lengths.next(), lengths.next());
    if second.is_some() {
        return Err(head::HeadError::RepeatsContentLength.into());
    }
    let plain = |value: &HeaderValue| value.as_bytes().iter().all(u8::is_ascii_digit);
    if !first.is_none_or(plain) {
        return Err(head::HeadError::BreaksContentLength.into());
    }
    Ok(())
}

/// HTTP/2 may cut a cookie into several fields, HTTP/1 may not (RFC 9113 §8.2.3): the app, and the
/// policy, must find it whole.
fn with_one_cookie(mut headers: HeaderMap) -> HeaderMap {
    let crumbs: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if crumbs.len() > 1 {
        // Values that were fields are one together.
        if let Ok(whole) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
            headers.insert(COOKIE, whole);
        }
    }
    headers
}

/// The one host a request is for: `:authority`, and `Host` only if it says the same.
fn authority(uri: &http::Uri, headers: &HeaderMap) -> Result<Authority, PeerFault> {
    let mut hosts = headers.get_all(HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(head::HeadError::RepeatsHost.into());
    }
    let parse = |text: &[u8]| {
        Authority::parse(bytes::Bytes::copy_from_slice(text))
            .map_err(|error| PeerFault::from(head::HeadError::from(error)))
    };
    let host = host.map(|host| parse(host.as_bytes())).transpose()?;
    let named = uri
        .authority()
        .map(|named| parse(named.as_str().as_bytes()))
        .transpose()?;
    match (named, host) {
        (Some(named), Some(host)) if named.as_str() != host.as_str() => {
            Err(head::HeadError::DisagreesOnHost.into())
        }
        (Some(authority), _) | (None, Some(authority)) => Ok(authority),
        (None, None) => Err(head::HeadError::LacksHost.into()),
    }
}

/// hyper's tasks belong to the drain like all others, and none of them is stuck for ever with a peer
/// that takes nothing.
#[derive(Clone, Debug)]
struct Tracked {
    drain: Drain,
    stall: Duration,
}

impl<F> hyper::rt::Executor<F> for Tracked
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.drain
            .spawn(SENDING.scope(Cell::default(), unless_stuck(Box::pin(task), self.stall)));
    }
}

tokio::task_local! {
    /// The stream that a task of hyper's serves.
    static SENDING: Cell<Sending>;
}

/// What became of the data a response's body gave last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Sending {
    #[default]
    Taken,
    /// It waits for the peer to make room: how much there was before it.
    Waits(u64),
}

/// A body was asked for more: the peer took what there was.
pub(crate) fn taken() {
    let _ = SENDING.try_with(|sending| sending.set(Sending::Taken));
}

/// A body gave data, after so many bytes before it.
pub(crate) fn given(before: u64) {
    let _ = SENDING.try_with(|sending| sending.set(Sending::Waits(before)));
}

/// Runs a stream's task until the peer has taken nothing for `stall`. Dropping it resets the stream.
async fn unless_stuck(mut task: Pin<Box<impl Future<Output = ()>>>, stall: Duration) {
    let mut timer: Option<(Sending, Pin<Box<Sleep>>)> = None;
    poll_fn(|cx| {
        if task.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let sending = SENDING.with(Cell::get);
        if sending == Sending::Taken {
            timer = None;
            return Poll::Pending;
        }
        if timer.as_ref().is_none_or(|(of, _)| *of != sending) {
            timer = Some((sending, Box::pin(tokio::time::sleep(stall))));
        }
        match &mut timer {
            Some((_, sleep)) => sleep.as_mut().poll(cx),
            None => Poll::Pending,
        }
    })
    .await;
}
