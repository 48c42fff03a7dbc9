//! The status line and what a response's fields mean together.

use std::fmt;

use bytes::Bytes;

use super::{HeadError, Version};
use crate::{Fields, Framing, connection::Connection, grammar};

/// A response head that can be read in one way only.
#[derive(Clone)]
pub struct ResponseHead {
    pub(super) status: u16,
    pub(super) reason: Bytes,
    pub(super) version: Version,
    pub(super) fields: Fields,
    pub(super) connection: Connection,
    pub(super) framing: Framing,
    pub(super) upgrade: Option<Bytes>,
}

impl ResponseHead {
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The reason phrase, possibly empty; it means nothing and may hold bytes that are not UTF-8.
    #[must_use]
    pub fn reason(&self) -> &[u8] {
        &self.reason
    }

    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    #[must_use]
    pub fn fields(&self) -> &Fields {
        &self.fields
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

    /// Says whether this is an interim response (1xx other than 101), with the final one to come.
    #[must_use]
    pub fn is_interim(&self) -> bool {
        (100..200).contains(&self.status) && self.status != 101
    }

    /// Says whether another response may follow on this connection.
    #[must_use]
    pub fn keep_alive(&self) -> bool {
        self.connection.persists(self.version) && self.framing != Framing::UntilClose
    }

    /// The protocol a `101 Switching Protocols` changes to.
    #[must_use]
    pub fn upgrade(&self) -> Option<&str> {
        self.upgrade.as_deref().map(grammar::ascii)
    }
}

impl fmt::Debug for ResponseHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseHead")
            .field("status", &self.status)
            .field("fields", &self.fields)
            .field("framing", &self.framing)
            .finish_non_exhaustive()
    }
}
