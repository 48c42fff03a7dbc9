//! Which roots a bundle holds. It decides by their validity alone: whether a root signs is [`super::rotation`]'s to say.

use std::time::Duration;

use fender_identity::{Bundle, TrustDomain, Validity};
use rustls::pki_types::UnixTime;

use super::CaError;
use crate::store::authorities::{AuthorityRow, Role};
use crate::time::later;

/// The longest a certificate may renew itself after its end, whatever the documents say.
const LONGEST_GRACE: Duration = Duration::from_secs(31 * 24 * 3600);
/// Roots in a bundle; of too many, the youngest. More than rotation ever makes: a clock that jumps may.
pub(super) const MAX_ROOTS: usize = 32;

/// Every root that still lives, so that what an older one vouches for holds during a rotation, and what a newer one will
/// vouch for is known before it does.
pub(crate) fn living(
    rows: &[AuthorityRow],
    trust_domain: &TrustDomain,
    now: UnixTime,
) -> Result<Bundle, CaError> {
    roots(rows, trust_domain, |validity| validity.not_after > now)
}

/// The same with those that have ended within the longest renewal grace.
pub(super) fn with_ended(
    rows: &[AuthorityRow],
    trust_domain: &TrustDomain,
    now: UnixTime,
) -> Result<Bundle, CaError> {
    roots(rows, trust_domain, |validity| {
        later(validity.not_after, LONGEST_GRACE) > now
    })
}

fn roots(
    rows: &[AuthorityRow],
    trust_domain: &TrustDomain,
    counts: impl Fn(&Validity) -> bool,
) -> Result<Bundle, CaError> {
    let mut roots: Vec<_> = rows
        .iter()
        .filter(|row| row.role == Role::Root && counts(&row.validity))
        .collect();
    roots.sort_by_key(|row| row.signs_from);
    let surplus = roots.len().saturating_sub(MAX_ROOTS);
    let roots = roots.into_iter().skip(surplus);
    Ok(Bundle::new(
        trust_domain.clone(),
        roots.map(|row| row.certificate.clone()).collect(),
    )?)
}
