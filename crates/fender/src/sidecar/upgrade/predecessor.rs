//! The side that serves: gives everything to a successor that is ready, and then is told so.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use fender_api::client::StateDir;
use fender_credentials::cache::Hand;
use fender_runtime::accept::Accept;
use fender_runtime::courier::DESCRIPTORS;
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use fender_runtime::id::OpaqueId;
use fender_runtime::listen::{Listener, Listeners, Socket};
use tokio::sync::{Mutex, mpsc, oneshot, watch};

use super::proof::{Nonces, Own, Side};
use super::wire::{Message, PROTOCOL, Talk, Wants};
use crate::exit::Exit;

/// A successor, an operator who waits, and some who should not be here.
const CONNECTIONS: usize = 8;
/// To say what is wanted, and then to prove who one is: each.
const INTRODUCTION: Duration = Duration::from_secs(5);
/// What this sidecar may yet need to own what it hands over: its own part is quick, and a successor waits no longer.
const SETTLING: Duration = Duration::from_secs(2);
/// What a successor has to open its listeners and say that it is ready; all else it has by then.
const READY: Duration = Duration::from_secs(30);

/// Where successors are received.
pub(crate) struct Desk {
    pub(crate) listeners: Listeners,
    pub(crate) own: Own,
    /// Whose lock is handed over.
    pub(crate) state: Option<StateDir>,
    /// What is kept of credentials, which one of two sidecars changes.
    pub(crate) cache: Option<Hand>,
    /// Whether all of that is this sidecar's yet, and not another's before.
    pub(crate) owned: watch::Receiver<bool>,
    /// Stops when there is nothing left to hand over.
    pub(crate) ending: Drain,
    pub(crate) requests: mpsc::Sender<Request>,
    pub(crate) turn: Mutex<Turn>,
}

/// One successor at a time, and one in the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Turn {
    #[default]
    Open,
    Over,
}

/// What comes of what is said here.
pub(crate) enum Request {
    Upgrade(Answer),
    Reload(Answer),
    /// There is a successor that serves.
    Handed(Handed),
}

/// Says what was done.
pub(crate) type Answer = oneshot::Sender<Result<String, Failed>>;

/// Why it was not done; nothing has changed then.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) why: String,
    pub(crate) exit: Exit,
}

/// To whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handed {
    /// None if it has no number here, as in another container.
    pub(crate) pid: Option<u32>,
}

/// Receives whoever comes, until the drain stops.
pub(crate) async fn serve(listener: Listener, desk: Arc<Desk>, drain: Drain) {
    let mut accept = Accept::new(listener, CONNECTIONS);
    while let Some((socket, _, slot)) = accept.next(&drain).await {
        let desk = Arc::clone(&desk);
        drain.spawn(async move {
            let _slot = slot;
            let Socket::Unix(stream) = socket else {
                return;
            };
            if let Err(error) = desk.receive(Talk::over(stream)).await {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "nothing came of a call at the upgrade socket"
                );
            }
        });
    }
}

impl Desk {
    async fn receive(&self, mut talk: Talk) -> Result<()> {
        let (uid, pid) = talk.peer()?;
        let us = rustix::process::geteuid().as_raw();
        if uid != us && uid != 0 {
            // Not a word to it.
            bail!("refused user {uid}: only user {us} may ask");
        }
        let wants = match talk.hear(Deadline::after(INTRODUCTION)).await? {
            Some(Message::Hello {
                protocol: PROTOCOL,
                version,
                wants,
            }) => {
                tracing::debug!(?pid, version, ?wants, "somebody came to the upgrade socket");
                wants
            }
            Some(Message::Hello {
                protocol, version, ..
            }) => {
                let why = format!(
                    "this sidecar speaks protocol {PROTOCOL} of upgrades, fender {version} speaks {protocol}"
                );
                return refuse(&talk, why).await;
            }
            Some(_) => bail!("it did not introduce itself"),
            None => return Ok(()),
        };
        match wants {
            Wants::TakeOver if uid != us => {
                refuse(
                    &talk,
                    format!("a successor runs as user {us}, not as {uid}"),
                )
                .await
            }
            Wants::TakeOver => self.succeeded(talk, pid).await,
            Wants::Upgrade => self.ask(talk, Request::Upgrade).await,
            Wants::Reload => self.ask(talk, Request::Reload).await,
        }
    }

    /// Passes a request on and its answer back.
    async fn ask(&self, talk: Talk, request: fn(Answer) -> Request) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        let ending = || Failed {
            why: "the sidecar is about to end".to_owned(),
            exit: Exit::Unavailable,
        };
        let came_of = match self.requests.send(request(answer)).await {
            Ok(()) => answered.await.unwrap_or_else(|_| Err(ending())),
            Err(_) => Err(ending()),
        };
        talk.say(&match came_of {
            Ok(what) => Message::Done { what },
            Err(Failed { why, exit }) => Message::Failed {
                why,
                exit: exit.code(),
            },
        })
        .await
    }

    async fn succeeded(&self, mut talk: Talk, pid: Option<u32>) -> Result<()> {
        let mut owned = self.owned.clone();
        let is_owned = Deadline::after(SETTLING).bound(owned.wait_for(|owned| *owned));
        // What is borrowed of the watch is not held on to.
        if !is_owned.await.is_ok_and(|owned| owned.is_ok()) {
            let why = "what this sidecar would hand over is not its own yet: try again";
            return refuse(&talk, why).await;
        }
        let Ok(mut turn) = self.turn.try_lock() else {
            return refuse(&talk, "another successor is being handed over to").await;
        };
        if *turn == Turn::Over || self.ending.is_stopping() {
            return refuse(&talk, "this sidecar serves no more: it is about to end").await;
        }
        let introduction = Deadline::after(INTRODUCTION);
        if let Err(error) = self.introduce(&mut talk, introduction).await {
            refuse(&talk, format!("{error:#}")).await?;
            return Err(error.context("a successor was refused"));
        }
        self.hand_over(&talk).await?;
        match talk.hear(Deadline::after(READY)).await {
            Ok(Some(Message::Ready)) => {}
            Ok(None) => bail!("the successor went before it was ready; this sidecar goes on"),
            Ok(Some(_)) => bail!(
                "the successor said something else than that it is ready; this sidecar goes on"
            ),
            Err(error) => {
                refuse(&talk, "too late: this sidecar goes on").await?;
                return Err(
                    error.context("the successor was not ready in time; this sidecar goes on")
                );
            }
        }
        if self.ending.is_stopping() {
            return refuse(&talk, "too late: this sidecar is about to end").await;
        }
        // From here on it is the successor's: what that removes is not written again here.
        if let Some(cache) = &self.cache
            && !cache.give(super::CACHE).await
        {
            let why = super::the_cache_is_being_written(super::CACHE);
            return refuse(&talk, format!("{why}; this sidecar goes on")).await;
        }
        if self.ending.is_stopping() {
            self.take_cache();
            return refuse(&talk, "too late: this sidecar is about to end").await;
        }
        let handed_on = self.state.as_ref().map(StateDir::hand_on);
        if let Err(error) = talk.say(&Message::Yours).await {
            self.take_cache();
            if let Some(handed_on) = handed_on {
                handed_on.take_back();
            }
            return Err(error.context("the successor went as it was ready; this sidecar goes on"));
        }
        *turn = Turn::Over;
        drop(handed_on);
        // Whoever serves receives this until it ends.
        let _ = self.requests.send(Request::Handed(Handed { pid })).await;
        Ok(())
    }

    fn take_cache(&self) {
        if let Some(cache) = &self.cache {
            cache.take();
        }
    }

    /// The successor first: nobody else learns anything.
    async fn introduce(&self, talk: &mut Talk, limit: Deadline) -> Result<()> {
        let ours = OpaqueId::random();
        talk.say(&Message::Welcome {
            nonce: ours.to_string(),
        })
        .await?;
        let Some(Message::Identity {
            nonce,
            chain,
            signature,
        }) = talk.hear(limit).await?
        else {
            bail!("it did not prove who it is");
        };
        let nonces = Nonces {
            predecessor: ours,
            successor: nonce.parse().context("read its nonce")?,
        };
        self.own
            .check(Side::Successor, nonces, &chain, &signature)?;
        talk.say(&self.own.prove(Side::Predecessor, ours, nonces)?)
            .await
    }

    /// Every listening socket, and the lock of the state directory.
    async fn hand_over(&self, talk: &Talk) -> Result<()> {
        let sockets = self
            .listeners
            .descriptors()
            .context("gather the listeners")?;
        for some in sockets.chunks(DESCRIPTORS) {
            let some: Vec<_> = some.iter().map(|socket| socket.as_fd()).collect();
            talk.send(&Message::Sockets, &some).await?;
        }
        let lock = self.state.as_ref().map(StateDir::lock).transpose();
        let lock = lock
            .context("share the lock of the state directory")?
            .flatten();
        let lock: Vec<_> = lock.iter().map(|lock| lock.as_fd()).collect();
        let handed = Message::Handed {
            sockets: sockets.len(),
        };
        talk.send(&handed, &lock).await
    }
}

async fn refuse(talk: &Talk, why: impl Into<String>) -> Result<()> {
    let why = why.into();
    tracing::warn!(why, "a call at the upgrade socket is refused");
    talk.say(&Message::Refused { why }).await
}

#[cfg(test)]
mod tests {
    use fender_runtime::clock;
    use tokio::net::UnixStream;

    use super::*;
    use crate::testing;

    const SIDECAR: &str = "
apiVersion: fender.dev/v1
kind: Sidecar
metadata: { namespace: shop, name: orders }
spec:
  identity: { files: { certificate: /c.pem, key: /k.pem, bundle: /b.pem } }
";

    fn desk(owned: watch::Receiver<bool>) -> Desk {
        let snapshot = Arc::new(testing::snapshot(SIDECAR));
        Desk {
            listeners: Listeners::none(),
            own: Own {
                svid: None,
                snapshot: watch::channel(snapshot).1,
                clock: clock::system(),
            },
            state: None,
            cache: None,
            owned,
            ending: Drain::new(),
            requests: mpsc::channel(1).0,
            turn: Mutex::default(),
        }
    }

    /// What a successor that calls is told first.
    async fn told(desk: &Desk) -> Message {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let successor = async {
            let mut talk = Talk::over(theirs);
            talk.hello(Wants::TakeOver).await.unwrap();
            let heard = talk.hear(Deadline::after(Duration::from_secs(60))).await;
            heard.unwrap().unwrap()
        };
        // It goes without proving anything, which is an error here.
        let (told, _) = tokio::join!(successor, desk.receive(Talk::over(ours)));
        told
    }

    #[tokio::test]
    async fn what_is_not_this_sidecars_own_yet_is_handed_to_nobody() {
        let (owns, owned) = watch::channel(false);
        let desk = desk(owned);
        // It ended before it was.
        drop(owns);
        let Message::Refused { why } = told(&desk).await else {
            panic!("a successor was received");
        };
        assert!(why.contains("not its own yet"), "{why}");
    }

    #[tokio::test(start_paused = true)]
    async fn attack_who_comes_too_early_takes_nobodys_turn_and_waits_only_so_long() {
        let (_owns, owned) = watch::channel(false);
        let desk = desk(owned);
        let meanwhile = async {
            for _ in 0..3 {
                tokio::time::sleep(SETTLING / 4).await;
                assert!(desk.turn.try_lock().is_ok(), "it is another's turn");
            }
        };
        let (told, ()) = tokio::join!(told(&desk), meanwhile);
        assert!(matches!(told, Message::Refused { .. }), "{told:?}");
    }

    #[tokio::test]
    async fn a_successor_that_comes_a_moment_too_early_waits_for_it() {
        let (owns, owned) = watch::channel(false);
        let desk = desk(owned);
        let becomes = async {
            // The call is there by then, or comes after it: it is received either way.
            tokio::task::yield_now().await;
            owns.send_replace(true);
        };
        let (told, ()) = tokio::join!(told(&desk), becomes);
        assert!(matches!(told, Message::Welcome { .. }), "{told:?}");
    }
}
