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
#[error("the identity header's `{key}` holds a byte that cannot be written unambiguously")]
pub struct Unwritable {
    key: &'static str,
}

/// The identity header is not in Envoy's grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the identity header is malformed at byte {at}")]
pub struct Malformed {
    pub at: usize,
}

impl Element<'_> {
    /// The header value of this one element.
    pub fn to_value(&self) -> Result<String, Unwritable> {
        todo!()
    }
}

/// Reads a header value: for each element its keys and unquoted values, in order.
pub fn parse(value: &str) -> Result<Vec<Vec<(String, String)>>, Malformed> {
    todo!()
}
