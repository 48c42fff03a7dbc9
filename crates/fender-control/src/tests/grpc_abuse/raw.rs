//! A client of HTTP/2 that writes what it likes, and reads as much of the answers as the attacks need.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::super::*;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RESET: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 1;
pub(super) const ACK: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

/// One frame as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Literal, never indexed, never compressed.
pub(super) fn field(name: &str, value: &str) -> Vec<u8> {
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

pub(super) fn call(path: &str) -> Vec<u8> {
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
pub(super) fn message(bytes: &[u8]) -> Vec<u8> {
    let mut message = vec![0];
    message.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
    message.extend(bytes);
    message
}

pub(super) fn encoded(report: proto::report::Kind) -> Vec<u8> {
    prost::Message::encode_to_vec(&self::report(report))
}

pub(super) fn hello() -> Vec<u8> {
    message(&encoded(proto::report::Kind::Hello(proto::Hello {
        sidecar_version: "0.1.0".to_owned(),
        instance: "0123456789abcdef0123456789abcdef".to_owned(),
        ..Default::default()
    })))
}

/// A client that writes what it likes.
pub(super) struct Raw {
    reader: ReadHalf<TlsStream<TcpStream>>,
    writer: WriteHalf<TlsStream<TcpStream>>,
}

impl Raw {
    pub(super) async fn connect(world: &World, svid: Option<&Svid>) -> Self {
        Self::connect_with(world, svid, &[]).await
    }

    pub(super) async fn connect_with(world: &World, svid: Option<&Svid>, settings: &[u8]) -> Self {
        let config = match svid {
            None => world.pinned(),
            Some(svid) => {
                let mut bundles = Bundles::new();
                bundles.insert(world.bundle());
                let clock = Arc::new(TlsClock(world.clock.clone()));
                let profile = &TlsProfile::default();
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

    pub(super) async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.writer.write_all(bytes).await?;
        self.writer.flush().await
    }

    /// Writes the same again and again, as often as said or as the server takes it; how often that was.
    pub(super) async fn flood(&mut self, bytes: &[u8], times: usize) -> usize {
        for time in 0..times {
            if self.send(bytes).await.is_err() {
                return time;
            }
        }
        times
    }

    /// The next frame, or nothing when the server has ended the connection.
    pub(super) async fn read(&mut self) -> Option<Frame> {
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
    pub(super) async fn until(&mut self, mut wanted: impl FnMut(&Frame) -> bool) -> Option<Frame> {
        loop {
            let frame = self.read().await?;
            if wanted(&frame) {
                return Some(frame);
            }
        }
    }

    /// The gRPC status of a stream, which the server ends: from its trailers, or −1 if it was reset.
    pub(super) async fn verdict(&mut self, stream: u32) -> i32 {
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
    pub(super) async fn farewell(&mut self) -> Option<u32> {
        let goodbye = self.until(|frame| frame.kind == GOAWAY).await?;
        Some(u32::from_be_bytes(
            goodbye.payload[4..8].try_into().unwrap(),
        ))
    }
}

/// The value of `grpc-status` in a header block of a server that has sent few before: the name literally or
/// Huffman-coded, the value as one or two characters.
pub(super) fn status_in(block: &[u8]) -> i32 {
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

#[test]
fn numbers_are_read_from_huffman_code() {
    assert_eq!(huffman_number(&[0b0000_0111]), Some(0));
    assert_eq!(huffman_number(&[0b0000_1011, 0b0011_1111]), Some(13));
    assert_eq!(huffman_number(&[0b0000_1000, 0b1011_1111]), Some(12));
    assert_eq!(huffman_number(&[0b0000_1011, 0b0101_1111]), Some(14));
    assert_eq!(huffman_number(&[0b0111_1111]), Some(9));
}
