//! The header fields of a request on their way to the app, and of a response on its way back.
//!
//! What belongs to one hop stays on it. What says who called is ours alone: every spelling of the
//! identity header and of the forwarded-for family that came from outside is removed (whoever called
//! us is the first hop we can vouch for), then ours are set (H1). An app that folds `_` into `-`
//! finds nothing else.

use fender_identity::SpiffeId;
use fender_wire::body::is_forbidden_trailer;
use fender_wire::head::{folds_to, folds_to_prefix};
use fender_wire::{Fields, RequestHead, ResponseHead, xfcc};

use crate::permit::Caller;

pub(crate) const DECISION: &str = "x-fender-decision";
pub(crate) const FAULT: &str = "x-fender-fault";
const FORWARDED_FOR: &str = "x-forwarded-for";
const FORWARDED_PROTO: &str = "x-forwarded-proto";

/// Says whether only we may set this field, however it is spelled.
fn is_ours(name: &[u8]) -> bool {
    xfcc::is_identity_header(name)
        || folds_to_prefix(name, b"x-forwarded-")
        || folds_to_prefix(name, b"x-fender-")
        || folds_to(name, b"forwarded")
        || folds_to(name, b"x-real-ip")
}

/// `Proxy` is nobody's field, and CGI makes of it the variable `HTTP_PROXY`, through which many
/// clients would then send the app's own requests (CVE-2016-5385).
fn names_a_proxy(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"proxy")
}

/// Says whether a peer's field goes on to the app as it is: nothing that is for one hop, by rule or by
/// the peer's `Connection`, nothing that is ours to say, no host (it is written canonically) and no
/// expectation (it is answered here, after the decision).
pub(crate) fn passes(head: &RequestHead, name: &[u8]) -> bool {
    !(head.connection().strips(name)
        || is_ours(name)
        || names_a_proxy(name)
        || name.eq_ignore_ascii_case(b"host")
        || name.eq_ignore_ascii_case(b"expect"))
}

/// Says whether a field of the app's own request goes on to another workload.
pub(crate) fn passes_out(head: &RequestHead, name: &[u8]) -> bool {
    !(head.connection().strips(name)
        || name.eq_ignore_ascii_case(b"host")
        || name.eq_ignore_ascii_case(b"expect"))
}

/// Says whether a field of an app's response goes back: nothing for one hop, and nothing only we may
/// set.
pub(crate) fn returns(head: &ResponseHead, name: &[u8]) -> bool {
    !(head.connection().strips(name)
        || name.eq_ignore_ascii_case(DECISION.as_bytes())
        || name.eq_ignore_ascii_case(FAULT.as_bytes()))
}

/// Says whether a field of another workload's response goes back to the app. What its sidecar says of
/// a refusal is meant for whoever asked.
pub(crate) fn returns_in(head: &ResponseHead, name: &[u8]) -> bool {
    !head.connection().strips(name)
}

/// The trailers of a request that pass: they may be merged with the headers by whoever receives them.
pub(crate) fn passing_trailers<'a>(trailers: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Fields {
    let passing = trailers
        .filter(|(name, _)| !(is_forbidden_trailer(name) || is_ours(name) || names_a_proxy(name)));
    // They were parsed before, so they fit.
    Fields::build(passing).unwrap_or_default()
}

/// Who called, as the app is told: the identity header, and the forwarded-for family as of this hop.
pub(crate) fn said_of(own: &SpiffeId, caller: &Caller) -> Result<Fields, xfcc::Unwritable> {
    let identity = caller
        .peer
        .svid()
        .map(|svid| {
            let element = xfcc::Element {
                by: own.as_str(),
                hash: &svid.leaf_fingerprint(),
                cert: None,
                subject: None,
                uri: svid.id().as_str(),
            };
            element.to_value()
        })
        .transpose()?;
    let address = caller.provenance.remote().ip().map(|ip| ip.to_string());
    let scheme = match caller.plaintext {
        true => "http",
        false => "https",
    };
    let said = [
        (xfcc::NAME, identity.as_deref()),
        (FORWARDED_FOR, address.as_deref()),
        (FORWARDED_PROTO, Some(scheme)),
    ];
    let said = said
        .iter()
        .filter_map(|(name, value)| Some((name.as_bytes(), (*value)?.as_bytes())));
    // The value of an element holds no byte that a field may not hold.
    Ok(Fields::build(said).unwrap_or_default())
}
