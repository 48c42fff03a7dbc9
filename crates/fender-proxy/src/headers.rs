//! The header fields of a request on their way to the app, and of a response on its way back.
//!
//! What belongs to one hop stays on it. What says who called is ours alone: every spelling of the
//! identity header and of the forwarded-for family that came from outside is removed (whoever called
//! us is the first hop we can vouch for), then ours are set (H1). An app that folds `_` into `-`
//! finds nothing else.

use std::net::IpAddr;

use fender_identity::{Peer, SpiffeId};
use fender_wire::connection::{is_hop_by_hop, is_protected};
use fender_wire::head::{folds_to, folds_to_prefix};
use fender_wire::xfcc;
use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, UPGRADE};

pub(crate) const DECISION: HeaderName = HeaderName::from_static("x-fender-decision");
pub(crate) const FAULT: HeaderName = HeaderName::from_static("x-fender-fault");
const IDENTITY: HeaderName = HeaderName::from_static(xfcc::NAME);
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Says whether only we may set this field, however it is spelled.
pub(crate) fn is_ours(name: &[u8]) -> bool {
    xfcc::is_identity_header(name)
        || folds_to_prefix(name, b"x-forwarded-")
        || folds_to_prefix(name, b"x-fender-")
        || folds_to(name, b"forwarded")
        || folds_to(name, b"x-real-ip")
}

/// `Proxy` is nobody's field, and CGI makes of it the variable `HTTP_PROXY`, through which many
/// clients would then send the app's own requests (CVE-2016-5385).
fn names_a_proxy(name: &[u8]) -> bool {
    name == b"proxy"
}

/// Says whether this field looks like one that frames a message and is not: what the app makes of
/// it is anybody's guess.
pub(crate) fn disguises_framing(name: &str) -> bool {
    ["content-length", "transfer-encoding"]
        .iter()
        .any(|real| name != *real && folds_to(name.as_bytes(), real.as_bytes()))
}

/// Removes what a peer may not send to the app: hop-by-hop fields, what the peer's `Connection`
/// named, and everything that is ours to say.
pub(crate) fn sanitise(headers: &mut HeaderMap, strips: impl Fn(&str) -> bool) {
    let gone: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let bytes = name.as_str().as_bytes();
            is_hop_by_hop(bytes) || is_ours(bytes) || names_a_proxy(bytes) || strips(name.as_str())
        })
        .cloned()
        .collect();
    for name in gone {
        headers.remove(name);
    }
    // Answered here, after the decision.
    headers.remove(http::header::EXPECT);
}

/// Trailers may be merged with the headers by the app, so what is ours is not taken from them.
pub(crate) fn sanitise_trailers(trailers: &mut HeaderMap) {
    sanitise(trailers, |name| is_protected(name.as_bytes()));
}

/// Says who called: the identity header, and the forwarded-for family as of this hop.
pub(crate) fn identify(
    headers: &mut HeaderMap,
    own: &SpiffeId,
    peer: &Peer,
    from: Option<IpAddr>,
) -> Result<(), xfcc::Unwritable> {
    if let Some(svid) = peer.svid() {
        let element = xfcc::Element {
            by: own.as_str(),
            hash: &svid.leaf_fingerprint(),
            cert: None,
            subject: None,
            uri: svid.id().as_str(),
        };
        if let Ok(value) = HeaderValue::try_from(element.to_value()?) {
            headers.insert(IDENTITY, value);
        }
    }
    if let Some(value) = from.and_then(|ip| HeaderValue::try_from(ip.to_string()).ok()) {
        headers.insert(FORWARDED_FOR, value);
    }
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static("https"));
    Ok(())
}

/// Asks the app to change protocols, where the peer did.
pub(crate) fn upgrade(headers: &mut HeaderMap, protocol: &HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol.clone());
}

/// Removes from a response what belongs to the hop between us and the app, and the fields only we
/// may set.
pub(crate) fn sanitise_response(headers: &mut HeaderMap) {
    let named: Vec<String> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let gone: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            is_hop_by_hop(name.as_str().as_bytes())
                || **name == DECISION
                || **name == FAULT
                || named.iter().any(|named| named == name.as_str())
        })
        .cloned()
        .collect();
    for name in gone {
        headers.remove(name);
    }
}
