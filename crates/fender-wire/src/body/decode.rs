//! The decoder: bytes of the wire to data and trailers.

use bytes::{Bytes, BytesMut};

use super::Framing;
use crate::{Fields, fields::FieldError};

/// How much beside the data itself one body may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyLimits {
    /// Bytes of chunk extensions in the whole body.
    pub extensions: usize,
    /// Bytes of the trailer section, with its line ends.
    pub trailer_bytes: usize,
    /// Number of trailer fields.
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
    framing: Framing,
    limits: BodyLimits,
}

impl Decoder {
    #[must_use]
    pub fn new(framing: Framing, limits: BodyLimits) -> Self {
        Self { framing, limits }
    }

    /// Takes the next step from the front of `buffer`.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Frame, BodyError> {
        todo!()
    }

    /// Tells the decoder that the connection ended: the end of a body that runs until then, and a
    /// truncation of any other.
    pub fn end_of_stream(&mut self) -> Result<(), BodyError> {
        todo!()
    }

    /// Says whether [`Frame::End`] was handed out.
    #[must_use]
    pub fn is_done(&self) -> bool {
        todo!()
    }
}
