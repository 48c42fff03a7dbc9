//! One exchange on a connection of ours: here by HTTP/1.1, on our own head parser and body decoder (P4); by HTTP/2 in
//! [`h2c`].
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

mod http1;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fender_identity::Peer;
use fender_wire::body::Framing;
use fender_wire::{Fields, HeadReader};
use http::Request;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::coop::unconstrained;
use tokio::time::Instant;

pub(crate) use http1::Http1Call;

use crate::app::h2c;
use crate::fault::Fault;
use crate::introduction::Introduction;
use crate::stream::Stream;

/// A request as it goes on, its body apart.
#[derive(Debug)]
pub(crate) struct Onward {
    pub(crate) head: Head,
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

/// The head of a request, as the other side speaks.
#[derive(Debug)]
pub(crate) enum Head {
    /// To the empty line.
    Http1(BytesMut),
    Http2(Box<Request<()>>),
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

    /// How many of them may be held, to be written together: one, unless it is known that they are small.
    fn pieces(&self) -> usize {
        1
    }

    /// All that was taken has been passed on: as much more may come.
    fn passed_on(&mut self) {}

    /// Why the request must end by what policy says now. It is asked first, so that who was denied
    /// loses even a race, and costs next to nothing.
    fn ended(&mut self) -> Option<Fault>;

    /// Ready when the request must end: its permission ended, its time is over, nobody waits for the
    /// answer any more. It is asked whenever something is waited for.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Fault>;

    /// Whether a connection to this one may serve the request. It is asked before anything is sent.
    fn takes(&mut self, far: &Arc<Peer>) -> bool;
}

/// Fails if the request must have ended by now.
pub(crate) async fn unless_it_has_ended(near: &mut impl Near) -> Result<(), Fault> {
    poll_fn(|cx| match near.poll_end(cx) {
        Poll::Ready(fault) => Poll::Ready(Err(fault)),
        Poll::Pending => Poll::Ready(Ok(())),
    })
    .await
}

/// Waits for this, unless the request must end first.
pub(crate) async fn unless_it_ends<T>(
    near: &mut impl Near,
    work: impl Future<Output = T>,
) -> Result<T, Fault> {
    let mut work = pin!(work);
    poll_fn(|cx| match near.poll_end(cx) {
        Poll::Ready(fault) => Poll::Ready(Err(fault)),
        Poll::Pending => work.as_mut().poll(cx).map(Ok),
    })
    .await
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

    pub(crate) fn age(&self, now: Instant) -> Duration {
        now - self.since
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
        let look = unconstrained(poll_fn(|cx| self.io.poll_fill_some(cx, &mut self.read)));
        pin!(look).poll(&mut cx).is_pending()
    }
}

/// A request that is being sent and answered.
#[derive(Debug)]
pub(crate) struct Call {
    by: By,
    /// Among the requests of its caller's address.
    share: Option<OwnedSemaphorePermit>,
}

#[derive(Debug)]
enum By {
    Http1(Http1Call),
    H2c(h2c::Call),
}

impl From<Http1Call> for Call {
    fn from(call: Http1Call) -> Self {
        Self {
            by: By::Http1(call),
            share: None,
        }
    }
}

impl From<h2c::Call> for Call {
    fn from(call: h2c::Call) -> Self {
        Self {
            by: By::H2c(call),
            share: None,
        }
    }
}

impl Call {
    /// Holds this until it has ended.
    pub(crate) fn sharing(self, share: Option<OwnedSemaphorePermit>) -> Self {
        Self { share, ..self }
    }

    /// The next piece of the response's body; after the end, the end again. The rest of the request
    /// goes on meanwhile.
    pub(crate) fn poll_step(
        &mut self,
        near: &mut impl Near,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Step, Fault>> {
        match &mut self.by {
            By::Http1(call) => call.poll_step(near, cx),
            By::H2c(call) => call.poll_step(near, cx),
        }
    }

    /// Lets the request go on while the response cannot be passed on.
    pub(crate) fn poll_while_stuck(
        &mut self,
        near: &mut impl Near,
        cx: &mut Context<'_>,
    ) -> Poll<Fault> {
        let driven = match &mut self.by {
            By::Http1(call) => call.poll_drive(near, cx),
            By::H2c(call) => call.poll_while_stuck(near, cx),
        };
        match driven {
            Err(fault) => Poll::Ready(fault),
            Ok(()) => near.poll_end(cx),
        }
    }

    /// Whether the whole response has been taken.
    pub(crate) fn is_done(&self) -> bool {
        match &self.by {
            By::Http1(call) => call.decoder.is_done(),
            By::H2c(call) => call.is_done(),
        }
    }

    /// The bare connection after it changed protocols.
    pub(crate) fn into_tunnel(self) -> Option<Tunnel> {
        match self.by {
            By::Http1(call) => call.into_tunnel(self.share),
            // HTTP/2 has no such change.
            By::H2c(_) => None,
        }
    }
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

/// A connection after it changed protocols.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) io: Stream,
    /// What was sent behind the head.
    pub(crate) read: Bytes,
    _held: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
}

#[cfg(test)]
mod tests {

    use fender_runtime::listen::Socket;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::Semaphore;
    use tokio::task::coop::poll_proceed;

    use super::*;
    use crate::pool::{Keeping, Pool};

    #[tokio::test]
    async fn a_closed_connection_is_seen_to_be_closed_even_by_a_task_that_used_up_its_turn() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (mut link, theirs) = pair(&listener).await;
        assert!(link.is_open());
        drop(theirs);
        // It has arrived, and stays: the end of a connection can be read again and again.
        let Link { io, read, .. } = &mut *link;
        let arrived = poll_fn(|cx| io.poll_fill_some(cx, read)).await;
        assert_eq!(arrived.unwrap(), 0);
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

    fn call(link: Box<Link>, head: &BytesMut, framing: Framing) -> Http1Call {
        let onward = Onward {
            head: Head::Http1(head.clone()),
            framing,
            asks: Asks::Whole,
            idempotent: false,
            upgrades: false,
            alone: false,
        };
        let links = Arc::new(Semaphore::new(1));
        let pool = Arc::new(Pool::new(links, Arc::default(), Keeping::App));
        Http1Call::new(pool, link, head, &onward)
    }

    #[tokio::test]
    async fn a_request_of_which_nothing_could_be_written_is_sent_whole_on_another_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (stale, gone) = pair(&listener).await;
        gone.set_zero_linger().unwrap();
        drop(gone);
        let head = BytesMut::from("POST / HTTP/1.1\r\nhost: a\r\n\r\n");
        let mut call = call(stale, &head, Framing::None);
        let failed = poll_fn(|cx| call.poll_head(&mut Patient, cx)).await;
        assert_eq!(failed.unwrap_err().fate, Fate::Unsent);

        let (fresh, mut app) = pair(&listener).await;
        call.resume(fresh);
        let answer = async {
            let mut request = vec![0; head.len()];
            app.read_exact(&mut request).await.unwrap();
            assert_eq!(request, head);
            let answer = b"HTTP/1.1 204 No Content\r\n\r\n";
            app.write_all(answer).await.unwrap();
        };
        let heard = poll_fn(|cx| call.poll_head(&mut Patient, cx));
        let (heard, ()) = tokio::join!(heard, answer);
        assert_eq!(heard.unwrap().status(), 204);
    }

    /// A request whose body has no end.
    #[derive(Default)]
    struct Endless {
        taken: usize,
        passed: usize,
    }

    const PIECE: usize = 16 * 1024;

    impl Near for Endless {
        fn poll_body(&mut self, _: &mut Context<'_>) -> Poll<Result<Step, Fault>> {
            self.taken += PIECE;
            Poll::Ready(Ok(Step::Data(vec![b'x'; PIECE].into())))
        }

        fn pieces(&self) -> usize {
            4
        }

        fn passed_on(&mut self) {
            self.passed = self.taken;
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

    #[tokio::test]
    async fn what_an_app_does_not_read_is_not_passed_on_and_no_more_than_a_few_pieces() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (link, mut app) = pair(&listener).await;
        let head = BytesMut::from("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n");
        let mut call = call(link, &head, Framing::Chunked);
        let mut near = Endless::default();
        let mut read = 0;
        for _ in 0..3 {
            // It is asked for as long as something is taken, so what is not passed on then waits for the app.
            poll_fn(|cx| {
                let look = unconstrained(poll_fn(|cx| call.poll_head(&mut near, cx)));
                assert!(pin!(look).poll(cx).is_pending());
                match near.passed > read {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                }
            })
            .await;
            let held = near.taken - near.passed;
            assert!((1..=4 * PIECE).contains(&held), "{held}");
            // The app reads all that was passed on, and the next may go.
            let mut rest = vec![0; near.passed - read];
            app.read_exact(&mut rest).await.unwrap();
            read = near.passed;
        }
    }
}
