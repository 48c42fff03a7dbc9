//! When what the documents place on hosts last changed, by how they name the hosts: so that the agent of each of a
//! thousand hosts need not look through ten thousand workloads to find that nothing concerns it.
//!
//! It is known only since this process began. Whoever connects is told in any case.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fender_config::{Attestor, Documents, Node, Objects, On, Workload};

/// The revision that last changed it, of everything that `node` and `nodeGroup` in a document name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Placed(Arc<BTreeMap<On, u64>>);

impl Placed {
    /// As it is once `after` takes the place of `before`.
    pub(super) fn with(&self, before: &Documents, after: &Documents, revision: u64) -> Self {
        let mut all = self.clone();
        for workload in Objects::differences(&before.workloads, &after.workloads) {
            let (old, new) = (attestors(workload.old), attestors(workload.new));
            for on in old.symmetric_difference(&new).copied().filter_map(host) {
                Arc::make_mut(&mut all.0).insert(on.clone(), revision);
            }
        }
        all
    }

    /// When what is placed on this host changed last; 0 if it never did.
    pub(crate) fn on(&self, node: &Node) -> u64 {
        let named = std::iter::once(On::Node(node.name.clone()));
        let groups = node.groups.iter().cloned().map(On::Group);
        let revisions = named.chain(groups).filter_map(|on| self.0.get(&on));
        revisions.copied().max().unwrap_or_default()
    }
}

fn attestors(workload: Option<&Workload>) -> BTreeSet<&Attestor> {
    workload
        .into_iter()
        .flat_map(|workload| &workload.attest)
        .collect()
}

/// Whose agent attests; nobody's, where who attests turns to the control plane itself.
fn host(attestor: &Attestor) -> Option<&On> {
    match attestor {
        Attestor::Unix(selector) => Some(&selector.on),
        Attestor::Docker(selector) => Some(&selector.on),
        Attestor::Token | Attestor::Kubernetes(_) | Attestor::X509(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Workloads, and what their `attest` says.
    fn documents(workloads: &[(&str, &str)]) -> Documents {
        let head = "apiVersion: fender.dev/v1\nkind";
        let mut text = format!(
            "{head}: Mesh\nmetadata: {{ name: mesh }}\nspec: {{ trustDomain: acme.test }}\n"
        );
        for (node, group) in [("one", "web"), ("two", "web"), ("three", "db")] {
            text += &format!(
                "---\n{head}: Node\nmetadata: {{ name: {node} }}\nspec: {{ groups: [ {group} ], attest: [ {{ token: {{}} }} ] }}\n"
            );
        }
        for (name, attest) in workloads {
            text += &format!(
                "---\n{head}: Workload\nmetadata: {{ namespace: shop, name: {name} }}\nspec: {{ attest: [ {attest} ] }}\n"
            );
        }
        let name = "all.yaml".to_owned();
        fender_config::parse(&[fender_config::Source { name, text }]).unwrap()
    }

    #[test]
    fn a_change_concerns_the_hosts_it_is_about_and_no_other() {
        let unix = |on: &str, uid: u32| format!("{{ unix: {{ {on}, uid: {uid} }} }}");
        let (one, web, db) = (
            unix("node: one", 1),
            unix("nodeGroup: web", 2),
            unix("nodeGroup: db", 3),
        );
        let steps = [
            documents(&[]),
            documents(&[("a", &one)]),
            documents(&[("a", &one), ("b", &web)]),
            // Another uid; a token places nobody.
            documents(&[
                ("a", &one),
                ("b", &unix("nodeGroup: web", 4)),
                ("c", "{ token: {} }"),
            ]),
            documents(&[("a", &one), ("b", &unix("nodeGroup: web", 4)), ("c", &db)]),
            documents(&[("b", &unix("nodeGroup: web", 4)), ("c", &db)]),
        ];
        let mut placed = Placed::default();
        let mut seen = Vec::new();
        for (steps, revision) in steps.windows(2).zip(1..) {
            placed = placed.with(&steps[0], &steps[1], revision);
            let on = |name: &str| placed.on(steps[1].nodes.get(&name.parse().unwrap()).unwrap());
            seen.push(["one", "two", "three"].map(on));
        }
        assert_eq!(
            seen,
            [[1, 0, 0], [2, 2, 0], [3, 3, 0], [3, 3, 4], [5, 3, 4]]
        );
    }
}
