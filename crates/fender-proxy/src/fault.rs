//! What went wrong, by blame: the peer, the upstream (the app, or the other workload), policy, or us.
//!
//! Two audiences. [`Fault`]'s `Display` is for our own log and says everything; what the peer is told
//! is [`Fault::answer`], poorer, and nothing at all by default. An address, a policy's name or a
//! library's words never cross over.

mod reason;

use std::io;
use std::sync::Arc;

use fender_identity::tls::refusal_of;
use fender_runtime::deadline::Elapsed;
use fender_wire::HeadError;
use fender_wire::body::BodyError;
use fender_wire::forwarded::ForwardedError;
use fender_wire::path::PathError;
use fender_wire::proxy::ProxyError;

pub(crate) use reason::{Blame, HandshakeFailure, Reason};

use crate::permit::{Cut, Denied};
use crate::relay::{Broken, Side};

/// Why a connection or a request did not end as it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error(transparent)]
    Peer(#[from] PeerFault),
    #[error(transparent)]
    Upstream(#[from] UpstreamFault),
    #[error(transparent)]
    Policy(#[from] Denied),
    #[error(transparent)]
    Ours(#[from] OurFault),
}

/// The peer did not keep to the protocol, or left.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum PeerFault {
    #[error("handshake refused: {text}")]
    Handshake {
        failure: HandshakeFailure,
        text: String,
    },
    #[error("a sender listed in `proxyProtocol` is refused: {0}")]
    Introduction(ProxyError),
    #[error("a sender listed in `proxyProtocol` is refused: its header names no TCP client")]
    NamesNobody,
    #[error("a PROXY header from an address that `proxyProtocol` does not list")]
    IsNoSender,
    #[error("handshake or decision took too long")]
    EstablishesTooSlowly,
    #[error("too many connections from its address are open")]
    Crowds,
    #[error("request head refused: {0}")]
    Head(#[from] HeadError),
    #[error("request head took too long")]
    SendsHeadTooSlowly,
    #[error("path refused: {0}")]
    Path(#[from] PathError),
    #[error("what a proxy in front says is refused: {0}")]
    Forwarded(#[from] ForwardedError),
    #[error("request body refused: {0}")]
    Body(#[from] BodyError),
    #[error("request body is larger than the port's limit")]
    SendsTooMuch,
    #[error("no byte moved for too long")]
    Stalls,
    #[error("request took longer than any may")]
    Outlives,
    #[error("connection lost: {0}")]
    Leaves(Arc<io::Error>),
    #[error("left before the response was complete")]
    Abandons,
    #[error("HTTP/2 connection failed: {0}")]
    Http2(String),
}

/// The other side of us did not answer, or not properly.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamFault {
    #[error("cannot reach {address}: {error}")]
    Unreachable { address: String, error: io::Error },
    #[error("none of {0} addresses could be reached in time")]
    TakesTooLong(usize),
    #[error("{address} is not `{expected}`: {reason}")]
    ProvesWrongIdentity {
        address: String,
        expected: String,
        reason: String,
    },
    #[error("connection failed: {0}")]
    Breaks(String),
    #[error("no response in time")]
    StaysSilent,
    #[error("connection lost: {0}")]
    Leaves(io::Error),
}

/// Neither side's doing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OurFault {
    #[error("ended by the drain")]
    Drained,
    #[error("not configured any more")]
    Removed,
    /// It proves nothing any more, so nothing is opened with it.
    #[error("our own certificate has expired")]
    Expired,
    #[error("no connection to the app became free in time")]
    Crowded,
    #[error("too many requests wait for the app already")]
    Overrun,
    #[error("every connection is taken")]
    Full,
    #[error("the message could not be written: {0}")]
    Unwritable(String),
}

impl Fault {
    pub(crate) fn blame(&self) -> Blame {
        match self {
            Self::Peer(_) => Blame::Peer,
            Self::Upstream(_) => Blame::Upstream,
            Self::Policy(_) => Blame::Policy,
            Self::Ours(_) => Blame::Ours,
        }
    }

    /// What an HTTP peer is told: a status and a few words. Nothing where nobody listens any more.
    pub(crate) fn answer(&self) -> Option<(u16, &'static str)> {
        match self {
            Self::Peer(fault) => fault.answer(),
            Self::Upstream(fault) => Some(fault.answer()),
            Self::Policy(_) => Some((403, "denied")),
            Self::Ours(OurFault::Drained | OurFault::Removed) => Some((503, "going away")),
            Self::Ours(OurFault::Expired) => Some((503, "the sidecar has no valid certificate")),
            Self::Ours(OurFault::Crowded | OurFault::Overrun | OurFault::Full) => {
                Some((503, "too many requests at a time"))
            }
            Self::Ours(OurFault::Unwritable(_)) => Some((500, "internal error")),
        }
    }
}

impl PeerFault {
    /// A handshake that failed, with the attack it looks like where the certificate was the reason.
    pub(crate) fn handshake(error: &io::Error) -> Self {
        match refusal_of(error) {
            Some(refusal) => Self::Handshake {
                failure: HandshakeFailure::from(&refusal),
                text: refusal.to_string(),
            },
            None => Self::Handshake {
                failure: HandshakeFailure::of(error),
                text: error.to_string(),
            },
        }
    }

    fn answer(&self) -> Option<(u16, &'static str)> {
        match self {
            Self::Head(error) => Some((error.status(), "malformed request")),
            Self::Path(_) | Self::Forwarded(_) | Self::Body(_) => Some((400, "malformed request")),
            Self::SendsTooMuch => Some((413, "request body too large")),
            Self::SendsHeadTooSlowly | Self::Stalls | Self::Outlives => {
                Some((408, "request took too long"))
            }
            Self::Handshake { .. }
            | Self::Introduction(_)
            | Self::NamesNobody
            | Self::IsNoSender
            | Self::EstablishesTooSlowly
            | Self::Crowds
            | Self::Leaves(_)
            | Self::Abandons
            | Self::Http2(_) => None,
        }
    }
}

impl UpstreamFault {
    fn answer(&self) -> (u16, &'static str) {
        match self {
            Self::Unreachable { .. } => (503, "upstream unreachable"),
            Self::TakesTooLong(_) | Self::StaysSilent => (504, "upstream did not answer in time"),
            Self::ProvesWrongIdentity { .. } => (502, "upstream could not be verified"),
            Self::Breaks(_) | Self::Leaves(_) => (502, "upstream failed"),
        }
    }
}

impl From<io::Error> for PeerFault {
    fn from(error: io::Error) -> Self {
        Self::Leaves(Arc::new(error))
    }
}

impl From<Elapsed> for PeerFault {
    fn from(_: Elapsed) -> Self {
        Self::EstablishesTooSlowly
    }
}

impl From<Cut> for Fault {
    fn from(cut: Cut) -> Self {
        match cut {
            Cut::Denied(denied) => denied.into(),
            Cut::Drained => OurFault::Drained.into(),
        }
    }
}

impl From<Broken> for Fault {
    fn from(Broken { side, error }: Broken) -> Self {
        match (side, error.kind()) {
            (Side::Peer, io::ErrorKind::TimedOut) => PeerFault::Stalls.into(),
            (Side::Peer, _) => PeerFault::from(error).into(),
            (Side::Upstream, _) => UpstreamFault::Leaves(error).into(),
        }
    }
}
