//! One value after the other of one source: what is the same is of the same generation.
//!
//! It asks nobody; the value before stays here until there is another.

use std::sync::{Mutex, PoisonError};

use fender_identity::Secret;

use crate::{Fetched, Generation};

/// The value that a source had last.
#[derive(Debug, Default)]
pub(crate) struct Known(Mutex<Option<Fetched>>);

impl Known {
    /// A value that the source has now, of the generation before if it is the same; compared in constant time.
    pub(crate) fn fetched(&self, value: Secret) -> Fetched {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = known.take().filter(|known| known.value.ct_eq(&value));
        let fetched = same.unwrap_or_else(|| Fetched {
            value,
            generation: Generation::random(),
        });
        *known = Some(fetched.clone());
        fetched
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_value_is_of_the_same_generation_and_one_that_comes_back_of_another() {
        let known = Known::default();
        let fetched = |value: &str| known.fetched(Secret::from(value.to_owned())).generation;
        let first = fetched("one");
        assert_eq!(fetched("one"), first);
        let second = fetched("two");
        assert_ne!(second, first);
        assert_ne!(fetched("one"), first);
    }
}
