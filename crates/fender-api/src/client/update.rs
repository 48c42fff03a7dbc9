//! What becomes of a Snapshot or a Trust that arrived. A Snapshot is taken whole or not at all; so is a Trust, but for its
//! deny list, which must not wait for the rest.

use std::sync::Arc;

use fender_config::snapshot::Snapshot;
use fender_identity::{DenyList, SpiffeId, Trust};
use prost::Message as _;

use crate::convert::{InvalidField, denied};
use crate::proto::control::v1 as proto;

/// What cannot be taken, and why.
#[derive(Debug, PartialEq)]
pub(crate) struct Refused {
    pub(crate) version: u64,
    pub(crate) reason: String,
}

/// A Snapshot that can be served under this trust.
pub(crate) fn judge(
    message: proto::Snapshot,
    own: &SpiffeId,
    trust: &Trust,
) -> Result<Snapshot, Refused> {
    let version = message.version;
    let read = Snapshot::try_from(message).and_then(|snapshot| {
        let theirs = snapshot.identity.as_ref();
        if theirs != Some(own) {
            let theirs = theirs.map(SpiffeId::as_str).unwrap_or_default();
            let why = format!("it is for `{theirs}`, not for `{own}`");
            return Err(InvalidField::new("identity", why));
        }
        Ok(Snapshot {
            trust: trust.clone(),
            ..snapshot
        })
    });
    read.map_err(|error| Refused {
        version,
        reason: error.to_string(),
    })
}

/// What is known of whom to believe after a Trust has arrived, and why not all of it is taken if it is not.
pub(crate) fn learn(bytes: &[u8], own: &SpiffeId, known: &Trust) -> (Trust, Result<(), Refused>) {
    let message = match proto::Trust::decode(bytes) {
        Ok(message) => message,
        Err(error) => {
            let refused = Refused {
                version: 0,
                reason: error.to_string(),
            };
            return (known.clone(), Err(refused));
        }
    };
    let (version, denials) = (message.version, message.denials.clone());
    match Trust::try_from(message).and_then(|trust| believable(trust, own)) {
        Ok(trust) => (trust, Ok(())),
        Err(error) => {
            let refused = Refused {
                version,
                reason: error.to_string(),
            };
            let denied = denied(denials.unwrap_or_default()).unwrap_or_default();
            (denying(known, denied), Err(refused))
        }
    }
}

fn believable(trust: Trust, own: &SpiffeId) -> Result<Trust, InvalidField> {
    if trust.bundles.get(own.trust_domain()).is_none() {
        let why = format!("there is none of `{}`", own.trust_domain());
        return Err(InvalidField::new("bundles", why));
    }
    Ok(trust)
}

/// Denials are only added: what cannot be read whole must not forgive anybody.
fn denying(known: &Trust, more: DenyList) -> Trust {
    let mut next = known.clone();
    Arc::make_mut(&mut next.denied).extend(more);
    next
}
