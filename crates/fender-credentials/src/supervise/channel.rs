//! What supervisor and proxy say to each other: short lines over a pair of sockets.
//!
//! The proxy's end is its standard input, which it has no other use for; no number of a descriptor
//! has to be agreed on. Its end of file means that the supervisor is gone. Descriptors that come with other lines than the one that
//! brings a socket are closed unseen.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use fender_config::snapshot::NotifySignal;
use fender_runtime::courier::Courier;
use tokio::net::UnixStream;

use crate::notify::AppNotice;

/// What the proxy says when it sends a socket along, over which it tells what it delivers ([`super::hidden`]).
pub(super) const MASKS: &str = "masks";

/// What the supervisor asks of the proxy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Order {
    /// Take no new inbound work and end what there is; outbound goes on.
    DrainInbound,
    /// No successor was started: there is one already, or everything is about to end.
    UpgradeRefused,
    /// The successor ended with this code before it was ready.
    UpgradeFailed(u8),
    /// The application was told, or started again, as this request asked.
    AppTold(u64),
    /// There is none to be told, or it is about to end.
    AppNotTold(u64),
    /// The application has ended by itself, and is started again after a while.
    AppRests,
    /// It runs again.
    AppRuns,
}

/// The proxy's view of its supervisor.
#[derive(Debug)]
pub struct Superior {
    channel: Channel,
}

impl Superior {
    /// Finds the supervisor at the other end of standard input.
    pub fn from_stdin() -> io::Result<Self> {
        let descriptor = io::stdin().as_fd().try_clone_to_owned()?;
        let stream = std::os::unix::net::UnixStream::from(descriptor);
        // Fails on anything but such a socket.
        stream.peer_addr()?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            channel: Channel::new(UnixStream::from_std(stream)?),
        })
    }

    /// Says that everything needed to serve is there.
    pub fn ready(&self) -> io::Result<()> {
        self.channel.say(Word::Ready)
    }

    /// Asks to be succeeded by the program that lies at our path now.
    pub fn upgrade(&self) -> io::Result<()> {
        self.channel.say(Word::Upgrade)
    }

    /// Asks to have the application told that something has changed; the answer is an [`Order`] with this number.
    pub fn tell_app(&self, notice: AppNotice, number: u64) -> io::Result<()> {
        self.channel.say(match notice {
            AppNotice::Signal(signal) => Word::SignalApp(signal, number),
            AppNotice::Restart => Word::RestartApp(number),
        })
    }

    /// Says that what SIGHUP asked for is done.
    pub fn reloaded(&self) -> io::Result<()> {
        self.channel.say(Word::Reloaded)
    }

    /// The next order, or nothing once the supervisor is gone. Cancel safe.
    pub async fn next_order(&mut self) -> Option<Order> {
        loop {
            match self.channel.next().await? {
                Word::DrainInbound => return Some(Order::DrainInbound),
                Word::UpgradeRefused => return Some(Order::UpgradeRefused),
                Word::UpgradeFailed(code) => return Some(Order::UpgradeFailed(code)),
                Word::AppTold(number) => return Some(Order::AppTold(number)),
                Word::AppNotTold(number) => return Some(Order::AppNotTold(number)),
                Word::AppRests => return Some(Order::AppRests),
                Word::AppRuns => return Some(Order::AppRuns),
                Word::Ready
                | Word::Upgrade
                | Word::Reloaded
                | Word::Masks
                | Word::SignalApp(..)
                | Word::RestartApp(_)
                | Word::Unknown => {}
            }
        }
    }
}

/// One line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Word {
    Ready,
    Upgrade,
    Reloaded,
    /// With a socket.
    Masks,
    DrainInbound,
    UpgradeRefused,
    UpgradeFailed(u8),
    SignalApp(NotifySignal, u64),
    RestartApp(u64),
    AppTold(u64),
    AppNotTold(u64),
    AppRests,
    AppRuns,
    /// From another version.
    Unknown,
}

const UPGRADE_FAILED: &str = "upgrade-failed ";
const SIGNAL_APP: &str = "signal-app ";
const RESTART_APP: &str = "restart-app ";
const APP_TOLD: &str = "app-told ";
const APP_NOT_TOLD: &str = "app-not-told ";

impl Word {
    fn line(self) -> String {
        match self {
            Self::Ready => "ready\n".to_owned(),
            Self::Upgrade => "upgrade\n".to_owned(),
            Self::Reloaded => "reloaded\n".to_owned(),
            Self::Masks => format!("{MASKS}\n"),
            Self::DrainInbound => "drain-inbound\n".to_owned(),
            Self::UpgradeRefused => "upgrade-refused\n".to_owned(),
            Self::UpgradeFailed(code) => format!("{UPGRADE_FAILED}{code}\n"),
            Self::SignalApp(signal, number) => format!("{SIGNAL_APP}{signal} {number}\n"),
            Self::RestartApp(number) => format!("{RESTART_APP}{number}\n"),
            Self::AppTold(number) => format!("{APP_TOLD}{number}\n"),
            Self::AppNotTold(number) => format!("{APP_NOT_TOLD}{number}\n"),
            Self::AppRests => "app-rests\n".to_owned(),
            Self::AppRuns => "app-runs\n".to_owned(),
            Self::Unknown => "\n".to_owned(),
        }
    }

    /// Without its end.
    fn from_line(line: &str) -> Self {
        let plain = [
            Self::Ready,
            Self::Upgrade,
            Self::Reloaded,
            Self::Masks,
            Self::DrainInbound,
            Self::UpgradeRefused,
            Self::AppRests,
            Self::AppRuns,
        ];
        let code = || line.strip_prefix(UPGRADE_FAILED)?.parse().ok();
        let numbered = |prefix| line.strip_prefix(prefix)?.parse().ok();
        let signal = || {
            let (name, number) = line.strip_prefix(SIGNAL_APP)?.split_once(' ')?;
            let signal = NotifySignal::named(name)?;
            Some(Self::SignalApp(signal, number.parse().ok()?))
        };
        plain
            .into_iter()
            .find(|word| word.line().trim_end() == line)
            .or_else(|| code().map(Self::UpgradeFailed))
            .or_else(signal)
            .or_else(|| numbered(RESTART_APP).map(Self::RestartApp))
            .or_else(|| numbered(APP_TOLD).map(Self::AppTold))
            .or_else(|| numbered(APP_NOT_TOLD).map(Self::AppNotTold))
            .unwrap_or(Self::Unknown)
    }
}

impl From<Order> for Word {
    fn from(order: Order) -> Self {
        match order {
            Order::DrainInbound => Self::DrainInbound,
            Order::UpgradeRefused => Self::UpgradeRefused,
            Order::UpgradeFailed(code) => Self::UpgradeFailed(code),
            Order::AppTold(number) => Self::AppTold(number),
            Order::AppNotTold(number) => Self::AppNotTold(number),
            Order::AppRests => Self::AppRests,
            Order::AppRuns => Self::AppRuns,
        }
    }
}

/// One end.
#[derive(Debug)]
pub(super) struct Channel {
    courier: Courier,
    /// What came with the last line.
    brought: Option<OwnedFd>,
}

impl Channel {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            courier: Courier::new(stream),
            brought: None,
        }
    }

    /// Says a line. Does not wait: a channel that is full has an end that does not listen.
    pub(super) fn say(&self, word: Word) -> io::Result<()> {
        let line = word.line();
        // Past tokio, which does not try before it has once seen the socket writable.
        let said = rustix::io::write(self.courier.stream(), line.as_bytes())?;
        if said == line.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    /// The next line, or nothing once the other end is closed or makes no sense. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Word> {
        let (line, brought) = self.courier.hear().await.ok()??;
        self.brought = brought.into_iter().next();
        Some(Word::from_line(&line))
    }

    /// What came with the last line, if something did.
    pub(super) fn brought(&mut self) -> Option<OwnedFd> {
        self.brought.take()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn words_arrive_whole_however_they_are_cut() {
        let (mut here, there) = UnixStream::pair().unwrap();
        let mut channel = Channel::new(there);
        for part in [&b"rea"[..], b"dy\nnews\ndrain-", b"inbound\n"] {
            here.write_all(part).await.unwrap();
            tokio::task::yield_now().await;
        }
        drop(here);
        assert_eq!(channel.next().await, Some(Word::Ready));
        assert_eq!(channel.next().await, Some(Word::Unknown));
        assert_eq!(channel.next().await, Some(Word::DrainInbound));
        assert_eq!(channel.next().await, None);
    }

    #[tokio::test]
    async fn a_line_without_an_end_is_not_collected() {
        let (mut here, there) = UnixStream::pair().unwrap();
        let mut channel = Channel::new(there);
        here.write_all(&[b'x'; 80 * 1024]).await.unwrap();
        assert_eq!(channel.next().await, None);
    }

    #[tokio::test]
    async fn a_superior_that_is_gone_is_noticed() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut superior = Superior {
            channel: Channel::new(there),
        };
        Channel::new(here).say(Word::DrainInbound).unwrap();
        assert_eq!(superior.next_order().await, Some(Order::DrainInbound));
        assert_eq!(superior.next_order().await, None);
    }

    #[tokio::test]
    async fn a_superior_says_what_became_of_an_upgrade() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut superior = Superior {
            channel: Channel::new(there),
        };
        let mut here = Channel::new(here);
        superior.upgrade().unwrap();
        assert_eq!(here.next().await, Some(Word::Upgrade));
        superior
            .tell_app(AppNotice::Signal(NotifySignal::Usr2), u64::MAX)
            .unwrap();
        superior.tell_app(AppNotice::Restart, 0).unwrap();
        let asked = Word::SignalApp(NotifySignal::Usr2, u64::MAX);
        assert_eq!(here.next().await, Some(asked));
        assert_eq!(here.next().await, Some(Word::RestartApp(0)));
        let answers = [
            Order::AppTold(u64::MAX),
            Order::AppNotTold(0),
            Order::AppRests,
            Order::AppRuns,
        ];
        for order in [Order::UpgradeRefused, Order::UpgradeFailed(64)]
            .into_iter()
            .chain(answers)
        {
            here.say(Word::from(order)).unwrap();
            assert_eq!(superior.next_order().await, Some(order));
        }
    }
}
