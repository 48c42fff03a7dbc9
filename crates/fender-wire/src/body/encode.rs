//! The encoder: data and trailers to bytes of the wire, without copying the data.

use bytes::{Buf, Bytes};

use super::Framing;
use crate::Fields;

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
    framing: Framing,
    ended: bool,
}

impl Encoder {
    #[must_use]
    pub fn new(framing: Framing) -> Self {
        Self {
            framing,
            ended: false,
        }
    }

    /// Frames `data`; empty data encodes to nothing (an empty chunk would end the body).
    pub fn data(&mut self, data: Bytes) -> Result<Encoded, EncodeError> {
        todo!()
    }

    /// Ends the body. Trailers are left out where the framing has no place for them.
    pub fn end(&mut self, trailers: &Fields) -> Result<Bytes, EncodeError> {
        todo!()
    }
}

/// Framed data, to be written with vectored writes: size line, the data itself, line end.
#[derive(Debug)]
pub struct Encoded {
    data: Bytes,
}

impl Buf for Encoded {
    fn remaining(&self) -> usize {
        todo!()
    }

    fn chunk(&self) -> &[u8] {
        todo!()
    }

    fn advance(&mut self, count: usize) {
        todo!()
    }
}
