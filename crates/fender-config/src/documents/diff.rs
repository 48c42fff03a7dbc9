//! What applying documents would change, by what they mean: comments, order and defaults written
//! out are no change.

use std::fmt;

use super::{Documents, Kind, Objects};

/// One line of a difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub kind: Kind,
    /// `namespace/name`; for the Mesh its name.
    pub name: String,
    pub what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum What {
    Added,
    Changed,
    Removed,
}

impl Documents {
    /// What applying `new` over `old` would change, in the order of kinds and names.
    pub fn diff(old: &Self, new: &Self) -> Vec<Change> {
        let mesh = |documents: &Self| {
            let mut objects = Objects::default();
            if let Some(mesh) = &documents.mesh {
                objects.insert(mesh.name.clone(), mesh.clone());
            }
            objects
        };
        let mut changes = compare(Kind::Mesh, &mesh(old), &mesh(new));
        changes.extend(compare(Kind::Workload, &old.workloads, &new.workloads));
        changes.extend(compare(Kind::Node, &old.nodes, &new.nodes));
        changes.extend(compare(Kind::Upstream, &old.upstreams, &new.upstreams));
        changes.extend(compare(
            Kind::Credential,
            &old.credentials,
            &new.credentials,
        ));
        changes.extend(compare(
            Kind::AuthorizationPolicy,
            &old.policies,
            &new.policies,
        ));
        changes.extend(compare(
            Kind::PeerAuthentication,
            &old.peer_authentications,
            &new.peer_authentications,
        ));
        changes
    }
}

fn compare<K: Ord + fmt::Display, V: PartialEq>(
    kind: Kind,
    old: &Objects<K, V>,
    new: &Objects<K, V>,
) -> Vec<Change> {
    Objects::differences(old, new)
        .map(|difference| Change {
            kind,
            name: difference.name.to_string(),
            what: match (difference.old, difference.new) {
                (None, _) => What::Added,
                (Some(_), None) => What::Removed,
                (Some(_), Some(_)) => What::Changed,
            },
        })
        .collect()
}

/// `+ Workload shop/orders`
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.what {
            What::Added => '+',
            What::Changed => '~',
            What::Removed => '-',
        };
        write!(f, "{sign} {} {}", self.kind, self.name)
    }
}
