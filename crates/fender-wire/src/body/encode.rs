//! The encoder: data and trailers to bytes of the wire, without copying the data.

use std::io::IoSlice;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{Framing, decode::is_forbidden_trailer};
use crate::{Fields, write};

/// The sender broke its own promise. What was sent cannot be completed: close the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    #[error("the body is longer than was declared")]
    ExceedsLength,
    #[error("the body is shorter than was declared by {0} bytes")]
    FallsShort(u64),
    #[error("the body has ended already")]
    ContinuesAfterEnd,
}

/// Encodes one body.
#[derive(Debug)]
pub struct Encoder {
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Length { left: u64 },
    Chunked,
    UntilClose,
    Done,
}

impl Encoder {
    #[must_use]
    pub fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::None => State::Length { left: 0 },
            Framing::Length(left) => State::Length { left },
            Framing::Chunked => State::Chunked,
            Framing::UntilClose => State::UntilClose,
        };
        Self { state }
    }

    /// Frames `data`; empty data encodes to nothing (an empty chunk would end the body).
    pub fn data(&mut self, data: Bytes) -> Result<Encoded, EncodeError> {
        let len = data.len() as u64;
        match self.state {
            State::Done => Err(EncodeError::ContinuesAfterEnd),
            State::Length { left } => {
                let left = left.checked_sub(len).ok_or(EncodeError::ExceedsLength)?;
                self.state = State::Length { left };
                Ok(Encoded::plain(data))
            }
            State::Chunked if len > 0 => Ok(Encoded::chunk(data)),
            State::Chunked | State::UntilClose => Ok(Encoded::plain(data)),
        }
    }

    /// Ends the body.
    ///
    /// Trailers are left out where the framing has no place for them, and each one that may only be
    /// a header is left out everywhere.
    pub fn end(&mut self, trailers: &Fields) -> Result<Bytes, EncodeError> {
        match std::mem::replace(&mut self.state, State::Done) {
            State::Done => Err(EncodeError::ContinuesAfterEnd),
            State::Length { left: 0 } | State::UntilClose => Ok(Bytes::new()),
            State::Length { left } => Err(EncodeError::FallsShort(left)),
            State::Chunked if trailers.is_empty() => Ok(Bytes::from_static(b"0\r\n\r\n")),
            State::Chunked => Ok(last_chunk(trailers)),
        }
    }
}

fn last_chunk(trailers: &Fields) -> Bytes {
    let mut out = BytesMut::from(&b"0\r\n"[..]);
    for field in trailers.iter() {
        if !is_forbidden_trailer(field.name().as_bytes()) {
            write::put_field(&mut out, field.name().as_bytes(), field.value());
        }
    }
    out.put_slice(b"\r\n");
    out.freeze()
}

/// Sixteen hexadecimal digits and a line end.
const SIZE_LINE: usize = 18;

/// Framed data, to be written with vectored writes: size line, the data itself, line end.
#[derive(Debug)]
pub struct Encoded {
    size_line: [u8; SIZE_LINE],
    size_at: usize,
    data: Bytes,
    tail: &'static [u8],
}

impl Encoded {
    fn plain(data: Bytes) -> Self {
        Self {
            size_line: [0; SIZE_LINE],
            size_at: SIZE_LINE,
            data,
            tail: b"",
        }
    }

    fn chunk(data: Bytes) -> Self {
        let mut size_line = *b"0000000000000000\r\n";
        let mut size_at = SIZE_LINE - 2;
        let mut rest = data.len();
        for (at, digit) in size_line.iter_mut().enumerate().take(SIZE_LINE - 2).rev() {
            if rest == 0 {
                break;
            }
            *digit = HEX.get(rest & 15).copied().unwrap_or(b'0');
            size_at = at;
            rest >>= 4;
        }
        Self {
            size_line,
            size_at,
            data,
            tail: b"\r\n",
        }
    }

    fn size_line(&self) -> &[u8] {
        self.size_line.get(self.size_at..).unwrap_or_default()
    }
}

const HEX: [u8; 16] = *b"0123456789abcdef";

impl Buf for Encoded {
    fn remaining(&self) -> usize {
        self.size_line().len() + self.data.len() + self.tail.len()
    }

    fn chunk(&self) -> &[u8] {
        match (self.size_line(), &self.data[..]) {
            ([], []) => self.tail,
            ([], data) => data,
            (size_line, _) => size_line,
        }
    }

    fn chunks_vectored<'a>(&'a self, out: &mut [IoSlice<'a>]) -> usize {
        let parts = [self.size_line(), &self.data, self.tail];
        let mut filled = 0;
        for (slot, part) in out
            .iter_mut()
            .zip(parts.into_iter().filter(|part| !part.is_empty()))
        {
            *slot = IoSlice::new(part);
            filled += 1;
        }
        filled
    }

    fn advance(&mut self, count: usize) {
        let of_size = count.min(self.size_line().len());
        self.size_at += of_size;
        let of_data = (count - of_size).min(self.data.len());
        self.data.advance(of_data);
        let of_tail = count - of_size - of_data;
        self.tail = self.tail.get(of_tail..).unwrap_or_default();
    }
}
