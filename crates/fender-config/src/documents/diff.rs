//! What applying documents would change, by what they mean: comments, order and defaults written
//! out are no change.

use std::collections::BTreeMap;
use std::fmt;

use super::{Documents, Kind};

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
            let mesh = documents.mesh.iter();
            mesh.map(|mesh| (mesh.name.clone(), mesh.clone()))
                .collect::<BTreeMap<_, _>>()
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
        changes
    }
}

fn compare<K: Ord + fmt::Display, V: PartialEq>(
    kind: Kind,
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
) -> Vec<Change> {
    let change = |name: &K, what| Change {
        kind,
        name: name.to_string(),
        what,
    };
    let mut changes: Vec<(&K, What)> = Vec::new();
    for (name, value) in new {
        match old.get(name) {
            None => changes.push((name, What::Added)),
            Some(before) if before != value => changes.push((name, What::Changed)),
            Some(_) => {}
        }
    }
    changes.extend(
        old.keys()
            .filter(|name| !new.contains_key(name))
            .map(|name| (name, What::Removed)),
    );
    changes.sort_by_key(|(name, _)| *name);
    changes
        .into_iter()
        .map(|(name, what)| change(name, what))
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
