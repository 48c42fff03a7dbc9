//! Tokens that were given, for whoever asks for the same again: each is kept for half its life, and a little longer only
//! while there is no other to be had.
//!
//! A token is of one identity for one list of audiences; it says nothing of the process that asked. A revocation of the
//! identity takes away what was signed before it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use fender_api::client::{CallError, SignedToken};
use fender_identity::{Secret, SpiffeId};
use fender_runtime::clock::{SharedClock, UnixTime};

use crate::JwtSvid;

/// Tokens kept at a time; of more, those that end first go.
const KEPT: usize = 512;
/// What a token must still live to be worth anything to its reader.
const WORTH: u64 = 10;

/// Of one socket.
#[derive(Debug, Default)]
pub struct Tokens(Mutex<HashMap<(SpiffeId, Vec<String>), Kept>>);

#[derive(Debug)]
struct Kept {
    token: Secret,
    received: UnixTime,
    expires: UnixTime,
}

/// What is known of a token that was asked for before.
#[derive(Clone, Debug)]
pub(crate) enum Known {
    /// It has lived less than half of its life.
    Fresh(Secret),
    /// It is to be replaced, and good for as long as it cannot be.
    Stale(Secret),
    None,
}

impl Tokens {
    /// A token as `id`: one that was given before, or another. `begins` is from when on a token of this identity counts, if somebody said so.
    pub async fn give(
        &self,
        id: &SpiffeId,
        audience: &[String],
        begins: Option<UnixTime>,
        clock: &SharedClock,
        sign: impl Future<Output = Result<SignedToken, CallError>>,
    ) -> Result<JwtSvid, CallError> {
        let now = clock.now();
        let given = |token| JwtSvid {
            id: id.clone(),
            token,
        };
        let stale = match self.find(id, audience, begins, now) {
            Known::Fresh(token) => return Ok(given(token)),
            Known::Stale(token) => Some(token),
            Known::None => None,
        };
        match (sign.await, stale) {
            (Ok(SignedToken { token, expires }), _) => {
                self.keep(id, audience, token.clone(), now, expires);
                Ok(given(token))
            }
            (Err(error), Some(token)) if error.code().is_passing() => {
                tracing::warn!(%error, "a token past its half life is given once more");
                Ok(given(token))
            }
            (Err(error), _) => Err(error),
        }
    }

    pub(crate) fn find(
        &self,
        id: &SpiffeId,
        audience: &[String],
        begins: Option<UnixTime>,
        now: UnixTime,
    ) -> Known {
        let kept = self.lock();
        let Some(found) = kept.get(&(id.clone(), audience.to_vec())) else {
            return Known::None;
        };
        let (now, received) = (now.as_secs(), found.received.as_secs());
        let left = found.expires.as_secs().saturating_sub(now);
        let life = found.expires.as_secs().saturating_sub(received);
        // Also if the clock was put back: what it says of the token's life is not so.
        if begins > Some(found.received) || now < received || left < WORTH.min(life / 2) {
            return Known::None;
        }
        match left.saturating_mul(2) > life {
            true => Known::Fresh(found.token.clone()),
            false => Known::Stale(found.token.clone()),
        }
    }

    fn keep(
        &self,
        id: &SpiffeId,
        audience: &[String],
        token: Secret,
        received: UnixTime,
        expires: UnixTime,
    ) {
        let mut kept = self.lock();
        if kept.len() >= KEPT {
            kept.retain(|_, kept| kept.expires > received);
        }
        if kept.len() >= KEPT {
            let first = kept.iter().min_by_key(|(_, kept)| kept.expires);
            if let Some(first) = first.map(|(asked, _)| asked.clone()) {
                kept.remove(&first);
            }
        }
        let new = Kept {
            token,
            received,
            expires,
        };
        kept.insert((id.clone(), audience.to_vec()), new);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(SpiffeId, Vec<String>), Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    fn id(name: &str) -> SpiffeId {
        format!("spiffe://acme.test/ns/shop/sa/{name}")
            .parse()
            .unwrap()
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn kept() -> Tokens {
        let tokens = Tokens::default();
        let token = Secret::from("token".to_owned());
        tokens.keep(
            &id("orders"),
            &names(&["ledger"]),
            token,
            at(NOW),
            at(NOW + 300),
        );
        tokens
    }

    fn state(tokens: &Tokens, begins: Option<u64>, now: u64) -> &'static str {
        match tokens.find(&id("orders"), &names(&["ledger"]), begins.map(at), at(now)) {
            Known::Fresh(_) => "fresh",
            Known::Stale(_) => "stale",
            Known::None => "none",
        }
    }

    #[test]
    fn a_token_is_given_again_for_half_its_life_and_never_when_it_is_about_to_end() {
        let tokens = kept();
        assert_eq!(state(&tokens, None, NOW), "fresh");
        assert_eq!(state(&tokens, None, NOW + 149), "fresh");
        assert_eq!(state(&tokens, None, NOW + 150), "stale");
        assert_eq!(state(&tokens, None, NOW + 290), "stale");
        assert_eq!(state(&tokens, None, NOW + 291), "none");
        assert_eq!(state(&tokens, None, NOW - 1), "none");
    }

    #[test]
    fn a_token_is_of_one_identity_and_one_audience() {
        let tokens = kept();
        for (id, audience) in [
            (id("mail"), names(&["ledger"])),
            (id("orders"), names(&["mail"])),
            (id("orders"), names(&["ledger", "mail"])),
        ] {
            assert!(matches!(
                tokens.find(&id, &audience, None, at(NOW)),
                Known::None
            ));
        }
    }

    #[test]
    fn attack_a_token_from_before_a_revocation_is_not_given_again() {
        let tokens = kept();
        assert_eq!(state(&tokens, Some(NOW + 1), NOW + 2), "none");
        assert_eq!(state(&tokens, Some(NOW), NOW + 2), "fresh");
    }

    #[test]
    fn attack_audiences_without_end_do_not_grow_the_memory() {
        let tokens = kept();
        for n in 0..10_000 {
            let token = Secret::from("token".to_owned());
            let audience = names(&[&n.to_string()]);
            tokens.keep(&id("orders"), &audience, token, at(NOW), at(NOW + 400));
        }
        assert!(tokens.lock().len() <= KEPT);
    }
}
