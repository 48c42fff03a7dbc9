//! Facts against selectors. Pure: the same facts and documents always give the same answer.

use std::collections::BTreeSet;

use fender_api::facts::{ContainerFacts, Facts, ProcessFacts};
use fender_config::{Attestor, DockerSelector, Documents, Image, Node, On, UnixSelector, Workload};

/// Selectors of which it is told why they failed.
const TOLD: usize = 8;

/// A workload that the facts prove, and by which entry of its `attest`.
#[derive(Debug)]
pub(super) struct Hit<'a> {
    pub(super) workload: &'a Workload,
    pub(super) attestor: &'a Attestor,
}

#[derive(Debug)]
pub(super) struct Matching<'a> {
    pub(super) hits: Vec<Hit<'a>>,
    misses: Vec<String>,
    more: usize,
}

impl Matching<'_> {
    /// Why nothing matched: each selector with the fact it failed on.
    pub(super) fn why_none(&self) -> String {
        if self.misses.is_empty() {
            return "no workload names this node, or a group of it".to_owned();
        }
        let mut why = self.misses.join("; ");
        if self.more > 0 {
            why.push_str(&format!("; and {} more", self.more));
        }
        why
    }
}

/// The workloads that name this node, by whether the facts prove them.
pub(super) fn matching<'a>(documents: &'a Documents, node: &Node, facts: &Facts) -> Matching<'a> {
    let mut matching = Matching {
        hits: Vec::new(),
        misses: Vec::new(),
        more: 0,
    };
    for workload in documents.workloads.values() {
        let mut missed = Vec::new();
        let hit = workload.attest.iter().find(|attestor| {
            match judge(attestor, node, facts) {
                Verdict::Proven => return true,
                Verdict::Elsewhere => {}
                Verdict::Failed(why) => {
                    missed.push(format!("{}: `{}`: {why}", workload.name, attestor.name()));
                }
            }
            false
        });
        if let Some(attestor) = hit {
            matching.hits.push(Hit { workload, attestor });
            continue;
        }
        for miss in missed {
            if matching.misses.len() < TOLD {
                matching.misses.push(miss);
            } else {
                matching.more += 1;
            }
        }
    }
    matching
}

enum Verdict {
    Proven,
    /// Not for an agent to say, or not for this one.
    Elsewhere,
    Failed(String),
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "whoever attests to the control plane itself needs no agent"
)]
fn judge(attestor: &Attestor, node: &Node, facts: &Facts) -> Verdict {
    let here = |on: &On| on.includes(node);
    let proven = match attestor {
        Attestor::Unix(selector) if here(&selector.on) => unix(selector, facts),
        Attestor::Docker(selector) if here(&selector.on) => docker(selector, facts),
        _ => return Verdict::Elsewhere,
    };
    match proven {
        Ok(()) => Verdict::Proven,
        Err(why) => Verdict::Failed(why),
    }
}

/// For an entry of `attest` that is for this node's agent to say: what differs from the facts, if anything does.
pub(crate) fn differs(attestor: &Attestor, node: &Node, facts: &Facts) -> Option<Option<String>> {
    match judge(attestor, node, facts) {
        Verdict::Proven => Some(None),
        Verdict::Elsewhere => None,
        Verdict::Failed(why) => Some(Some(why)),
    }
}

/// What of the facts goes on record, to be judged again. Labels may hold secrets, and digests are many: kept are those
/// that an entry of `attest` names, as the document holds them anyway. What a later entry names besides is then not
/// proven, until the agent is asked again.
pub(super) fn kept(facts: &Facts, attest: &BTreeSet<Attestor>) -> Facts {
    let named: Vec<_> = attest
        .iter()
        .filter_map(|attestor| match attestor {
            Attestor::Docker(selector) => Some(selector),
            Attestor::Token | Attestor::Unix(_) | Attestor::Kubernetes(_) | Attestor::X509(_) => {
                None
            }
        })
        .collect();
    let container = facts.container.as_ref().map(|container| {
        let is_named = |key: &String, value: &String| {
            named
                .iter()
                .any(|selector| selector.labels.get(key) == Some(value))
        };
        ContainerFacts {
            id: container.id.clone(),
            image: container.image.clone(),
            digests: container
                .digests
                .iter()
                .filter(|digest| named.iter().any(|selector| selector.image == **digest))
                .cloned()
                .collect(),
            labels: container
                .labels
                .iter()
                .filter(|(key, value)| is_named(key, value))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
        }
    });
    Facts {
        process: facts.process.clone(),
        container,
    }
}

fn unix(selector: &UnixSelector, facts: &Facts) -> Result<(), String> {
    let UnixSelector {
        on: _,
        uid,
        gid,
        path,
        sha256,
    } = selector;
    if facts.container.is_some() {
        // Whoever starts a container chooses its user: `--user 1000` must not be the host's 1000.
        return Err("it runs in a container: name its image with `docker`".to_owned());
    }
    let Some(process) = &facts.process else {
        return Err("its users and paths are not those of the host".to_owned());
    };
    let ProcessFacts {
        uid: found_uid,
        gid: found_gid,
        path: found_path,
        sha256: found_sha256,
    } = process;
    if uid != found_uid {
        return Err(format!("its uid is {found_uid}, not {uid}"));
    }
    if let Some(gid) = gid
        && gid != found_gid
    {
        return Err(format!("its gid is {found_gid}, not {gid}"));
    }
    if let Some(path) = path {
        match found_path {
            None => return Err("the path of its program is not known, or was replaced".to_owned()),
            Some(found) if path.to_str() != Some(found.as_str()) => {
                return Err(format!(
                    "its program is `{}`, not `{}`",
                    found.escape_debug(),
                    path.display()
                ));
            }
            Some(_) => {}
        }
    }
    if let Some(sha256) = sha256 {
        match found_sha256 {
            None => return Err("the sha256 of its program is not known".to_owned()),
            Some(found) if found != sha256 => {
                return Err(format!(
                    "the sha256 of its program is {found}, not {sha256}"
                ));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn docker(selector: &DockerSelector, facts: &Facts) -> Result<(), String> {
    let DockerSelector {
        on: _,
        image,
        labels,
    } = selector;
    let Some(container) = &facts.container else {
        return Err("it runs in no container that the engine knows".to_owned());
    };
    let ContainerFacts {
        id: _,
        image: found,
        digests,
        labels: found_labels,
    } = container;
    let is_image = match image {
        Image::Id(_) => found == image,
        Image::Digest { .. } => digests.contains(image),
    };
    if !is_image {
        return Err(format!("its image is {found}, not {image}"));
    }
    for (key, value) in labels {
        if found_labels.get(key) != Some(value) {
            // The value found is not told: labels may hold secrets.
            return Err(format!("its label `{key}` is not `{value}`"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use fender_config::{Sha256, Source, parse};

    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn documents(attest: &str) -> Documents {
        let text = format!(
            "apiVersion: fender.dev/v1\nkind: Mesh\nmetadata: {{ name: m }}\nspec: {{ trustDomain: acme.test }}\n\
             ---\napiVersion: fender.dev/v1\nkind: Node\nmetadata: {{ name: edge-1 }}\nspec: {{ groups: [ edge ], attest: [ {{ token: {{}} }} ] }}\n\
             ---\napiVersion: fender.dev/v1\nkind: Node\nmetadata: {{ name: core-1 }}\nspec: {{ attest: [ {{ token: {{}} }} ] }}\n\
             ---\napiVersion: fender.dev/v1\nkind: Workload\nmetadata: {{ namespace: shop, name: orders }}\nspec: {{ attest: [ {attest} ] }}\n"
        );
        let name = "a.yaml".to_owned();
        parse(&[Source { name, text }]).unwrap()
    }

    fn process(uid: u32) -> Facts {
        Facts {
            process: Some(ProcessFacts {
                uid,
                gid: 50,
                path: Some("/usr/bin/orders".to_owned()),
                sha256: Some(A.parse().unwrap()),
            }),
            container: None,
        }
    }

    fn container(image: &str) -> Facts {
        Facts {
            process: None,
            container: Some(ContainerFacts {
                id: "c".repeat(64),
                image: format!("sha256:{image}").parse().unwrap(),
                digests: vec![format!("r.example/orders@sha256:{B}").parse().unwrap()],
                labels: [("service".to_owned(), "orders".to_owned())].into(),
            }),
        }
    }

    /// Empty if it is proven, why not otherwise.
    fn verdict(attest: &str, node: &str, facts: &Facts) -> String {
        let documents = documents(attest);
        let node = &documents.nodes[&node.parse().unwrap()];
        let matching = matching(&documents, node, facts);
        match matching.hits.as_slice() {
            [] => matching.why_none(),
            [hit] => {
                assert_eq!(hit.workload.name.to_string(), "shop/orders");
                String::new()
            }
            more => panic!("{more:?}"),
        }
    }

    #[test]
    fn every_part_of_a_selector_must_hold() {
        let all = format!(
            "unix: {{ node: edge-1, uid: 1000, gid: 50, path: /usr/bin/orders, sha256: {A} }}"
        );
        let entry = |text: &str| format!("{{ {text} }}");
        assert_eq!(verdict(&entry(&all), "edge-1", &process(1000)), "");
        for (part, other, why) in [
            ("uid: 1000", "uid: 1001", "its uid is 1000, not 1001"),
            ("gid: 50", "gid: 51", "its gid is 50, not 51"),
            (
                "/usr/bin/orders",
                "/usr/bin/web",
                "its program is `/usr/bin/orders`, not `/usr/bin/web`",
            ),
            (A, B, "the sha256 of its program is aaaa"),
        ] {
            let told = verdict(&entry(&all.replace(part, other)), "edge-1", &process(1000));
            assert!(told.contains(why), "{told}");
            assert!(told.starts_with("shop/orders: `unix`: "), "{told}");
        }
    }

    #[test]
    fn what_was_not_found_out_proves_nothing() {
        let mut unread = process(1000);
        let process = unread.process.as_mut().unwrap();
        (process.path, process.sha256) = (None, None);
        for narrowed in ["path: /usr/bin/orders".to_owned(), format!("sha256: {A}")] {
            let attest = format!("{{ unix: {{ node: edge-1, uid: 1000, {narrowed} }} }}");
            assert!(verdict(&attest, "edge-1", &unread).contains("not known"));
        }
        assert_eq!(
            verdict("{ unix: { node: edge-1, uid: 1000 } }", "edge-1", &unread),
            ""
        );
        assert!(
            verdict(
                "{ unix: { node: edge-1, uid: 0 } }",
                "edge-1",
                &Facts::default()
            )
            .contains("not those of the host")
        );
    }

    #[test]
    fn attack_an_agent_cannot_speak_for_what_runs_on_another_node() {
        for on in ["node: edge-1", "nodeGroup: edge"] {
            let attest = format!("{{ unix: {{ {on}, uid: 1000 }} }}");
            assert_eq!(verdict(&attest, "edge-1", &process(1000)), "");
            assert_eq!(
                verdict(&attest, "core-1", &process(1000)),
                "no workload names this node, or a group of it"
            );
        }
    }

    #[test]
    fn attack_copied_labels_on_another_image_prove_nothing() {
        let attest = format!(
            "{{ docker: {{ node: edge-1, image: \"sha256:{A}\", labels: {{ service: orders }} }} }}"
        );
        assert_eq!(verdict(&attest, "edge-1", &container(A)), "");
        assert!(verdict(&attest, "edge-1", &container(B)).contains("its image is sha256:bbbb"));
        let other = attest.replace("service: orders", "service: web");
        assert!(
            verdict(&other, "edge-1", &container(A)).contains("its label `service` is not `web`")
        );
    }

    #[test]
    fn an_image_is_known_by_its_digest_in_the_registry_too() {
        let attest =
            |name| format!("{{ docker: {{ node: edge-1, image: \"{name}@sha256:{B}\" }} }}");
        assert_eq!(
            verdict(&attest("r.example/orders"), "edge-1", &container(A)),
            ""
        );
        assert_ne!(
            verdict(&attest("r.example/web"), "edge-1", &container(A)),
            ""
        );
    }

    #[test]
    fn attack_a_user_chosen_for_a_container_is_not_the_user_of_the_host() {
        let contained = Facts {
            process: process(1000).process,
            container: container(A).container,
        };
        let told = verdict(
            "{ unix: { node: edge-1, uid: 1000 } }",
            "edge-1",
            &contained,
        );
        assert!(told.contains("it runs in a container"), "{told}");
    }

    #[test]
    fn attack_a_join_token_entry_is_nothing_an_agent_can_claim() {
        assert_ne!(verdict("{ token: {} }", "edge-1", &process(1000)), "");
    }

    #[test]
    fn one_of_several_ways_is_enough_and_failures_are_told_up_to_a_bound() {
        let ways = "{ unix: { node: edge-1, uid: 1 } }, { unix: { node: edge-1, uid: 1000 } }";
        assert_eq!(verdict(ways, "edge-1", &process(1000)), "");
        let many: Vec<_> = (1..30)
            .map(|uid| format!("{{ unix: {{ node: edge-1, uid: {uid} }} }}"))
            .collect();
        let told = verdict(&many.join(", "), "edge-1", &process(1000));
        assert!(told.ends_with("; and 21 more"), "{told}");
        assert_eq!(Sha256([0xaa; 32]).to_string(), A);
    }
}
