//! What Fender aims at, each as a bound on one figure: most as a ratio to a peer measured in the
//! same rounds, because the peer's own figure is another one on every machine.

use super::results::{Results, median};

pub(super) struct Goal {
    pub(super) about: &'static str,
    pub(super) work: &'static str,
    pub(super) figure: &'static str,
    pub(super) bound: Bound,
    /// Not a promise: what to reach for beyond it.
    pub(super) reach: bool,
    pub(super) floor: Option<Floor>,
}

/// Who does only what nobody can do without, measured in the same rounds: it tells how much of the way to a bound there is.
#[derive(Clone, Copy)]
pub(super) struct Floor {
    pub(super) about: &'static str,
    work: &'static str,
    subject: &'static str,
}

/// Handshakes by rustls and nothing else, for whoever has its TLS from there.
const RUSTLS: Floor = Floor {
    about: "rustls and epoll alone",
    work: "",
    subject: "bare",
};

/// A process between the two ends, and two more wakings: what the latency of any proxy has in it.
const HOP: Floor = Floor {
    about: "nginx relaying bytes without TLS",
    work: "relay_rate",
    subject: "nginx",
};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Bound {
    /// At most so many times the peer's.
    AtMost(f64, &'static str),
    /// At least so many times the peer's.
    AtLeast(f64, &'static str),
    /// At most this, whoever else does what.
    Below(f64, &'static str),
}

/// What came out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Outcome {
    Met { value: f64, within_noise: bool },
    Missed { value: f64, within_noise: bool },
    NotMeasured,
}

/// Differences below this are called noise.
pub(super) const NOISE: f64 = 0.15;

const fn goal(about: &'static str, work: &'static str, figure: &'static str, bound: Bound) -> Goal {
    Goal {
        about,
        work,
        figure,
        bound,
        reach: false,
        floor: None,
    }
}

const fn beside(mut goal: Goal, floor: Floor) -> Goal {
    goal.floor = Some(Floor {
        work: if floor.work.is_empty() {
            goal.work
        } else {
            floor.work
        },
        ..floor
    });
    goal
}

const fn reach(mut goal: Goal) -> Goal {
    goal.reach = true;
    goal
}

pub(super) const GOALS: &[Goal] = &[
    goal(
        "HTTP/1.1 over mTLS, CPU per request",
        "h1_mtls",
        "cpu_us",
        Bound::AtMost(0.9, "haproxy"),
    ),
    reach(goal(
        "HTTP/1.1 over mTLS, CPU per request",
        "h1_mtls",
        "cpu_us",
        Bound::AtMost(0.75, "haproxy"),
    )),
    goal(
        "HTTP/2 over mTLS, CPU per request",
        "h2_mtls",
        "cpu_us",
        Bound::AtMost(1.0, "nginx"),
    ),
    reach(goal(
        "HTTP/2 over mTLS, CPU per request",
        "h2_mtls",
        "cpu_us",
        Bound::AtMost(1.0, "haproxy"),
    )),
    goal(
        "outbound, CPU per request",
        "orig",
        "cpu_us",
        Bound::AtMost(0.9, "haproxy"),
    ),
    beside(
        goal(
            "full TLS 1.3 handshake, CPU",
            "hs_tls",
            "cpu_us",
            Bound::AtMost(0.75, "pingora"),
        ),
        RUSTLS,
    ),
    beside(
        goal(
            "full mTLS handshake, CPU",
            "hs_mtls",
            "cpu_us",
            Bound::AtMost(0.85, "pingora"),
        ),
        RUSTLS,
    ),
    beside(
        goal(
            "resumed handshake, CPU",
            "hs_resume",
            "cpu_us",
            Bound::AtMost(0.7, "pingora"),
        ),
        RUSTLS,
    ),
    goal(
        "answers of 1 MB, bytes per CPU second",
        "h1_1m",
        "gb_per_cpu_second",
        Bound::AtLeast(1.15, "pingora"),
    ),
    goal(
        "bytes over TLS, encrypting, per CPU second",
        "tcp_down",
        "gb_per_cpu_second",
        Bound::AtLeast(1.15, "envoy"),
    ),
    goal(
        "bytes over TLS, decrypting, per CPU second",
        "tcp_up",
        "gb_per_cpu_second",
        Bound::AtLeast(1.15, "envoy"),
    ),
    goal(
        "idle mTLS connection after one request",
        "idle",
        "kb_per_connection",
        Bound::Below(10.0, "KB"),
    ),
    goal(
        "memory at start",
        "startup",
        "rss_mb",
        Bound::Below(8.0, "MB"),
    ),
    goal(
        "exec to first answered mTLS handshake",
        "startup",
        "ms",
        Bound::AtMost(1.0, "nginx"),
    ),
    beside(
        goal(
            "p50 at 3,000 requests/s",
            "h1_rate",
            "p50_us",
            Bound::AtMost(0.8, "nginx"),
        ),
        HOP,
    ),
    goal(
        "p99 at 3,000 requests/s",
        "h1_rate",
        "p99_us",
        Bound::AtMost(1.0, "haproxy"),
    ),
    goal("binary", "size", "mb", Bound::Below(25.0, "MB")),
    goal(
        "binary of a sidecar alone",
        "size_alone",
        "mb",
        Bound::Below(12.0, "MB"),
    ),
];

impl Goal {
    /// The floor as a ratio to the peer that the goal is bound to.
    pub(super) fn floor(&self, results: &Results) -> Option<(&'static str, f64)> {
        let floor = self.floor?;
        let (Bound::AtMost(_, peer) | Bound::AtLeast(_, peer)) = self.bound else {
            return None;
        };
        let ratio = results.ratio(self.figure, (floor.work, floor.subject), (self.work, peer))?;
        Some((floor.about, ratio))
    }

    pub(super) fn outcome(&self, results: &Results) -> Outcome {
        let value = match self.bound {
            Bound::AtMost(_, peer) | Bound::AtLeast(_, peer) => {
                results.ratio(self.figure, (self.work, "fender"), (self.work, peer))
            }
            Bound::Below(..) => median(results.values(self.work, self.figure, "fender")),
        };
        let Some(value) = value else {
            return Outcome::NotMeasured;
        };
        let (bound, met) = match self.bound {
            Bound::AtMost(bound, _) | Bound::Below(bound, _) => (bound, value <= bound),
            Bound::AtLeast(bound, _) => (bound, value >= bound),
        };
        let within_noise = (value / bound - 1.0).abs() < NOISE;
        if met {
            Outcome::Met {
                value,
                within_noise,
            }
        } else {
            Outcome::Missed {
                value,
                within_noise,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::results;
    use super::super::work::Work;
    use super::*;

    #[test]
    fn a_goal_names_a_test_and_one_of_its_figures() {
        for goal in GOALS {
            let work = Work::of(goal.work).unwrap();
            assert!(
                work.figures()
                    .iter()
                    .any(|figure| figure.key == goal.figure),
                "{} has no {}",
                goal.work,
                goal.figure
            );
            let floor = goal.floor.map(|floor| floor.work);
            assert!(floor.is_none_or(|work| Work::of(work).is_some()));
        }
    }

    #[test]
    fn a_floor_is_a_ratio_to_the_same_peer() {
        let results = results(&[
            ("hs_tls", "fender", &[95.0, 190.0]),
            ("hs_tls", "bare", &[80.0, 160.0]),
            ("hs_tls", "pingora", &[100.0, 200.0]),
        ]);
        let goal = GOALS.iter().find(|goal| goal.work == "hs_tls").unwrap();
        let (_, floor) = goal.floor(&results).unwrap();
        assert!((floor - 0.8).abs() < 1e-9);
    }

    #[test]
    fn a_ratio_is_the_median_of_those_within_rounds() {
        // Each round is disturbed by another factor; within a round both are.
        let results = results(&[
            ("h1_mtls", "fender", &[10.0, 20.0, 40.0]),
            ("h1_mtls", "haproxy", &[20.0, 40.0, 80.0]),
        ]);
        let [goal, ..] = GOALS else { unreachable!() };
        let met = Outcome::Met {
            value: 0.5,
            within_noise: false,
        };
        assert_eq!(goal.outcome(&results), met);
    }

    #[test]
    fn a_peer_that_was_not_measured_is_not_a_goal_met() {
        let results = results(&[("h1_mtls", "fender", &[10.0])]);
        let [goal, ..] = GOALS else { unreachable!() };
        assert_eq!(goal.outcome(&results), Outcome::NotMeasured);
    }

    #[test]
    fn missed_by_less_than_noise_says_so() {
        let results = results(&[
            ("h1_mtls", "fender", &[95.0]),
            ("h1_mtls", "haproxy", &[100.0]),
        ]);
        let [goal, ..] = GOALS else { unreachable!() };
        let missed = Outcome::Missed {
            value: 0.95,
            within_noise: true,
        };
        assert_eq!(goal.outcome(&results), missed);
    }
}
