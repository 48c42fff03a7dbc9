//! What an authority is answered, and what nobody else is (RFC 8555, RFC 8737).

use std::net::SocketAddr;
use std::sync::Arc;

use fender_config::snapshot::{
    Acme, AcmeChallenge, CertificateSource, ClientCertificate, Mtls, PortCertificate, Protocol,
};
use fender_identity::tls::{ACME_TLS, ChallengeCertificate};
use fender_proxy::Limits;
use fender_runtime::drain::Drain;
use fender_runtime::listen::ListenAddress;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::attacks::Gullible;
use crate::harness::{World, echo_app, inbound, soon};

const SHOP: &str = "shop.example.com";
const HTTP: &[u8] = b"http/1.1";

async fn world(challenge: AcmeChallenge) -> World {
    let tasks = Drain::new();
    let mut port = inbound(echo_app(&tasks).await, Protocol::Http);
    port.mtls = Mtls::Strict(ClientCertificate::Accept);
    port.certificates = vec![PortCertificate {
        source: CertificateSource::Acme(Acme {
            directory: "https://ca.example.net/directory".parse().unwrap(),
            challenge,
            contact: None,
            roots: None,
            external_account: None,
        }),
        names: vec![SHOP.to_owned()],
    }];
    World::start(vec![port], vec![], Limits::default())
}

/// What a client is shown that asks for this name by these protocols, and what was agreed; or why it is refused.
async fn ask(
    world: &World,
    name: &str,
    protocols: &[&[u8]],
) -> Result<(CertificateDer<'static>, Option<Vec<u8>>, String), String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible))
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let stream = TcpStream::connect(world.address()).await.unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let mut stream = soon(connecting).await.map_err(|error| error.to_string())?;
    let tls = stream.get_ref().1;
    let shown = tls.peer_certificates().unwrap()[0].clone();
    let agreed = tls.alpn_protocol().map(<[u8]>::to_vec);
    let request = b"GET / HTTP/1.1\r\nhost: shop.example.com\r\nconnection: close\r\n\r\n";
    // Whoever is dismissed may be so before this is written.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let _ = soon(stream.read_to_end(&mut answer)).await;
    Ok((shown, agreed, String::from_utf8(answer).unwrap()))
}

#[tokio::test]
async fn attack_a_probe_for_a_name_that_nobody_asks_for_is_refused() {
    let world = world(AcmeChallenge::TlsAlpn).await;
    let refused = ask(&world, SHOP, &[ACME_TLS]).await.unwrap_err();
    assert!(refused.contains("NoApplicationProtocol"), "{refused}");

    let answer = ChallengeCertificate::new(SHOP, &[7; 32]).unwrap();
    world.challenges.show(&answer);
    let (shown, agreed, said) = ask(&world, SHOP, &[ACME_TLS]).await.unwrap();
    assert_eq!(shown, answer.certified_key().cert[0]);
    assert_eq!(agreed.as_deref(), Some(ACME_TLS));
    assert_eq!(said, "", "the connection ends with the handshake");

    // Another name, no name, and anything beside it.
    for name in ["api.example.com", "www.shop.example.com", "192.0.2.1"] {
        assert!(ask(&world, name, &[ACME_TLS]).await.is_err(), "{name}");
    }
    for protocols in [[ACME_TLS, HTTP], [HTTP, ACME_TLS], [ACME_TLS, b"h2"]] {
        assert!(
            ask(&world, SHOP, &protocols).await.is_err(),
            "{protocols:?}"
        );
    }
    // A name that is asked for, but not of this port.
    let other = ChallengeCertificate::new("api.example.com", &[7; 32]).unwrap();
    world.challenges.show(&other);
    assert!(ask(&world, "api.example.com", &[ACME_TLS]).await.is_err());

    // Who comes for the application meanwhile does not notice.
    let own = world.svid.borrow().chain()[0].clone();
    let (shown, agreed, said) = ask(&world, SHOP, &[HTTP]).await.unwrap();
    assert_eq!((shown, agreed.as_deref()), (own, Some(HTTP)));
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");

    world.challenges.hide(SHOP);
    let refused = ask(&world, SHOP, &[ACME_TLS]).await.unwrap_err();
    assert!(refused.contains("NoApplicationProtocol"), "{refused}");
}

#[test]
fn an_answer_of_another_length_is_no_answer() {
    assert!(ChallengeCertificate::new(SHOP, &[7; 31]).is_err());
    assert!(ChallengeCertificate::new(SHOP, &[7; 33]).is_err());
}

/// A port of its own, at an address that no other listener of the test has.
const ANSWERING: &str = "127.0.0.2:0";

async fn say(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

#[tokio::test]
async fn attack_a_port_for_challenges_gives_nothing_but_what_an_order_has_put_there() {
    let listen: SocketAddr = ANSWERING.parse().unwrap();
    let world = world(AcmeChallenge::Http { listen }).await;
    let local = world.running.local_address(&ANSWERING.parse().unwrap());
    let Some(ListenAddress::Tcp(address)) = local else {
        panic!("{local:?}")
    };
    let get = async |host: &str, path: &str| {
        say(
            address,
            &format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n"),
        )
        .await
    };
    let path = "/.well-known/acme-challenge/token-1";
    assert!(get(SHOP, path).await.starts_with("HTTP/1.1 404"));
    world.challenges.tell("token-1", "token-1.thumbprint");
    let told = get(SHOP, path).await;
    assert!(told.starts_with("HTTP/1.1 200"), "{told}");
    assert!(told.ends_with("\r\n\r\ntoken-1.thumbprint"), "{told}");
    // The authority may come by any name, and by a port.
    assert!(
        get("other.example.com:80", path)
            .await
            .starts_with("HTTP/1.1 200")
    );

    // A token of nobody's, and ways around.
    for path in [
        "/.well-known/acme-challenge/token-2",
        "/.well-known/acme-challenge/",
        "/.well-known/acme-challenge/token-1/",
        "/.well-known/acme-challenge/../acme-challenge/token-3",
        "/.well-known/acme-challenge/token-1?x=1",
        "/.well-known/acme-challenge/%74oken-1",
    ] {
        assert!(get(SHOP, path).await.starts_with("HTTP/1.1 404"), "{path}");
    }
    let posted =
        "POST /.well-known/acme-challenge/token-1 HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n";
    assert!(say(address, posted).await.starts_with("HTTP/1.1 404"));

    // Everything else goes to where TLS is, if it is for a name of ours, and nowhere otherwise.
    let sent_on = get(SHOP, "/buy?x=1").await;
    assert!(sent_on.starts_with("HTTP/1.1 308"), "{sent_on}");
    assert!(
        sent_on.contains("\r\nlocation: https://shop.example.com/buy?x=1\r\n"),
        "{sent_on}"
    );
    assert!(
        get("attacker.example.net", "/buy")
            .await
            .starts_with("HTTP/1.1 404")
    );
    let smuggled = "GET /a HTTP/1.1\r\nhost: shop.example.com\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n";
    assert!(say(address, smuggled).await.starts_with("HTTP/1.1 400"));
    assert!(
        say(address, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .starts_with("HTTP/1.1 ")
    );
    let long = format!("/{}", "a".repeat(9000));
    assert!(get(SHOP, &long).await.starts_with("HTTP/1.1 414"));

    // One request each: what follows is not read as another.
    let two =
        format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\nGET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(say(address, &two).await.matches("HTTP/1.1 200").count(), 1);

    world.challenges.forget("token-1");
    assert!(get(SHOP, path).await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn a_port_for_challenges_that_is_taken_keeps_nobody_from_starting_and_is_opened_when_it_is_free()
 {
    let taken = std::net::TcpListener::bind(ANSWERING).unwrap();
    let listen = taken.local_addr().unwrap();
    let world = world(AcmeChallenge::Http { listen }).await;
    let (_, _, said) = ask(&world, SHOP, &[HTTP]).await.unwrap();
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    let listening = || world.challenges.listening().borrow().len();
    let status = world.running.status();
    let problem = status.problem.unwrap();
    assert_eq!(problem, format!("cannot listen on `{listen}` yet"));
    // Balancers are not told to go elsewhere for that.
    assert!(world.running.missing().is_empty());
    assert_eq!(listening(), 0);

    drop(taken);
    let mut running = world.running.clone();
    while running.status().problem.is_some() {
        assert!(soon(running.changed()).await);
    }
    assert_eq!(listening(), 1);
    let answer = say(listen, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
}
