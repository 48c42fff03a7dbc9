//! The request line, the target's four forms and what a request's fields mean together.

use std::fmt;

use bytes::Bytes;

use super::{Declared, HeadError, Limits, Version, declared, upgrade_of};
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
    pub(super) authority: Authority,
    pub(super) connection: Connection,
    pub(super) framing: Framing,
    pub(super) expect_continue: bool,
    pub(super) upgrade: Option<Bytes>,
}

impl RequestHead {
    /// Reads the fields together with the request line; `bytes` is the whole head.
    pub(super) fn new(line: Line, bytes: &Bytes, fields: Fields) -> Result<Self, HeadError> {
        let method = bytes.slice(line.method.0..line.method.1);
        let target = Target::parse(bytes.slice(line.target.0..line.target.1), &method)?;
        let framing = match declared(&fields, line.version)? {
            Declared::Nothing => Framing::None,
            Declared::Length(length) => Framing::Length(length),
            Declared::Chunked => Framing::Chunked,
        };
        let connection = Connection::of(&fields)?;
        let authority = authority(&fields, target.authority, line.version)?;
        let expect_continue = expects_continue(&fields, line.version)?
            && !matches!(framing, Framing::None | Framing::Length(0));
        let upgrade = match framing {
            Framing::None | Framing::Length(0) => upgrade_of(&fields, &connection, line.version),
            Framing::Length(_) | Framing::Chunked | Framing::UntilClose => None,
        };
        Ok(Self {
            method,
            path: target.path,
            query: target.query,
            form: target.form,
            version: line.version,
            fields,
            authority,
            connection,
            framing,
            expect_continue,
            upgrade,
        })
    }

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

    /// The host asked for, canonical.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
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

/// A request line, as ranges of the buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    method: (usize, usize),
    target: (usize, usize),
    version: Version,
}

impl Line {
    /// Parses `method SP target SP version` (RFC 9112 §3); `at` is where the line begins.
    pub(super) fn parse(line: &[u8], at: usize, limits: &Limits) -> Result<Self, HeadError> {
        let mut parts = line.split(|byte| *byte == b' ');
        let method = parts.next().unwrap_or_default();
        if !grammar::is_method(method) {
            return Err(HeadError::BreaksMethod);
        }
        let (Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(HeadError::BreaksStartLine);
        };
        let version = Version::parse(version)?;
        if target.len() > limits.target {
            return Err(HeadError::ExceedsTarget);
        }
        if method == b"CONNECT" {
            return Err(HeadError::AsksTunnel);
        }
        if target.is_empty() {
            return Err(HeadError::BreaksStartLine);
        }
        if !target
            .iter()
            .all(|byte| byte.is_ascii_graphic() && *byte != b'#')
        {
            return Err(HeadError::BreaksTarget);
        }
        let method_end = at + method.len();
        let target_at = method_end + 1;
        Ok(Self {
            method: (at, method_end),
            target: (target_at, target_at + target.len()),
            version,
        })
    }
}

/// A request target, taken apart.
pub(super) struct Target {
    pub(super) form: TargetForm,
    pub(super) authority: Option<Authority>,
    pub(super) path: Bytes,
    pub(super) query: Option<Bytes>,
}

impl Target {
    pub(super) fn parse(target: Bytes, method: &[u8]) -> Result<Self, HeadError> {
        if target.starts_with(b"/") {
            let (path, query) = split_query(target);
            return Ok(Self {
                form: TargetForm::Origin,
                authority: None,
                path,
                query,
            });
        }
        if target[..] == b"*"[..] {
            if method != b"OPTIONS" {
                return Err(HeadError::MisfitsTarget);
            }
            return Ok(Self {
                form: TargetForm::Asterisk,
                authority: None,
                path: target,
                query: None,
            });
        }
        Self::parse_absolute(&target, method)
    }

    /// `http://host[:port][/path][?query]` (RFC 9112 §3.2.2).
    fn parse_absolute(target: &Bytes, method: &[u8]) -> Result<Self, HeadError> {
        let colon = target.iter().position(|byte| *byte == b':');
        let (scheme, rest) = target.split_at(colon.unwrap_or(0));
        if !scheme.eq_ignore_ascii_case(b"http") && !scheme.eq_ignore_ascii_case(b"https") {
            return Err(HeadError::MisfitsTarget);
        }
        let rest = rest.strip_prefix(b"://").ok_or(HeadError::MisfitsTarget)?;
        let end = rest
            .iter()
            .position(|byte| matches!(byte, b'/' | b'?'))
            .unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(end);
        let authority = Authority::parse(target.slice_ref(authority))?;
        let (path, query) = split_query(target.slice_ref(rest));
        let path = match (path.is_empty(), method) {
            (false, _) => path,
            (true, b"OPTIONS") if query.is_none() => Bytes::from_static(b"*"),
            (true, _) => Bytes::from_static(b"/"),
        };
        Ok(Self {
            form: TargetForm::Absolute,
            authority: Some(authority),
            path,
            query,
        })
    }
}

fn split_query(target: Bytes) -> (Bytes, Option<Bytes>) {
    match target.iter().position(|byte| *byte == b'?') {
        Some(at) => (target.slice(..at), Some(target.slice(at + 1..))),
        None => (target, None),
    }
}

/// Exactly one `Host` in HTTP/1.1 (RFC 9112 §3.2); in HTTP/1.0 it may be the target that says it.
///
/// A request that names no host at all, as HTTP/1.0 allows, is refused: it goes on as HTTP/1.1, which must
/// name one, and whichever were put there, the application would serve a site that nobody asked for and no
/// policy judged.
///
/// A target that names a host must name the same one: the RFC lets the target win, but an
/// application that reads the field instead would serve another site than the one that was matched.
fn authority(
    fields: &Fields,
    of_target: Option<Authority>,
    version: Version,
) -> Result<Authority, HeadError> {
    let mut hosts = fields.all("host");
    let of_field = match (hosts.next(), hosts.next()) {
        (Some(host), None) => Some(Authority::parse(fields.share(host))?),
        (Some(_), Some(_)) => return Err(HeadError::RepeatsHost),
        (None, _) if version == Version::Http11 => return Err(HeadError::LacksHost),
        (None, _) => None,
    };
    match (of_target, of_field) {
        (Some(target), Some(field)) if target != field => Err(HeadError::DisagreesOnHost),
        (Some(authority), _) | (None, Some(authority)) => Ok(authority),
        (None, None) => Err(HeadError::LacksHost),
    }
}

/// RFC 9110 §10.1.1: HTTP/1.0 expectations are ignored, unknown ones refused.
pub(super) fn expects_continue(fields: &Fields, version: Version) -> Result<bool, HeadError> {
    if version == Version::Http10 {
        return Ok(false);
    }
    let mut expects = false;
    for value in fields.all("expect") {
        if !value.eq_ignore_ascii_case(b"100-continue") {
            return Err(HeadError::ExpectsUnknown);
        }
        expects = true;
    }
    Ok(expects)
}
