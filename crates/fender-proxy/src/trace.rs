//! Whose trace contexts go on (W3C Trace Context; the grammar is `fender_wire::trace`).
//!
//! A context that is one goes on, and its ids are in the access log; what is none does not reach the app, which then begins a
//! trace of its own. Where the request has a [span of ours](crate::span) the app's parent is that; else the context goes on as
//! it is, because an id that nobody recorded would tear the trace apart. A caller that is not believed can neither write into
//! the traces of the mesh nor make us record.

use fender_identity::{Peer, TrustDomain};
use fender_wire::{Fields, trace};

use crate::span::{Own, Recorder};

/// From whom a trace is taken up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TracesFrom {
    /// From those with an identity of our own trust domain.
    #[default]
    Mesh,
    /// From every caller.
    Anybody,
}

impl TracesFrom {
    pub(crate) fn judge(self, peer: &Peer, own: &TrustDomain) -> Traces {
        let is_ours = || peer.id().is_some_and(|id| id.trust_domain() == own);
        match self == Self::Anybody || is_ours() {
            true => Traces::GoneOnWith,
            false => Traces::BegunAnew,
        }
    }
}

/// What becomes of the contexts of one caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traces {
    GoneOnWith,
    BegunAnew,
}

/// The context of one request.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    pub(crate) parent: Option<trace::TraceParent>,
    state: State,
    /// Of ours, where the request is recorded.
    pub(crate) own: Option<Box<Own>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Dropped,
    Kept,
}

impl Trace {
    pub(crate) fn of(fields: &Fields, traces: Traces, recorder: &Recorder) -> Self {
        let parent = match traces {
            Traces::GoneOnWith => trace::TraceParent::read(fields.all(trace::PARENT)),
            Traces::BegunAnew => None,
        };
        let own = recorder.own(parent.as_ref());
        let state = match parent {
            Some(_) if trace::is_state(fields.all(trace::STATE)) => State::Kept,
            // A state is nothing without its parent.
            Some(_) | None => State::Dropped,
        };
        Self { parent, state, own }
    }

    /// Says whether a field goes on as far as traces are concerned.
    pub(crate) fn passes(&self, name: &[u8]) -> bool {
        if name.eq_ignore_ascii_case(trace::PARENT.as_bytes()) {
            self.parent.is_some() && self.own.is_none()
        } else if name.eq_ignore_ascii_case(trace::STATE.as_bytes()) {
            self.state == State::Kept
        } else {
            true
        }
    }

    /// What goes on as the parent instead of what came.
    pub(crate) fn said(&self) -> Option<&str> {
        self.own.as_ref().map(|own| own.value.as_str())
    }
}
