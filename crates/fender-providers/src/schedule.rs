//! When one place in a store is asked that several credentials name, and which of its answers is news to whoever follows it.
//!
//! It is asked once for all of them, as often as the most impatient wants, a little sooner or later each time; after an outage
//! later and later, and not before its store may be asked. It asks nobody itself, and knows nothing of what is asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fender_runtime::backoff::{Backoff, spread};
use fender_runtime::random;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::FetchError;

const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// Those who wait for the same moment come within this time after it.
const SPREAD: Duration = Duration::from_secs(1);
/// A day, in milliseconds: as long as a document may want.
const LONGEST_REFRESH: u64 = 24 * 60 * 60 * 1000;

/// What a place answers.
pub(crate) type Answer<R> = Result<Arc<R>, FetchError>;

/// What is known of a place, by whoever asks it at the moment.
#[derive(Debug)]
pub(crate) struct Known<R> {
    answer: Option<Answer<R>>,
    /// When it was asked for the last answer that it gave.
    asked: Instant,
    /// When it is to be asked again.
    pub(crate) next: Instant,
    pub(crate) backoff: Backoff,
    /// Of the answer; another one is news.
    number: u64,
}

impl<R> Known<R> {
    /// Nothing yet.
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self {
            answer: None,
            asked: now,
            next: now,
            backoff: Backoff::new(FIRST_RETRY, LONGEST_RETRY),
            number: 0,
        }
    }

    /// The last answer, until it is time to ask again.
    pub(crate) fn standing(&self) -> Option<(u64, Answer<R>)> {
        let answer = self.answer.as_ref();
        let answer = answer.filter(|_| Instant::now() < self.next)?;
        Some((self.number, answer.clone()))
    }

    /// What was there when it answered last, if anything was.
    pub(crate) fn reading(&self) -> Option<&Arc<R>> {
        self.answer.as_ref()?.as_ref().ok()
    }

    /// Takes the answer to what was asked at `asked`. One that says the `same` as the one before is no news, and the one before stays.
    pub(crate) fn answered(
        &mut self,
        asked: Instant,
        answer: Answer<R>,
        same: impl FnOnce(&R, &R) -> bool,
    ) -> Told<R> {
        if answer.is_ok() {
            self.asked = asked;
        }
        let (is_news, answer) = match (&self.answer, answer) {
            (Some(Ok(one)), Ok(other)) if same(one, &other) => (false, Ok(Arc::clone(one))),
            (Some(Err(one)), Err(other)) if *one == other => (false, Err(other)),
            (_, answer) => (true, answer),
        };
        if is_news {
            self.number += 1;
            self.answer = Some(answer.clone());
        }
        Told {
            number: self.number,
            answer,
            is_news,
        }
    }
}

/// An answer, as those are told of it who wait for one.
#[derive(Debug)]
pub(crate) struct Told<R> {
    pub(crate) number: u64,
    pub(crate) answer: Answer<R>,
    pub(crate) is_news: bool,
}

/// When a place is asked.
#[derive(Debug)]
pub(crate) struct Schedule {
    /// In milliseconds: the shortest that somebody wants.
    refresh: AtomicU64,
    moments: watch::Sender<Moments>,
}

/// What whoever follows a place waits for.
#[derive(Clone, Copy, Debug)]
struct Moments {
    number: u64,
    asked: Instant,
    next: Instant,
}

impl Schedule {
    /// Of a place of which nothing is known yet.
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self {
            refresh: AtomicU64::new(LONGEST_REFRESH),
            moments: watch::Sender::new(Moments {
                number: 0,
                asked: now,
                next: now,
            }),
        }
    }

    /// Somebody wants to know of changes within this time.
    pub(crate) fn at_least_every(&self, refresh: Duration) {
        let refresh = u64::try_from(refresh.as_millis()).unwrap_or(u64::MAX);
        self.refresh.fetch_min(refresh, Ordering::Relaxed);
    }

    pub(crate) fn refresh(&self) -> Duration {
        Duration::from_millis(self.refresh.load(Ordering::Relaxed))
    }

    /// How long ago the place was asked for the last answer that it gave.
    pub(crate) fn age(&self) -> Duration {
        self.moments.borrow().asked.elapsed()
    }

    /// When to ask again after this answer; where nobody could be asked, not before `retry_at`, when its store may be asked.
    pub(crate) fn after<R>(
        &self,
        known: &mut Known<R>,
        answer: &Answer<R>,
        retry_at: impl FnOnce() -> Option<Instant>,
    ) -> Instant {
        let now = Instant::now();
        let refreshed = now + self.refresh().mul_f64(0.9 + 0.2 * random::unit());
        match answer {
            Err(FetchError::Outage(_)) => {
                let retry = now + known.backoff.next();
                match retry_at() {
                    Some(at) if at > now => retry.max(at + spread(SPREAD)),
                    Some(_) | None => retry,
                }
            }
            Ok(_) => {
                known.backoff.reset();
                refreshed
            }
            Err(_) => refreshed,
        }
    }

    /// Tells whoever waits what is known by now.
    pub(crate) fn tell<R>(&self, known: &Known<R>) {
        self.moments.send_replace(Moments {
            number: known.number,
            asked: known.asked,
            next: known.next,
        });
    }

    /// Resolves when there is news for who has seen answer `seen`, or when it is time to ask.
    pub(crate) async fn due(&self, seen: u64) {
        let mut moments = self.moments.subscribe();
        loop {
            let now = *moments.borrow_and_update();
            if now.number != seen {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(now.next) => return,
                Ok(()) = moments.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn outage() -> Answer<u32> {
        Err(FetchError::Outage("away".to_owned()))
    }

    fn take(known: &mut Known<u32>, answer: Answer<u32>) -> Told<u32> {
        known.answered(Instant::now(), answer, |one, other| one == other)
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_says_the_same_is_no_news_and_the_one_before_stays() {
        let mut known = Known::new();
        assert!(known.standing().is_none());
        let first = take(&mut known, Ok(Arc::new(1)));
        assert_eq!((first.number, first.is_news), (1, true));
        let again = take(&mut known, Ok(Arc::new(1)));
        assert_eq!((again.number, again.is_news), (1, false));
        assert!(Arc::ptr_eq(&first.answer.unwrap(), &again.answer.unwrap()));
        for (answer, number) in [(outage(), 2), (outage(), 2), (Ok(Arc::new(1)), 3)] {
            assert_eq!(take(&mut known, answer).number, number);
        }
        assert!(known.standing().is_none(), "it is time to ask");
        known.next += MINUTE;
        assert_eq!(known.standing().unwrap().0, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_as_old_as_the_question_to_the_last_answer_with_a_value() {
        let (schedule, mut known) = (Schedule::new(), Known::new());
        take(&mut known, Ok(Arc::new(1)));
        schedule.tell(&known);
        tokio::time::advance(MINUTE).await;
        take(&mut known, outage());
        schedule.tell(&known);
        assert_eq!(schedule.age(), MINUTE);
        take(&mut known, Ok(Arc::new(1)));
        schedule.tell(&known);
        assert_eq!(schedule.age(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_asked_as_often_as_the_most_impatient_wants_and_less_often_when_away() {
        let (schedule, mut known) = (Schedule::new(), Known::new());
        schedule.at_least_every(MINUTE);
        schedule.at_least_every(5 * MINUTE);
        let wait = |known: &mut Known<u32>, answer, retry_at| {
            let next = schedule.after(known, &answer, || retry_at);
            next.duration_since(Instant::now())
        };
        for _ in 0..100 {
            let again = wait(&mut known, Ok(Arc::new(1)), None);
            assert!(again >= MINUTE.mul_f64(0.9) && again <= MINUTE.mul_f64(1.1));
            // Nobody answered: soon again, and later each time; a store that wants to be left alone is.
            let first = wait(&mut known, outage(), None);
            assert!(first <= FIRST_RETRY);
            let later = Instant::now() + 10 * MINUTE;
            let left_alone = wait(&mut known, outage(), Some(later));
            assert!(left_alone >= 10 * MINUTE && left_alone <= 10 * MINUTE + SPREAD);
            let denied = Err(FetchError::Denied("no".to_owned()));
            assert!(wait(&mut known, denied, Some(later)) <= MINUTE.mul_f64(1.1));
        }
        for _ in 0..100 {
            assert!(wait(&mut known, outage(), None) <= LONGEST_RETRY);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_seen_an_older_answer_is_told_at_once_and_others_when_it_is_time() {
        let (schedule, mut known) = (Schedule::new(), Known::new());
        let began = Instant::now();
        schedule.due(7).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        let told = take(&mut known, Ok(Arc::new(1)));
        known.next = began + MINUTE;
        schedule.tell(&known);
        schedule.due(told.number).await;
        assert_eq!(began.elapsed(), MINUTE);
        // Somebody else asks meanwhile.
        known.next += MINUTE;
        schedule.tell(&known);
        let other = async {
            tokio::time::sleep(MINUTE / 2).await;
            take(&mut known, Ok(Arc::new(2)));
            schedule.tell(&known);
        };
        tokio::join!(schedule.due(told.number), other);
        assert_eq!(began.elapsed(), MINUTE + MINUTE / 2);
    }
}
