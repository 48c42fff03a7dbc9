//! What a monitoring system reads, in the OpenMetrics text format: made when somebody asks, from what is known then.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry};
use rustls_pki_types::UnixTime;

/// Of what [`Exposition::text`] makes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything that is told at once.
#[derive(Debug, Default)]
pub struct Exposition(Registry);

impl Exposition {
    /// One value of this moment.
    pub fn gauge(&mut self, name: &'static str, help: &'static str, value: i64) {
        let gauge = Gauge::<i64>::default();
        gauge.set(value);
        self.register(name, help, gauge);
    }

    /// What is counted elsewhere, or has labels.
    pub fn register(&mut self, name: &'static str, help: &'static str, metric: impl Metric) {
        self.0.register(name, help, metric);
    }

    /// As it travels.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into memory does not fail.
        let _ = encode(&mut text, &self.0);
        text
    }
}

/// Negative once it is past, so that an alarm need not know for how long.
pub fn seconds_until(now: UnixTime, moment: UnixTime) -> i64 {
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
        let mut told = Exposition::default();
        let value = seconds_until(at(100), at(40));
        told.gauge("fender_unrecoverable_seconds", "Seconds left", value);
        let text = told.text();
        assert!(
            text.contains("# TYPE fender_unrecoverable_seconds gauge"),
            "{text}"
        );
        assert!(text.contains("fender_unrecoverable_seconds -60"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
