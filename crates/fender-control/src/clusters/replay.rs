//! How many keys one token brought.
//!
//! A projected token is good for an hour or so, and whoever copies it can show it as long. A sidecar that lost its state
//! shows the same token again with a new key, and must get its identity back, so a token is not bound to its first key.
//! But nobody needs many. Each replica counts for itself; the record of every certificate names its token, so that two
//! keys for one token can be found afterwards.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use fender_identity::jwt::SKEW;
use fender_runtime::clock::UnixTime;

use super::NotVouched;

/// Starts without a memory, within the life of one token.
const KEYS: usize = 8;
/// Tokens remembered at once. Each is one that a cluster vouched for.
const TOKENS: usize = 65_536;

#[derive(Debug, Default)]
pub(super) struct Replays(Mutex<BTreeMap<[u8; 32], Shown>>);

#[derive(Debug)]
struct Shown {
    expires: UnixTime,
    keys: Vec<[u8; 32]>,
}

impl Replays {
    pub(super) fn admit(
        &self,
        token: [u8; 32],
        expires: UnixTime,
        key: &[u8; 32],
        now: UnixTime,
    ) -> Result<(), NotVouched> {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= TOKENS && !tokens.contains_key(&token) {
            let over = |shown: &Shown| now.as_secs() >= shown.expires.as_secs() + SKEW.as_secs();
            tokens.retain(|_, shown| !over(shown));
            if tokens.len() >= TOKENS {
                return Err(NotVouched::Busy(
                    "too many tokens are in use at once: try again later",
                ));
            }
        }
        let shown = tokens.entry(token).or_insert(Shown {
            expires,
            keys: Vec::new(),
        });
        if shown.keys.contains(key) {
            return Ok(());
        }
        if shown.keys.len() >= KEYS {
            return Err(NotVouched::Refused(format!(
                "the token was shown for {KEYS} keys already, and a sidecar needs one"
            )));
        }
        shown.keys.push(*key);
        if shown.keys.len() > 1 {
            let keys = shown.keys.len();
            tracing::warn!(
                keys,
                "a Kubernetes token was shown for another key than before: a sidecar without its state, or a copied token"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    #[test]
    fn a_token_may_be_shown_again_for_its_key_and_for_a_few_more() {
        let replays = Replays::default();
        let admit = |token, key: u8| replays.admit([token; 32], at(100), &[key; 32], at(0));
        for key in 0..8 {
            assert_eq!(admit(1, key), Ok(()));
        }
        assert_eq!(admit(1, 0), Ok(()), "the same key is no other use");
        assert!(matches!(admit(1, 8), Err(NotVouched::Refused(_))));
        assert_eq!(admit(2, 8), Ok(()), "each token for itself");
    }

    #[test]
    fn tokens_are_forgotten_when_they_have_expired_and_there_is_no_room() {
        let replays = Replays::default();
        let token = |number: usize| {
            let mut token = [0; 32];
            token[..8].copy_from_slice(&number.to_be_bytes());
            token
        };
        for number in 0..TOKENS {
            replays
                .admit(token(number), at(100), &[0; 32], at(0))
                .unwrap();
        }
        let one_more = |now| replays.admit(token(TOKENS), at(1000), &[0; 32], at(now));
        assert!(matches!(one_more(0), Err(NotVouched::Busy(_))));
        assert_eq!(replays.admit(token(0), at(100), &[0; 32], at(0)), Ok(()));
        assert_eq!(one_more(160), Ok(()));
        assert_eq!(replays.0.lock().unwrap().len(), 1);
    }
}
