//! What a connection may try against the server, over real sockets and with frames written by hand: whoever floods,
//! stalls or sends what is too large loses their own connection or stream, what is held for them is counted, and
//! everybody else is served meanwhile.
//!
//! HTTP/2: <https://www.rfc-editor.org/rfc/rfc9113>

mod raw;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::*;
use raw::*;

const ATTEST: &str = "/fender.control.v1.Identity/Attest";
const RENEW: &str = "/fender.control.v1.Identity/Renew";
const SUBSCRIBE: &str = "/fender.control.v1.Distribution/Subscribe";

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
