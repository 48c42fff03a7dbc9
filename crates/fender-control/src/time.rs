//! Moments as the database and the protocol carry them: whole seconds since 1970.

use std::time::Duration;

use rustls::pki_types::UnixTime;

/// Saturates, which only a clock far beyond any certificate's life could reach.
pub(crate) fn seconds(moment: UnixTime) -> i64 {
    i64::try_from(moment.as_secs()).unwrap_or(i64::MAX)
}

/// A moment before 1970 is 1970.
pub(crate) fn moment(seconds: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

pub(crate) fn later(moment: UnixTime, by: Duration) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(moment.as_secs()).saturating_add(by))
}

pub(crate) fn earlier(moment: UnixTime, by: Duration) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(moment.as_secs()).saturating_sub(by))
}

/// The time from `from` until `to`, nothing when it is past.
pub(crate) fn until(from: UnixTime, to: UnixTime) -> Duration {
    Duration::from_secs(to.as_secs().saturating_sub(from.as_secs()))
}
