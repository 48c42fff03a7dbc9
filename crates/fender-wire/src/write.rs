//! Heads on their way out.
//!
//! A [`HeadWriter`] cannot be made to write a line its caller did not ask for: parsed fields are
//! proof enough, and anything else is checked byte by byte.

use bytes::BytesMut;

use crate::{Field, Framing, grammar};

/// A field, method or target that would break the head it is written into.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    #[error("`{0}` is not a method")]
    BreaksMethod(String),
    #[error("the target holds a byte that is not allowed there")]
    BreaksTarget,
    #[error("`{0}` is not a field name")]
    BreaksName(String),
    #[error("the value of the field `{0}` holds a byte that is not allowed there")]
    BreaksValue(String),
}

/// The interim response that asks for the body.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Writes one head to the end of a buffer.
#[derive(Debug)]
pub struct HeadWriter<'a> {
    out: &'a mut BytesMut,
}

impl<'a> HeadWriter<'a> {
    /// Begins a request with its method and target (`/path?query` or `*`).
    pub fn request(
        out: &'a mut BytesMut,
        method: &str,
        path: &str,
        query: Option<&str>,
    ) -> Result<Self, WriteError> {
        todo!()
    }

    /// Begins a response with its status; the reason is the usual one.
    #[must_use]
    pub fn response(out: &'a mut BytesMut, status: u16) -> Self {
        todo!()
    }

    /// Copies a parsed field.
    pub fn copy(&mut self, field: Field<'_>) {
        todo!()
    }

    /// Writes a field made here.
    pub fn field(&mut self, name: &str, value: &[u8]) -> Result<(), WriteError> {
        todo!()
    }

    /// Writes the field that declares the body: `content-length`, `transfer-encoding` or none.
    pub fn framing(&mut self, framing: Framing) {
        todo!()
    }

    /// Writes `connection: close`.
    pub fn close(&mut self) {
        todo!()
    }

    /// Writes `connection: upgrade` and `upgrade: PROTOCOL`.
    pub fn upgrade(&mut self, protocol: &str) -> Result<(), WriteError> {
        todo!()
    }

    /// Ends the head.
    pub fn end(self) {
        todo!()
    }
}

/// A whole response of ours: a status, plain text and a few fields.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// The method of the request it answers: `HEAD` gets no body.
    pub method: &'a str,
    pub status: u16,
    pub text: &'a str,
    pub fields: &'a [(&'a str, &'a str)],
    pub then: Then,
}

impl Answer<'_> {
    /// Writes the whole response to the end of a buffer.
    pub fn write(&self, out: &mut BytesMut) -> Result<(), WriteError> {
        todo!()
    }
}

/// What becomes of the connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    KeepAlive,
    Close,
}

/// The usual reason phrase of a status, or an empty one.
#[must_use]
pub fn reason(status: u16) -> &'static str {
    todo!()
}
