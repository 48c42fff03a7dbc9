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
mod tests {
    use fender_runtime::drain::Drain;

    use super::*;
    use crate::mask::Stream;

    fn name() -> ObjectName {
        ObjectName::new("shop", "smtp").unwrap()
    }

    fn secret(text: &str) -> Secret {
        Secret::from(text.to_owned())
    }

    /// Five or so fit.
    fn large(letter: char) -> Secret {
        let lines = (0..1400).map(|number| format!("{letter}{number:07}\n"));
        Secret::from(lines.collect::<String>())
    }

    fn shows(masks: &Masks, letter: char) -> bool {
        masked(masks, &format!("{letter}0000042")) != "***"
    }

    /// Both ends.
    fn talk(drain: &Drain) -> (Hider, Masks) {
        let masks = Masks::new();
        (talk_of(drain, &masks, &Proxies::default()), masks)
    }

    /// As another proxy of one supervisor does.
    fn talk_of(drain: &Drain, masks: &Masks, proxies: &Proxies) -> Hider {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let theirs = OwnedFd::from(theirs.into_std().unwrap());
        drain.spawn(hear(theirs, masks.clone(), proxies.clone()));
        Hider::over(ours)
    }

    /// Once this is back, what was said before is heard.
    async fn heard(hider: &Hider) {
        hider.hide([]).await.unwrap();
    }

    async fn ended(hider: Hider, drain: Drain) {
        drop(hider);
        drain.drained().await;
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
        let (drain, masks, proxies) = (Drain::new(), Masks::new(), Proxies::default());
        let talk = || talk_of(&drain, &masks, &proxies);
        let hider = talk();
        let one = secret("value-one");
        hider.hide([(&name(), &one)]).await.unwrap();
        hider.settled([&name()]).await;
        let run = masks.hold_all();
        for number in 0..20 {
            let next = secret(&format!("other-{number:02}"));
            hider.hide([(&name(), &next)]).await.unwrap();
            hider.settled([&name()]).await;
        }
        let text = "value-one other-00 other-19";
        assert_eq!(masked(&masks, text), "*** other-00 ***");
        drop(run);
        for number in 0..20 {
            let next = secret(&format!("third-{number:02}"));
            hider.hide([(&name(), &next)]).await.unwrap();
            hider.settled([&name()]).await;
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
        assert_eq!(masks.hold_all().len(), 2, "nothing is written yet");
        next.settled([&name()]).await;
        heard(&next).await;
        assert_eq!(masks.hold_all().len(), 1);
        next.gone(&name()).await;
        next.hide([]).await.unwrap();
        assert_eq!(masks.hold_all().len(), 0);
        drop(next);
        drain.drained().await;
    }

    /// Each of these comes, and cannot be written to all places.
    #[tokio::test]
    async fn attack_values_that_cannot_be_written_do_not_have_the_delivered_one_shown() {
        let drain = Drain::new();
        let (hider, masks) = talk(&drain);
        hider.hide([(&name(), &secret("value-one"))]).await.unwrap();
        hider.settled([&name()]).await;
        for number in 0..40 {
            let next = secret(&format!("other-{number:02}"));
            // And the same again, as it is tried again.
            for _ in 0..3 {
                hider.hide([(&name(), &next)]).await.unwrap();
            }
        }
        // Of those that failed, what is in some place is hidden, and what has been for long is not.
        let text = "value-one other-00 other-24 other-32 other-39";
        assert_eq!(masked(&masks, text), "*** other-00 *** *** ***");
        assert_eq!(masks.hold_all().len(), 1 + UNSETTLED);
        hider.settled([&name()]).await;
        hider.hide([]).await.unwrap();
        assert_eq!(masks.hold_all().len(), 1);
        for number in 0..10 {
            let next = secret(&format!("third-{number:02}"));
            hider.hide([(&name(), &next)]).await.unwrap();
            hider.settled([&name()]).await;
        }
        hider.hide([]).await.unwrap();
        assert_eq!(masked(&masks, "value-one third-09"), "value-one ***");
        drop(hider);
        drain.drained().await;
    }

    /// What failed makes room for what comes; what is delivered, and what another credential is about to have, do not.
    #[tokio::test]
    async fn what_could_not_be_written_does_not_take_the_room_of_what_comes() {
        let drain = Drain::new();
        let (hider, masks) = talk(&drain);
        let shows = |letter| shows(&masks, letter);
        let other = ObjectName::new("shop", "other").unwrap();
        let writing = Secret::from("value-other".to_owned());
        hider.hide([(&name(), &large('a'))]).await.unwrap();
        hider.settled([&name()]).await;
        hider.hide([(&other, &writing)]).await.unwrap();
        // Some of them fit, and never all.
        for letter in 'b'..='g' {
            hider.hide([(&name(), &large(letter))]).await.unwrap();
            assert!(!shows('a') && !shows(letter), "{letter}");
            assert_eq!(masked(&masks, "value-other"), "***");
        }
        assert!(shows('b'));
        hider.settled([&other]).await;
        hider.gone(&name()).await;
        hider.hide([]).await.unwrap();
        assert_eq!(masks.hold_all().len(), 1);
        drop(hider);
        drain.drained().await;
    }

    /// Its first file has the value, and its second could not be written; then one comes that never fits.
    #[tokio::test]
    async fn attack_what_does_not_fit_does_not_have_shown_what_is_written_in_part() {
        let drain = Drain::new();
        let (hider, masks) = talk(&drain);
        let other = ObjectName::new("shop", "other").unwrap();
        hider.hide([(&name(), &large('a'))]).await.unwrap();
        let huge: String = (0..100_000).map(|number| format!("{number} ")).collect();
        let huge = Secret::from(huge);
        hider.hide([(&name(), &huge)]).await.unwrap_err();
        assert_eq!(masks.hold_all().len(), 1);
        // More than fit.
        for letter in 'b'..='g' {
            hider.hide([(&other, &large(letter))]).await.unwrap();
            assert!(!shows(&masks, 'a') && !shows(&masks, letter), "{letter}");
        }
        assert!(shows(&masks, 'b'));
        ended(hider, drain).await;
    }

    /// Each of these has a newer value, which cannot be written everywhere, and so ends: the application has the one before all of them.
    #[tokio::test]
    async fn attack_proxies_that_end_before_they_have_written_do_not_have_the_delivered_one_shown()
    {
        let (masks, proxies) = (Masks::new(), Proxies::default());
        let drain = Drain::new();
        let first = talk_of(&drain, &masks, &proxies);
        for value in ["value-one", "value-two"] {
            first.hide([(&name(), &secret(value))]).await.unwrap();
            first.settled([&name()]).await;
        }
        ended(first, drain).await;
        for number in 0..20 {
            let drain = Drain::new();
            let next = talk_of(&drain, &masks, &proxies);
            let newer = secret(&format!("other-{number:02}"));
            next.hide([(&name(), &newer)]).await.unwrap();
            assert!(masks.hold_all().len() <= 1 + UNSETTLED + 1);
            ended(next, drain).await;
        }
        let text = "value-two other-00 other-12 other-19";
        assert_eq!(masked(&masks, text), "*** other-00 *** ***");
        assert_eq!(masks.hold_all().len(), 1 + UNSETTLED);

        // One that has all in its places has said what there is.
        let drain = Drain::new();
        let last = talk_of(&drain, &masks, &proxies);
        last.hide([(&name(), &secret("value-last"))]).await.unwrap();
        last.settled([&name()]).await;
        heard(&last).await;
        assert_eq!(masks.hold_all().len(), 1);
        ended(last, drain).await;
        assert_eq!(masks.hold_all().len(), 1);
    }

    /// What those before could not write makes room as well; what is delivered does not.
    #[tokio::test]
    async fn what_proxies_that_ended_could_not_write_does_not_take_the_room_of_what_comes() {
        let (masks, proxies) = (Masks::new(), Proxies::default());
        for letter in 'a'..='g' {
            let drain = Drain::new();
            let next = talk_of(&drain, &masks, &proxies);
            next.hide([(&name(), &large(letter))]).await.unwrap();
            if letter == 'a' {
                next.settled([&name()]).await;
            }
            ended(next, drain).await;
            assert!(!shows(&masks, 'a') && !shows(&masks, letter), "{letter}");
        }
        assert!(shows(&masks, 'b'));
    }

    /// In an upgrade there are two, and either may end.
    #[tokio::test]
    async fn what_is_delivered_is_held_whichever_of_two_proxies_ends() {
        let (masks, proxies) = (Masks::new(), Proxies::default());
        let (of_one, of_two, of_three) = (Drain::new(), Drain::new(), Drain::new());
        let say = async |hider: &Hider, value| {
            hider.hide([(&name(), &secret(value))]).await.unwrap();
        };
        let settle = async |hider: &Hider| {
            hider.settled([&name()]).await;
            heard(hider).await;
        };
        let one = talk_of(&of_one, &masks, &proxies);
        say(&one, "value-one").await;
        settle(&one).await;
        // The successor has written nothing yet.
        let two = talk_of(&of_two, &masks, &proxies);
        say(&two, "value-two").await;
        ended(one, of_one).await;
        assert_eq!(masks.hold_all().len(), 2);
        settle(&two).await;
        assert_eq!(masks.hold_all().len(), 1);
        // The successor has written all, and fails: the one before goes on, and does not know the newest yet.
        let three = talk_of(&of_three, &masks, &proxies);
        say(&three, "value-three").await;
        settle(&three).await;
        ended(three, of_three).await;
        assert_eq!(masks.hold_all().len(), 2);
        say(&two, "value-three").await;
        settle(&two).await;
        assert_eq!(masks.hold_all().len(), 1);
        // As it should be: the successor has all, and the one before ends.
        let of_four = Drain::new();
        let four = talk_of(&of_four, &masks, &proxies);
        say(&four, "value-four").await;
        settle(&four).await;
        ended(two, of_two).await;
        assert_eq!(masks.hold_all().len(), 1);
        four.gone(&name()).await;
        ended(four, of_four).await;
        assert_eq!(masks.hold_all().len(), 0);
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
