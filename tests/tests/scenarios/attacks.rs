//! Who does not hold a certificate of the mesh does not get past TLS (I1). Each test is an attack.

use fender_tests::pki::{Authority, Issued, Template, self_signed};
use fender_tests::process::{PATIENCE, output};
use fender_tests::{Client, installed};

use crate::standalone::{CALLER, Standalone};

/// The attack must fail in TLS: in the handshake, or with the alert that follows it in TLS 1.3.
async fn assert_refused_in_tls(sidecar: &Standalone, identity: Option<Issued>, reason: &str) {
    let client = Client::new(
        &[sidecar.authority.root()],
        identity.map(|issued| issued.identity()),
        sidecar.address,
    );
    for protocols in [&[b"http/1.1".as_slice()][..], &[b"h2".as_slice()][..]] {
        match client.with_alpn(protocols).get("/public").await {
            Ok(answer) => panic!("the attacker was answered {}", answer.status),
            Err(error) => assert!(
                format!("{error:#}").contains("alert"),
                "refused by a TLS alert, not {error:#}"
            ),
        }
    }
    assert_logged(sidecar, reason).await;
    // The door still opens for a friend.
    assert_eq!(
        sidecar.client(CALLER).get("/public").await.unwrap().status,
        200
    );
}

/// The line is written when the connection is over, which the refused client does not see.
async fn assert_logged(sidecar: &Standalone, reason: &str) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !sidecar.process.log().contains(reason) {
        let log = || sidecar.process.log();
        assert!(
            std::time::Instant::now() < deadline,
            "the log says why (`{reason}`):\n{}",
            log()
        );
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn no_certificate() {
    assert_refused_in_tls(&Standalone::start(), None, "certificate").await;
}

#[tokio::test]
async fn self_signed_certificate() {
    assert_refused_in_tls(
        &Standalone::start(),
        Some(self_signed(&Template::svid(CALLER))),
        "trust",
    )
    .await;
}

#[tokio::test]
async fn certificate_of_another_trust_domain() {
    let theirs = Authority::new("evil.example")
        .issue(&Template::svid("spiffe://evil.example/ns/shop/sa/caller"));
    assert_refused_in_tls(&Standalone::start(), Some(theirs), "evil.example").await;
}

#[tokio::test]
async fn certificate_that_claims_our_trust_domain_under_a_foreign_root() {
    let theirs = Authority::new("evil.example").issue(&Template::svid(CALLER));
    assert_refused_in_tls(&Standalone::start(), Some(theirs), "trust").await;
}

#[tokio::test]
async fn expired_certificate() {
    let sidecar = Standalone::start();
    let expired = sidecar.authority.issue(&Template {
        begins: -7200,
        ends: -60,
        ..Template::svid(CALLER)
    });
    assert_refused_in_tls(&sidecar, Some(expired), "expired").await;
}

#[tokio::test]
async fn certificate_of_tomorrow() {
    let sidecar = Standalone::start();
    let early = sidecar.authority.issue(&Template {
        begins: 3600,
        ends: 7200,
        ..Template::svid(CALLER)
    });
    assert_refused_in_tls(&sidecar, Some(early), "becomes valid in").await;
}

#[tokio::test]
async fn certificate_with_two_uri_names() {
    let sidecar = Standalone::start();
    let mut template = Template::svid(CALLER);
    template
        .uris
        .push("spiffe://example.org/ns/shop/sa/admin".to_owned());
    let two = sidecar.authority.issue(&template);
    assert_refused_in_tls(&sidecar, Some(two), "URI").await;
}

#[tokio::test]
async fn certificate_without_a_uri_name() {
    let sidecar = Standalone::start();
    let none = sidecar.authority.issue(&Template {
        uris: vec![],
        ..Template::svid(CALLER)
    });
    assert_refused_in_tls(&sidecar, Some(none), "URI").await;
}

#[tokio::test]
async fn certificate_authority_posing_as_a_workload() {
    let sidecar = Standalone::start();
    let ca = sidecar.authority.issue(&Template {
        is_ca: true,
        ..Template::svid(CALLER)
    });
    assert_refused_in_tls(&sidecar, Some(ca), "CA").await;
}

#[test]
fn a_client_without_a_certificate_is_told_so_whatever_it_has_sent_meanwhile() {
    let sidecar = Standalone::start();
    let bundle = sidecar
        .authority
        .write_bundle(&sidecar.directory.path().join("curl"));
    let url = format!("https://localhost:{}/public", sidecar.address.port());
    for version in ["--http1.1", "--http2"] {
        let arguments = [
            "--silent",
            "--show-error",
            version,
            "--cacert",
            bundle.to_str().unwrap(),
            &url,
        ];
        let (code, _, err) = output(installed("curl"), &arguments);
        assert_eq!(code, 56, "{version}: {err}");
        assert!(err.contains("certificate required"), "{version}: {err}");
    }
}
