//! What is on its way out of a connection: heads and small pieces gathered, large pieces beside them.
//!
//! What is there goes out in one write. A large piece is not copied: it is written from the buffer in
//! which it arrived. How many of them are held is for whoever brings them to say, who knows how large they are.
//! Nothing is held between two messages.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, BytesMut};
use fender_wire::body::Encoded;
use tokio::io::AsyncWrite;

/// Gathered before it is written.
const GATHER: usize = 16 * 1024;
/// A piece up to this size is gathered rather than written from where it lies.
const SMALL: usize = 4 * 1024;
/// Room for most messages.
const USUAL: usize = 1024;
/// What is kept of the memory while a connection is busy.
const KEPT: usize = 4 * 1024;
/// Written at once: what is gathered before and behind, and between them four pieces, each with what frames it.
const SLICES: usize = 1 + 4 * 3 + 1;

/// Bytes that are not written yet.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    gathered: BytesMut,
    /// How much of `gathered` is written.
    at: usize,
    /// What comes then.
    large: VecDeque<Encoded>,
    /// Gathered behind it. Empty where there is nothing large.
    behind: BytesMut,
    written: u64,
    unflushed: bool,
}

impl Outgoing {
    /// Where a head or a piece that is already framed is put. Only while there is room.
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        let buffer = match self.large.is_empty() {
            true => &mut self.gathered,
            false => &mut self.behind,
        };
        if buffer.capacity() == 0 {
            buffer.reserve(USUAL);
        }
        buffer
    }

    /// Whether more may be put here before something is written, where so many large pieces may lie side by side.
    pub(crate) fn has_room(&self, pieces: usize) -> bool {
        self.large.len() < pieces && self.behind.is_empty() && self.gathered.len() < GATHER
    }

    /// Adds a piece of a body. Only while there is room.
    pub(crate) fn put(&mut self, piece: Encoded) {
        if piece.remaining() <= SMALL {
            self.buffer().put(piece);
        } else {
            self.large.push_back(piece);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.gathered.is_empty() && self.large.is_empty() && !self.unflushed
    }

    /// Whether the connection took something of what is here, and not all.
    pub(crate) fn is_stuck(&self) -> bool {
        self.unflushed
    }

    /// How many bytes the connection took so far.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Writes everything and flushes it. What was written before it had to wait stays written.
    pub(crate) fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        io: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let used = self.slices(&mut slices);
            let Some(slices @ [first, ..]) = slices.get(..used) else {
                break;
            };
            let written = match slices.len() {
                1 => Pin::new(&mut *io).poll_write(cx, first),
                _ => Pin::new(&mut *io).poll_write_vectored(cx, slices),
            };
            let written = ready!(written)?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            self.advance(written);
        }
        if self.unflushed {
            ready!(Pin::new(io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// What is to be written, as far as there are slices for it; how many were filled.
    fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let gathered = self.gathered.get(self.at..).unwrap_or_default();
        let mut used = fill(gathered, slices);
        for large in &self.large {
            used += large.chunks_vectored(slices.get_mut(used..).unwrap_or_default());
        }
        used + fill(&self.behind, slices.get_mut(used..).unwrap_or_default())
    }

    fn advance(&mut self, written: usize) {
        self.written = self.written.saturating_add(written as u64);
        let mut left = self.advance_gathered(written);
        while let Some(large) = self.large.front_mut() {
            let taken = left.min(large.remaining());
            large.advance(taken);
            left -= taken;
            if large.has_remaining() {
                return;
            }
            self.large.pop_front();
        }
        if !self.behind.is_empty() {
            self.gathered = mem::take(&mut self.behind);
            self.advance_gathered(left);
        }
    }

    /// What was written beyond it.
    fn advance_gathered(&mut self, written: usize) -> usize {
        let taken = written.min(self.gathered.len() - self.at);
        self.at += taken;
        if self.at == self.gathered.len() {
            self.at = 0;
            if self.gathered.capacity() > KEPT {
                self.gathered = BytesMut::new();
            } else {
                self.gathered.clear();
            }
        }
        written - taken
    }

    /// Gives up what is not written.
    pub(crate) fn abandon(&mut self) {
        *self = Self {
            written: self.written,
            ..Self::default()
        };
    }

    /// A connection that lies still holds no buffer.
    pub(crate) fn release(&mut self) {
        if self.is_empty() {
            self.gathered = BytesMut::new();
            self.behind = BytesMut::new();
            self.large = VecDeque::new();
        }
    }
}

/// Fills one slice, unless there is nothing to fill it with.
fn fill<'a>(bytes: &'a [u8], slices: &mut [IoSlice<'a>]) -> usize {
    match slices {
        [slot, ..] if !bytes.is_empty() => {
            *slot = IoSlice::new(bytes);
            1
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use fender_wire::body::{Encoder, Framing};
    use tokio::io::{AsyncReadExt, duplex};

    use super::*;

    /// Takes so much of each write, and counts them.
    struct Taking {
        most: usize,
        taken: Vec<u8>,
        writes: usize,
    }

    impl AsyncWrite for Taking {
        fn poll_write(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            data: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(cx, &[IoSlice::new(data)])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let all: Vec<u8> = slices
                .iter()
                .flat_map(|slice| slice.iter())
                .copied()
                .collect();
            let taken = all.len().min(self.most);
            self.taken.extend(&all[..taken]);
            self.writes += 1;
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn large_pieces_lie_side_by_side_as_far_as_is_allowed_and_go_in_one_write() {
        let frame = 16 * 1024;
        for framing in [Framing::Length(4 * frame as u64), Framing::Chunked] {
            let mut encoder = Encoder::new(framing);
            let mut out = Outgoing::default();
            let mut expected = b"head ".to_vec();
            out.buffer().put_slice(b"head ");
            for at in 0..4 {
                assert!(out.has_room(4) && out.has_room(1) == (at == 0), "{at}");
                let data = vec![b'a' + at; frame];
                if framing == Framing::Chunked {
                    expected.extend(b"4000\r\n");
                }
                expected.extend(&data);
                if framing == Framing::Chunked {
                    expected.extend(b"\r\n");
                }
                out.put(encoder.data(data.into()).unwrap());
            }
            assert!(!out.has_room(4));
            let end = encoder.end(&fender_wire::Fields::default()).unwrap();
            out.buffer().put_slice(&end);
            expected.extend(&end);

            let mut cx = Context::from_waker(std::task::Waker::noop());
            let mut socket = Taking {
                most: usize::MAX,
                taken: Vec::new(),
                writes: 0,
            };
            assert!(out.poll_write(&mut socket, &mut cx).is_ready());
            assert!(socket.taken == expected);
            assert_eq!(socket.writes, 1);
            assert!(out.is_empty() && out.has_room(1));
            assert_eq!(out.written(), expected.len() as u64);
        }
    }

    #[test]
    fn whatever_the_socket_takes_at_a_time_the_order_stays() {
        for most in [1, 5, 4095, 5000, 20_000] {
            let mut encoder = Encoder::new(Framing::Chunked);
            let mut out = Outgoing::default();
            let mut expected = b"head ".to_vec();
            out.buffer().put_slice(b"head ");
            for length in [10, 5000, 5001, 7] {
                assert!(out.has_room(4), "{length}");
                let data: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
                expected.extend(format!("{length:x}\r\n").bytes());
                expected.extend(&data);
                expected.extend(b"\r\n");
                out.put(encoder.data(data.into()).unwrap());
            }
            // Something small is behind something large: nothing large may be put before it is written.
            assert!(!out.has_room(4));
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let mut socket = Taking {
                most,
                taken: Vec::new(),
                writes: 0,
            };
            assert!(out.poll_write(&mut socket, &mut cx).is_ready());
            assert!(socket.taken == expected, "{most}");
            assert_eq!(socket.writes, expected.len().div_ceil(most));
        }
    }

    #[tokio::test]
    async fn small_and_large_pieces_arrive_in_order_through_a_small_pipe() {
        let (mut near, mut far) = duplex(777);
        let mut encoder = Encoder::new(Framing::Chunked);
        let pieces = [3, SMALL + 1, 9, 100_000, 1];
        let mut expected = b"head ".to_vec();
        for (at, length) in pieces.iter().enumerate() {
            expected.extend(format!("{length:x}\r\n").bytes());
            expected.resize(expected.len() + length, b'a' + at as u8);
            expected.extend(b"\r\n");
        }
        let send = async {
            let mut out = Outgoing::default();
            out.buffer().put_slice(b"head ");
            for (at, length) in pieces.iter().enumerate() {
                while !out.has_room(1) {
                    std::future::poll_fn(|cx| out.poll_write(&mut near, cx))
                        .await
                        .unwrap();
                }
                let data = Bytes::from(vec![b'a' + at as u8; *length]);
                out.put(encoder.data(data).unwrap());
            }
            std::future::poll_fn(|cx| out.poll_write(&mut near, cx))
                .await
                .unwrap();
            assert!(out.is_empty());
            assert_eq!(out.written(), expected.len() as u64);
            drop(near);
        };
        let mut heard = Vec::new();
        let (heard_all, ()) = tokio::join!(far.read_to_end(&mut heard), send);
        heard_all.unwrap();
        assert!(heard == expected);
    }
}
