//! What a connection may try against the server, over real sockets and with frames written by hand: whoever floods,
//! stalls or sends what is too large loses their own connection or stream, what is held for them is counted, and
//! everybody else is served meanwhile.
//!
//! HTTP/2: <https://www.rfc-editor.org/rfc/rfc9113>

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;

const ATTEST: &str = "/fender.control.v1.Identity/Attest";
const RENEW: &str = "/fender.control.v1.Identity/Renew";
const SUBSCRIBE: &str = "/fender.control.v1.Distribution/Subscribe";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// One frame as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Literal, never indexed, never compressed.
fn field(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        // An integer with a prefix of seven bits.
        match text.len() {
            length @ 0..127 => bytes.push(length as u8),
            length => {
                bytes.push(127);
                let mut rest = length - 127;
                while rest >= 128 {
                    bytes.push((rest % 128) as u8 | 128);
                    rest /= 128;
                }
                bytes.push(rest as u8);
            }
        }
        bytes.extend(text.as_bytes());
    }
    bytes
}

fn call(path: &str) -> Vec<u8> {
    [
        (":method", "POST"),
        (":scheme", "https"),
        (":path", path),
        (":authority", "acme.test"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]
    .into_iter()
    .flat_map(|(name, value)| field(name, value))
    .collect()
}

/// A gRPC message: its prefix and its bytes.
fn message(bytes: &[u8]) -> Vec<u8> {
    let mut message = vec![0];
    message.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
    message.extend(bytes);
    message
}

fn encoded(report: proto::report::Kind) -> Vec<u8> {
    prost::Message::encode_to_vec(&self::report(report))
}

fn hello() -> Vec<u8> {
    message(&encoded(proto::report::Kind::Hello(proto::Hello {
        sidecar_version: "0.1.0".to_owned(),
        instance: "0123456789abcdef0123456789abcdef".to_owned(),
        ..Default::default()
    })))
}

/// A client that writes what it likes.
struct Raw {
    reader: ReadHalf<TlsStream<TcpStream>>,
    writer: WriteHalf<TlsStream<TcpStream>>,
}

impl Raw {
    async fn connect(world: &World, svid: Option<&Svid>) -> Self {
        Self::connect_with(world, svid, &[]).await
    }

    async fn connect_with(world: &World, svid: Option<&Svid>, settings: &[u8]) -> Self {
        let config = match svid {
            None => world.pinned(),
            Some(svid) => {
                let mut bundles = Bundles::new();
                bundles.insert(world.bundle());
                let clock = Arc::new(TlsClock(world.clock.clone()));
                let profile = TlsProfile::default();
                tls::client(
                    profile,
                    Some(svid),
                    Arc::new(bundles),
                    control(),
                    ALPN,
                    clock,
                )
                .unwrap()
            }
        };
        let socket = TcpStream::connect(world.running.address).await.unwrap();
        let connector = TlsConnector::from(config);
        let stream = connector.connect(tls::server_name(&control()), socket);
        let (reader, writer) = tokio::io::split(stream.await.unwrap());
        // No table of headers, so that every answer is written out.
        let settings = [&[0, 1, 0, 0, 0, 0], settings].concat();
        let mut raw = Self { reader, writer };
        let preface = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            &frame(SETTINGS, 0, 0, &settings)[..],
        ];
        raw.send(&preface.concat()).await.unwrap();
        raw
    }

    async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.writer.write_all(bytes).await?;
        self.writer.flush().await
    }

    /// Writes the same again and again, as often as said or as the server takes it; how often that was.
    async fn flood(&mut self, bytes: &[u8], times: usize) -> usize {
        for time in 0..times {
            if self.send(bytes).await.is_err() {
                return time;
            }
        }
        times
    }

    /// The next frame, or nothing when the server has ended the connection.
    async fn read(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.reader.read_exact(&mut head).await.ok()?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        self.reader.read_exact(&mut payload).await.ok()?;
        Some(Frame {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
            payload,
        })
    }

    /// Reads until a frame is the wanted one; none if the connection ends before.
    async fn until(&mut self, mut wanted: impl FnMut(&Frame) -> bool) -> Option<Frame> {
        loop {
            let frame = self.read().await?;
            if wanted(&frame) {
                return Some(frame);
            }
        }
    }

    /// The gRPC status of a stream, which the server ends: from its trailers, or −1 if it was reset.
    async fn verdict(&mut self, stream: u32) -> i32 {
        let last = self
            .until(|frame| {
                frame.stream == stream
                    && (frame.kind == RESET
                        || frame.kind == HEADERS && frame.flags & END_STREAM != 0)
            })
            .await
            .expect("the stream ends before the connection");
        match last.kind {
            RESET => -1,
            _ => status_in(&last.payload),
        }
    }

    /// The error code with which the server gives up on the connection.
    async fn farewell(&mut self) -> Option<u32> {
        let goodbye = self.until(|frame| frame.kind == GOAWAY).await?;
        Some(u32::from_be_bytes(
            goodbye.payload[4..8].try_into().unwrap(),
        ))
    }
}

/// The value of `grpc-status` in a header block of a server that has sent few before: the name literally or
/// Huffman-coded, the value as one or two characters.
fn status_in(block: &[u8]) -> i32 {
    let mut decoder = Hpack(block);
    decoder.status().expect("a status")
}

/// As much of HPACK as it takes to find one field.
struct Hpack<'a>(&'a [u8]);

impl Hpack<'_> {
    fn status(&mut self) -> Option<i32> {
        // `grpc-status` Huffman-coded, as RFC 7541 has it.
        const NAME: &[u8] = &[0x9a, 0xca, 0xc8, 0xb2, 0x12, 0x34, 0xda, 0x8f];
        let at = self
            .0
            .windows(NAME.len())
            .position(|window| window == NAME)?;
        let value = self.0.get(at + NAME.len()..)?;
        let (length, value) = value.split_first()?;
        let value = value.get(..usize::from(length & 0x7f))?;
        match (length & 0x80, value) {
            (0, digits) => std::str::from_utf8(digits).ok()?.parse().ok(),
            // Digits in Huffman code: 0, 1 and 2 have five bits, the others six.
            (_, coded) => huffman_number(coded),
        }
    }
}

fn huffman_number(coded: &[u8]) -> Option<i32> {
    let bits: Vec<u8> = coded
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1))
        .collect();
    let number = |bits: &[u8]| bits.iter().fold(0_u8, |number, bit| number << 1 | bit);
    let (mut at, mut found) = (0, None);
    while let Some(five) = bits.get(at..at + 5) {
        let (digit, length) = match number(five) {
            digit @ 0..=2 => (digit, 5),
            _ => match bits.get(at..at + 6).map(number) {
                Some(six @ 0x19..=0x1f) => (six - 0x19 + 3, 6),
                _ => break,
            },
        };
        found = Some(found.unwrap_or(0) * 10 + i32::from(digit));
        at += length;
    }
    found
}

/// An administrator, a new sidecar and an old one are served as if nothing were the matter.
async fn others_are_served(world: &World) {
    let svid = world.attested("shop/inventory").await;
    let mut sidecar = world.subscribe(&svid, 0).await;
    sidecar.next().await.unwrap();
    assert!(world.status().await.workloads.len() > 1);
}

async fn connected(world: &World) -> usize {
    let status = world.status().await;
    let workloads = status.workloads.iter();
    workloads.map(|workload| workload.sidecars.len()).sum()
}

#[test]
fn numbers_are_read_from_huffman_code() {
    assert_eq!(huffman_number(&[0b0000_0111]), Some(0));
    assert_eq!(huffman_number(&[0b0000_1011, 0b0011_1111]), Some(13));
    assert_eq!(huffman_number(&[0b0000_1000, 0b1011_1111]), Some(12));
    assert_eq!(huffman_number(&[0b0000_1011, 0b0101_1111]), Some(14));
    assert_eq!(huffman_number(&[0b0111_1111]), Some(9));
}

/// Every call there is, as the protocol's own file lists them.
fn every_call() -> Vec<String> {
    let proto = include_str!("../../../fender-api/proto/fender/control/v1/control.proto");
    let (mut service, mut calls) = ("", Vec::new());
    for line in proto.lines() {
        let words: Vec<&str> = line.trim().split([' ', '(']).collect();
        match words.as_slice() {
            ["service", name, ..] => service = name,
            ["rpc", name, ..] => calls.push(format!("/fender.control.v1.{service}/{name}")),
            _ => {}
        }
    }
    calls
}

const INVALID_ARGUMENT: i32 = 3;
const OUT_OF_RANGE: i32 = 11;
const UNIMPLEMENTED: i32 = 12;
const UNAUTHENTICATED: i32 = 16;

#[tokio::test]
async fn attack_without_a_certificate_every_call_but_attestation_is_refused() {
    let world = World::new().await;
    let mut raw = Raw::connect(&world, None).await;
    let mut verdicts = BTreeMap::new();
    for (stream, path) in (1..).step_by(2).zip(every_call()) {
        raw.send(&frame(HEADERS, END_HEADERS, stream, &call(&path)))
            .await
            .unwrap();
        raw.send(&frame(DATA, END_STREAM, stream, &message(&[])))
            .await
            .unwrap();
        verdicts.insert(path, raw.verdict(stream).await);
    }
    assert!(verdicts.len() >= 9, "{verdicts:?}");
    // These two may be asked anonymously, and this is no certificate request.
    for path in [ATTEST, RENEW] {
        assert_eq!(verdicts.remove(path), Some(INVALID_ARGUMENT), "{path}");
    }
    for (path, verdict) in verdicts {
        assert_eq!(verdict, UNAUTHENTICATED, "{path}");
    }
}

#[tokio::test]
async fn attack_a_message_too_large_is_refused_by_its_length_on_every_call() {
    let world = World::new().await;
    let orders = world.attested("shop/orders").await;
    let admin = world.admin_svid();
    for path in every_call() {
        let svid = match path.contains(".Admin/") {
            true => &admin,
            false => &orders,
        };
        let mut raw = Raw::connect(&world, Some(svid)).await;
        let stream = frame(HEADERS, END_HEADERS, 1, &call(&path));
        // Four gigabytes announced, four bytes sent.
        let announced = frame(DATA, 0, 1, &[0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4]);
        raw.send(&[stream, announced].concat()).await.unwrap();
        assert_eq!(raw.verdict(1).await, OUT_OF_RANGE, "{path}");
    }
    others_are_served(&world).await;
}

#[tokio::test]
async fn attack_a_compressed_message_is_refused_and_never_unpacked() {
    let world = World::new().await;
    let orders = world.attested("shop/orders").await;
    for path in every_call() {
        let svid = match path.contains(".Admin/") {
            true => world.admin_svid(),
            false => orders.clone(),
        };
        let mut raw = Raw::connect(&world, Some(&svid)).await;
        let mut head = call(&path);
        head.extend(field("grpc-encoding", "gzip"));
        raw.send(&frame(HEADERS, END_HEADERS, 1, &head))
            .await
            .unwrap();
        // The first byte says that it is compressed.
        let bomb = [1, 0, 0, 0, 4, 0x1f, 0x8b, 8, 0];
        raw.send(&frame(DATA, END_STREAM, 1, &bomb)).await.unwrap();
        assert_eq!(raw.verdict(1).await, UNIMPLEMENTED, "{path}");
    }
}

#[tokio::test]
async fn attack_a_stream_without_a_hello_is_ended_and_holds_no_place() {
    let world = World::new().await;
    let orders = world.attested("shop/orders").await;
    let mut raw = Raw::connect(&world, Some(&orders)).await;
    for stream in (1..128).step_by(2) {
        raw.send(&frame(HEADERS, END_HEADERS, stream, &call(SUBSCRIBE)))
            .await
            .unwrap();
    }
    for _ in 0..64 {
        raw.until(|frame| frame.kind == HEADERS)
            .await
            .expect("a stream begins");
    }
    // All places of this certificate are taken; nobody is connected; a neighbour has places of their own.
    assert_eq!(
        refused(
            Sidecar::subscribe(world.as_peer(&orders).await, 0)
                .await
                .map(drop)
        ),
        Code::Busy
    );
    assert_eq!(connected(&world).await, 0);
    others_are_served(&world).await;

    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(11)).await;
    tokio::time::resume();
    for _ in 0..64 {
        let ended = |frame: &Frame| frame.kind == HEADERS && frame.flags & END_STREAM != 0;
        let ended = raw.until(ended).await.expect("a verdict");
        assert_eq!(status_in(&ended.payload), 4, "too late");
    }
    eventually(|| async {
        let sidecar = Sidecar::subscribe(world.as_peer(&orders).await, 0).await;
        sidecar.is_ok().then_some(())
    })
    .await;
}

#[tokio::test]
async fn attack_a_reader_that_takes_nothing_has_the_newest_snapshot_waiting_and_no_backlog() {
    let world = World::new().await;
    let inventory = world.attested("shop/inventory").await;
    // An initial window of nothing, for every stream.
    let mut raw = Raw::connect_with(&world, Some(&inventory), &[0, 4, 0, 0, 0, 0]).await;
    raw.send(&frame(HEADERS, END_HEADERS, 1, &call(SUBSCRIBE)))
        .await
        .unwrap();
    raw.send(&frame(DATA, 0, 1, &hello())).await.unwrap();
    eventually(|| async { (connected(&world).await == 1).then_some(()) }).await;

    const CHANGES: u32 = 24;
    for change in 0..CHANGES {
        let callers = if change % 2 == 0 { "web" } else { "shop" };
        world
            .apply(documents(world.directory.path(), callers))
            .await;
    }
    others_are_served(&world).await;

    let window = 0x7fff_0000_u32.to_be_bytes();
    raw.send(&frame(WINDOW_UPDATE, 0, 1, &window))
        .await
        .unwrap();
    let (mut bytes, mut versions) = (Vec::new(), Vec::new());
    while versions.last() != Some(&u64::from(CHANGES + 1)) {
        let data = raw.until(|frame| frame.kind == DATA).await.expect("more");
        bytes.extend(data.payload);
        while let Some(length) = bytes.get(1..5) {
            let length = u32::from_be_bytes(length.try_into().unwrap()) as usize;
            if bytes.len() < 5 + length {
                break;
            }
            let update: proto::Update = prost::Message::decode(&bytes[5..5 + length]).unwrap();
            bytes.drain(..5 + length);
            if let Some(proto::update::Kind::Snapshot(snapshot)) = update.kind {
                versions.push(snapshot.version);
            }
        }
    }
    assert!(versions.len() <= 4, "it was queued for: {versions:?}");
}

#[tokio::test]
async fn attack_a_connection_that_never_reads_is_given_up_and_its_place_is_free() {
    let world = World::new().await;
    let orders = world.attested("shop/orders").await;
    let mut raw = Raw::connect(&world, Some(&orders)).await;
    raw.send(&frame(HEADERS, END_HEADERS, 1, &call(SUBSCRIBE)))
        .await
        .unwrap();
    raw.send(&frame(DATA, 0, 1, &hello())).await.unwrap();
    eventually(|| async { (connected(&world).await == 1).then_some(()) }).await;

    // It holds its end open and answers nothing, not even a ping.
    let patience = fender_api::tls::KEEPALIVE_INTERVAL + fender_api::tls::KEEPALIVE_TIMEOUT;
    let mut held = true;
    for _ in 0..2 * patience.as_secs() {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(1)).await;
        tokio::time::resume();
        held = connected(&world).await > 0;
        if !held {
            break;
        }
    }
    assert!(!held, "it still has its place");
    drop(raw);
}

async fn half_open(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for _ in 0..count {
        held.push(TcpStream::connect(address).await.unwrap());
    }
    held
}

#[tokio::test]
async fn attack_two_thousand_connections_that_never_begin_a_handshake_keep_nobody_out() {
    let world = World::new().await;
    let held = half_open(world.running.address, 2000).await;
    others_are_served(&world).await;
    drop(held);
}

#[tokio::test]
async fn attack_a_thousand_handshakes_that_never_end_keep_nobody_out() {
    let world = World::new().await;
    // The beginning of a record that holds a ClientHello of half a kilobyte.
    let begun = [
        0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03,
    ];
    let mut held = half_open(world.running.address, 1000).await;
    for socket in &mut held {
        socket.write_all(&begun).await.unwrap();
    }
    others_are_served(&world).await;
    drop(held);
}

#[tokio::test]
async fn attack_thousands_of_half_open_streams_on_one_connection_are_refused_beyond_a_bound() {
    const STREAMS: u32 = 3000;
    let world = World::new().await;
    let orders = world.attested("shop/orders").await;
    let mut raw = Raw::connect(&world, Some(&orders)).await;
    let streams: Vec<u8> = (0..STREAMS)
        .flat_map(|at| frame(HEADERS, END_HEADERS, 2 * at + 1, &call(RENEW)))
        .collect();
    // All at once, and then nothing: no body and no end of one. The server may hang up in the middle.
    let _ = raw.send(&streams).await;
    others_are_served(&world).await;

    // Either the streams beyond the bound are refused one by one, or the whole connection is.
    let mut refused = 0;
    while refused < STREAMS - 512 {
        match raw
            .until(|frame| frame.kind == RESET || frame.kind == GOAWAY)
            .await
        {
            Some(frame) if frame.kind == RESET => refused += 1,
            Some(_) | None => return,
        }
    }
}

#[tokio::test]
async fn attack_streams_that_are_reset_as_soon_as_they_begin_end_the_connection() {
    let world = World::new().await;
    let orders = world.attested("shop/orders").await;
    let mut raw = Raw::connect(&world, Some(&orders)).await;
    let cancel = 8_u32.to_be_bytes();
    let mut burst = Vec::new();
    for at in 0..20_000_u32 {
        burst.extend(frame(HEADERS, END_HEADERS, 2 * at + 1, &call(RENEW)));
        burst.extend(frame(RESET, 0, 2 * at + 1, &cancel));
    }
    let _ = raw.send(&burst).await;
    others_are_served(&world).await;
    // ENHANCE_YOUR_CALM, or the end without a word.
    assert!(matches!(raw.farewell().await, Some(11) | None));
}

#[tokio::test]
async fn attack_headers_without_end_and_headers_without_measure_are_refused() {
    let world = World::new().await;
    let orders = world.attested("shop/orders").await;

    // Never an end: the connection is given up long before all of it is read.
    let mut raw = Raw::connect(&world, Some(&orders)).await;
    raw.send(&frame(HEADERS, 0, 1, &call(RENEW))).await.unwrap();
    let more = frame(CONTINUATION, 0, 1, &field("x-more", &"y".repeat(8000)));
    let taken = raw.flood(&more, 4000).await;
    assert!(taken < 4000, "32 MB of headers were taken");
    assert!(matches!(raw.farewell().await, Some(11) | None));

    // Empty ones cost no memory and would cost time.
    let mut raw = Raw::connect(&world, Some(&orders)).await;
    raw.send(&frame(HEADERS, 0, 1, &call(RENEW))).await.unwrap();
    let taken = raw
        .flood(&frame(CONTINUATION, 0, 1, &[]).repeat(64), 20_000)
        .await;
    assert!(taken < 20_000, "a million empty frames were taken");

    // Within one frame each, and too many: the call is refused, the connection lives.
    let mut raw = Raw::connect(&world, Some(&orders)).await;
    let mut head = call(RENEW);
    for at in 0..400 {
        head.extend(field(
            &format!("x-header-{at}"),
            "some forty bytes of a header's value",
        ));
    }
    let (first, rest) = head.split_at(16_000);
    raw.send(&frame(HEADERS, END_STREAM, 1, first))
        .await
        .unwrap();
    raw.send(&frame(CONTINUATION, END_HEADERS, 1, rest))
        .await
        .unwrap();
    let refused = |frame: &Frame| frame.stream == 1 && matches!(frame.kind, HEADERS | RESET);
    raw.until(refused).await.expect("an answer");
    raw.send(&frame(HEADERS, END_HEADERS, 3, &call(RENEW)))
        .await
        .unwrap();
    raw.send(&frame(DATA, END_STREAM, 3, &message(&[])))
        .await
        .unwrap();
    assert_eq!(raw.verdict(3).await, INVALID_ARGUMENT);
    others_are_served(&world).await;
}

#[tokio::test]
async fn attack_floods_of_settings_and_pings_are_not_queued_for_and_hold_up_nobody() {
    let world = World::new().await;
    let orders = world.attested("shop/orders").await;
    for (kind, payload) in [(PING, vec![7; 8]), (SETTINGS, Vec::new())] {
        // Answers are not read: once the socket is full, the server stops to read too.
        let mut raw = Raw::connect(&world, Some(&orders)).await;
        let burst = frame(kind, 0, 0, &payload).repeat(1000);
        {
            let flood = raw.flood(&burst, 100_000);
            tokio::select! {
                biased;
                _ = flood => {}
                () = others_are_served(&world) => {}
            }
        }
        // What was answered is answered in order, one for one, as far as it goes.
        let answered = raw
            .until(|frame| frame.kind == kind && frame.flags == ACK && frame.payload == payload)
            .await;
        assert!(answered.is_some() || kind == SETTINGS);
    }
    others_are_served(&world).await;
}

#[tokio::test]
async fn attack_one_certificate_holds_only_so_many_streams_on_however_many_connections() {
    let world = World::new().await;
    let orders = world.attested("shop/orders").await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let channel = world.as_peer(&orders).await;
        for _ in 0..8 {
            held.push(Sidecar::subscribe(channel.clone(), 0).await.unwrap());
        }
    }
    let more = || async { Sidecar::subscribe(world.as_peer(&orders).await, 0).await };
    assert_eq!(refused(more().await.map(drop)), Code::Busy);
    others_are_served(&world).await;
    held.pop();
    eventually(|| async { more().await.ok() }).await;
}

#[tokio::test]
async fn attack_a_flood_of_reports_is_cut_and_another_workloads_report_is_kept() {
    let world = World::new().await;
    let (orders, inventory) = (
        world.attested("shop/orders").await,
        world.attested("shop/inventory").await,
    );
    let decision = |id: u128, workload: &str| {
        proto::report::Kind::Decision(proto::DecisionRecord {
            id: format!("{id:032x}"),
            time_unix_millis: i64::try_from(NOW * 1000).unwrap(),
            workload: workload.to_owned(),
            peer: INVENTORY.to_owned(),
            source_ip: "10.0.0.1".to_owned(),
            decided_by: "nothing allows it".to_owned(),
            ..Default::default()
        })
    };
    // Many streams, each with all it may send at once.
    let channel = world.as_peer(&orders).await;
    let mut flood = Vec::new();
    for stream in 0..16_u128 {
        let mut sidecar = Sidecar::subscribe(channel.clone(), 0).await.unwrap();
        sidecar.next().await.unwrap();
        for at in 0..1500 {
            sidecar
                .report(decision(((1 + stream) << 64) | at, "shop/orders"))
                .await;
        }
        flood.push(sidecar);
    }
    let mut victim = world.subscribe(&inventory, 0).await;
    victim.next().await.unwrap();
    victim.report(decision(7, "shop/inventory")).await;
    eventually(|| async {
        let id = format!("{:032x}", 7);
        let mut admin = world.admin().await;
        admin.explain(proto::ExplainRequest { id }).await.ok()
    })
    .await;

    // A nack comes through as well, and of the flood no more is kept than its streams may send.
    flood[0]
        .report(proto::report::Kind::Nack(proto::Nack {
            version: 1,
            reason: "full".to_owned(),
        }))
        .await;
    eventually(|| async {
        let status = world.status().await;
        let mut sidecars = status
            .workloads
            .iter()
            .flat_map(|workload| &workload.sidecars);
        sidecars.any(|sidecar| sidecar.nack == "full").then_some(())
    })
    .await;
}
