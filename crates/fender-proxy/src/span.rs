//! Requests as spans of their traces: what each was, how long it took and how it ended, for whoever collects them.
//!
//! A request has a span of ours where its caller records its own, or where we begin its trace; of all others nothing is kept,
//! and nothing is computed. A span says nothing that the access log does not say as well: no query, no field, no body. Nobody
//! waits for whoever takes them: what does not fit is counted and dropped.

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fender_identity::SpiffeId;
use fender_runtime::id::OpaqueId;
use fender_runtime::random;
use fender_wire::trace::{Sampled, SpanId, TraceId, TraceParent};
use tokio::sync::mpsc;

use crate::record::Direction;

/// One request that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub trace: TraceId,
    pub id: SpanId,
    /// Of who called; none where we began the trace.
    pub parent: Option<SpanId>,
    pub direction: Direction,
    /// Since 1970.
    pub began: Duration,
    pub took: Duration,
    /// None: not one of those that HTTP itself knows.
    pub method: Option<&'static str>,
    /// As it was matched and forwarded, without the query; at most [`Limits::span_path`](crate::Limits::span_path) of it.
    pub path: String,
    pub host: Option<String>,
    pub port: Option<u16>,
    /// How whoever asked spoke to us: `http/1.1` or `h2`.
    pub protocol: &'static str,
    /// A caller that came without TLS.
    pub plaintext: bool,
    pub status: Option<u16>,
    /// Whom it comes from.
    pub client: Option<IpAddr>,
    /// Who the other side proved to be.
    pub peer: Option<SpiffeId>,
    /// What the app called, as it is named in the documents.
    pub destination: Option<Arc<str>>,
    /// What a denial is written down under.
    pub decision: Option<OpaqueId>,
    /// Why it did not end well, by a name of a closed list.
    pub fault: Option<&'static str>,
}

/// Who takes the spans of a proxy.
#[derive(Debug)]
pub struct Recording {
    /// Bounded; what does not fit is counted and dropped.
    pub spans: mpsc::Sender<Span>,
    /// Of the requests that belong to no trace, those for which one is begun.
    pub begins: Share,
}

/// How many of many, at random.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share(u64);

impl Share {
    pub const NONE: Self = Self(0);
    pub const ALL: Self = Self(1 << 32);

    fn draws(self) -> bool {
        self.0 > 0 && random::cheap() >> 32 < self.0
    }
}

/// Not from none to all.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a share is a number from 0 to 1, such as 0.05")]
pub struct InvalidShare;

impl FromStr for Share {
    type Err = InvalidShare;

    fn from_str(text: &str) -> Result<Self, InvalidShare> {
        let share: f64 = text.parse().map_err(|_| InvalidShare)?;
        if !(0.0..=1.0).contains(&share) {
            return Err(InvalidShare);
        }
        // Who asks for some does not get none.
        let parts = (share * Self::ALL.0 as f64).ceil();
        Ok(Self(parts as u64))
    }
}

/// The way out for spans.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    recording: Option<Recording>,
    dropped: AtomicU64,
}

/// The span of ours that a request has.
#[derive(Debug)]
pub(crate) struct Own {
    pub(crate) trace: TraceId,
    pub(crate) id: SpanId,
    /// What goes on as `traceparent`.
    pub(crate) value: String,
}

impl Own {
    fn of(trace: TraceId) -> Box<Self> {
        let id = SpanId::of_random(random::bytes());
        let parent = TraceParent {
            trace,
            span: id,
            sampled: Sampled::Yes,
        };
        Box::new(Self {
            trace,
            id,
            value: parent.to_value(),
        })
    }
}

impl Recorder {
    pub(crate) fn new(recording: Option<Recording>) -> Self {
        Self {
            recording,
            dropped: AtomicU64::new(0),
        }
    }

    /// A span for a request that came from this one, if it is to have one: whether it is recorded was decided where its trace
    /// began.
    pub(crate) fn own(&self, parent: Option<&TraceParent>) -> Option<Box<Own>> {
        match (parent.map(|parent| parent.sampled), &self.recording) {
            (Some(Sampled::No), _) | (_, None) => None,
            (Some(Sampled::Yes), Some(_)) => parent.map(|parent| Own::of(parent.trace)),
            (None, Some(recording)) => recording
                .begins
                .draws()
                .then(|| Own::of(TraceId::of_random(random::bytes()))),
        }
    }

    /// Leaves a span. It is only put together when there is room for it.
    pub(crate) fn leave(&self, span: impl FnOnce() -> Span) {
        let Some(recording) = &self.recording else {
            return;
        };
        match recording.spans.try_reserve() {
            Ok(room) => room.send(span()),
            Err(_) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// A method by its name, if it is one that HTTP itself knows: of others there are as many as a caller likes.
pub(crate) fn well_known(method: &str) -> Option<&'static str> {
    const METHODS: [&str; 9] = [
        "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
    ];
    METHODS.into_iter().find(|known| *known == method)
}

/// The beginning of a text, as much as fits.
pub(crate) fn beginning(text: &str, most: usize) -> String {
    let end = text.floor_char_boundary(most);
    text.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &[u8] = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn parent(sampled: Sampled) -> TraceParent {
        TraceParent {
            sampled,
            ..TraceParent::read([PARENT]).unwrap()
        }
    }

    fn recorder(begins: Share) -> (Recorder, mpsc::Receiver<Span>) {
        let (spans, taken) = mpsc::channel(1);
        (Recorder::new(Some(Recording { spans, begins })), taken)
    }

    fn span(own: &Own) -> Span {
        Span {
            trace: own.trace,
            id: own.id,
            parent: None,
            direction: Direction::Inbound,
            began: Duration::ZERO,
            took: Duration::ZERO,
            method: Some("GET"),
            path: "/".to_owned(),
            host: None,
            port: None,
            protocol: "h2",
            plaintext: false,
            status: Some(200),
            client: None,
            peer: None,
            destination: None,
            decision: None,
            fault: None,
        }
    }

    #[test]
    fn whether_a_trace_is_recorded_is_decided_where_it_began() {
        for begins in [Share::NONE, Share::ALL] {
            let (recorder, _taken) = recorder(begins);
            assert!(recorder.own(Some(&parent(Sampled::No))).is_none());
            let caller = parent(Sampled::Yes);
            let own = recorder.own(Some(&caller)).unwrap();
            assert_eq!(own.trace, caller.trace);
            assert_ne!(own.id, caller.span);
            let said = TraceParent::read([own.value.as_bytes()]).unwrap();
            assert_eq!((said.trace, said.span), (own.trace, own.id));
            assert_eq!(said.sampled, Sampled::Yes);
        }
    }

    #[test]
    fn a_trace_is_begun_for_the_share_that_was_asked_for() {
        let begun = |share: &str| {
            let (recorder, _taken) = recorder(share.parse().unwrap());
            (0..10_000).filter(|_| recorder.own(None).is_some()).count()
        };
        assert_eq!(begun("0"), 0);
        assert_eq!(begun("1"), 10_000);
        // Ten standard deviations either way.
        assert!((2066..2934).contains(&begun("0.25")));
        let (recorder, _taken) = recorder(Share::ALL);
        let ids = [recorder.own(None).unwrap(), recorder.own(None).unwrap()];
        assert_ne!(ids[0].trace, ids[1].trace);
    }

    #[test]
    fn without_somebody_who_takes_them_there_are_no_spans() {
        let recorder = Recorder::default();
        assert!(recorder.own(Some(&parent(Sampled::Yes))).is_none());
        assert!(recorder.own(None).is_none());
    }

    #[test]
    fn what_nobody_takes_in_time_is_counted_and_costs_nothing() {
        let (recorder, mut taken) = recorder(Share::NONE);
        let own = recorder.own(Some(&parent(Sampled::Yes))).unwrap();
        recorder.leave(|| span(&own));
        recorder.leave(|| unreachable!("it is not even put together"));
        assert_eq!(recorder.dropped(), 1);
        assert_eq!(taken.try_recv().unwrap(), span(&own));
    }

    #[test]
    fn a_share_is_from_none_to_all_and_some_is_never_none() {
        for (text, share) in [
            ("0", Share::NONE),
            ("0.0", Share::NONE),
            ("1", Share::ALL),
            ("1e-30", Share(1)),
        ] {
            assert_eq!(text.parse(), Ok(share), "{text}");
        }
        for text in ["", "-0.1", "1.1", "NaN", "inf", "5%", "0,5"] {
            assert_eq!(text.parse::<Share>(), Err(InvalidShare), "{text}");
        }
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(beginning("/a", 3), "/a");
        assert_eq!(beginning("/aé", 3), "/a");
        assert_eq!(beginning("/aé", 4), "/aé");
    }
}
