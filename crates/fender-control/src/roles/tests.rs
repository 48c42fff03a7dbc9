use fender_config::{Source, parse};

use super::*;

const HEAD: &str = "apiVersion: fender.dev/v1\nkind: ";

fn documents(parts: &[String]) -> Documents {
    let text = parts.join("---\n");
    let source = Source {
        name: "all.yaml".to_owned(),
        text,
    };
    parse(&[source]).unwrap_or_else(|problems| panic!("{}", problems.render()))
}

fn mesh(rest: &str) -> String {
    format!(
        "{HEAD}Mesh\nmetadata: {{ name: mesh }}\nspec:\n  trustDomain: acme.test\n  administrators:\n  \
         - {{ name: ada, role: security }}\n  - {{ name: ben, role: operator, namespaces: [ shop ] }}\n  \
         - {{ name: cem, role: viewer, namespaces: [ \"*\" ] }}\n{rest}"
    )
}

fn workload(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "{HEAD}Workload\nmetadata: {{ namespace: {namespace}, name: {name}, labels: {{ app: {name} }} }}\nspec: {spec}\n"
    )
}

fn policy(namespace: &str, action: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{ namespace: {namespace}, name: all }}\n\
         spec: {{ action: {action}, rules: [ {{}} ] }}\n"
    )
}

fn credential(source: &str) -> String {
    format!(
        "{HEAD}Credential\nmetadata: {{ namespace: shop, name: smtp }}\nspec:\n  source: {{ file: {source} }}\n  \
         deliver: [ {{ environment: {{ variable: SMTP }} }} ]\n"
    )
}

/// What `who` lacks to get from one to the other, as `kind name: role`.
fn lacks(who: &str, before: &[String], after: &[String]) -> Vec<String> {
    let (before, after) = (documents(before), documents(after));
    let rights = Rights::of(before.mesh.as_ref().unwrap(), who);
    let changes = Documents::diff(&before, &after);
    assert!(!changes.is_empty(), "the test changes something");
    missing(&rights, &before, &after, &changes)
        .into_iter()
        .map(|missing| format!("{} {}: {}", missing.kind, missing.name, missing.role))
        .collect()
}

#[test]
fn an_operator_changes_what_lies_in_its_namespaces() {
    let before = [mesh(""), workload("shop", "orders", "{}")];
    let after = [
        mesh(""),
        workload("shop", "orders", "{ drain: 5s, credentials: [ smtp ] }"),
        workload("shop", "cart", "{}"),
        policy("shop", "ALLOW"),
        credential("{ path: /run/smtp }"),
    ];
    assert_eq!(lacks("ben", &before, &after), [""; 0]);
    assert_eq!(
        lacks("ben", &after, &before),
        [""; 0],
        "and takes it away again"
    );
    assert_eq!(lacks("ada", &before, &after), [""; 0]);
    assert_eq!(
        lacks("cem", &before, &after).len(),
        4,
        "a viewer changes nothing"
    );
    assert_eq!(
        lacks("eve", &before, &after).len(),
        4,
        "nor does a stranger"
    );
}

#[test]
fn attack_an_operator_changes_nothing_outside_its_namespaces() {
    let before = [mesh(""), workload("bank", "ledger", "{}")];
    let after = [
        mesh(""),
        workload("bank", "ledger", "{ drain: 5s }"),
        workload("shop-2", "orders", "{}"),
        policy("bank", "ALLOW"),
    ];
    assert_eq!(
        lacks("ben", &before, &after),
        [
            "Workload bank/ledger: operator",
            "Workload shop-2/orders: operator",
            "AuthorizationPolicy bank/all: operator",
        ]
    );
    assert_eq!(
        lacks("ben", &before, &[mesh("")]),
        ["Workload bank/ledger: operator"]
    );
}

#[test]
fn attack_an_operator_gives_nobody_an_identity() {
    let plain = [mesh(""), workload("shop", "orders", "{}")];
    for spec in [
        "{ attest: [ { token: {} } ] }",
        "{ dnsNames: [ ledger.bank.internal ] }",
        "{ inbound: [ { listen: \"0.0.0.0:8443\", app: \"127.0.0.1:80\", protocol: http, clientCertificate: ignore } ] }",
        "{ inbound: [ { listen: \"0.0.0.0:8443\", app: \"127.0.0.1:80\", protocol: http, \
         proxyProtocol: { version: v2, from: [ 10.0.0.1 ] } } ] }",
    ] {
        let changed = [mesh(""), workload("shop", "orders", spec)];
        assert_eq!(
            lacks("ben", &plain, &changed),
            ["Workload shop/orders: security"],
            "{spec}"
        );
        assert_eq!(lacks("ada", &plain, &changed), [""; 0]);
        let added = [
            mesh(""),
            workload("shop", "orders", "{}"),
            workload("shop", "new", spec),
        ];
        assert_eq!(
            lacks("ben", &plain, &added),
            ["Workload shop/new: security"],
            "by a new document neither: {spec}"
        );
    }
    let attested = [
        mesh(""),
        workload("shop", "orders", "{ attest: [ { token: {} } ] }"),
    ];
    assert_eq!(
        lacks("ben", &attested, &plain),
        ["Workload shop/orders: security"],
        "nor does it take one away"
    );
}

#[test]
fn attack_an_operator_has_the_control_plane_read_no_file() {
    let before = [mesh(""), credential("{ path: /run/smtp }")];
    let read = |path: &str| {
        [
            mesh(""),
            credential(&format!("{{ path: {path}, via: control }}")),
        ]
    };
    for (before, after) in [
        (&before[..1], &read("/etc/fender/bank")[..]),
        (&before[..], &read("/etc/fender/bank")[..]),
        (&read("/etc/fender/shop")[..], &read("/etc/fender/bank")[..]),
    ] {
        assert_eq!(
            lacks("ben", before, after),
            ["Credential shop/smtp: security"]
        );
    }
    assert_eq!(lacks("ben", &read("/etc/fender/shop"), &before), [""; 0]);
}

#[test]
fn attack_nobody_gives_themselves_a_role() {
    let before = [mesh("")];
    let raised = [mesh("").replace("role: operator, namespaces: [ shop ]", "role: security")];
    let wider = [mesh("").replace("[ shop ]", "[ shop, bank ]")];
    for after in [&raised, &wider] {
        for who in ["ben", "cem", "eve", "first"] {
            assert_eq!(lacks(who, &before, after), ["Mesh mesh: security"], "{who}");
        }
        assert_eq!(lacks("ada", &before, after), [""; 0]);
    }
}

#[test]
fn attack_a_policy_for_every_namespace_takes_security_however_the_root_is_called() {
    let named = "  rootNamespace: shop\n";
    let before = [mesh(named), workload("shop", "orders", "{}")];
    let after = [
        mesh(named),
        workload("shop", "orders", "{}"),
        policy("shop", "ALLOW"),
    ];
    assert_eq!(
        lacks("ben", &before, &after),
        ["AuthorizationPolicy shop/all: security"]
    );
}

#[test]
fn until_a_document_names_administrators_the_first_one_is_it() {
    let text =
        format!("{HEAD}Mesh\nmetadata: {{ name: mesh }}\nspec: {{ trustDomain: acme.test }}\n");
    let silent = documents(&[text]).mesh.unwrap();
    assert!(Rights::of(&silent, FIRST).security());
    assert_eq!(Rights::of(&silent, "ada").highest(), None);
    assert_eq!(security(&silent), [FIRST]);

    let named = documents(&[mesh("")]).mesh.unwrap();
    assert_eq!(
        Rights::of(&named, FIRST).highest(),
        None,
        "who is not named is nobody"
    );
    assert_eq!(security(&named), ["ada"]);
    assert!(is_named(&named, "cem") && !is_named(&named, FIRST));
}

#[test]
fn a_role_holds_where_it_was_given_and_the_lower_ones_with_it() {
    let mesh = documents(&[mesh("")]).mesh.unwrap();
    let ben = Rights::of(&mesh, "ben");
    assert!(ben.hold(Role::Operator, "shop") && ben.hold(Role::Viewer, "shop"));
    assert!(!ben.hold(Role::Viewer, "bank") && !ben.hold(Role::Security, "shop"));
    assert!(!ben.security() && ben.hold_somewhere(Role::Operator));
    let cem = Rights::of(&mesh, "cem");
    assert!(cem.hold(Role::Viewer, "bank") && !cem.hold_somewhere(Role::Operator));
}

#[test]
fn a_workload_whose_document_or_attestors_are_gone_is_orphaned() {
    let token = "{ attest: [ { token: {} } ] }";
    let before = documents(&[
        mesh(""),
        workload("shop", "gone", token),
        workload("shop", "locked", token),
        workload("shop", "never", "{}"),
        workload("shop", "stays", token),
    ]);
    let after = documents(&[
        mesh(""),
        workload("shop", "locked", "{}"),
        workload("shop", "never", "{ drain: 5s }"),
        workload("shop", "stays", "{ attest: [ { token: {} } ], drain: 5s }"),
        workload("shop", "new", "{}"),
    ]);
    let changes = Documents::diff(&before, &after);
    let told: Vec<_> = orphaned(&before, &after, &changes)
        .into_iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(told, ["shop/gone", "shop/locked"]);
}

#[test]
fn attack_an_operator_weakens_no_tls_that_the_security_team_set() {
    let with = |tls: &str, port: &str| {
        let spec = format!(
            "{{ tls: {tls}, inbound: [ {{ listen: \"0.0.0.0:8443\", app: \"127.0.0.1:80\", protocol: http, tls: {port} }} ] }}"
        );
        let profiles = "  tlsProfiles: [ { name: old, minimum: \"1.2\" } ]\n";
        [mesh(profiles), workload("shop", "orders", &spec)]
    };
    let plain = with("{}", "{}");
    for changed in [
        with("{ minimum: \"1.2\" }", "{}"),
        with("{}", "{ groups: [ P-256 ] }"),
        with("{ profile: old, minimum: \"1.2\" }", "{}"),
    ] {
        assert_eq!(
            lacks("ben", &plain, &changed),
            ["Workload shop/orders: security"]
        );
        assert_eq!(lacks("ada", &plain, &changed), [""; 0]);
        // What is as it was is nobody's change.
        assert_eq!(lacks("ben", &changed, &with("{}", "{}")), [""; 0]);
    }
    let named = with("{ profile: old }", "{ profile: old }");
    assert_eq!(lacks("ben", &plain, &named), [""; 0]);
}

#[test]
fn attack_an_operator_raises_no_limit_that_the_security_team_set() {
    let with = |limits: &str, port: &str| {
        let spec = format!(
            "{{ limits: {limits}, inbound: [ {{ listen: \"0.0.0.0:8443\", app: \"127.0.0.1:80\", protocol: http, limits: {port} }} ] }}"
        );
        let set = "  limits: { headBytes: 16KiB, request: 1h }\n  namespaces: [ { name: shop, limits: { request: 5m } } ]\n";
        [mesh(set), workload("shop", "orders", &spec)]
    };
    let plain = with("{}", "{}");
    for changed in [
        with("{ headBytes: 32KiB }", "{}"),
        with("{}", "{ headBytes: 17KiB }"),
        with("{ request: 30m }", "{}"),
        with("{ request: 1m }", "{ request: 6m }"),
    ] {
        assert_eq!(
            lacks("ben", &plain, &changed),
            ["Workload shop/orders: security"]
        );
        assert_eq!(lacks("ada", &plain, &changed), [""; 0]);
        // What is as it was is nobody's change.
        assert_eq!(lacks("ben", &changed, &with("{}", "{}")), [""; 0]);
    }
    // Less is theirs to choose, and what nobody chose.
    let less = with(
        "{ headBytes: 8KiB, idle: 1h }",
        "{ request: 4m, streams: 256 }",
    );
    assert_eq!(lacks("ben", &plain, &less), [""; 0]);
}

fn peer_authentication(namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{ namespace: {namespace}, name: mtls }}\n\
         spec: {spec}\n"
    )
}

#[test]
fn attack_an_operator_lets_nobody_in_without_a_proof_by_peer_authentication() {
    let port =
        "{ inbound: [ { listen: \"0.0.0.0:8443\", app: \"127.0.0.1:80\", protocol: http } ] }";
    let with = |documents: &[String]| {
        let plain = [mesh(""), workload("shop", "orders", port)];
        [&plain[..], documents].concat()
    };
    let closed = with(&[]);
    for spec in [
        "{ mtls: { mode: PERMISSIVE } }",
        "{ mtls: { mode: DISABLE } }",
        "{ selector: { matchLabels: { app: orders } }, portLevelMtls: { 8443: { mode: PERMISSIVE } } }",
    ] {
        let open = with(&[peer_authentication("shop", spec)]);
        let lacking = ["PeerAuthentication shop/mtls: security"];
        assert_eq!(lacks("ben", &closed, &open), lacking, "{spec}");
        assert_eq!(lacks("ada", &closed, &open), [""; 0]);
        assert_eq!(lacks("ben", &open, &closed), [""; 0], "closing is theirs");
    }
    let strict = with(&[peer_authentication("shop", "{ mtls: { mode: STRICT } }")]);
    assert_eq!(lacks("ben", &closed, &strict), [""; 0]);
    let root = |mode: &str| {
        peer_authentication("fender-system", &format!("{{ mtls: {{ mode: {mode} }} }}"))
    };
    let everywhere = with(&[root("STRICT")]);
    assert_eq!(
        lacks("ben", &closed, &everywhere),
        ["PeerAuthentication fender-system/mtls: security"]
    );
    // Taking away what keeps a namespace closed in an open mesh opens it.
    let kept = with(&[
        root("PERMISSIVE"),
        peer_authentication("shop", "{ mtls: { mode: STRICT } }"),
    ]);
    assert_eq!(
        lacks("ben", &kept, &with(&[root("PERMISSIVE")])),
        ["PeerAuthentication shop/mtls: security"]
    );
    // So does a label by which an open one selects.
    let selecting = peer_authentication(
        "shop",
        "{ selector: { matchLabels: { app: cart } }, mtls: { mode: PERMISSIVE } }",
    );
    let before = with(std::slice::from_ref(&selecting));
    let mut after = before.clone();
    after[1] = after[1].replace("app: orders", "app: cart");
    assert_eq!(
        lacks("ben", &before, &after),
        ["Workload shop/orders: security"]
    );
}
