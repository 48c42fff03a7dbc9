//! The stream against rustls's own buffered connections, driven by hand: a peer that can send any byte
//! at any time, or none.

use std::future::poll_fn;
use std::io::{ErrorKind, Read, Write};
use std::pin::pin;
use std::sync::Arc;

use bytes::BytesMut;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, ClientConnection, Error, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::*;

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];

struct World {
    server: ServerConfig,
    client: ClientConfig,
}

impl World {
    fn of(version: &'static SupportedProtocolVersion) -> Self {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["peer.test".to_owned()]).unwrap();
        let key = || PrivatePkcs8KeyDer::from(signing_key.serialize_der()).into();
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots.clone()), provider.clone());
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_client_cert_verifier(clients.build().unwrap())
            .with_single_cert(vec![cert.der().clone()], key())
            .unwrap();
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![cert.der().clone()], key())
            .unwrap();
        client.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self { server, client }
    }

    /// A client and the stream it is connected to.
    async fn meet(self) -> (Client, Stream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut client = Client::new(self.client, theirs);
        let accepted = Stream::accept(ours.into(), Arc::new(self.server));
        let (stream, ()) = tokio::join!(accepted, client.shake_hands());
        (client, stream.map_err(|(error, _)| error).unwrap())
    }
}

/// The other side, whose every byte is under control.
struct Client {
    tls: ClientConnection,
    socket: UnixStream,
}

impl Client {
    fn new(config: ClientConfig, socket: UnixStream) -> Self {
        let name = "peer.test".try_into().unwrap();
        let tls = ClientConnection::new(Arc::new(config), name).unwrap();
        Self { tls, socket }
    }

    async fn shake_hands(&mut self) {
        while self.tls.is_handshaking() {
            self.send().await;
            if self.tls.is_handshaking() {
                self.receive().await.unwrap();
            }
        }
        self.send().await;
    }

    /// What rustls wants to send.
    fn sealed(&mut self) -> Vec<u8> {
        let mut sealed = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut sealed).unwrap();
        }
        sealed
    }

    async fn send(&mut self) {
        let sealed = self.sealed();
        self.socket.write_all(&sealed).await.unwrap();
    }

    async fn say(&mut self, data: &[u8]) {
        self.tls.writer().write_all(data).unwrap();
        self.send().await;
    }

    /// Reads once; nothing is the end of the socket.
    async fn receive(&mut self) -> Result<usize, Error> {
        let mut read = [0; 4096];
        let read_bytes = self.socket.read(&mut read).await.unwrap();
        let mut records = &read[..read_bytes];
        while !records.is_empty() {
            self.tls.read_tls(&mut records).unwrap();
            self.tls.process_new_packets()?;
        }
        Ok(read_bytes)
    }

    /// What was said to us, up to `length` bytes or the end that close_notify marks.
    async fn hear(&mut self, length: usize) -> Vec<u8> {
        let mut heard = Vec::new();
        loop {
            let mut some = [0; 4096];
            match self.tls.reader().read(&mut some) {
                Ok(0) => return heard,
                Ok(read) => heard.extend_from_slice(&some[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock && heard.len() < length => {
                    assert_ne!(self.receive().await.unwrap(), 0, "the socket ended");
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return heard,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

async fn fill(stream: &mut Stream, buffer: &mut BytesMut) -> io::Result<usize> {
    poll_fn(|cx| stream.poll_fill(cx, buffer)).await
}

async fn read_exactly(stream: &mut Stream, length: usize) -> BytesMut {
    let mut buffer = BytesMut::new();
    while buffer.len() < length {
        assert_ne!(fill(stream, &mut buffer).await.unwrap(), 0, "cut short");
    }
    buffer
}

fn server(stream: &mut Stream) -> &mut Tls<UnbufferedServerConnection> {
    match &mut stream.inner {
        Inner::Server(tls) => tls,
        Inner::Plain(_) | Inner::Client(_) => panic!("not a server"),
    }
}

/// Where the records in `sealed` end.
fn ends(sealed: &[u8]) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut at = 0;
    while let Some(&[_, _, _, high, low]) = sealed.get(at..at + 5) {
        at += 5 + usize::from(u16::from_be_bytes([high, low]));
        ends.push(at);
    }
    ends
}

#[tokio::test]
async fn records_may_be_cut_at_every_byte() {
    for version in VERSIONS {
        let mut cut = 1;
        loop {
            let (mut client, mut stream) = World::of(version).meet().await;
            client.tls.writer().write_all(b"first").unwrap();
            let mut sealed = client.sealed();
            client.tls.writer().write_all(b" and second").unwrap();
            client.tls.send_close_notify();
            sealed.extend(client.sealed());
            if cut == sealed.len() {
                break;
            }

            client.socket.write_all(&sealed[..cut]).await.unwrap();
            let whole: Vec<usize> = ends(&sealed)
                .into_iter()
                .filter(|end| *end <= cut)
                .collect();
            let so_far: &[u8] = match whole.len() {
                0 => b"",
                1 => b"first",
                _ => b"first and second",
            };
            let part = cut - whole.last().unwrap_or(&0);
            let mut heard = BytesMut::new();
            poll_fn(|cx| {
                while stream.poll_fill(cx, &mut heard).is_ready() {}
                match heard.len() == so_far.len() && server(&mut stream).received() == part {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                }
            })
            .await;
            assert_eq!(heard, so_far, "cut at {cut}");

            client.socket.write_all(&sealed[cut..]).await.unwrap();
            while fill(&mut stream, &mut heard).await.unwrap() > 0 {}
            assert_eq!(heard, &b"first and second"[..], "cut at {cut}");
            cut += 1;
        }
        assert!(cut > 60);
    }
}

#[tokio::test]
async fn a_handshake_may_come_byte_by_byte_and_in_tiny_fragments() {
    for version in VERSIONS {
        let mut world = World::of(version);
        world.client.max_fragment_size = Some(64);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut client = Client::new(world.client, theirs);
        let trickling = async {
            while client.tls.is_handshaking() {
                for byte in client.sealed() {
                    client.socket.write_all(&[byte]).await.unwrap();
                    tokio::task::yield_now().await;
                }
                client.receive().await.unwrap();
            }
            for byte in client.sealed() {
                client.socket.write_all(&[byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
            client.say(b"here I am").await;
        };
        let accepted = Stream::accept(ours.into(), Arc::new(world.server));
        let (stream, ()) = tokio::join!(accepted, trickling);
        let mut stream = stream.map_err(|(error, _)| error).unwrap();
        assert_eq!(read_exactly(&mut stream, 9).await, &b"here I am"[..]);
        assert_eq!(stream.alpn(), Some(&b"http/1.1"[..]));
        assert!(stream.tls().unwrap().peer_certificates().is_some());
    }
}

/// What was sealed and found no room is sent once, whole and in its order.
#[tokio::test]
async fn a_flight_that_the_socket_does_not_take_goes_once_it_does() {
    for version in VERSIONS {
        let world = World::of(version);
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.writable().await.unwrap();
        let mut before = 0;
        while let Ok(written) = ours.try_write(&[0; 4096]) {
            before += written;
        }
        assert!(before > 0);
        let mut client = Client::new(world.client, theirs);
        client.send().await;
        let mut accepted = pin!(Stream::accept(ours.into(), Arc::new(world.server)));
        // It hears the client and has nowhere to answer.
        for _ in 0..64 {
            let waits = poll_fn(|cx| Poll::Ready(accepted.as_mut().poll(cx).is_pending()));
            assert!(waits.await);
            tokio::task::yield_now().await;
        }
        let meeting = async {
            let mut earlier = vec![0; before];
            client.socket.read_exact(&mut earlier).await.unwrap();
            while client.tls.is_handshaking() {
                client.receive().await.unwrap();
                client.send().await;
            }
            client.say(b"here I am").await;
            client
        };
        let (stream, mut client) = tokio::join!(accepted, meeting);
        let mut stream = stream.map_err(|(error, _)| error).unwrap();
        assert_eq!(read_exactly(&mut stream, 9).await, &b"here I am"[..]);
        stream.write_all(b"so I see").await.unwrap();
        assert_eq!(client.hear(8).await, b"so I see");
    }
}

#[tokio::test]
async fn who_has_ended_hears_our_end_and_then_that_of_the_socket() {
    for version in VERSIONS {
        let (mut client, mut stream) = World::of(version).meet().await;
        client.tls.send_close_notify();
        client.send().await;
        assert_eq!(fill(&mut stream, &mut BytesMut::new()).await.unwrap(), 0);
        stream.shutdown().await.unwrap();
        drop(stream);
        assert_eq!(client.hear(1).await, b"");
        assert_eq!(client.receive().await.unwrap(), 0);
    }
}

#[tokio::test]
async fn a_socket_that_ends_without_close_notify_is_an_error_and_never_an_end() {
    for version in VERSIONS {
        // Between two records, and within one.
        for missing in [0, 1] {
            let (mut client, mut stream) = World::of(version).meet().await;
            client.say(b"begun").await;
            client.tls.writer().write_all(b"not finished").unwrap();
            let sealed = client.sealed();
            let cut = sealed.len() - missing;
            client.socket.write_all(&sealed[..cut]).await.unwrap();
            drop(client);
            let mut heard = BytesMut::new();
            let error = loop {
                match fill(&mut stream, &mut heard).await {
                    Ok(0) => panic!("a clean end after {heard:?}"),
                    Ok(_) => {}
                    Err(error) => break error,
                }
            };
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
            let again = fill(&mut stream, &mut heard).await.unwrap_err();
            assert_eq!(again.kind(), ErrorKind::UnexpectedEof);
            let expected: &[u8] = [&b"begunnot finished"[..], b"begun"][missing];
            assert_eq!(heard, expected);
        }
    }
}

#[tokio::test]
async fn a_socket_that_ends_in_the_handshake_is_an_error() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut client = Client::new(World::of(&TLS13).client, theirs);
    let hello = client.sealed();
    client
        .socket
        .write_all(&hello[..hello.len() / 2])
        .await
        .unwrap();
    drop(client);
    let accepted = Stream::accept(ours.into(), Arc::new(World::of(&TLS13).server)).await;
    assert_eq!(accepted.unwrap_err().0.kind(), ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn who_has_finished_sending_still_hears_the_answer() {
    for version in VERSIONS {
        let (mut client, mut stream) = World::of(version).meet().await;
        client.tls.writer().write_all(b"question").unwrap();
        client.tls.send_close_notify();
        client.send().await;
        assert_eq!(read_exactly(&mut stream, 8).await, &b"question"[..]);
        assert_eq!(fill(&mut stream, &mut BytesMut::new()).await.unwrap(), 0);
        assert_eq!(fill(&mut stream, &mut BytesMut::new()).await.unwrap(), 0);

        stream.write_all(b"answer").await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(client.hear(usize::MAX).await, b"answer");
        let refused = stream.write_all(b"more").await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::BrokenPipe);
    }
}

#[tokio::test]
async fn who_was_told_the_end_may_go_on_sending() {
    for version in VERSIONS {
        let (mut client, mut stream) = World::of(version).meet().await;
        stream.shutdown().await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(client.hear(usize::MAX).await, b"");
        client.say(b"still here").await;
        assert_eq!(read_exactly(&mut stream, 10).await, &b"still here"[..]);
        client.tls.send_close_notify();
        client.send().await;
        assert_eq!(fill(&mut stream, &mut BytesMut::new()).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn keys_may_be_changed_by_the_peer() {
    let (mut client, mut stream) = World::of(&TLS13).meet().await;
    for round in 0..3 {
        client.tls.refresh_traffic_keys().unwrap();
        let said = format!("under key {round}");
        client.say(said.as_bytes()).await;
        assert_eq!(read_exactly(&mut stream, said.len()).await, said.as_bytes());
        // Our own key update goes with the answer, and the answer is sealed under the new key.
        stream.write_all(b"heard").await.unwrap();
        assert_eq!(client.hear(5).await, b"heard");
    }
}

#[tokio::test]
async fn a_peer_that_wants_nothing_but_new_keys_is_refused() {
    let (mut client, mut stream) = World::of(&TLS13).meet().await;
    for _ in 0..40 {
        client.tls.refresh_traffic_keys().unwrap();
    }
    client.send().await;
    let error = fill(&mut stream, &mut BytesMut::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData);
}

#[tokio::test]
async fn a_large_answer_reaches_a_slow_reader_whole_and_is_held_only_in_part() {
    for version in VERSIONS {
        let (mut client, mut stream) = World::of(version).meet().await;
        let answer: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        let mut most = 0;
        let writing = async {
            let mut left = &answer[..];
            while !left.is_empty() {
                let (head, body) = left.split_at(left.len().min(100));
                let slices = [IoSlice::new(head), IoSlice::new(body)];
                left = &left[stream.write_vectored(&slices).await.unwrap()..];
                most = most.max(server(&mut stream).unsent());
            }
            stream.shutdown().await.unwrap();
        };
        let (heard, ()) = tokio::join!(client.hear(usize::MAX), writing);
        assert!(heard == answer);
        // One batch, what little waited before it, and what TLS adds.
        assert!((1..=72 * 1024).contains(&most), "{most} bytes were held");
        assert_eq!(server(&mut stream).unsent(), 0);
    }
}

#[tokio::test]
async fn small_neighbours_share_a_record() {
    let (mut client, mut stream) = World::of(&TLS13).meet().await;
    read_exactly_after(&mut client, &mut stream).await;
    let slices = [
        IoSlice::new(b"head "),
        IoSlice::new(b""),
        IoSlice::new(b"and body"),
    ];
    assert_eq!(stream.write_vectored(&slices).await.unwrap(), 13);
    let mut read = [0; 4096];
    let length = client.socket.read(&mut read).await.unwrap();
    assert_eq!(ends(&read[..length]), [length]);
}

/// One exchange, after which neither side has anything to say by itself.
async fn read_exactly_after(client: &mut Client, stream: &mut Stream) {
    client.say(b"request").await;
    assert_eq!(read_exactly(stream, 7).await, &b"request"[..]);
    stream.write_all(b"response").await.unwrap();
    assert_eq!(client.hear(8).await, b"response");
}

#[tokio::test]
async fn an_idle_connection_holds_no_buffer() {
    for version in VERSIONS {
        let (mut client, mut stream) = World::of(version).meet().await;
        read_exactly_after(&mut client, &mut stream).await;
        assert_eq!(server(&mut stream).held(), 0);
        // Nor does one that was read from through a small place.
        client.say(&[7; 40_000]).await;
        let mut place = [0; 100];
        let mut left = 40_000;
        while left > 0 {
            left -= stream.read(&mut place).await.unwrap();
        }
        assert_eq!(server(&mut stream).held(), 0);
    }
}

#[tokio::test]
async fn a_forged_record_is_answered_with_an_alert_and_nothing_follows() {
    for version in VERSIONS {
        let (mut client, mut stream) = World::of(version).meet().await;
        read_exactly_after(&mut client, &mut stream).await;
        client.tls.writer().write_all(b"true words").unwrap();
        let mut sealed = client.sealed();
        client.tls.writer().write_all(b"forged").unwrap();
        sealed.extend(client.sealed());
        *sealed.last_mut().unwrap() ^= 1;
        client.socket.write_all(&sealed).await.unwrap();
        assert_eq!(read_exactly(&mut stream, 10).await, &b"true words"[..]);
        for _ in 0..2 {
            let error = fill(&mut stream, &mut BytesMut::new()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData);
        }
        assert!(stream.write_all(b"answer").await.is_err());
        let alert = client.receive().await.unwrap_err();
        assert_eq!(alert, Error::AlertReceived(AlertDescription::BadRecordMac));
    }
}

#[tokio::test]
async fn a_peer_that_speaks_no_tls_gets_an_alert_and_the_socket_comes_back() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let accepted = Stream::accept(ours.into(), Arc::new(World::of(&TLS13).server)).await;
    let (error, socket) = accepted.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    drop(socket);
    let mut told = Vec::new();
    theirs.read_to_end(&mut told).await.unwrap();
    assert_eq!(told.first(), Some(&21), "not an alert: {told:?}");
}

#[test]
fn whatever_a_stranger_says_first_is_refused_alike_however_it_was_cut() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/hello");
    let files = std::fs::read_dir(corpus).unwrap();
    let inputs: Vec<_> = files
        .map(|file| std::fs::read(file.unwrap().path()).unwrap())
        .collect();
    assert!(
        inputs.len() >= 20,
        "{corpus} holds only {} inputs",
        inputs.len()
    );
    inputs.iter().for_each(|input| checks::hello(input));
}

#[tokio::test]
async fn a_handshake_message_without_end_is_refused() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    // A client hello of 65,535 bytes, one byte in each record.
    let flood = async {
        let mut hello = vec![22, 3, 1, 0, 4, 1, 0, 0xff, 0xff];
        for _ in 0..65_000 {
            hello.extend([22, 3, 1, 0, 1, 0]);
        }
        // The other side hangs up in the middle.
        let _ = theirs.write_all(&hello).await;
    };
    let accepted = async {
        let accepted = Stream::accept(ours.into(), Arc::new(World::of(&TLS13).server)).await;
        accepted.map_err(|(error, _)| error)
    };
    let (refused, ()) = tokio::join!(accepted, flood);
    let refused = refused.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidData, "{refused}");
}

#[tokio::test]
async fn both_ends_may_be_streams_and_tickets_disturb_nobody() {
    for version in VERSIONS {
        let world = World::of(version);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let name = "peer.test".try_into().unwrap();
        let (accepted, connected) = tokio::join!(
            Stream::accept(ours.into(), Arc::new(world.server)),
            Stream::connect(theirs.into(), Arc::new(world.client), name),
        );
        let mut accepted = accepted.map_err(|(error, _)| error).unwrap();
        let mut connected = connected.unwrap();
        // Tickets that nobody waits for are on their way as soon as there is nothing to do.
        let (mut ours, mut theirs) = (BytesMut::new(), BytesMut::new());
        poll_fn(|cx| {
            assert!(accepted.poll_fill(cx, &mut ours).is_pending());
            assert!(connected.poll_fill(cx, &mut theirs).is_pending());
            Poll::Ready(())
        })
        .await;
        assert_eq!(server(&mut accepted).unsent(), 0);

        let sent: Vec<u8> = (0..500_000_u32).map(|n| (n % 249) as u8).collect();
        let mut heard = Vec::new();
        let speaking = async {
            connected.write_all(&sent).await.unwrap();
            connected.shutdown().await.unwrap();
        };
        let (read, ()) = tokio::join!(accepted.read_to_end(&mut heard), speaking);
        read.unwrap();
        assert!(heard == sent);
        accepted.write_all(b"whole").await.unwrap();
        accepted.shutdown().await.unwrap();
        let mut answer = String::new();
        connected.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "whole");
    }
}
