//! Through whose hands a request came (H1).
//!
//! The last of them is the one who connected, and that is a fact. What it says of those before is believed only if
//! the port stands behind it, by its address or its certificate, and only for as many hops as there are proxies; what
//! others say goes nowhere. The first of the hops is who policies and lines mean by the client. Where a proxy names fewer than
//! it should, nobody is: the first of those it names, or the proxy itself, would be a client that policies trust more than most.

use std::net::IpAddr;
use std::num::NonZeroU8;

use fender_config::snapshot::{Behind, Forwarded, ForwardedFields};
use fender_wire::forwarded::{self, ForwardedError, Scheme};
use fender_wire::{Fields, RequestHead};

use crate::headers;
use crate::permit::Caller;

/// The addresses a request came from, the earliest first, and by what it was asked for.
#[derive(Debug)]
pub(crate) struct Way {
    /// The last is that of the connection. Empty where it has none.
    pub(crate) chain: Vec<IpAddr>,
    /// The scheme of the first hop, and of the last.
    pub(crate) first: Scheme,
    pub(crate) last: Scheme,
}

/// What the app is told with each request of one connection.
#[derive(Debug, Default)]
pub(crate) struct Telling {
    /// As it is where nobody before the caller is believed.
    said: Fields,
    /// None: so it always is.
    behind: Option<Box<Proxied>>,
}

/// The caller is a proxy, and tells of others.
#[derive(Debug)]
struct Proxied {
    identity: Option<String>,
    fields: ForwardedFields,
    hops: NonZeroU8,
    connection: (Option<IpAddr>, Scheme),
}

/// What one request of a proxy's brings.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) said: Fields,
    pub(crate) client: Client,
}

/// Whom a request comes from in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// The one who connected.
    Caller,
    /// The one a proxy asks for.
    Named(IpAddr),
    /// A proxy asks, and does not say whom for.
    Unknown,
}

impl Telling {
    /// `identity` is the value of the identity header.
    pub(crate) fn of(caller: &Caller, identity: Option<String>, rules: &Forwarded) -> Self {
        let address = caller.provenance.remote().ip().map(|ip| ip.to_canonical());
        let scheme = match caller.plaintext {
            true => Scheme::Http,
            false => Scheme::Https,
        };
        let way = Way {
            chain: address.into_iter().collect(),
            first: scheme,
            last: scheme,
        };
        let said = headers::said(identity.as_deref(), &way, rules.fields);
        let believes = |behind: &&Behind| behind.believes(address, caller.peer.id());
        let behind = rules.behind.as_ref().filter(believes);
        Self {
            said,
            behind: behind.map(|behind| {
                Box::new(Proxied {
                    identity,
                    fields: rules.fields,
                    hops: behind.hops,
                    connection: (address, scheme),
                })
            }),
        }
    }

    /// What is said of every request that brings nothing of its own.
    pub(crate) fn said(&self) -> &Fields {
        &self.said
    }

    /// What this request brings that is believed.
    pub(crate) fn of_request(&self, head: &RequestHead) -> Result<Option<Told>, ForwardedError> {
        let Some(proxied) = &self.behind else {
            return Ok(None);
        };
        let (address, last) = proxied.connection;
        let fields = head.fields();
        let mut chain = forwarded::chain(fields.all(forwarded::FOR), proxied.hops)?;
        let is_whole = chain.len() == usize::from(proxied.hops.get());
        let client = chain.first().copied().filter(|_| is_whole);
        chain.extend(address);
        let way = Way {
            first: forwarded::scheme(fields.all(forwarded::PROTO))?.unwrap_or(last),
            last,
            chain,
        };
        Ok(Some(Told {
            said: headers::said(proxied.identity.as_deref(), &way, proxied.fields),
            client: client.map_or(Client::Unknown, Client::Named),
        }))
    }

    /// What is said of this request, whether or not it brings something.
    pub(crate) fn into_told(self, head: &RequestHead) -> Result<Told, ForwardedError> {
        let told = self.of_request(head)?;
        Ok(told.unwrap_or(Told {
            said: self.said,
            client: Client::Caller,
        }))
    }
}
