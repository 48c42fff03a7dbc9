//! What documents say of TLS, and of how clients come in; and the examples that the guide shows of it.

use fender_config::snapshot::{ClientCertificate, Mtls};
use fender_config::{parse, standalone};
use fender_identity::Bundles;
use fender_identity::tls::{Group, TlsProfile, TlsVersion};

use crate::{name, source};

#[test]
fn tls_is_what_the_most_specific_place_says() {
    let text = "apiVersion: fender.dev/v1\nkind: Mesh\nmetadata: { name: m }\nspec:\n  trustDomain: example.org\n  \
        tls: { groups: [ X25519MLKEM768, P-256 ] }\n  tlsProfiles: [ { name: old, minimum: \"1.2\" } ]\n  \
        namespaces: [ { name: shop, tls: { groups: [ P-256 ] } } ]\n---\n\
        apiVersion: fender.dev/v1\nkind: Workload\nmetadata: { namespace: shop, name: orders }\nspec:\n  \
        attest: [ { token: {} } ]\n  tls: { profile: old }\n  inbound:\n  \
        - { listen: \"0.0.0.0:8443\", app: \"127.0.0.1:80\", protocol: http }\n  \
        - { listen: \"0.0.0.0:8444\", app: \"127.0.0.1:81\", protocol: http, tls: { minimum: \"1.3\" } }\n---\n\
        apiVersion: fender.dev/v1\nkind: Workload\nmetadata: { namespace: bank, name: ledger }\nspec:\n  \
        attest: [ { token: {} } ]\n";
    let documents =
        parse(&[source("all.yaml", text)]).unwrap_or_else(|problems| panic!("{problems}"));
    let orders = documents.snapshot(&name("shop/orders"), 1).unwrap();
    assert_eq!(orders.tls.minimum, TlsVersion::Tls12);
    assert_eq!(orders.tls.groups, [Group::P256]);
    assert_eq!(orders.inbound[0].tls, orders.tls);
    assert_eq!(orders.inbound[1].tls.minimum, TlsVersion::Tls13);
    assert_eq!(orders.inbound[1].tls.groups, [Group::P256]);
    let ledger = documents.snapshot(&name("bank/ledger"), 1).unwrap();
    let expected = TlsProfile {
        groups: vec![Group::X25519Mlkem768, Group::P256],
        ..TlsProfile::default()
    };
    assert_eq!(ledger.tls, expected);
}

#[test]
fn a_sidecar_alone_has_profiles_of_its_own() {
    let text = "apiVersion: fender.dev/v1\nkind: Sidecar\nmetadata: { namespace: shop, name: orders }\nspec:\n  \
        identity: { workloadApi: \"unix:///run/spire.sock\" }\n  tlsProfiles: [ { name: old, minimum: \"1.2\" } ]\n  \
        tls: { groups: [ X25519 ] }\n  inbound:\n  \
        - { listen: \"0.0.0.0:8443\", app: \"127.0.0.1:80\", protocol: http, tls: { profile: old } }\n";
    let alone = standalone::parse(&[source("alone.yaml", text)])
        .unwrap_or_else(|problems| panic!("{problems}"));
    let id = "spiffe://example.org/ns/shop/sa/orders".parse().unwrap();
    let snapshot = alone.snapshot(&id, Bundles::default(), 1);
    assert_eq!(snapshot.tls.minimum, TlsVersion::Tls13);
    assert_eq!(snapshot.inbound[0].tls.minimum, TlsVersion::Tls12);
    assert_eq!(snapshot.inbound[0].tls.groups, [Group::X25519]);
}

/// The documents that a page of the guide shows, each block by itself.
fn examples(page: &str) -> impl Iterator<Item = &str> {
    let blocks = page.split("```yaml\n").skip(1);
    blocks.map(|rest| rest.split("```").next().unwrap())
}

#[test]
fn the_examples_of_the_pages_about_tls_and_limits_are_right() {
    for page in [
        include_str!("../../../../docs/guide/tls.md"),
        include_str!("../../../../docs/guide/limits.md"),
    ] {
        let mut count = 0;
        for text in examples(page) {
            let told = match text.contains("kind: Sidecar") {
                true => standalone::parse(&[source("page.md", text)]).err(),
                false => parse(&[source("page.md", text)]).err(),
            };
            assert!(told.is_none(), "{}", told.unwrap());
            count += 1;
        }
        assert!(count > 0);
    }
}

#[test]
fn peer_authentication_says_how_clients_come_in() {
    let mesh = "apiVersion: fender.dev/v1\nkind: Mesh\nmetadata: { name: m }\nspec: { trustDomain: example.org }\n";
    let workload = |namespace: &str| {
        format!(
            "---\napiVersion: fender.dev/v1\nkind: Workload\nmetadata: {{ namespace: {namespace}, name: orders, labels: {{ app: orders }} }}\n\
             spec:\n  attest: [ {{ token: {{}} }} ]\n  inbound:\n  \
             - {{ listen: \"0.0.0.0:8443\", app: \"127.0.0.1:80\", protocol: http }}\n  \
             - {{ listen: \"0.0.0.0:8444\", app: \"127.0.0.1:81\", protocol: http }}\n  \
             - {{ listen: \"0.0.0.0:8445\", app: \"127.0.0.1:82\", protocol: http, clientCertificate: accept }}\n"
        )
    };
    let one = |version: &str, namespace: &str, name: &str, spec: &str| {
        format!(
            "---\napiVersion: security.istio.io/{version}\nkind: PeerAuthentication\nmetadata:\n  namespace: {namespace}\n  \
             name: {name}\n  creationTimestamp: null\nspec: {spec}\nstatus: {{}}\n"
        )
    };
    let ports = |documents: &[String], of: &str| {
        let text = [
            &[mesh.to_owned(), workload("shop"), workload("bank")],
            documents,
        ]
        .concat();
        let all = parse(&[source("all.yaml", text.concat())])
            .unwrap_or_else(|problems| panic!("{problems}"));
        let snapshot = all.snapshot(&name(of), 1).unwrap();
        snapshot
            .inbound
            .iter()
            .map(|port| port.mtls)
            .collect::<Vec<_>>()
    };
    let strict = Mtls::Strict(ClientCertificate::Require);
    // What the port says itself is never anything else.
    let own = Mtls::Strict(ClientCertificate::Accept);
    assert_eq!(ports(&[], "shop/orders"), [strict, strict, own]);

    let everywhere = one(
        "v1",
        "fender-system",
        "default",
        "{ mtls: { mode: PERMISSIVE } }",
    );
    let namespace = one("v1beta1", "shop", "default", "{ mtls: { mode: DISABLE } }");
    let selected = one(
        "v1",
        "shop",
        "orders",
        "{ selector: { matchLabels: { app: orders } }, mtls: { mode: UNSET }, portLevelMtls: { \"8443\": { mode: STRICT } } }",
    );
    let all = [selected, everywhere, namespace];
    assert_eq!(ports(&all, "shop/orders"), [strict, Mtls::Disabled, own]);
    assert_eq!(
        ports(&all, "bank/orders"),
        [Mtls::Permissive, Mtls::Permissive, own]
    );
}
