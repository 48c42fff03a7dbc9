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
//! Whatever somebody holds ([`Held`]) is looked for: what is delivered now, and what the application was started with, for as long as it
//! runs. Beside that those that were replaced are, a few of each credential, as far as there is room.
//!
//! Whoever masks holds the secrets, those that were replaced a while ago too: they are wiped when they go, and so are the tables made of them. It
//! is no protection from an application that hides what it writes; it is one from one that writes what it should not.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use fender_config::ObjectName;
use fender_identity::Secret;
use zeroize::Zeroizing;

pub use stream::Stream;

use automaton::Automaton;

mod automaton;
mod forms;
mod skip;
mod stream;

/// What stands where a secret was.
pub const MARK: &[u8] = b"***";
/// What is shorter would hide too much that is no secret, and cannot be hidden.
pub const SHORTEST: usize = 6;
/// How many values of one credential are looked for beside those that somebody holds.
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
type Known = BTreeMap<ObjectName, VecDeque<Value>>;

#[derive(Clone)]
struct Value {
    secret: Secret,
    /// By whoever holds it.
    held: Weak<()>,
}

/// While one of these lives a value is looked for, whatever comes after it. Clones hold the same.
#[derive(Clone, Debug)]
pub struct Held {
    _holds: Arc<()>,
}

impl Held {
    /// Whether both hold one value of one credential.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self._holds, &other._holds)
    }
}

/// What is looked for in this value, in each of its forms.
type Forms = Vec<Zeroizing<Vec<u8>>>;

/// There is more to hide than can be looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the output cannot be masked: all values together that are delivered, or that the application was started with, have more than {MOST} bytes with the forms that are looked for, or are of more than {MOST_CREDENTIALS} credentials; what goes from the documents, or is started again, makes room"
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

    /// Hides these from now on, beside what was known before. To be called before the application can get them. Returns what holds them, one
    /// for each; to be kept for as long as they are delivered.
    ///
    /// If there is too much, nothing of it is learnt, and what was hidden before still is. The log names those that are too short to be
    /// hidden.
    pub fn learn<'a>(
        &self,
        values: impl IntoIterator<Item = (&'a ObjectName, &'a Secret)>,
    ) -> Result<Vec<Held>, TooMuch> {
        self.learn_without(values, &[])
    }

    /// The same, as if nobody held `going`: for whoever has these, lets no one else have them meanwhile, and lets go of them if this succeeds. If it
    /// does not, they hold what they held.
    pub(crate) fn learn_without<'a>(
        &self,
        values: impl IntoIterator<Item = (&'a ObjectName, &'a Secret)>,
        going: &[&Held],
    ) -> Result<Vec<Held>, TooMuch> {
        let mut known = lock(&self.0.known);
        let mut next = known.clone();
        let mut holders = BTreeMap::new();
        for held in going {
            *holders.entry(Arc::as_ptr(&held._holds)).or_default() += 1;
        }
        for value in next.values_mut().flatten() {
            let theirs = holders.get(&value.held.as_ptr());
            if theirs.is_some_and(|theirs| value.held.strong_count() <= *theirs) {
                value.held = Weak::new();
            }
        }
        let mut held = Vec::new();
        let mut news = false;
        for (name, secret) in values {
            let of_name = next.entry(name.clone()).or_default();
            let at = of_name.iter().position(|one| one.secret.ct_eq(secret));
            let mut value = at
                .and_then(|at| of_name.remove(at))
                .unwrap_or_else(|| Value::new(name, secret));
            held.push(value.hold());
            of_name.push_front(value);
            news |= at != Some(0);
        }
        if news {
            let forms = fitting(&mut next)?;
            *lock(&self.0.automaton) = Arc::new(Automaton::of(&forms));
        }
        *known = next;
        Ok(held)
    }

    /// Holds all that somebody holds now: for an application that is started, which may have any of it from then on.
    pub fn hold_all(&self) -> Vec<Held> {
        let known = lock(&self.0.known);
        let holders = known.values().flatten().map(|value| value.held.upgrade());
        let held = holders.flatten().map(|holds| Held { _holds: holds });
        held.collect()
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

impl Value {
    /// Held by nobody yet.
    fn new(name: &ObjectName, secret: &Secret) -> Self {
        if forms::whole(secret.expose()).len() < SHORTEST {
            tracing::warn!(credential = %name, "its value is not masked in what the application writes: it is shorter than {SHORTEST} bytes");
        } else if forms::has_short_texts(secret.expose()) {
            tracing::warn!(credential = %name, "texts of its value are not masked by themselves in what the application writes: they are shorter than {SHORTEST} bytes");
        }
        Self {
            secret: secret.clone(),
            held: Weak::new(),
        }
    }

    fn hold(&mut self) -> Held {
        let holds = self.held.upgrade().unwrap_or_default();
        self.held = Arc::downgrade(&holds);
        Held { _holds: holds }
    }

    fn is_held(&self) -> bool {
        self.held.strong_count() > 0
    }
}

/// What is looked for. All that is held must fit; of what is not, [`REPLACED`] of each credential stay, and whatever was replaced longest
/// ago goes when there is no room.
fn fitting(known: &mut Known) -> Result<Forms, TooMuch> {
    // Nobody lets go of anything meanwhile.
    let holders = known.values().flatten().map(|value| value.held.upgrade());
    let _holders: Vec<_> = holders.collect();
    // Names that nobody has any more go first.
    let mut over = known.len().saturating_sub(MOST_CREDENTIALS);
    known.retain(|_, values| {
        let goes = over > 0 && !values.iter().any(Value::is_held);
        over -= usize::from(goes);
        !goes
    });
    if over > 0 {
        return Err(TooMuch);
    }
    let (mut forms, mut room) = (Forms::new(), MOST);
    for value in known.values().flatten().filter(|value| value.is_held()) {
        if !add(value, &mut forms, &mut room) {
            return Err(TooMuch);
        }
    }
    for age in 0..=REPLACED {
        for values in known.values_mut() {
            let replaced = values.iter().enumerate();
            let mut replaced = replaced.filter(|(_, value)| !value.is_held());
            let Some((at, value)) = replaced.nth(age) else {
                continue;
            };
            if age == REPLACED || !add(value, &mut forms, &mut room) {
                let mut position = 0;
                values.retain(|value| {
                    position += 1;
                    position <= at || value.is_held()
                });
            }
        }
    }
    known.retain(|_, values| !values.is_empty());
    Ok(forms)
}

/// Adds what is looked for because of a value, if there is room for it: whether there is.
fn add(value: &Value, forms: &mut Forms, room: &mut usize) -> bool {
    // As it is alone it does not fit: its forms need not be made.
    if value.secret.len() > *room {
        return false;
    }
    let of_value = forms::of(value.secret.expose());
    let weight: usize = of_value.iter().map(|form| form.len()).sum();
    let left = room.checked_sub(weight + value.secret.len());
    if let Some(left) = left {
        *room = left;
        forms.extend(of_value);
    }
    left.is_some()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
