//! HTTP/2 connections from peers, on h2 with every limit set.
//!
//! Streams are requests like those of HTTP/1 and go the same way. One task drives a connection and all
//! its streams, so what the streams have to say in one turn leaves in one write. Not offered: server
//! push, extended CONNECT. A drain sends GOAWAY and lets open streams finish; a connection without
//! streams ends after the idle limit; a silent peer is pinged; a response the peer does not take is
//! reset.

mod bell;
mod keepalive;
mod stream;

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use fender_runtime::deadline::Deadline;
use futures_util::stream::{FuturesUnordered, Stream as _};
use h2::server::Builder;
use tokio::time::Instant;

use crate::Limits;
use crate::fault::{Fault, PeerFault};
use crate::http1::hangs_up;
use crate::node::Closing;
use crate::patience::Patience;
use crate::permit::Policy;
use crate::request::Gate;
use crate::stream::Stream;
use bell::Bell;
use keepalive::KeepAlive;

const PROTOCOL: &str = "h2";

/// Serves the streams of one connection until either side ends it.
pub(crate) async fn serve(
    gate: Gate,
    policy: Policy,
    stream: Stream,
    closing: &Closing,
) -> Result<(), Fault> {
    let limits = &gate.entrance.node.limits;
    let handshake = builder(limits).handshake::<_, Bytes>(stream);
    let mut connection = match Deadline::after(limits.head_time).bound(handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return outcome(error),
        // It said nothing, or not all of it.
        Err(_) => return Ok(()),
    };
    let mut keepalive = KeepAlive::new(connection.ping_pong(), limits.ping);
    let mut streams = FuturesUnordered::new();
    let mut closing = pin!(closing.begins());
    let mut life = Life::Open;
    let mut idle = Idle::default();
    let bell = Bell::new();

    poll_fn(|cx| {
        let turn = bell.turn(cx);
        loop {
            while turn.was_rung() {
                // What the peer sent, and what is on its way to it.
                loop {
                    match connection.poll_accept(&mut turn.context()) {
                        Poll::Ready(Some(Ok((request, respond)))) => {
                            streams.push(stream::serve(&gate, policy.clone(), request, respond));
                        }
                        Poll::Ready(Some(Err(error))) => return Poll::Ready(outcome(error)),
                        Poll::Ready(None) => return Poll::Ready(Ok(())),
                        Poll::Pending => break,
                    }
                }
                // What the streams have to say about it rings the bell.
                while let Poll::Ready(Some(())) = Pin::new(&mut streams).poll_next(cx) {}
            }
            let ends = life == Life::Open && closing.as_mut().poll(cx).is_ready();
            let patience = match life {
                Life::Open => limits.idle,
                Life::Ending => limits.stall,
            };
            let lies_still = idle.poll(streams.is_empty(), patience, cx).is_ready();
            match life {
                Life::Open if ends || lies_still => {
                    connection.graceful_shutdown();
                    life = Life::Ending;
                    idle = Idle::default();
                    turn.ring();
                }
                // Nothing is open, and what is left to send is not taken.
                Life::Ending if lies_still => return Poll::Ready(Err(PeerFault::Stalls.into())),
                Life::Open | Life::Ending => break,
            }
        }
        keepalive.poll(cx).map(|()| {
            let text = "the peer answers no ping".to_owned();
            Err(PeerFault::Http2(text).into())
        })
    })
    .await
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Open,
    /// GOAWAY is said, or on its way.
    Ending,
}

/// How long nothing has been open.
#[derive(Default)]
struct Idle {
    since: Option<Instant>,
    patience: Patience,
}

impl Idle {
    fn poll(&mut self, is_idle: bool, limit: Duration, cx: &mut Context<'_>) -> Poll<()> {
        if !is_idle {
            self.since = None;
            return Poll::Pending;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        self.patience.poll(since + limit, cx)
    }
}

fn builder(limits: &Limits) -> Builder {
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(limits.streams)
        .max_pending_accept_reset_streams(limits.peer_resets)
        .max_local_error_reset_streams(Some(limits.own_resets))
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .initial_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window)
        .max_send_buffer_size(usize::try_from(limits.stream_window).unwrap_or(usize::MAX));
    builder
}

fn outcome(error: h2::Error) -> Result<(), Fault> {
    // A peer that goes without GOAWAY. Requests that were open have their own lines.
    if error.get_io().is_some_and(hangs_up) {
        return Ok(());
    }
    Err(PeerFault::Http2(error.to_string()).into())
}
