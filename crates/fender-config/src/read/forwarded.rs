//! What a port says of `Forwarded` and `X-Forwarded-*` (H1).

use std::num::NonZeroU8;

use fender_identity::SpiffeId;

use super::port::sender_block;
use crate::raw;
use crate::snapshot::{Behind, Forwarded, Protocol};
use crate::yaml::{At, Reader};

const IDENTITY_HELP: &str =
    "write the SPIFFE ID as its certificate says it: `spiffe://example.org/ns/edge/sa/gateway`";

pub(super) fn forwarded(
    reader: &mut Reader<'_>,
    written: Option<&At<raw::Forwarded>>,
    protocol: Option<Protocol>,
) -> Option<Forwarded> {
    let Some(at) = written else {
        return Some(Forwarded::default());
    };
    if protocol == Some(Protocol::Tcp) {
        reader.wrong(
            at,
            "fender::not-http",
            "`forwarded` is about fields of HTTP requests, and this port is `tcp`",
            "remove `forwarded`, or write `protocol: http`",
        );
    }
    let raw::Forwarded { fields, behind } = &at.value;
    let fields = match fields {
        Some(at) => reader.choose("fields", at),
        None => Some(Default::default()),
    };
    let behind = match behind {
        Some(at) => Some(self::behind(reader, at)?),
        None => None,
    };
    Some(Forwarded {
        fields: fields?,
        behind,
    })
}

fn behind(reader: &mut Reader<'_>, at: &At<raw::Behind>) -> Option<Behind> {
    let raw::Behind {
        hops: written,
        from,
        identities,
    } = &at.value;
    let hops = match written {
        Some(at) => hops(reader, at),
        None => Some(NonZeroU8::MIN),
    };
    let listed = |list: &Option<At<Vec<At<String>>>>| {
        let list = list.as_ref();
        list.map_or(&[][..], |at| &at.value).to_vec()
    };
    let (from, identities) = (listed(from), listed(identities));
    if from.is_empty() && identities.is_empty() {
        reader.wrong(
            at,
            "fender::empty-list",
            "`behind` names nobody who would be believed",
            "list the proxies under `from` or `identities`, or remove `behind`",
        );
        return None;
    }
    let from: Vec<_> = from.iter().map(|at| sender_block(reader, at)).collect();
    let identity = |at| reader.parse(at, "fender::bad-identity", IDENTITY_HELP);
    let identities: Vec<Option<SpiffeId>> = identities.iter().map(identity).collect();
    Some(Behind {
        hops: hops?,
        from: from.into_iter().collect::<Option<_>>()?,
        identities: identities.into_iter().collect::<Option<_>>()?,
    })
}

fn hops(reader: &mut Reader<'_>, at: &At<i64>) -> Option<NonZeroU8> {
    let hops = u8::try_from(at.value).ok().and_then(NonZeroU8::new);
    let hops = hops.filter(|hops| hops.get() <= Behind::MOST_HOPS);
    if hops.is_none() {
        reader.wrong(
            at,
            "fender::bad-number",
            format!("`hops` cannot be {}", at.value),
            format!(
                "count the proxies that add to `X-Forwarded-For` on the way here: from 1 to {}",
                Behind::MOST_HOPS
            ),
        );
    }
    hops
}
