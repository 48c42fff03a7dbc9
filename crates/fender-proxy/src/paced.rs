//! A connection of HTTP/2 of which no more is read at a time than its bodies are then looked at for.
//!
//! h2 reads as long as there is something, and keeps what comes as it came, for about as much memory a frame, however small.
//! So it gets so many bytes and so many frames in one turn; after each turn whoever drives the connection sees to its bodies
//! ([`crate::inflow`]), and begins the next.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

use crate::Limits;
use crate::frames::{FRAME_HEAD, FrameHeads};

/// How much may still be read of a connection in this turn.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    left: Arc<Left>,
    turn: usize,
    frames: usize,
}

#[derive(Debug)]
struct Left {
    bytes: AtomicUsize,
    frames: AtomicUsize,
}

impl Pace {
    pub(crate) fn new(limits: &Limits) -> Self {
        let (turn, frames) = (limits.turn, limits.turn_frames);
        Self {
            left: Arc::new(Left {
                bytes: AtomicUsize::new(turn),
                frames: AtomicUsize::new(frames),
            }),
            turn,
            frames,
        }
    }

    /// The next turn begins: what came in the one before was looked at.
    pub(crate) fn renew(&self) {
        self.left.bytes.store(self.turn, Ordering::Relaxed);
        self.left.frames.store(self.frames, Ordering::Relaxed);
    }

    /// What brings neither more bytes nor more frames than may still come.
    fn left(&self) -> usize {
        let frames = self.left.frames.load(Ordering::Relaxed);
        let bytes = self.left.bytes.load(Ordering::Relaxed);
        bytes.min(frames.saturating_mul(FRAME_HEAD))
    }

    fn take(&self, bytes: usize, frames: usize) {
        let take = |left: &AtomicUsize, taken| {
            let rest = left.load(Ordering::Relaxed).saturating_sub(taken);
            left.store(rest, Ordering::Relaxed);
        };
        take(&self.left.bytes, bytes);
        take(&self.left.frames, frames);
    }
}

/// A connection of which no more is read in one turn than its pace allows. Whoever wants more is woken at once, for the next.
#[derive(Debug)]
pub(crate) struct Paced<S> {
    io: S,
    heads: FrameHeads,
    pace: Pace,
}

impl<S> Paced<S> {
    /// Nothing may have been read yet; the first frame comes behind so many bytes.
    pub(crate) fn new(io: S, before: usize, pace: Pace) -> Self {
        Self {
            io,
            heads: FrameHeads::behind(before),
            pace,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        place: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let left = this.pace.left();
        if left == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = place.filled().len();
        let within = u64::try_from(left).unwrap_or(u64::MAX);
        let read = Pin::new(&mut (&mut this.io).take(within)).poll_read(cx, place);
        let came = place.filled().get(before..).unwrap_or_default();
        let mut frames = 0;
        this.heads.take(came, |_| frames += 1);
        this.pace.take(came.len(), frames);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    const DATA: [u8; 6] = [0, 0, 0, 0, 0, 1];

    fn frames(count: usize, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend(DATA);
        frame.resize(FRAME_HEAD + payload, b'x');
        frame.repeat(count)
    }

    /// All that each turn brings of these bytes, in reads of this size.
    fn turns(limits: &Limits, all: &[u8], read: usize) -> Vec<usize> {
        let pace = Pace::new(limits);
        let mut paced = Paced::new(all, 0, pace.clone());
        let mut cx = Context::from_waker(Waker::noop());
        let mut turns = Vec::new();
        while turns.iter().sum::<usize>() < all.len() {
            pace.renew();
            let mut turn = 0;
            loop {
                let mut room = vec![0; read];
                let mut place = ReadBuf::new(&mut room);
                match Pin::new(&mut paced).poll_read(&mut cx, &mut place) {
                    Poll::Ready(Ok(())) if place.filled().is_empty() => break,
                    Poll::Ready(result) => result.unwrap(),
                    Poll::Pending => break,
                }
                turn += place.filled().len();
            }
            turns.push(turn);
        }
        turns
    }

    #[test]
    fn a_turn_brings_its_bytes_of_large_frames_however_they_are_read() {
        let limits = Limits::default();
        let all = frames(16, 16 * 1024);
        for read in [1000, 16 * 1024, 1 << 20] {
            let turns = turns(&limits, &all, read);
            let (last, full) = turns.split_last().unwrap();
            assert!(full.iter().all(|turn| *turn == limits.turn), "{turns:?}");
            assert!(*last <= limits.turn, "{turns:?}");
        }
    }

    #[test]
    fn a_turn_brings_no_more_frames_than_it_may_however_small_they_are() {
        let limits = Limits {
            turn_frames: 100,
            ..Limits::default()
        };
        for payload in [0, 1, 50] {
            let all = frames(1000, payload);
            for read in [1, 7, 16 * 1024] {
                let turns = turns(&limits, &all, read);
                let mut at = 0;
                for turn in turns {
                    let size = FRAME_HEAD + payload;
                    // Heads that came whole in this turn.
                    let heads = |end: usize| (end + payload) / size;
                    assert!(heads(at + turn) - heads(at) <= 100, "{payload} {read}");
                    at += turn;
                }
                assert_eq!(at, all.len());
            }
        }
    }
}
