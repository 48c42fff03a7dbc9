//! What a monitoring system reads at an admin socket, in the OpenMetrics text format.
//!
//! Gauges are made when somebody asks, from what is known then. Their number does not depend on who calls or what is
//! called, and none of them names a secret, a peer or a path.

use fender_runtime::clock::UnixTime;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Gauges by name, with what each says.
pub(crate) fn text(gauges: &[(&'static str, &'static str, i64)]) -> String {
    let mut registry = Registry::default();
    for (name, help, value) in gauges {
        let gauge = Gauge::<i64>::default();
        gauge.set(*value);
        registry.register(*name, *help, gauge);
    }
    let mut text = String::new();
    // Writing into memory does not fail.
    let _ = encode(&mut text, &registry);
    text
}

/// Negative once it is past, so that an alarm need not know for how long.
pub(crate) fn seconds_until(now: UnixTime, moment: UnixTime) -> i64 {
    let seconds = |moment: UnixTime| i64::try_from(moment.as_secs()).unwrap_or(i64::MAX);
    seconds(moment).saturating_sub(seconds(now))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_gauge_is_told_with_its_help_and_goes_below_zero_when_its_moment_is_past() {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let value = seconds_until(at(100), at(40));
        let text = text(&[("fender_unrecoverable_seconds", "Seconds left", value)]);
        assert!(
            text.contains("# TYPE fender_unrecoverable_seconds gauge"),
            "{text}"
        );
        assert!(text.contains("fender_unrecoverable_seconds -60"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
