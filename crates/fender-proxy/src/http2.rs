//! HTTP/2 connections from peers, on h2 with every limit set.
//!
//! Streams are requests like those of HTTP/1 and go the same way. One task drives a connection and all
//! its streams, so what the streams have to say in one turn leaves in one write. Not offered: server
//! push, extended CONNECT. A drain sends GOAWAY and lets open streams finish; a connection without
//! streams ends after the idle limit; a silent peer is pinged; a response the peer does not take is
//! reset; and a peer that gives up more requests than it may is told to calm down (ENHANCE_YOUR_CALM), and its connection ends.

mod allowance;
mod bell;
mod grpc;
mod keepalive;
mod piece;
mod stream;
mod streams;
mod window;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use fender_runtime::deadline::Deadline;
use h2::Reason;
use h2::server::Builder;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::Limits;
use crate::fault::{Fault, PeerFault};
use crate::frames::PREFACE;
use crate::http1::hangs_up;
use crate::node::Closing;
use crate::paced::{Pace, Paced};
use crate::patience::Patience;
use crate::permit::Policy;
use crate::request::{Desk, Gate};
use crate::stream::Stream;
use allowance::Allowance;
use bell::Bell;
use keepalive::KeepAlive;
use piece::Piece;
use stream::{Back, Ended};
use streams::Streams;
use window::Window;

const PROTOCOL: &str = "h2";
/// What h2 counts a DATA frame as that is smaller.
const FRAME_COST: usize = 256;

/// Serves the streams of one connection until either side ends it.
pub(crate) async fn serve(
    gate: Gate,
    mut policy: Policy,
    stream: Stream,
    closing: &Closing,
) -> Result<(), Fault> {
    let mut limits = gate.entrance.node.limits.clone();
    gate.renew(&mut limits);
    let pace = Pace::new(&limits);
    let paced = Paced::new(stream, PREFACE, pace.clone());
    let handshake = builder(&limits).handshake::<_, Piece>(paced);
    let mut connection = match Deadline::after(limits.head_time).bound(handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return outcome(error),
        // It said nothing, or not all of it.
        Err(_) => return Ok(()),
    };
    let mut keepalive = KeepAlive::new(connection.ping_pong(), limits.ping);
    let mut streams = Streams::new();
    let mut closing = pin!(closing.begins());
    let mut life = Life::Open;
    let mut idle = Idle::default();
    let mut allowance = Allowance::new(&limits);
    let bell = Bell::new();
    let mut window = Window::new(gate.entrance.node.windows.clone(), &limits);
    let room = Arc::new(Semaphore::new(limits.unwritten as usize));

    poll_fn(|cx| {
        let turn = bell.turn(cx);
        loop {
            // Every snapshot wakes this task (`Caller::cuts`).
            if policy.has_news() {
                policy.newest();
                streams.call();
            }
            while turn.was_rung() {
                pace.renew();
                // What the peer sent, and what is on its way to it.
                loop {
                    match connection.poll_accept(&mut turn.context()) {
                        Poll::Ready(Some(Ok(_))) if life == Life::Exhausted => {}
                        Poll::Ready(Some(Ok((request, respond)))) => {
                            gate.renew(&mut limits);
                            if !request.body().is_end_stream()
                                && let Some(wider) = window.widened_for(streams.len() + 1)
                            {
                                connection.set_target_window_size(wider);
                            }
                            let (policy, limits) = (policy.clone(), limits.clone());
                            let back = Back {
                                respond,
                                room: room.clone(),
                                times: streams.times(),
                            };
                            streams.push(stream::serve(&gate, policy, limits, request, back));
                        }
                        Poll::Ready(Some(Err(error))) => return Poll::Ready(outcome(error)),
                        Poll::Ready(None) if life == Life::Exhausted => {
                            return Poll::Ready(Err(exhausted()));
                        }
                        Poll::Ready(None) => return Poll::Ready(Ok(())),
                        Poll::Pending => break,
                    }
                }
                // What the streams have to say about it rings the bell.
                while let Poll::Ready(ended) = streams.poll_ended(cx) {
                    if ended == Ended::GivenUp && !allowance.take() {
                        // The app hears of every stream that nobody waits any more.
                        streams.clear();
                        connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                        life = Life::Exhausted;
                        idle = Idle::default();
                        turn.ring();
                    }
                }
            }
            let ends = life == Life::Open && closing.as_mut().poll(cx).is_ready();
            let patience = match life {
                Life::Open => limits.idle,
                Life::Ending => limits.stall,
                Life::Exhausted => limits.linger,
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
                Life::Exhausted if lies_still => return Poll::Ready(Err(exhausted())),
                Life::Open | Life::Ending | Life::Exhausted => break,
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
    /// The same, because the peer gave up too many requests: nothing is served any more.
    Exhausted,
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
        // What one turn may bring, and twice that: it would be half of the window of the connection, which is small at first.
        .data_frame_budget(2 * limits.turn_frames * FRAME_COST)
        .max_send_buffer_size(usize::try_from(limits.stream_window).unwrap_or(usize::MAX));
    builder
}

fn exhausted() -> Fault {
    PeerFault::Http2("the peer gives up request after request".to_owned()).into()
}

fn outcome(error: h2::Error) -> Result<(), Fault> {
    // A peer that goes without GOAWAY. Requests that were open have their own lines.
    if error.get_io().is_some_and(hangs_up) {
        return Ok(());
    }
    Err(PeerFault::Http2(error.to_string()).into())
}
