//! A connection as the rest of the data plane sees it: bytes in, bytes out, whatever protects them.
//!
//! A [`Stream`] comes out of a finished handshake, or is plain where a document says so. One task
//! drives both of its directions through `&mut`: there is nothing to split and no lock. It says how a
//! peer ended: a TLS peer that goes without `close_notify` has failed ([`io::ErrorKind::UnexpectedEof`]),
//! because what it sent may be cut short; that is never a clean end.
//!
//! It decides nothing about who the peer is or what it may: `tls` does that before there is a `Stream`.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::BytesMut;
use fender_runtime::listen::Socket;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, CommonState, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::relay;

/// A connection that carries data.
#[derive(Debug)]
pub(crate) struct Stream {
    inner: Inner,
}

#[derive(Debug)]
enum Inner {
    Plain(Socket),
    Server(Box<tokio_rustls::server::TlsStream<Socket>>),
    Client(Box<tokio_rustls::client::TlsStream<Socket>>),
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
        let stream = TlsAcceptor::from(config).accept(socket).into_fallible();
        Ok(Self {
            inner: Inner::Server(Box::new(stream.await?)),
        })
    }

    /// Begins TLS with the other side.
    pub(crate) async fn connect(
        socket: Socket,
        config: Arc<ClientConfig>,
        server: ServerName<'static>,
    ) -> io::Result<Self> {
        let stream = TlsConnector::from(config).connect(server, socket).await?;
        Ok(Self {
            inner: Inner::Client(Box::new(stream)),
        })
    }

    /// What the handshake agreed upon; nothing for a plain connection.
    pub(crate) fn tls(&self) -> Option<&CommonState> {
        match &self.inner {
            Inner::Plain(_) => None,
            Inner::Server(stream) => Some(stream.get_ref().1),
            Inner::Client(stream) => Some(stream.get_ref().1),
        }
    }

    /// The protocol that both sides agreed to speak, if they named any.
    pub(crate) fn alpn(&self) -> Option<&[u8]> {
        self.tls().and_then(CommonState::alpn_protocol)
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
        relay::poll_fill(self, buffer, cx)
    }
}

impl Fill for Socket {
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        relay::poll_fill(self, buffer, cx)
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
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Inner::Plain(socket) => Pin::new(socket).poll_read(cx, buffer),
            Inner::Server(stream) => Pin::new(stream).poll_read(cx, buffer),
            Inner::Client(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().inner {
            Inner::Plain(socket) => Pin::new(socket).poll_write(cx, data),
            Inner::Server(stream) => Pin::new(stream).poll_write(cx, data),
            Inner::Client(stream) => Pin::new(stream).poll_write(cx, data),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().inner {
            Inner::Plain(socket) => Pin::new(socket).poll_write_vectored(cx, slices),
            Inner::Server(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Inner::Client(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Inner::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Inner::Server(stream) => Pin::new(stream).poll_flush(cx),
            Inner::Client(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    /// Says that nothing follows; the other direction stays open.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Inner::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Inner::Server(stream) => Pin::new(stream).poll_shutdown(cx),
            Inner::Client(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
