//! When somebody must act, if nothing gets better from now on.
//!
//! A control plane that keeps its root's key makes successors for ever; if it stays away, the end of the last root is the
//! end of everybody's memory of it. Where the root's key is elsewhere, the end of the last intermediate comes first.

use rustls::pki_types::UnixTime;

use super::rotation;
use crate::store::authorities::{AuthorityRow, Role};
use crate::store::replicas::ReplicaName;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Horizon {
    pub(crate) at: UnixTime,
    pub(crate) ends: Ends,
}

/// What has ended then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    /// The last root: every workload must attest anew.
    LastRoot,
    /// The last intermediate under a root whose key is elsewhere: whoever has it must sign another.
    LastIntermediate,
}

impl Ends {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::LastRoot => "the last root certificate ends, and every workload must attest anew",
            Self::LastIntermediate => {
                "the last intermediate ends, and its successor must be signed with the root's key, which is kept elsewhere"
            }
        }
    }
}

/// Of rows of which one root signs now, as it concerns one replica. Where its own successors are at hand, it does not
/// matter to it that the intermediates of others end: those of replicas that are gone always do.
pub(crate) fn horizon(
    rows: &[AuthorityRow],
    signing: &AuthorityRow,
    holder: &ReplicaName,
    now: UnixTime,
) -> Horizon {
    let elsewhere = rotation::latest_root(rows).is_some_and(|root| root.sealed_key.is_none());
    let counts = |row: &&AuthorityRow| match elsewhere {
        true => row.root.as_ref() == Some(&signing.serial) && row.holder.as_ref() == Some(holder),
        false => row.role == Role::Root,
    };
    let last = rows
        .iter()
        .filter(counts)
        .filter(|row| row.validity.includes(now))
        .map(|row| row.validity.not_after)
        .max();
    Horizon {
        at: last.unwrap_or(now),
        ends: match elsewhere {
            true => Ends::LastIntermediate,
            false => Ends::LastRoot,
        },
    }
}
