//! What is known about one connection or request when it is decided.

use std::fmt;
use std::net::IpAddr;

use fender_identity::Peer;

/// What a rule is asked about. Nothing here is optional by accident: `None` means *cannot be
/// known*, and a clause that needs it never allows (A3).
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub peer: &'a Peer,
    /// Of the connection itself. None on a Unix socket.
    pub source_ip: Option<IpAddr>,
    /// Whom the connection comes from: another than `source_ip` only where one who may be believed passed it on.
    pub remote_ip: Option<IpAddr>,
    /// The port the peer reached: the one the inbound listens on.
    pub port: u16,
    /// None on a `tcp` port.
    pub http: Option<HttpFacts<'a>>,
}

/// The facts of one HTTP request.
#[derive(Clone, Copy)]
pub struct HttpFacts<'a> {
    pub method: &'a str,
    /// `:authority` or `Host`, with its port if it had one; empty if there was neither, and then a
    /// clause that needs it cannot be evaluated.
    pub host: &'a str,
    /// Normalised, without the query: what is forwarded.
    pub path: &'a str,
    /// All values of the header with this lower-case name, each by itself (A7). A value that is not
    /// UTF-8 is given lossily, never left out: a value left out would escape a DENY rule.
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

/// The facts as clauses ask for them, taken apart once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'a> {
    pub(crate) caller: Option<Caller<'a>>,
    /// An IPv4 address in IPv6 clothes is the IPv4 address.
    pub(crate) source_ip: Option<IpAddr>,
    pub(crate) remote_ip: Option<IpAddr>,
    pub(crate) port: u16,
    pub(crate) http: Option<HttpFacts<'a>>,
}

/// A verified peer. An anonymous one is the absence of this, never an empty name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller<'a> {
    /// `TRUST/ns/NAMESPACE/sa/NAME`, or `TRUST/…` for identities of another shape.
    pub(crate) principal: &'a str,
    /// Namespace and name, for identities of the shape of a workload.
    pub(crate) account: Option<(&'a str, &'a str)>,
}

impl<'a> Seen<'a> {
    pub(crate) fn of(facts: &Facts<'a>) -> Self {
        Self {
            caller: match facts.peer {
                Peer::Verified(svid) => Some(Caller::of(svid.id().as_str())),
                Peer::Anonymous => None,
            },
            source_ip: facts.source_ip.map(|ip| ip.to_canonical()),
            remote_ip: facts.remote_ip.map(|ip| ip.to_canonical()),
            port: facts.port,
            http: facts.http,
        }
    }

    pub(crate) fn principal(&self) -> Option<&'a str> {
        self.caller.map(|caller| caller.principal)
    }

    pub(crate) fn namespace(&self) -> Option<&'a str> {
        self.account().map(|(namespace, _)| namespace)
    }

    pub(crate) fn account(&self) -> Option<(&'a str, &'a str)> {
        self.caller.and_then(|caller| caller.account)
    }

    /// None where the request named no host: the app would choose one.
    pub(crate) fn host(&self) -> Option<&'a str> {
        self.http
            .map(|http| http.host)
            .filter(|host| !host.is_empty())
    }

    pub(crate) fn method(&self) -> Option<&'a str> {
        self.http.map(|http| http.method)
    }

    pub(crate) fn path(&self) -> Option<&'a str> {
        self.http.map(|http| http.path)
    }

    pub(crate) fn header(&self, name: &str) -> Option<Vec<&'a str>> {
        self.http.map(|http| (http.header)(name))
    }
}

impl<'a> Caller<'a> {
    pub(crate) fn of(spiffe_id: &'a str) -> Self {
        let principal = spiffe_id.strip_prefix("spiffe://").unwrap_or(spiffe_id);
        let mut parts = principal.split('/').skip(1);
        let account = match (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ) {
            (Some("ns"), Some(namespace), Some("sa"), Some(name), None) => Some((namespace, name)),
            _ => None,
        };
        Self { principal, account }
    }
}
