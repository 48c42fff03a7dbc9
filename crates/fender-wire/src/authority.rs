//! `host[:port]`, as the `Host` field, the `:authority` pseudo-header and absolute targets carry it.
//!
//! Far narrower than RFC 3986 §3.2: a registered name is letters, digits, `-`, `_` and `.`; no
//! user information, no escapes, no sub-delimiters, no empty port. The text kept is the canonical
//! one (lower case, no trailing dot, IPv6 in its shortest form), because the same text is matched and forwarded.

use std::{
    borrow::Cow,
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
        let (host, rest) = split_host(&text)?;
        let port = match rest {
            [] => None,
            [b':', digits @ ..] => Some(check_port(digits)?),
            _ => return Err(AuthorityError::BreaksHost),
        };
        let canonical = match host {
            [b'[', ..] => canonical_ipv6(host)?,
            _ => canonical_name(host)?,
        };
        let host_len = canonical.len();
        if *canonical == *host {
            return Ok(Self {
                text,
                host_len,
                port,
            });
        }
        let text = [&*canonical, rest].concat().into();
        Ok(Self {
            text,
            host_len,
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

/// The host, with the brackets of an IPv6 address, and what follows it.
fn split_host(text: &[u8]) -> Result<(&[u8], &[u8]), AuthorityError> {
    if text.starts_with(b"[") {
        let end = text
            .iter()
            .position(|byte| *byte == b']')
            .ok_or(AuthorityError::BreaksIpv6)?;
        return Ok(text.split_at(end + 1));
    }
    Ok(text.split_at(
        text.iter()
            .position(|byte| *byte == b':')
            .unwrap_or(text.len()),
    ))
}

/// Lower case, without a trailing dot.
fn canonical_name(host: &[u8]) -> Result<Cow<'_, [u8]>, AuthorityError> {
    check_name(host)?;
    let relative = host.strip_suffix(b".").unwrap_or(host);
    Ok(match relative.iter().any(u8::is_ascii_uppercase) {
        true => Cow::Owned(relative.to_ascii_lowercase()),
        false => Cow::Borrowed(relative),
    })
}

/// RFC 5952: `[0:0::1]` and `[::1]` are one host.
fn canonical_ipv6(host: &[u8]) -> Result<Cow<'_, [u8]>, AuthorityError> {
    let inner = host
        .strip_prefix(b"[")
        .and_then(|rest| rest.strip_suffix(b"]"));
    let address: Ipv6Addr = inner
        .and_then(|inner| std::str::from_utf8(inner).ok())
        .and_then(|text| text.parse().ok())
        .ok_or(AuthorityError::BreaksIpv6)?;
    Ok(Cow::Owned(format!("[{address}]").into_bytes()))
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

fn check_port(digits: &[u8]) -> Result<u16, AuthorityError> {
    if digits.len() > 5 || digits.starts_with(b"0") || !digits.iter().all(u8::is_ascii_digit) {
        return Err(AuthorityError::BreaksPort);
    }
    grammar::ascii(digits)
        .parse()
        .map_err(|_| AuthorityError::BreaksPort)
}
