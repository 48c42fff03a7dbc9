//! One file of the cache: AES-256-GCM under a key that is drawn for it alone.
//!
//! ```text
//!  8  "FENDERC" and the version, 1
//!  8  which key: so that another one is told from a file that was changed
//! 32  salt
//! 12  nonce
//!  …  encrypted, padded to a multiple of 256 bytes, and 16 bytes of tag
//! ```
//!
//! The key of a file is HKDF-SHA-256 (RFC 5869) of the key file under the salt, which is random in each writing: no key ever seals
//! twice, so however often a value is refreshed, no nonce can repeat under a key, and nobody has to count how often the key
//! file was used. The nonce is random all the same; nothing depends on that.
//!
//! Authenticated and not in the file are whose it is and the name of the credential: a file that was put in another's place does not open. What
//! is encrypted, and so authenticated as well:
//!
//! ```text
//! 32  digest of where the value comes from
//!  8  when its source was asked, in milliseconds since 1970
//!  8  when it ends, the same; all ones: it says nothing of that
//!  2  length of the generation's name     …  the name
//!  4  length of the value                 …  the value
//!  …  zeros
//! ```
//!
//! Numbers are big-endian. It knows no file and no clock. No buffer that held a value is left unwiped.

use std::io;
use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use fender_config::ObjectName;
use fender_identity::Secret;
use fender_providers::Generation;
use fender_runtime::random;
use zeroize::Zeroizing;

use super::key::Key;
use super::{Fetched, SourceDigest};

const MAGIC: &[u8; 8] = b"FENDERC\x01";
const KEY_ID: usize = 8;
const SALT: usize = 32;
const TAG: usize = 16;
const PADDED: usize = 256;
/// The largest value, as of every source.
const MOST_VALUE: usize = 1024 * 1024;
/// The longest name of a generation: whoever draws them draws shorter ones.
const MOST_GENERATION: usize = 128;
/// More than any file has.
pub(super) const MOST: usize = MOST_VALUE + 4 * 1024;

/// Where a file belongs.
pub(super) struct Belongs<'a> {
    pub(super) whose: &'a str,
    pub(super) name: &'a ObjectName,
}

/// A value and what is known of it.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) fetched: Fetched,
    pub(super) source: SourceDigest,
    /// When its source was asked, counted from 1970.
    pub(super) at: Duration,
    /// When it ends by itself, if it does.
    pub(super) until: Option<Duration>,
}

/// Why a file does not open.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum OpenError {
    #[error("is no file of this cache, or of another version of it")]
    Foreign,
    #[error("was sealed with another key")]
    OtherKey,
    #[error(
        "does not open: it was changed or cut off, or is of another workload, Sidecar or credential"
    )]
    Closed,
    #[error("opens and makes no sense")]
    Nonsense,
}

pub(super) fn seal(key: &Key, belongs: &Belongs<'_>, kept: &Kept) -> io::Result<Vec<u8>> {
    let failed = |_: Unspecified| io::Error::other("the cryptographic library failed");
    let salt: [u8; SALT] = random::bytes();
    let mut head = Vec::with_capacity(MAGIC.len() + KEY_ID + SALT);
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(&key_id(key).map_err(failed)?);
    head.extend_from_slice(&salt);
    let mut body = plain(kept)?;
    let own = own_key(key, &salt).map_err(failed)?;
    let bound = bound(&head, belongs);
    let nonce = own.seal_in_place_append_tag(Aad::from(&*bound), &mut *body);
    let nonce = nonce.map_err(failed)?;
    let mut file = head;
    file.reserve_exact(NONCE_LEN + body.len());
    file.extend_from_slice(nonce.as_ref());
    file.extend_from_slice(&body);
    Ok(file)
}

pub(super) fn open(key: &Key, belongs: &Belongs<'_>, file: &[u8]) -> Result<Kept, OpenError> {
    let failed = |_: Unspecified| OpenError::Closed;
    let (magic, rest) = file
        .split_first_chunk::<{ MAGIC.len() }>()
        .ok_or(OpenError::Foreign)?;
    if magic != MAGIC || file.len() > MOST {
        return Err(OpenError::Foreign);
    }
    let (id, rest) = rest
        .split_first_chunk::<KEY_ID>()
        .ok_or(OpenError::Closed)?;
    if *id != key_id(key).map_err(failed)? {
        return Err(OpenError::OtherKey);
    }
    let (salt, rest) = rest.split_first_chunk::<SALT>().ok_or(OpenError::Closed)?;
    let (nonce, sealed) = rest
        .split_first_chunk::<NONCE_LEN>()
        .ok_or(OpenError::Closed)?;
    let head = file.get(..MAGIC.len() + KEY_ID + SALT);
    let bound = bound(head.ok_or(OpenError::Closed)?, belongs);
    let own = own_key(key, salt).map_err(failed)?;
    let mut body = Zeroizing::new(sealed.to_vec());
    let opened = own.open_in_place(Nonce::from(nonce), Aad::from(&*bound), &mut body);
    read(opened.map_err(failed)?).ok_or(OpenError::Nonsense)
}

/// What is authenticated beside what is encrypted; of parts that cannot be taken for each other.
fn bound(head: &[u8], belongs: &Belongs<'_>) -> Vec<u8> {
    let name = belongs.name.to_string();
    let mut bound = b"fender credentials cache file 1".to_vec();
    bound.extend_from_slice(head);
    for part in [belongs.whose, &name] {
        bound.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bound.extend_from_slice(part.as_bytes());
    }
    bound
}

/// The key of one file.
fn own_key(key: &Key, salt: &[u8; SALT]) -> Result<RandomizedNonceKey, Unspecified> {
    let mut bytes = Zeroizing::new([0; 32]);
    derive(key, salt, b"fender credentials cache file key", &mut bytes)?;
    RandomizedNonceKey::new(&AES_256_GCM, &*bytes)
}

/// Tells keys apart, and nothing about them.
fn key_id(key: &Key) -> Result<[u8; KEY_ID], Unspecified> {
    let mut bytes = [0; 32];
    derive(key, &[], b"fender credentials cache key id", &mut bytes)?;
    let id = bytes.first_chunk::<KEY_ID>();
    id.copied().ok_or(Unspecified)
}

fn derive(key: &Key, salt: &[u8], what: &[u8], to: &mut [u8; 32]) -> Result<(), Unspecified> {
    let extracted = Salt::new(HKDF_SHA256, salt).extract(key.expose());
    extracted.expand(&[what], HKDF_SHA256)?.fill(to)
}

/// In room of the right size, so that nothing is left behind where it was smaller.
fn plain(kept: &Kept) -> io::Result<Zeroizing<Vec<u8>>> {
    let too_long =
        |what: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("{what} is too long"));
    let generation = kept.fetched.generation.as_str().as_bytes();
    let value = kept.fetched.value.expose();
    if generation.len() > MOST_GENERATION {
        return Err(too_long("the name of its generation"));
    }
    if value.len() > MOST_VALUE {
        return Err(too_long("it"));
    }
    let length = SourceDigest::LENGTH + 8 + 8 + 2 + generation.len() + 4 + value.len();
    let padded = length.next_multiple_of(PADDED);
    let mut plain = Zeroizing::new(Vec::with_capacity(padded + TAG));
    plain.extend_from_slice(&kept.source.0);
    plain.extend_from_slice(&millis(kept.at).to_be_bytes());
    plain.extend_from_slice(&kept.until.map_or(u64::MAX, millis).to_be_bytes());
    plain.extend_from_slice(&(generation.len() as u16).to_be_bytes());
    plain.extend_from_slice(generation);
    plain.extend_from_slice(&(value.len() as u32).to_be_bytes());
    plain.extend_from_slice(value);
    plain.resize(padded, 0);
    Ok(plain)
}

fn millis(moment: Duration) -> u64 {
    u64::try_from(moment.as_millis()).unwrap_or(u64::MAX)
}

/// What was encrypted; none if it makes no sense.
fn read(plain: &[u8]) -> Option<Kept> {
    let (source, rest) = plain.split_first_chunk::<{ SourceDigest::LENGTH }>()?;
    let (at, rest) = rest.split_first_chunk::<8>()?;
    let (until, rest) = rest.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<2>()?;
    let length = usize::from(u16::from_be_bytes(*length));
    let (generation, rest) = rest.split_at_checked(length)?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (value, padding) = rest.split_at_checked(length)?;
    let whole = plain.len().is_multiple_of(PADDED) && padding.len() < PADDED;
    if !whole || padding.iter().any(|byte| *byte != 0) {
        return None;
    }
    if generation.len() > MOST_GENERATION || value.len() > MOST_VALUE {
        return None;
    }
    let until = u64::from_be_bytes(*until);
    Some(Kept {
        fetched: Fetched {
            value: Secret::new(value.to_vec()),
            generation: Generation::named(std::str::from_utf8(generation).ok()?),
        },
        source: SourceDigest(*source),
        at: Duration::from_millis(u64::from_be_bytes(*at)),
        until: (until != u64::MAX).then(|| Duration::from_millis(until)),
    })
}

#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod checks {
    //! What must hold for any bytes at all, in the place of a file. The tests replay the corpus of the fuzz target.

    use super::*;

    /// Nobody who lacks the key makes a file that opens; and what is read of any bytes is bounded, and written as it was read.
    pub(in super::super) fn cached(data: &[u8]) {
        let Ok(name) = ObjectName::new("shop", "smtp") else {
            unreachable!("it is a name")
        };
        let belongs = Belongs {
            whose: "spiffe://mesh.test/ns/shop/sa/orders",
            name: &name,
        };
        let key = Key::of([7; 32]);
        assert!(open(&key, &belongs, data).is_err());
        let Some(kept) = read(data) else {
            return;
        };
        assert!(kept.fetched.value.len() <= MOST_VALUE);
        match plain(&kept) {
            Ok(again) => assert_eq!(&again[..], data),
            Err(error) => unreachable!("{error}"),
        }
        let sealed = seal(&key, &belongs, &kept).unwrap_or_default();
        let opened = open(&key, &belongs, &sealed).map(|opened| opened.fetched.value);
        assert!(opened.is_ok_and(|value| value.ct_eq(&kept.fetched.value)));
    }
}
