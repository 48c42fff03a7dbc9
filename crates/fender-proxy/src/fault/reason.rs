//! Faults by name, for metrics: a list that is closed, whatever a peer does.

use std::io;

use fender_identity::verify::Refusal;
use rustls::Error as TlsError;

use super::{Fault, OurFault, PeerFault, UpstreamFault};
use crate::permit::Why;

macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($variant:ident => $label:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name {
            $($variant,)*
        }

        impl $name {
            pub(crate) const ALL: [Self; [$($label),*].len()] = [$(Self::$variant),*];

            pub(crate) fn label(self) -> &'static str {
                match self {
                    $(Self::$variant => $label,)*
                }
            }

            pub(crate) fn labels() -> Vec<&'static str> {
                Self::ALL.map(Self::label).to_vec()
            }
        }
    };
}

named! {
    /// Who is to blame.
    Blame {
        Peer => "peer",
        Upstream => "upstream",
        Policy => "policy",
        Ours => "ours",
    }
}

named! {
    /// Why a request or a connection did not end well.
    Reason {
        Handshake => "handshake",
        ProxyHeader => "proxy_header",
        EstablishTimeout => "establish_timeout",
        AddressCrowded => "address_crowded",
        Head => "head",
        HeadTimeout => "head_timeout",
        Path => "path",
        Body => "body",
        Stalled => "stalled",
        RequestTimeout => "request_timeout",
        Lost => "lost",
        Abandoned => "abandoned",
        Http2 => "http2",
        Unreachable => "unreachable",
        ConnectTimeout => "connect_timeout",
        WrongIdentity => "wrong_identity",
        Broken => "broken",
        ResponseTimeout => "response_timeout",
        UpstreamLost => "upstream_lost",
        Denied => "denied",
        Revoked => "revoked",
        PeerExpired => "certificate_expired",
        Drained => "drained",
        Removed => "removed",
        Expired => "own_certificate_expired",
        Crowded => "crowded",
        Full => "full",
        Unwritable => "unwritable",
    }
}

named! {
    /// Why a caller's handshake failed.
    HandshakeFailure {
        NoCertificate => "no_certificate",
        Untrusted => "untrusted",
        Expired => "expired",
        NotYetValid => "not_yet_valid",
        Revoked => "revoked",
        NotAnSvid => "not_an_svid",
        KeyNotProven => "key_not_proven",
        Unexpected => "unexpected_peer",
        RefusedUs => "refused_us",
        Incompatible => "incompatible",
        NotTls => "not_tls",
        Protocol => "protocol",
        Left => "left",
        TooSlow => "too_slow",
        TurnedAway => "turned_away",
        ProxyHeader => "proxy_header",
        OwnCertificate => "own_certificate_expired",
        NothingToShow => "nothing_to_show",
    }
}

impl Reason {
    pub(crate) fn blame(self) -> Blame {
        match self {
            Self::Handshake
            | Self::ProxyHeader
            | Self::EstablishTimeout
            | Self::AddressCrowded
            | Self::Head
            | Self::HeadTimeout
            | Self::Path
            | Self::Body
            | Self::Stalled
            | Self::RequestTimeout
            | Self::Lost
            | Self::Abandoned
            | Self::Http2 => Blame::Peer,
            Self::Unreachable
            | Self::ConnectTimeout
            | Self::WrongIdentity
            | Self::Broken
            | Self::ResponseTimeout
            | Self::UpstreamLost => Blame::Upstream,
            Self::Denied | Self::Revoked | Self::PeerExpired => Blame::Policy,
            Self::Drained
            | Self::Removed
            | Self::Expired
            | Self::Crowded
            | Self::Full
            | Self::Unwritable => Blame::Ours,
        }
    }
}

impl Fault {
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::Peer(fault) => fault.reason(),
            Self::Upstream(fault) => fault.reason(),
            Self::Policy(denied) => match denied.why {
                Why::Policy(_) => Reason::Denied,
                Why::Revoked => Reason::Revoked,
                Why::Expired => Reason::PeerExpired,
            },
            Self::Ours(fault) => fault.reason(),
        }
    }

    /// Why the handshake failed, if that is what failed.
    pub(crate) fn handshake(&self) -> Option<HandshakeFailure> {
        match self {
            Self::Peer(PeerFault::Handshake { failure, .. }) => Some(*failure),
            Self::Peer(PeerFault::EstablishesTooSlowly) => Some(HandshakeFailure::TooSlow),
            Self::Peer(
                PeerFault::Introduction(_) | PeerFault::NamesNobody | PeerFault::IsNoSender,
            ) => Some(HandshakeFailure::ProxyHeader),
            Self::Peer(PeerFault::Crowds) | Self::Ours(OurFault::Full) => {
                Some(HandshakeFailure::TurnedAway)
            }
            Self::Ours(OurFault::Expired) => Some(HandshakeFailure::OwnCertificate),
            Self::Peer(_) | Self::Upstream(_) | Self::Policy(_) | Self::Ours(_) => None,
        }
    }
}

impl PeerFault {
    fn reason(&self) -> Reason {
        match self {
            Self::Handshake { .. } => Reason::Handshake,
            Self::Introduction(_) | Self::NamesNobody | Self::IsNoSender => Reason::ProxyHeader,
            Self::EstablishesTooSlowly => Reason::EstablishTimeout,
            Self::Crowds => Reason::AddressCrowded,
            Self::Head(_) | Self::Forwarded(_) => Reason::Head,
            Self::SendsHeadTooSlowly => Reason::HeadTimeout,
            Self::Path(_) => Reason::Path,
            Self::Body(_) | Self::SendsTooMuch => Reason::Body,
            Self::Stalls => Reason::Stalled,
            Self::Outlives => Reason::RequestTimeout,
            Self::Leaves(_) => Reason::Lost,
            Self::Abandons => Reason::Abandoned,
            Self::Http2(_) => Reason::Http2,
        }
    }
}

impl UpstreamFault {
    fn reason(&self) -> Reason {
        match self {
            Self::Unreachable { .. } => Reason::Unreachable,
            Self::TakesTooLong(_) => Reason::ConnectTimeout,
            Self::ProvesWrongIdentity { .. } => Reason::WrongIdentity,
            Self::Breaks(_) => Reason::Broken,
            Self::StaysSilent => Reason::ResponseTimeout,
            Self::Leaves(_) => Reason::UpstreamLost,
        }
    }
}

impl OurFault {
    fn reason(&self) -> Reason {
        match self {
            Self::Drained => Reason::Drained,
            Self::Removed => Reason::Removed,
            Self::Expired => Reason::Expired,
            Self::Crowded | Self::Overrun => Reason::Crowded,
            Self::Full => Reason::Full,
            Self::Unwritable(_) => Reason::Unwritable,
        }
    }
}

impl From<&Refusal> for HandshakeFailure {
    fn from(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::NoCertificate => Self::NoCertificate,
            Refusal::ForeignTrustDomain(_)
            | Refusal::UntrustedRoot
            | Refusal::IssuerNotCa
            | Refusal::WeakSignature
            | Refusal::PinMismatch => Self::Untrusted,
            Refusal::Expired { .. } => Self::Expired,
            Refusal::NotYetValid { .. } => Self::NotYetValid,
            Refusal::Revoked(_) => Self::Revoked,
            Refusal::ChainTooLong { .. }
            | Refusal::CertificateTooLarge { .. }
            | Refusal::Malformed(_)
            | Refusal::NotOneUri { .. }
            | Refusal::NotSpiffe(_)
            | Refusal::NoPath
            | Refusal::IsCa(_)
            | Refusal::CaShown
            | Refusal::NoKeyUsage(_)
            | Refusal::KeyUsageNotCritical(_)
            | Refusal::NoDigitalSignature(_)
            | Refusal::MaySign(_)
            | Refusal::WrongPurpose(_)
            | Refusal::UnknownCriticalExtension => Self::NotAnSvid,
            Refusal::KeyNotProven => Self::KeyNotProven,
            Refusal::UnexpectedPeer { .. } => Self::Unexpected,
        }
    }
}

/// In the words of rustls, where a name is refused that has no certificate.
const NOTHING_TO_SHOW: &str = "no server certificate chain resolved";

impl HandshakeFailure {
    /// What failed, where the certificate was not the reason.
    pub(super) fn of(error: &io::Error) -> Self {
        let inner = error.get_ref();
        match inner.and_then(|inner| inner.downcast_ref::<TlsError>()) {
            Some(TlsError::AlertReceived(_)) => Self::RefusedUs,
            Some(TlsError::PeerIncompatible(_) | TlsError::NoApplicationProtocol) => {
                Self::Incompatible
            }
            Some(TlsError::InvalidMessage(_)) => Self::NotTls,
            Some(TlsError::General(why)) if why == NOTHING_TO_SHOW => Self::NothingToShow,
            Some(_) => Self::Protocol,
            // Not a word of TLS: the connection is gone.
            None => Self::Left,
        }
    }
}
