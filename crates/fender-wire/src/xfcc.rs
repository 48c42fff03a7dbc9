//! The identity header, `x-forwarded-client-cert` in Envoy's grammar (H1).
//!
//! One element says who called: `By` (our own URI), `Hash` (SHA-256 of the caller's certificate) and
//! `URI` (the caller's), with `Cert` and `Subject` when asked for. An application believes this
//! header, so whatever a client sends under any spelling of its name is removed
//! ([`is_identity_header`]) before ours is set. Values that two readers could take apart differently
//! are not written at all.
//!
//! Reference: Envoy, "HTTP header manipulation", x-forwarded-client-cert.

use crate::grammar;

/// The name under which the header is written.
pub const NAME: &str = "x-forwarded-client-cert";

/// Says whether a field is the identity header in any spelling of its name: case, `_` for `-`, and
/// whatever else an application server folds.
#[must_use]
pub fn is_identity_header(name: &[u8]) -> bool {
    grammar::folds_to(name, NAME.as_bytes())
}

/// One hop's statement about its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element<'a> {
    /// The URI of the certificate that served the connection.
    pub by: &'a str,
    /// SHA-256 of the caller's certificate (DER).
    pub hash: &'a [u8; 32],
    /// The caller's certificate, PEM.
    pub cert: Option<&'a str>,
    /// The caller's subject, RFC 2253.
    pub subject: Option<&'a str>,
    /// The caller's URI, its SPIFFE ID.
    pub uri: &'a str,
}

/// A value cannot be written so that everybody reads it alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the identity header's `{key}` is empty or cannot be written unambiguously")]
pub struct Unwritable {
    key: &'static str,
}

impl Element<'_> {
    /// The header value of this one element.
    pub fn to_value(&self) -> Result<String, Unwritable> {
        let mut out = String::with_capacity(128 + self.by.len() + self.uri.len());
        put(&mut out, "By", self.by, Quotes::WhereNeeded)?;
        out.push_str(";Hash=");
        out.extend(self.hash.iter().flat_map(|byte| hex(*byte)));
        if let Some(cert) = self.cert {
            out.push(';');
            put(&mut out, "Cert", &percent_encode(cert), Quotes::Always)?;
        }
        if let Some(subject) = self.subject {
            out.push(';');
            put(&mut out, "Subject", subject, Quotes::Always)?;
        }
        out.push(';');
        put(&mut out, "URI", self.uri, Quotes::WhereNeeded)?;
        Ok(out)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Quotes {
    Always,
    WhereNeeded,
}

/// Writes one `key=value`.
///
/// A backslash is refused: Envoy escapes only the quote, other readers undo every backslash, and a
/// value that ends in one would swallow the closing quote for one of them.
fn put(out: &mut String, key: &'static str, value: &str, quotes: Quotes) -> Result<(), Unwritable> {
    let writable = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'\\';
    if value.is_empty() || !value.bytes().all(writable) {
        return Err(Unwritable { key });
    }
    out.push_str(key);
    out.push('=');
    if quotes == Quotes::WhereNeeded && !value.contains([' ', ',', ';', '=', '"']) {
        out.push_str(value);
        return Ok(());
    }
    out.push('"');
    out.push_str(&value.replace('"', "\\\""));
    out.push('"');
    Ok(())
}

fn hex(byte: u8) -> impl Iterator<Item = char> {
    [byte >> 4, byte & 15]
        .into_iter()
        .filter_map(|digit| char::from_digit(u32::from(digit), 16))
}

fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 4);
    for byte in text.bytes() {
        if grammar::is_unreserved(byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.extend(hex(byte).map(|digit| digit.to_ascii_uppercase()));
        }
    }
    out
}

/// The identity header is not in Envoy's grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the identity header is malformed at byte {at}")]
pub struct Malformed {
    pub at: usize,
}

/// One `key=value` of an element, its value without quotes.
pub type Pair = (String, String);

/// Reads a header value: for each element its pairs, in order.
///
/// For callers that stand behind another proxy which they trust, and for tests.
pub fn parse(value: &str) -> Result<Vec<Vec<Pair>>, Malformed> {
    let mut elements = Vec::new();
    let mut pairs = Vec::new();
    let mut at = 0;
    loop {
        let (pair, end) = parse_pair(value, at)?;
        pairs.push(pair);
        match value.as_bytes().get(end) {
            Some(b';') => {}
            Some(b',') => elements.push(std::mem::take(&mut pairs)),
            Some(_) => return Err(Malformed { at: end }),
            None => {
                elements.push(pairs);
                return Ok(elements);
            }
        }
        at = end + 1;
    }
}

/// Reads `key=value` at `at`; returns where it ends.
fn parse_pair(text: &str, at: usize) -> Result<(Pair, usize), Malformed> {
    let rest = text.get(at..).unwrap_or_default();
    let (key, value) = rest.split_once('=').ok_or(Malformed { at })?;
    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(Malformed { at });
    }
    let value_at = at + key.len() + 1;
    if let Some(quoted) = value.strip_prefix('"') {
        let (value, len) = unquote(quoted).ok_or(Malformed { at: value_at })?;
        return Ok(((key.to_owned(), value), value_at + 1 + len));
    }
    let len = value.find([';', ',']).unwrap_or(value.len());
    let value = value.get(..len).unwrap_or_default();
    if value.contains(['"', '=']) {
        return Err(Malformed { at: value_at });
    }
    Ok(((key.to_owned(), value.to_owned()), value_at + len))
}

/// The text up to the closing quote, and how many bytes it and the quote took.
fn unquote(text: &str) -> Option<(String, usize)> {
    let mut value = String::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, at + 1)),
            '\\' if chars.next_if(|(_, next)| *next == '"').is_some() => value.push('"'),
            _ => value.push(char),
        }
    }
    None
}
