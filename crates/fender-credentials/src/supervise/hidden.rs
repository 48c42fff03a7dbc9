//! What the proxy delivers, told to the supervisor first, which hides it in what the application writes.
//!
//! The proxy knows the values, and the supervisor reads what the application writes. They talk over a pair of sockets of their own, one end of which
//! the proxy sends over its channel: a line for each value, with the value in a sealed memory file, and a line that has all of them
//! learnt. Nothing is delivered before that is answered, and nothing at all once nobody answers. Then the proxy says that the value is where
//! it belongs: until that moment the one before is delivered, and is held, however many come that cannot be written. What is delivered of each
//! credential is hidden until the proxy says that it is gone, or until another proxy has written all that it has: one that ends before that has
//! perhaps written some of it, and what was there before still is.
//!
//! The supervisor believes its proxy what a value is, and nothing else: what makes no sense ends the conversation.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, PoisonError};

use fender_config::ObjectName;
use fender_identity::Secret;
use fender_runtime::courier::Courier;
use tokio::net::UnixStream;
use tokio::sync::Mutex;

use super::channel::MASKS;
use crate::handover::sealed::{self, Sealed};
use crate::mask::{Held, Masks, TooMuch};

/// All values that were told have to be hidden now.
const LEARN: &str = "learn";
const HIDDEN: &str = "hidden";
const TOO_MUCH: &str = "too-much";
/// What was learnt last of a credential is in all of its places. Not answered.
const SETTLED: &str = "settled ";
/// A credential is delivered no more. Not answered.
const GONE: &str = "gone ";

/// How many values are learnt together at most, and how many bytes one may have: more than any source gives.
const MOST_VALUES: usize = 4096;
const LARGEST: u64 = 4 * 1024 * 1024;
/// How many values of one credential that are not in all of its places are held, as far as there is room: of those that failed, each may be
/// in some.
const UNSETTLED: usize = 8;

/// The proxy's end.
#[derive(Debug)]
pub struct Hider(
    /// Nothing once somebody has given up in the middle, or nobody answers.
    Mutex<Option<Courier>>,
);

impl Hider {
    /// Finds the supervisor at the other end of standard input.
    pub async fn from_stdin() -> io::Result<Self> {
        let descriptor = io::stdin().as_fd().try_clone_to_owned()?;
        let channel = connected(descriptor)?;
        let (ours, theirs) = UnixStream::pair()?;
        Courier::new(channel).say(MASKS, &[theirs.as_fd()]).await?;
        Ok(Self::over(ours))
    }

    pub(crate) fn over(stream: UnixStream) -> Self {
        Self(Mutex::new(Some(Courier::new(stream))))
    }

    /// Has these hidden from now on. To be called before they are delivered; the error says why they may not be.
    pub async fn hide<'a>(
        &self,
        values: impl IntoIterator<Item = (&'a ObjectName, &'a Secret)>,
    ) -> Result<(), String> {
        let mut place = self.0.lock().await;
        let gone = "nobody hides it in what the application writes: the supervisor does not answer";
        let mut courier = place.take().ok_or(gone)?;
        for (name, value) in values {
            let sealed = Sealed::new(value).map_err(|error| error.to_string())?;
            let file = sealed.open().map_err(|error| error.to_string())?;
            let line = format!("{name} {}", sealed.length());
            let said = courier.say(&line, &[file.as_fd()]).await;
            said.map_err(|_| gone)?;
        }
        courier.say(LEARN, &[]).await.map_err(|_| gone)?;
        let answer = courier.hear().await.ok().flatten();
        let learnt = match answer.as_ref().map(|(line, _)| line.as_str()) {
            Some(HIDDEN) => Ok(()),
            Some(TOO_MUCH) => Err(TooMuch.to_string()),
            Some(_) | None => return Err(gone.to_owned()),
        };
        *place = Some(courier);
        learnt
    }

    /// Says that what was hidden last of these is in all of its places: what was there before counts as replaced.
    pub async fn settled<'a>(&self, names: impl IntoIterator<Item = &'a ObjectName>) {
        self.remark(SETTLED, names).await;
    }

    /// Says that a credential is delivered no more: from now on its value counts as one that was replaced.
    pub async fn gone(&self, name: &ObjectName) {
        self.remark(GONE, [name]).await;
    }

    /// Whoever does not hear of it holds too much, and answers nothing that comes after.
    async fn remark<'a>(&self, what: &str, names: impl IntoIterator<Item = &'a ObjectName>) {
        let mut place = self.0.lock().await;
        for name in names {
            if let Some(courier) = place.take()
                && courier.say(&format!("{what}{name}"), &[]).await.is_ok()
            {
                *place = Some(courier);
            }
        }
    }
}

/// What proxies have had hidden that is still delivered, as far as anybody knows. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Proxies(Arc<std::sync::Mutex<Left>>);

#[derive(Default)]
struct Left {
    /// How many have talked.
    talks: u64,
    /// Which of those that talk have all in its places.
    settled: BTreeSet<u64>,
    /// What those had that ended without another after them that has all in its places: the application still has it, until there is one. As of
    /// one proxy, of each credential what is delivered and at most [`UNSETTLED`] others.
    held: BTreeMap<ObjectName, Pins>,
}

/// What one of them has had hidden.
struct Talk {
    proxies: Proxies,
    /// Greater than that of each before it.
    number: u64,
    held: BTreeMap<ObjectName, Pins>,
}

/// What is held of one credential.
#[derive(Default)]
struct Pins {
    /// What is delivered.
    settled: Option<Held>,
    /// What came since, the newest last: until that is in all places, any of these may be in some.
    coming: Vec<Held>,
}

impl Pins {
    fn learn(&mut self, held: Held) {
        self.coming.retain(|one| !one.is(&held));
        if self.coming.len() >= UNSETTLED {
            self.coming.remove(0);
        }
        self.coming.push(held);
    }

    fn settle(&mut self) {
        if let Some(newest) = self.coming.pop() {
            self.settled = Some(newest);
            self.coming.clear();
        }
    }

    /// What could not be written, but for the newest, which may be about to be, if no other comes.
    fn failed(&self, another_comes: bool) -> &[Held] {
        match self.coming.split_last() {
            Some((_, failed)) if !another_comes => failed,
            Some(_) | None => &self.coming,
        }
    }

    fn let_go_of_failed(&mut self, another_comes: bool) {
        let failed = self.failed(another_comes).len();
        self.coming.drain(..failed);
    }

    /// Adds what a later proxy had.
    fn add(&mut self, later: Self) {
        self.settled = later.settled.or(self.settled.take());
        for held in later.coming {
            self.learn(held);
        }
    }
}

impl Talk {
    /// Has these learnt, and holds them. If they do not fit, what could not be written is held no more, here and of proxies that have ended; nothing
    /// changes if they do not fit then either.
    fn learn(&mut self, masks: &Masks, all: &[(ObjectName, Secret)]) -> Result<(), TooMuch> {
        let values = || all.iter().map(|(name, value)| (name, value));
        let held = masks.learn(values()).or_else(|TooMuch| {
            let mut left = self.proxies.left();
            let comes = |name: &ObjectName| all.iter().any(|(other, _)| other == name);
            let pins = self.held.iter().chain(&left.held);
            let failed = pins.flat_map(|(name, pins)| pins.failed(comes(name)));
            let held = masks.learn_without(values(), &failed.collect::<Vec<_>>())?;
            for (name, pins) in self.held.iter_mut().chain(&mut left.held) {
                pins.let_go_of_failed(comes(name));
            }
            Ok(held)
        })?;
        for ((name, _), held) in all.iter().zip(held) {
            self.held.entry(name.clone()).or_default().learn(held);
        }
        Ok(())
    }

    /// What was learnt last of this is in all of its places. The first time all that was learnt is: a proxy writes all it has before it says so.
    fn settle(&mut self, name: &ObjectName) {
        let Some(pins) = self.held.get_mut(name) else {
            return;
        };
        pins.settle();
        let mut left = self.proxies.left();
        left.held.remove(name);
        if left.settled.insert(self.number) {
            left.held.clear();
        }
    }

    fn let_go(&mut self, name: &ObjectName) {
        self.held.remove(name);
        self.proxies.left().held.remove(name);
    }
}

impl Proxies {
    fn left(&self) -> std::sync::MutexGuard<'_, Left> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn talk(&self) -> Talk {
        let mut left = self.left();
        left.talks += 1;
        Talk {
            proxies: self.clone(),
            number: left.talks,
            held: BTreeMap::new(),
        }
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let mut left = self.proxies.left();
        left.settled.remove(&self.number);
        // What a later one has written everywhere is there now, and not what this one had.
        if left.settled.range(self.number..).next().is_none() {
            for (name, pins) in std::mem::take(&mut self.held) {
                left.held.entry(name).or_default().add(pins);
            }
        }
    }
}

/// The supervisor's end: has `masks` learn what is told, until nobody tells anything any more.
pub(crate) async fn hear(told: OwnedFd, masks: Masks, proxies: Proxies) {
    let Ok(stream) = connected(told) else {
        return;
    };
    let mut courier = Courier::new(stream);
    let mut talk = proxies.talk();
    let mut values: Vec<(ObjectName, Secret)> = Vec::new();
    while let Ok(Some((line, brought))) = courier.hear().await {
        if line == LEARN {
            let answer = match talk.learn(&masks, &std::mem::take(&mut values)) {
                Ok(()) => HIDDEN,
                Err(TooMuch) => TOO_MUCH,
            };
            if courier.say(answer, &[]).await.is_err() {
                return;
            }
            continue;
        }
        if let Some(name) = line.strip_prefix(SETTLED).and_then(named) {
            talk.settle(&name);
            continue;
        }
        if let Some(name) = line.strip_prefix(GONE).and_then(named) {
            talk.let_go(&name);
            continue;
        }
        match value(&line, brought) {
            Some(value) if values.len() < MOST_VALUES => values.push(value),
            Some(_) | None => {
                tracing::error!("what the proxy wants hidden makes no sense");
                return;
            }
        }
    }
}

fn value(line: &str, brought: Vec<OwnedFd>) -> Option<(ObjectName, Secret)> {
    let (name, length) = line.split_once(' ')?;
    let name = named(name)?;
    let length = length.parse().ok().filter(|length| *length <= LARGEST)?;
    let file = brought.into_iter().next()?;
    Some((name, sealed::read(file, length).ok()?))
}

fn named(name: &str) -> Option<ObjectName> {
    let (namespace, name) = name.split_once('/')?;
    ObjectName::new(namespace, name).ok()
}

fn connected(descriptor: OwnedFd) -> io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(descriptor);
    // Fails on anything but such a socket.
    stream.peer_addr()?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

#[cfg(test)]
mod tests;
