//! Whose Snapshot a change can show in: what a workload says itself, what it refers to, and what selects it. Everybody
//! else's is the same as before, to the byte, and need not be made to be compared.

use std::collections::BTreeSet;
use std::ops::Bound;

use fender_identity::WorkloadName;
use fender_policy::PolicyName;

use super::{Documents, Objects, OutboundTo, SelectingPolicy, Selector, Workload};

impl Documents {
    /// The workloads of `new` of which [`Documents::snapshot`] may say something else than it does in `old`.
    pub fn touched(old: &Self, new: &Self) -> BTreeSet<WorkloadName> {
        if old.mesh != new.mesh {
            return new.workloads.keys().cloned().collect();
        }
        let mut touched: BTreeSet<_> = Objects::differences(&old.workloads, &new.workloads)
            .map(|workload| workload.name.clone())
            .collect();
        // Where a service is found is in the calling workload already.
        let upstreams: BTreeSet<_> = Objects::differences(&old.upstreams, &new.upstreams)
            .map(|upstream| upstream.name)
            .collect();
        let credentials: BTreeSet<_> = Objects::differences(&old.credentials, &new.credentials)
            .map(|credential| credential.name)
            .collect();
        if !(upstreams.is_empty() && credentials.is_empty()) {
            let refers = |workload: &Workload| {
                workload
                    .credentials
                    .iter()
                    .any(|name| credentials.contains(name))
                    || workload.outbound.iter().any(|port| match &port.to {
                        OutboundTo::Upstream(name) => upstreams.contains(name),
                        OutboundTo::Service { .. } => false,
                    })
            };
            let referring = new.workloads.values().filter(|workload| refers(workload));
            touched.extend(referring.map(|workload| workload.name.clone()));
        }
        for policy in Objects::differences(&old.policies, &new.policies) {
            // Whom it selected, and whom it selects.
            for policy in [policy.old, policy.new] {
                let selected = policy.map(|policy| new.selected_by(&policy.selector));
                let names = selected.into_iter().flatten();
                touched.extend(names.map(|workload| workload.name.clone()));
            }
        }
        for one in Objects::differences(&old.peer_authentications, &new.peer_authentications) {
            for one in [one.old, one.new] {
                let selected = one.map(|one| new.selected_by(&one.selector));
                let names = selected.into_iter().flatten();
                touched.extend(names.map(|workload| workload.name.clone()));
            }
        }
        touched.retain(|name| new.workloads.contains_key(name));
        touched
    }

    /// The workloads that a policy with this selector is about.
    pub(crate) fn selected_by<'a>(
        &'a self,
        selector: &'a Selector,
    ) -> impl Iterator<Item = &'a Workload> {
        let namespace = selector.namespace.as_deref();
        let first = namespace.and_then(|namespace| WorkloadName::new(namespace, FIRST).ok());
        self.workloads
            .range((
                first.map_or(Bound::Unbounded, Bound::Included),
                Bound::Unbounded,
            ))
            .map(|(_, workload)| &**workload)
            .skip_while(move |workload| {
                namespace.is_some_and(|namespace| workload.name.namespace() != namespace)
            })
            .take_while(move |workload| {
                namespace.is_none_or(|namespace| workload.name.namespace() == namespace)
            })
            .filter(|workload| selector.selects(workload))
    }

    /// The policies that select this workload.
    pub(crate) fn policies_about(
        &self,
        workload: &Workload,
    ) -> impl Iterator<Item = &SelectingPolicy> {
        let policies = self.policies_for(workload.name.namespace()).into_iter();
        policies.filter(|policy| policy.selector.selects(workload))
    }

    /// The policies that may select a workload of this namespace, in the order of their names: its own and those of
    /// everybody.
    pub(super) fn policies_for(&self, namespace: &str) -> Vec<&SelectingPolicy> {
        let root = self.mesh.as_ref().map(|mesh| mesh.root_namespace.as_str());
        let mut policies: Vec<_> = self.policies_of(namespace).collect();
        if let Some(root) = root.filter(|root| *root != namespace) {
            policies.extend(self.policies_of(root));
            policies.sort_by(|one, other| one.policy.name.cmp(&other.policy.name));
        }
        policies
    }

    fn policies_of(&self, namespace: &str) -> impl Iterator<Item = &SelectingPolicy> {
        let first = format!("{namespace}/{FIRST}").parse::<PolicyName>().ok();
        self.policies
            .range((
                first.map_or(Bound::Unbounded, Bound::Included),
                Bound::Unbounded,
            ))
            .skip_while(move |(name, _)| name.namespace() != namespace)
            .take_while(move |(name, _)| name.namespace() == namespace)
            .map(|(_, policy)| &**policy)
    }
}

/// No name within a namespace comes before it.
const FIRST: &str = "0";

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;
    use crate::memory::tests::read_alike;
    use crate::{Memory, Source};

    /// A mesh as numbers: small enough that references meet.
    #[derive(Clone, Debug)]
    struct Plan {
        /// References may lead nowhere.
        dangling: bool,
        default: bool,
        root: bool,
        workloads: Vec<Option<Spec>>,
        upstreams: Vec<Option<u8>>,
        credentials: Vec<Option<u8>>,
        policies: Vec<Option<(u8, bool)>>,
        /// Label, and whether it is permissive.
        clients: Vec<Option<(u8, bool)>>,
    }

    #[derive(Clone, Debug)]
    struct Spec {
        label: u8,
        port: u8,
        calls: u8,
        upstream: bool,
        credential: bool,
    }

    const NAMESPACES: [&str; 3] = ["a", "a-b", "root"];

    fn spec() -> impl Strategy<Value = Spec> {
        let numbers = (0..3_u8, 0..2_u8, 0..7_u8, any::<bool>(), any::<bool>());
        numbers.prop_map(|(label, port, calls, upstream, credential)| Spec {
            label,
            port,
            calls,
            upstream,
            credential,
        })
    }

    fn plan() -> impl Strategy<Value = Plan> {
        (
            prop::bool::weighted(0.1),
            any::<bool>(),
            any::<bool>(),
            prop::collection::vec(prop::option::weighted(0.8, spec()), 6),
            prop::collection::vec(prop::option::weighted(0.8, 0..2_u8), 3),
            prop::collection::vec(prop::option::weighted(0.8, 0..2_u8), 3),
            prop::collection::vec(prop::option::weighted(0.6, (0..4_u8, any::<bool>())), 6),
            prop::collection::vec(prop::option::weighted(0.3, (2..4_u8, any::<bool>())), 3),
        )
            .prop_map(
                |(
                    dangling,
                    default,
                    root,
                    workloads,
                    upstreams,
                    credentials,
                    policies,
                    clients,
                )| Plan {
                    dangling,
                    default,
                    root,
                    workloads,
                    upstreams,
                    credentials,
                    policies,
                    clients,
                },
            )
    }

    /// A plan, and the same after a few edits.
    fn edited() -> impl Strategy<Value = (Plan, Plan)> {
        let edits = prop::collection::vec((0..7_usize, 0..6_usize), 0..4);
        (plan(), plan(), edits).prop_map(|(old, other, edits)| {
            let mut new = old.clone();
            for (field, at) in edits {
                match field {
                    0 => new.workloads[at] = other.workloads[at].clone(),
                    1 => new.upstreams[at % 3] = other.upstreams[at % 3],
                    2 => new.credentials[at % 3] = other.credentials[at % 3],
                    3 | 4 => new.policies[at] = other.policies[at],
                    5 => new.clients[at % 3] = other.clients[at % 3],
                    _ if at == 0 => new.default = other.default,
                    _ if at == 1 => new.root = other.root,
                    _ if at == 2 => new.dangling = other.dangling,
                    _ => {}
                }
            }
            (old, new)
        })
    }

    fn head(kind: &str, namespace: &str, name: &str, rest: &str) -> String {
        let version = if matches!(kind, "AuthorizationPolicy" | "PeerAuthentication") {
            "security.istio.io/v1"
        } else {
            "fender.dev/v1"
        };
        format!(
            "---\napiVersion: {version}\nkind: {kind}\nmetadata: {{ namespace: {namespace}, name: {name}{rest} }}\n"
        )
    }

    /// So many documents in each file.
    fn sources(plan: &Plan, in_a_file: usize) -> Vec<Source> {
        let (default, root) = (
            if plan.default { "deny" } else { "allow" },
            if plan.root { "root" } else { "elsewhere" },
        );
        let mut files = vec![format!(
            "apiVersion: fender.dev/v1\nkind: Mesh\nmetadata: {{ name: mesh }}\nspec: {{ trustDomain: acme.test, \
             rootNamespace: {root}, authorization: {{ default: {default} }} }}\n"
        )];
        for (at, spec) in plan.workloads.iter().enumerate() {
            let Some(spec) = spec else { continue };
            let namespace = NAMESPACES[at % 3];
            let label = format!(", labels: {{ app: l{} }}", spec.label);
            let mut text = head("Workload", namespace, &format!("w{at}"), &label);
            let _ = writeln!(text, "spec:\n  attest: [ {{ token: {{}} }} ]");
            let _ = writeln!(
                text,
                "  inbound: [ {{ listen: \"0.0.0.0:{port}\", app: \"127.0.0.1:80\", protocol: http, advertise: \"w{at}:{port}\" }} ]",
                port = 8443 + u16::from(spec.port)
            );
            let mut outbound = Vec::new();
            let called = usize::from(spec.calls);
            if plan.dangling || plan.workloads.get(called).is_some_and(Option::is_some) {
                let service = format!("{}/w{called}", NAMESPACES[called % 3]);
                outbound.push(format!(
                    "{{ listen: \"127.0.0.1:9000\", service: {service} }}"
                ));
            }
            if spec.upstream && (plan.dangling || plan.upstreams[at % 3].is_some()) {
                outbound.push("{ listen: \"127.0.0.1:9001\", upstream: u }".to_owned());
            }
            let _ = writeln!(text, "  outbound: [ {} ]", outbound.join(", "));
            if spec.credential && (plan.dangling || plan.credentials[at % 3].is_some()) {
                let _ = writeln!(text, "  credentials: [ c ]");
            }
            files.push(text);
        }
        for (at, namespace) in NAMESPACES.iter().enumerate() {
            if let Some(port) = plan.upstreams[at] {
                let head = head("Upstream", namespace, "u", "");
                files.push(format!(
                    "{head}spec: {{ protocol: tcp, address: \"db:{}\" }}\n",
                    5432 + u16::from(port)
                ));
            }
            if let Some(variable) = plan.credentials[at] {
                let head = head("Credential", namespace, "c", "");
                files.push(format!(
                    "{head}spec: {{ source: {{ file: {{ path: /secret }} }}, deliver: [ {{ environment: {{ variable: V{variable} }} }} ] }}\n"
                ));
            }
        }
        for (at, policy) in plan.policies.iter().enumerate() {
            let Some((label, everybody)) = policy else {
                continue;
            };
            let head = head(
                "AuthorizationPolicy",
                NAMESPACES[at % 3],
                &format!("p{at}"),
                "",
            );
            let selector = match label {
                3 => String::new(),
                label => format!("selector: {{ matchLabels: {{ app: l{label} }} }}, "),
            };
            let rules = if *everybody {
                "[ {} ]"
            } else {
                "[ { to: [ { operation: { ports: [ \"80\" ] } } ] } ]"
            };
            files.push(format!(
                "{head}spec: {{ {selector}action: ALLOW, rules: {rules} }}\n"
            ));
        }
        for (at, clients) in plan.clients.iter().enumerate() {
            let Some((label, permissive)) = clients else {
                continue;
            };
            let head = head("PeerAuthentication", NAMESPACES[at], "clients", "");
            // One of the root namespace selects by no label.
            let selector = match label {
                3 => String::new(),
                _ if NAMESPACES[at] == "root" => String::new(),
                label => format!("selector: {{ matchLabels: {{ app: l{label} }} }}, "),
            };
            let mode = if *permissive { "PERMISSIVE" } else { "STRICT" };
            files.push(format!(
                "{head}spec: {{ {selector}mtls: {{ mode: {mode} }} }}\n"
            ));
        }
        let files = files.chunks(in_a_file).enumerate();
        files
            .map(|(at, texts)| Source {
                name: format!("{at}.yaml"),
                text: texts.concat(),
            })
            .collect()
    }

    proptest! {
        /// The reference is the obvious way: make every Snapshot, and compare.
        #[test]
        fn whoever_is_not_touched_has_the_snapshot_they_had((mut old, mut new) in edited()) {
            (old.dangling, new.dangling) = (false, false);
            let before = crate::parse(&sources(&old, 1)).unwrap();
            let after = crate::parse(&sources(&new, 1)).unwrap();
            let touched = Documents::touched(&before, &after);
            for name in after.workloads.keys() {
                let snapshot = |documents: &Documents| documents.snapshot(name, 1);
                if snapshot(&before) != snapshot(&after) {
                    prop_assert!(touched.contains(name), "{} of {:?}", name, touched);
                }
            }
            prop_assert!(touched.iter().all(|name| after.workloads.contains_key(name)));
        }

        /// The reference remembers nothing. What is wrong, and what looks odd, is told alike.
        #[test]
        fn reading_on_top_of_what_was_read_is_reading(
            old in plan(),
            steps in prop::collection::vec((edited(), 1..9_usize), 1..4),
        ) {
            let (_, mut memory) = Memory::default().parse(&sources(&old, 3));
            for ((one, other), in_a_file) in &steps {
                for plan in [one, other] {
                    let _ = read_alike(&mut memory, &sources(plan, *in_a_file));
                }
            }
        }

        /// The reference looks at every policy.
        #[test]
        fn the_policies_of_a_snapshot_are_all_that_select_its_workload(mut plan in plan()) {
            plan.dangling = false;
            let documents = crate::parse(&sources(&plan, 1)).unwrap();
            for (name, workload) in documents.workloads.iter() {
                let snapshot = documents.snapshot(name, 1).unwrap();
                let selecting: Vec<_> = documents.policies.values()
                    .filter(|policy| policy.selector.selects(workload))
                    .map(|policy| policy.policy.name.clone())
                    .collect();
                let found: Vec<_> = snapshot.policies.policies.iter().map(|policy| policy.name.clone()).collect();
                prop_assert_eq!(found, selecting);
            }
        }
    }

    #[test]
    fn a_change_touches_whom_it_is_about_and_nobody_else() {
        let all = Plan {
            dangling: false,
            default: true,
            root: true,
            workloads: (0..6)
                .map(|label| {
                    Some(Spec {
                        label: label % 2,
                        port: 0,
                        calls: 6,
                        upstream: label == 1,
                        credential: label == 2,
                    })
                })
                .collect(),
            upstreams: vec![Some(0); 3],
            credentials: vec![Some(0); 3],
            policies: vec![Some((1, true)); 6],
            clients: vec![Some((2, true)), None, None],
        };
        let touched = |change: &dyn Fn(&mut Plan)| {
            let mut new = all.clone();
            change(&mut new);
            let (old, new) = (
                crate::parse(&sources(&all, 1)),
                crate::parse(&sources(&new, 1)),
            );
            let names = Documents::touched(&old.unwrap(), &new.unwrap()).into_iter();
            names.map(|name| name.to_string()).collect::<Vec<_>>()
        };
        assert!(touched(&|_| {}).is_empty());
        assert_eq!(
            touched(&|plan| plan.workloads[0].as_mut().unwrap().port = 1),
            ["a/w0"]
        );
        assert_eq!(touched(&|plan| plan.upstreams[1] = Some(1)), ["a-b/w1"]);
        assert_eq!(touched(&|plan| plan.credentials[2] = Some(1)), ["root/w2"]);
        assert_eq!(touched(&|plan| plan.policies[0] = None), ["a/w3"]);
        // A policy of the root namespace selects in all of them.
        assert_eq!(
            touched(&|plan| plan.policies[2] = None),
            ["a/w3", "a-b/w1", "root/w5"]
        );
        assert_eq!(touched(&|plan| plan.clients[0] = None), [""; 0]);
        assert_eq!(
            touched(&|plan| plan.clients[0] = Some((3, true))),
            ["a/w0", "a/w3"]
        );
        assert_eq!(touched(&|plan| plan.clients[2] = Some((3, true))).len(), 6);
        assert_eq!(touched(&|plan| plan.default = false).len(), 6);
    }
}
