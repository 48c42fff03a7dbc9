//! The connection of who asks: what was read ahead, and what is on its way back.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use fender_runtime::deadline::Deadline;
use fender_wire::{Decoder, Frame, HeadReader, RequestHead};
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout};

use super::{Dialect, Then, hangs_up, write_answer};
use crate::Limits;
use crate::exchange::Answer;
use crate::fault::{Fault, PeerFault};
use crate::outgoing::Outgoing;
use crate::patience::Patience;
use crate::stream::{Fill, Stream};

#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) io: Stream,
    pub(crate) read: BytesMut,
    pub(crate) out: Outgoing,
    pub(crate) patience: Patience,
    heads: HeadReader,
}

/// What was heard on a connection so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Nothing,
    Requests,
}

impl Peer {
    pub(crate) fn new(io: Stream, limits: &Limits) -> Self {
        let heads = HeadReader::new(limits.head());
        Self {
            io,
            read: BytesMut::new(),
            out: Outgoing::default(),
            patience: Patience::default(),
            heads,
        }
    }

    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.io.poll_fill(cx, &mut self.read)
    }

    async fn fill(&mut self) -> io::Result<usize> {
        poll_fn(|cx| self.poll_fill(cx)).await
    }

    /// The next head, or nothing when the connection ends between two requests.
    pub(crate) async fn head(
        &mut self,
        heard: Heard,
        limits: &Limits,
        mut last_call: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Option<RequestHead>, PeerFault> {
        if self.read.is_empty() {
            // An idle connection holds no buffer.
            self.read = BytesMut::new();
            self.out.release();
        }
        self.heads.hold_to(limits.head());
        let mut until = None;
        let mut had_begun = false;
        poll_fn(|cx| {
            loop {
                if !self.read.is_empty()
                    && let Some(head) = self.heads.request(&mut self.read)?
                {
                    return Poll::Ready(Ok(Some(head)));
                }
                // A request that is already here is served, whatever else is about to end.
                let begun = !self.read.is_empty();
                match self.io.poll_fill_some(cx, &mut self.read) {
                    Poll::Ready(Ok(0)) if begun => {
                        let cut = io::Error::from(io::ErrorKind::UnexpectedEof);
                        return Poll::Ready(Err(cut.into()));
                    }
                    Poll::Ready(Ok(0)) => return Poll::Ready(Ok(None)),
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(error)) if !begun && hangs_up(&error) => {
                        return Poll::Ready(Ok(None));
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                    Poll::Pending => {
                        if begun && !had_begun {
                            (had_begun, until) = (true, None);
                        }
                        let may_end = !begun && heard == Heard::Requests;
                        if may_end && last_call.as_mut().poll(cx).is_ready() {
                            return Poll::Ready(Ok(None));
                        }
                        let limit = match may_end {
                            true => limits.idle,
                            false => limits.head_time,
                        };
                        let until = *until.get_or_insert_with(|| Instant::now() + limit);
                        ready!(self.patience.poll(until, cx));
                        return Poll::Ready(match begun {
                            true => Err(PeerFault::SendsHeadTooSlowly),
                            false => Ok(None),
                        });
                    }
                }
            }
        })
        .await
    }

    /// Writes an answer of ours; the result is what becomes of the connection.
    pub(super) async fn answer(
        &mut self,
        answer: &Answer,
        dialect: Dialect,
        wished: Then,
        limits: &Limits,
    ) -> Result<Then, PeerFault> {
        let then = dialect.then(wished);
        write_answer(self.out.buffer(), answer, dialect.asks, then);
        self.write_out(limits).await?;
        Ok(then)
    }

    /// Writes what was gathered.
    pub(crate) async fn write_out(&mut self, limits: &Limits) -> Result<(), PeerFault> {
        let Self { io, out, .. } = self;
        let written = poll_fn(|cx| out.poll_write(io, cx));
        match timeout(limits.stall, written).await {
            Ok(written) => Ok(written?),
            Err(_) => Err(PeerFault::Stalls),
        }
    }

    /// Ends a connection whose peer may still be sending: says so, then reads on for a moment, because
    /// a reset would take the answer away before it was read, or meet a request that was on its way.
    pub(super) async fn linger(mut self, limits: &Limits) -> Result<(), Fault> {
        let deadline = Deadline::after(limits.linger);
        let _ = deadline.bound(self.io.shutdown()).await;
        let mut left = limits.linger_bytes;
        while left > 0 {
            self.read.clear();
            match deadline.bound(self.fill()).await {
                Ok(Ok(read)) if read > 0 => left = left.saturating_sub(read),
                Ok(_) | Err(_) => break,
            }
        }
        Ok(())
    }

    /// Reads the rest of a body and throws it away, if that is soon done.
    pub(super) async fn skip(
        &mut self,
        rest: &mut Decoder,
        limits: &Limits,
    ) -> Result<(), PeerFault> {
        let deadline = Deadline::after(limits.linger);
        let mut skipped = 0;
        loop {
            match rest.decode(&mut self.read)? {
                Frame::End(_) => return Ok(()),
                Frame::Data(data) => {
                    skipped += data.len();
                    if skipped > limits.linger_bytes {
                        return Err(PeerFault::Abandons);
                    }
                }
                Frame::NeedMore => match deadline.bound(self.fill()).await {
                    Ok(Ok(read)) if read > 0 => {}
                    Ok(_) => return Err(PeerFault::Abandons),
                    Err(_) => return Err(PeerFault::Stalls),
                },
            }
        }
    }
}
