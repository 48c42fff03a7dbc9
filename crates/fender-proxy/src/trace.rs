//! Whose trace contexts go on (W3C Trace Context; the grammar is `fender_wire::trace`).
//!
//! Fender takes no part in traces: it makes no span, and so invents no id that nobody would find. A context that is one goes
//! on as it is, and its ids are in the access log; what is none does not reach the app, which then begins a trace of its own.
//! A caller that is not believed cannot write into the traces of the mesh.

use fender_identity::{Peer, TrustDomain};
use fender_wire::{Fields, trace};

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trace {
    pub(crate) parent: Option<trace::TraceParent>,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Dropped,
    Kept,
}

impl Trace {
    pub(crate) fn of(fields: &Fields, traces: Traces) -> Self {
        if traces == Traces::BegunAnew {
            return Self::default();
        }
        let Some(parent) = trace::TraceParent::read(fields.all(trace::PARENT)) else {
            // A state is nothing without its parent.
            return Self::default();
        };
        Self {
            parent: Some(parent),
            state: match trace::is_state(fields.all(trace::STATE)) {
                true => State::Kept,
                false => State::Dropped,
            },
        }
    }

    /// Says whether a field goes on as far as traces are concerned.
    pub(crate) fn passes(&self, name: &[u8]) -> bool {
        if name.eq_ignore_ascii_case(trace::PARENT.as_bytes()) {
            self.parent.is_some()
        } else if name.eq_ignore_ascii_case(trace::STATE.as_bytes()) {
            self.state == State::Kept
        } else {
            true
        }
    }
}
