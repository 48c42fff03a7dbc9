//! What right documents become.

use std::time::Duration;

use fender_config::snapshot::{
    AppProxyProtocol, Content, CredentialSource, Delivery, Destination, Forwarded, ForwardedFields,
    Lifetime, Profile, Protocol, RequestLimits,
};
use fender_config::standalone::{self, Identity, WorkloadApi};
use fender_config::{
    Attestor, Change, Documents, KeySource, Kind, Reach, Role, Source, Vouching, What, parse,
};
use fender_identity::{Bundles, Peer};
use fender_policy::{Action, Default, Facts, Verdict};

use crate::{fixture, name, source};

fn shop() -> Documents {
    parse(&[fixture("right", "shop.yaml")]).unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn a_port_names_whose_proxy_headers_are_believed() {
    let snapshot = shop().snapshot(&name("shop/reports"), 7).unwrap();
    let [first, second] = &snapshot.inbound[..] else {
        panic!("{:?}", snapshot.inbound)
    };
    assert_eq!(first.proxy_protocol, None);
    assert_eq!(first.app_proxy_protocol, AppProxyProtocol::Absent);
    assert_eq!(second.app_proxy_protocol, AppProxyProtocol::V2);
    let senders = second.proxy_protocol.as_ref().unwrap();
    for listed in ["10.0.0.5", "::ffff:10.0.0.5", "2001:db8::7"] {
        assert!(senders.lists(listed.parse().unwrap()), "{listed}");
    }
    for other in ["10.0.0.6", "::1", "2001:db8:0:1::7"] {
        assert!(!senders.lists(other.parse().unwrap()), "{other}");
    }
}

#[test]
fn a_port_names_the_proxies_that_are_believed_about_whom_they_ask_for() {
    let snapshot = shop().snapshot(&name("shop/reports"), 7).unwrap();
    let [first, second] = &snapshot.inbound[..] else {
        panic!("{:?}", snapshot.inbound)
    };
    assert_eq!(first.forwarded, Forwarded::default());
    assert_eq!(second.forwarded.fields, ForwardedFields::Both);
    let behind = second.forwarded.behind.as_ref().unwrap();
    assert_eq!(behind.hops.get(), 2);
    let gateway = "spiffe://example.org/ns/edge/sa/gateway".parse().unwrap();
    let other = "spiffe://other.org/ns/edge/sa/gateway".parse().unwrap();
    let (listed, elsewhere) = ("::ffff:10.0.1.7".parse().ok(), "10.0.2.7".parse().ok());
    assert!(behind.believes(listed, None) && behind.believes(listed, Some(&other)));
    assert!(behind.believes(elsewhere, Some(&gateway)) && behind.believes(None, Some(&gateway)));
    assert!(!behind.believes(elsewhere, Some(&other)) && !behind.believes(None, None));
}

#[test]
fn limits_are_those_of_the_most_specific_place_that_sets_them_field_by_field() {
    let (kib, mib, seconds) = (1024, 1024 * 1024, |seconds| {
        Some(Duration::from_secs(seconds))
    });
    let snapshot = shop().snapshot(&name("shop/reports"), 7).unwrap();
    let of_workload = RequestLimits {
        head_bytes: Some(16 * kib),
        idle: seconds(60),
        streams: Some(100),
        request: seconds(300),
        response: seconds(30),
        ..RequestLimits::default()
    };
    let of_port = RequestLimits {
        idle: seconds(10),
        body_bytes: Some(10 * mib),
        head_fields: Some(64),
        ..of_workload
    };
    let limits: Vec<_> = snapshot.inbound.iter().map(|port| port.limits).collect();
    assert_eq!(limits, [of_workload, of_port]);
}

#[test]
fn a_snapshot_holds_what_its_workload_declared() {
    let snapshot = shop().snapshot(&name("shop/orders"), 7).unwrap();
    assert_eq!(snapshot.version, 7);
    assert_eq!(
        snapshot.identity.as_ref().unwrap().as_str(),
        "spiffe://example.org/ns/shop/sa/orders"
    );
    assert_eq!(snapshot.profile, Profile::Development);
    assert_eq!(snapshot.drain, Duration::from_secs(20));
    assert_eq!(snapshot.inbound[0].listen.to_string(), "0.0.0.0:8443");
    assert_eq!(snapshot.inbound[0].app.to_string(), "127.0.0.1:8080");
    let Destination::Service {
        id,
        addresses,
        protocol,
    } = &snapshot.outbound[0].to
    else {
        panic!()
    };
    assert_eq!(id.as_str(), "spiffe://example.org/ns/shop/sa/inventory");
    assert_eq!(addresses[0].to_string(), "inventory.shop.internal:8443");
    assert_eq!(*protocol, Protocol::Http);
    let Destination::Service {
        id,
        addresses,
        protocol,
    } = &snapshot.outbound[2].to
    else {
        panic!()
    };
    assert_eq!(id.as_str(), "spiffe://example.org/ns/shop/sa/reports");
    assert_eq!(addresses[0].to_string(), "10.0.0.9:7443");
    assert_eq!(*protocol, Protocol::Tcp);
}

#[test]
fn a_snapshot_holds_only_the_policies_that_select_its_workload() {
    let documents = shop();
    let of = |workload: &str| {
        let snapshot = documents.snapshot(&name(workload), 1).unwrap();
        let names = snapshot
            .policies
            .policies
            .iter()
            .map(|policy| policy.name.to_string());
        (snapshot.policies.default, names.collect::<Vec<_>>())
    };
    assert_eq!(
        of("shop/orders"),
        (
            Default::Deny,
            vec![
                "fender-system/no-intruders".to_owned(),
                "shop/orders-viewers".to_owned()
            ]
        )
    );
    assert_eq!(
        of("shop/reports"),
        (
            Default::Audit,
            vec!["fender-system/no-intruders".to_owned()]
        )
    );
}

#[test]
fn cluster_local_stands_for_the_trust_domain_of_the_mesh() {
    let snapshot = shop().snapshot(&name("shop/orders"), 1).unwrap();
    let viewers = &snapshot.policies.policies[1];
    assert_eq!(viewers.action, Action::Allow);
    assert_eq!(
        viewers.rules[0].from[0].principals[0].to_string(),
        "example.org/ns/web/sa/frontend"
    );
    let texts: Vec<_> = viewers.rules[0]
        .when
        .iter()
        .map(|condition| condition.key())
        .collect();
    assert_eq!(texts, ["request.headers[x-team]", "source.ip"]);
}

#[test]
fn where_the_control_plane_reads_a_secret_does_not_travel() {
    let snapshot = shop().snapshot(&name("shop/orders"), 1).unwrap();
    assert_eq!(
        snapshot.credentials[0].source,
        CredentialSource::Control(Lifetime::Lasting)
    );
    assert!(!format!("{snapshot:?}").contains("/etc/secrets"));
    let Delivery::File(file, Content::Value) = &snapshot.credentials[0].deliver[0] else {
        panic!()
    };
    assert_eq!(
        (file.mode, file.owner.as_deref(), file.group.as_deref()),
        (0o440, Some("app"), Some("1000"))
    );
}

#[test]
fn a_snapshot_of_an_unknown_workload_is_none() {
    assert!(shop().snapshot(&name("shop/ghost"), 1).is_none());
}

#[test]
fn a_difference_is_of_meaning_not_of_text() {
    let old = shop();
    let Source { text, .. } = fixture("right", "shop.yaml");
    let reworded = format!(
        "# another comment\n{}",
        text.replace("leaf: 10s", "leaf: 10000ms")
    );
    assert_eq!(
        Documents::diff(&old, &parse(&[source("x", reworded)]).unwrap()),
        []
    );

    let changed = text
        .replace("leaf: 10s", "leaf: 20s")
        .replace("name: no-intruders", "name: no-rogues")
        .replace("drain: 20s", "drain: 21s");
    let new = parse(&[source("x", changed)]).unwrap();
    let change = |kind, name: &str, what| Change {
        kind,
        name: name.to_owned(),
        what,
    };
    assert_eq!(
        Documents::diff(&old, &new),
        [
            change(Kind::Mesh, "mesh", What::Changed),
            change(Kind::Workload, "shop/orders", What::Changed),
            change(
                Kind::AuthorizationPolicy,
                "fender-system/no-intruders",
                What::Removed
            ),
            change(
                Kind::AuthorizationPolicy,
                "fender-system/no-rogues",
                What::Added
            ),
        ]
    );
}

#[test]
fn a_standalone_file_becomes_the_same_snapshot_a_control_plane_would_send() {
    let alone = standalone::parse(&[fixture("right", "alone.yaml")])
        .unwrap_or_else(|problems| panic!("{problems}"));
    let Some(Identity::Files(files)) = &alone.identity else {
        panic!("{:?}", alone.identity)
    };
    assert_eq!(files.key.to_str(), Some("/etc/fender/key.pem"));
    let identity = "spiffe://example.org/ns/shop/sa/orders".parse().unwrap();
    let snapshot = alone.snapshot(&identity, Bundles::default(), 1);
    assert_eq!(snapshot.identity, Some(identity));
    let limits = RequestLimits {
        target_bytes: Some(4 * 1024),
        stall: Some(Duration::from_secs(10)),
        head_time: Some(Duration::from_secs(5)),
        ..RequestLimits::default()
    };
    assert_eq!(snapshot.inbound[0].limits, limits);
    assert_eq!(snapshot.policies.default, Default::Deny);
    assert_eq!(snapshot.policies.policies.len(), 1);
    assert_eq!(snapshot.credentials.len(), 2);
    let Destination::Service { id, addresses, .. } = &snapshot.outbound[0].to else {
        panic!()
    };
    assert_eq!(id.as_str(), "spiffe://example.org/ns/shop/sa/inventory");
    assert_eq!(addresses[0].to_string(), "inventory:8443");
}

#[test]
fn an_identity_may_come_from_a_workload_api_and_be_one_of_several() {
    let identity = |written: &str| {
        let text = format!(
            "apiVersion: fender.dev/v1
kind: Sidecar
metadata: {{ namespace: shop, name: orders }}
spec: {{ identity: {{ {written} }} }}
"
        );
        standalone::parse(&[source("alone.yaml", &text)])
            .unwrap()
            .identity
    };
    let api = |uid: Option<u32>, id: Option<&str>| {
        Some(Identity::WorkloadApi(WorkloadApi {
            socket: "/run/spire/agent.sock".into(),
            uid,
            id: id.map(|id| id.parse().unwrap()),
        }))
    };
    assert_eq!(
        identity("workloadApi: 'unix:///run/spire/agent.sock'"),
        api(None, None)
    );
    let id = "spiffe://example.org/ns/shop/sa/orders";
    assert_eq!(
        identity(&format!(
            "workloadApi: 'unix:/run/spire/agent.sock', uid: 998, spiffeId: '{id}'"
        )),
        api(Some(998), Some(id))
    );
}

#[test]
fn a_file_that_only_delivers_credentials_needs_no_identity() {
    let text = "apiVersion: fender.dev/v1
kind: Sidecar
metadata: { namespace: shop, name: orders }
spec: { credentials: [ smtp ] }
---
apiVersion: fender.dev/v1
kind: Credential
metadata: { namespace: shop, name: smtp }
spec: { source: { file: { path: /x } }, deliver: [ { environment: { variable: V } } ] }
";
    let alone = standalone::parse(&[source("exec.yaml", text)]).unwrap();
    assert_eq!(alone.identity, None);
    let snapshot = alone.nameless_snapshot(3);
    assert_eq!((snapshot.identity, snapshot.version), (None, 3));
    assert_eq!(snapshot.credentials.len(), 1);
    assert!(snapshot.inbound.is_empty() && snapshot.outbound.is_empty());
    assert_eq!(alone.credentials().count(), 1);
}

#[test]
fn odd_but_allowed_documents_are_read_with_warnings() {
    let text = "apiVersion: fender.dev/v1
kind: Mesh
metadata: { name: mesh }
spec: { trustDomain: example.org, authorization: { default: allow } }
---
apiVersion: fender.dev/v1
kind: Workload
metadata: { namespace: shop, name: orders }
spec: {}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { namespace: shop, name: stale }
spec: { action: DENY, selector: { matchLabels: { app: gone } } }
";
    let documents = parse(&[source("mesh.yaml", text)]).unwrap();
    let codes: Vec<_> = documents
        .warnings
        .iter()
        .map(|warning| warning.code)
        .collect();
    assert_eq!(
        codes,
        [
            "fender::open-default",
            "fender::no-attest",
            "fender::no-rules",
            "fender::selects-nobody"
        ]
    );
}

const GOVERNED: &str = "apiVersion: fender.dev/v1\nkind: Mesh\nmetadata: { name: mesh }\nspec:\n  trustDomain: example.org\n";

fn governed(rest: &str) -> Documents {
    let text = format!("{GOVERNED}{rest}");
    parse(&[source("mesh.yaml", text)]).unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn administrators_are_who_the_mesh_names_and_where() {
    let mesh = governed(
        "  administrators:\n  - { name: ada, role: security }\n  - { name: ben, role: operator, namespaces: [ shop, bank ] }\n  - { name: cem, role: viewer, namespaces: [ \"*\" ] }\n",
    );
    assert_eq!(mesh.warnings, []);
    let [ada, ben, cem] = <[_; 3]>::try_from(mesh.mesh.unwrap().administrators.unwrap()).unwrap();
    assert_eq!((ada.role, &ada.reach), (Role::Security, &Reach::Everywhere));
    assert_eq!(ben.role, Role::Operator);
    assert!(ben.reach.includes("shop") && ben.reach.includes("bank"));
    assert!(!ben.reach.includes("shop-2") && !ben.reach.includes(""));
    assert!(cem.role == Role::Viewer && cem.reach.includes("anything"));
    assert!(Role::Viewer < Role::Operator && Role::Operator < Role::Security);
}

#[test]
fn a_mesh_that_names_nobody_is_another_than_one_that_does_not_say() {
    assert_eq!(governed("").mesh.unwrap().administrators, None);
    for nobody in [
        "[]",
        "[ { name: ben, role: viewer, namespaces: [ shop ] } ]",
    ] {
        let documents = governed(&format!("  administrators: {nobody}\n"));
        assert_eq!(documents.warnings[0].code, "fender::no-security");
        assert!(documents.mesh.unwrap().administrators.is_some());
    }
}

#[test]
fn a_version_is_older_by_its_numbers_and_one_that_cannot_be_read_is_older_than_all() {
    let documents =
        governed("  minimumVersion: { version: 0.10.0, after: 2027-01-15T08:00:00Z }\n");
    let minimum = documents.mesh.unwrap().minimum_version.unwrap();
    assert_eq!(minimum.after.as_secs(), 1_800_000_000);
    for older in ["0.9.9", "0.10.0-rc.1", "0.2.0", "", "latest", "0.10"] {
        assert!(minimum.exceeds(older), "{older}");
    }
    for enough in ["0.10.0", "0.10.1", "1.0.0-rc.1", "0.10.0+build"] {
        assert!(!minimum.exceeds(enough), "{enough}");
    }
}

#[test]
fn those_whose_word_counts_are_named_in_the_mesh_and_found_by_selectors() {
    let text = r#"
apiVersion: fender.dev/v1
kind: Mesh
metadata: { name: mesh }
spec:
  trustDomain: acme.test
  kubernetes:
    - { name: east, issuer: "https://kubernetes.default.svc", audience: fender, jwks: { file: /etc/fender/east.json } }
    - name: west
      issuer: https://kubernetes.default.svc
      audience: https://fender.acme.test
      jwks: { url: "https://api.west.internal:6443/openid/v1/jwks", roots: { file: /etc/fender/west.pem }, token: { file: /etc/fender/west.token } }
    - name: north
      issuer: https://oidc.north
      audience: fender
      tokenReview: { api: "https://10.0.0.1:6443/", roots: { file: /etc/fender/north.pem }, token: { file: /etc/fender/north.token } }
  x509: [ { name: corporate, roots: { file: /etc/fender/corporate.pem } } ]
---
apiVersion: fender.dev/v1
kind: Workload
metadata: { namespace: shop, name: orders }
spec:
  attest:
    - kubernetes: { cluster: east, namespace: shop, serviceAccount: orders.v2, pod: orders-0, node: node-a.internal }
    - x509: { authority: corporate, subject: "CN=orders,O=Acme", dnsName: Orders.Internal }
"#;
    let documents = parse(&[source("mesh.yaml", text)]).unwrap();
    let mesh = documents.mesh.unwrap();
    assert_eq!(
        mesh.clusters.keys().collect::<Vec<_>>(),
        ["east", "north", "west"]
    );
    let file = KeySource::File("/etc/fender/east.json".into());
    assert_eq!(mesh.clusters["east"].vouching, Vouching::Keys(file));
    let Vouching::Review(review) = &mesh.clusters["north"].vouching else {
        panic!("{:?}", mesh.clusters["north"])
    };
    assert_eq!(review.api.to_string(), "https://10.0.0.1:6443");
    assert_eq!(
        mesh.authorities["corporate"].roots.to_str(),
        Some("/etc/fender/corporate.pem")
    );
    let attest = &documents.workloads[&name("shop/orders")].attest;
    assert_eq!(
        attest.iter().map(Attestor::name).collect::<Vec<_>>(),
        ["kubernetes", "x509"]
    );
    let dns_names: Vec<_> = attest
        .iter()
        .filter_map(|attestor| match attestor {
            Attestor::X509(selector) => selector.dns_name.as_deref(),
            Attestor::Token | Attestor::Unix(_) | Attestor::Docker(_) | Attestor::Kubernetes(_) => {
                None
            }
        })
        .collect();
    assert_eq!(
        dns_names,
        ["orders.internal"],
        "names are compared in lower case"
    );
}

#[test]
fn a_snapshot_may_become_a_day_old_or_what_the_mesh_says_and_closed_lets_nobody_in_or_out() {
    let shop = shop().snapshot(&name("shop/orders"), 7).unwrap();
    assert_eq!(shop.max_age, Some(Duration::from_secs(24 * 3600)));
    assert!(!shop.outbound.is_empty() && !shop.inbound.is_empty());

    let mesh = "apiVersion: fender.dev/v1\nkind: Mesh\nmetadata: { name: mesh }\n\
                spec: { trustDomain: acme.test, snapshot: { maxAge: 6h }, authorization: { default: allow } }\n---\n\
                apiVersion: fender.dev/v1\nkind: Workload\nmetadata: { namespace: shop, name: web }\nspec: { attest: [ { token: {} } ] }\n";
    let documents = parse(&[source("mesh.yaml", mesh)]).unwrap();
    let snapshot = documents.snapshot(&name("shop/web"), 1).unwrap();
    assert_eq!(snapshot.max_age, Some(Duration::from_secs(6 * 3600)));

    let anybody = Facts {
        peer: &Peer::Anonymous,
        source_ip: None,
        remote_ip: None,
        port: 8443,
        http: None,
    };
    assert_eq!(snapshot.policies.decide(&anybody).verdict, Verdict::Allow);
    for snapshot in [snapshot, shop] {
        let closed = snapshot.closed();
        let decision = closed.policies.decide(&anybody);
        assert_eq!(decision.verdict, Verdict::Deny);
        let by = format!("{:?}", decision.by);
        assert!(by.contains("fender-system/snapshot-too-old"), "{by}");
        assert!(closed.outbound.is_empty());
        assert_eq!(
            (closed.inbound, closed.trust),
            (snapshot.inbound, snapshot.trust)
        );
    }
}
