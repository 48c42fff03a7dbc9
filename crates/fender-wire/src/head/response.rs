//! The status line and what a response's fields mean together.

use std::fmt;

use bytes::Bytes;

use super::{Declared, HeadError, Version, declared, upgrade_of};
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
    pub(super) declared_length: Option<u64>,
    pub(super) upgrade: Option<Bytes>,
}

impl ResponseHead {
    /// Reads the fields together with the status line; `bytes` is the whole head.
    pub(super) fn new(
        line: Line,
        bytes: &Bytes,
        fields: Fields,
        method: &str,
    ) -> Result<Self, HeadError> {
        let declared = declared(&fields, line.version)?;
        let framing = framing(declared, line.status, method)?;
        let connection = Connection::of(&fields)?;
        let upgrade = match line.status {
            101 => upgrade_of(&fields, &connection, line.version),
            _ => None,
        };
        let reason = bytes.slice(line.reason.0..line.reason.1);
        let declared_length = match declared {
            Declared::Length(length) => Some(length),
            Declared::Nothing | Declared::Chunked => None,
        };
        Ok(Self {
            status: line.status,
            reason,
            version: line.version,
            fields,
            connection,
            framing,
            declared_length,
            upgrade,
        })
    }

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

    /// What `Content-Length` says, which for `HEAD` and 304 is not the length of a body.
    #[must_use]
    pub fn declared_length(&self) -> Option<u64> {
        self.declared_length
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

/// A status line, as ranges of the buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    version: Version,
    status: u16,
    reason: (usize, usize),
}

impl Line {
    /// Parses `version SP status [SP reason]` (RFC 9112 §4); `at` is where the line begins.
    pub(super) fn parse(line: &[u8], at: usize) -> Result<Self, HeadError> {
        let Some((version, [b' ', rest @ ..])) = line.split_at_checked("HTTP/1.1".len()) else {
            return Err(HeadError::BreaksStartLine);
        };
        let version = Version::parse(version)?;
        let Some((code, rest)) = rest.split_at_checked(3) else {
            return Err(HeadError::BreaksStartLine);
        };
        let [b'1'..=b'9', b'0'..=b'9', b'0'..=b'9'] = code else {
            return Err(HeadError::BreaksStatus);
        };
        let status = grammar::ascii(code)
            .parse()
            .map_err(|_| HeadError::BreaksStatus)?;
        let reason = match rest {
            [] => rest,
            [b' ', reason @ ..] => reason,
            _ => return Err(HeadError::BreaksStatus),
        };
        if !reason
            .iter()
            .all(|byte| grammar::is_field_value_byte(*byte))
        {
            return Err(HeadError::BreaksStartLine);
        }
        let end = at + line.len();
        Ok(Self {
            version,
            status,
            reason: (end - reason.len(), end),
        })
    }
}

/// RFC 9112 §6.3. A response that has no body may not announce one: whoever believes the
/// announcement reads the next response as its body. A 204 with a length is common enough to be
/// forgiven: it ends with its head, and the length is not passed on.
pub(super) fn framing(declared: Declared, status: u16, method: &str) -> Result<Framing, HeadError> {
    if matches!(status, 100..=199 | 204) {
        return match (declared, status) {
            (Declared::Nothing | Declared::Length(0), _) | (Declared::Length(_), 204) => {
                Ok(Framing::None)
            }
            (Declared::Length(_) | Declared::Chunked, _) => Err(HeadError::FramesBodiless),
        };
    }
    if method == "HEAD" || status == 304 {
        return Ok(Framing::None);
    }
    Ok(match declared {
        Declared::Nothing => Framing::UntilClose,
        Declared::Length(length) => Framing::Length(length),
        Declared::Chunked => Framing::Chunked,
    })
}
