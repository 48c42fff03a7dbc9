//! Session tickets: a session of TLS 1.3 goes on in a later connection, for a fraction of what a handshake costs.
//!
//! Nothing is stored. A ticket is the session itself, sealed under a key that lives in the memory of one configuration and
//! nowhere else. **A ticket must open nothing that a full handshake would refuse**, so:
//!
//! 1. It is opened by the very configuration that sealed it. Whenever a certificate, the trust (a revocation too), the
//!    profile or what is asked of clients changes, and for every port, there is another configuration, with other keys.
//! 2. It ends with the first certificate of the chain that the client showed, with the next root that ends, and after
//!    [`LIFETIME`] in any case.
//! 3. There is no early data, so that nothing is done twice because somebody sent it twice.
//! 4. Sessions of TLS 1.2, where who has the key of a ticket can read what was said, get none.
//!
//! A ticket that is not opened costs a full handshake and nothing else. The name that a client asks for is compared by
//! rustls.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand;
use rustls::server::ProducesTickets;
use rustls::time_provider::TimeProvider;
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::certificate::Certificate;

/// How long a ticket is good for at most, in seconds, and how long one key seals.
pub(super) const LIFETIME: u32 = 60 * 60;

/// How the end of a ticket is written before its nonce.
const END_LEN: usize = size_of::<u64>();
/// rustls's number for the version.
const TLS13: [u8; 2] = [3, 4];

/// Seals and opens the tickets of one configuration.
pub(super) struct Tickets {
    clock: Arc<dyn TimeProvider>,
    /// When the roots end that may have vouched for a client.
    roots: Vec<u64>,
    keys: RwLock<Keys>,
}

struct Keys {
    current: RandomizedNonceKey,
    /// Seals nothing any more.
    previous: Option<RandomizedNonceKey>,
    /// When the current one began to seal.
    since: u64,
}

impl Tickets {
    /// `roots` are the moments at which those end that may vouch for a client.
    pub(super) fn new(clock: Arc<dyn TimeProvider>, roots: Vec<u64>) -> Result<Self, Unspecified> {
        let since = clock.current_time().ok_or(Unspecified)?.as_secs();
        let keys = RwLock::new(Keys {
            current: new_key()?,
            previous: None,
            since,
        });
        Ok(Self { clock, roots, keys })
    }

    fn now(&self) -> Option<u64> {
        self.clock.current_time().map(|now| now.as_secs())
    }

    /// Lets a key seal for its time only. The clock may jump; whatever is far from when a key began is too late for it.
    fn rotate(&self, now: u64) -> Result<(), Unspecified> {
        let is_due = |keys: &Keys| now.abs_diff(keys.since) >= u64::from(LIFETIME);
        if !is_due(&self.keys.read().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(());
        }
        let fresh = new_key()?;
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        // Another handshake may have been faster.
        if is_due(&keys) {
            keys.previous = Some(std::mem::replace(&mut keys.current, fresh));
            keys.since = now;
        }
        Ok(())
    }

    fn seal(&self, session: &[u8]) -> Option<Vec<u8>> {
        let now = self.now()?;
        // The next root to end may be the one that vouched.
        let root = self.roots.iter().copied().filter(|end| *end > now).min();
        let end = end_of(session)?
            .min(root.unwrap_or(u64::MAX))
            .min(now.saturating_add(u64::from(LIFETIME)));
        self.rotate(now).ok()?;
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let mut sealed = Zeroizing::new(session.to_vec());
        let end = end.to_be_bytes();
        let nonce = keys
            .current
            .seal_in_place_append_tag(Aad::from(end), &mut *sealed)
            .ok()?;
        Some([&end, &nonce.as_ref()[..], &sealed].concat())
    }

    fn open(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (end, rest) = ticket.split_first_chunk::<END_LEN>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let now = self.now()?;
        let left = u64::from_be_bytes(*end).checked_sub(now)?;
        if left == 0 || left > u64::from(LIFETIME) {
            return None;
        }
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        [Some(&keys.current), keys.previous.as_ref()]
            .into_iter()
            .flatten()
            .find_map(|key| {
                let mut session = sealed.to_vec();
                let nonce = Nonce::from(nonce);
                let length = key
                    .open_in_place(nonce, Aad::from(*end), &mut session)
                    .ok()?
                    .len();
                session.truncate(length);
                Some(session)
            })
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        LIFETIME
    }

    fn encrypt(&self, session: &[u8]) -> Option<Vec<u8>> {
        self.seal(session)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.open(ticket)
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

fn new_key() -> Result<RandomizedNonceKey, Unspecified> {
    let mut bytes = Zeroizing::new([0; 32]);
    rand::fill(&mut *bytes)?;
    RandomizedNonceKey::new(&AES_256_GCM, &*bytes)
}

/// When the certificates end that the client of a session has shown: never, if it has shown none.
///
/// Reads what rustls writes: name, version, suite, secret, one byte, the client's chain, and more that is not looked at.
/// None for a session of another version and for what cannot be read so: it gets no ticket.
fn end_of(session: &[u8]) -> Option<u64> {
    let mut rest = session;
    if flag(&mut rest)? {
        let length = number::<1>(&mut rest)?;
        take(&mut rest, length)?;
    }
    if take(&mut rest, 2)? != TLS13 {
        return None;
    }
    take(&mut rest, 2)?;
    let length = number::<1>(&mut rest)?;
    take(&mut rest, length)?;
    take(&mut rest, 1)?;
    if !flag(&mut rest)? {
        return Some(u64::MAX);
    }
    let length = number::<3>(&mut rest)?;
    let mut chain = take(&mut rest, length)?;
    let mut end = None;
    while !chain.is_empty() {
        let length = number::<3>(&mut chain)?;
        let der = CertificateDer::from(take(&mut chain, length)?);
        let not_after = Certificate::read(&der).ok()?.validity.not_after.as_secs();
        end = end.min(Some(not_after)).or(Some(not_after));
    }
    end
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(taken)
}

fn number<const BYTES: usize>(rest: &mut &[u8]) -> Option<usize> {
    let bytes = take(rest, BYTES)?;
    Some(
        bytes
            .iter()
            .fold(0, |number, byte| number << 8 | usize::from(*byte)),
    )
}

fn flag(rest: &mut &[u8]) -> Option<bool> {
    match number::<1>(rest)? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}
