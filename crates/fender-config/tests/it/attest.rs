//! What `attest` and `kind: Node` become.

use fender_config::{Attestor, DockerSelector, On, UnixSelector, parse};

use crate::source;

#[test]
fn attest_says_who_may_speak_for_whom() {
    let digest = "0123456789abcdef".repeat(4);
    let documents = format!(
        "apiVersion: fender.dev/v1
kind: Mesh
metadata: {{ name: main }}
spec: {{ trustDomain: example.org }}
---
apiVersion: fender.dev/v1
kind: Node
metadata: {{ name: edge-1 }}
spec: {{ groups: [ edge ], attest: [ {{ token: {{}} }} ] }}
---
apiVersion: fender.dev/v1
kind: Workload
metadata: {{ namespace: shop, name: orders }}
spec:
  attest:
    - token: {{}}
    - unix: {{ node: edge-1, uid: 1000, gid: 1001, path: /usr/bin/orders, sha256: {digest} }}
    - docker: {{ nodeGroup: edge, image: \"sha256:{digest}\", labels: {{ a.b: c }} }}
    - docker: {{ node: edge-1, image: \"registry.example:5000/shop/orders@sha256:{digest}\" }}
"
    );
    let documents = parse(&[source("a.yaml", documents)]).unwrap();
    assert!(documents.warnings.is_empty(), "{:?}", documents.warnings);
    let (nodes, orders) = (
        &documents.nodes,
        &documents.workloads[&"shop/orders".parse().unwrap()],
    );
    let node = nodes.values().next().unwrap();
    assert_eq!(node.name.as_str(), "edge-1");
    assert!(node.attest.contains(&Attestor::Token));
    let on = On::Node("edge-1".parse().unwrap());
    assert!(orders.attest.contains(&Attestor::Unix(UnixSelector {
        on: on.clone(),
        uid: 1000,
        gid: Some(1001),
        path: Some("/usr/bin/orders".into()),
        sha256: Some(digest.parse().unwrap()),
    })));
    assert!(orders.attest.contains(&Attestor::Docker(DockerSelector {
        on: On::Group("edge".to_owned()),
        image: format!("sha256:{digest}").parse().unwrap(),
        labels: [("a.b".to_owned(), "c".to_owned())].into(),
    })));
    assert_eq!(orders.attest.len(), 4);
    assert!(on.includes(node) && On::Group("edge".to_owned()).includes(node));
    assert!(!On::Group("core".to_owned()).includes(node));
}
