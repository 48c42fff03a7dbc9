//! Which authority signs at a moment, and what is due. Pure: rows, lifetimes and a moment give an answer. Roots are
//! everybody's; an intermediate is one replica's, and what is due to one says nothing of the others.
//!
//! The life of a root: it is made when the one before has lived half its life, and is in every bundle from then on. For
//! its *publication* it signs nothing, so that every sidecar that lives has it before it meets it. Then it signs
//! workloads' certificates. The control plane's own certificate comes from the oldest root that still lives: a sidecar
//! that was away for years knows at least that one. A root leaves the bundles at its end, when nothing under it is left.

use std::time::Duration;

use fender_config::Lifetimes;
use rustls::pki_types::UnixTime;

use super::lifetimes::past_half;
use crate::store::authorities::{AuthorityRow, Role};
use crate::store::replicas::ReplicaName;
use crate::time::{earlier, later, until};

/// How long before its end a root no longer vouches for the control plane itself, for clients whose clock is ahead.
const LEAVE: Duration = Duration::from_secs(48 * 3600);

fn roots(rows: &[AuthorityRow], now: UnixTime) -> impl Iterator<Item = &AuthorityRow> {
    rows.iter()
        .filter(move |row| row.role == Role::Root && row.validity.includes(now))
}

/// The one that was made last, whatever the time.
pub(crate) fn latest_root(rows: &[AuthorityRow]) -> Option<&AuthorityRow> {
    rows.iter()
        .filter(|row| row.role == Role::Root)
        .max_by_key(|root| root.signs_from)
}

/// The root that vouches for what is signed now: the latest whose publication is over.
pub(crate) fn signing_root(rows: &[AuthorityRow], now: UnixTime) -> Option<&AuthorityRow> {
    roots(rows, now)
        .filter(|root| root.signs_from <= now)
        .max_by_key(|root| (root.signs_from, root.validity.not_after, &root.serial))
        // The clock was put back: what is nearest to signing does.
        .or_else(|| roots(rows, now).min_by_key(|root| (root.signs_from, &root.serial)))
}

/// The root that vouches for the control plane itself: the oldest that signs, until shortly before its end.
pub(crate) fn serving_root(rows: &[AuthorityRow], now: UnixTime) -> Option<&AuthorityRow> {
    roots(rows, now)
        .filter(|root| root.signs_from <= now && now < leaves_service(root))
        .min_by_key(|root| (root.signs_from, &root.serial))
        .or_else(|| signing_root(rows, now))
}

/// When a root stops to vouch for the control plane itself.
fn leaves_service(root: &AuthorityRow) -> UnixTime {
    let whole = until(root.validity.not_before, root.validity.not_after);
    earlier(root.validity.not_after, LEAVE.min(whole / 8))
}

/// A root that is published and does not sign yet.
pub(crate) fn announced_root(rows: &[AuthorityRow], now: UnixTime) -> Option<&AuthorityRow> {
    roots(rows, now)
        .filter(|root| root.signs_from > now)
        .min_by_key(|root| root.signs_from)
}

/// Why nothing can be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoot {
    /// There never was one.
    Never,
    /// The last one has ended.
    Ended,
    /// The first one has not begun: the clock is behind, or was ahead when it was made.
    NotYet { begins: UnixTime },
}

/// Why no root is valid now.
pub(crate) fn why_no_root(rows: &[AuthorityRow], now: UnixTime) -> NoRoot {
    let roots = || rows.iter().filter(|row| row.role == Role::Root);
    let first = roots().map(|root| root.validity.not_before).min();
    match first {
        None => NoRoot::Never,
        Some(begins) if begins > now => NoRoot::NotYet { begins },
        Some(_) => NoRoot::Ended,
    }
}

/// If a new root must be made now: from when it signs.
pub(crate) fn root_due(
    rows: &[AuthorityRow],
    lifetimes: &Lifetimes,
    now: UnixTime,
) -> Option<UnixTime> {
    let Some(current) = signing_root(rows, now) else {
        return match why_no_root(rows, now) {
            // Nobody holds a certificate that this could surprise.
            NoRoot::Never | NoRoot::Ended => Some(now),
            NoRoot::NotYet { .. } => None,
        };
    };
    if announced_root(rows, now).is_some() || !grown(current, lifetimes.root, now) {
        return None;
    }
    Some(signs_from(current, lifetimes, now))
}

/// When a root that is made now may sign. The one before must still live then, and whoever hears of the new one only
/// when renewing must do so before.
pub(crate) fn signs_from(current: &AuthorityRow, lifetimes: &Lifetimes, now: UnixTime) -> UnixTime {
    let left = until(now, current.validity.not_after);
    later(now, lifetimes.publication.min(left / 2))
}

/// The intermediate of a replica under a root that signs: the youngest that is valid now. One made while the clock was ahead must not
/// sign before its time comes. If none is valid, one is named all the same: its signatures are refused when they are
/// checked.
pub(crate) fn intermediate<'a>(
    rows: &'a [AuthorityRow],
    root: &AuthorityRow,
    holder: &ReplicaName,
    now: UnixTime,
) -> Option<&'a AuthorityRow> {
    let under = || {
        rows.iter().filter(|row| {
            row.root.as_ref() == Some(&root.serial) && row.holder.as_ref() == Some(holder)
        })
    };
    // Of two that were made in one second every look must choose the same.
    under()
        .filter(|row| row.validity.includes(now) && row.signs_from <= now)
        .max_by_key(|row| {
            let validity = row.validity;
            (validity.not_before, validity.not_after, &row.serial)
        })
        .or_else(|| under().max_by_key(|row| (row.validity.not_after, &row.serial)))
}

/// Whether a replica must make an intermediate under a root that signs.
pub(crate) fn intermediate_due(
    rows: &[AuthorityRow],
    root: &AuthorityRow,
    holder: &ReplicaName,
    lifetimes: &Lifetimes,
    now: UnixTime,
) -> bool {
    match intermediate(rows, root, holder, now) {
        Some(current) if current.validity.includes(now) => {
            // Where the root ends first, a successor would gain nothing.
            let gains = later(now, lifetimes.intermediate) < root.validity.not_after
                || current.validity.not_after < root.validity.not_after;
            gains && grown(current, lifetimes.intermediate, now)
        }
        Some(_) | None => true,
    }
}

/// Whether half of its life is over: of the one it was given, or of the one it would be given now.
fn grown(row: &AuthorityRow, lifetime: Duration, now: UnixTime) -> bool {
    past_half(row.validity, now) || until(row.validity.not_before, now) >= lifetime / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600;
    const DAY: u64 = 24 * HOUR;
    const YEAR: u64 = 365 * DAY;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    fn lifetimes() -> Lifetimes {
        Lifetimes {
            leaf: Duration::from_secs(HOUR),
            renewal_grace: Duration::from_secs(DAY),
            intermediate: Duration::from_secs(YEAR),
            root: Duration::from_secs(10 * YEAR),
            publication: Duration::from_secs(7 * DAY),
            jwt_key: Duration::from_secs(7 * DAY),
        }
    }

    fn root(serial: &str, from: u64, until: u64, signs_from: u64) -> AuthorityRow {
        AuthorityRow {
            serial: serial.parse().unwrap(),
            role: Role::Root,
            root: None,
            holder: None,
            certificate: Vec::new().into(),
            path: Vec::new(),
            sealed_key: None,
            validity: fender_identity::Validity {
                not_before: at(from),
                not_after: at(until),
            },
            signs_from: at(signs_from),
        }
    }

    fn under(root: &str, from: u64, until: u64) -> AuthorityRow {
        AuthorityRow {
            role: Role::Intermediate,
            root: Some(root.parse().unwrap()),
            holder: Some(here()),
            ..self::root(&format!("{root}{root}"), from, until, from)
        }
    }

    fn here() -> ReplicaName {
        "here".parse().unwrap()
    }

    fn serial(row: Option<&AuthorityRow>) -> String {
        row.map(|row| row.serial.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_root_is_succeeded_at_half_its_life_and_the_successor_waits_for_its_publication() {
        let first = root("01", 0, 10 * YEAR, 0);
        let rows = [first];
        assert_eq!(root_due(&rows, &lifetimes(), at(5 * YEAR - 1)), None);
        let now = 5 * YEAR;
        let due = root_due(&rows, &lifetimes(), at(now)).unwrap();
        assert_eq!(due, at(now + 7 * DAY));

        let rows = [root("02", now, 15 * YEAR, now + 7 * DAY), rows[0].clone()];
        assert_eq!(root_due(&rows, &lifetimes(), at(now + 1)), None);
        assert_eq!(serial(signing_root(&rows, at(now + 7 * DAY - 1))), "01");
        assert_eq!(serial(announced_root(&rows, at(now + 7 * DAY - 1))), "02");
        assert_eq!(serial(signing_root(&rows, at(now + 7 * DAY))), "02");
        assert_eq!(announced_root(&rows, at(now + 7 * DAY)).map(|_| ()), None);
    }

    #[test]
    fn the_control_plane_shows_the_oldest_root_until_two_days_before_its_end() {
        let rows = [
            root("02", 5 * YEAR, 15 * YEAR, 5 * YEAR + 7 * DAY),
            root("01", 0, 10 * YEAR, 0),
        ];
        assert_eq!(serial(serving_root(&rows, at(6 * YEAR))), "01");
        assert_eq!(
            serial(serving_root(&rows, at(10 * YEAR - 2 * DAY - 1))),
            "01"
        );
        assert_eq!(serial(serving_root(&rows, at(10 * YEAR - 2 * DAY))), "02");
        assert_eq!(serial(signing_root(&rows, at(6 * YEAR))), "02");
    }

    #[test]
    fn a_root_that_is_about_to_end_is_succeeded_while_it_still_lives() {
        let rows = [root("01", 0, 10 * YEAR, 0)];
        let now = 10 * YEAR - 2 * HOUR;
        assert_eq!(
            root_due(&rows, &lifetimes(), at(now)),
            Some(at(now + HOUR)),
            "half of what is left, so that whoever renews hears of it"
        );
    }

    #[test]
    fn after_the_end_of_the_last_root_a_new_one_signs_at_once() {
        let rows = [root("01", 0, 10 * YEAR, 0)];
        let now = at(10 * YEAR + 1);
        assert_eq!(why_no_root(&rows, now), NoRoot::Ended);
        assert_eq!(root_due(&rows, &lifetimes(), now), Some(now));
    }

    #[test]
    fn a_clock_that_shows_a_time_before_every_root_makes_none() {
        let rows = [root("01", 10 * YEAR, 20 * YEAR, 10 * YEAR)];
        assert_eq!(root_due(&rows, &lifetimes(), at(YEAR)), None);
        assert_eq!(
            why_no_root(&rows, at(YEAR)),
            NoRoot::NotYet {
                begins: at(10 * YEAR)
            }
        );
    }

    #[test]
    fn a_root_made_while_the_clock_was_ahead_signs_nothing_once_it_is_right_again() {
        let rows = [
            root("02", 6 * YEAR, 16 * YEAR, 6 * YEAR + 7 * DAY),
            root("01", 0, 10 * YEAR, 0),
        ];
        assert_eq!(serial(signing_root(&rows, at(YEAR))), "01");
        assert_eq!(serial(serving_root(&rows, at(YEAR))), "01");
        assert_eq!(root_due(&rows, &lifetimes(), at(YEAR)), None);
        assert!(
            root_due(&rows, &lifetimes(), at(5 * YEAR)).is_some(),
            "its time has not come"
        );
        assert_eq!(
            root_due(&rows, &lifetimes(), at(6 * YEAR)),
            None,
            "now it has"
        );
    }

    #[test]
    fn shorter_lifetimes_count_for_authorities_that_were_given_longer_ones() {
        let rows = [under("01", 0, YEAR), root("01", 0, 10 * YEAR, 0)];
        let short = Lifetimes {
            root: Duration::from_secs(YEAR),
            intermediate: Duration::from_secs(YEAR / 4),
            ..lifetimes()
        };
        assert_eq!(root_due(&rows, &lifetimes(), at(YEAR / 2)), None);
        assert!(root_due(&rows, &short, at(YEAR / 2)).is_some());
        let due = |lifetimes: &Lifetimes| {
            intermediate_due(&rows, &rows[1], &here(), lifetimes, at(YEAR / 4))
        };
        assert!(!due(&lifetimes()));
        assert!(due(&short));
        let rows = [
            under("01", YEAR / 4, YEAR / 2),
            rows[0].clone(),
            rows[1].clone(),
        ];
        let due = intermediate_due(&rows, &rows[2], &here(), &short, at(YEAR / 4 + 1));
        assert!(!due);
    }

    #[test]
    fn an_intermediate_is_succeeded_at_half_its_life_unless_its_root_ends_first() {
        let rows = [under("01", 0, YEAR), root("01", 0, 10 * YEAR, 0)];
        let due = |now| intermediate_due(&rows, &rows[1], &here(), &lifetimes(), at(now));
        assert!(!due(YEAR / 2 - 1));
        assert!(due(YEAR / 2));
        let last = [under("01", 0, YEAR), root("01", 0, YEAR, 0)];
        assert!(!intermediate_due(
            &last,
            &last[1],
            &here(),
            &lifetimes(),
            at(YEAR - 1)
        ));
        assert!(intermediate_due(
            &last[1..],
            &last[1],
            &here(),
            &lifetimes(),
            at(1)
        ));
    }

    #[test]
    fn each_replica_has_an_intermediate_of_its_own_and_none_of_anothers() {
        let there: ReplicaName = "there".parse().unwrap();
        let theirs = |serial: &str, from| AuthorityRow {
            serial: serial.parse().unwrap(),
            holder: Some(there.clone()),
            ..under("01", from, YEAR)
        };
        let rows = [
            theirs("0a", 1),
            theirs("0b", 1),
            under("01", 0, YEAR),
            root("01", 0, 10 * YEAR, 0),
        ];
        let root = &rows[3];
        assert_eq!(serial(intermediate(&rows, root, &here(), at(2))), "0101");
        let reversed: Vec<_> = rows.iter().rev().cloned().collect();
        for rows in [&rows[..], &reversed] {
            let chosen = intermediate(rows, root, &there, at(2));
            assert_eq!(serial(chosen), "0b", "whatever the order they are read in");
        }
        let due = |holder: &ReplicaName| intermediate_due(&rows, root, holder, &lifetimes(), at(2));
        assert!(!due(&here()) && !due(&there));
        assert!(due(&"new".parse().unwrap()));
    }
}
