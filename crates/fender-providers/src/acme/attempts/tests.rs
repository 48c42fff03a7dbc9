use fender_config::snapshot::{Acme, AcmeChallenge, CertificateSource};

use super::*;

const NOW: u64 = 1_800_000_000;
const HOUR: u64 = 60 * 60;
const DAY: u64 = 24 * HOUR;

fn wanted(names: &[&str], challenge: AcmeChallenge) -> PortCertificate {
    PortCertificate {
        source: CertificateSource::Acme(Acme {
            directory: "https://ca.example.net/directory".parse().unwrap(),
            challenge,
            contact: None,
            roots: None,
            external_account: None,
        }),
        names: names.iter().map(|name| (*name).to_owned()).collect(),
    }
}

fn shop() -> PortCertificate {
    wanted(&["shop.example.com"], AcmeChallenge::TlsAlpn)
}

fn failed(failure: Failure, wish: Option<Wish>) -> Failed<'static> {
    Failed {
        failure,
        wish,
        not_before: None,
        problem: "it would not",
    }
}

fn until(book: &Book, wanted: &PortCertificate, now: u64) -> Option<u64> {
    book.pause(wanted, now).map(|pause| pause.until.as_secs())
}

#[test]
fn attack_one_that_crashes_in_a_loop_asks_less_and_less_often() {
    let (mut book, mut now) = (Book::default(), NOW);
    let mut asked = 0;
    while now < NOW + DAY {
        // Nothing is written after this: it crashes as soon as it has asked.
        book.begin(&shop(), now);
        asked += 1;
        assert!(book.pause(&shop(), now).unwrap().is_open);
        now = until(&book, &shop(), now).unwrap();
    }
    // As often as once in five minutes, and a little more in the beginning.
    assert!((140..=310).contains(&asked), "{asked}");
}

#[test]
fn a_refusal_is_waited_for_longer_each_time_and_an_outage_less() {
    let (mut book, mut now) = (Book::default(), NOW);
    for (begin, end) in [(60, 120), (120, 240), (240, 480), (480, 960)] {
        book.begin(&shop(), now);
        let next = book.failed(&shop(), now, &failed(Failure::Refusal, None));
        assert!((begin..=end).contains(&(next - now)), "{}", next - now);
        let pause = book.pause(&shop(), now).unwrap();
        assert_eq!(pause.until.as_secs(), next);
        assert_eq!(pause.problem.as_deref(), Some("it would not"));
        assert!(!pause.is_open);
        now = next;
    }
    book.begin(&shop(), now);
    let next = book.failed(&shop(), now, &failed(Failure::Outage, None));
    assert!(next - now <= 5, "{}", next - now);
    book.succeeded(&shop());
    assert_eq!(book, Book::default());
}

#[test]
fn an_authority_is_granted_the_wait_that_it_wants_up_to_a_day() {
    let wait = |wish| {
        let mut book = Book::default();
        book.begin(&shop(), NOW);
        book.failed(&shop(), NOW, &failed(Failure::Outage, Some(wish))) - NOW
    };
    assert_eq!(wait(Wish::Seconds(3 * HOUR)), 3 * HOUR);
    assert_eq!(wait(Wish::Moment(NOW + 3 * HOUR)), 3 * HOUR);
    // Attack: nobody keeps us from renewing for a year, and nobody makes us ask without a pause.
    assert_eq!(wait(Wish::Seconds(u64::MAX)), DAY);
    assert_eq!(wait(Wish::Moment(NOW + 365 * DAY)), DAY);
    for none in [Wish::Seconds(0), Wish::Moment(0)] {
        assert!((3..=5).contains(&wait(none)), "{none:?}");
    }
}

#[test]
fn what_is_asked_for_otherwise_is_not_waited_for() {
    let mut book = Book::default();
    book.begin(&shop(), NOW);
    book.failed(
        &shop(),
        NOW,
        &failed(Failure::Refusal, Some(Wish::Seconds(HOUR))),
    );
    assert_eq!(until(&book, &shop(), NOW), Some(NOW + HOUR));
    let listen = "127.0.0.1:80".parse().unwrap();
    let otherwise = wanted(&["shop.example.com"], AcmeChallenge::Http { listen });
    let more = wanted(
        &["shop.example.com", "api.example.com"],
        AcmeChallenge::TlsAlpn,
    );
    assert_eq!(until(&book, &otherwise, NOW), None);
    assert_eq!(until(&book, &more, NOW), None);
    // And its own failures are counted anew.
    book.begin(&otherwise, NOW);
    let next = book.failed(&otherwise, NOW, &failed(Failure::Refusal, None));
    assert!(next - NOW <= 120, "{}", next - NOW);
}

#[test]
fn attack_a_document_that_changes_and_changes_places_no_more_orders_than_are_forgiven() {
    let mut book = Book::default();
    for number in 0..4_u64 {
        let other = format!("other-{number}.example.com");
        let one = wanted(&["shop.example.com", &other], AcmeChallenge::TlsAlpn);
        assert_eq!(book.full_until(&one, NOW + number), None);
        book.ordered(&one, NOW + number);
    }
    assert_eq!(book.full_until(&shop(), NOW + 10), Some(NOW + HOUR));
    // Others' names are others' failures.
    let other = wanted(&["other-1.example.com"], AcmeChallenge::TlsAlpn);
    assert_eq!(book.full_until(&other, NOW + 10), None);
    // The first is an hour ago: there is room for one more.
    assert_eq!(book.full_until(&shop(), NOW + HOUR), None);
    book.ordered(&shop(), NOW + HOUR);
    assert_eq!(book.full_until(&shop(), NOW + HOUR), Some(NOW + 1 + HOUR));
    // Those that led to a certificate do not count.
    book.succeeded(&shop());
    assert_eq!(book.full_until(&shop(), NOW + HOUR), None);
}

#[test]
fn what_a_wrong_clock_wrote_is_not_waited_for_and_not_kept() {
    let mut book = Book::default();
    book.begin(&shop(), NOW + 30 * DAY);
    for _ in 0..4 {
        book.ordered(&shop(), NOW + 30 * DAY);
    }
    assert_eq!(until(&book, &shop(), NOW), None);
    assert_eq!(book.full_until(&shop(), NOW), None);
    let other = wanted(&["other.example.com"], AcmeChallenge::TlsAlpn);
    book.begin(&other, NOW);
    assert_eq!(book.certificates.len(), 1);
    book.ordered(&other, NOW);
    assert_eq!(book.orders.len(), 1);
}

#[test]
fn what_was_tried_is_written_down_and_read_by_whoever_starts_next() {
    let state = tempfile::tempdir().unwrap();
    let (store, attempts) = (Store::below(state.path()), Attempts::default());
    let now = unix(NOW);
    let refused = failed(Failure::Refusal, Some(Wish::Seconds(HOUR)));
    attempts.begin(&store, &shop(), now).unwrap();
    attempts.ordered(&store, &shop(), now).unwrap();
    let next = attempts.failed(&store, &shop(), now, refused);
    let pause = Attempts::default().pause(&store, &shop(), now).unwrap();
    assert_eq!(pause.until, next);
    let suggested = Suggested {
        at: Some(NOW + DAY),
        again: NOW + HOUR,
    };
    attempts.suggested(&store, &shop(), suggested).unwrap();
    assert_eq!(attempts.suggestion(&store, &shop()), Some(suggested));
    // Nothing is left of what has come to an end.
    attempts.succeeded(&store, &shop()).unwrap();
    assert!(attempts.pause(&store, &shop(), now).is_none());
    assert!(store.attempts(&shop()).unwrap().is_none());
    // What is damaged keeps nobody from a certificate.
    store.keep_attempts(&shop(), b"{".to_vec()).unwrap();
    assert!(attempts.pause(&store, &shop(), now).is_none());
    attempts.begin(&store, &shop(), now).unwrap();
    assert!(attempts.pause(&store, &shop(), now).is_some());
}
