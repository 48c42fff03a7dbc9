//! Responses on their way to the peer.
//!
//! What is there is gathered into few writes; what is not there yet is not waited for. While a write
//! is stuck the rest of the request still goes on to the app, so neither side can hold the other.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use fender_wire::body::{EncodeError, Encoder, Framing};
use fender_wire::write::{HeadWriter, WriteError};
use fender_wire::{Fields, Version};
use http::header::{CONNECTION, CONTENT_LENGTH, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::response::Parts;
use http::{HeaderMap, Response, StatusCode};
use http_body::Body;
use tokio::io::{AsyncWriteExt, WriteHalf};
use tokio::time::timeout;

use super::{Asks, Dialect, Lent, Trailers, data, known_length};
use crate::Limits;
use crate::body::{CutShort, ResponseBody};
use crate::fault::{Fault, OurFault, PeerFault};
use crate::stream::Stream;

/// Gathered before it is written.
const GATHER: usize = 64 * 1024;

/// The half of a connection that writes.
#[derive(Debug)]
pub(crate) struct Writer {
    io: WriteHalf<Stream>,
    out: BytesMut,
    stall: Duration,
    linger: Duration,
}

/// Whether a connection is kept after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Persistence {
    Keep,
    Close,
}

/// How gathering ended.
enum Gathered {
    /// There is more to come.
    Part,
    Whole,
}

impl Writer {
    pub(super) fn new(io: WriteHalf<Stream>, limits: &Limits) -> Self {
        Self {
            io,
            out: BytesMut::new(),
            stall: limits.stall,
            linger: limits.linger,
        }
    }

    /// Writes a whole response. `wished` is what should become of the connection; the result is what
    /// will.
    ///
    /// Nothing, if the response broke off: its exchange knows why, and the connection is only good
    /// for dropping, because there is no other way to tell the peer.
    pub(super) async fn respond(
        &mut self,
        response: Response<ResponseBody>,
        dialect: Dialect,
        wished: Persistence,
        lent: &mut Option<Lent>,
    ) -> Option<Persistence> {
        let (head, mut body) = response.into_parts();
        let framing = framing(head.status, &head.headers, &body, dialect);
        let persistence = match dialect.version {
            Version::Http10 => Persistence::Close,
            Version::Http11 => wished,
        };
        let written = match self.head(&head, framing, persistence) {
            Err(error) => Err(Some(OurFault::Unwritable(error.to_string()).into())),
            Ok(()) if dialect.asks == Asks::HeadOnly || bodiless(head.status) => {
                finish(&mut body).await;
                self.push(&mut body).await.map_err(Some)
            }
            Ok(()) => self.stream(&mut body, framing, dialect, lent).await,
        };
        match written {
            Ok(()) => Some(persistence),
            Err(fault) => {
                if let Some(fault) = fault {
                    body.fail(fault);
                }
                None
            }
        }
    }

    /// Writes the body as it comes. An error without a fault is one the body knows already.
    async fn stream(
        &mut self,
        body: &mut ResponseBody,
        framing: Framing,
        dialect: Dialect,
        lent: &mut Option<Lent>,
    ) -> Result<(), Option<Fault>> {
        let mut encoder = Encoder::new(framing);
        loop {
            let gathered = self
                .gather(body, &mut encoder, framing, dialect, lent)
                .await?;
            self.push(body).await?;
            if let Gathered::Whole = gathered {
                return Ok(());
            }
        }
    }

    fn head(
        &mut self,
        parts: &Parts,
        framing: Framing,
        persistence: Persistence,
    ) -> Result<(), WriteError> {
        let mut head = HeadWriter::response(&mut self.out, parts.status.as_u16());
        for (name, value) in &parts.headers {
            // A 204 has no length (RFC 9110 §8.6): who believed one would wait for a body.
            let replaced = *name == CONTENT_LENGTH
                && (framing != Framing::None || parts.status == StatusCode::NO_CONTENT);
            if !replaced && *name != TRANSFER_ENCODING && *name != CONNECTION {
                head.field(name.as_str(), value.as_bytes())?;
            }
        }
        head.framing(framing);
        if persistence == Persistence::Close {
            head.close();
        }
        head.end();
        Ok(())
    }

    /// Takes from the body what is there, waiting only for the first of it.
    async fn gather(
        &mut self,
        body: &mut ResponseBody,
        encoder: &mut Encoder,
        framing: Framing,
        dialect: Dialect,
        lent: &mut Option<Lent>,
    ) -> Result<Gathered, Option<Fault>> {
        let out = &mut self.out;
        let unwritable = |error: EncodeError| Some(OurFault::Unwritable(error.to_string()).into());
        poll_fn(|cx| {
            loop {
                if out.len() >= GATHER {
                    return Poll::Ready(Ok(Gathered::Part));
                }
                match Pin::new(&mut *body).poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) => match data(frame) {
                        Ok(data) => out.put(encoder.data(data).map_err(unwritable)?),
                        Err(trailers)
                            if framing == Framing::Chunked
                                && dialect.trailers == Trailers::Taken =>
                        {
                            last_chunk(&trailers, out);
                            return Poll::Ready(Ok(Gathered::Whole));
                        }
                        // Left out; the end comes next.
                        Err(_) => {}
                    },
                    Poll::Ready(None) => {
                        out.put(encoder.end(&Fields::default()).map_err(unwritable)?);
                        return Poll::Ready(Ok(Gathered::Whole));
                    }
                    Poll::Ready(Some(Err(CutShort))) => return Poll::Ready(Err(None)),
                    Poll::Pending if !out.is_empty() => return Poll::Ready(Ok(Gathered::Part)),
                    Poll::Pending => {
                        return Lent::poll_left(lent, cx).map(|fault| Err(Some(fault.into())));
                    }
                }
            }
        })
        .await
    }

    /// Writes what was gathered.
    async fn push(&mut self, body: &mut ResponseBody) -> Result<(), Fault> {
        let Self { io, out, stall, .. } = self;
        let write = async {
            io.write_all(out).await?;
            io.flush().await
        };
        let mut write = pin!(timeout(*stall, write));
        poll_fn(|cx| {
            let written = match write.as_mut().poll(cx) {
                Poll::Ready(written) => written,
                Poll::Pending => return Poll::Ready(Err(ready!(body.poll_pump(cx)))),
            };
            Poll::Ready(match written {
                Ok(written) => written.map_err(|error| PeerFault::from(error).into()),
                Err(_) => Err(PeerFault::Stalls.into()),
            })
        })
        .await?;
        self.emptied();
        Ok(())
    }

    /// An idle connection holds no large buffer.
    fn emptied(&mut self) {
        if self.out.capacity() > GATHER {
            self.out = BytesMut::new();
        } else {
            self.out.clear();
        }
    }

    /// Writes an interim response.
    pub(super) async fn interim(&mut self, head: &[u8]) -> Result<(), Fault> {
        self.out.put_slice(head);
        self.write_out().await
    }

    /// Writes `101`; the connection is the app's from here on.
    pub(super) async fn switch(&mut self, headers: &HeaderMap) -> Result<(), Fault> {
        let unwritable = |error: WriteError| OurFault::Unwritable(error.to_string());
        let status = StatusCode::SWITCHING_PROTOCOLS.as_u16();
        let mut head = HeadWriter::response(&mut self.out, status);
        for (name, value) in headers {
            if *name != UPGRADE && *name != CONTENT_LENGTH {
                head.field(name.as_str(), value.as_bytes())
                    .map_err(unwritable)?;
            }
        }
        if let Some(protocol) = headers.get(UPGRADE).and_then(|value| value.to_str().ok()) {
            head.upgrade(protocol).map_err(unwritable)?;
        }
        head.end();
        self.write_out().await
    }

    async fn write_out(&mut self) -> Result<(), Fault> {
        let write = async {
            self.io.write_all(&self.out).await?;
            self.io.flush().await
        };
        match timeout(self.stall, write).await {
            Ok(written) => written.map_err(PeerFault::from)?,
            Err(_) => return Err(PeerFault::Stalls.into()),
        }
        self.emptied();
        Ok(())
    }

    /// Says that nothing follows.
    pub(super) async fn shutdown(&mut self) -> std::io::Result<()> {
        self.io.shutdown().await
    }

    /// Ends a connection on which nothing is open.
    pub(super) async fn close(mut self) -> Result<(), Fault> {
        // Whether the peer takes notice is its own affair.
        let _ = timeout(self.linger, self.shutdown()).await;
        Ok(())
    }

    pub(super) fn into_io(self) -> WriteHalf<Stream> {
        self.io
    }
}

/// Takes the end of a body that is not written: with it the app's connection is given back.
async fn finish(body: &mut ResponseBody) {
    poll_fn(|cx| {
        loop {
            match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(CutShort)) | None) | Poll::Pending => return Poll::Ready(()),
            }
        }
    })
    .await;
}

fn bodiless(status: StatusCode) -> bool {
    status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
}

fn framing(
    status: StatusCode,
    headers: &HeaderMap,
    body: &ResponseBody,
    dialect: Dialect,
) -> Framing {
    if bodiless(status) {
        return Framing::None;
    }
    if dialect.asks == Asks::HeadOnly {
        // What a GET would have said, if the app said it: copied with the other fields.
        return if headers.contains_key(CONTENT_LENGTH) {
            Framing::None
        } else {
            known_length(body)
                .filter(|length| *length > 0)
                .map_or(Framing::None, Framing::Length)
        };
    }
    match (known_length(body), dialect.version) {
        (Some(length), _) => Framing::Length(length),
        (None, Version::Http11) => Framing::Chunked,
        (None, Version::Http10) => Framing::UntilClose,
    }
}

/// The last chunk with the app's trailers.
fn last_chunk(trailers: &HeaderMap, out: &mut BytesMut) {
    out.put_slice(b"0\r\n");
    for (name, value) in trailers {
        if *name == TRAILER || fender_wire::connection::is_protected(name.as_str().as_bytes()) {
            continue;
        }
        out.put_slice(name.as_str().as_bytes());
        out.put_slice(b": ");
        out.put_slice(value.as_bytes());
        out.put_slice(b"\r\n");
    }
    out.put_slice(b"\r\n");
}
