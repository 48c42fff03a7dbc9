//! What has left for an app of HTTP/2: a connection that says which requests are on their way.
//!
//! h2 takes any number of requests and gives them to the connection as the app makes room. It does not say
//! when, and keeps those that were given up meanwhile. So the frames that are written are looked at here, at
//! the nine bytes before each, and room for another request is made when the head of one has left.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Semaphore;

use crate::frames::{FrameHeads, PREFACE};

/// A connection whose requests make room when they have left.
#[derive(Debug)]
pub(super) struct Outflow<S> {
    io: S,
    frames: Frames,
    room: Arc<Semaphore>,
}

impl<S> Outflow<S> {
    /// Nothing may have been written yet.
    pub(super) fn new(io: S, room: Arc<Semaphore>) -> Self {
        Self {
            io,
            frames: Frames::default(),
            room,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Outflow<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        place: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, place)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Outflow<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(data)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.io).poll_write_vectored(cx, slices))?;
        let mut left = written;
        for slice in slices {
            let taken = slice.get(..left).unwrap_or(slice);
            this.room.add_permits(this.frames.take(taken));
            left -= taken.len();
        }
        Poll::Ready(Ok(written))
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

const HEADERS: u8 = 1;

/// Counts the streams that have begun in what a client writes.
#[derive(Debug)]
struct Frames {
    heads: FrameHeads,
    /// A client numbers them 1, 3, 5 and begins them in this order.
    begun: usize,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            heads: FrameHeads::behind(PREFACE),
            begun: 0,
        }
    }
}

impl Frames {
    /// Takes what was written, and says how many streams began with it.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let before = self.begun;
        self.heads.take(bytes, |head| {
            if head.kind == HEADERS {
                let begun = usize::try_from(head.stream.div_ceil(2)).unwrap_or(usize::MAX);
                // What is behind a body has the number of its stream.
                self.begun = self.begun.max(begun);
            }
        });
        self.begun - before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::FRAME_HEAD;

    fn frame(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, 4]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    }

    #[test]
    fn a_request_has_left_when_its_headers_have_however_they_are_cut() {
        let mut all = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let (settings, data, reset) = (4, 0, 3);
        all.extend(frame(settings, 0, &[0; 12]));
        all.extend(frame(HEADERS, 1, &[1; 300]));
        all.extend(frame(HEADERS, 3, b""));
        // Bytes that look like a frame, in a body.
        all.extend(frame(data, 1, &frame(HEADERS, 99, b"x")));
        all.extend(frame(HEADERS, 1, b"trailers"));
        all.extend(frame(reset, 3, &[0; 4]));
        // One that h2 took back is gone as well.
        all.extend(frame(HEADERS, 7, b"x"));
        let whole = Frames::default().take(&all);
        assert_eq!(whole, 4);
        for size in 1..all.len() {
            let mut frames = Frames::default();
            let counted = all.chunks(size).map(|cut| frames.take(cut)).sum::<usize>();
            assert_eq!(counted, whole, "in pieces of {size}");
        }
    }

    #[test]
    fn one_whose_head_is_not_written_whole_has_not_left() {
        let mut frames = Frames::default();
        assert_eq!(frames.take(&[0; PREFACE]), 0);
        let headers = frame(HEADERS, 1, b"x");
        assert_eq!(frames.take(&headers[..FRAME_HEAD - 1]), 0);
        assert_eq!(frames.take(&headers[FRAME_HEAD - 1..]), 1);
    }
}
