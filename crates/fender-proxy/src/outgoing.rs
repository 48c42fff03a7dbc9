//! What is on its way out of a connection: heads and small pieces gathered, a large piece beside them.
//!
//! What is there goes out in one write. A large piece is not copied: it is written from the buffer in
//! which it arrived. Nothing is held between two messages.

use std::io::{self, IoSlice};
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

/// Bytes that are not written yet.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    gathered: BytesMut,
    /// How much of `gathered` is written.
    at: usize,
    large: Option<Encoded>,
    written: u64,
    unflushed: bool,
}

impl Outgoing {
    /// Where a head or a piece that is already framed is put. Only while there is room.
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        if self.gathered.capacity() == 0 {
            self.gathered.reserve(USUAL);
        }
        &mut self.gathered
    }

    /// Whether more may be put here before something is written.
    pub(crate) fn has_room(&self) -> bool {
        self.large.is_none() && self.gathered.len() < GATHER
    }

    /// Adds a piece of a body. Only while there is room.
    pub(crate) fn put(&mut self, piece: Encoded) {
        if piece.remaining() <= SMALL {
            self.buffer().put(piece);
        } else {
            self.large = Some(piece);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.gathered.is_empty() && self.large.is_none() && !self.unflushed
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
            let mut slices = [IoSlice::new(&[]); 4];
            let gathered = self.gathered.get(self.at..).unwrap_or_default();
            let mut used = 0;
            if !gathered.is_empty()
                && let Some(slot) = slices.first_mut()
            {
                *slot = IoSlice::new(gathered);
                used = 1;
            }
            if let Some(large) = &self.large {
                used += large.chunks_vectored(slices.get_mut(used..).unwrap_or_default());
            }
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

    fn advance(&mut self, written: usize) {
        self.written = self.written.saturating_add(written as u64);
        let of_gathered = written.min(self.gathered.len() - self.at);
        self.at += of_gathered;
        if self.at == self.gathered.len() {
            self.at = 0;
            if self.gathered.capacity() > KEPT {
                self.gathered = BytesMut::new();
            } else {
                self.gathered.clear();
            }
        }
        if let Some(large) = &mut self.large {
            large.advance(written - of_gathered);
            if !large.has_remaining() {
                self.large = None;
            }
        }
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
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use fender_wire::body::{Encoder, Framing};
    use tokio::io::{AsyncReadExt, duplex};

    use super::*;

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
                while !out.has_room() {
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
