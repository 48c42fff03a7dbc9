//! Hides secrets in what an application writes: every value that was delivered to it is replaced by `***`, wherever it is cut.
//!
//! What is looked for is each value as it is, as JSON and URLs escape it, and in base64 wherever it begins; of a value of many lines or of
//! a JSON object also each line and each text. What is longer than a piece is looked for piece by piece, so that
//! no more than a piece is ever held back.
//!
//! A byte is masked if it is part of any occurrence of anything that is looked for, so nothing is gained by values that overlap or
//! contain each other. What could be the beginning of a secret is held back until it is known not to be one, however long
//! that takes, or until the end: whoever writes a secret byte by byte gains nothing, and a prompt that ends with what a secret
//! begins with waits. Everything else goes on at once.
//!
//! Whoever masks holds the secrets, those that were replaced a while ago too: they are wiped when they go, and so are the tables made of them. It
//! is no protection from an application that hides what it writes; it is one from one that writes what it should not.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fender_config::ObjectName;
use fender_identity::Secret;
use zeroize::Zeroizing;

pub use stream::Stream;

use automaton::Automaton;

mod automaton;
mod forms;
mod stream;

/// What stands where a secret was.
pub const MARK: &[u8] = b"***";
/// What is shorter would hide too much that is no secret, and cannot be hidden.
pub const SHORTEST: usize = 6;
/// How many values of one credential are looked for beside its newest.
const REPLACED: usize = 8;
/// How many bytes all values and all that is looked for may have together, in all forms. The tables take some twenty times as much memory.
const MOST: usize = 1024 * 1024;
/// Of how many credentials there may be values: also of those that weigh nothing, because they are too short.
const MOST_CREDENTIALS: usize = 4096;

/// What is hidden. Clones are the same.
#[derive(Clone)]
pub struct Masks(Arc<Shared>);

struct Shared {
    known: Mutex<Known>,
    automaton: Mutex<Arc<Automaton>>,
}

/// Of each credential its values, the newest first.
type Known = BTreeMap<ObjectName, VecDeque<Secret>>;

/// What is looked for in this value, in each of its forms.
type Forms = Vec<Zeroizing<Vec<u8>>>;

/// There is more to hide than can be looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the output cannot be masked: all values together, with the forms that are looked for, have more than {MOST} bytes, or are of more than {MOST_CREDENTIALS} credentials"
)]
pub struct TooMuch;

impl Masks {
    /// Hides nothing yet.
    pub fn new() -> Self {
        Self(Arc::new(Shared {
            known: Mutex::default(),
            automaton: Mutex::new(Arc::new(Automaton::of(&[]))),
        }))
    }

    /// Hides these from now on, each beside what was known of its credential before. To be called before the application can get
    /// them. Returns which of them are too short to be hidden.
    ///
    /// If there is too much, nothing of it is learnt, and what was hidden before still is.
    pub fn learn<'a>(
        &self,
        values: impl IntoIterator<Item = (&'a ObjectName, &'a Secret)>,
    ) -> Result<Vec<ObjectName>, TooMuch> {
        let mut known = lock(&self.0.known);
        let mut next = known.clone();
        let mut short = Vec::new();
        let mut news = false;
        for (name, value) in values {
            if forms::whole(value.expose()).len() < SHORTEST {
                tracing::warn!(credential = %name, "its value is not masked in what the application writes: it is shorter than {SHORTEST} bytes");
                short.push(name.clone());
            }
            let of_name = next.entry(name.clone()).or_default();
            news |= !of_name.front().is_some_and(|newest| newest.ct_eq(value));
            if let Some(at) = of_name.iter().position(|one| one.ct_eq(value)) {
                of_name.remove(at);
            }
            of_name.push_front(value.clone());
            of_name.truncate(1 + REPLACED);
        }
        if !news {
            return Ok(short);
        }
        let forms = fitting(&mut next)?;
        *lock(&self.0.automaton) = Arc::new(Automaton::of(&forms));
        *known = next;
        Ok(short)
    }

    fn automaton(&self) -> Arc<Automaton> {
        Arc::clone(&lock(&self.0.automaton))
    }
}

impl Default for Masks {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Masks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Masks").finish_non_exhaustive()
    }
}

/// What is looked for. The newest of every credential must fit; of those that were replaced, whatever was replaced longest ago
/// goes when there is no room.
fn fitting(known: &mut Known) -> Result<Forms, TooMuch> {
    if known.len() > MOST_CREDENTIALS {
        return Err(TooMuch);
    }
    let mut forms = Forms::new();
    let mut room = MOST;
    for age in 0..=REPLACED {
        for values in known.values_mut() {
            let Some(value) = values.get(age) else {
                continue;
            };
            let of_value = forms::of(value.expose());
            let weight: usize = of_value.iter().map(|form| form.len()).sum();
            let weight = weight + value.len();
            match room.checked_sub(weight) {
                Some(left) => room = left,
                None if age == 0 => return Err(TooMuch),
                None => {
                    values.truncate(age);
                    continue;
                }
            }
            forms.extend(of_value);
        }
    }
    Ok(forms)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
