//! A connection as the rest of the data plane sees it: bytes in, bytes out, whatever protects them.
//!
//! A [`Stream`] comes out of a finished handshake, or is plain where a document says so. One task
//! drives both of its directions through `&mut`: there is nothing to split and no lock. It says how a
//! peer ended: a TLS peer that goes without `close_notify` has failed ([`io::ErrorKind::UnexpectedEof`]),
//! because what it sent may be cut short; that is never a clean end.
//!
//! It decides nothing about who the peer is or what it may: `tls` does that before there is a `Stream`.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod checks;
mod scratch;
#[cfg(test)]
mod tests;
mod tls;

use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use fender_runtime::listen::Socket;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::{ClientConfig, CommonState, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use tls::Tls;

/// Room for what a plain socket has: as much as TLS opens at once.
const ROOM: usize = scratch::READ;
/// Room for one message of those that are many.
const ROOM_FOR_ONE: usize = 4096;

/// A connection that carries data.
pub(crate) struct Stream {
    inner: Inner,
}

enum Inner {
    Plain(Socket),
    Server(Box<Tls<UnbufferedServerConnection>>),
    Client(Box<Tls<UnbufferedClientConnection>>),
}

/// Runs the same on either side of TLS.
macro_rules! on {
    ($inner:expr, $plain:pat => $raw:expr, $tls:pat => $protected:expr) => {
        match $inner {
            Inner::Plain($plain) => $raw,
            Inner::Server($tls) => $protected,
            Inner::Client($tls) => $protected,
        }
    };
}

impl Stream {
    /// A connection that nothing protects: to the app, or from a peer where a document allows it.
    pub(crate) fn plain(socket: Socket) -> Self {
        Self {
            inner: Inner::Plain(socket),
        }
    }

    /// Ends the TLS of whoever connected. After a failure the alert is on its way, and the socket is
    /// given back for the farewell.
    pub(crate) async fn accept(
        socket: Socket,
        config: Arc<ServerConfig>,
    ) -> Result<Self, (io::Error, Socket)> {
        let session = match UnbufferedServerConnection::new(config) {
            Ok(session) => session,
            Err(error) => return Err((io::Error::other(error), socket)),
        };
        let mut tls = Box::new(Tls::new(socket, session));
        match poll_fn(|cx| tls.poll_handshake(cx)).await {
            Ok(()) => Ok(Self {
                inner: Inner::Server(tls),
            }),
            Err(error) => Err((error, tls.into_socket())),
        }
    }

    /// Begins TLS with the other side.
    pub(crate) async fn connect(
        socket: Socket,
        config: Arc<ClientConfig>,
        server: ServerName<'static>,
    ) -> io::Result<Self> {
        let session = UnbufferedClientConnection::new(config, server).map_err(io::Error::other)?;
        let mut tls = Box::new(Tls::new(socket, session));
        poll_fn(|cx| tls.poll_handshake(cx)).await?;
        Ok(Self {
            inner: Inner::Client(tls),
        })
    }

    /// Has the other side of a plain connection see that it was cut off and did not end. TLS says so by
    /// itself: there is no `close_notify`.
    pub(crate) fn cut_off(&self) {
        on!(&self.inner, socket => socket.cut_off(), _ => {});
    }

    /// What the handshake agreed upon; nothing for a plain connection.
    pub(crate) fn tls(&self) -> Option<&CommonState> {
        on!(&self.inner, _ => None, tls => Some(tls.state()))
    }

    /// The protocol that both sides agreed to speak, if they named any.
    pub(crate) fn alpn(&self) -> Option<&[u8]> {
        self.tls().and_then(CommonState::alpn_protocol)
    }
}

impl Stream {
    /// Like [`Fill::poll_fill`], for a message that is probably small: where nothing is protected, a
    /// reader who makes no room in the buffer has it made for this much.
    pub(crate) fn poll_fill_some(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        match &mut self.inner {
            Inner::Plain(socket) => {
                ready!(socket.poll_read_ready(cx))?;
                buffer.reserve(ROOM_FOR_ONE);
                poll_read_buf(Pin::new(socket), cx, buffer)
            }
            Inner::Server(tls) => tls.poll_fill(cx, buffer),
            Inner::Client(tls) => tls.poll_fill(cx, buffer),
        }
    }
}

/// What is read to the end of a buffer, without a place of its own in between.
pub(crate) trait Fill {
    /// Reads what is there to the end of `buffer`; 0 is the clean end. Holds no memory while there is
    /// nothing.
    fn poll_fill(&mut self, cx: &mut Context<'_>, buffer: &mut BytesMut)
    -> Poll<io::Result<usize>>;
}

impl Fill for Stream {
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        on!(&mut self.inner, socket => socket.poll_fill(cx, buffer), tls => tls.poll_fill(cx, buffer))
    }
}

impl Fill for Socket {
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        // Room is made when there is something to put into it.
        ready!(self.poll_read_ready(cx))?;
        buffer.reserve(ROOM);
        poll_read_buf(Pin::new(self), cx, buffer)
    }
}

impl<S: Fill> Fill for &mut S {
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        (**self).poll_fill(cx, buffer)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        place: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        on!(&mut self.get_mut().inner,
            socket => Pin::new(socket).poll_read(cx, place),
            tls => tls.poll_read(cx, place))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        on!(&mut self.get_mut().inner,
            socket => Pin::new(socket).poll_write(cx, data),
            tls => tls.poll_write(cx, &[IoSlice::new(data)]))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on!(&mut self.get_mut().inner,
            socket => Pin::new(socket).poll_write_vectored(cx, slices),
            tls => tls.poll_write(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on!(&mut self.get_mut().inner,
            socket => Pin::new(socket).poll_flush(cx),
            tls => tls.poll_flush(cx))
    }

    /// Says that nothing follows; the other direction stays open.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on!(&mut self.get_mut().inner,
            socket => Pin::new(socket).poll_shutdown(cx),
            tls => tls.poll_shutdown(cx))
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.inner {
            Inner::Plain(_) => "Stream::Plain",
            Inner::Server(_) | Inner::Client(_) => "Stream::Tls",
        })
    }
}

/// What TLS takes for each connection from a peer, without what rustls has on the heap.
#[cfg(test)]
pub(crate) const SERVER_SIZE: usize = size_of::<Tls<UnbufferedServerConnection>>();
