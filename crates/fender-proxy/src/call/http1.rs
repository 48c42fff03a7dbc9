//! One exchange by HTTP/1.1, on a connection of its own.
//!
//! It refuses to give a connection back of which anything is uncertain: see [`super`].

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::BufMut;
use fender_wire::body::{BodyLimits, Decoder, Encoder, Framing};
use fender_wire::{Fields, Frame, ResponseHead};
use http::StatusCode;
use tokio::sync::OwnedSemaphorePermit;

use super::{Asks, Failed, Fate, Link, Near, Onward, Step, Tunnel};
use crate::fault::{Fault, OurFault, UpstreamFault};
use crate::outgoing::Outgoing;
use crate::pool::Pool;
use crate::stream::Fill;

/// The same by HTTP/1.1, on a connection of its own.
#[derive(Debug)]
pub(crate) struct Http1Call {
    pool: Arc<Pool>,
    /// None once it was given back or dropped.
    link: Option<Box<Link>>,
    out: Outgoing,
    encoder: Encoder,
    sending: Sending,
    /// The other side takes no more of it. It may have answered all the same.
    refused: Option<io::Error>,
    /// Something of the response has come.
    heard: bool,
    asks: Asks,
    alone: bool,
    pub(super) decoder: Decoder,
    afterwards: Afterwards,
}

/// How much of the request's body was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sending {
    Open,
    Done,
}

/// What becomes of a connection after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Afterwards {
    Keep,
    /// The other side closes it, or may have sent more than the response.
    Drop,
}

impl Http1Call {
    pub(crate) fn new(pool: Arc<Pool>, link: Box<Link>, head: &[u8], onward: &Onward) -> Self {
        let mut call = Self {
            pool,
            link: None,
            out: Outgoing::default(),
            encoder: Encoder::new(onward.framing),
            sending: Sending::Open,
            refused: None,
            heard: false,
            asks: onward.asks,
            alone: onward.alone,
            decoder: Decoder::new(Framing::None, BodyLimits::default()),
            afterwards: Afterwards::Drop,
        };
        call.out.buffer().put_slice(head);
        call.link = Some(link);
        call
    }

    /// Begins once more on another connection; only after [`Fate::Unsent`].
    pub(crate) fn resume(&mut self, link: Box<Link>) {
        self.link = Some(link);
        self.refused = None;
    }

    /// Sends what there is to send, and waits for the final head of the response.
    pub(crate) fn poll_head(
        &mut self,
        near: &mut impl Near,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ResponseHead, Failed>> {
        let read = match self.poll_drive(near, cx) {
            Err(fault) => Err((fault, false)),
            Ok(()) => match self.poll_read_head(cx) {
                Poll::Ready(read) => read,
                Poll::Pending => Err((ready!(near.poll_end(cx)), false)),
            },
        };
        Poll::Ready(read.map_err(|(fault, lost)| Failed {
            fate: match lost {
                true if self.out.written() == 0 => Fate::Unsent,
                true if !self.heard => Fate::Lost,
                true | false => Fate::Other,
            },
            fault,
        }))
    }

    /// What ends the request first, then its way out.
    pub(super) fn poll_drive(
        &mut self,
        near: &mut impl Near,
        cx: &mut Context<'_>,
    ) -> Result<(), Fault> {
        if let Some(fault) = near.ended() {
            return Err(fault);
        }
        match self.poll_send(near, cx) {
            Poll::Ready(Err(fault)) => Err(fault),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }

    /// Ready once the request is sent, or cannot be.
    fn poll_send(&mut self, near: &mut impl Near, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        let Some(link) = &mut self.link else {
            return Poll::Ready(Ok(()));
        };
        if self.refused.is_some() {
            return Poll::Ready(Ok(()));
        }
        let unwritable =
            |error: fender_wire::body::EncodeError| OurFault::Unwritable(error.to_string());
        loop {
            // Of who may have several pieces on their way, what waits is passed on before more is taken: then there is always
            // something that may come. Of others more is taken, which is how it is noticed that they left.
            while self.sending == Sending::Open
                && (near.pieces() == 1 || !self.out.is_stuck())
                && self.out.has_room(near.pieces())
            {
                match near.poll_body(cx)? {
                    Poll::Ready(Step::Data(data)) => {
                        self.out.put(self.encoder.data(data).map_err(unwritable)?);
                    }
                    Poll::Ready(Step::End(trailers)) => {
                        let end = self.encoder.end(&trailers).map_err(unwritable)?;
                        self.out.buffer().put_slice(&end);
                        self.sending = Sending::Done;
                    }
                    Poll::Pending => break,
                }
            }
            if self.out.is_empty() {
                return match self.sending {
                    Sending::Open => Poll::Pending,
                    Sending::Done => Poll::Ready(Ok(())),
                };
            }
            if let Err(error) = ready!(self.out.poll_write(&mut link.io, cx)) {
                // What is not written is kept only as long as all of it is.
                if self.out.written() > 0 {
                    self.out.abandon();
                    near.passed_on();
                }
                self.refused = Some(error);
                return Poll::Ready(Ok(()));
            }
            near.passed_on();
        }
    }

    /// The final head, or why there is none and whether the connection was lost.
    fn poll_read_head(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ResponseHead, (Fault, bool)>> {
        let Some(link) = &mut self.link else {
            return Poll::Ready(Err((breaks("nothing was sent"), false)));
        };
        let method = match self.asks {
            Asks::Whole => "GET",
            Asks::HeadOnly => "HEAD",
        };
        loop {
            match link.heads.response(&mut link.read, method) {
                Ok(Some(head)) if head.is_interim() => continue,
                Ok(Some(head)) => {
                    self.begin_body(&head);
                    return Poll::Ready(Ok(head));
                }
                Ok(None) => {}
                Err(error) => {
                    return Poll::Ready(Err((breaks(&error.to_string()), false)));
                }
            }
            // Where nothing was written nothing is answered.
            if self.out.written() == 0
                && let Some(error) = self.refused.take()
            {
                let lost = is_loss(&error);
                return Poll::Ready(Err((UpstreamFault::Leaves(error).into(), lost)));
            }
            match ready!(link.io.poll_fill_some(cx, &mut link.read)) {
                Ok(0) => {
                    let fault = breaks("connection closed before the response was complete");
                    return Poll::Ready(Err((fault, true)));
                }
                Ok(_) => self.heard = true,
                Err(error) => {
                    let lost = is_loss(&error);
                    return Poll::Ready(Err((UpstreamFault::Leaves(error).into(), lost)));
                }
            }
        }
    }

    fn begin_body(&mut self, head: &ResponseHead) {
        self.decoder = Decoder::new(head.framing(), BodyLimits::default());
        let empty = self.asks == Asks::HeadOnly
            || head.status() == StatusCode::NO_CONTENT
            || head.status() == StatusCode::NOT_MODIFIED;
        self.afterwards = match head.keep_alive() && !empty && !self.alone {
            true => Afterwards::Keep,
            false => Afterwards::Drop,
        };
    }

    pub(super) fn poll_step(
        &mut self,
        near: &mut impl Near,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Step, Fault>> {
        self.poll_drive(near, cx)?;
        let Some(link) = &mut self.link else {
            return Poll::Ready(Ok(Step::End(Fields::default())));
        };
        loop {
            match self.decoder.decode(&mut link.read) {
                Ok(Frame::Data(data)) => {
                    // Whoever counts the bytes does not ask again after the last one.
                    if self.decoder.is_done() {
                        self.finish();
                    }
                    return Poll::Ready(Ok(Step::Data(data)));
                }
                Ok(Frame::End(trailers)) => {
                    self.finish();
                    return Poll::Ready(Ok(Step::End(trailers)));
                }
                Ok(Frame::NeedMore) => {}
                Err(error) => return Poll::Ready(Err(breaks(&error.to_string()))),
            }
            let filled = match link.io.poll_fill(cx, &mut link.read) {
                Poll::Ready(filled) => filled,
                Poll::Pending => return near.poll_end(cx).map(Err),
            };
            match filled {
                Ok(0) => {
                    if let Err(error) = self.decoder.end_of_stream() {
                        return Poll::Ready(Err(breaks(&error.to_string())));
                    }
                }
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(UpstreamFault::Leaves(error).into())),
            }
        }
    }

    /// The response is complete: the connection may serve another request. Whoever takes it looks
    /// whether it is still open.
    fn finish(&mut self) {
        let sent = self.sending == Sending::Done && self.out.is_empty() && self.refused.is_none();
        if let Some(mut link) = self.link.take()
            && self.afterwards == Afterwards::Keep
            && sent
            && link.rests()
        {
            self.pool.keep(link);
        }
    }

    pub(super) fn into_tunnel(mut self, share: Option<OwnedSemaphorePermit>) -> Option<Tunnel> {
        let link = self.link.take()?;
        Some(Tunnel {
            io: link.io,
            read: link.read.freeze(),
            _held: (link.slot, share),
        })
    }
}

fn breaks(why: &str) -> Fault {
    UpstreamFault::Breaks(why.to_owned()).into()
}

/// The connection went away, rather than anything being wrong with what was said on it.
fn is_loss(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::NotConnected
            | io::ErrorKind::UnexpectedEof
    )
}
