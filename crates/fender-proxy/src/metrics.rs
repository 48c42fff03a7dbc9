//! What is counted, for a monitoring system.
//!
//! How many series there are is bounded by this file and by [`Limits::metric_peers`](crate::Limits::metric_peers), whoever
//! calls and whatever is called: no label is a path, a host or an address, and only who has proven an identity, or is named
//! by a document, has a label of its own. A connection looks its [`Meter`] up once; a request adds to numbers, without a
//! lock and without a look-up.

pub(crate) mod declared;

use std::array;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use fender_policy::By;
use fender_runtime::metrics::{Distribution, Exposition, Labels};

use crate::access::RequestLine;
use crate::fault::{Blame, Fault, HandshakeFailure, Reason};
use crate::permit::{Allowed, Why};
use crate::record::Direction;
use crate::relay::Carried;

/// Who showed no certificate.
const ANONYMOUS: &str = "anonymous";
/// All those for whom there was no label left.
const OTHER: &str = "other";

/// Upper ends of the buckets of durations, in microseconds: from what a request costs us to what nobody waits for.
const BOUNDS: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];

/// By the first digit of the status; `none` where there was no response.
const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

const DIRECTIONS: [Direction; 2] = [Direction::Inbound, Direction::Outbound];

#[derive(Debug, Default)]
struct Count(AtomicU64);

impl Count {
    fn one(&self) {
        self.add(1);
    }

    fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Everything that one proxy counts.
#[derive(Debug)]
pub(crate) struct Metrics {
    inbound: Arc<Side>,
    outbound: Arc<Side>,
    handshakes: Count,
    plaintext: Count,
    handshakes_failed: [Count; HandshakeFailure::ALL.len()],
    decisions: [Count; Verdict::ALL.len()],
    audits: Count,
    /// Grows whenever the app uses its way out.
    activity: Count,
    most_peers: usize,
}

/// One direction.
#[derive(Debug)]
struct Side {
    accepted: Count,
    ended: Count,
    faults: [Count; Reason::ALL.len()],
    anonymous: Arc<Meter>,
    other: Arc<Meter>,
    /// By name. Taken once for each connection.
    peers: Mutex<BTreeMap<Arc<str>, Arc<Meter>>>,
}

/// What the requests and connections of one peer come to, in one direction.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    requests: [Count; CLASSES.len()],
    /// How many requests ended within each bound and not within the one before; the last is without bound.
    durations: [Count; BOUNDS.len() + 1],
    microseconds: Count,
    request_bytes: Count,
    response_bytes: Count,
    received: Count,
    sent: Count,
}

/// How a decision came out, and by what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    AllowedByPolicy,
    AllowedByDefault,
    DeniedByPolicy,
    DeniedByNoMatch,
    DeniedByDefault,
    Revoked,
    Expired,
}

impl Verdict {
    const ALL: [Self; 7] = [
        Self::AllowedByPolicy,
        Self::AllowedByDefault,
        Self::DeniedByPolicy,
        Self::DeniedByNoMatch,
        Self::DeniedByDefault,
        Self::Revoked,
        Self::Expired,
    ];

    /// Which it was, and what decided.
    fn texts(self) -> (&'static str, &'static str) {
        match self {
            Self::AllowedByPolicy => ("allow", "policy"),
            Self::AllowedByDefault => ("allow", "default"),
            Self::DeniedByPolicy => ("deny", "policy"),
            Self::DeniedByNoMatch => ("deny", "no_match"),
            Self::DeniedByDefault => ("deny", "default"),
            Self::Revoked => ("deny", "revoked"),
            Self::Expired => ("deny", "expired"),
        }
    }

    fn labels(self) -> Labels {
        let (verdict, by) = self.texts();
        vec![("verdict", verdict.into()), ("by", by.into())]
    }

    fn of(allowed: Option<&Allowed>, outcome: Result<(), &Fault>) -> Option<Self> {
        let denied = match outcome {
            Err(Fault::Policy(denied)) => Some(denied),
            Err(Fault::Peer(_) | Fault::Upstream(_) | Fault::Ours(_)) | Ok(()) => None,
        };
        Some(match (denied.map(|denied| &denied.why), allowed) {
            (Some(Why::Revoked), _) => Self::Revoked,
            (Some(Why::Expired), _) => Self::Expired,
            (Some(Why::Policy(decision)), _) => match decision.by {
                By::Policy { .. } => Self::DeniedByPolicy,
                By::NoMatch { .. } => Self::DeniedByNoMatch,
                By::Default(_) => Self::DeniedByDefault,
            },
            (None, Some(allowed)) => match allowed.by {
                By::Policy { .. } | By::NoMatch { .. } => Self::AllowedByPolicy,
                By::Default(_) => Self::AllowedByDefault,
            },
            (None, None) => return None,
        })
    }
}

/// A connection that is open.
#[derive(Debug)]
#[must_use = "a connection counts as open until this is dropped"]
pub(crate) struct Open(Arc<Side>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.ended.one();
    }
}

impl Metrics {
    pub(crate) fn new(most_peers: usize) -> Arc<Self> {
        let side = || {
            Arc::new(Side {
                accepted: Count::default(),
                ended: Count::default(),
                faults: Default::default(),
                anonymous: Arc::default(),
                other: Arc::default(),
                peers: Mutex::default(),
            })
        };
        Arc::new(Self {
            inbound: side(),
            outbound: side(),
            handshakes: Count::default(),
            plaintext: Count::default(),
            handshakes_failed: Default::default(),
            decisions: Default::default(),
            audits: Count::default(),
            activity: Count::default(),
            most_peers,
        })
    }

    fn side(&self, direction: Direction) -> &Arc<Side> {
        match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        }
    }

    /// A connection was accepted.
    pub(crate) fn opened(&self, direction: Direction) -> Open {
        let side = self.side(direction);
        side.accepted.one();
        if direction == Direction::Outbound {
            self.outbound_used();
        }
        Open(side.clone())
    }

    /// The app used its way out.
    pub(crate) fn outbound_used(&self) {
        self.activity.one();
    }

    /// A peer's handshake was completed.
    pub(crate) fn shook_hands(&self) {
        self.handshakes.one();
    }

    /// A peer came without TLS, where it may.
    pub(crate) fn came_without_tls(&self) {
        self.plaintext.one();
    }

    /// The meter of a peer by this name; those of strangers who come after the last label share one.
    pub(crate) fn meter(&self, direction: Direction, peer: Option<&str>) -> Arc<Meter> {
        let side = self.side(direction);
        let Some(peer) = peer else {
            return side.anonymous.clone();
        };
        let mut peers = side.peers.lock().unwrap_or_else(PoisonError::into_inner);
        match peers.get(peer) {
            Some(meter) => meter.clone(),
            None if peers.len() >= self.most_peers => side.other.clone(),
            None => peers.entry(peer.into()).or_default().clone(),
        }
    }

    /// A request has ended.
    pub(crate) fn request(
        &self,
        direction: Direction,
        meter: &Meter,
        line: &RequestLine<'_>,
        outcome: Result<(), &Fault>,
    ) {
        meter.request(line);
        self.outcome(direction, line.allowed, outcome);
    }

    /// A connection has ended that carried no request.
    pub(crate) fn connection(
        &self,
        direction: Direction,
        allowed: Option<&Allowed>,
        outcome: Result<(), &Fault>,
    ) {
        if direction == Direction::Inbound
            && let Some(failure) = outcome.err().and_then(Fault::handshake)
        {
            count(&self.handshakes_failed, &HandshakeFailure::ALL, failure);
        }
        self.outcome(direction, allowed, outcome);
    }

    fn outcome(
        &self,
        direction: Direction,
        allowed: Option<&Allowed>,
        outcome: Result<(), &Fault>,
    ) {
        if let Err(fault) = outcome {
            let faults = &self.side(direction).faults;
            count(faults, &Reason::ALL, fault.reason());
        }
        if let Some(verdict) = Verdict::of(allowed, outcome) {
            count(&self.decisions, &Verdict::ALL, verdict);
        }
        if allowed.is_some_and(|allowed| !allowed.audits.is_empty()) {
            self.audits.one();
        }
    }

    pub(crate) fn read(&self) -> Counts {
        let faults = |blame| {
            let of = |side: &Side| {
                let reasons = Reason::ALL.iter().zip(&side.faults);
                let blamed = reasons.filter(|(reason, _)| reason.blame() == blame);
                blamed.map(|(_, count)| count.read()).sum::<u64>()
            };
            of(&self.inbound) + of(&self.outbound)
        };
        let requests =
            |(_, meter): &(String, Arc<Meter>)| meter.requests.iter().map(Count::read).sum::<u64>();
        Counts {
            connections: self.inbound.accepted.read() + self.outbound.accepted.read(),
            plaintext: self.plaintext.read(),
            requests: [&self.inbound, &self.outbound]
                .iter()
                .flat_map(|side| side.meters())
                .map(|both| requests(&both))
                .sum(),
            peer_faults: faults(Blame::Peer),
            upstream_faults: faults(Blame::Upstream),
            denied: faults(Blame::Policy),
            own_faults: faults(Blame::Ours),
            outbound_activity: self.activity.read(),
        }
    }

    /// Adds all of it to what is told.
    pub(crate) fn tell(&self, told: &mut Exposition) {
        let sides = || DIRECTIONS.map(|direction| (direction, &**self.side(direction)));
        let by_direction = |read: fn(&Side) -> u64| {
            let of = |(direction, side)| (vec![label(direction)], read(side));
            sides().map(of).to_vec()
        };
        told.numbers(
            &declared::CONNECTIONS,
            by_direction(|side| side.accepted.read()),
        );
        told.numbers(
            &declared::CONNECTIONS_OPEN,
            by_direction(|side| {
                let ended = side.ended.read();
                side.accepted.read().saturating_sub(ended)
            }),
        );
        told.numbers(
            &declared::FAULTS,
            sides()
                .into_iter()
                .flat_map(|(direction, side)| {
                    let of = move |(reason, count): (&Reason, &Count)| {
                        let (blame, reason) = (reason.blame().label(), reason.label());
                        let labels = vec![
                            label(direction),
                            ("blame", blame.into()),
                            ("reason", reason.into()),
                        ];
                        (labels, count.read())
                    };
                    Reason::ALL.iter().zip(&side.faults).map(of)
                })
                .collect(),
        );
        told.number(&declared::HANDSHAKES, self.handshakes.read());
        told.number(&declared::PLAINTEXT, self.plaintext.read());
        let failed = HandshakeFailure::ALL.iter().zip(&self.handshakes_failed);
        told.numbers(
            &declared::HANDSHAKES_FAILED,
            failed
                .map(|(failure, count)| (vec![("reason", failure.label().into())], count.read()))
                .collect(),
        );
        let decided = Verdict::ALL.iter().zip(&self.decisions);
        told.numbers(
            &declared::DECISIONS,
            decided
                .map(|(verdict, count)| (verdict.labels(), count.read()))
                .collect(),
        );
        told.number(&declared::AUDITED, self.audits.read());
        self.tell_peers(told);
    }

    fn tell_peers(&self, told: &mut Exposition) {
        let meters: Vec<(Labels, Arc<Meter>)> = DIRECTIONS
            .into_iter()
            .flat_map(|direction| {
                let labelled = move |(peer, meter): (String, _)| {
                    (vec![label(direction), ("peer", peer.into())], meter)
                };
                self.side(direction).meters().into_iter().map(labelled)
            })
            .collect();
        let each = |read: fn(&Meter) -> &Count| {
            let of = |(labels, meter): &(Labels, Arc<Meter>)| (labels.clone(), read(meter).read());
            meters.iter().map(of).collect::<Vec<_>>()
        };
        let by_class = |(labels, meter): &(Labels, Arc<Meter>)| {
            let with = |class: &'static str| {
                let class = [("status", class.into())];
                labels.iter().cloned().chain(class).collect::<Labels>()
            };
            array::from_fn::<_, { CLASSES.len() }, _>(|index| {
                let count = meter.requests.get(index).map_or(0, Count::read);
                (with(CLASSES.get(index).unwrap_or(&OTHER)), count)
            })
        };
        told.numbers(
            &declared::REQUESTS,
            meters.iter().flat_map(by_class).collect(),
        );
        told.histograms(
            &declared::DURATIONS,
            meters
                .iter()
                .map(|(labels, meter)| (labels.clone(), meter.durations()))
                .collect(),
        );
        told.numbers(&declared::REQUEST_BYTES, each(|meter| &meter.request_bytes));
        told.numbers(
            &declared::RESPONSE_BYTES,
            each(|meter| &meter.response_bytes),
        );
        told.numbers(&declared::RECEIVED, each(|meter| &meter.received));
        told.numbers(&declared::SENT, each(|meter| &meter.sent));
    }
}

fn label(direction: Direction) -> (&'static str, std::borrow::Cow<'static, str>) {
    ("direction", direction.label().into())
}

/// Adds one to the count that stands where its name does.
fn count<T: PartialEq>(counts: &[Count], names: &[T], name: T) {
    let mut both = names.iter().zip(counts);
    if let Some((_, count)) = both.find(|(other, _)| **other == name) {
        count.one();
    }
}

impl Side {
    fn meters(&self) -> Vec<(String, Arc<Meter>)> {
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let named = peers
            .iter()
            .map(|(name, meter)| (name.to_string(), meter.clone()));
        let shared = [(ANONYMOUS, &self.anonymous), (OTHER, &self.other)];
        let shared = shared.map(|(name, meter)| (name.to_owned(), meter.clone()));
        named.chain(shared).collect()
    }
}

impl Meter {
    fn request(&self, line: &RequestLine<'_>) {
        let class = line.status.map_or(0, |status| usize::from(status / 100));
        if let Some(requests) = self.requests.get(class) {
            requests.one();
        }
        let microseconds = u64::try_from(line.took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|bound| *bound < microseconds);
        if let Some(duration) = self.durations.get(bucket) {
            duration.one();
        }
        self.microseconds.add(microseconds);
        add_some(&self.request_bytes, line.received);
        add_some(&self.response_bytes, line.sent);
    }

    /// A connection that carried no request has ended.
    pub(crate) fn carried(&self, carried: Carried) {
        add_some(&self.received, carried.received);
        add_some(&self.sent, carried.sent);
    }

    fn durations(&self) -> Distribution {
        let bounds = BOUNDS.iter().map(|bound| *bound as f64 / 1e6);
        let counts = self.durations.iter().map(Count::read);
        Distribution {
            buckets: bounds.chain([f64::INFINITY]).zip(counts).collect(),
            sum: self.microseconds.read() as f64 / 1e6,
        }
    }
}

/// Most requests have no body, and a number that stays costs nothing.
fn add_some(count: &Count, number: u64) {
    if number > 0 {
        count.add(number);
    }
}

/// A copy of what `fender status` shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub connections: u64,
    /// Of them, from peers that came without TLS.
    pub plaintext: u64,
    pub requests: u64,
    /// Faults by blame; `denied` is policy's.
    pub peer_faults: u64,
    pub upstream_faults: u64,
    pub denied: u64,
    pub own_faults: u64,
    /// Grows with every connection of the app's and whenever bytes move on one. What stands still is
    /// idle.
    pub outbound_activity: u64,
}

#[cfg(test)]
mod tests;
