//! Request and response heads of HTTP/1 (RFC 9112), read strictly as the bytes arrive.
//!
//! Written by hand rather than on `httparse`: that parser accepts a bare LF as a line end and skips
//! any number of empty lines, and it starts from the first byte again on every read. Here each byte
//! is looked at once, each line is judged when it ends, and each refusal has a name (P4). `httparse`
//! remains as the reference in our tests: what we accept, it accepts and reads alike.
//!
//! Refused: `Content-Length` beside `Transfer-Encoding`, several `Content-Length` even if equal, any
//! `Transfer-Encoding` but one `chunked`, bare LF, bare CR, folded lines, HTTP/1.0 with
//! `Transfer-Encoding`, white space before a colon, a missing, second or malformed `Host`,
//! lower-case methods, `CONNECT`. A head that was refused is never partly usable: the connection
//! answers with [`HeadError::status`] and closes.

mod request;
mod response;

use bytes::BytesMut;

use crate::{
    Fields,
    authority::AuthorityError,
    connection::ConnectionError,
    fields::{FieldError, Span},
};

pub use crate::grammar::{folds_to, folds_to_prefix, is_method};
pub use request::{RequestHead, TargetForm};
pub use response::ResponseHead;

/// How much of a peer's head is read before it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The whole head, with its line ends; at most 16 MiB counts.
    pub bytes: usize,
    /// The number of fields.
    pub headers: usize,
    /// The request target.
    pub target: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 32 * 1024,
            headers: 100,
            target: 8 * 1024,
        }
    }
}

/// HTTP/1.0 or HTTP/1.1; there is no other HTTP/1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http10,
    Http11,
}

/// Why a head was refused, one variant per attack.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeadError {
    #[error("the first byte does not begin an HTTP/1 message")]
    BeginsOtherProtocol,
    #[error("a line ends in a bare line feed")]
    EndsLineBare,
    #[error("the head is larger than the limit")]
    ExceedsBytes,
    #[error("the head has more fields than the limit")]
    ExceedsFields,
    #[error("the request target is longer than the limit")]
    ExceedsTarget,
    #[error("the first line is not of the form the protocol demands")]
    BreaksStartLine,
    #[error("the first line holds a bare carriage return")]
    HoldsBareCarriageReturn,
    #[error("the method is not an upper-case name")]
    BreaksMethod,
    #[error("the request target holds a byte that is not allowed there")]
    BreaksTarget,
    #[error("the form of the request target does not fit the method")]
    MisfitsTarget,
    #[error("`CONNECT` is not offered")]
    AsksTunnel,
    #[error("the protocol version is not HTTP/1.0 or HTTP/1.1")]
    DiffersInVersion,
    #[error("the status code is not a number from 100 to 999")]
    BreaksStatus,
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error("the `Host` field is missing")]
    LacksHost,
    #[error("there are several `Host` fields")]
    RepeatsHost,
    #[error("the host is malformed: {0}")]
    BreaksHost(#[from] AuthorityError),
    #[error("the request target and the `Host` field name different hosts")]
    DisagreesOnHost,
    #[error("`Content-Length` and `Transfer-Encoding` are both given")]
    FramesTwice,
    #[error("there are several `Content-Length` values")]
    RepeatsContentLength,
    #[error("`Content-Length` is not a plain decimal number")]
    BreaksContentLength,
    #[error("`Transfer-Encoding` is not one `chunked`")]
    BreaksTransferEncoding,
    #[error("`Transfer-Encoding` names a coding that is not offered")]
    AsksTransferCoding,
    #[error("`Transfer-Encoding` is not part of HTTP/1.0")]
    ChunksHttp10,
    #[error("a field name looks like `Content-Length` or `Transfer-Encoding` and is neither")]
    DisguisesFraming,
    #[error("a response that has no body declares one")]
    FramesBodiless,
    #[error("`Expect` asks for something other than `100-continue`")]
    ExpectsUnknown,
    #[error(transparent)]
    Connection(#[from] ConnectionError),
}

impl HeadError {
    /// The status to answer a request with; for a response it is the gateway's 502 instead.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::ExceedsBytes | Self::ExceedsFields => 431,
            Self::ExceedsTarget => 414,
            Self::ExpectsUnknown => 417,
            Self::AsksTunnel | Self::AsksTransferCoding => 501,
            Self::DiffersInVersion => 505,
            Self::BeginsOtherProtocol
            | Self::EndsLineBare
            | Self::BreaksStartLine
            | Self::HoldsBareCarriageReturn
            | Self::BreaksMethod
            | Self::BreaksTarget
            | Self::MisfitsTarget
            | Self::BreaksStatus
            | Self::Field(_)
            | Self::LacksHost
            | Self::RepeatsHost
            | Self::BreaksHost(_)
            | Self::DisagreesOnHost
            | Self::FramesTwice
            | Self::RepeatsContentLength
            | Self::BreaksContentLength
            | Self::BreaksTransferEncoding
            | Self::ChunksHttp10
            | Self::DisguisesFraming
            | Self::FramesBodiless
            | Self::Connection(_) => 400,
        }
    }
}

/// Reads heads from one connection, keeping its place between reads.
///
/// Between two calls the caller only appends to the buffer; when a head is complete it is split off
/// and what remains is the body. After an error the reader and the connection are spent.
#[derive(Debug)]
pub struct HeadReader {
    limits: Limits,
}

impl HeadReader {
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits }
    }

    /// Takes a request head from the front of `buffer`, or `None` while it is incomplete.
    pub fn request(&mut self, buffer: &mut BytesMut) -> Result<Option<RequestHead>, HeadError> {
        todo!()
    }

    /// Takes the head of the response to a request of method `method` from the front of `buffer`,
    /// or `None` while it is incomplete.
    ///
    /// Interim responses (1xx) come out like any other; the caller asks again for the final one.
    pub fn response(
        &mut self,
        buffer: &mut BytesMut,
        method: &str,
    ) -> Result<Option<ResponseHead>, HeadError> {
        todo!()
    }

    /// Says whether part of a head has been read: the connection is no longer idle.
    #[must_use]
    pub fn has_begun(&self, buffer: &BytesMut) -> bool {
        !buffer.is_empty()
    }
}
