//! Message bodies (RFC 9112 §6 and §7): how long one is, and its bytes on either side of the wire.
//!
//! Refused: chunk lines that end in a bare LF, chunk sizes that overflow, white space around a
//! chunk size, chunk extensions and trailers beyond their caps, trailers that frame, route or
//! authenticate. Extensions are read and dropped. The decoder never holds data back: what has
//! arrived is handed on as slices of the buffer it arrived in.

mod decode;
mod encode;

pub use decode::{BodyError, BodyLimits, Decoder, Frame, is_forbidden_trailer};
pub use encode::{EncodeError, Encoded, Encoder};

/// How the end of a body is known (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    None,
    /// So many bytes.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// Up to the end of the connection; responses only.
    UntilClose,
}
