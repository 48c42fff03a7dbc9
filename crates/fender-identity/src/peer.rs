//! The other side of a connection, once it is known who that is.
//!
//! Nobody is a case of its own. A [`PeerSvid`] is a proof: its fields are private and only
//! [`crate::verify`] and a finished TLS handshake make one.

use rustls_pki_types::{CertificateDer, UnixTime};

use crate::certificate::sha256;
use crate::{Serial, SpiffeId, Validity};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    Verified(PeerSvid),
    Anonymous,
}

impl Peer {
    pub fn svid(&self) -> Option<&PeerSvid> {
        match self {
            Self::Verified(svid) => Some(svid),
            Self::Anonymous => None,
        }
    }

    pub fn id(&self) -> Option<&SpiffeId> {
        self.svid().map(PeerSvid::id)
    }
}

/// An identity that was proven by a chain of certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSvid {
    id: SpiffeId,
    serial: Serial,
    validity: Validity,
    /// The leaf itself is not kept: there is one for each open connection.
    fingerprint: [u8; 32],
}

impl PeerSvid {
    pub(crate) fn new(
        id: SpiffeId,
        serial: Serial,
        validity: Validity,
        leaf: &CertificateDer<'_>,
    ) -> Self {
        Self {
            id,
            serial,
            validity,
            fingerprint: sha256(leaf),
        }
    }

    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    pub fn serial(&self) -> &Serial {
        &self.serial
    }

    pub fn not_before(&self) -> UnixTime {
        self.validity.not_before
    }

    pub fn not_after(&self) -> UnixTime {
        self.validity.not_after
    }

    /// SHA-256 of the leaf's DER.
    pub fn leaf_fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// Whether it is this very certificate that was shown.
    pub fn showed(&self, leaf: &CertificateDer<'_>) -> bool {
        self.fingerprint == sha256(leaf)
    }
}
