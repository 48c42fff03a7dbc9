//! When a server wants to be asked again.

use std::time::UNIX_EPOCH;

use http::HeaderValue;

/// `Retry-After` (RFC 9110, 10.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Seconds(u64),
    /// In seconds since 1970.
    Moment(u64),
}

impl Wish {
    /// None if nobody can tell what it means.
    pub(crate) fn read(value: &HeaderValue) -> Option<Self> {
        let text = value.to_str().ok()?.trim();
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            // More than can be counted is very long.
            return Some(Self::Seconds(text.parse().unwrap_or(u64::MAX)));
        }
        let moment = httpdate::parse_http_date(text).ok()?;
        let since = moment.duration_since(UNIX_EPOCH).ok()?;
        Some(Self::Moment(since.as_secs()))
    }

    /// In how many seconds that is, for who has just heard it.
    pub(crate) fn within(self, now: u64) -> u64 {
        match self {
            Self::Seconds(seconds) => seconds,
            Self::Moment(moment) => moment.saturating_sub(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_to_come_back_is_said_in_seconds_or_as_a_date() {
        let read = |text| Wish::read(&HeaderValue::from_static(text));
        assert_eq!(read("120"), Some(Wish::Seconds(120)));
        assert_eq!(read(" 0 "), Some(Wish::Seconds(0)));
        // In seconds since 1970, as `date` gives them.
        let moment = read("Thu, 21 Jan 2027 00:00:00 GMT").unwrap();
        assert_eq!(moment, Wish::Moment(1_800_489_600));
        assert_eq!(moment.within(1_800_489_000), 600);
        assert_eq!(moment.within(1_800_489_601), 0);
        // Attack: more than can be counted is not taken for nothing.
        assert_eq!(read("99999999999999999999"), Some(Wish::Seconds(u64::MAX)));
        for nonsense in ["", "-1", "1.5", "soon", "Thu, 01 Jan 1960 00:00:00 GMT"] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
    }
}
