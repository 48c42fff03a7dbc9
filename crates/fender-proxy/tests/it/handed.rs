//! Certificates of ports that are credentials: shown while they are there, refused while they are not, and never stood in for.

use std::sync::Arc;
use std::time::Duration;

use fender_config::ObjectName;
use fender_config::snapshot::{
    CertificateSource, ClientCertificate, Mtls, PortCertificate, Protocol,
};
use fender_identity::Secret;
use fender_identity::tls::{Issued, PemPair};
use fender_proxy::{Limits, Standings};
use fender_runtime::drain::Drain;
use fender_runtime::metrics::Exposition;
use rcgen::{KeyPair, SanType};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, HandshakeKind};
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::attacks::Gullible;
use crate::harness::{HOUR, NOW, PATIENCE, World, inbound, params, raw_app, soon};

const SHOP: &str = "shop.example.com";
const WWW: &str = "www.example.com";

fn wanted(names: &[&str]) -> PortCertificate {
    PortCertificate {
        source: CertificateSource::Credential(ObjectName::new("shop", "tls").unwrap()),
        names: names.iter().map(|name| (*name).to_owned()).collect(),
    }
}

/// What a credential is, and what a client is shown of it.
fn made(names: &[&str], until: u64) -> (Issued, CertificateDer<'static>) {
    let mut params = params(&[], NOW - HOUR, until);
    let names = names
        .iter()
        .map(|name| SanType::DnsName((*name).try_into().unwrap()));
    params.subject_alt_names = names.collect();
    let key = KeyPair::generate().unwrap();
    let made = params.self_signed(&key).unwrap();
    let issued = Issued {
        pair: Some(Arc::new(PemPair {
            chain: made.pem().into_bytes(),
            key: Secret::from(key.serialize_pem()),
        })),
        ..Issued::default()
    };
    (issued, made.der().clone())
}

fn client() -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible))
        .with_no_client_auth();
    Arc::new(config)
}

/// A connection under this name, if there is one.
async fn connect(
    world: &World,
    client: &Arc<ClientConfig>,
    name: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(world.address()).await.unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    soon(TlsConnector::from(client.clone()).connect(name, stream)).await
}

/// The leaf that a client is shown that asks for this name; none if it is refused.
async fn shown(world: &World, name: &str) -> Option<CertificateDer<'static>> {
    let stream = connect(world, &client(), name).await.ok()?;
    Some(stream.get_ref().1.peer_certificates().unwrap()[0].clone())
}

/// Before an app that says what it hears.
async fn world(certificates: &[PortCertificate]) -> (World, Drain) {
    let tasks = Drain::new();
    let app = raw_app(&tasks, async |mut socket: TcpStream| {
        let (mut from, mut to) = socket.split();
        let _ = tokio::io::copy(&mut from, &mut to).await;
    });
    let mut port = inbound(app.await, Protocol::Tcp);
    port.mtls = Mtls::Strict(ClientCertificate::Accept);
    port.certificates = certificates.to_vec();
    (World::start(vec![port], vec![], Limits::default()), tasks)
}

fn gives(world: &World, wanted: &PortCertificate, issued: &Issued) {
    let all = Standings::from([(wanted.clone(), issued.clone())]);
    world.credentials.send_replace(Arc::new(all));
}

/// Asks again whenever something else is told of the proxy.
async fn until(world: &World, what: &str, is: impl AsyncFn(&World) -> bool) {
    let mut running = world.running.clone();
    let told = async {
        while !is(world).await {
            assert!(running.changed().await, "{what}");
        }
    };
    let done = tokio::time::timeout(PATIENCE, told).await;
    assert!(done.is_ok(), "{what}");
}

fn told(world: &World) -> String {
    let mut told = Exposition::default();
    world.running.tell(&mut told);
    told.text()
}

fn problem(world: &World) -> Option<String> {
    world.running.status().certificates[0].problem.clone()
}

#[tokio::test]
async fn a_credential_is_shown_while_it_is_there_and_its_names_are_refused_while_it_is_not() {
    let shop = wanted(&[SHOP]);
    let (world, _app) = world(std::slice::from_ref(&shop)).await;
    // Nobody has it yet: the port is not what its document says, and no other certificate stands in.
    assert_eq!(shown(&world, SHOP).await, None);
    let missing = world.running.missing();
    assert!(
        missing[0].contains(SHOP) && missing[0].contains("`shop/tls`"),
        "{missing:?}"
    );
    let own = world.svid.borrow().chain()[0].clone();
    for name in ["mesh.test", WWW, "192.0.2.1"] {
        assert_eq!(shown(&world, name).await.as_ref(), Some(&own), "{name}");
    }
    // Counted once the connection has ended, which the client need not wait for.
    let counted = async {
        while !told(&world).contains("reason=\"nothing_to_show\"} 1") {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let counted = tokio::time::timeout(PATIENCE, counted).await;
    assert!(counted.is_ok(), "{}", told(&world));

    let (first, leaf) = made(&[SHOP, WWW], NOW + HOUR);
    gives(&world, &shop, &first);
    until(&world, "it is shown", async |world| {
        shown(world, SHOP).await.as_ref() == Some(&leaf)
    })
    .await;
    assert!(world.running.missing().is_empty());
    assert_eq!(problem(&world), None);
    // Attack: whoever may write the secret answers for no name that the document does not give it.
    assert_eq!(shown(&world, WWW).await.as_ref(), Some(&own));

    // What takes its place is shown to the next connection, and the ones that are open stay.
    let mut open = connect(&world, &client(), SHOP).await.unwrap();
    let (second, another) = made(&[SHOP], NOW + 2 * HOUR);
    gives(&world, &shop, &second);
    until(&world, "the next is shown", async |world| {
        shown(world, SHOP).await.as_ref() == Some(&another)
    })
    .await;

    // Taken back: refused from then on, which is no reason to send nobody else here.
    let gone = Issued {
        withdrawn: true,
        problem: Some("the credential `shop/tls` was withdrawn: no".to_owned()),
        ..Issued::default()
    };
    gives(&world, &shop, &gone);
    until(&world, "it is refused", async |world| {
        shown(world, SHOP).await.is_none()
    })
    .await;
    assert!(world.running.missing().is_empty());
    let why = problem(&world).unwrap();
    assert!(
        why.contains("withdrawn") && why.contains("refused"),
        "{why}"
    );
    assert!(told(&world).contains(&format!("problem{{name=\"{SHOP}\",certificate=\"0\"}} 1")));
    assert_eq!(shown(&world, WWW).await.as_ref(), Some(&own));
    open.write_all(b"still here").await.unwrap();
    let mut back = [0; 10];
    soon(open.read_exact(&mut back)).await.unwrap();
    assert_eq!(&back, b"still here");

    gives(&world, &shop, &second);
    until(&world, "it is shown again", async |world| {
        shown(world, SHOP).await.as_ref() == Some(&another)
    })
    .await;
}

#[tokio::test]
async fn attack_what_is_for_other_names_or_not_valid_now_is_kept_out_by_the_one_before() {
    let shop = wanted(&[SHOP]);
    let (world, _app) = world(std::slice::from_ref(&shop)).await;
    let (right, leaf) = made(&[SHOP], NOW + HOUR);
    gives(&world, &shop, &right);
    until(&world, "it is shown", async |world| {
        shown(world, SHOP).await.is_some()
    })
    .await;
    for (issued, why) in [
        (
            made(&["evil.example.com"], NOW + HOUR).0,
            "not for the name",
        ),
        (made(&[SHOP], NOW - 60).0, "not valid now"),
    ] {
        gives(&world, &shop, &issued);
        until(&world, why, async |world| {
            problem(world).is_some_and(|told| told.contains(why))
        })
        .await;
        assert!(problem(&world).unwrap().contains("keeping the one before"));
        assert_eq!(shown(&world, SHOP).await.as_ref(), Some(&leaf));
    }
}

#[tokio::test]
async fn one_that_ends_is_refused_and_missing_and_told() {
    let shop = wanted(&[SHOP]);
    let (world, _app) = world(std::slice::from_ref(&shop)).await;
    let (issued, _) = made(&[SHOP], NOW + 60);
    gives(&world, &shop, &issued);
    until(&world, "it is shown", async |world| {
        shown(world, SHOP).await.is_some()
    })
    .await;
    let end = format!(
        "expiry_timestamp_seconds{{name=\"{SHOP}\",certificate=\"0\"}} {}",
        NOW + 60
    );
    assert!(told(&world).contains(&end), "{}", told(&world));
    world.clock.advance(Duration::from_secs(61));
    until(&world, "it is refused", async |world| {
        shown(world, SHOP).await.is_none()
    })
    .await;
    until(&world, "it is missing", async |world| {
        !world.running.missing().is_empty()
    })
    .await;
    assert!(
        problem(&world).unwrap().contains("not valid now"),
        "{:?}",
        problem(&world)
    );
}

#[tokio::test]
async fn a_session_does_not_go_on_once_the_certificate_is_another_or_gone() {
    let shop = wanted(&[SHOP]);
    let (world, _app) = world(std::slice::from_ref(&shop)).await;
    let (first, _) = made(&[SHOP], NOW + HOUR);
    gives(&world, &shop, &first);
    until(&world, "it is shown", async |world| {
        shown(world, SHOP).await.is_some()
    })
    .await;
    let client = client();
    let kind = async || {
        let mut stream = connect(&world, &client, SHOP).await.ok()?;
        // The ticket comes with what is answered.
        stream.write_all(b"x").await.unwrap();
        soon(stream.read_exact(&mut [0])).await.unwrap();
        stream.get_ref().1.handshake_kind()
    };
    assert_eq!(kind().await, Some(HandshakeKind::Full));
    assert_eq!(kind().await, Some(HandshakeKind::Resumed));
    let (second, another) = made(&[SHOP], NOW + 2 * HOUR);
    gives(&world, &shop, &second);
    until(&world, "the next is shown", async |world| {
        shown(world, SHOP).await.as_ref() == Some(&another)
    })
    .await;
    assert_eq!(kind().await, Some(HandshakeKind::Full));
    assert_eq!(kind().await, Some(HandshakeKind::Resumed));
    let gone = Issued {
        withdrawn: true,
        ..Issued::default()
    };
    gives(&world, &shop, &gone);
    until(&world, "it is refused", async |world| {
        shown(world, SHOP).await.is_none()
    })
    .await;
    assert_eq!(kind().await, None, "no ticket opens what is refused");
}

#[tokio::test]
async fn where_a_document_changes_the_names_the_same_credential_stands_in_for_those_that_stay() {
    let shop = wanted(&[SHOP]);
    let (world, _app) = world(std::slice::from_ref(&shop)).await;
    let (issued, leaf) = made(&[SHOP, WWW], NOW + HOUR);
    gives(&world, &shop, &issued);
    until(&world, "it is shown", async |world| {
        shown(world, SHOP).await.is_some()
    })
    .await;
    // Whoever gives it has not heard of the new document yet.
    let both = wanted(&[SHOP, "api.example.com"]);
    world.change(|snapshot| snapshot.inbound[0].certificates = vec![both.clone()]);
    world.settled().await;
    assert_eq!(shown(&world, SHOP).await.as_ref(), Some(&leaf));
    assert_eq!(shown(&world, "api.example.com").await, None);
    // Another credential is another secret: nothing of this one is shown for it.
    let mut other = both.clone();
    other.source = CertificateSource::Credential(ObjectName::new("shop", "other").unwrap());
    world.change(|snapshot| snapshot.inbound[0].certificates = vec![other]);
    world.settled().await;
    assert_eq!(shown(&world, SHOP).await, None);
}
