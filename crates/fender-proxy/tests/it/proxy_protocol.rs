//! PROXY headers: who is believed on the way in, and what the app is told on the way out.

use std::net::SocketAddr;
use std::time::Duration;

use fender_config::AppAddress;
use fender_config::snapshot::{
    AppProxyProtocol, ClientCertificate, Inbound, Mtls, Protocol, ProxyProtocol,
};
use fender_policy::{Rule, Source};
use fender_proxy::Limits;
use fender_runtime::drain::Drain;
use fender_wire::proxy::{Endpoints, Extension, Header, Progress, Proxied, Ssl, Transport, read};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::client::TlsStream;

use crate::harness::*;

/// Whom the balancer of these tests speaks for.
const CLIENT: &str = "192.0.2.7:51000";
/// Where it connected to.
const FRONT: &str = "198.51.100.9:443";

fn passed_on(extensions: Vec<Extension>) -> Header {
    passed_on_from(CLIENT, extensions)
}

fn passed_on_from(client: &str, extensions: Vec<Extension>) -> Header {
    Header::Proxied(Proxied {
        endpoints: Endpoints::Ip {
            transport: Transport::Stream,
            source: client.parse().unwrap(),
            destination: FRONT.parse().unwrap(),
        },
        extensions,
    })
}

/// A port at which these senders are believed. Every test comes from 127.0.0.1.
fn believing(app: SocketAddr, protocol: Protocol, from: &str) -> Inbound {
    Inbound {
        proxy_protocol: Some(ProxyProtocol {
            from: vec![from.parse().unwrap()],
        }),
        ..inbound(app, protocol)
    }
}

async fn world(tasks: &Drain, from: &str) -> World {
    let port = believing(echo_app(tasks).await, Protocol::Http, from);
    World::start(vec![port], vec![], Limits::default())
}

/// Connects as `web`, saying these bytes first.
async fn after(world: &World, first: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
    let mut stream = TcpStream::connect(world.address()).await?;
    stream.write_all(first).await?;
    let svid = world.authority.svid(WEB);
    world.handshake(stream, &svid, &[b"http/1.1"]).await
}

/// What the app saw of a request on this connection.
async fn asked(mut stream: TlsStream<TcpStream>, path: &str) -> String {
    stream.write_all(last_get(path).as_bytes()).await.unwrap();
    rest(&mut stream).await
}

fn only_from(remote: &[&str], source: &[&str]) -> Rule {
    let blocks = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    Rule {
        from: vec![Source {
            remote_ip_blocks: blocks(remote),
            ip_blocks: blocks(source),
            ..Source::default()
        }],
        ..Rule::default()
    }
}

#[tokio::test]
async fn the_client_of_a_listed_sender_is_who_the_connection_comes_from() {
    let tasks = Drain::new();
    let world = world(&tasks, "127.0.0.1/32").await;
    // `remoteIpBlocks` are about the client and `ipBlocks` about the balancer, as Istio has them.
    let rule = only_from(&["192.0.2.7/32"], &["127.0.0.1/32"]);
    world.change(|snapshot| snapshot.policies = policies(vec![allow(vec![rule])]));
    let header = passed_on(vec![]).to_bytes().unwrap();
    let seen = asked(after(&world, &header).await.unwrap(), "/passed-on-line").await;
    assert!(seen.starts_with("HTTP/1.1 200"), "{seen}");
    assert!(seen.contains("x-forwarded-for: 192.0.2.7\n"), "{seen}");
    let line = logs_line("/passed-on-line").await;
    assert!(line.contains(&format!("\"source\":\"{CLIENT}\"")), "{line}");
    assert!(line.contains("\"via\":\"127.0.0.1:"), "{line}");
}

#[tokio::test]
async fn each_client_behind_a_sender_has_its_number_of_connections_and_the_sender_has_any() {
    let tasks = Drain::new();
    let limits = Limits {
        connections_per_address: 1,
        ..Limits::default()
    };
    let port = believing(echo_app(&tasks).await, Protocol::Http, "127.0.0.1/32");
    let world = World::start(vec![port], vec![], limits);
    let from = async |client: &str| {
        let header = passed_on_from(client, vec![]).to_bytes().unwrap();
        after(&world, &header).await
    };
    let first = from("192.0.2.7:51000").await.unwrap();
    let _second = from("192.0.2.8:51000").await.unwrap();
    assert!(from("192.0.2.7:51001").await.is_err());
    logs_line("too many connections from its address").await;
    drop(first);
    while from("192.0.2.7:51002").await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_denial_records_the_client_and_the_sender() {
    let tasks = Drain::new();
    let mut world = world(&tasks, "127.0.0.1/32").await;
    // The client may not wear the balancer's address.
    let rule = only_from(&["127.0.0.1/32"], &[]);
    world.change(|snapshot| snapshot.policies = policies(vec![allow(vec![rule])]));
    let header = passed_on(vec![]).to_bytes().unwrap();
    let answer = asked(after(&world, &header).await.unwrap(), "/").await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    let facts = soon(world.records.recv()).await.unwrap().facts;
    assert_eq!(facts.remote_ip, Some("192.0.2.7".parse().unwrap()));
    assert_eq!(facts.source_ip, Some("127.0.0.1".parse().unwrap()));
}

#[tokio::test]
async fn a_sender_that_speaks_for_itself_keeps_its_address() {
    let tasks = Drain::new();
    let world = world(&tasks, "127.0.0.0/8").await;
    let header = Header::Local.to_bytes().unwrap();
    let seen = asked(after(&world, &header).await.unwrap(), "/").await;
    assert!(seen.contains("x-forwarded-for: 127.0.0.1\n"), "{seen}");
}

#[tokio::test]
async fn the_header_ends_where_it_ends_however_it_comes() {
    let tasks = Drain::new();
    let world = world(&tasks, "127.0.0.1/32").await;
    let header = passed_on(vec![Extension::UniqueId(vec![7; 100])]);
    let mut stream = TcpStream::connect(world.address()).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for byte in header.to_bytes().unwrap() {
        stream.write_all(&[byte]).await.unwrap();
    }
    let svid = world.authority.svid(WEB);
    let stream = world
        .handshake(stream, &svid, &[b"http/1.1"])
        .await
        .unwrap();
    assert!(
        asked(stream, "/")
            .await
            .contains("x-forwarded-for: 192.0.2.7\n")
    );
}

/// The attack that lists are for: whoever reaches the port says that they come from somewhere else.
#[tokio::test]
async fn nobody_but_a_listed_sender_may_say_where_they_come_from() {
    let tasks = Drain::new();
    let world = world(&tasks, "10.0.0.0/8").await;
    let header = passed_on(vec![]).to_bytes().unwrap();
    assert!(after(&world, &header).await.is_err());
    logs_line("that `proxyProtocol` does not list").await;
    // Without one they come as who they are.
    let seen = asked(after(&world, b"").await.unwrap(), "/").await;
    assert!(seen.contains("x-forwarded-for: 127.0.0.1\n"), "{seen}");
}

#[tokio::test]
async fn a_header_where_none_is_asked_for_is_no_handshake() {
    let tasks = Drain::new();
    let world = World::http(echo_app(&tasks).await);
    let header = passed_on(vec![]).to_bytes().unwrap();
    assert!(after(&world, &header).await.is_err());
}

/// Otherwise a client behind the balancer that finds a way to connect past its header would be the balancer.
#[tokio::test]
async fn a_listed_sender_that_says_nothing_is_refused() {
    let tasks = Drain::new();
    let world = world(&tasks, "127.0.0.1/32").await;
    assert!(after(&world, b"").await.is_err());
    logs_line("there is no PROXY header").await;
}

#[tokio::test]
async fn a_header_of_version_1_is_refused_by_name() {
    let tasks = Drain::new();
    let world = world(&tasks, "127.0.0.1/32").await;
    let line = b"PROXY TCP4 192.0.2.7 198.51.100.9 51000 443\r\n";
    assert!(after(&world, line).await.is_err());
    logs_line("is of version 1, and only version 2 is read").await;
}

/// A client behind the balancer that sends a header of its own does not say the last word.
#[tokio::test]
async fn a_second_header_is_no_handshake() {
    let tasks = Drain::new();
    let world = world(&tasks, "127.0.0.1/32").await;
    let header = passed_on(vec![]).to_bytes().unwrap();
    assert!(after(&world, &header.repeat(2)).await.is_err());
}

#[tokio::test]
async fn a_header_that_names_nobody_is_refused() {
    let tasks = Drain::new();
    let world = world(&tasks, "127.0.0.1/32").await;
    let nobody = Header::Proxied(Proxied {
        endpoints: Endpoints::Unknown,
        extensions: vec![],
    });
    assert!(after(&world, &nobody.to_bytes().unwrap()).await.is_err());
    logs_line("its header names no TCP client").await;
}

#[tokio::test]
async fn the_first_bytes_of_a_header_hold_a_connection_no_longer_than_a_handshake_may() {
    let tasks = Drain::new();
    let port = believing(echo_app(&tasks).await, Protocol::Http, "127.0.0.1/32");
    let limits = Limits {
        establish: Duration::from_millis(100),
        ..Limits::default()
    };
    let world = World::start(vec![port], vec![], limits);
    let mut stream = TcpStream::connect(world.address()).await.unwrap();
    let header = passed_on(vec![]).to_bytes().unwrap();
    stream.write_all(&header[..20]).await.unwrap();
    let mut nothing = Vec::new();
    let _ = soon(stream.read_to_end(&mut nothing)).await;
    assert_eq!(nothing, b"");
}

/// Who a peer is, only its own handshake proves: the sender's word about a certificate is worth nothing.
#[tokio::test]
async fn no_header_says_who_a_peer_is() {
    let tasks = Drain::new();
    let mut port = believing(echo_app(&tasks).await, Protocol::Http, "127.0.0.1/32");
    port.mtls = Mtls::Strict(ClientCertificate::Ignore);
    let world = World::start(vec![port], vec![], Limits::default());
    let ssl = Ssl {
        client: Ssl::OVER_TLS | Ssl::CERTIFICATE_IN_CONNECTION,
        common_name: Some(WEB.to_owned()),
        ..Ssl::default()
    };
    let identity = Extension::Other {
        kind: 0xe0,
        value: WEB.into(),
    };
    let header = passed_on(vec![Extension::Ssl(ssl), identity]);
    let stream = after(&world, &header.to_bytes().unwrap()).await.unwrap();
    let seen = asked(stream, "/").await;
    assert!(seen.starts_with("HTTP/1.1 200"), "{seen}");
    assert!(!seen.contains("x-forwarded-client-cert"), "{seen}");
}

/// Reads a header from the front of a connection to an app.
async fn header_of(stream: &mut TcpStream) -> Proxied {
    let mut bytes = Vec::new();
    loop {
        match read(&bytes).unwrap() {
            Progress::Complete(Header::Proxied(proxied)) => return proxied,
            Progress::Complete(Header::Local) => panic!("it speaks for nobody"),
            Progress::Needs(more) => {
                let at = bytes.len();
                bytes.resize(at + more, 0);
                stream.read_exact(&mut bytes[at..]).await.unwrap();
            }
        }
    }
}

fn telling(app: SocketAddr, protocol: Protocol) -> Inbound {
    Inbound {
        app_proxy_protocol: AppProxyProtocol::V2,
        ..inbound(app, protocol)
    }
}

fn identity(proxied: &Proxied) -> Option<String> {
    proxied.extensions.iter().find_map(|extension| {
        let Extension::Other { kind: 0xe0, value } = extension else {
            return None;
        };
        Some(String::from_utf8(value.clone()).unwrap())
    })
}

#[tokio::test]
async fn a_tcp_app_is_told_who_connects_before_the_first_byte() {
    let tasks = Drain::new();
    let (tell, mut told) = mpsc::channel(1);
    let app = raw_app(&tasks, move |mut socket| {
        let tell = tell.clone();
        async move {
            tell.send(header_of(&mut socket).await).await.unwrap();
            let (mut read, mut write) = socket.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        }
    })
    .await;
    let world = World::start(vec![telling(app, Protocol::Tcp)], vec![], Limits::default());
    let mut stream = world.client(&world.authority.svid(WEB), &[]).await;
    let proxied = soon(told.recv()).await.unwrap();
    let endpoints = Endpoints::Ip {
        transport: Transport::Stream,
        source: stream.get_ref().0.local_addr().unwrap(),
        destination: world.address(),
    };
    assert_eq!(proxied.endpoints, endpoints);
    assert_eq!(identity(&proxied).as_deref(), Some(WEB));
    let named = |extension: &Extension| matches!(extension, Extension::Authority(_));
    assert!(proxied.extensions.iter().any(named), "{proxied:?}");
    let ssl = proxied.extensions.iter().find_map(|extension| {
        let Extension::Ssl(ssl) = extension else {
            return None;
        };
        Some(ssl)
    });
    let ssl = ssl.unwrap();
    assert_eq!((ssl.client, ssl.verify), (0x07, 0));
    assert_eq!(ssl.version.as_deref(), Some("TLSv1.3"));
    assert!(ssl.cipher.as_ref().unwrap().starts_with("TLS_"), "{ssl:?}");
    assert_eq!(ssl.common_name, None, "nobody verified a common name");

    stream.write_all(b"ping").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(rest(&mut stream).await, "ping");
}

/// An app of HTTP/1.1 that takes each connection for that of the one its header names, and answers with who that is
/// and which of its connections it was.
async fn trusting_app(tasks: &Drain) -> SocketAddr {
    let connections = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    raw_app(tasks, move |mut socket| {
        let number = connections.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        async move {
            let who = identity(&header_of(&mut socket).await).unwrap_or_default();
            loop {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    match socket.read_u8().await {
                        Ok(byte) => request.push(byte),
                        Err(_) => return,
                    }
                }
                let text = format!("{who} on {number}");
                let length = text.len();
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{text}");
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    })
    .await
}

/// An app that believes the header of a connection would take one peer's requests for another's.
#[tokio::test]
async fn no_connection_to_an_app_that_is_told_carries_two_peers() {
    let tasks = Drain::new();
    let app = trusting_app(&tasks).await;
    let world = World::start(
        vec![telling(app, Protocol::Http)],
        vec![],
        Limits::default(),
    );
    let other = "spiffe://mesh.test/ns/shop/sa/other";
    let mut web = world.web().await;
    let svid = world.authority.svid(other);
    let mut second = world.client(&svid, &[b"http/1.1"]).await;
    // A connection is kept for the peer it was made for, and for nobody else: not even for the same workload.
    let mut third = world.web().await;
    for _ in 0..3 {
        for (stream, expected) in [
            (&mut web, format!("{WEB} on 0")),
            (&mut second, format!("{other} on 1")),
            (&mut third, format!("{WEB} on 2")),
        ] {
            stream.write_all(get("/").as_bytes()).await.unwrap();
            assert_eq!(response(stream).await.1, expected);
        }
    }
}

#[tokio::test]
async fn the_app_behind_a_sender_is_told_the_client_and_not_the_balancer() {
    let tasks = Drain::new();
    let (tell, mut told) = mpsc::channel(1);
    let app = raw_app(&tasks, move |mut socket| {
        let tell = tell.clone();
        async move { tell.send(header_of(&mut socket).await).await.unwrap() }
    })
    .await;
    let mut port = believing(app, Protocol::Tcp, "127.0.0.1/32");
    port.app_proxy_protocol = AppProxyProtocol::V2;
    let world = World::start(vec![port], vec![], Limits::default());
    let header = passed_on(vec![]).to_bytes().unwrap();
    let _stream = after(&world, &header).await.unwrap();
    let endpoints = Endpoints::Ip {
        transport: Transport::Stream,
        source: CLIENT.parse().unwrap(),
        destination: FRONT.parse().unwrap(),
    };
    assert_eq!(soon(told.recv()).await.unwrap().endpoints, endpoints);
}

#[tokio::test]
async fn an_app_behind_a_unix_socket_is_told_alike() {
    let tasks = Drain::new();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("app.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let mut port = telling(nobody().await, Protocol::Tcp);
    port.app = AppAddress::Unix(path);
    let world = World::start(vec![port], vec![], Limits::default());
    let _stream = world.client(&world.authority.svid(WEB), &[]).await;
    let (mut socket, _) = soon(listener.accept()).await.unwrap();
    let mut first = [0; 13];
    soon(socket.read_exact(&mut first)).await.unwrap();
    assert_eq!(first, *b"\r\n\r\n\0\r\nQUIT\n\x21");
    tasks.stop();
}
