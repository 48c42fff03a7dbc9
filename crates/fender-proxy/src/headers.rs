//! The header fields of a request on their way to the app, and of a response on its way back.
//!
//! What belongs to one hop stays on it. What says who called is ours alone: every spelling of the
//! identity header and of the forwarded-for family that came from outside is removed, then ours are set
//! (H1). An app that folds `_` into `-` finds nothing else. What a proxy that is believed said of earlier
//! hops is in ours ([`crate::way`]).

use fender_config::snapshot::ForwardedFields;
use fender_identity::{Peer, PeerSvid, SpiffeId};
use fender_policy::PolicySet;
use fender_wire::body::is_forbidden_trailer;
use fender_wire::head::{folds_to, folds_to_prefix};
use fender_wire::{Field, Fields, RequestHead, ResponseHead, forwarded, trace, xfcc};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::way::Way;

pub(crate) const DECISION: &str = "x-fender-decision";
pub(crate) const FAULT: &str = "x-fender-fault";
/// `Cache-Control` of every answer of ours: what was refused once may be permitted next time, and a 404 is kept by caches
/// that were told nothing (RFC 9111 §4.2.2).
pub(crate) const NO_STORE: &str = "no-store";

/// Says whether only we may set this field, however it is spelled.
fn is_ours(name: &[u8]) -> bool {
    xfcc::is_identity_header(name)
        || folds_to_prefix(name, b"x-forwarded-")
        || folds_to_prefix(name, b"x-fender-")
        || folds_to(name, forwarded::FORWARDED.as_bytes())
        || folds_to(name, b"x-real-ip")
}

fn is_context(name: &[u8]) -> bool {
    [trace::PARENT, trace::STATE]
        .iter()
        .any(|field| name.eq_ignore_ascii_case(field.as_bytes()))
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

/// The trailers of a request that pass: they may be merged with the headers by whoever receives them. So a field that these
/// rules look at is none, however it is spelled: the decision is made, and was about the head. Nor is a trace context,
/// whoever sends it: that of the head was judged.
pub(crate) fn passing_trailers<'a>(
    trailers: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    rules: Option<&PolicySet>,
) -> Fields {
    let is_judged = |name: &[u8]| {
        let mut judged = rules.into_iter().flat_map(PolicySet::fields);
        judged.any(|field| folds_to(name, field.as_bytes()))
    };
    let passing = trailers.filter(|(name, _)| {
        !(is_forbidden_trailer(name)
            || is_ours(name)
            || names_a_proxy(name)
            || is_context(name)
            || is_judged(name))
    });
    // They were parsed before, so they fit.
    Fields::build(passing).unwrap_or_default()
}

/// The trailers of a response that go back, by the rule for its headers.
pub(crate) fn returning_trailers(
    trailers: Fields,
    head: &ResponseHead,
    returns: fn(&ResponseHead, &[u8]) -> bool,
) -> Fields {
    let returns = |name: &[u8]| returns(head, name);
    if trailers.iter().all(|field| returns(field.name_bytes())) {
        return trailers;
    }
    let returning = trailers
        .iter()
        .map(|field| (field.name_bytes(), field.value()))
        .filter(|(name, _)| returns(name));
    // They were parsed before, so they fit.
    Fields::build(returning).unwrap_or_default()
}

/// Who called, as the app is told: the identity header, which says nothing of anybody before this hop.
pub(crate) fn identity_of(
    own: &SpiffeId,
    caller: &Peer,
) -> Result<Option<String>, xfcc::Unwritable> {
    let element = |svid: &PeerSvid| {
        let element = xfcc::Element {
            by: own.as_str(),
            hash: &svid.leaf_fingerprint(),
            cert: None,
            subject: None,
            uri: svid.id().as_str(),
        };
        element.to_value()
    };
    caller.svid().map(element).transpose()
}

/// What goes on with a request beside what its sender may say: who called, and through whose hands it came (H1).
pub(crate) fn said(identity: Option<&str>, way: &Way, fields: ForwardedFields) -> Fields {
    let (x, rfc) = match fields {
        ForwardedFields::XForwarded => (true, false),
        ForwardedFields::Forwarded => (false, true),
        ForwardedFields::Both => (true, true),
        ForwardedFields::Nothing => (false, false),
    };
    let list = x.then(|| forwarded::list(&way.chain)).flatten();
    let elements = rfc.then(|| forwarded::elements(&way.chain, way.first, way.last));
    let said = [
        (xfcc::NAME, identity),
        (forwarded::FOR, list.as_deref()),
        (forwarded::PROTO, x.then(|| way.first.as_str())),
        (forwarded::FORWARDED, elements.as_deref()),
    ];
    let said = said
        .iter()
        .filter_map(|(name, value)| Some((name.as_bytes(), (*value)?.as_bytes())));
    // The value of an element holds no byte that a field may not hold.
    Fields::build(said).unwrap_or_default()
}

/// Adds a parsed field, whose value stays where it is. What the parser accepted fits.
pub(crate) fn append(map: &mut HeaderMap, fields: &Fields, field: Field<'_>) {
    let name = HeaderName::from_bytes(field.name_bytes());
    let value = HeaderValue::from_maybe_shared(fields.share(field.value()));
    if let (Ok(name), Ok(value)) = (name, value) {
        map.append(name, value);
    }
}

/// The same for all of them.
pub(crate) fn map(trailers: &Fields) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(trailers.len());
    for field in trailers.iter() {
        append(&mut map, trailers, field);
    }
    map
}
