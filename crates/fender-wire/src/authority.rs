//! `host[:port]`, as the `Host` field, the `:authority` pseudo-header and absolute targets carry it.
//!
//! Far narrower than RFC 3986 §3.2: a registered name is letters, digits, `-`, `_` and `.`; no
//! user information, no escapes, no sub-delimiters, no empty port. The text kept is the canonical
//! one (lower case, no trailing dot), because the same text is matched and forwarded.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use bytes::Bytes;

use crate::grammar;

/// Not a host with an optional port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    #[error("the host is empty")]
    EmptiesHost,
    #[error("the host holds a byte that is not allowed there")]
    BreaksHost,
    #[error("the host has an empty label")]
    EmptiesLabel,
    #[error("the host is longer than 253 bytes or has a label longer than 63")]
    ExceedsLength,
    #[error("the host looks like an IPv4 address and is none")]
    BreaksIpv4,
    #[error("the host in brackets is not an IPv6 address")]
    BreaksIpv6,
    #[error("the port is not a number from 1 to 65535")]
    BreaksPort,
}

/// A checked, canonical `host[:port]`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Authority {
    text: Bytes,
    host_len: usize,
    port: Option<u16>,
}

impl Authority {
    /// Parses `text`, sharing it when it is canonical already.
    pub fn parse(text: Bytes) -> Result<Self, AuthorityError> {
        let (host_len, port) = check(&text)?;
        let dotted = host_len > 0 && text.get(host_len - 1) == Some(&b'.');
        if !dotted && !text.iter().any(u8::is_ascii_uppercase) {
            return Ok(Self {
                text,
                host_len,
                port,
            });
        }
        let (host, rest) = text.split_at(host_len);
        let host = if dotted {
            host.strip_suffix(b".").unwrap_or(host)
        } else {
            host
        };
        let mut canonical = host.to_ascii_lowercase();
        canonical.extend_from_slice(rest);
        Ok(Self {
            text: canonical.into(),
            host_len: host.len(),
            port,
        })
    }

    /// `host` or `host:port`, canonical: what is forwarded.
    #[must_use]
    pub fn as_str(&self) -> &str {
        grammar::ascii(&self.text)
    }

    /// The host without its port; an IPv6 address keeps its brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        self.as_str().get(..self.host_len).unwrap_or_default()
    }

    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.port
    }
}

impl FromStr for Authority {
    type Err = AuthorityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({self})")
    }
}

/// The length of the host and the port.
fn check(text: &[u8]) -> Result<(usize, Option<u16>), AuthorityError> {
    let (host_len, rest) = if let [b'[', inner @ ..] = text {
        let end = inner
            .iter()
            .position(|byte| *byte == b']')
            .ok_or(AuthorityError::BreaksIpv6)?;
        let (address, rest) = inner.split_at(end);
        check_ipv6(address)?;
        (address.len() + 2, rest.strip_prefix(b"]").unwrap_or(rest))
    } else {
        let end = text
            .iter()
            .position(|byte| *byte == b':')
            .unwrap_or(text.len());
        let (host, rest) = text.split_at(end);
        check_name(host)?;
        (host.len(), rest)
    };
    let port = match rest {
        [] => None,
        [b':', digits @ ..] => Some(check_port(digits)?),
        _ => return Err(AuthorityError::BreaksHost),
    };
    Ok((host_len, port))
}

fn check_name(host: &[u8]) -> Result<(), AuthorityError> {
    if host.is_empty() {
        return Err(AuthorityError::EmptiesHost);
    }
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !host.iter().all(allowed) {
        return Err(AuthorityError::BreaksHost);
    }
    let relative = host.strip_suffix(b".").unwrap_or(host);
    let mut labels = relative.split(|byte| *byte == b'.');
    if labels.clone().any(<[u8]>::is_empty) {
        return Err(AuthorityError::EmptiesLabel);
    }
    if relative.len() > 253 || labels.clone().any(|label| label.len() > 63) {
        return Err(AuthorityError::ExceedsLength);
    }
    // `0x7f.1`, `2130706433` and `127.1` are addresses to some resolvers and names to others.
    let last = labels.next_back().unwrap_or_default();
    let numeric = last.iter().all(u8::is_ascii_digit)
        || last
            .strip_prefix(b"0x")
            .or(last.strip_prefix(b"0X"))
            .is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
    if numeric && grammar::ascii(host).parse::<Ipv4Addr>().is_err() {
        return Err(AuthorityError::BreaksIpv4);
    }
    Ok(())
}

fn check_ipv6(address: &[u8]) -> Result<(), AuthorityError> {
    let text = std::str::from_utf8(address).map_err(|_| AuthorityError::BreaksIpv6)?;
    text.parse::<Ipv6Addr>()
        .map(drop)
        .map_err(|_| AuthorityError::BreaksIpv6)
}

fn check_port(digits: &[u8]) -> Result<u16, AuthorityError> {
    if digits.is_empty() || digits.len() > 5 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(AuthorityError::BreaksPort);
    }
    match grammar::ascii(digits).parse() {
        Ok(0) | Err(_) => Err(AuthorityError::BreaksPort),
        Ok(port) => Ok(port),
    }
}
