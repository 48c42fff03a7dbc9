//! Bytes both ways, until both ways have ended.
//!
//! A side that finishes sending still receives (half-close is kept). Neither side's silence ends a
//! relay while both are open; once one has finished, the rest may stall no longer than the limit.
//! A TLS peer that vanishes without `close_notify` has failed, not finished: what it sent may be cut short.
//! An idle relay holds no buffer: room is made when there is something to read, and kept while more comes.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use fender_runtime::deadline::Deadline;
use fender_runtime::listen::Socket;
use tokio::io::AsyncWrite;
use tokio::time::Instant;

use crate::stream::Fill;

/// What went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Carried {
    /// From the one who connected.
    pub(crate) received: u64,
    /// To the one who connected.
    pub(crate) sent: u64,
}

/// The side whose socket failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Peer,
    Upstream,
}

/// A relay that did not end by itself.
#[derive(Debug)]
pub(crate) struct Broken {
    pub(crate) side: Side,
    pub(crate) error: io::Error,
}

/// A plain connection that is cut off when it is dropped, unless both sides have ended it: whoever is at
/// its other end may not take what has come for all that there was to come.
#[derive(Debug)]
pub(crate) struct Unended {
    pub(crate) socket: Socket,
    ended: bool,
}

impl Unended {
    pub(crate) fn new(socket: Socket) -> Self {
        Self {
            socket,
            ended: false,
        }
    }

    pub(crate) fn ended(&mut self) {
        self.ended = true;
    }
}

impl Drop for Unended {
    fn drop(&mut self) {
        if !self.ended {
            self.socket.cut_off();
        }
    }
}

/// Carries bytes between `peer` and `upstream` until both have finished. `carried` counts as they
/// go, so that a relay which is cut has its numbers too; `moved` hears that some did.
///
/// Not cancel safe: what is in flight is lost.
pub(crate) async fn relay<P, U>(
    peer: P,
    upstream: U,
    half_closed: Duration,
    carried: &mut Carried,
    moved: impl Fn(),
) -> Result<(), Broken>
where
    P: Fill + AsyncWrite + Unpin,
    U: Fill + AsyncWrite + Unpin,
{
    let (mut peer, mut upstream) = (peer, upstream);
    let (mut up, mut down) = (Flow::new(), Flow::new());
    let mut stalled = pin!(tokio::time::sleep(Duration::MAX));
    let mut timed = false;

    poll_fn(|cx| {
        let before = (up.carried, down.carried);
        let sent = up.poll(cx, (&mut peer, Side::Peer), (&mut upstream, Side::Upstream));
        let received = down.poll(cx, (&mut upstream, Side::Upstream), (&mut peer, Side::Peer));
        (carried.received, carried.sent) = (up.carried, down.carried);
        if before != (up.carried, down.carried) {
            moved();
        }

        match (sent, received) {
            (Poll::Ready(Err(broken)), _) | (_, Poll::Ready(Err(broken))) => {
                return Poll::Ready(Err(broken));
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Ok(())),
            (Poll::Pending, Poll::Pending) => return Poll::Pending,
            (Poll::Ready(Ok(())), Poll::Pending) | (Poll::Pending, Poll::Ready(Ok(()))) => {}
        }

        // One side has finished: from here on a deadline runs, and every byte moves it.
        if !timed || before != (up.carried, down.carried) {
            timed = true;
            stalled.as_mut().reset(Instant::now() + half_closed);
        }
        ready!(stalled.as_mut().poll(cx));
        let side = if up.is_done() {
            Side::Upstream
        } else {
            Side::Peer
        };
        Poll::Ready(Err(Broken {
            side,
            error: io::ErrorKind::TimedOut.into(),
        }))
    })
    .await
}

/// Reads what still comes and throws it away, so that the last words that were written are not lost
/// in a reset: closing a socket with something unread resets it.
pub(crate) async fn discard<S>(socket: &mut S, deadline: Deadline, mut left: usize)
where
    S: Fill,
{
    let mut rest = BytesMut::new();
    while left > 0 {
        rest.clear();
        let more = poll_fn(|cx| socket.poll_fill(cx, &mut rest));
        match deadline.bound(more).await {
            Ok(Ok(read)) if read > 0 => left = left.saturating_sub(read),
            Ok(_) | Err(_) => return,
        }
    }
}

/// One direction.
struct Flow {
    /// Read and not yet written; no memory while idle.
    held: BytesMut,
    state: State,
    carried: u64,
    unflushed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The reader has ended, the writer has not been told yet.
    Finishing,
    Done,
}

impl Flow {
    fn new() -> Self {
        Self {
            held: BytesMut::new(),
            state: State::Open,
            carried: 0,
            unflushed: false,
        }
    }

    fn is_done(&self) -> bool {
        self.state == State::Done
    }

    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        (from, from_side): (&mut R, Side),
        (to, to_side): (&mut W, Side),
    ) -> Poll<Result<(), Broken>>
    where
        R: Fill,
        W: AsyncWrite + Unpin,
    {
        let broke = |side| move |error| Broken { side, error };
        loop {
            while !self.held.is_empty() {
                let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.held))
                    .map_err(broke(to_side))?;
                if written == 0 {
                    let error = io::ErrorKind::WriteZero.into();
                    return Poll::Ready(Err(Broken {
                        side: to_side,
                        error,
                    }));
                }
                self.held.advance(written);
                self.unflushed = true;
            }
            match self.state {
                State::Done => return Poll::Ready(Ok(())),
                State::Finishing => {
                    // A peer that is gone already needs no farewell.
                    let _ = ready!(Pin::new(&mut *to).poll_shutdown(cx));
                    self.state = State::Done;
                }
                State::Open => match from.poll_fill(cx, &mut self.held) {
                    Poll::Ready(Ok(0)) => {
                        self.held = BytesMut::new();
                        self.state = State::Finishing;
                    }
                    Poll::Ready(Ok(read)) => {
                        self.carried = self.carried.saturating_add(read as u64);
                    }
                    Poll::Ready(Err(error)) => {
                        return Poll::Ready(Err(broke(from_side)(error)));
                    }
                    Poll::Pending => {
                        self.held = BytesMut::new();
                        if self.unflushed {
                            ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(broke(to_side))?;
                            self.unflushed = false;
                        }
                        return Poll::Pending;
                    }
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf, duplex};

    use super::*;

    impl Fill for DuplexStream {
        fn poll_fill(
            &mut self,
            cx: &mut Context<'_>,
            buffer: &mut BytesMut,
        ) -> Poll<io::Result<usize>> {
            let mut space = [0; 1024];
            let mut read = ReadBuf::new(&mut space);
            ready!(Pin::new(self).poll_read(cx, &mut read))?;
            buffer.extend_from_slice(read.filled());
            Poll::Ready(Ok(read.filled().len()))
        }
    }

    const LIMIT: Duration = Duration::from_secs(300);

    #[tokio::test]
    async fn a_side_that_finished_sending_still_receives() {
        let (mut client, peer) = duplex(64);
        let (upstream, mut server) = duplex(64);
        let mut carried = Carried::default();
        let both = async {
            client.write_all(b"question").await.unwrap();
            client.shutdown().await.unwrap();
            let mut heard = String::new();
            server.read_to_string(&mut heard).await.unwrap();
            server
                .write_all(heard.to_uppercase().as_bytes())
                .await
                .unwrap();
            server.shutdown().await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let (result, answer) =
            tokio::join!(relay(peer, upstream, LIMIT, &mut carried, || {}), both);
        result.unwrap();
        assert_eq!(answer, "QUESTION");
        assert_eq!(
            carried,
            Carried {
                received: 8,
                sent: 8
            }
        );
    }

    #[tokio::test]
    async fn a_large_transfer_is_carried_whole_through_small_pipes() {
        let (mut client, peer) = duplex(1000);
        let (upstream, mut server) = duplex(777);
        let mut carried = Carried::default();
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
        let both = async {
            let (mut read, mut write) = tokio::io::split(&mut client);
            let (mut heard, mut echoed) = (Vec::new(), Vec::new());
            tokio::join!(
                async {
                    write.write_all(&sent).await.unwrap();
                    write.shutdown().await.unwrap();
                },
                async {
                    server.read_to_end(&mut heard).await.unwrap();
                    server.write_all(&heard).await.unwrap();
                    server.shutdown().await.unwrap();
                },
                async {
                    read.read_to_end(&mut echoed).await.unwrap();
                },
            );
            echoed
        };
        let (result, echoed) =
            tokio::join!(relay(peer, upstream, LIMIT, &mut carried, || {}), both);
        result.unwrap();
        assert!(echoed == sent);
        assert_eq!(
            carried,
            Carried {
                received: 1_000_000,
                sent: 1_000_000
            }
        );
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_nothing_while_both_sides_are_open() {
        let (mut client, peer) = duplex(64);
        let (upstream, mut server) = duplex(64);
        let mut carried = Carried::default();
        let patient = async {
            tokio::time::sleep(Duration::from_secs(1_000_000)).await;
            client.write_all(b"still here").await.unwrap();
            client.shutdown().await.unwrap();
            let mut heard = String::new();
            server.read_to_string(&mut heard).await.unwrap();
            server.shutdown().await.unwrap();
            heard
        };
        let (result, heard) =
            tokio::join!(relay(peer, upstream, LIMIT, &mut carried, || {}), patient);
        result.unwrap();
        assert_eq!(heard, "still here");
    }

    #[tokio::test(start_paused = true)]
    async fn a_half_closed_relay_that_stalls_ends_and_says_which_side() {
        let (mut client, peer) = duplex(64);
        let (upstream, _server) = duplex(64);
        let mut carried = Carried::default();
        client.shutdown().await.unwrap();
        let broken = relay(peer, upstream, LIMIT, &mut carried, || {})
            .await
            .unwrap_err();
        assert_eq!(
            (broken.side, broken.error.kind()),
            (Side::Upstream, io::ErrorKind::TimedOut)
        );
    }

    #[tokio::test]
    async fn a_failing_upstream_is_named() {
        struct Failing;
        impl Fill for Failing {
            fn poll_fill(
                &mut self,
                _: &mut Context<'_>,
                _: &mut BytesMut,
            ) -> Poll<io::Result<usize>> {
                Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
            }
        }
        impl AsyncWrite for Failing {
            fn poll_write(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
                data: &[u8],
            ) -> Poll<io::Result<usize>> {
                Poll::Ready(Ok(data.len()))
            }
            fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }
            fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }
        }
        let (_client, peer) = duplex(64);
        let broken = relay(peer, Failing, LIMIT, &mut Carried::default(), || {})
            .await
            .unwrap_err();
        assert_eq!(broken.side, Side::Upstream);
    }
}
