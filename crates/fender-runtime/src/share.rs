//! Nobody holds everything: how many of something one user or one process has, and the bound on that.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// What each holder has.
#[derive(Debug)]
pub struct Shares<K> {
    limit: usize,
    held: Arc<Mutex<HashMap<K, usize>>>,
}

/// One of them; dropping it gives it back.
#[derive(Debug)]
pub struct Share<K: Eq + Hash> {
    held: Arc<Mutex<HashMap<K, usize>>>,
    holder: K,
}

impl<K: Eq + Hash + Clone> Shares<K> {
    /// At most `limit` for each holder.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            held: Arc::default(),
        }
    }

    /// One more for `holder`, if there is one left.
    pub fn take(&self, holder: K) -> Option<Share<K>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.get(&holder).copied().unwrap_or(0);
        if count >= self.limit {
            return None;
        }
        held.insert(holder.clone(), count + 1);
        Some(Share {
            held: Arc::clone(&self.held),
            holder,
        })
    }
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match held.get_mut(&self.holder) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) | None => drop(held.remove(&self.holder)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_cannot_take_the_share_of_another_and_gets_its_own_back() {
        let shares = Shares::new(2);
        let (first, _second) = (shares.take("a"), shares.take("a"));
        assert!(first.is_some() && shares.take("a").is_none());
        assert!(shares.take("b").is_some());
        drop(first);
        assert!(shares.take("a").is_some());
        assert_eq!(
            shares.held.lock().unwrap().len(),
            1,
            "b holds nothing any more"
        );
    }
}
