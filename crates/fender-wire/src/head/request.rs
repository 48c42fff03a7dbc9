//! The request line, the target's four forms and what a request's fields mean together.

use std::fmt;

use bytes::Bytes;

use super::{HeadError, Version};
use crate::{Authority, Fields, Framing, connection::Connection, grammar};

/// How the target was written (RFC 9112 §3.2); it is forwarded in origin or asterisk form only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetForm {
    /// `/path?query`
    Origin,
    /// `http://host/path?query`, whose host agreed with the `Host` field.
    Absolute,
    /// `*`, with `OPTIONS`.
    Asterisk,
}

/// A request head that can be read in one way only.
#[derive(Clone)]
pub struct RequestHead {
    pub(super) method: Bytes,
    pub(super) path: Bytes,
    pub(super) query: Option<Bytes>,
    pub(super) form: TargetForm,
    pub(super) version: Version,
    pub(super) fields: Fields,
    pub(super) authority: Option<Authority>,
    pub(super) connection: Connection,
    pub(super) framing: Framing,
    pub(super) expect_continue: bool,
    pub(super) upgrade: Option<Bytes>,
}

impl RequestHead {
    #[must_use]
    pub fn method(&self) -> &str {
        grammar::ascii(&self.method)
    }

    /// The path as it was written, beginning with `/`, or `*`; to be normalised before any use.
    #[must_use]
    pub fn path(&self) -> &str {
        grammar::ascii(&self.path)
    }

    /// What follows the first `?`, forwarded untouched and never matched (P2).
    #[must_use]
    pub fn query(&self) -> Option<&str> {
        self.query.as_deref().map(grammar::ascii)
    }

    #[must_use]
    pub fn form(&self) -> TargetForm {
        self.form
    }

    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    #[must_use]
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// The host asked for, canonical; absent only in HTTP/1.0.
    #[must_use]
    pub fn authority(&self) -> Option<&Authority> {
        self.authority.as_ref()
    }

    /// What the sender said about this hop.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    #[must_use]
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Says whether another request may follow on this connection.
    #[must_use]
    pub fn keep_alive(&self) -> bool {
        self.connection.persists(self.version)
    }

    /// Says whether the client waits for `100 Continue` before it sends the body.
    #[must_use]
    pub fn expect_continue(&self) -> bool {
        self.expect_continue
    }

    /// The one protocol the client asks to change to, if it is one we would carry.
    ///
    /// Absent for `h2c` and for TLS: those would carry further requests past the gate.
    #[must_use]
    pub fn upgrade(&self) -> Option<&str> {
        self.upgrade.as_deref().map(grammar::ascii)
    }
}

impl fmt::Debug for RequestHead {
    /// Without query and field values, which carry secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestHead")
            .field("method", &self.method())
            .field("path", &self.path())
            .field("fields", &self.fields)
            .field("framing", &self.framing)
            .finish_non_exhaustive()
    }
}
