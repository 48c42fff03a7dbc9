//! The side that comes: takes everything, says that it is ready, and serves once it is told that all is its own.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use fender_runtime::deadline::Deadline;
use fender_runtime::id::OpaqueId;
use fender_runtime::listen::Listeners;
use tokio::net::UnixStream;

use super::proof::{Nonces, Own, Side};
use super::wire::{Message, Talk, Wants};
use crate::exit::{Exit, Failure};

/// What connecting, proving who one is and receiving everything may take.
const RECEIVING: Duration = Duration::from_secs(10);
/// What the other may take to answer that one is ready.
const ANSWER: Duration = Duration::from_secs(10);
/// How often one is asked who went without a word.
const ATTEMPTS: usize = 3;
const AGAIN: Duration = Duration::from_millis(100);
/// More listening sockets are nobody's.
const SOCKETS: usize = 1024;

/// What is to be taken over.
pub(crate) struct Succession {
    talk: Talk,
    lock: Option<OwnedFd>,
}

/// Whether somebody is there to take over from, as far as a look at the socket tells. In doubt there is.
pub(crate) async fn has_one_before(socket: &Path) -> bool {
    match UnixStream::connect(socket).await {
        Ok(_) => true,
        Err(error) => !is_nobody(&error),
    }
}

/// Takes every listening socket of the sidecar that serves at `socket`; nothing if none does.
pub(crate) async fn begin(
    socket: &Path,
    own: &Own,
    listeners: &Listeners,
) -> Result<Option<Succession>, Failure> {
    for _ in 0..ATTEMPTS {
        let stream = match UnixStream::connect(socket).await {
            Ok(stream) => stream,
            Err(error) if is_nobody(&error) => {
                tracing::info!(socket = %socket.display(), "nobody to take over from");
                return Ok(None);
            }
            Err(error) => return Err(failed(socket, error)),
        };
        match receive(Talk::over(stream), own, listeners).await {
            Ok(Some(succession)) => return Ok(Some(succession)),
            // It was killed, or is ending: then nobody serves there any more.
            Ok(None) => tokio::time::sleep(AGAIN).await,
            Err(error) => return Err(failed(socket, error)),
        }
    }
    Err(failed(
        socket,
        anyhow!("it goes without a word, and is there again"),
    ))
}

fn is_nobody(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

fn failed(socket: &Path, error: impl Into<anyhow::Error>) -> Failure {
    let taking = format!("take over from the sidecar at `{}`", socket.display());
    Failure::unavailable(error.into().context(taking))
}

/// Nothing if it went.
async fn receive(
    mut talk: Talk,
    own: &Own,
    listeners: &Listeners,
) -> anyhow::Result<Option<Succession>> {
    let limit = Deadline::after(RECEIVING);
    let (uid, _) = talk.peer()?;
    let us = rustix::process::geteuid().as_raw();
    anyhow::ensure!(uid == us, "user {uid} serves there, and this is user {us}");
    talk.hello(Wants::TakeOver).await?;
    let Some((welcome, _)) = said(&mut talk, limit).await? else {
        return Ok(None);
    };
    let Message::Welcome { nonce } = welcome else {
        return Err(unexpected(&welcome));
    };
    let nonces = Nonces {
        predecessor: nonce.parse().context("read its nonce")?,
        successor: OpaqueId::random(),
    };
    talk.say(&own.prove(Side::Successor, nonces.successor, nonces)?)
        .await?;
    let Some((identity, _)) = said(&mut talk, limit).await? else {
        return Ok(None);
    };
    let Message::Identity {
        chain, signature, ..
    } = identity
    else {
        return Err(unexpected(&identity));
    };
    own.check(Side::Predecessor, nonces, &chain, &signature)?;

    let mut received = Vec::new();
    let lock = loop {
        match said(&mut talk, limit).await? {
            Some((Message::Sockets, some)) if received.len() + some.len() <= SOCKETS => {
                received.extend(some);
            }
            Some((Message::Sockets, _)) => bail!("it hands over more than {SOCKETS} sockets"),
            Some((Message::Handed { sockets }, mut lock)) if sockets == received.len() => {
                break lock.pop();
            }
            Some((Message::Handed { sockets }, _)) => {
                let here = received.len();
                bail!("it handed over {here} sockets and says {sockets}")
            }
            Some((other, _)) => return Err(unexpected(&other)),
            None => return Ok(None),
        }
    };
    let sockets = received.len();
    tracing::info!(sockets, "received the listeners of the sidecar before");
    listeners
        .take_over(received)
        .context("use the listeners of the sidecar before")?;
    Ok(Some(Succession { talk, lock }))
}

impl Succession {
    /// Says that everything is ready. When this returns, everything is ours, and with it the lock of the state directory
    /// of the one before; or an error says that the one before goes on.
    pub(crate) async fn complete(mut self) -> Result<Option<OwnedFd>, Failure> {
        // Who dies now leaves all of it to us: there is nobody else.
        let said = self.talk.say(&Message::Ready).await;
        let heard = match said {
            Ok(()) => self.talk.hear(Deadline::after(ANSWER)).await,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "the sidecar before is gone");
                return Ok(self.lock);
            }
        };
        match heard {
            Ok(Some(Message::Yours)) => Ok(self.lock),
            Ok(None) => {
                tracing::warn!("the sidecar before went without a word");
                Ok(self.lock)
            }
            Ok(Some(Message::Refused { why })) => Err(Failure::new(
                Exit::Timeout,
                anyhow!("the sidecar before goes on: {why}"),
            )),
            Ok(Some(other)) => Err(Failure::unavailable(unexpected(&other))),
            Err(error) => Err(Failure::unavailable(error)),
        }
    }
}

async fn said(talk: &mut Talk, limit: Deadline) -> anyhow::Result<Option<(Message, Vec<OwnedFd>)>> {
    match talk.receive(limit).await? {
        Some((Message::Refused { why }, _)) => bail!("refused: {why}"),
        said => Ok(said),
    }
}

fn unexpected(message: &Message) -> anyhow::Error {
    anyhow!("it speaks another protocol: it said {message:?}")
}
