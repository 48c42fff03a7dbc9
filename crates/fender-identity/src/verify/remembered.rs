//! Signatures in chains that were found good, remembered: a peer that comes back with the same certificate costs one
//! signature fewer.
//!
//! What is remembered is a fact of mathematics and not of trust: this signature, over this message, fits this key. It does
//! not age and is nobody's permission. Path, validity, purpose, revocation and roots are looked at each time, and so is the
//! signature by which the peer proves in the handshake that it has the key. Nothing is remembered of a signature that is
//! wrong. Each thread remembers for itself, a fixed number of them, the oldest forgotten first, so nothing is locked and
//! nobody can fill memory; whoever shows many chains only makes us compute again.

use std::cell::RefCell;
use std::fmt;

use aws_lc_rs::digest::{Context, SHA256};
use rustls_pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm};

use crate::newest::Newest;

/// How many a thread remembers: 8 KiB. The callers of one workload are fewer than that, each with two signatures or three.
const REMEMBERED: usize = 256;

thread_local! {
    static GOOD: RefCell<Newest<Fact, REMEMBERED>> = const { RefCell::new(Newest::new()) };
}

/// An algorithm that does not compute twice.
pub(super) struct Remembering(pub(super) &'static dyn SignatureVerificationAlgorithm);

impl SignatureVerificationAlgorithm for Remembering {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let fact = Fact::of(self.0, public_key, message, signature);
        if GOOD.with_borrow(|good| good.iter().any(|known| *known == fact)) {
            return Ok(());
        }
        self.0.verify_signature(public_key, message, signature)?;
        GOOD.with_borrow_mut(|good| good.add(fact));
        Ok(())
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.0.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.0.signature_alg_id()
    }

    fn fips(&self) -> bool {
        self.0.fips()
    }
}

impl fmt::Debug for Remembering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Remembering").field(&self.0).finish()
    }
}

/// That a signature fits, by its hash. Lengths are part of it: no two questions are hashed alike.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Fact([u8; 32]);

impl Fact {
    fn of(
        algorithm: &dyn SignatureVerificationAlgorithm,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Self {
        let mut context = Context::new(&SHA256);
        for part in [
            &*algorithm.public_key_alg_id(),
            &*algorithm.signature_alg_id(),
            public_key,
            message,
            signature,
        ] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut fact = [0; 32];
        fact.copy_from_slice(context.finish().as_ref());
        Self(fact)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Finds good what is signed `good`, and counts how often it was asked.
    #[derive(Debug, Default)]
    struct Counting(AtomicUsize);

    impl SignatureVerificationAlgorithm for Counting {
        fn verify_signature(&self, _: &[u8], _: &[u8], sig: &[u8]) -> Result<(), InvalidSignature> {
            self.0.fetch_add(1, Ordering::Relaxed);
            if sig == b"good" {
                Ok(())
            } else {
                Err(InvalidSignature)
            }
        }

        fn public_key_alg_id(&self) -> AlgorithmIdentifier {
            AlgorithmIdentifier::from_slice(b"key")
        }

        fn signature_alg_id(&self) -> AlgorithmIdentifier {
            AlgorithmIdentifier::from_slice(b"signature")
        }
    }

    fn counting() -> (Remembering, &'static Counting) {
        let counting: &'static Counting = Box::leak(Box::default());
        (Remembering(counting), counting)
    }

    #[test]
    fn a_good_signature_is_computed_once() {
        let (algorithm, counting) = counting();
        for _ in 0..3 {
            algorithm.verify_signature(b"k", b"m", b"good").unwrap();
        }
        assert_eq!(counting.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_wrong_signature_is_wrong_each_time() {
        let (algorithm, counting) = counting();
        for _ in 0..3 {
            algorithm.verify_signature(b"k", b"m", b"bad").unwrap_err();
        }
        assert_eq!(counting.0.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn another_key_message_or_signature_is_another_question_wherever_one_ends_and_the_next_begins()
    {
        let (algorithm, counting) = counting();
        let questions: [[&[u8]; 3]; 4] = [
            [b"key", b"message", b"good"],
            [b"keym", b"essage", b"good"],
            [b"ke", b"ymessage", b"good"],
            [b"key", b"messag", b"good"],
        ];
        for [key, message, signature] in questions {
            algorithm.verify_signature(key, message, signature).unwrap();
        }
        assert_eq!(counting.0.load(Ordering::Relaxed), 4);
        algorithm
            .verify_signature(b"key", b"messageg", b"ood")
            .unwrap_err();
    }

    #[test]
    fn what_was_found_good_for_one_algorithm_says_nothing_about_another() {
        let (algorithm, _) = counting();
        algorithm.verify_signature(b"k", b"m", b"good").unwrap();
        let real = Remembering(
            rustls::crypto::aws_lc_rs::default_provider()
                .signature_verification_algorithms
                .all[0],
        );
        real.verify_signature(b"k", b"m", b"good").unwrap_err();
    }

    #[test]
    fn the_oldest_is_forgotten_and_no_more_is_kept_than_said() {
        let (algorithm, counting) = counting();
        let ask = |n: usize| {
            algorithm
                .verify_signature(b"k", &n.to_be_bytes(), b"good")
                .unwrap()
        };
        (0..=REMEMBERED).for_each(ask);
        assert_eq!(GOOD.with_borrow(|good| good.iter().count()), REMEMBERED);
        ask(REMEMBERED);
        ask(1);
        assert_eq!(counting.0.load(Ordering::Relaxed), REMEMBERED + 1);
        ask(0);
        assert_eq!(counting.0.load(Ordering::Relaxed), REMEMBERED + 2);
    }
}
