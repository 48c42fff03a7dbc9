//! What a monitoring system reads, in the OpenMetrics text format: made when somebody asks, from what is known then.
//!
//! Nothing is told that was not declared by [`metrics!`](crate::metrics!): what it is, in which series, and how many of them
//! there can be. The reference in the documentation is made of the declarations.

use std::borrow::Cow;
use std::fmt;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rustls_pki_types::UnixTime;

/// Of what [`Exposition::text`] makes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is told under one name.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Without what the format adds to the name of a counter: `_total`.
    pub name: &'static str,
    pub kind: Kind,
    /// Of the values.
    pub unit: &'static str,
    pub labels: &'static [Label],
    /// A sentence without its full stop, which the format adds.
    pub help: &'static str,
}

/// What becomes of a value as time goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows while the process lives.
    Counter,
    Gauge,
    Histogram,
}

/// What distinguishes the series of a metric.
#[derive(Clone, Copy, Debug)]
pub struct Label {
    pub name: &'static str,
    pub values: Values,
}

/// Which values a label has, and why there are no more.
#[derive(Clone, Copy, Debug)]
pub enum Values {
    /// These, as the code has them.
    These(fn() -> Vec<&'static str>),
    /// So many at most, in words.
    Bounded(&'static str),
}

/// Declares metrics: a constant for each, and one of all of them, for the reference. The compiler warns of one that nobody
/// tells.
#[macro_export]
macro_rules! metrics {
    ($(#[$documentation:meta])* $visibility:vis $all:ident; $($name:ident = $metric:expr;)+) => {
        $(pub(crate) const $name: $crate::metrics::Metric = $metric;)+

        // Made anew rather than of the constants above: those who are only named here are not told.
        $(#[$documentation])*
        $visibility const $all: &[$crate::metrics::Metric] = &[$($metric),+];
    };
}

impl Metric {
    pub const fn counter(name: &'static str, unit: &'static str, help: &'static str) -> Self {
        Self::new(name, Kind::Counter, unit, help)
    }

    pub const fn gauge(name: &'static str, unit: &'static str, help: &'static str) -> Self {
        Self::new(name, Kind::Gauge, unit, help)
    }

    pub const fn histogram(name: &'static str, unit: &'static str, help: &'static str) -> Self {
        Self::new(name, Kind::Histogram, unit, help)
    }

    const fn new(name: &'static str, kind: Kind, unit: &'static str, help: &'static str) -> Self {
        Self {
            name,
            kind,
            unit,
            labels: &[],
            help,
        }
    }

    /// The same, with a series for each value of these.
    pub const fn by(self, labels: &'static [Label]) -> Self {
        Self { labels, ..self }
    }
}

impl Label {
    pub const fn these(name: &'static str, values: fn() -> Vec<&'static str>) -> Self {
        Self {
            name,
            values: Values::These(values),
        }
    }

    pub const fn bounded(name: &'static str, values: &'static str) -> Self {
        Self {
            name,
            values: Values::Bounded(values),
        }
    }
}

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
    pub fn gauge(&mut self, metric: &Metric, value: i64) {
        let gauge = Gauge::<i64>::default();
        gauge.set(value);
        self.register(metric, gauge);
    }

    /// One value, and no label.
    pub fn number(&mut self, metric: &Metric, value: u64) {
        self.numbers(metric, vec![(vec![], value)]);
    }

    /// Values apart by labels: of this moment, or counted elsewhere.
    pub fn numbers(&mut self, metric: &Metric, values: Vec<(Labels, u64)>) {
        let value: fn(&u64) -> Value<'_> = match metric.kind {
            Kind::Counter => |value| Value::Counter(*value),
            Kind::Gauge | Kind::Histogram => |value| Value::Gauge(*value),
        };
        self.register(metric, Series(values, value));
    }

    pub fn histograms(&mut self, metric: &Metric, values: Vec<(Labels, Distribution)>) {
        self.register(metric, Series(values, |value| Value::Histogram(value)));
    }

    /// What the library counts.
    pub fn register(&mut self, metric: &Metric, told: impl prometheus_client::registry::Metric) {
        self.0.register(metric.name, metric.help, told);
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
        let left = Metric::gauge("fender_unrecoverable_seconds", "seconds", "Seconds left");
        told.gauge(&left, value);
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
        let seen = Metric::counter("seen", "times", "Seen");
        told.numbers(&seen, vec![(labelled("a"), 3), (labelled("b\"\n"), 0)]);
        told.number(&Metric::counter("plain", "times", "Plain"), 5);
        let open = Metric::gauge("open", "doors", "Open");
        told.numbers(&open, vec![(labelled("a"), 2)]);
        told.numbers(&Metric::counter("none", "times", "None"), vec![]);
        let took = Distribution {
            buckets: vec![(0.5, 1), (f64::INFINITY, 2)],
            sum: 7.25,
        };
        let seconds = Metric::histogram("took_seconds", "seconds", "Took");
        told.histograms(&seconds, vec![(labelled("a"), took)]);
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
