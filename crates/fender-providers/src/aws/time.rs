//! Moments as AWS writes them.

use std::time::{Duration, UNIX_EPOCH};

/// `20150830T123600Z`, of seconds since 1970.
pub(super) fn stamp(now: u64) -> String {
    // What cannot be written was no moment of this clock.
    let latest = 253_402_300_799;
    let moment = UNIX_EPOCH + Duration::from_secs(now.min(latest));
    let written = humantime::format_rfc3339_seconds(moment).to_string();
    written.replace(['-', ':'], "")
}

/// Seconds since 1970, of `2030-01-01T00:00:00Z`, also with parts of a second.
pub(super) fn read(text: &str) -> Option<u64> {
    let moment = humantime::parse_rfc3339(text).ok()?;
    let since = moment.duration_since(UNIX_EPOCH).ok()?;
    Some(since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_and_read_as_aws_does() {
        assert_eq!(stamp(1_440_938_160), "20150830T123600Z");
        assert_eq!(stamp(u64::MAX), "99991231T235959Z");
        assert_eq!(read("2015-08-30T12:36:00Z"), Some(1_440_938_160));
        assert_eq!(read("2015-08-30T12:36:00.234426Z"), Some(1_440_938_160));
        for nonsense in ["", "soon", "1960-01-01T00:00:00Z"] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
    }
}
