//! Attacks on the adapter, each by its name: in the handshake, in the head, in the path, in fields.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fender_policy::Rule;
use fender_proxy::Limits;
use fender_runtime::drain::Drain;
use http::Request;
use http_body_util::{BodyExt, Full};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::harness::*;

/// An attacker believes any server.
#[derive(Debug)]
pub(crate) struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// A client with this certificate, or none.
pub(crate) async fn anybody(world: &World, leaf: Option<Leaf>) -> io::Result<TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible));
    let config = match leaf {
        Some(Leaf { chain, key }) => builder.with_client_auth_cert(chain, key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    let stream = TcpStream::connect(world.address()).await?;
    let name = ServerName::try_from("orders.test").unwrap();
    soon(TlsConnector::from(Arc::new(config)).connect(name, stream)).await
}

/// The client gets a TLS alert instead of an answer, and we know why.
async fn is_refused(leaf: impl FnOnce(&World) -> Option<Leaf>, reason: &str) {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    let leaf = leaf(&world);
    let attempt = async {
        let mut stream = anybody(&world, leaf).await?;
        stream.write_all(last_get("/stolen").as_bytes()).await?;
        let mut answer = Vec::new();
        // In TLS 1.3 a client only hears of its refusal when it reads.
        stream.read_to_end(&mut answer).await
    };
    let error = soon(attempt).await.unwrap_err();
    assert!(
        error.to_string().contains("received fatal alert"),
        "{error}"
    );
    // An ambassador may be refusing somebody for the same reason in another test.
    let line = logs_line_of("\"direction\":\"inbound\"", reason).await;
    assert!(
        line.contains("\"outcome\":\"peer\"") && line.contains("\"source\""),
        "{line}"
    );
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    is_refused(|_| None, "peer presented no certificate").await;
}

#[tokio::test]
async fn a_self_signed_certificate_is_refused() {
    let leaf = self_signed(params(&[WEB], NOW - HOUR, NOW + HOUR));
    is_refused(|_| Some(leaf), "no root of the peer's trust domain vouches").await;
}

#[tokio::test]
async fn a_certificate_of_another_trust_domain_is_refused() {
    let foreign = ["spiffe://elsewhere.test/ns/shop/sa/web"];
    let leaf = Authority::new().sign(params(&foreign, NOW - HOUR, NOW + HOUR));
    is_refused(|_| Some(leaf), "elsewhere.test").await;
}

#[tokio::test]
async fn another_authority_that_claims_our_trust_domain_is_refused() {
    let leaf = Authority::new().sign(params(&[WEB], NOW - HOUR, NOW + HOUR));
    is_refused(|_| Some(leaf), "no root of the peer's trust domain vouches").await;
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let expired = |world: &World| Some(world.authority.sign(params(&[WEB], NOW - HOUR, NOW - 1)));
    is_refused(expired, "expired").await;
}

#[tokio::test]
async fn a_certificate_with_two_uri_sans_is_refused() {
    let two = |world: &World| {
        let both = [WEB, "spiffe://mesh.test/ns/shop/sa/admin"];
        Some(world.authority.sign(params(&both, NOW - HOUR, NOW + HOUR)))
    };
    is_refused(two, "has 2 URI names").await;
}

#[tokio::test]
async fn plain_http_on_a_tls_port_is_refused() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    let mut stream = TcpStream::connect(world.address()).await.unwrap();
    stream
        .write_all(last_get("/plain").as_bytes())
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = soon(stream.read_to_end(&mut answer)).await;
    assert!(!answer.starts_with(b"HTTP/"), "{answer:?}");
}

#[tokio::test]
async fn a_client_that_never_finishes_its_handshake_is_cut() {
    let tasks = Drain::new();
    let limits = Limits {
        establish: Duration::from_millis(50),
        ..Limits::default()
    };
    let port = inbound(
        echo_app(&tasks).await,
        fender_config::snapshot::Protocol::Http,
    );
    let world = World::start(vec![port], vec![], limits);
    let mut stream = TcpStream::connect(world.address()).await.unwrap();
    let mut answer = Vec::new();
    soon(stream.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.is_empty());
}

#[tokio::test]
async fn silent_sockets_in_every_slot_do_not_keep_out_a_peer_that_speaks() {
    let tasks = Drain::new();
    let limits = Limits {
        connections: 4,
        establish: Duration::from_secs(3600),
        handshake: Duration::from_millis(100),
        ..Limits::default()
    };
    let port = inbound(
        echo_app(&tasks).await,
        fender_config::snapshot::Protocol::Http,
    );
    let world = World::start(vec![port], vec![], limits);
    let mut silent = Vec::new();
    for _ in 0..16 {
        silent.push(TcpStream::connect(world.address()).await.unwrap());
    }
    let answer = world.raw(&last_get("/heard")).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    drop(silent);
}

#[tokio::test]
async fn a_spoofed_identity_header_is_stripped_in_every_spelling() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    let spellings = [
        "x-forwarded-client-cert",
        "X-Forwarded-Client-Cert",
        "x_forwarded_client_cert",
        "X_Forwarded-Client_CERT",
        "X-Forwarded-For",
        "x_forwarded_for",
        "Forwarded",
        "X-Real-IP",
        "X-Fender-Decision",
    ];
    for spelling in spellings {
        let request = format!(
            "GET /spoof HTTP/1.1\r\nhost: o\r\nconnection: close\r\n{spelling}: forged-value\r\n\r\n"
        );
        let seen = world.raw(&request).await;
        assert!(
            seen.starts_with("HTTP/1.1 200") && !seen.contains("forged-value"),
            "{seen}"
        );
        assert_eq!(seen.matches("x-forwarded-client-cert").count(), 1, "{seen}");
    }
}

#[tokio::test]
async fn a_proxy_field_does_not_become_the_apps_own_proxy() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    let request = "GET / HTTP/1.1\r\nhost: o\r\nconnection: close\r\nProxy: http://evil\r\n\r\n";
    let seen = world.raw(request).await;
    assert!(
        seen.starts_with("HTTP/1.1 200") && !seen.contains("evil"),
        "{seen}"
    );
}

#[tokio::test]
async fn a_spoofed_identity_trailer_is_not_believed() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    let request = "POST /t HTTP/1.1\r\nhost: o\r\nconnection: close\r\n\
                   trailer: x-forwarded-client-cert\r\ntransfer-encoding: chunked\r\n\r\n\
                   0\r\nx-forwarded-client-cert: forged-value\r\n\r\n";
    let answer = world.raw(request).await;
    assert!(
        answer.starts_with("HTTP/1.1 400") && answer.contains("connection: close"),
        "{answer}"
    );
    assert!(!answer.contains("forged-value"), "{answer}");
}

#[tokio::test]
async fn a_connection_field_cannot_drop_the_identity_header() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    for named in [
        "x-forwarded-client-cert",
        "X_Forwarded_Client_Cert",
        "host",
        "authorization",
    ] {
        let request = format!("GET / HTTP/1.1\r\nhost: o\r\nconnection: {named}\r\n\r\n");
        assert!(
            world.raw(&request).await.starts_with("HTTP/1.1 400"),
            "{named}"
        );
    }
}

#[tokio::test]
async fn every_spelling_of_a_forbidden_path_is_decided_and_forwarded_alike() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    world.change(|snapshot| {
        snapshot.policies = policies(vec![
            allow(vec![Rule::default()]),
            deny("shop/d", &["/admin", "/admin/*"]),
        ]);
    });
    let forbidden = [
        "/admin",
        "/admin/x",
        "/./admin",
        "/public/../admin",
        "/%61dmin",
        "/public/%2e%2e/admin",
        "/public/%2E./admin/x",
        "/admin/.",
        "/admin?x=/public",
    ];
    for path in forbidden {
        assert!(
            world.raw(&last_get(path)).await.starts_with("HTTP/1.1 403"),
            "{path}"
        );
    }
    let malformed = [
        "/public/..;/admin",
        "/%2561dmin",
        "/public%2f..%2fadmin",
        "/public%5c..%5cadmin",
        "/admin%00",
        "/admin%0d%0a",
        "/%c0%ae%c0%ae/admin",
        "/admin%zz",
    ];
    for path in malformed {
        assert!(
            world.raw(&last_get(path)).await.starts_with("HTTP/1.1 400"),
            "{path}"
        );
    }
    // What is forwarded is what was matched.
    let seen = world.raw(&last_get("/a/../%7Eb/%e2%82%ac?q=%2F..")).await;
    assert!(seen.contains("GET /~b/%E2%82%AC?q=%2F..\n"), "{seen}");
    let absolute = "GET http://Other/../c HTTP/1.1\r\nhost: other\r\nconnection: close\r\n\r\n";
    let seen = world.raw(absolute).await;
    assert!(
        seen.contains("GET /c\n") && seen.contains("host: other\n"),
        "{seen}"
    );
}

#[tokio::test]
async fn http2_paths_are_decided_alike() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    world.change(|snapshot| {
        snapshot.policies = policies(vec![
            allow(vec![Rule::default()]),
            deny("shop/d", &["/admin*"]),
        ]);
    });
    let mut client = world.web2().await;
    let cases = [
        ("/public/%2e%2e/admin", 403),
        ("/%61dmin", 403),
        ("/a%2fb", 400),
        ("/x/..;/admin", 400),
        ("/fine/./x", 200),
    ];
    for (path, status) in cases {
        let uri = format!("https://orders{path}");
        let request = Request::get(uri).body(Full::<Bytes>::default()).unwrap();
        let response = soon(client.send_request(request)).await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{path}");
        soon(response.into_body().collect()).await.unwrap();
    }
}

#[tokio::test]
async fn http2_cannot_name_two_hosts_or_disguise_a_length() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    let mut client = world.web2().await;
    for (name, value) in [
        ("host", "other"),
        ("content_length", "5"),
        ("transfer_encoding", "chunked"),
    ] {
        let request = Request::get("https://orders/")
            .header(name, value)
            .body(Full::<Bytes>::default())
            .unwrap();
        let response = soon(client.send_request(request)).await.unwrap();
        assert_eq!(response.status().as_u16(), 400, "{name}");
    }
    let request = Request::builder()
        .method("get")
        .uri("https://orders/")
        .body(Full::default())
        .unwrap();
    assert_eq!(
        soon(client.send_request(request))
            .await
            .unwrap()
            .status()
            .as_u16(),
        400
    );
}

#[tokio::test]
async fn smuggling_by_framing_is_answered_and_the_connection_closed() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: o\r\n\r\n";
    let heads = [
        ("content-length: 4\r\ntransfer-encoding: chunked\r\n", 400),
        ("content-length: 4\r\ncontent-length: 5\r\n", 400),
        ("content-length: 4\r\ncontent-length: 4\r\n", 400),
        ("content-length: +4\r\n", 400),
        (
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
            400,
        ),
        ("transfer-encoding: identity\r\n", 400),
        ("transfer-encoding: xchunked\r\n", 400),
        ("transfer-encoding: gzip, chunked\r\n", 501),
        ("transfer_encoding: chunked\r\n", 400),
        ("content-length : 4\r\n", 400),
        ("x: a\r\n folded\r\n", 400),
        ("x: a\nsmuggled: b\r\n", 400),
        ("host: second\r\n", 400),
    ];
    for (fields, status) in heads {
        let request = format!("POST / HTTP/1.1\r\nhost: o\r\n{fields}\r\n0\r\n\r\n{smuggled}");
        let answer = world.raw(&request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{fields:?}: {answer}"
        );
        assert_eq!(
            answer.matches("HTTP/1.1").count(),
            1,
            "{fields:?}: {answer}"
        );
        assert!(answer.contains("connection: close\r\n"), "{answer}");
    }
    assert!(logged("/smuggled").is_empty());
    let old = "POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    assert!(world.raw(old).await.starts_with("HTTP/1.1 400"));
    let lower = "get / HTTP/1.1\r\nhost: o\r\n\r\n";
    assert!(world.raw(lower).await.starts_with("HTTP/1.1 400"));
    let connect = "CONNECT o:1 HTTP/1.1\r\nhost: o:1\r\n\r\n";
    assert!(world.raw(connect).await.starts_with("HTTP/1.1 501"));
}

#[tokio::test]
async fn a_broken_chunk_ends_the_connection_and_nothing_after_it_is_a_request() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    let request = "POST /broken HTTP/1.1\r\nhost: o\r\ntransfer-encoding: chunked\r\n\r\n\
                   zz\r\nGET /inside HTTP/1.1\r\nhost: o\r\n\r\n";
    let mut stream = world.web().await;
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = soon(stream.read_to_end(&mut answer)).await;
    let answer = String::from_utf8(answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 400") && answer.matches("HTTP/1.1").count() == 1,
        "{answer}"
    );
    assert!(logged("/inside").is_empty());
}

#[tokio::test]
async fn a_flood_of_header_bytes_or_fields_is_431() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    let large = format!(
        "GET / HTTP/1.1\r\nhost: o\r\nx: {}\r\n\r\n",
        "a".repeat(40 * 1024)
    );
    assert!(world.raw(&large).await.starts_with("HTTP/1.1 431"));
    let many = format!(
        "GET / HTTP/1.1\r\nhost: o\r\n{}\r\n",
        "x: y\r\n".repeat(200)
    );
    assert!(world.raw(&many).await.starts_with("HTTP/1.1 431"));
    let long = get(&format!("/{}", "a".repeat(9 * 1024)));
    assert!(world.raw(&long).await.starts_with("HTTP/1.1 414"));
}

#[tokio::test]
async fn a_slow_head_is_closed_by_the_deadline() {
    let tasks = Drain::new();
    let limits = Limits {
        head_time: Duration::from_millis(50),
        ..Limits::default()
    };
    let port = inbound(
        echo_app(&tasks).await,
        fender_config::snapshot::Protocol::Http,
    );
    let world = World::start(vec![port], vec![], limits);
    // Never ends its head.
    assert!(
        world
            .raw("GET / HTTP/1.1\r\nhost: o\r\nx: ")
            .await
            .starts_with("HTTP/1.1 408")
    );
    // Never begins one.
    assert_eq!(world.raw("").await, "");
}

#[tokio::test]
async fn an_upgrade_to_h2c_carries_nothing_past_the_gate() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    let request = "GET / HTTP/1.1\r\nhost: o\r\nconnection: upgrade, http2-settings\r\n\
                   upgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n";
    let mut stream = world.web().await;
    stream.write_all(request.as_bytes()).await.unwrap();
    let (head, seen) = response(&mut stream).await;
    assert!(!head.contains("101"), "{head}");
    assert!(
        !seen.contains("upgrade") && !seen.contains("http2-settings"),
        "{seen}"
    );
}
