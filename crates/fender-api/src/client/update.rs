//! What becomes of a Snapshot that arrived: taken whole, or refused except for what it says about trust.

use std::sync::Arc;

use fender_config::snapshot::{DenyList, Snapshot};
use fender_identity::{Bundles, SpiffeId};

use crate::convert::{InvalidField, bundles_from_proto, denied};
use crate::proto::control::v1 as proto;

/// The outcome.
#[derive(Debug, PartialEq)]
pub(crate) enum Judged {
    /// It can be served.
    Accepted(Box<Snapshot>),
    /// It cannot; the old one stays.
    Refused {
        version: u64,
        reason: String,
        /// Applies all the same, if it can be read.
        trust: Trust,
    },
}

/// The parts that must not wait for a good Snapshot: whom to believe, and whom not any more.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Trust {
    bundles: Option<Bundles>,
    denied: Option<DenyList>,
}

pub(crate) fn judge(message: proto::Snapshot, own: &SpiffeId) -> Judged {
    let version = message.version;
    let trust = Trust {
        bundles: bundles_from_proto("bundles", message.bundles.clone())
            .ok()
            .filter(|bundles| bundles.get(own.trust_domain()).is_some()),
        denied: denied(&message.denied_serials).ok(),
    };
    match Snapshot::try_from(message).and_then(|snapshot| check(snapshot, own)) {
        Ok(snapshot) => Judged::Accepted(Box::new(snapshot)),
        Err(error) => Judged::Refused {
            version,
            reason: error.to_string(),
            trust,
        },
    }
}

fn check(snapshot: Snapshot, own: &SpiffeId) -> Result<Snapshot, InvalidField> {
    if snapshot.identity != *own {
        let why = format!("it is for `{}`, not for `{own}`", snapshot.identity);
        return Err(InvalidField::new("identity", why));
    }
    if snapshot.bundles.get(own.trust_domain()).is_none() {
        let why = format!("there is none of `{}`", own.trust_domain());
        return Err(InvalidField::new("bundles", why));
    }
    Ok(snapshot)
}

impl Trust {
    /// The old Snapshot under the new trust; none if nothing changes.
    ///
    /// Denials are only added: a Snapshot that cannot be read whole must not forgive anybody.
    pub(crate) fn applied_to(self, current: &Snapshot) -> Option<Snapshot> {
        let mut next = current.clone();
        if let Some(bundles) = self.bundles {
            next.bundles = Arc::new(bundles);
        }
        if let Some(denied) = self.denied {
            next.denied.0.extend(denied.0);
        }
        (next != *current).then_some(next)
    }
}
