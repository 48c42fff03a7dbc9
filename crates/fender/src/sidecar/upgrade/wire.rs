//! What is said at the upgrade socket: one JSON object a line, the first of which names the protocol.
//!
//! Lines hold 64 KiB and bring 64 descriptors at most ([`fender_runtime::courier`]); whoever waits for one has a deadline.

use std::os::fd::{BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result, bail};
use fender_runtime::courier::Courier;
use fender_runtime::deadline::Deadline;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

/// Of what is said here. Who speaks another is refused, and told which is spoken.
pub(super) const PROTOCOL: u32 = 1;

/// What somebody who connects wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Wants {
    TakeOver,
    Upgrade,
    Reload,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub(crate) enum Message {
    /// First of all, from whoever connects.
    Hello {
        protocol: u32,
        /// For the log.
        version: String,
        wants: Wants,
    },
    /// Instead of anything else.
    Refused { why: String },
    /// To a successor: prove it, by this.
    Welcome { nonce: String },
    /// Who speaks, by chain (PEM) and signature (base64) over both nonces. First the successor, then the one before.
    Identity {
        nonce: String,
        chain: String,
        signature: String,
    },
    /// Listening sockets come with this; there are more.
    Sockets,
    /// These were all; the lock of the state directory may come with this.
    Handed { sockets: usize },
    /// The successor would serve now.
    Ready,
    /// It is the one that serves.
    Yours,
    /// To an operator: what was asked for is done.
    Done { what: String },
    /// It is not, and nothing has changed. `exit` is for the shell.
    Failed { why: String, exit: u8 },
    /// From another version.
    #[serde(other)]
    Unknown,
}

/// A conversation.
pub(crate) struct Talk(Courier);

impl Talk {
    pub(crate) fn over(stream: UnixStream) -> Self {
        Self(Courier::new(stream))
    }

    /// Not cancel safe.
    pub(crate) async fn say(&self, message: &Message) -> Result<()> {
        self.send(message, &[]).await
    }

    pub(super) async fn send(&self, message: &Message, along: &[BorrowedFd<'_>]) -> Result<()> {
        let line = serde_json::to_string(message).context("write a message")?;
        self.0.say(&line, along).await.context("speak to the other")
    }

    /// The next message; nothing once the other end is closed.
    pub(crate) async fn hear(&mut self, deadline: Deadline) -> Result<Option<Message>> {
        let heard = self.receive(deadline).await?;
        Ok(heard.map(|(message, _)| message))
    }

    pub(super) async fn receive(
        &mut self,
        deadline: Deadline,
    ) -> Result<Option<(Message, Vec<OwnedFd>)>> {
        let Ok(heard) = deadline.bound(self.0.hear()).await else {
            bail!("the other said nothing in time");
        };
        let Some((line, along)) = heard.context("hear the other")? else {
            return Ok(None);
        };
        let message = serde_json::from_str(&line)
            .context("what answers at this socket speaks otherwise: it is not an upgrade socket")?;
        Ok(Some((message, along)))
    }

    /// Introduces who connects.
    pub(crate) async fn hello(&self, wants: Wants) -> Result<()> {
        self.say(&Message::Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            wants,
        })
        .await
    }

    /// Who is at the other end, by the kernel's word: user, and process if it has a number here.
    pub(super) fn peer(&self) -> Result<(u32, Option<u32>)> {
        let peer = self.0.stream().peer_cred();
        let peer = peer.context("ask the kernel who is at the other end")?;
        let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok());
        Ok((peer.uid(), pid.filter(|pid| *pid != 0)))
    }
}
