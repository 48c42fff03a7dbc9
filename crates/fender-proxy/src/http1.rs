//! HTTP/1 connections from peers, on our own head parser and body decoder (P4).
//!
//! One task, one request at a time, answers in the order of the requests. The half that reads is
//! owned by whoever needs it: by the connection between requests, by the [`Upload`] while a body is
//! on its way to the app, which hands it back with the last byte. So a second request cannot be read
//! out of the first one's body, and a body is read only as fast as the app takes it.
//!
//! `100 Continue` is sent by us, after the decision and never before it. After a head or a body that
//! could not be read in one way only, nothing else on the connection is believed: it is answered and
//! closed.

mod upload;
mod writer;

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use fender_runtime::deadline::Deadline;
use fender_wire::body::Framing;
use fender_wire::{Fields, HeadReader, RequestHead, Version, head, write};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use http_body::Body;
use tokio::io::{AsyncWriteExt, ReadHalf};
use tokio::sync::oneshot;

pub(crate) use upload::Upload;

use crate::Limits;
use crate::body::{RequestBody, ResponseBody};
use crate::fault::{Fault, PeerFault};
use crate::node::Closing;
use crate::relay::{Carried, poll_fill, relay};
use crate::request::{Asked, Gate};
use crate::stream::Stream;
use upload::{Borrowed, Rest, Returned, skip};
use writer::{Persistence, Writer};

pub(crate) const PROTOCOL: &str = "http/1.1";

/// What is read ahead while a response is awaited, to notice a peer that left.
const READ_AHEAD: usize = 16 * 1024;

/// Serves the requests of one connection until either side ends it.
pub(crate) async fn serve(mut gate: Gate, stream: Stream, closing: &Closing) -> Result<(), Fault> {
    let limits = gate.node.limits.clone();
    let (read, write) = tokio::io::split(stream);
    let mut reader = Reader::new(read, &limits);
    let mut writer = Writer::new(write, &limits);
    let mut turn = Turn::First;
    loop {
        let head = match reader.head(turn, &limits, closing).await {
            Ok(Some(head)) => head,
            Ok(None) => return writer.close().await,
            // There is nobody left to answer.
            Err(fault @ PeerFault::Leaves(_)) => return Err(fault.into()),
            Err(fault) => return Box::pin(refuse(&gate, fault, reader, writer)).await,
        };
        // Boxed, so that a connection is small while it is idle.
        let exchange = Box::pin(exchange(&mut gate, &head, reader, writer, closing, &limits));
        match exchange.await? {
            Next::Request(kept) => (reader, writer) = *kept,
            Next::Close(rest) => return linger(rest.0, rest.1, &limits).await,
            Next::Over => return Ok(()),
        }
        turn = Turn::Kept;
    }
}

/// Answers a head that could not be read, and ends the connection.
async fn refuse(
    gate: &Gate,
    fault: PeerFault,
    reader: Reader,
    mut writer: Writer,
) -> Result<(), Fault> {
    let response = gate.refuse(fault);
    let (close, lent) = (Persistence::Close, &mut None);
    match writer
        .respond(response, Dialect::REFUSED, close, lent)
        .await
    {
        Some(_) => linger(reader, writer, &gate.node.limits).await,
        None => Ok(()),
    }
}

/// What becomes of a connection after an exchange.
enum Next {
    Request(Box<(Reader, Writer)>),
    /// Something of the request is unread; the connection ends.
    Close(Box<(Reader, Writer)>),
    /// The connection ended with the exchange.
    Over,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    First,
    Kept,
}

/// One request and its response.
async fn exchange(
    gate: &mut Gate,
    head: &RequestHead,
    reader: Reader,
    mut writer: Writer,
    closing: &Closing,
    limits: &Limits,
) -> Result<Next, Fault> {
    let framing = head.framing();
    let dialect = Dialect::of(head);
    let persistence = || match head.keep_alive() && !closing.has_begun() {
        true => Persistence::Keep,
        false => Persistence::Close,
    };
    let connection = head.connection();
    let admitted = match gate.admit(asked(head), |name| connection.strips(name), None) {
        Ok(admitted) => admitted,
        Err(response) => {
            let persistence = match framing {
                Framing::None | Framing::Length(0) => persistence(),
                // Reading on would let the refused cost us as much as the admitted.
                Framing::Length(_) | Framing::Chunked | Framing::UntilClose => Persistence::Close,
            };
            let sent = writer
                .respond(*response, dialect, persistence, &mut None)
                .await;
            return Ok(match sent {
                Some(Persistence::Keep) => Next::Request(Box::new((reader, writer))),
                Some(Persistence::Close) => Next::Close(Box::new((reader, writer))),
                None => Next::Over,
            });
        }
    };
    if head.expect_continue() && dialect.version == Version::Http11 {
        writer.interim(write::CONTINUE).await?;
    }

    let (body, lent) = lend(reader, framing, limits);
    let mut lent = Some(lent);
    let response = {
        let mut forward = pin!(gate.forward(admitted, body));
        poll_fn(|cx| match forward.as_mut().poll(cx) {
            Poll::Ready(response) => Poll::Ready(Ok(response)),
            Poll::Pending => Lent::poll_left(&mut lent, cx).map(Err),
        })
        .await
    };
    let response = match response {
        Ok(response) => response,
        // The exchange ended with its future and has written its line.
        Err(_) => return Ok(Next::Over),
    };
    if let Some(lent) = &mut lent {
        lent.settle();
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        tunnel(response, lent, writer, limits).await;
        return Ok(Next::Over);
    }

    let wished = match &lent {
        Some(Lent::Here(Returned {
            rest: Rest::Broken, ..
        })) => Persistence::Close,
        Some(_) | None => persistence(),
    };
    let Some(persistence) = writer.respond(response, dialect, wished, &mut lent).await else {
        return Ok(Next::Over);
    };
    let Some(Returned { mut reader, rest }) = Lent::back(lent).await else {
        return Ok(Next::Over);
    };
    let keep = match (persistence, rest) {
        (Persistence::Keep, Rest::Nothing) => true,
        (Persistence::Keep, Rest::Unread(mut rest)) => {
            skip(&mut rest, &mut reader, limits).await.is_ok()
        }
        (Persistence::Keep, Rest::Broken) | (Persistence::Close, _) => false,
    };
    let both = Box::new((reader, writer));
    Ok(if keep {
        Next::Request(both)
    } else {
        Next::Close(both)
    })
}

/// After `101`: bytes both ways, for as long as the permission lasts.
async fn tunnel(
    response: Response<ResponseBody>,
    lent: Option<Lent>,
    mut writer: Writer,
    limits: &Limits,
) {
    let (head, body) = response.into_parts();
    // An upgrade comes without a body, so the reader was never lent away.
    let (Some((app, mut exchange, revoked)), Some(Lent::Here(Returned { reader, .. }))) =
        (body.into_tunnel(), lent)
    else {
        return;
    };
    if let Err(fault) = writer.switch(&head.headers).await {
        return exchange.fail(fault);
    }
    let mut peer = reader.io.unsplit(writer.into_io());
    let mut app_socket = app.socket;
    let mut carried = Carried::default();
    let both = async {
        let ahead = async {
            app_socket.write_all(&reader.buffer).await?;
            peer.write_all(&app.read).await?;
            peer.flush().await
        };
        ahead.await.map_err(PeerFault::from)?;
        relay(
            &mut peer,
            &mut app_socket,
            limits.half_closed,
            &mut carried,
            || {},
        )
        .await?;
        Ok::<(), Fault>(())
    };
    let revoked = async {
        match revoked {
            Some(revoked) => revoked.await,
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        biased;
        denied = revoked => Err(denied.into()),
        ended = both => ended,
    };
    exchange.carried(carried);
    match ended {
        Ok(()) => exchange.succeed(),
        Err(fault) => exchange.fail(fault),
    }
}

/// The request in the form both versions share. What the head parser accepted fits these types.
fn asked(head: &RequestHead) -> Asked<'_> {
    let mut headers = HeaderMap::with_capacity(head.fields().len() + 4);
    append(&mut headers, head.fields());
    Asked {
        method: Method::from_bytes(head.method().as_bytes()).unwrap_or_default(),
        path: head.path(),
        query: head.query(),
        authority: head.authority().cloned(),
        headers,
        upgrade: head
            .upgrade()
            .and_then(|protocol| HeaderValue::try_from(protocol).ok()),
    }
}

/// Adds parsed fields.
fn append(headers: &mut HeaderMap, fields: &Fields) {
    for field in fields.iter() {
        let name = HeaderName::from_bytes(field.name().as_bytes());
        let value = HeaderValue::from_bytes(field.value());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
}

/// How a response to this request must be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dialect {
    version: Version,
    asks: Asks,
    trailers: Trailers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asks {
    Whole,
    HeadOnly,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trailers {
    Taken,
    LeftOut,
}

impl Dialect {
    const REFUSED: Self = Self {
        version: Version::Http11,
        asks: Asks::Whole,
        trailers: Trailers::LeftOut,
    };

    fn of(head: &RequestHead) -> Self {
        let takes_trailers = head
            .fields()
            .all("te")
            .filter_map(|value| std::str::from_utf8(value).ok())
            .any(|value| value.split(',').any(|coding| coding.trim() == "trailers"));
        Self {
            version: head.version(),
            asks: if head.method() == "HEAD" {
                Asks::HeadOnly
            } else {
                Asks::Whole
            },
            trailers: if takes_trailers {
                Trailers::Taken
            } else {
                Trailers::LeftOut
            },
        }
    }
}

/// The half of a connection that reads, and what was read ahead.
#[derive(Debug)]
pub(crate) struct Reader {
    io: ReadHalf<Stream>,
    buffer: BytesMut,
    heads: HeadReader,
}

impl Reader {
    fn new(io: ReadHalf<Stream>, limits: &Limits) -> Self {
        let heads = HeadReader::new(head::Limits {
            bytes: limits.head_bytes,
            headers: limits.head_fields,
            target: limits.target_bytes,
        });
        Self {
            io,
            buffer: BytesMut::new(),
            heads,
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        poll_fill(&mut self.io, &mut self.buffer, cx)
    }

    async fn fill(&mut self) -> io::Result<usize> {
        poll_fn(|cx| self.poll_fill(cx)).await
    }

    /// The next head, or nothing when the connection ends between two requests.
    async fn head(
        &mut self,
        turn: Turn,
        limits: &Limits,
        closing: &Closing,
    ) -> Result<Option<RequestHead>, PeerFault> {
        if self.buffer.is_empty() {
            // An idle connection holds no buffer.
            self.buffer = BytesMut::new();
            let patience = match turn {
                Turn::First => limits.head_time,
                Turn::Kept => limits.idle,
            };
            let filled = tokio::select! {
                // A request that is already here is served, whatever else is about to end.
                biased;
                filled = self.fill() => match filled {
                    Err(error) if hangs_up(&error) => 0,
                    filled => filled?,
                },
                () = closing.last_call(limits.last_call), if turn == Turn::Kept => return Ok(None),
                () = tokio::time::sleep(patience) => return Ok(None),
            };
            if filled == 0 {
                return Ok(None);
            }
        }
        let deadline = Deadline::after(limits.head_time);
        loop {
            if let Some(head) = self.heads.request(&mut self.buffer)? {
                return Ok(Some(head));
            }
            match deadline.bound(self.fill()).await {
                Ok(Ok(0)) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => return Err(PeerFault::SendsHeadTooSlowly),
            }
        }
    }
}

/// A peer that goes without a word. Between two requests that harms nobody.
pub(crate) fn hangs_up(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

/// Where the reader is during an exchange.
#[derive(Debug)]
pub(crate) enum Lent {
    Here(Returned),
    /// With the body, which hands it back.
    Away(oneshot::Receiver<Returned>),
}

/// Makes the request's body, which owns the reader until the body ends.
fn lend(reader: Reader, framing: Framing, limits: &Limits) -> (RequestBody, Lent) {
    match framing {
        Framing::None | Framing::Length(0) => (
            RequestBody::empty(),
            Lent::Here(Returned {
                reader,
                rest: Rest::Nothing,
            }),
        ),
        Framing::Length(_) | Framing::Chunked | Framing::UntilClose => {
            let (back, away) = oneshot::channel();
            let borrowed = Borrowed::new(reader, back);
            (
                RequestBody::http1(Upload::new(borrowed, framing, limits)),
                Lent::Away(away),
            )
        }
    }
}

impl Lent {
    /// Ready once the peer has closed or lost the connection. Reads a little ahead to know.
    ///
    /// While the body has the reader, the body notices.
    pub(crate) fn poll_left(lent: &mut Option<Self>, cx: &mut Context<'_>) -> Poll<PeerFault> {
        if let Some(Self::Away(away)) = lent {
            *lent = ready!(Pin::new(away).poll(cx)).ok().map(Self::Here);
        }
        // An unread rest of the body stays unread until the answer is through.
        let Some(Self::Here(Returned {
            reader,
            rest: Rest::Nothing,
        })) = lent
        else {
            return Poll::Pending;
        };
        loop {
            if reader.buffer.len() >= READ_AHEAD {
                return Poll::Pending;
            }
            match ready!(reader.poll_fill(cx)) {
                Ok(0) => return Poll::Ready(PeerFault::Abandons),
                Ok(_) => {}
                Err(error) => return Poll::Ready(error.into()),
            }
        }
    }

    /// Takes the reader back if the body has let go of it.
    fn settle(&mut self) {
        if let Self::Away(away) = self
            && let Ok(returned) = away.try_recv()
        {
            *self = Self::Here(returned);
        }
    }

    /// The reader, once the exchange is over and nothing else holds its body.
    async fn back(lent: Option<Self>) -> Option<Returned> {
        match lent? {
            Self::Here(returned) => Some(returned),
            Self::Away(away) => away.await.ok(),
        }
    }
}

/// Ends a connection whose peer may still be sending: says so, then reads on for a moment, because a
/// reset would take the answer away before it was read.
async fn linger(mut reader: Reader, mut writer: Writer, limits: &Limits) -> Result<(), Fault> {
    let deadline = Deadline::after(limits.linger);
    let _ = deadline.bound(writer.shutdown()).await;
    let mut left = limits.linger_bytes;
    while left > 0 {
        reader.buffer.clear();
        match deadline.bound(reader.fill()).await {
            Ok(Ok(read)) if read > 0 => left = left.saturating_sub(read),
            Ok(_) | Err(_) => break,
        }
    }
    Ok(())
}

/// Data ready to be framed.
fn data(frame: http_body::Frame<Bytes>) -> Result<Bytes, HeaderMap> {
    frame
        .into_data()
        .map_err(|frame| frame.into_trailers().unwrap_or_default())
}

/// The length of a response's body, if it is known from the start.
fn known_length(body: &ResponseBody) -> Option<u64> {
    body.size_hint().exact()
}
