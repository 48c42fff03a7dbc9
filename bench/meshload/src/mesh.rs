//! The documents of a mesh of any size: each workload with a port, a destination and a policy of its own, a file for each
//! namespace. A change is a number that some of the documents carry.

use std::fmt::Write as _;

pub const TRUST_DOMAIN: &str = "bench.test";

/// Workloads in one namespace, and so in one file.
const NAMESPACE: usize = 100;

pub struct Mesh {
    /// One for each workload.
    generations: Vec<u32>,
    /// Carried by a policy that selects everybody.
    everybody: u32,
}

/// A file of documents.
pub struct File {
    pub name: String,
    pub text: String,
}

impl Mesh {
    pub fn new(workloads: usize) -> Self {
        Self {
            generations: vec![0; workloads],
            everybody: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.generations.len()
    }

    pub fn workload(at: usize) -> String {
        format!("bench-{}/service-{at}", at / NAMESPACE)
    }

    pub fn identity(at: usize) -> String {
        format!(
            "spiffe://{TRUST_DOMAIN}/ns/bench-{}/sa/service-{at}",
            at / NAMESPACE
        )
    }

    /// Changes what this many workloads are told, spread over the namespaces.
    pub fn change(&mut self, workloads: usize) {
        let step = (self.len() / workloads.max(1)).max(1);
        for generation in self.generations.iter_mut().step_by(step).take(workloads) {
            *generation += 1;
        }
    }

    /// Changes what everybody is told, by one policy.
    pub fn change_everybody(&mut self) {
        self.everybody += 1;
    }

    pub fn files(&self) -> Vec<File> {
        let mut files = vec![File {
            name: "mesh.yaml".to_owned(),
            text: format!(
                "apiVersion: fender.dev/v1\nkind: Mesh\nmetadata: {{ name: bench }}\n\
                 spec: {{ trustDomain: {TRUST_DOMAIN}, rootNamespace: root }}\n---\n{}",
                policy("root", "everybody", "", self.everybody)
            ),
        }];
        let mut at = 0;
        for (namespace, generations) in self.generations.chunks(NAMESPACE).enumerate() {
            let mut text = String::new();
            for generation in generations {
                let _ = write!(text, "---\n{}", self.document(namespace, at, *generation));
                at += 1;
            }
            files.push(File {
                name: format!("bench-{namespace}.yaml"),
                text,
            });
        }
        files
    }

    fn document(&self, namespace: usize, at: usize, generation: u32) -> String {
        // Its neighbour within the namespace; the last one calls the first.
        let first = namespace * NAMESPACE;
        let size = NAMESPACE.min(self.len() - first);
        let neighbour = first + (at + 1 - first) % size;
        let name = format!("bench-{namespace}");
        format!(
            "apiVersion: fender.dev/v1\nkind: Workload\n\
             metadata: {{ namespace: {name}, name: service-{at}, labels: {{ app: service-{at} }} }}\n\
             spec:\n  attest: [ {{ token: {{}} }} ]\n  \
             inbound: [ {{ listen: \"0.0.0.0:8443\", app: \"127.0.0.1:8080\", protocol: http, advertise: \"service-{at}.internal:8443\" }} ]\n  \
             outbound: [ {{ listen: \"127.0.0.1:9000\", service: service-{neighbour} }} ]\n---\n{}",
            policy(
                &name,
                &format!("service-{at}"),
                &format!("selector: {{ matchLabels: {{ app: service-{at} }} }}\n  "),
                generation
            )
        )
    }
}

fn policy(namespace: &str, name: &str, selector: &str, generation: u32) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{ namespace: {namespace}, name: {name} }}\nspec:\n  {selector}action: ALLOW\n  \
         rules:\n  - from: [ {{ source: {{ namespaces: [ {namespace} ] }} }} ]\n    \
         to: [ {{ operation: {{ methods: [ GET, POST ], paths: [ \"/generation/{generation}/*\" ] }} }} ]\n"
    )
}
