//! The decoder: bytes of the wire to data and trailers.

use bytes::{Buf, Bytes, BytesMut};

use super::Framing;
use crate::{
    Fields, connection,
    fields::{FieldError, Span},
    grammar,
};

/// How much beside the data itself one body may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyLimits {
    /// Chunk extensions in the whole body, in bytes. 4 KiB: hardly anybody sends one, and nobody reads it.
    pub extensions: usize,
    /// The trailer section, in bytes, line ends included. 8 KiB: checksums fit, and the status of a gRPC call
    /// with its details.
    pub trailer_bytes: usize,
    /// Fields of the trailer section. 32.
    pub trailers: usize,
}

impl Default for BodyLimits {
    fn default() -> Self {
        Self {
            extensions: 4 * 1024,
            trailer_bytes: 8 * 1024,
            trailers: 32,
        }
    }
}

/// Why a body was refused. Nothing after this point of the connection can be trusted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BodyError {
    #[error("a chunk size is not a hexadecimal number")]
    BreaksChunkSize,
    #[error("a chunk size does not fit 64 bits")]
    OverflowsChunkSize,
    #[error("a chunk line does not end in carriage return and line feed")]
    EndsChunkLineBare,
    #[error("a chunk extension holds a byte that is not allowed there")]
    BreaksExtension,
    #[error("the chunk extensions are larger than the limit")]
    ExceedsExtensions,
    #[error("a chunk is longer than its size says")]
    OverrunsChunk,
    #[error("a trailer line ends in a bare line feed")]
    EndsTrailerBare,
    #[error("the trailers are larger than the limit")]
    ExceedsTrailers,
    #[error("a trailer is malformed: {0}")]
    BreaksTrailer(#[from] FieldError),
    #[error("the trailer `{0}` may only be a header")]
    ForbidsTrailer(String),
    #[error("the connection ended before the body did")]
    EndsEarly,
}

/// One step of a body.
#[derive(Debug)]
pub enum Frame {
    /// Some of its bytes, never empty, sharing the buffer they arrived in.
    Data(Bytes),
    /// Its end, with the trailers (only a chunked body has any).
    End(Fields),
    /// Nothing until more bytes arrive.
    NeedMore,
}

/// Decodes one body. After [`Frame::End`] what remains in the buffer is the next message.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    limits: BodyLimits,
    extensions: usize,
    trailers: Trailers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Length { left: u64 },
    UntilClose,
    Size { digits: u8, size: u64 },
    Extension { size: u64 },
    SizeLineFeed { size: u64 },
    Chunk { left: u64 },
    ChunkReturn,
    ChunkLineFeed,
    Trailers,
    Done,
}

/// How far the trailer section has been read; it stays in the buffer until it is complete.
#[derive(Debug, Default)]
struct Trailers {
    line: usize,
    scanned: usize,
    spans: Vec<Span>,
}

impl Decoder {
    #[must_use]
    pub fn new(framing: Framing, limits: BodyLimits) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(left) => State::Length { left },
            Framing::Chunked => State::Size { digits: 0, size: 0 },
            Framing::UntilClose => State::UntilClose,
        };
        Self {
            state,
            limits,
            extensions: 0,
            trailers: Trailers::default(),
        }
    }

    /// Takes the next step from the front of `buffer`.
    ///
    /// Once the body has ended, every further call says [`Frame::End`] and takes nothing.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Frame, BodyError> {
        loop {
            match self.state {
                State::Done => return Ok(Frame::End(Fields::default())),
                State::Trailers => return self.trailers(buffer),
                State::UntilClose if buffer.is_empty() => return Ok(Frame::NeedMore),
                State::UntilClose => return Ok(Frame::Data(buffer.split().freeze())),
                State::Length { left } => {
                    let Some((data, left)) = take(buffer, left) else {
                        return Ok(Frame::NeedMore);
                    };
                    self.state = if left == 0 {
                        State::Done
                    } else {
                        State::Length { left }
                    };
                    return Ok(Frame::Data(data));
                }
                State::Chunk { left } => {
                    let Some((data, left)) = take(buffer, left) else {
                        return Ok(Frame::NeedMore);
                    };
                    self.state = if left == 0 {
                        State::ChunkReturn
                    } else {
                        State::Chunk { left }
                    };
                    return Ok(Frame::Data(data));
                }
                State::Size { .. }
                | State::Extension { .. }
                | State::SizeLineFeed { .. }
                | State::ChunkReturn
                | State::ChunkLineFeed => {
                    let Some(byte) = buffer.first().copied() else {
                        return Ok(Frame::NeedMore);
                    };
                    self.state = self.after(byte)?;
                    buffer.advance(1);
                }
            }
        }
    }

    /// The state after one byte of what stands between the data of two chunks.
    fn after(&mut self, byte: u8) -> Result<State, BodyError> {
        match (self.state, byte) {
            (State::Size { digits: 0, .. }, b'\r' | b';') => Err(BodyError::BreaksChunkSize),
            (State::Size { size, .. }, b'\r') => Ok(State::SizeLineFeed { size }),
            (State::Size { size, .. }, b';') => self.extended(size),
            (State::Size { .. }, b'\n') => Err(BodyError::EndsChunkLineBare),
            (State::Size { digits: 16, .. }, _) if byte.is_ascii_hexdigit() => {
                Err(BodyError::OverflowsChunkSize)
            }
            (State::Size { digits, size }, _) => {
                let value = char::from(byte)
                    .to_digit(16)
                    .ok_or(BodyError::BreaksChunkSize)?;
                Ok(State::Size {
                    digits: digits + 1,
                    size: size << 4 | u64::from(value),
                })
            }
            (State::Extension { size }, b'\r') => Ok(State::SizeLineFeed { size }),
            (State::Extension { .. }, b'\n') => Err(BodyError::EndsChunkLineBare),
            (State::Extension { size }, _) if byte.is_ascii_graphic() => self.extended(size),
            (State::Extension { size }, b' ' | b'\t') => self.extended(size),
            (State::Extension { .. }, _) => Err(BodyError::BreaksExtension),
            (State::SizeLineFeed { size: 0 }, b'\n') => Ok(State::Trailers),
            (State::SizeLineFeed { size }, b'\n') => Ok(State::Chunk { left: size }),
            (State::SizeLineFeed { .. }, _) => Err(BodyError::EndsChunkLineBare),
            (State::ChunkReturn, b'\r') => Ok(State::ChunkLineFeed),
            (State::ChunkLineFeed, b'\n') => Ok(State::Size { digits: 0, size: 0 }),
            (State::ChunkReturn, b'\n') => Err(BodyError::EndsChunkLineBare),
            (State::ChunkReturn | State::ChunkLineFeed, _) => Err(BodyError::OverrunsChunk),
            (
                state @ (State::Length { .. }
                | State::UntilClose
                | State::Chunk { .. }
                | State::Trailers
                | State::Done),
                _,
            ) => Ok(state),
        }
    }

    /// Counts one byte of an extension.
    fn extended(&mut self, size: u64) -> Result<State, BodyError> {
        self.extensions += 1;
        if self.extensions > self.limits.extensions {
            return Err(BodyError::ExceedsExtensions);
        }
        Ok(State::Extension { size })
    }

    fn trailers(&mut self, buffer: &mut BytesMut) -> Result<Frame, BodyError> {
        loop {
            let place = &mut self.trailers;
            let unseen = buffer.get(place.scanned..).unwrap_or_default();
            let found = unseen
                .iter()
                .position(|byte| *byte == b'\n')
                .map(|at| place.scanned + at);
            let before = found.unwrap_or(buffer.len());
            place.scanned = before;
            if before >= self.limits.trailer_bytes.max(EMPTY_SECTION) {
                return Err(BodyError::ExceedsTrailers);
            }
            let Some(line_feed) = found else {
                return Ok(Frame::NeedMore);
            };
            let line = buffer.get(place.line..line_feed).unwrap_or_default();
            let line = line.strip_suffix(b"\r").ok_or(BodyError::EndsTrailerBare)?;
            if line.is_empty() {
                self.state = State::Done;
                let spans = std::mem::take(&mut place.spans);
                return Ok(Frame::End(Fields::new(
                    buffer.split_to(line_feed + 1).freeze(),
                    spans,
                )));
            }
            if place.spans.len() >= self.limits.trailers {
                return Err(BodyError::ExceedsTrailers);
            }
            let span = Span::parse(line, place.line)?;
            let name = span.name(buffer);
            if is_forbidden_trailer(name) {
                return Err(BodyError::ForbidsTrailer(grammar::ascii(name).to_owned()));
            }
            place.spans.push(span);
            place.line = line_feed + 1;
            place.scanned = place.line;
        }
    }

    /// Tells the decoder that the connection ended: the end of a body that runs until then, and a
    /// truncation of any other.
    pub fn end_of_stream(&mut self) -> Result<(), BodyError> {
        match self.state {
            State::Done => Ok(()),
            State::UntilClose => {
                self.state = State::Done;
                Ok(())
            }
            State::Length { .. }
            | State::Size { .. }
            | State::Extension { .. }
            | State::SizeLineFeed { .. }
            | State::Chunk { .. }
            | State::ChunkReturn
            | State::ChunkLineFeed
            | State::Trailers => Err(BodyError::EndsEarly),
        }
    }

    /// Says whether the whole body has been taken.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }
}

/// The line end that closes a section without trailers.
const EMPTY_SECTION: usize = 2;

/// Takes up to `left` bytes, and says how many are then left.
fn take(buffer: &mut BytesMut, left: u64) -> Option<(Bytes, u64)> {
    if buffer.is_empty() {
        return None;
    }
    let count = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
    let data = buffer.split_to(count).freeze();
    Some((data, left - count as u64))
}

/// Says whether a field may not come after the body (RFC 9110 §6.5.1): one that frames, routes,
/// authenticates or modifies the message has been acted upon by then.
#[must_use]
pub fn is_forbidden_trailer(name: &[u8]) -> bool {
    const FURTHER: [&str; 12] = [
        "age",
        "content-location",
        "expires",
        "location",
        "pragma",
        "proxy-authenticate",
        "range",
        "retry-after",
        "te",
        "trailer",
        "vary",
        "www-authenticate",
    ];
    connection::is_protected(name)
        || connection::is_hop_by_hop(name)
        || grammar::folds_to_prefix(name, b"if-")
        || FURTHER
            .iter()
            .any(|known| grammar::folds_to(name, known.as_bytes()))
}
