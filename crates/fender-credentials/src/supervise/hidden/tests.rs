use fender_runtime::drain::Drain;

use super::*;
use crate::testing::masked;

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
async fn attack_proxies_that_end_before_they_have_written_do_not_have_the_delivered_one_shown() {
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
