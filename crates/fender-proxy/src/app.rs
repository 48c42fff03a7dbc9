//! The app's side: kept HTTP/1.1 connections to loopback or a Unix socket, and plain ones for TCP.
//!
//! Nobody comes here without a [`Permit`]. Apps of HTTP/2 are in [`h2c`].

pub(crate) mod h2c;

use std::io;
use std::sync::Arc;

use fender_config::AppAddress;
use fender_identity::Peer;
use fender_runtime::deadline::Deadline;
use fender_runtime::listen::Socket;
use fender_wire::ResponseHead;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::Limits;
use crate::call::{Call, Near, Onward};
use crate::fault::{Fault, UpstreamFault};
use crate::introduction::Introduction;
use crate::permit::Permit;
use crate::pool::{Keeping, Pool};
use crate::stream::Stream;

/// One application, and the idle connections to it.
#[derive(Debug)]
pub(crate) struct App {
    address: AppAddress,
    pool: Arc<Pool>,
}

impl App {
    /// `links` bounds the HTTP connections to all apps of one proxy: many streams may share one
    /// connection of a peer, and each holds a descriptor here.
    pub(crate) fn new(address: AppAddress, links: Arc<Semaphore>, limits: &Arc<Limits>) -> Self {
        Self {
            address,
            pool: Arc::new(Pool::new(links, limits.clone(), Keeping::App)),
        }
    }

    pub(crate) fn address(&self) -> &AppAddress {
        &self.address
    }

    /// Room for one more HTTP connection to an app, or one more request on one of HTTP/2.
    async fn slot(&self, deadline: Deadline) -> Result<OwnedSemaphorePermit, Fault> {
        self.pool.slot(deadline).await
    }

    fn limits(&self) -> &Limits {
        self.pool.limits()
    }

    /// A connection of its own, with what the app is to be told of it already on its way.
    pub(crate) async fn connect(
        &self,
        _: &Permit,
        introduction: Option<&Introduction>,
        deadline: Deadline,
    ) -> Result<Socket, UpstreamFault> {
        let dial = async {
            let mut socket = dial(&self.address).await?;
            if let Some(introduction) = introduction {
                socket.write_all(introduction.header()).await?;
            }
            Ok(socket)
        };
        match deadline.bound(dial).await {
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
        &self,
        permit: &Permit,
        introduction: Option<&Introduction>,
        onward: &Onward,
        near: &mut impl Near,
    ) -> Result<(ResponseHead, Call), Fault> {
        let open = async |deadline| {
            let socket = self.connect(permit, introduction, deadline).await?;
            Ok((Stream::plain(socket), Peer::Anonymous))
        };
        let sent = self.pool.send(onward, near, introduction, open).await;
        sent.map(|(head, call)| (head, Call::from(call)))
    }

    /// Closes the idle connections nobody will use any more.
    pub(crate) fn prune(&self) {
        self.pool.prune();
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
