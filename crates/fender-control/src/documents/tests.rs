//! The plan of what is touched, beside the obvious one: make everybody's Snapshot, every time.

use proptest::prelude::*;

use super::*;

/// What is written, one number for each document; 0 leaves it out.
type Written = [u8; 11];

const MESH: &str = "apiVersion: fender.dev/v1\nkind: Mesh\nmetadata: { name: mesh }\n";

fn document(kind: &str, namespace: &str, name: &str, rest: &str) -> String {
    let version = match kind {
        "AuthorizationPolicy" => "security.istio.io/v1",
        _ => "fender.dev/v1",
    };
    format!(
        "---\napiVersion: {version}\nkind: {kind}\nmetadata: {{ namespace: {namespace}, name: {name}{rest}\n"
    )
}

/// Four workloads in two namespaces that call each other, three policies, an upstream and two credentials.
fn files(written: Written) -> Vec<Source> {
    let [
        mesh,
        workloads @ ..,
        deny,
        some,
        everybody,
        upstream,
        smtp,
        ledger,
    ] = written;
    let default = if mesh % 2 == 0 { "deny" } else { "allow" };
    let mut texts = vec![format!(
        "{MESH}spec: {{ trustDomain: acme.test, rootNamespace: root, authorization: {{ default: {default} }} }}\n"
    )];
    for (at, value) in workloads
        .into_iter()
        .enumerate()
        .filter(|(_, value)| *value > 0)
    {
        let namespace = ["shop", "web"][at / 3];
        let neighbour = at / 3 * 3 + (at + 1) % 2;
        let mut outbound = Vec::new();
        if neighbour != at && workloads.get(neighbour).is_some_and(|value| *value > 0) {
            outbound.push(format!(
                "{{ listen: \"127.0.0.1:9000\", service: w{neighbour} }}"
            ));
        }
        if namespace == "shop" && upstream > 0 {
            outbound.push("{ listen: \"127.0.0.1:9001\", upstream: db }".to_owned());
        }
        let credentials: Vec<_> = [("smtp", smtp), ("ledger", ledger)]
            .into_iter()
            .filter(|(_, there)| namespace == "shop" && *there > 0 && value % 2 == 0)
            .map(|(name, _)| name)
            .collect();
        let (port, label) = (8000 + u16::from(value), value % 3);
        texts.push(document(
            "Workload",
            namespace,
            &format!("w{at}"),
            &format!(
                ", labels: {{ app: l{label} }} }}\nspec:\n  attest: [ {{ token: {{}} }} ]\n  \
                 inbound: [ {{ listen: \"0.0.0.0:{port}\", app: \"127.0.0.1:80\", protocol: http, advertise: \"w{at}:{port}\" }} ]\n  \
                 outbound: [ {} ]\n  credentials: [ {} ]",
                outbound.join(", "),
                credentials.join(", ")
            ),
        ));
    }
    let policies = [
        ("shop", "deny", deny),
        ("web", "some", some),
        ("root", "everybody", everybody),
    ];
    for (namespace, name, value) in policies.into_iter().filter(|(_, _, value)| *value > 0) {
        let (label, path) = (value % 3, value / 3);
        texts.push(document(
            "AuthorizationPolicy",
            namespace,
            name,
            &format!(
                " }}\nspec: {{ selector: {{ matchLabels: {{ app: l{label} }} }}, action: ALLOW, \
                 rules: [ {{ to: [ {{ operation: {{ paths: [ /{path} ] }} }} ] }} ] }}"
            ),
        ));
    }
    if upstream > 0 {
        texts.push(document(
            "Upstream",
            "shop",
            "db",
            &format!(
                " }}\nspec: {{ protocol: tcp, address: \"db:{}\" }}",
                5000 + u16::from(upstream)
            ),
        ));
    }
    for (name, value) in [("smtp", smtp), ("ledger", ledger)] {
        if value > 0 {
            texts.push(document(
                "Credential",
                "shop",
                name,
                &format!(
                    " }}\nspec: {{ source: {{ file: {{ path: /{value} }} }}, deliver: [ {{ environment: {{ variable: {} }} }} ] }}",
                    name.to_uppercase()
                ),
            ));
        }
    }
    let named = |(at, text)| Source {
        name: format!("{at}.yaml"),
        text,
    };
    texts.into_iter().enumerate().map(named).collect()
}

fn digests(plan: &Plan) -> BTreeMap<WorkloadName, Digest> {
    let snapshots = plan.snapshots.iter();
    snapshots
        .map(|(name, snapshot)| (name.clone(), digest(snapshot)))
        .collect()
}

proptest! {
    #[test]
    fn what_is_touched_comes_to_the_same_as_everybody(
        first in prop::array::uniform11(0..8_u8),
        edits in prop::collection::vec((0..11_usize, 0..8_u8), 1..12),
    ) {
        let trust_domain: TrustDomain = "acme.test".parse().unwrap();
        let plan = |files, before: &Documents, before_files: &[Source], scope, memory: &mut Memory| {
            plan(Vec::into(files), before, before_files, &trust_domain, scope, memory).unwrap()
        };
        let mut memory = Memory::default();
        let mut in_force = plan(files(first), &Documents::default(), &[], Scope::Everybody, &mut memory);
        let mut told = digests(&in_force);

        let mut written = first;
        for (at, value) in edits {
            written[at] = value;
            let nothing = &mut Memory::default();
            let (before, before_files) = (&in_force.documents, &in_force.files);
            let everybody = plan(files(written), before, before_files, Scope::Everybody, nothing);
            let touched = plan(files(written), before, before_files, Scope::Touched, &mut memory);
            prop_assert_eq!(&touched.documents, &everybody.documents);
            prop_assert_eq!(&touched.changes, &everybody.changes);
            prop_assert_eq!(&touched.warnings, &everybody.warnings);
            prop_assert_eq!(touched.news, everybody.news);

            told.retain(|name, _| touched.documents.workloads.contains_key(name));
            told.extend(digests(&touched));
            prop_assert_eq!(&told, &digests(&everybody));
            in_force = touched;
        }
    }
}

#[test]
fn a_change_of_one_document_makes_the_snapshots_of_those_it_is_about() {
    let trust_domain: TrustDomain = "acme.test".parse().unwrap();
    let mut memory = Memory::default();
    let all = [2, 1, 2, 3, 4, 5, 3, 3, 1, 1, 1];
    let mut plan = |written, before: &Documents| {
        plan(
            files(written).into(),
            before,
            &[],
            &trust_domain,
            Scope::Touched,
            &mut memory,
        )
        .unwrap()
    };
    let before = plan(all, &Documents::default());
    assert_eq!(before.snapshots.len(), 4);
    let mut names = |at: usize, value| {
        let mut written = all;
        written[at] = value;
        let made = plan(written, &before.documents).snapshots;
        made.into_keys()
            .map(|name| name.to_string())
            .collect::<Vec<_>>()
    };
    assert!(names(1, 1).is_empty(), "nothing has changed");
    assert_eq!(names(5, 8), ["shop/w1"], "a policy that selects one");
    assert_eq!(names(9, 2), ["shop/w1"], "a credential that one has");
    assert_eq!(
        names(8, 2),
        ["shop/w0", "shop/w1", "shop/w2"],
        "an upstream that three call"
    );
    assert_eq!(names(0, 3).len(), 4, "the mesh");
}
