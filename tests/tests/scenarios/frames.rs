//! HTTP/2 by hand, for what no library would send: frames as they are wished, headers as literals.

use anyhow::{Result, ensure};
use fender_tests::Client;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

pub(crate) type Fields = Vec<(Vec<u8>, Vec<u8>)>;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const ACK: u8 = 1;

/// What became of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Status(u16),
    Reset,
    /// The whole connection ended.
    Closed,
}

/// One frame from the other side.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// A frame as it goes over the wire (RFC 9113, 4.1).
pub(crate) fn written(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A connection on which frames are written by hand; they go out with the next read.
pub(crate) struct Frames {
    pub(crate) stream: TlsStream<TcpStream>,
    out: Vec<u8>,
}

impl Frames {
    /// Connects and says the preface, with empty settings.
    pub(crate) async fn begin(client: &Client) -> Result<Self> {
        let stream = client.with_alpn(&[b"h2"]).connect().await?;
        let mut frames = Self {
            stream,
            out: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        };
        frames.frame(SETTINGS, 0, 0, &[]);
        Ok(frames)
    }

    pub(crate) fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.out.extend(written(kind, flags, stream, payload));
    }

    pub(crate) fn headers(&mut self, stream: u32, fields: &[(Vec<u8>, Vec<u8>)], ends: bool) {
        let flags = END_HEADERS | if ends { END_STREAM } else { 0 };
        self.frame(HEADERS, flags, stream, &block(fields));
    }

    pub(crate) fn data(&mut self, stream: u32, data: &[u8], ends: bool) {
        self.frame(DATA, u8::from(ends), stream, data);
    }

    /// Sends what was written so far.
    pub(crate) async fn send(&mut self) -> std::io::Result<()> {
        let out = std::mem::take(&mut self.out);
        self.stream.write_all(&out).await?;
        self.stream.flush().await
    }

    /// The next frame, or nothing at the end of the connection, whichever way it came.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        self.send().await.ok()?;
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await.ok()?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.stream.read_exact(&mut payload).await.ok()?;
        Some(Frame {
            kind,
            flags,
            stream: u32::from_be_bytes(stream),
            payload,
        })
    }

    /// Reads until the stream was answered in whole, or reset, or everything ended.
    pub(crate) async fn answer(&mut self, stream: u32) -> Result<Answer> {
        let mut status = None;
        while let Some(frame) = self.next().await {
            match (frame.kind, frame.stream) {
                (GOAWAY, _) => return Ok(Answer::Closed),
                (SETTINGS, _) if frame.flags & ACK == 0 => self.frame(SETTINGS, ACK, 0, &[]),
                (RST_STREAM, of) if of == stream => {
                    return Ok(status.map_or(Answer::Reset, Answer::Status));
                }
                (HEADERS | DATA, of) if of == stream => {
                    if frame.kind == HEADERS && status.is_none() {
                        status = Some(first_status(&frame.payload)?);
                    }
                    if let (Some(status), true) = (status, frame.flags & END_STREAM != 0) {
                        return Ok(Answer::Status(status));
                    }
                }
                _ => {}
            }
        }
        Ok(Answer::Closed)
    }
}

/// Each field as a literal that no table remembers.
pub(crate) fn block(fields: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            integer(&mut block, text.len());
            block.extend_from_slice(text);
        }
    }
    block
}

/// RFC 7541 §5.1, behind one bit.
pub(crate) fn integer(out: &mut Vec<u8>, value: usize) {
    let Some(mut rest) = value.checked_sub(127) else {
        return out.push(value as u8);
    };
    out.push(127);
    while rest >= 128 {
        out.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    out.push(rest as u8);
}

/// `:status` comes first: from the static table, or as a literal of three digits.
fn first_status(block: &[u8]) -> Result<u16> {
    let known = [200, 204, 206, 304, 400, 404, 500];
    // A change of the table's size may come before.
    let block = match block {
        [first, rest @ ..] if first & 0b1110_0000 == 0b0010_0000 => rest,
        _ => block,
    };
    match block {
        [index @ 0x88..=0x8e, ..] => Ok(known[usize::from(index - 0x88)]),
        // Name 8 of the static table, remembered or not, and a value of its own.
        [0x48 | 0x08 | 0x18, length, rest @ ..] => {
            let (huffman, length) = (length & 0x80 != 0, usize::from(length & 0x7f));
            ensure!(rest.len() >= length, "a status is cut off");
            let text = match huffman {
                true => digits(&rest[..length]),
                false => String::from_utf8_lossy(&rest[..length]).into_owned(),
            };
            Ok(text.parse()?)
        }
        _ => anyhow::bail!("no status in {block:?}"),
    }
}

/// RFC 7541, appendix B: 0 to 2 have five bits, 3 to 9 six.
fn digits(bytes: &[u8]) -> String {
    let bits: Vec<u8> = bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1))
        .collect();
    let number = |bits: &[u8]| {
        bits.iter()
            .fold(0, |number, bit| number << 1 | u32::from(*bit))
    };
    let (mut at, mut text) = (0, String::new());
    while text.len() < 3 && at + 5 <= bits.len() {
        let (digit, length) = match number(&bits[at..at + 5]) {
            short @ 0..=2 => (short, 5),
            _ if at + 6 <= bits.len() => (number(&bits[at..at + 6]).wrapping_sub(0x19) + 3, 6),
            _ => break,
        };
        text.extend(char::from_digit(digit, 10));
        at += length;
    }
    text
}

#[test]
fn a_status_is_read_in_every_form_it_comes_in() {
    assert_eq!(first_status(&[0x88]).unwrap(), 200);
    assert_eq!(first_status(&[0x8c, 0x00]).unwrap(), 400);
    // 403 and 501, as h2 writes them.
    assert_eq!(first_status(&[0x48, 0x83, 0x68, 0x0c, 0xff]).unwrap(), 403);
    assert_eq!(first_status(b"\x08\x03501").unwrap(), 501);
}
