//! What a monitoring system reads, in the OpenMetrics text format: made when somebody asks, from what is known then.

use std::borrow::Cow;
use std::fmt;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry};
use rustls_pki_types::UnixTime;

/// Of what [`Exposition::text`] makes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The labels of one series.
pub type Labels = Vec<(&'static str, Cow<'static, str>)>;

/// How many times something took how long, or was how large.
#[derive(Clone, Debug)]
pub struct Distribution {
    /// Each with its upper end, the last without one, and with what fell into it and none before it.
    pub buckets: Vec<(f64, u64)>,
    pub sum: f64,
}

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

    /// Values of this moment, apart by labels.
    pub fn gauges(&mut self, name: &'static str, help: &'static str, values: Vec<(Labels, u64)>) {
        self.register(name, help, Series(values, |value| Value::Gauge(*value)));
    }

    /// What only grows, counted elsewhere; the format adds `_total` to the name.
    pub fn counters(&mut self, name: &'static str, help: &'static str, values: Vec<(Labels, u64)>) {
        self.register(name, help, Series(values, |value| Value::Counter(*value)));
    }

    pub fn histograms(
        &mut self,
        name: &'static str,
        help: &'static str,
        values: Vec<(Labels, Distribution)>,
    ) {
        self.register(name, help, Series(values, |value| Value::Histogram(value)));
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

/// Series of one metric, read elsewhere.
struct Series<T>(Vec<(Labels, T)>, fn(&T) -> Value<'_>);

enum Value<'a> {
    Gauge(u64),
    Counter(u64),
    Histogram(&'a Distribution),
}

impl<T> fmt::Debug for Series<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Series").field(&self.0.len()).finish()
    }
}

impl Value<'_> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        match self {
            Self::Gauge(value) => encoder.encode_gauge(value),
            Self::Counter(value) => encoder.encode_counter::<Labels, _, u64>(value, None),
            Self::Histogram(Distribution { buckets, sum }) => {
                let count = buckets.iter().map(|(_, count)| count).sum();
                encoder.encode_histogram::<Labels>(*sum, count, buckets, None)
            }
        }
    }
}

impl<T> EncodeMetric for Series<T> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let Self(series, value) = self;
        for (labels, held) in series {
            let value = value(held);
            if labels.is_empty() {
                // The one series of its metric.
                return value.encode(encoder);
            }
            value.encode(encoder.encode_family(labels)?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        match self.0.first().map(|(_, held)| (self.1)(held)) {
            Some(Value::Gauge(_)) => MetricType::Gauge,
            Some(Value::Histogram(_)) => MetricType::Histogram,
            Some(Value::Counter(_)) | None => MetricType::Counter,
        }
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
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

    #[test]
    fn series_are_told_with_their_labels_and_a_histogram_adds_its_buckets_up() {
        let mut told = Exposition::default();
        let labelled = |name: &'static str| vec![("peer", name.into())];
        told.counters(
            "seen",
            "Seen",
            vec![(labelled("a"), 3), (labelled("b\"\n"), 0)],
        );
        told.counters("plain", "Plain", vec![(vec![], 5)]);
        told.gauges("open", "Open", vec![(labelled("a"), 2)]);
        told.counters("none", "None", vec![]);
        let took = Distribution {
            buckets: vec![(0.5, 1), (f64::INFINITY, 2)],
            sum: 7.25,
        };
        told.histograms("took_seconds", "Took", vec![(labelled("a"), took)]);
        assert_eq!(
            told.text(),
            "# HELP seen Seen.\n# TYPE seen counter\nseen_total{peer=\"a\"} 3\nseen_total{peer=\"b\\\"\\n\"} 0\n\
             # HELP plain Plain.\n# TYPE plain counter\nplain_total 5\n\
             # HELP open Open.\n# TYPE open gauge\nopen{peer=\"a\"} 2\n\
             # HELP took_seconds Took.\n# TYPE took_seconds histogram\ntook_seconds_sum{peer=\"a\"} 7.25\n\
             took_seconds_count{peer=\"a\"} 3\ntook_seconds_bucket{le=\"0.5\",peer=\"a\"} 1\n\
             took_seconds_bucket{le=\"+Inf\",peer=\"a\"} 3\n# EOF\n"
        );
    }
}
