//! The bounds of HTTP requests at a port, as far as documents set them.
//!
//! None of them can be lifted: each has a least, below which no honest request would pass, and a most, up to which what a
//! peer can make a sidecar hold stays what its other bounds promise. What no document sets is the sidecar's own default.

use std::ops::RangeInclusive;
use std::time::Duration;

const KIB: u64 = 1024;
const TIB: u64 = KIB * KIB * KIB * KIB;
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const WEEK: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// What is not set is left as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestLimits {
    pub head_bytes: Option<u64>,
    pub head_fields: Option<u64>,
    pub head_time: Option<Duration>,
    pub target_bytes: Option<u64>,
    pub body_bytes: Option<u64>,
    pub idle: Option<Duration>,
    pub stall: Option<Duration>,
    pub response: Option<Duration>,
    pub request: Option<Duration>,
    pub streams: Option<u64>,
}

impl RequestLimits {
    pub const HEAD_BYTES: RangeInclusive<u64> = KIB..=128 * KIB;
    pub const HEAD_FIELDS: RangeInclusive<u64> = 10..=256;
    pub const HEAD_TIME: RangeInclusive<Duration> =
        Duration::from_secs(1)..=Duration::from_secs(60);
    pub const TARGET_BYTES: RangeInclusive<u64> = 256..=32 * KIB;
    pub const BODY_BYTES: RangeInclusive<u64> = KIB..=TIB;
    pub const IDLE: RangeInclusive<Duration> = Duration::from_secs(1)..=HOUR;
    pub const STALL: RangeInclusive<Duration> = Duration::from_secs(1)..=HOUR;
    pub const RESPONSE: RangeInclusive<Duration> = Duration::from_secs(1)..=DAY;
    pub const REQUEST: RangeInclusive<Duration> = Duration::from_secs(1)..=WEEK;
    pub const STREAMS: RangeInclusive<u64> = 1..=256;

    /// What holds at a place that says this, given what holds around it: field by field, the place wins.
    #[must_use]
    pub fn over(&self, general: &Self) -> Self {
        Self {
            head_bytes: self.head_bytes.or(general.head_bytes),
            head_fields: self.head_fields.or(general.head_fields),
            head_time: self.head_time.or(general.head_time),
            target_bytes: self.target_bytes.or(general.target_bytes),
            body_bytes: self.body_bytes.or(general.body_bytes),
            idle: self.idle.or(general.idle),
            stall: self.stall.or(general.stall),
            response: self.response.or(general.response),
            request: self.request.or(general.request),
            streams: self.streams.or(general.streams),
        }
    }

    /// Whether anything that is said both here and there is more here.
    pub fn exceed(&self, other: &Self) -> bool {
        fn more<T: PartialOrd>(one: Option<T>, other: Option<T>) -> bool {
            one.zip(other).is_some_and(|(one, other)| one > other)
        }
        more(self.head_bytes, other.head_bytes)
            || more(self.head_fields, other.head_fields)
            || more(self.head_time, other.head_time)
            || more(self.target_bytes, other.target_bytes)
            || more(self.body_bytes, other.body_bytes)
            || more(self.idle, other.idle)
            || more(self.stall, other.stall)
            || more(self.response, other.response)
            || more(self.request, other.request)
            || more(self.streams, other.streams)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_wins_over_what_is_around_it_field_by_field() {
        let general = RequestLimits {
            head_bytes: Some(4096),
            idle: Some(Duration::from_secs(60)),
            ..RequestLimits::default()
        };
        let place = RequestLimits {
            idle: Some(Duration::from_secs(2)),
            streams: Some(10),
            ..RequestLimits::default()
        };
        let expected = RequestLimits {
            head_bytes: Some(4096),
            idle: Some(Duration::from_secs(2)),
            streams: Some(10),
            ..RequestLimits::default()
        };
        assert_eq!(place.over(&general), expected);
        assert_eq!(RequestLimits::default().over(&expected), expected);
        assert!(general.exceed(&place) && !place.exceed(&general));
        assert!(!place.exceed(&RequestLimits::default()) && !place.exceed(&place));
    }
}
