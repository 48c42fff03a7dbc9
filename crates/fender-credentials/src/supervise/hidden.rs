//! What the proxy delivers, told to the supervisor first, which hides it in what the application writes.
//!
//! The proxy knows the values, and the supervisor reads what the application writes. They talk over a pair of sockets of their own, one end of which
//! the proxy sends over its channel: a line for each value, with the value in a sealed memory file, and a line that has all of them
//! learnt. Nothing is delivered before that is answered, and nothing at all once nobody answers. The newest of each credential is hidden until the
//! proxy says that it is gone, or until another proxy has said what is there.
//!
//! The supervisor believes its proxy what a value is, and nothing else: what makes no sense ends the conversation.

use std::collections::BTreeMap;
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
/// A credential is delivered no more. Not answered.
const GONE: &str = "gone ";

/// How many values are learnt together at most, and how many bytes one may have: more than any source gives.
const MOST_VALUES: usize = 4096;
const LARGEST: u64 = 4 * 1024 * 1024;

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

    /// Says that a credential is delivered no more: from now on its value counts as one that was replaced.
    pub async fn gone(&self, name: &ObjectName) {
        let mut place = self.0.lock().await;
        if let Some(courier) = place.take()
            && courier.say(&format!("{GONE}{name}"), &[]).await.is_ok()
        {
            *place = Some(courier);
        }
    }
}

/// What proxies have had hidden that is still delivered, as far as anybody knows. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Proxies(Arc<std::sync::Mutex<Left>>);

#[derive(Default)]
struct Left {
    /// How many talk.
    talking: usize,
    /// What the last one said before it ended without another: the application still has it, until the next one has said what there is.
    held: Vec<Held>,
}

/// What one of them has had hidden.
struct Talk {
    proxies: Proxies,
    held: BTreeMap<ObjectName, Held>,
    /// Whether it has said what there is. One that ends before that knows less than the one before it.
    said: bool,
}

impl Proxies {
    fn left(&self) -> std::sync::MutexGuard<'_, Left> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn talk(&self) -> Talk {
        self.left().talking += 1;
        Talk {
            proxies: self.clone(),
            held: BTreeMap::new(),
            said: false,
        }
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let mut left = self.proxies.left();
        left.talking -= 1;
        if left.talking == 0 && self.said {
            left.held = std::mem::take(&mut self.held).into_values().collect();
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
            let all = std::mem::take(&mut values);
            let learnt = masks.learn(all.iter().map(|(name, value)| (name, value)));
            let answer = match learnt {
                Ok(held) => {
                    let names = all.into_iter().map(|(name, _)| name);
                    talk.held.extend(names.zip(held));
                    talk.said = true;
                    proxies.left().held.clear();
                    HIDDEN
                }
                Err(TooMuch) => TOO_MUCH,
            };
            if courier.say(answer, &[]).await.is_err() {
                return;
            }
            continue;
        }
        if let Some(name) = line.strip_prefix(GONE).and_then(named) {
            talk.held.remove(&name);
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
mod tests {
    use fender_runtime::drain::Drain;

    use super::*;
    use crate::mask::Stream;

    fn name() -> ObjectName {
        ObjectName::new("shop", "smtp").unwrap()
    }

    /// Both ends.
    fn talk(drain: &Drain) -> (Hider, Masks) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let masks = Masks::new();
        let theirs = OwnedFd::from(theirs.into_std().unwrap());
        drain.spawn(hear(theirs, masks.clone(), Proxies::default()));
        (Hider::over(ours), masks)
    }

    fn masked(masks: &Masks, text: &str) -> String {
        let (mut stream, mut out) = (Stream::new(masks.clone()), Vec::new());
        stream.pass(text.as_bytes(), &mut out);
        stream.finish(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[tokio::test]
    async fn what_is_answered_is_hidden() {
        let drain = Drain::new();
        let (hider, masks) = talk(&drain);
        let values = ["value-one", "value-two"].map(|text| Secret::from(text.to_owned()));
        let all = values.iter().map(|value| (&*NAME, value));
        hider.hide(all).await.unwrap();
        assert_eq!(masked(&masks, "value-one value-two"), "*** ***");
        hider.hide([]).await.unwrap();
        let huge: String = (0..100_000).map(|number| format!("{number} ")).collect();
        let why = hider.hide([(&name(), &Secret::from(huge))]).await;
        assert!(why.unwrap_err().contains("cannot be masked"));
        // That was no end.
        let three = Secret::from("value-three".to_owned());
        hider.hide([(&name(), &three)]).await.unwrap();
        assert_eq!(masked(&masks, "value-three"), "***");
        drop(hider);
        drain.drained().await;
    }

    #[tokio::test]
    async fn what_is_delivered_and_what_a_run_had_is_held_and_what_is_gone_is_not() {
        let secret = |text: String| Secret::from(text);
        let (drain, masks, proxies) = (Drain::new(), Masks::new(), Proxies::default());
        let talk = || {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let theirs = OwnedFd::from(theirs.into_std().unwrap());
            drain.spawn(hear(theirs, masks.clone(), proxies.clone()));
            Hider::over(ours)
        };
        let hider = talk();
        let one = secret("value-one".to_owned());
        hider.hide([(&name(), &one)]).await.unwrap();
        let run = masks.hold_all();
        for number in 0..20 {
            let next = secret(format!("other-{number:02}"));
            hider.hide([(&name(), &next)]).await.unwrap();
        }
        let text = "value-one other-00 other-19";
        assert_eq!(masked(&masks, text), "*** other-00 ***");
        drop(run);
        for number in 0..20 {
            let next = secret(format!("third-{number:02}"));
            hider.hide([(&name(), &next)]).await.unwrap();
        }
        assert_eq!(masked(&masks, "value-one"), "value-one");

        // One that leaves the documents is held no more, and hidden for a while.
        let other = ObjectName::new("shop", "other").unwrap();
        hider.hide([(&other, &one)]).await.unwrap();
        assert_eq!(masks.hold_all().len(), 2);
        hider.gone(&name()).await;
        hider.hide([]).await.unwrap();
        assert_eq!(masks.hold_all().len(), 1);
        assert_eq!(masked(&masks, "third-19"), "***");

        // A successor says the same; then the one before ends, and then the successor dies.
        let successor = talk();
        successor.hide([(&other, &one)]).await.unwrap();
        drop(hider);
        drop(successor);
        drain.drained().await;
        assert_eq!(masks.hold_all().len(), 1, "it is still delivered");
        // One that cannot start, because the source is away, has nothing to say of that.
        drop(talk());
        drain.drained().await;
        assert_eq!(masks.hold_all().len(), 1, "it is still delivered");
        let next = talk();
        next.hide([(&name(), &one)]).await.unwrap();
        assert_eq!(masks.hold_all().len(), 1);
        next.gone(&name()).await;
        next.hide([]).await.unwrap();
        assert_eq!(masks.hold_all().len(), 0);
        drop(next);
        drain.drained().await;
    }

    static NAME: std::sync::LazyLock<ObjectName> = std::sync::LazyLock::new(name);

    #[tokio::test]
    async fn attack_what_makes_no_sense_is_the_end_and_then_nothing_is_said_to_be_hidden() {
        for (line, length) in [
            ("shop/smtp", 7),
            ("smtp 7", 7),
            ("../smtp 7", 7),
            ("shop/smtp 8", 7),
            ("shop/smtp 99999999999", 7),
            ("shop/smtp -1", 7),
            ("shop/smtp 7", 0),
        ] {
            let drain = Drain::new();
            let (hider, masks) = talk(&drain);
            let sealed = Sealed::new(&Secret::from("hunter2".to_owned())).unwrap();
            let file = sealed.open().unwrap();
            let along = [file.as_fd()];
            let along = if length == 0 { &[][..] } else { &along };
            let courier = hider.0.lock().await.take().unwrap();
            courier.say(line, along).await.unwrap();
            drain.drained().await;
            *hider.0.lock().await = Some(courier);
            for _ in 0..2 {
                let value = Secret::from("hunter2".to_owned());
                let why = hider.hide([(&name(), &value)]).await.unwrap_err();
                assert!(!why.contains("hunter2"), "{why}");
            }
            assert_eq!(masked(&masks, "hunter2"), "hunter2");
        }
    }

    #[tokio::test]
    async fn attack_a_value_that_can_still_be_changed_is_not_taken() {
        let drain = Drain::new();
        let (hider, masks) = talk(&drain);
        let file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut &file, b"hunter2").unwrap();
        let courier = hider.0.lock().await.take().unwrap();
        let told = courier.say("shop/smtp 7", &[file.as_fd()]).await;
        told.unwrap();
        drain.drained().await;
        assert_eq!(masked(&masks, "hunter2"), "hunter2");
    }
}
