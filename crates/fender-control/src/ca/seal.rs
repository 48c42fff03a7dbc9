//! The keys of the certificate authorities at rest: AES-256-GCM under a key that lies outside the database.
//!
//! This protects a copy of the database (a backup, a stolen volume without the key). It does not protect against whoever
//! can read the key or the memory of this process. Whoever wants no sealing says so, and what was stored in the clear
//! does not open with a key: nobody can put an authority of theirs into a database that is sealed.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use zeroize::Zeroizing;

pub(crate) const KEY_LENGTH: usize = 32;

/// Before a key that is stored in the clear. Sealed ones begin with as many random bytes.
const IN_PLAIN: &[u8; NONCE_LEN] = b"PLAIN KEY \r\n";

/// Seals and opens; never shows itself.
pub(crate) struct SealingKey(Option<RandomizedNonceKey>);

impl SealingKey {
    pub(crate) fn new(bytes: &[u8; KEY_LENGTH]) -> Result<Self, SealError> {
        RandomizedNonceKey::new(&AES_256_GCM, bytes)
            .map(|key| Self(Some(key)))
            .map_err(|_| SealError::Crypto)
    }

    /// Seals nothing.
    pub(crate) fn in_plain() -> Self {
        Self(None)
    }

    /// `place` says where the sealed bytes belong; elsewhere they do not open.
    pub(crate) fn seal(&self, place: &[u8], plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let Some(key) = &self.0 else {
            return Ok([IN_PLAIN, plain].concat());
        };
        let mut body = Zeroizing::new(plain.to_vec());
        let nonce = key
            .seal_in_place_append_tag(Aad::from(place), &mut *body)
            .map_err(|_| SealError::Crypto)?;
        let mut sealed = nonce.as_ref().to_vec();
        sealed.extend_from_slice(&body);
        Ok(sealed)
    }

    pub(crate) fn open(
        &self,
        place: &[u8],
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (nonce, body) = sealed
            .split_at_checked(NONCE_LEN)
            .ok_or(SealError::Closed)?;
        let key = match (&self.0, nonce == IN_PLAIN) {
            (None, true) => return Ok(Zeroizing::new(body.to_vec())),
            (Some(key), false) => key,
            (None, false) => return Err(SealError::Sealed),
            (Some(_), true) => return Err(SealError::InPlain),
        };
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError::Closed)?;
        let mut body = Zeroizing::new(body.to_vec());
        let length = key
            .open_in_place(nonce, Aad::from(place), &mut body)
            .map_err(|_| SealError::Closed)?
            .len();
        body.truncate(length);
        Ok(body)
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealingKey(…)")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error(
        "the sealed key does not open: the sealing key is not the one it was sealed with, or the database was changed"
    )]
    Closed,
    #[error(
        "the authorities' keys are sealed: give the key they were sealed with, instead of asking for keys in plain"
    )]
    Sealed,
    #[error(
        "the authorities' keys are stored in the clear: ask for that with `--sealing none-keys-in-plain`, or found the \
         authority anew with a sealing key"
    )]
    InPlain,
    #[error("the cryptographic library failed")]
    Crypto,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> SealingKey {
        SealingKey::new(&[byte; KEY_LENGTH]).unwrap()
    }

    #[test]
    fn what_was_sealed_opens_with_the_same_key_in_the_same_place() {
        let sealed = key(1).seal(b"root", b"the key").unwrap();
        assert_eq!(*key(1).open(b"root", &sealed).unwrap(), b"the key");
    }

    #[test]
    fn a_sealed_key_moved_to_another_row_does_not_open() {
        let sealed = key(1).seal(b"intermediate", b"the key").unwrap();
        assert_eq!(
            key(1).open(b"root", &sealed).unwrap_err(),
            SealError::Closed
        );
    }

    #[test]
    fn a_sealed_key_does_not_open_with_another_key_or_after_a_flipped_bit() {
        let sealed = key(1).seal(b"root", b"the key").unwrap();
        assert_eq!(
            key(2).open(b"root", &sealed).unwrap_err(),
            SealError::Closed
        );
        for index in 0..sealed.len() {
            let mut flipped = sealed.clone();
            flipped[index] ^= 1;
            assert_eq!(
                key(1).open(b"root", &flipped).unwrap_err(),
                SealError::Closed
            );
        }
        assert_eq!(
            key(1).open(b"root", b"short").unwrap_err(),
            SealError::Closed
        );
    }

    #[test]
    fn the_sealed_form_does_not_hold_the_key_and_never_repeats() {
        let first = key(1).seal(b"root", b"the key").unwrap();
        assert!(!first.windows(7).any(|window| window == b"the key"));
        assert_ne!(first, key(1).seal(b"root", b"the key").unwrap());
    }

    #[test]
    fn attack_a_key_laid_in_the_clear_into_a_sealed_database_is_refused() {
        let laid = SealingKey::in_plain()
            .seal(b"root", b"the thief's")
            .unwrap();
        assert_eq!(key(1).open(b"root", &laid).unwrap_err(), SealError::InPlain);
        assert_eq!(
            *SealingKey::in_plain().open(b"root", &laid).unwrap(),
            b"the thief's"
        );
        let sealed = key(1).seal(b"root", b"the key").unwrap();
        assert_eq!(
            SealingKey::in_plain().open(b"root", &sealed).unwrap_err(),
            SealError::Sealed
        );
    }
}
