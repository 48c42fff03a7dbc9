//! HTTP/2 as it is on the wire, for apps that say what no library says.

use std::net::SocketAddr;

use fender_runtime::drain::Drain;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::*;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A frame as it is on the wire (RFC 9113 §4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A length of HPACK (RFC 7541 §5.1), of a text that is not compressed.
fn length(out: &mut Vec<u8>, mut length: usize) {
    if length < 0x7f {
        return out.push(u8::try_from(length).unwrap());
    }
    out.push(0x7f);
    length -= 0x7f;
    while length >= 0x80 {
        out.push(u8::try_from(length % 0x80).unwrap() | 0x80);
        length /= 0x80;
    }
    out.push(u8::try_from(length).unwrap());
}

/// Fields as they are, whatever is wrong with them (RFC 7541 §6.2.2).
pub(crate) fn block<N: AsRef<[u8]>, V: AsRef<[u8]>>(
    fields: impl IntoIterator<Item = (N, V)>,
) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name.as_ref(), value.as_ref()] {
            length(&mut block, text.len());
            block.extend(text);
        }
    }
    block
}

/// A head, in as many frames as it takes.
pub(crate) fn headers(flags: u8, stream: u32, block: &[u8]) -> Vec<u8> {
    const CONTINUATION: u8 = 9;
    let mut pieces = block.chunks(16 * 1024).peekable();
    let mut all = Vec::new();
    let mut kind = HEADERS;
    while let Some(piece) = pieces.next() {
        let last = match pieces.peek() {
            Some(_) => 0,
            None => END_HEADERS,
        };
        let flags = if kind == HEADERS { flags | last } else { last };
        all.extend(frame(kind, flags, stream, piece));
        kind = CONTINUATION;
    }
    all
}

/// The app's half of the start of a connection.
pub(crate) async fn greet(socket: &mut TcpStream) {
    let mut preface = [0; 24];
    socket.read_exact(&mut preface).await.unwrap();
    let settings = frame(SETTINGS, 0, 0, b"");
    socket.write_all(&settings).await.unwrap();
}

/// The next frame: kind, flags, stream, payload. None at the end of the connection.
pub(crate) async fn next(socket: &mut TcpStream) -> Option<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    socket.read_exact(&mut head).await.ok()?;
    let [l2, l1, l0, kind, flags, stream @ ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, l2, l1, l0]) as usize];
    socket.read_exact(&mut payload).await.ok()?;
    if kind == SETTINGS && flags & 1 == 0 {
        let _ = socket.write_all(&frame(SETTINGS, 1, 0, b"")).await;
    }
    Some((kind, flags, u32::from_be_bytes(stream), payload))
}

/// An app that answers the head of each request with these bytes, which say on which stream they are.
pub(crate) async fn app_of_frames<F>(tasks: &Drain, answer: F) -> SocketAddr
where
    F: Fn(u32) -> Vec<u8> + Clone + Send + Sync + 'static,
{
    raw_app(tasks, move |mut socket| {
        let answer = answer.clone();
        async move {
            greet(&mut socket).await;
            while let Some((kind, _, stream, _)) = next(&mut socket).await {
                if kind == HEADERS && socket.write_all(&answer(stream)).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}
