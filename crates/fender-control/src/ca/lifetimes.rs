//! How long certificates live that no document says it of. A workload's and an authority's come from the `Mesh`.

use std::time::Duration;

use fender_identity::Validity;
use rustls::pki_types::UnixTime;

use crate::time::{earlier, later, until};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The control plane's own.
pub(crate) const CONTROL: Duration = DAY;
/// An administrator's, as written to the data directory.
pub(crate) const ADMIN: Duration = Duration::from_secs(90 * 24 * 3600);
/// The longest a person may ask for.
pub(crate) const PERSON: Duration = DAY;

/// The longest a workload's may be, whatever a document says.
pub(crate) const WORKLOAD: Duration = DAY;

/// How far a certificate begins in the past, for peers whose clock is behind: no more than a tenth of its life, which
/// leaves its half life where people expect it. With the hour that a workload's certificate lives by default that is six
/// minutes, so that clocks may differ by five. Who verifies needs no leniency of its own.
const SKEW: Duration = Duration::from_secs(600);

/// From a little before `now` for `lifetime`, and never beyond the issuer's own end.
pub(crate) fn validity(now: UnixTime, lifetime: Duration, issuer: UnixTime) -> Validity {
    Validity {
        not_before: earlier(now, SKEW.min(lifetime / 10)),
        not_after: later(now, lifetime).min(issuer),
    }
}

/// A root begins long before it is made: it says nothing by itself, and one that was made while the clock was some weeks
/// ahead still counts once it is right.
const ROOT_SKEW: Duration = Duration::from_secs(30 * 24 * 3600);

pub(crate) fn root_validity(now: UnixTime, lifetime: Duration) -> Validity {
    Validity {
        not_before: earlier(now, ROOT_SKEW.min(lifetime / 10)),
        not_after: later(now, lifetime),
    }
}

/// Whether an authority has lived half its life and needs a successor.
pub(crate) fn past_half(validity: Validity, now: UnixTime) -> bool {
    let whole = until(validity.not_before, validity.not_after);
    until(validity.not_before, now) >= whole / 2
}
