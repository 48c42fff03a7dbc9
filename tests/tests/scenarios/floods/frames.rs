//! HTTP/2 that is cheap to send and dear to receive (CVE-2019-9511 to 9518, CVE-2023-44487,
//! CVE-2024-27316 and their kin): each ends its connection, or costs next to nothing.

use std::time::Duration;

use super::{MEGABYTE, Target, pair, request};
use crate::frames::{
    Answer, CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, PING, PRIORITY,
    RST_STREAM, SETTINGS, WINDOW_UPDATE, block,
};

const MANY: u32 = 100_000;

/// How a flood ended.
#[derive(Debug, PartialEq, Eq)]
enum Flood {
    /// Everything was sent.
    Sent,
    /// The connection was ended.
    Ended,
    /// The sidecar stopped reading: the attacker is held, not the sidecar.
    Held,
}

/// After so long without a byte taken, nobody reads: long, because a busy machine is not a sidecar that holds back.
const HELD: Duration = Duration::from_secs(8);

/// Sends what `put` writes for each number, a thousand at a time, and reads nothing meanwhile.
async fn flood(frames: &mut Frames, count: u32, mut put: impl FnMut(&mut Frames, u32)) -> Flood {
    for number in 0..count {
        put(frames, number);
        if number % 1000 == 999 {
            match tokio::time::timeout(HELD, frames.send()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Flood::Ended,
                Err(_) => return Flood::Held,
            }
        }
    }
    match tokio::time::timeout(HELD, frames.send()).await {
        Ok(Ok(())) => Flood::Sent,
        Ok(Err(_)) => Flood::Ended,
        Err(_) => Flood::Held,
    }
}

/// Reads until the connection says that it ends, or does.
async fn ends(frames: &mut Frames) {
    let end = async {
        while let Some(frame) = frames.next().await {
            if frame.kind == GOAWAY {
                return;
            }
        }
    };
    tokio::time::timeout(fender_tests::process::PATIENCE, end)
        .await
        .expect("the connection ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rapid_reset_ends_its_connection() {
    let target = Target::set().await;
    let attack = async {
        for _ in 0..10 {
            let mut frames = Frames::begin(&target.client()).await.unwrap();
            let head = block(&request());
            flood(&mut frames, MANY / 10, |frames, number| {
                let stream = number * 2 + 1;
                frames.frame(HEADERS, END_HEADERS | END_STREAM, stream, &head);
                frames.frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
            })
            .await;
            ends(&mut frames).await;
        }
    };
    target.bears(32 * MEGABYTE, attack).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_continuation_ends_its_connection() {
    let target = Target::set().await;
    let attack = async {
        for fields in [
            vec![],
            vec![pair("x y")],
            vec![(b"x".to_vec(), vec![b'y'; 16_000])],
        ] {
            let mut frames = Frames::begin(&target.client()).await.unwrap();
            frames.frame(HEADERS, END_STREAM, 1, &block(&request()));
            let more = block(&fields);
            let flood = flood(&mut frames, MANY, |frames, _| {
                frames.frame(CONTINUATION, 0, 1, &more);
            })
            .await;
            assert_ne!(flood, Flood::Sent, "{} bytes a frame", more.len());
        }
    };
    target.bears(24 * MEGABYTE, attack).await;
}

/// A field of 4,000 bytes put into the table once, and named in a byte each time after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_hpack_bomb_is_refused_before_it_is_large() {
    let target = Target::set().await;
    let attack = async {
        let mut bomb = block(&request());
        let (name, value) = ("bomb", "x".repeat(4000));
        bomb.push(0x40); // a literal that the table remembers
        for text in [name, &value] {
            crate::frames::integer(&mut bomb, text.len());
            bomb.extend_from_slice(text.as_bytes());
        }
        bomb.extend(std::iter::repeat_n(0xbe, 10_000)); // entry 62: 40 MB
        let mut frames = Frames::begin(&target.client()).await.unwrap();
        for stream in (1..200).step_by(2) {
            frames.frame(HEADERS, END_HEADERS | END_STREAM, stream, &bomb);
            // Whoever puts it into the table again throws the old one out.
            match frames.answer(stream).await.unwrap() {
                Answer::Status(431) | Answer::Reset => {}
                Answer::Closed => break,
                Answer::Status(status) => panic!("it was answered {status}"),
            }
        }
    };
    target.bears(24 * MEGABYTE, attack).await;
}

/// A hundred thousand of each frame that costs its sender nothing, and no answer read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_frames_in_any_number_cost_nothing() {
    let target = Target::set().await;
    let head = block(&[
        pair(":method POST"),
        pair(":scheme https"),
        pair(":authority v"),
        pair(":path /flood"),
    ]);
    let setting = [0, 4, 0, 1, 0, 0]; // a window of 64 KiB
    let attack = async {
        type Put = fn(&mut Frames, u32, &[u8]);
        let floods: [(&str, Put); 7] = [
            ("empty data", |frames, _, _| frames.frame(DATA, 0, 1, &[])),
            ("padding", |frames, _, _| frames.frame(DATA, 8, 1, &[1, 0])),
            ("pings", |frames, number, _| {
                frames.frame(PING, 0, 0, &u64::from(number).to_be_bytes());
            }),
            ("settings", |frames, _, setting| {
                frames.frame(SETTINGS, 0, 0, setting)
            }),
            ("priorities", |frames, number, _| {
                frames.frame(PRIORITY, 0, number * 2 + 3, &[0, 0, 0, 0, 16]);
            }),
            ("windows", |frames, _, _| {
                frames.frame(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes())
            }),
            ("unknown", |frames, _, _| frames.frame(0xbb, 0, 0, b"?")),
        ];
        for (name, put) in floods {
            let mut frames = Frames::begin(&target.client()).await.unwrap();
            // A request that stays open.
            frames.frame(HEADERS, END_HEADERS, 1, &head);
            let flood = flood(&mut frames, MANY, |frames, number| {
                put(frames, number, &setting)
            })
            .await;
            println!("{name}: {flood:?}");
        }
    };
    target.bears(24 * MEGABYTE, attack).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_stream_ends_a_connection_and_no_other() {
    let target = Target::set().await;
    let attack = async {
        let mut frames = Frames::begin(&target.client()).await.unwrap();
        let last = 0x7fff_ffff;
        frames.headers(last, &request(), true);
        assert_eq!(frames.answer(last).await.unwrap(), Answer::Status(200));
        // There is no number left; an old one is a breach.
        frames.headers(1, &request(), true);
        ends(&mut frames).await;
    };
    target.bears(16 * MEGABYTE, attack).await;
}

/// Responses to every stream that may be open, and no window for any.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_without_a_window_cost_what_may_be_in_flight() {
    let target = Target::set().await;
    let attack = async {
        let mut open = Vec::new();
        for _ in 0..4 {
            let mut frames = Frames::begin(&target.client()).await.unwrap();
            frames.frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]); // a window of nothing
            let mut fields = request();
            fields.retain(|(name, _)| name != b":path");
            fields.push(pair(":path /file/large"));
            for stream in 0..128 {
                frames.headers(stream * 2 + 1, &fields, true);
            }
            frames.send().await.unwrap();
            open.push(frames);
        }
        target.settles().await;
    };
    target.bears(192 * MEGABYTE, attack).await;
}
