//! Which fields belong to one hop, by rule and by the sender's `Connection` field (RFC 9110 §7.6.1).
//!
//! A sender may drop fields of its own from what is forwarded, but never a field that frames the
//! message, routes it, or says who the caller is: naming one of those refuses the message, because
//! "delete the identity header" is an attack and no client needs it (H1).

use bytes::Bytes;

use crate::{Fields, Version, grammar, xfcc};

/// The sender's `Connection` field names something it may not drop.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    #[error("the `Connection` field holds something that is not a field name")]
    BreaksOption,
    #[error("the `Connection` field names `{0}`, which is not the sender's to drop")]
    NamesProtected(String),
    #[error("the `Connection` field names more than {MAX_NAMED} fields")]
    NamesTooMany,
}

/// How many fields one message may declare to be for this hop only.
pub const MAX_NAMED: usize = 16;

/// What a message says about the connection it came on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    closes: bool,
    keeps_alive: bool,
    upgrades: bool,
    named: Vec<Bytes>,
}

/// Never forwarded: RFC 9110 §7.6.1, and the credentials meant for a proxy.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// Fields that frame, route or authenticate a message, in folded form.
const PROTECTED: [&str; 16] = [
    "host",
    "content-length",
    "transfer-encoding",
    "content-type",
    "content-encoding",
    "content-range",
    "authorization",
    "cookie",
    "set-cookie",
    "cache-control",
    "expect",
    "date",
    "origin",
    "forwarded",
    "x-real-ip",
    "max-forwards",
];

const PROTECTED_PREFIXES: [&str; 2] = ["x-forwarded-", "x-fender-"];

impl Connection {
    /// Reads every `Connection` field of a message.
    pub fn of(fields: &Fields) -> Result<Self, ConnectionError> {
        let mut connection = Self::default();
        for value in fields.all("connection") {
            for option in grammar::list(value) {
                connection.take(fields, option)?;
            }
        }
        Ok(connection)
    }

    fn take(&mut self, fields: &Fields, option: &[u8]) -> Result<(), ConnectionError> {
        if !grammar::is_token(option) {
            return Err(ConnectionError::BreaksOption);
        }
        if option.eq_ignore_ascii_case(b"close") {
            self.closes = true;
        } else if option.eq_ignore_ascii_case(b"keep-alive") {
            self.keeps_alive = true;
        } else if option.eq_ignore_ascii_case(b"upgrade") {
            self.upgrades = true;
        } else if is_hop_by_hop(option) {
            // Some servers name `Transfer-Encoding` here; it stays on this hop in any case.
        } else if is_protected(option) {
            let name = grammar::ascii(option).to_owned();
            return Err(ConnectionError::NamesProtected(name));
        } else {
            if self.named.len() >= MAX_NAMED {
                return Err(ConnectionError::NamesTooMany);
            }
            self.named.push(fields.share(option));
        }
        Ok(())
    }

    /// Says whether the connection may carry another message after this one (RFC 9112 §9.3).
    #[must_use]
    pub fn persists(&self, version: Version) -> bool {
        match version {
            Version::Http11 => !self.closes,
            Version::Http10 => self.keeps_alive && !self.closes,
        }
    }

    /// Says whether `upgrade` was among the options.
    #[must_use]
    pub fn upgrades(&self) -> bool {
        self.upgrades
    }

    /// Says whether the field `name` stays on this hop.
    #[must_use]
    pub fn strips(&self, name: impl AsRef<[u8]>) -> bool {
        let name = name.as_ref();
        is_hop_by_hop(name)
            || self
                .named
                .iter()
                .any(|named| named.eq_ignore_ascii_case(name))
    }

    /// The fields the sender declared to be for this hop only, beyond those that always are.
    pub fn named(&self) -> impl Iterator<Item = &str> {
        self.named.iter().map(|name| grammar::ascii(name))
    }
}

/// Says whether a field is for one hop whatever `Connection` says.
#[must_use]
pub fn is_hop_by_hop(name: &[u8]) -> bool {
    HOP_BY_HOP
        .iter()
        .any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
}

/// Says whether a field frames, routes or authenticates a message, under any spelling.
#[must_use]
pub fn is_protected(name: &[u8]) -> bool {
    PROTECTED
        .iter()
        .any(|known| grammar::folds_to(name, known.as_bytes()))
        || PROTECTED_PREFIXES
            .iter()
            .any(|known| grammar::folds_to_prefix(name, known.as_bytes()))
        || xfcc::is_identity_header(name)
}
