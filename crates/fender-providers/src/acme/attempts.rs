//! When an authority may be asked again: written down before it is asked, beside the account, so that whoever starts next
//! waits as whoever ended would have. A sidecar that crashes in a loop asks no more often than one that lives.
//!
//! Two things are counted. **Attempts** of one certificate that came to nothing: the next waits longer, or as long as the
//! authority says (`Retry-After`, up to a day). A document that asks otherwise (for other names, in another way) begins anew.
//! **Orders** that led to no certificate yet, for each name: however often documents change and processes begin, within an
//! hour no more are placed than an authority forgives. Beside them is written when an authority suggests to renew, which is
//! not asked again by each that starts.
//!
//! A moment that lies further ahead than anything here ever waits was written by a clock that was wrong, and counts for
//! nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fender_config::snapshot::PortCertificate;
use fender_runtime::backoff::Backoff;
use fender_runtime::clock::UnixTime;
use serde::{Deserialize, Serialize};

use super::AcmeError;
use super::store::{self, Store};
use crate::http::Wish;

/// Between attempts while the authority cannot be reached, or has not finished.
const OUTAGE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(10 * 60));
/// Between attempts that it refuses.
const REFUSAL: (Duration, Duration) = (
    Duration::from_secs(2 * 60),
    Duration::from_secs(6 * 60 * 60),
);
/// The longest wait that an authority is granted.
const MOST: Duration = Duration::from_secs(24 * 60 * 60);
/// Public authorities forgive five failures for one name within an hour. One is left to whoever looks for the reason.
const ORDERS: usize = 4;
const WITHIN: Duration = Duration::from_secs(60 * 60);
/// Of how many orders it is known; more than these in an hour are none of a sidecar's.
const MAX_ORDERS: usize = 1024;

/// How an attempt ended that led to no certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Asking again soon costs nothing.
    Outage,
    /// Authorities count these.
    Refusal,
}

/// Why an attempt is not begun yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pause {
    pub(super) until: UnixTime,
    /// What became of the attempt before; or of the one before that, if nobody knows.
    pub(super) problem: Option<String>,
    /// The attempt was begun, and nobody knows what became of it.
    pub(super) is_open: bool,
}

/// Sees to it that no two write at a time.
#[derive(Debug, Default)]
pub(super) struct Attempts(Mutex<()>);

impl Attempts {
    /// What there is to wait for before an attempt.
    pub(super) fn pause(
        &self,
        store: &Store,
        wanted: &PortCertificate,
        now: UnixTime,
    ) -> Option<Pause> {
        let _turn = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Book::read(store, wanted).pause(wanted, now.as_secs())
    }

    /// Before anybody is asked.
    pub(super) fn begin(
        &self,
        store: &Store,
        wanted: &PortCertificate,
        now: UnixTime,
    ) -> Result<(), AcmeError> {
        self.change(store, wanted, |book| book.begin(wanted, now.as_secs()))
    }

    /// Whether an order may be placed; an error says from when on.
    pub(super) fn may_order(
        &self,
        store: &Store,
        wanted: &PortCertificate,
        now: UnixTime,
    ) -> Result<(), AcmeError> {
        let _turn = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let book = Book::read(store, wanted);
        match book.full_until(wanted, now.as_secs()) {
            Some(until) => Err(AcmeError::Enough(unix(until))),
            None => Ok(()),
        }
    }

    /// One was placed.
    pub(super) fn ordered(
        &self,
        store: &Store,
        wanted: &PortCertificate,
        now: UnixTime,
    ) -> Result<(), AcmeError> {
        self.change(store, wanted, |book| book.ordered(wanted, now.as_secs()))
    }

    /// When it was suggested to renew, and whether that was asked just now.
    pub(super) fn suggestion(&self, store: &Store, wanted: &PortCertificate) -> Option<Suggested> {
        let _turn = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let book = Book::read(store, wanted);
        book.certificates.get(&store::stem(wanted))?.suggested
    }

    pub(super) fn suggested(
        &self,
        store: &Store,
        wanted: &PortCertificate,
        suggested: Suggested,
    ) -> Result<(), AcmeError> {
        self.change(store, wanted, |book| {
            book.entry(wanted).suggested = Some(suggested);
        })
    }

    /// When to try again. A moment that cannot be written down holds for this process.
    pub(super) fn failed(
        &self,
        store: &Store,
        wanted: &PortCertificate,
        now: UnixTime,
        failure: Failed<'_>,
    ) -> UnixTime {
        let now = now.as_secs();
        let mut next = None;
        let written = self.change(store, wanted, |book| {
            next = Some(book.failed(wanted, now, &failure));
        });
        if let Err(error) = written {
            tracing::debug!(%error, "when to try again is not written down");
        }
        unix(next.unwrap_or_else(|| Book::default().failed(wanted, now, &failure)))
    }

    pub(super) fn succeeded(
        &self,
        store: &Store,
        wanted: &PortCertificate,
    ) -> Result<(), AcmeError> {
        self.change(store, wanted, |book| book.succeeded(wanted))
    }

    fn change<T>(
        &self,
        store: &Store,
        wanted: &PortCertificate,
        change: impl FnOnce(&mut Book) -> T,
    ) -> Result<T, AcmeError> {
        let _turn = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut book = Book::read(store, wanted);
        let made = change(&mut book);
        book.write(store, wanted)?;
        Ok(made)
    }
}

/// What an authority said of when to renew. In seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Suggested {
    /// None: it said nothing.
    pub(super) at: Option<u64>,
    /// When to ask again.
    pub(super) again: u64,
}

/// How it ended, and what is to be told of that.
#[derive(Debug)]
pub(super) struct Failed<'a> {
    pub(super) failure: Failure,
    /// What the authority said of when to come back.
    pub(super) wish: Option<Wish>,
    /// No sooner than then, by our own count.
    pub(super) not_before: Option<UnixTime>,
    pub(super) problem: &'a str,
}

/// What is written of one authority's customer.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Book {
    /// By the name of its file.
    certificates: BTreeMap<String, Entry>,
    orders: Vec<Placed>,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Entry {
    /// What was asked for, and how.
    asked: String,
    /// In seconds since 1970.
    next: u64,
    outages: u32,
    refusals: u32,
    is_open: bool,
    problem: Option<String>,
    suggested: Option<Suggested>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Placed {
    at: u64,
    certificate: String,
    names: BTreeSet<String>,
}

impl Book {
    /// One that cannot be read tells nothing.
    fn read(store: &Store, wanted: &PortCertificate) -> Self {
        let read = store.attempts(wanted).and_then(|text| match text {
            Some(text) => serde_json::from_slice(text.expose())
                .map_err(|error| AcmeError::Ours(format!("attempts at certificates: {error}"))),
            None => Ok(Self::default()),
        });
        read.unwrap_or_else(|error| {
            tracing::warn!(%error, "what was tried before is not known");
            Self::default()
        })
    }

    fn write(&self, store: &Store, wanted: &PortCertificate) -> Result<(), AcmeError> {
        if *self == Self::default() {
            return store.forget_attempts(wanted);
        }
        let text = serde_json::to_vec(self);
        let text = text.map_err(|error| AcmeError::Ours(error.to_string()))?;
        store.keep_attempts(wanted, text)
    }

    fn pause(&self, wanted: &PortCertificate, now: u64) -> Option<Pause> {
        let entry = self.certificates.get(&store::stem(wanted))?;
        let is_ahead = entry.next > now && entry.next <= now.saturating_add(MOST.as_secs());
        (is_ahead && entry.asked == store::way(wanted)).then(|| Pause {
            until: unix(entry.next),
            problem: entry.problem.clone(),
            is_open: entry.is_open,
        })
    }

    fn begin(&mut self, wanted: &PortCertificate, now: u64) {
        // What nobody waits for any more, or waits for by a clock that was wrong.
        let is_near = |moment: u64| now.abs_diff(moment) <= MOST.as_secs();
        self.certificates.retain(|_, entry| {
            let suggested = entry.suggested.map(|suggested| suggested.again);
            is_near(entry.next) || suggested.is_some_and(is_near)
        });
        let entry = self.entry(wanted);
        // Until it is known how it ends, as if nobody could be reached.
        entry.next = now.saturating_add(step(OUTAGE, entry.outages));
        entry.outages = entry.outages.saturating_add(1);
        entry.is_open = true;
    }

    /// From when on another order may be placed, if none may be now.
    fn full_until(&self, wanted: &PortCertificate, now: u64) -> Option<u64> {
        let full = wanted.listed().filter_map(|name| {
            let for_it = self.orders.iter().filter(|one| one.names.contains(name));
            let mut times: Vec<u64> = for_it
                .map(|one| one.at)
                .filter(|at| counts(*at, now))
                .collect();
            times.sort_unstable_by(|one, other| other.cmp(one));
            times.get(ORDERS - 1).copied()
        });
        Some(full.max()?.saturating_add(WITHIN.as_secs()))
    }

    fn ordered(&mut self, wanted: &PortCertificate, now: u64) {
        self.orders.retain(|one| counts(one.at, now));
        self.orders.push(Placed {
            at: now,
            certificate: store::stem(wanted),
            names: wanted.listed().map(str::to_owned).collect(),
        });
        let surplus = self.orders.len().saturating_sub(MAX_ORDERS);
        self.orders.drain(..surplus);
    }

    fn failed(&mut self, wanted: &PortCertificate, now: u64, failed: &Failed<'_>) -> u64 {
        let entry = self.entry(wanted);
        let usual = match failed.failure {
            // Counted as it began.
            Failure::Outage => step(OUTAGE, entry.outages.saturating_sub(1)),
            Failure::Refusal => {
                entry.outages = 0;
                entry.refusals = entry.refusals.saturating_add(1);
                step(REFUSAL, entry.refusals - 1)
            }
        };
        let wish = failed.wish.map(|wish| wish.within(now));
        let wish = wish.unwrap_or_default().min(MOST.as_secs());
        let own = failed.not_before.map(|moment| moment.as_secs());
        entry.next = now.saturating_add(usual.max(wish));
        entry.next = entry.next.max(own.unwrap_or_default());
        entry.problem = Some(failed.problem.to_owned());
        entry.is_open = false;
        entry.next
    }

    fn succeeded(&mut self, wanted: &PortCertificate) {
        let stem = store::stem(wanted);
        self.certificates.remove(&stem);
        self.orders.retain(|order| order.certificate != stem);
    }

    /// Of what is asked for in this way.
    fn entry(&mut self, wanted: &PortCertificate) -> &mut Entry {
        let entry = self.certificates.entry(store::stem(wanted)).or_default();
        let asked = store::way(wanted);
        if entry.asked != asked {
            *entry = Entry {
                asked,
                ..Entry::default()
            };
        }
        entry
    }
}

/// Whether an order was placed within the last hour.
fn counts(at: u64, now: u64) -> bool {
    at <= now && now - at < WITHIN.as_secs()
}

/// The wait after so many that were in vain; in seconds, since that is how precisely clocks are compared.
fn step((base, cap): (Duration, Duration), before: u32) -> u64 {
    let wait = Backoff::after(base, cap, before).next();
    wait.as_secs_f64().ceil() as u64
}

fn unix(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests;
