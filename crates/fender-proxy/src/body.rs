//! The bodies that pass through: a request's on its way to the app, a response's on its way back.
//!
//! Nothing is collected: a body moves when the other side takes it, so back-pressure reaches from one
//! end to the other. A response's body also carries the end of its request: the access line, and the
//! permission, which may end while it is still open (A8).

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;

use crate::app::{AppBody, Tunnel};
use crate::fault::{Fault, PeerFault};
use crate::headers;
use crate::http1::Upload;
use crate::http2;
use crate::permit::Denied;
use crate::request::Exchange;

/// What a peer sends.
#[derive(Debug)]
pub(crate) struct RequestBody {
    kind: RequestKind,
    received: Arc<AtomicU64>,
}

#[derive(Debug)]
enum RequestKind {
    Empty,
    Http1(Box<Upload>),
    Http2(hyper::body::Incoming),
}

/// How the app is told the length of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Length {
    None,
    Known(u64),
    Chunked,
}

impl RequestBody {
    pub(crate) fn empty() -> Self {
        Self {
            kind: RequestKind::Empty,
            received: Arc::default(),
        }
    }

    pub(crate) fn http1(upload: Upload) -> Self {
        Self {
            kind: RequestKind::Http1(Box::new(upload)),
            received: Arc::default(),
        }
    }

    pub(crate) fn http2(incoming: hyper::body::Incoming) -> Self {
        if incoming.is_end_stream() {
            Self::empty()
        } else {
            Self {
                kind: RequestKind::Http2(incoming),
                received: Arc::default(),
            }
        }
    }

    /// Counts what passes.
    pub(crate) fn received(&self) -> Arc<AtomicU64> {
        self.received.clone()
    }

    pub(crate) fn length(&self) -> Length {
        match &self.kind {
            RequestKind::Empty => Length::None,
            RequestKind::Http1(_) | RequestKind::Http2(_) => match self.size_hint().exact() {
                Some(length) => Length::Known(length),
                None => Length::Chunked,
            },
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = PeerFault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, PeerFault>>> {
        let frame = match &mut self.kind {
            RequestKind::Empty => Poll::Ready(None),
            RequestKind::Http1(upload) => Pin::new(&mut **upload).poll_frame(cx),
            RequestKind::Http2(incoming) => Pin::new(incoming)
                .poll_frame(cx)
                .map_err(|error| PeerFault::Http2(error.to_string())),
        };
        frame.map_ok(|frame| {
            if let Some(data) = frame.data_ref() {
                self.received
                    .fetch_add(data.len() as u64, Ordering::Relaxed);
            }
            without_ours(frame)
        })
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            RequestKind::Empty => true,
            RequestKind::Http1(upload) => upload.is_end_stream(),
            RequestKind::Http2(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            RequestKind::Empty => SizeHint::with_exact(0),
            RequestKind::Http1(upload) => upload.size_hint(),
            RequestKind::Http2(incoming) => incoming.size_hint(),
        }
    }
}

fn without_ours(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            headers::sanitise_trailers(&mut trailers);
            Frame::trailers(trailers)
        }
        Err(frame) => frame,
    }
}

/// Resolves when the permission for an open exchange ends.
pub(crate) type Revoked = Pin<Box<dyn Future<Output = Denied> + Send>>;

/// What the peer gets.
pub(crate) struct ResponseBody {
    kind: ResponseKind,
    /// Ends with the body: writes the access line.
    exchange: Exchange,
    revoked: Option<Revoked>,
}

enum ResponseKind {
    /// Made here.
    Ours(Full<Bytes>),
    App(Box<AppBody>),
    /// The app changed protocols.
    Tunnel(Option<Box<Tunnel>>),
}

impl ResponseBody {
    pub(crate) fn ours(text: Bytes, exchange: Exchange) -> Self {
        Self {
            kind: ResponseKind::Ours(Full::new(text)),
            exchange,
            revoked: None,
        }
    }

    pub(crate) fn app(body: AppBody, mut exchange: Exchange, revoked: Revoked) -> Self {
        // Nobody asks an empty body for its end.
        if body.is_end_stream() {
            exchange.succeed();
        }
        Self {
            kind: ResponseKind::App(Box::new(body)),
            exchange,
            revoked: Some(revoked),
        }
    }

    pub(crate) fn tunnel(tunnel: Tunnel, exchange: Exchange, revoked: Revoked) -> Self {
        let kind = ResponseKind::Tunnel(Some(Box::new(tunnel)));
        Self {
            kind,
            exchange,
            revoked: Some(revoked),
        }
    }

    /// The way to the app after it changed protocols, with what ends it and what records it.
    pub(crate) fn into_tunnel(self) -> Option<(Box<Tunnel>, Exchange, Option<Revoked>)> {
        match self.kind {
            ResponseKind::Tunnel(Some(tunnel)) => Some((tunnel, self.exchange, self.revoked)),
            ResponseKind::Tunnel(None) | ResponseKind::Ours(_) | ResponseKind::App(_) => None,
        }
    }

    /// Lets the rest of the request go on to the app while the response cannot be written.
    pub(crate) fn poll_pump(&mut self, cx: &mut Context<'_>) -> Poll<Fault> {
        if let Some(denied) = self.poll_revoked(cx) {
            return Poll::Ready(denied);
        }
        if let ResponseKind::App(body) = &mut self.kind {
            body.pump(cx);
        }
        Poll::Pending
    }

    /// The end that the body cannot see: the peer has gone, or the connection is cut.
    pub(crate) fn fail(&mut self, fault: Fault) {
        self.exchange.fail(fault);
    }

    fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Option<Fault> {
        match self.revoked.as_mut()?.as_mut().poll(cx) {
            Poll::Ready(denied) => {
                self.revoked = None;
                Some(denied.into())
            }
            Poll::Pending => None,
        }
    }
}

/// The response was cut short. What the reason was stays with us.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the response was cut short")]
pub(crate) struct CutShort;

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = CutShort;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CutShort>>> {
        let this = &mut *self;
        http2::taken();
        if let Some(denied) = this.poll_revoked(cx) {
            this.exchange.fail(denied);
            this.kind = ResponseKind::Tunnel(None);
            return Poll::Ready(Some(Err(CutShort)));
        }
        let frame = match &mut this.kind {
            ResponseKind::Ours(text) => Pin::new(text)
                .poll_frame(cx)
                .map_err(|never: Infallible| match never {}),
            ResponseKind::App(body) => Pin::new(&mut **body).poll_frame(cx),
            ResponseKind::Tunnel(_) => Poll::Ready(None),
        };
        match frame {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => {
                this.exchange.succeed();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    http2::given(this.exchange.sent(data.len()));
                }
                if this.is_end_stream() {
                    this.exchange.succeed();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(fault))) => {
                this.exchange.fail(fault);
                Poll::Ready(Some(Err(CutShort)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            ResponseKind::Ours(text) => text.is_end_stream(),
            ResponseKind::App(body) => body.is_end_stream(),
            ResponseKind::Tunnel(_) => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            ResponseKind::Ours(text) => text.size_hint(),
            ResponseKind::App(body) => body.size_hint(),
            ResponseKind::Tunnel(_) => SizeHint::with_exact(0),
        }
    }
}

impl std::fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseBody").finish_non_exhaustive()
    }
}
