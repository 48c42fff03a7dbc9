//! TLS from the control plane (M1, M2): what the documents say of it is in force at the next connection.

use fender_tests::mesh::TRUST_DOMAIN;
use fender_tests::pki::{Authority, Template};
use fender_tests::process::{PATIENCE, free_address, output};
use fender_tests::{Mesh, Nginx, Process, openssl, wait_until};

use crate::control_loss::one_service;

/// The documents of [`one_service`] with more said by the Mesh.
fn with_mesh(documents: &str, more: &str) -> String {
    documents.replacen("spec:\n", &format!("spec:\n{more}"), 1)
}

#[tokio::test]
async fn a_profile_of_the_mesh_is_in_force_at_the_next_connection_and_no_open_one_notices() {
    let (listen, directory) = (free_address(), tempfile::tempdir().unwrap());
    let nginx = Nginx::start(directory.path());
    let documents = one_service("1h", listen, nginx.address);
    let mesh = Mesh::start(&documents);
    let mut sidecar = mesh.sidecar("shop/orders", &[]);
    let person = mesh.person("tester");
    let speaks = |options: &[&str]| {
        let options = [options, &["-brief"]].concat();
        openssl::get(listen, &person, &options)
    };

    // M2: TLS 1.3 is what there is, with any group we know.
    let refused = speaks(&["-tls1_2"]);
    assert!(!refused.answered(200), "{refused:?}");
    assert!(
        refused.told.contains("alert protocol version"),
        "{refused:?}"
    );
    assert!(speaks(&["-tls1_3", "-groups", "P-384"]).answered(200));
    let mut open = mesh.client(listen).open().await.unwrap();
    assert_eq!(open.get("/").await.unwrap().status, 200);

    // The security team makes a profile and gives it to a namespace.
    let old = "  tlsProfiles: [ { name: old, minimum: \"1.2\", groups: [ X25519 ], cipherSuites: \
        [ TLS_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 ] } ]\n  \
        namespaces: [ { name: shop, tls: { profile: old } } ]\n";
    let (code, out, err) = mesh.apply(&with_mesh(&documents, old));
    assert_eq!(code, 0, "{out}{err}");
    wait_until("TLS 1.2 is spoken", PATIENCE, || {
        speaks(&["-tls1_2"]).answered(200)
    });
    let with_12 = speaks(&["-tls1_2"]);
    assert!(
        with_12.told.contains("ECDHE-ECDSA-AES128-GCM-SHA256"),
        "{with_12:?}"
    );
    let with_13 = speaks(&["-tls1_3"]);
    assert!(
        with_13.told.contains("TLS_AES_128_GCM_SHA256"),
        "{with_13:?}"
    );
    assert!(
        with_13.told.contains("Server Temp Key: X25519"),
        "{with_13:?}"
    );
    assert!(!speaks(&["-tls1_3", "-groups", "P-384"]).answered(200));
    assert!(!speaks(&["-tls1_3", "-ciphersuites", "TLS_AES_256_GCM_SHA384"]).answered(200));

    // And takes it away again.
    let (code, out, err) = mesh.apply(&documents);
    assert_eq!(code, 0, "{out}{err}");
    wait_until("TLS 1.2 is refused", PATIENCE, || {
        !speaks(&["-tls1_2"]).answered(200)
    });
    assert!(speaks(&["-tls1_3", "-groups", "P-384"]).answered(200));

    // It was one process, and the connection made at first is still the same.
    sidecar.assert_running();
    assert_eq!(open.get("/").await.unwrap().status, 200);
}

/// The status and the body that curl has for a URL, with these options besides; none if there was no answer.
fn curl(url: &str, options: &[&str]) -> Option<(u16, String)> {
    let own = ["-s", "--max-time", "10", "-w", "\n%{http_code}"];
    let (code, out, _) = output(
        fender_tests::installed("curl"),
        &[&own, options, &[url]].concat(),
    );
    let (body, status) = out.rsplit_once('\n')?;
    (code == 0).then(|| (status.parse().unwrap(), body.to_owned()))
}

#[test]
fn a_mesh_moves_to_strict_step_by_step_by_peer_authentication() {
    let (listen, directory) = (free_address(), tempfile::tempdir().unwrap());
    let nginx = Nginx::start(directory.path());
    // Everybody may, so that only PeerAuthentication keeps anybody out, but for one path.
    let documents = one_service("1h", listen, nginx.address).replace(
        "    - from: [ { source: { namespaces: [ people ] } } ]\n",
        "    - to: [ { operation: { paths: [ /open ] } } ]\n    - from: [ { source: { namespaces: [ people ] } } ]\n",
    );
    let mesh = Mesh::start(&documents);
    let mut sidecar = mesh.sidecar("shop/orders", &[]);
    let person = mesh.person("tester");
    let peer_authentication = |mode: &str| {
        format!(
            "{documents}---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
             metadata: {{ namespace: shop, name: default }}\nspec: {{ mtls: {{ mode: {mode} }} }}\n"
        )
    };
    let apply = |documents: &str| {
        let (code, out, err) = mesh.apply(documents);
        assert_eq!(code, 0, "{out}{err}");
    };
    let url = |path: &str| format!("http://{listen}{path}");
    assert_eq!(curl(&url("/open"), &[]), None, "STRICT is the default (M1)");

    apply(&peer_authentication("PERMISSIVE"));
    wait_until("plaintext is taken", PATIENCE, || {
        curl(&url("/open"), &[]).is_some_and(|(status, _)| status == 200)
    });
    assert!(
        openssl::get(listen, &person, &[]).answered(200),
        "TLS is taken too"
    );
    let claim = "x-forwarded-client-cert: URI=spiffe://test.internal/ns/people/sa/tester";
    let (status, _) = curl(&url("/"), &["-H", claim]).unwrap();
    assert_eq!(status, 403, "who comes in the clear is nobody");
    let (_, body) = curl(&url("/open"), &["-H", claim]).unwrap();
    assert!(!body.contains("sa/tester"), "{body}");
    // A certificate of another authority is refused, and is not taken for none.
    let stranger = mesh.path("stranger");
    let authority = Authority::new(TRUST_DOMAIN);
    let svid = Template::svid("spiffe://test.internal/ns/people/sa/tester");
    authority.issue(&svid).write(&stranger);
    std::fs::copy(person.join("bundle.pem"), stranger.join("bundle.pem")).unwrap();
    let refused = openssl::get(listen, &stranger, &[]);
    assert!(!refused.said.contains("HTTP/1.1"), "{refused:?}");
    assert!(
        openssl::get_as(listen, &person, &[]).answered(403),
        "none is nobody"
    );

    let status = mesh.fender_ok(&[
        "status",
        "--sidecar",
        &mesh.admin_socket("shop/orders").to_string_lossy(),
        "--output",
        "json",
    ]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let counted = status["counts"]["plaintext"].as_u64();
    assert!(counted >= Some(3), "{status}");

    apply(&peer_authentication("DISABLE"));
    wait_until("TLS is refused", PATIENCE, || {
        !openssl::get(listen, &person, &[]).answered(200)
    });
    assert!(curl(&url("/open"), &[]).is_some());

    apply(&peer_authentication("STRICT"));
    wait_until("plaintext is refused", PATIENCE, || {
        curl(&url("/open"), &[]).is_none()
    });
    assert!(openssl::get(listen, &person, &[]).answered(200));
    sidecar.assert_running();
}

#[test]
fn attack_no_variable_of_the_environment_makes_a_process_write_down_the_secrets_of_its_sessions() {
    let (listen, directory) = (free_address(), tempfile::tempdir().unwrap());
    let nginx = Nginx::start(directory.path());
    let mesh = Mesh::start(&one_service("1h", listen, nginx.address));
    let (person, token) = (mesh.person("tester"), mesh.token("shop/orders", "5m"));
    let key_log = mesh.path("keys.log");
    let mut command = mesh.sidecar_command("shop/orders", Some(&token));
    command.env("SSLKEYLOGFILE", &key_log);
    let log = mesh.path("logs/orders.log");
    let mut sidecar = Process::start("shop/orders", &mut command, &log);
    mesh.wait_ready("shop/orders", &mut sidecar);
    // It has been client and server by now: to the control plane, and here. Whoever means to keep keys can.
    let path = mesh.path("openssl-keys.log");
    let options = ["-keylogfile", &*path.to_string_lossy()];
    assert!(openssl::get(listen, &person, &options).answered(200));
    assert!(
        std::fs::read_to_string(path)
            .unwrap()
            .contains("SERVER_TRAFFIC_SECRET")
    );
    assert!(!key_log.exists());
}
