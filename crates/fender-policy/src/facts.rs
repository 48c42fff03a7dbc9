//! What is known about one connection or request when it is decided.

use std::fmt;
use std::net::IpAddr;

use fender_identity::Peer;

/// What a rule is asked about. Nothing here is optional by accident: `None` means *cannot be known*, and a clause
/// that needs it never allows (A3).
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub peer: &'a Peer,
    /// None on a Unix socket.
    pub source_ip: Option<IpAddr>,
    /// The port the peer reached: the one the inbound listens on.
    pub port: u16,
    /// None on a `tcp` port.
    pub http: Option<HttpFacts<'a>>,
}

/// The facts of one HTTP request.
#[derive(Clone, Copy)]
pub struct HttpFacts<'a> {
    pub method: &'a str,
    /// `:authority` or `Host`, with its port if it had one.
    pub host: &'a str,
    /// Normalised, without the query: what is forwarded.
    pub path: &'a str,
    /// All values of the header with this lower-case name, each by itself (A7). A value that is not UTF-8 is given
    /// lossily, never left out: a value left out would escape a DENY rule.
    pub header: &'a dyn Fn(&str) -> Vec<&'a str>,
}

/// Header values stay out: they may carry tokens.
impl fmt::Debug for HttpFacts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpFacts")
            .field("method", &self.method)
            .field("host", &self.host)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}
