//! The app's side: kept HTTP/1.1 connections to loopback or a Unix socket, and plain ones for TCP.
//!
//! Nobody comes here without a [`Permit`]. A kept connection has no task of its own: it is driven by
//! the request or the body that uses it, and lies still in the pool otherwise. It is used again only
//! within [`Limits::pool_idle`], sooner than any common server closes it, and after a look whether it
//! is still open; and never after a response without a body (to HEAD, 204, 304), because an app that
//! sends one all the same would answer the next request with it.
//!
//! A request is sent a second time only when nothing of it was written, or when a kept connection
//! ended before a word of response to a request that is idempotent and has no body (RFC 9110 §9.2.2).

use std::collections::VecDeque;
use std::error::Error as StdError;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use fender_config::AppAddress;
use fender_runtime::deadline::Deadline;
use fender_runtime::listen::Socket;
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::coop::unconstrained;
use tokio::time::Instant;

use crate::Limits;
use crate::body::RequestBody;
use crate::fault::{Fault, OurFault, PeerFault, UpstreamFault, find};
use crate::permit::Permit;

/// One application, and the idle connections to it.
#[derive(Debug)]
pub(crate) struct App {
    address: AppAddress,
    idle: Mutex<VecDeque<Idle>>,
    links: Arc<Semaphore>,
    limits: Limits,
}

#[derive(Debug)]
struct Idle {
    link: Box<Link>,
    since: Instant,
}

/// One HTTP/1.1 connection and the handle to send on it.
#[derive(Debug)]
struct Link {
    sender: http1::SendRequest<RequestBody>,
    connection: http1::Connection<TokioIo<Socket>, RequestBody>,
    slot: OwnedSemaphorePermit,
}

/// What the app answered.
pub(crate) enum Answered {
    Response(Response<AppBody>),
    /// It changed protocols: the head of its answer, and the bare connection.
    Upgraded(Response<()>, Tunnel),
}

/// A connection to the app after it changed protocols.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) socket: Socket,
    /// What the app sent behind the head.
    pub(crate) read: Bytes,
    _slot: OwnedSemaphorePermit,
}

impl App {
    /// `links` bounds the HTTP connections to all apps of one proxy: many streams may share one
    /// connection of a peer, and each holds a descriptor here.
    pub(crate) fn new(address: AppAddress, links: Arc<Semaphore>, limits: Limits) -> Self {
        Self {
            address,
            idle: Mutex::default(),
            links,
            limits,
        }
    }

    pub(crate) fn address(&self) -> &AppAddress {
        &self.address
    }

    /// A connection of its own.
    pub(crate) async fn connect(
        &self,
        _: &Permit,
        deadline: Deadline,
    ) -> Result<Socket, UpstreamFault> {
        match deadline.bound(dial(&self.address)).await {
            Ok(Ok(socket)) => Ok(socket),
            Ok(Err(error)) => Err(UpstreamFault::Unreachable {
                address: self.address.to_string(),
                error,
            }),
            Err(_) => Err(UpstreamFault::TakesTooLong(1)),
        }
    }

    /// Sends one request and waits for the head of its response.
    ///
    /// Dropping the future ends the request and its connection.
    pub(crate) async fn send(
        self: &Arc<Self>,
        permit: &Permit,
        mut request: Request<RequestBody>,
    ) -> Result<Answered, Fault> {
        let method = request.method().clone();
        if let Some(mut link) = self.take() {
            let again = replay(&request);
            match link.exchange(request).await {
                Ok(response) => return self.answered(link, &method, response).await,
                Err(Failed {
                    unsent: Some(unsent),
                    ..
                }) => request = *unsent,
                Err(Failed {
                    error,
                    unsent: None,
                }) => match again {
                    Some(again) if is_lost(&error) => request = again,
                    Some(_) | None => return Err(blame(error)),
                },
            }
        }
        let deadline = Deadline::after(self.limits.establish);
        let slot = match deadline.bound(self.links.clone().acquire_owned()).await {
            Ok(Ok(slot)) => slot,
            Ok(Err(_)) | Err(_) => return Err(OurFault::Crowded.into()),
        };
        let mut link = Link::open(self.connect(permit, deadline).await?, slot).await?;
        match link.exchange(request).await {
            Ok(response) => self.answered(link, &method, response).await,
            Err(Failed { error, .. }) => Err(blame(error)),
        }
    }

    async fn answered(
        self: &Arc<Self>,
        link: Box<Link>,
        method: &Method,
        response: Response<Incoming>,
    ) -> Result<Answered, Fault> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let (parts, _) = response.into_parts();
            let tunnel = link.into_tunnel().await.map_err(blame)?;
            return Ok(Answered::Upgraded(Response::from_parts(parts, ()), tunnel));
        }
        // Apps that send a body all the same are common, and it would be read as the next answer.
        let afterwards = match response.status() {
            _ if method == Method::HEAD => Afterwards::Drop,
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED => Afterwards::Drop,
            _ => Afterwards::Keep,
        };
        Ok(Answered::Response(response.map(|incoming| {
            let (app, link) = (self.clone(), Some(link));
            let mut body = AppBody {
                app,
                link,
                afterwards,
                incoming,
            };
            // Nobody asks an empty body for its end.
            if body.is_end_stream() {
                body.finish();
            }
            body
        })))
    }

    /// The youngest idle connection that is still open.
    fn take(&self) -> Option<Box<Link>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(Idle { mut link, since }) = idle.pop_back() {
            if since.elapsed() >= self.limits.pool_idle {
                // All others are older.
                idle.clear();
                return None;
            }
            if link.is_open() {
                return Some(link);
            }
        }
        None
    }

    fn keep(&self, link: Box<Link>) {
        // Somebody may be waiting for the slot.
        if self.links.available_permits() == 0 {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() >= self.limits.pool {
            idle.pop_front();
        }
        idle.push_back(Idle {
            link,
            since: Instant::now(),
        });
    }

    /// Closes the idle connections nobody will use any more.
    pub(crate) fn prune(&self) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|idle| idle.since.elapsed() < self.limits.pool_idle);
    }
}

async fn dial(address: &AppAddress) -> io::Result<Socket> {
    match address {
        AppAddress::Loopback(address) => {
            let stream = TcpStream::connect(address.socket_addr()).await?;
            stream.set_nodelay(true)?;
            Ok(Socket::Tcp(stream))
        }
        AppAddress::Unix(path) => UnixStream::connect(path).await.map(Socket::Unix),
    }
}

/// A request that did not get a response.
struct Failed {
    error: hyper::Error,
    /// Given back if nothing of it was written.
    unsent: Option<Box<Request<RequestBody>>>,
}

impl Link {
    async fn open(socket: Socket, slot: OwnedSemaphorePermit) -> Result<Box<Self>, Fault> {
        let (sender, connection) = http1::Builder::new()
            .handshake(TokioIo::new(socket))
            .await
            .map_err(blame)?;
        Ok(Box::new(Self {
            sender,
            connection,
            slot,
        }))
    }

    /// Whether the app has not closed it and has sent nothing unasked, as far as can be known.
    fn is_open(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let connection = &mut self.connection;
        // A task that has used up its turn would see nothing to read, whatever is there.
        let look = unconstrained(poll_fn(|cx| Pin::new(&mut *connection).poll(cx)));
        pin!(look).poll(&mut cx).is_pending() && self.sender.is_ready()
    }

    async fn exchange(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, Failed> {
        let mut response = pin!(self.sender.try_send_request(request));
        let connection = &mut self.connection;
        let mut over = false;
        let answer = poll_fn(|cx| {
            if let Poll::Ready(answer) = response.as_mut().poll(cx) {
                return Poll::Ready(answer);
            }
            if !over {
                // Its own error reaches us through the response.
                over = Pin::new(&mut *connection).poll(cx).is_ready();
                return response.as_mut().poll(cx);
            }
            Poll::Pending
        })
        .await;
        answer.map_err(|mut failed| Failed {
            unsent: failed.take_message().map(Box::new),
            error: failed.into_error(),
        })
    }

    async fn into_tunnel(mut self) -> Result<Tunnel, hyper::Error> {
        poll_fn(|cx| self.connection.poll_without_shutdown(cx)).await?;
        let http1::Parts { io, read_buf, .. } = self.connection.into_parts();
        Ok(Tunnel {
            socket: io.into_inner(),
            read: read_buf,
            _slot: self.slot,
        })
    }
}

/// The request once more, if sending it twice is the same as sending it once.
fn replay(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    let idempotent = [
        Method::GET,
        Method::HEAD,
        Method::OPTIONS,
        Method::TRACE,
        Method::PUT,
        Method::DELETE,
    ];
    if !idempotent.contains(request.method()) || !request.body().is_end_stream() {
        return None;
    }
    let mut again = Request::new(RequestBody::empty());
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.headers_mut() = request.headers().clone();
    Some(again)
}

/// The connection went away under the request, rather than the request being refused.
fn is_lost(error: &hyper::Error) -> bool {
    let broken = |error: &io::Error| {
        matches!(
            error.kind(),
            io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::NotConnected
        )
    };
    error.is_incomplete_message()
        || error.is_canceled()
        || error.is_closed()
        || find::<io::Error>(error).is_some_and(broken)
}

/// A request that failed while its body was read from the peer failed because of the peer.
fn blame(error: hyper::Error) -> Fault {
    if let Some(fault) = find::<PeerFault>(&error) {
        return fault.clone().into();
    }
    let mut text = error.to_string();
    let mut source = StdError::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    UpstreamFault::Breaks(text).into()
}

/// The body of the app's response, which drives its connection and gives it back at its end.
#[derive(Debug)]
pub(crate) struct AppBody {
    app: Arc<App>,
    link: Option<Box<Link>>,
    afterwards: Afterwards,
    incoming: Incoming,
}

/// What becomes of a connection after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Afterwards {
    Keep,
    /// The app may have sent more than the response.
    Drop,
}

impl AppBody {
    /// Drives the connection without taking anything from it.
    pub(crate) fn pump(&mut self, cx: &mut Context<'_>) {
        if let Some(link) = &mut self.link
            && Pin::new(&mut link.connection).poll(cx).is_ready()
        {
            self.link = None;
        }
    }

    /// The response is complete: the connection may serve another request.
    fn finish(&mut self) {
        if let Some(mut link) = self.link.take()
            && self.afterwards == Afterwards::Keep
            && link.is_open()
        {
            self.app.keep(link);
        }
    }
}

impl Body for AppBody {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let this = &mut *self;
        let mut frame = Pin::new(&mut this.incoming).poll_frame(cx);
        if frame.is_pending() {
            this.pump(cx);
            frame = Pin::new(&mut this.incoming).poll_frame(cx);
        }
        match frame {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => {
                this.finish();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Ok(frame))) => {
                if this.incoming.is_end_stream() {
                    this.finish();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                this.link = None;
                Poll::Ready(Some(Err(blame(error))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio::task::coop::poll_proceed;

    use super::*;

    #[tokio::test]
    async fn a_closed_connection_is_seen_to_be_closed_even_by_a_task_that_used_up_its_turn() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (theirs, _) = listener.accept().await.unwrap();
        let slot = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
        let mut link = Link::open(Socket::Tcp(ours), slot).await.unwrap();
        assert!(link.is_open());
        drop(theirs);
        // The end of the connection has arrived once the reactor has had a turn.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        poll_fn(|cx| {
            while let Poll::Ready(step) = poll_proceed(cx) {
                step.made_progress();
            }
            assert!(!link.is_open());
            Poll::Ready(())
        })
        .await;
    }
}
