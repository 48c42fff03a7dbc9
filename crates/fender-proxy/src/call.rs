//! One HTTP/1.1 exchange on a connection of ours, on our own head parser and body decoder (P4).
//!
//! A [`Call`] has no task: whoever asked drives it, both of its directions at once, so an answer that
//! comes early is passed on while the request is still being sent, and neither side can hold the
//! other. Interim responses stop here. A response that could be read in two ways is no response.
//!
//! A connection is given back to its pool only after a response whose end is certain, to a request
//! that was sent whole, with nothing behind it, and never after a response without a body (to HEAD,
//! 204, 304): whoever sends one all the same would answer the next request with it. Nor after a request
//! that has a body where its method gives none a meaning: whoever does not look for it reads it as the next
//! request, which nobody has judged.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use fender_identity::Peer;
use fender_wire::body::{BodyLimits, Decoder, Encoder, Framing};
use fender_wire::{Fields, Frame, HeadReader, ResponseHead};
use http::StatusCode;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::coop::unconstrained;
use tokio::time::Instant;

use crate::fault::{Fault, OurFault, UpstreamFault};
use crate::introduction::Introduction;
use crate::outgoing::Outgoing;
use crate::pool::Pool;
use crate::stream::{Fill, Stream};

/// A request as it goes on, its body apart.
#[derive(Debug)]
pub(crate) struct Onward {
    /// Its head, to the empty line.
    pub(crate) head: BytesMut,
    /// How its body is framed; a body without a known end is sent in chunks.
    pub(crate) framing: Framing,
    pub(crate) asks: Asks,
    /// Sending it twice is the same as sending it once (RFC 9110 §9.2.2).
    pub(crate) idempotent: bool,
    /// Another protocol was asked for.
    pub(crate) upgrades: bool,
    /// It is the last thing on its connection.
    pub(crate) alone: bool,
}

/// What a response to a request holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asks {
    Whole,
    HeadOnly,
}

impl Onward {
    /// Whether it may be sent once more after it was sent whole.
    pub(crate) fn repeats(&self) -> bool {
        self.idempotent && matches!(self.framing, Framing::None | Framing::Length(0))
    }
}

/// The side a request comes from, while it is carried.
pub(crate) trait Near {
    /// The next piece of the request's body. Not asked again after its end.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Step, Fault>>;

    /// Why the request must end by what policy says now. It is asked first, so that who was denied
    /// loses even a race, and costs next to nothing.
    fn ended(&mut self) -> Option<Fault>;

    /// Ready when the request must end: its permission ended, its time is over, nobody waits for the
    /// answer any more. It is asked whenever something is waited for.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Fault>;

    /// Whether a connection to this one may serve the request. It is asked before anything is sent.
    fn takes(&mut self, far: &Arc<Peer>) -> bool;
}

/// One step of a body on its way through.
#[derive(Debug)]
pub(crate) enum Step {
    /// Never empty.
    Data(Bytes),
    /// The end, with the trailers.
    End(Fields),
}

/// One connection of ours.
#[derive(Debug)]
pub(crate) struct Link {
    io: Stream,
    /// Who is at its other end.
    far: Arc<Peer>,
    /// For whom it was made, if the other side was told.
    introduced: Option<Introduction>,
    read: BytesMut,
    heads: HeadReader,
    slot: OwnedSemaphorePermit,
    since: Instant,
}

impl Link {
    pub(crate) fn new(
        io: Stream,
        far: Arc<Peer>,
        introduced: Option<Introduction>,
        slot: OwnedSemaphorePermit,
        heads: HeadReader,
    ) -> Self {
        Self {
            io,
            far,
            introduced,
            read: BytesMut::new(),
            heads,
            slot,
            since: Instant::now(),
        }
    }

    pub(crate) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    pub(crate) fn far(&self) -> &Arc<Peer> {
        &self.far
    }

    pub(crate) fn introduced(&self) -> Option<&Introduction> {
        self.introduced.as_ref()
    }

    /// Lets go of its buffer, if nothing unasked is in it.
    fn rests(&mut self) -> bool {
        let rests = self.read.is_empty();
        if rests {
            self.read = BytesMut::new();
        }
        rests
    }

    /// Whether the other side has not closed it and has sent nothing unasked, as far as can be known.
    pub(crate) fn is_open(&mut self) -> bool {
        if !self.rests() {
            return false;
        }
        let mut cx = Context::from_waker(Waker::noop());
        // A task that has used up its turn would see nothing to read, whatever is there.
        let look = unconstrained(std::future::poll_fn(|cx| {
            self.io.poll_fill_some(cx, &mut self.read)
        }));
        pin!(look).poll(&mut cx).is_pending()
    }
}

/// A request that is being sent and answered.
#[derive(Debug)]
pub(crate) struct Call {
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
    decoder: Decoder,
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

/// A request that got no response.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) fault: Fault,
    pub(crate) fate: Fate,
}

/// What is known of a request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nothing of it was sent.
    Unsent,
    /// Its connection ended before a word of response.
    Lost,
    Other,
}

impl Call {
    pub(crate) fn new(pool: Arc<Pool>, link: Box<Link>, onward: &Onward) -> Self {
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
        call.out.buffer().put_slice(&onward.head);
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
    fn poll_drive(&mut self, near: &mut impl Near, cx: &mut Context<'_>) -> Result<(), Fault> {
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
            while self.sending == Sending::Open && self.out.has_room() {
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
                }
                self.refused = Some(error);
                return Poll::Ready(Ok(()));
            }
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

    /// The next piece of the response's body; after the end, the end again. The rest of the request
    /// goes on meanwhile.
    pub(crate) fn poll_step(
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

    /// Lets the request go on while the response cannot be passed on.
    pub(crate) fn poll_while_stuck(
        &mut self,
        near: &mut impl Near,
        cx: &mut Context<'_>,
    ) -> Poll<Fault> {
        match self.poll_drive(near, cx) {
            Err(fault) => Poll::Ready(fault),
            Ok(()) => near.poll_end(cx),
        }
    }

    /// Whether the whole response has been taken.
    pub(crate) fn is_done(&self) -> bool {
        self.decoder.is_done()
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

    /// The bare connection after it changed protocols.
    pub(crate) fn into_tunnel(mut self) -> Option<Tunnel> {
        let link = self.link.take()?;
        Some(Tunnel {
            io: link.io,
            read: link.read.freeze(),
            _slot: link.slot,
        })
    }
}

/// A connection after it changed protocols.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) io: Stream,
    /// What was sent behind the head.
    pub(crate) read: Bytes,
    _slot: OwnedSemaphorePermit,
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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use fender_runtime::listen::Socket;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::Semaphore;
    use tokio::task::coop::poll_proceed;

    use super::*;

    #[tokio::test]
    async fn a_closed_connection_is_seen_to_be_closed_even_by_a_task_that_used_up_its_turn() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (mut link, theirs) = pair(&listener).await;
        assert!(link.is_open());
        drop(theirs);
        // The end of the connection has arrived once the reactor has had a turn.
        tokio::time::sleep(Duration::from_millis(50)).await;
        poll_fn(|cx| {
            while let Poll::Ready(step) = poll_proceed(cx) {
                step.made_progress();
            }
            assert!(!link.is_open());
            Poll::Ready(())
        })
        .await;
    }

    /// A request without a body, whose sender stays.
    struct Patient;

    impl Near for Patient {
        fn poll_body(&mut self, _: &mut Context<'_>) -> Poll<Result<Step, Fault>> {
            Poll::Ready(Ok(Step::End(Fields::default())))
        }

        fn ended(&mut self) -> Option<Fault> {
            None
        }

        fn poll_end(&mut self, _: &mut Context<'_>) -> Poll<Fault> {
            Poll::Pending
        }

        fn takes(&mut self, _: &Arc<Peer>) -> bool {
            true
        }
    }

    async fn pair(listener: &TcpListener) -> (Box<Link>, TcpStream) {
        let ours = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (theirs, _) = listener.accept().await.unwrap();
        let slot = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
        let io = Stream::plain(Socket::Tcp(ours));
        let heads = HeadReader::new(fender_wire::Limits::default());
        let link = Link::new(io, Arc::new(Peer::Anonymous), None, slot, heads);
        (Box::new(link), theirs)
    }

    #[tokio::test]
    async fn a_request_of_which_nothing_could_be_written_is_sent_whole_on_another_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (stale, gone) = pair(&listener).await;
        gone.set_zero_linger().unwrap();
        drop(gone);
        let onward = Onward {
            head: BytesMut::from("POST / HTTP/1.1\r\nhost: a\r\n\r\n"),
            framing: Framing::None,
            asks: Asks::Whole,
            idempotent: false,
            upgrades: false,
            alone: false,
        };
        let links = Arc::new(Semaphore::new(1));
        let keeping = crate::pool::Keeping::App;
        let pool = Arc::new(Pool::new(links, crate::Limits::default(), keeping));
        let mut call = Call::new(pool, stale, &onward);
        let failed = poll_fn(|cx| call.poll_head(&mut Patient, cx)).await;
        assert_eq!(failed.unwrap_err().fate, Fate::Unsent);

        let (fresh, mut app) = pair(&listener).await;
        call.resume(fresh);
        let answer = async {
            let mut request = vec![0; onward.head.len()];
            app.read_exact(&mut request).await.unwrap();
            assert_eq!(request, onward.head);
            let answer = b"HTTP/1.1 204 No Content\r\n\r\n";
            app.write_all(answer).await.unwrap();
        };
        let heard = poll_fn(|cx| call.poll_head(&mut Patient, cx));
        let (heard, ()) = tokio::join!(heard, answer);
        assert_eq!(heard.unwrap().status(), 204);
    }
}
