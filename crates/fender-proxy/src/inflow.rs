//! The body that comes on a stream of HTTP/2, in little more memory than its bytes while nobody takes it.
//!
//! h2 keeps each DATA frame as it came: a place in a list, and a share of the buffer that it was read into, which is all kept for
//! the sake of one byte. Flow control counts neither. So a body is looked at whenever something of it has come, and what is not
//! taken at once is copied together ([`Inflow::park`]): then what is held is what the windows let in, which are finite for all
//! connections together. Room for more is given when bytes are taken, never when they are parked.
//!
//! For that to hold, only so much may be read of a connection before its bodies are looked at: [`Paced`] sees to it.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use http::HeaderMap;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// The least and the most that is made room for at once: as much again as is held, between them.
const PIECE: (usize, usize) = (256, 16 * 1024);

/// A body on its way in.
#[derive(Debug)]
pub(crate) struct Inflow {
    stream: RecvStream,
    parked: VecDeque<BytesMut>,
    /// What came behind that.
    failed: Option<h2::Error>,
}

impl Inflow {
    pub(crate) fn new(stream: RecvStream) -> Self {
        Self {
            stream,
            parked: VecDeque::new(),
            failed: None,
        }
    }

    /// Whether all of it is taken, and no trailers are to come.
    pub(crate) fn is_end_stream(&self) -> bool {
        self.parked.is_empty() && self.failed.is_none() && self.stream.is_end_stream()
    }

    /// Takes the next piece, which is never empty; as much more may come then. None once there are only trailers, or nothing.
    pub(crate) fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, h2::Error>>> {
        let data = match self.parked.pop_front() {
            Some(parked) => Some(Ok(parked.freeze())),
            None => ready!(self.poll_stream(cx)),
        };
        if let Some(Ok(data)) = &data {
            let _ = self.stream.flow_control().release_capacity(data.len());
        }
        Poll::Ready(data)
    }

    /// After all data.
    pub(crate) fn poll_trailers(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<HeaderMap>, h2::Error>> {
        self.stream.poll_trailers(cx)
    }

    /// Copies what has come and is not taken, and will be woken for what comes.
    pub(crate) fn park(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(piece)) = self.poll_stream(cx) {
            match piece {
                Ok(data) => self.hold(&data),
                Err(error) => {
                    self.failed = Some(error);
                    return;
                }
            }
        }
    }

    fn poll_stream(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Some(Err(error)));
        }
        loop {
            let data = ready!(self.stream.poll_data(cx));
            if !matches!(&data, Some(Ok(data)) if data.is_empty()) {
                return Poll::Ready(data);
            }
        }
    }

    fn hold(&mut self, mut data: &[u8]) {
        if let Some(last) = self.parked.back_mut() {
            let room = last.capacity() - last.len();
            let (fits, rest) = data.split_at(room.min(data.len()));
            last.extend_from_slice(fits);
            data = rest;
        }
        if data.is_empty() {
            return;
        }
        let held: usize = self.parked.iter().map(BytesMut::len).sum();
        let room = held.clamp(PIECE.0, PIECE.1).max(data.len());
        let mut piece = BytesMut::with_capacity(room);
        piece.extend_from_slice(data);
        self.parked.push_back(piece);
    }
}

/// How much may still be read of a connection in this turn.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    left: Arc<AtomicUsize>,
    turn: usize,
}

impl Pace {
    /// A turn reads so many bytes.
    pub(crate) fn new(turn: usize) -> Self {
        Self {
            left: Arc::new(AtomicUsize::new(turn)),
            turn,
        }
    }

    /// The next turn begins: what came in the one before was looked at.
    pub(crate) fn renew(&self) {
        self.left.store(self.turn, Ordering::Relaxed);
    }
}

/// A connection of which no more is read in one turn than its pace allows. Whoever wants more is woken at once, for the next.
#[derive(Debug)]
pub(crate) struct Paced<S> {
    io: S,
    pace: Pace,
}

impl<S> Paced<S> {
    pub(crate) fn new(io: S, pace: Pace) -> Self {
        Self { io, pace }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        place: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let left = this.pace.left.load(Ordering::Relaxed);
        if left == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = place.filled().len();
        let within = u64::try_from(left).unwrap_or(u64::MAX);
        let read = Pin::new(&mut (&mut this.io).take(within)).poll_read(cx, place);
        let count = place.filled().len() - before;
        this.pace.left.store(left - count, Ordering::Relaxed);
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
