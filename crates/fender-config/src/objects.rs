//! Objects of one kind by their names, shared between one set of documents and the next: whoever changes one of ten
//! thousand copies the list of them and no object, and whoever compares two sets looks only into what is not shared.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::collections::btree_map;
use std::fmt;
use std::iter::Peekable;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;

/// A map that is cheap to clone, and its objects with it.
pub struct Objects<K, V>(Arc<BTreeMap<K, Arc<V>>>);

impl<K, V> Objects<K, V> {
    /// Those that are in one of the two only, or not the same in both; in the order of their names.
    pub fn differences<'a>(old: &'a Self, new: &'a Self) -> Differences<'a, K, V> {
        let all = |objects: &'a Self| match Arc::ptr_eq(&old.0, &new.0) {
            true => None,
            false => Some(objects.0.iter()),
        };
        Differences {
            old: all(old).into_iter().flatten().peekable(),
            new: all(new).into_iter().flatten().peekable(),
        }
    }
}

impl<K: Ord + Clone, V> Objects<K, V> {
    pub(crate) fn insert(&mut self, name: K, object: V) {
        Arc::make_mut(&mut self.0).insert(name, Arc::new(object));
    }

    /// Without the object of this name; copies nothing if there is none.
    pub(crate) fn remove(&mut self, name: &str)
    where
        K: FromStr,
    {
        let name = name.parse().ok().filter(|name| self.0.contains_key(name));
        if let Some(name) = name {
            Arc::make_mut(&mut self.0).remove(&name);
        }
    }

    pub(crate) fn is_named(&self, name: &str) -> bool
    where
        K: FromStr,
    {
        name.parse().is_ok_and(|name| self.0.contains_key(&name))
    }
}

impl<K: Ord, V> Objects<K, V> {
    /// The object of this name.
    pub fn get<Q: Ord + ?Sized>(&self, name: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.0.get(name).map(|object| &**object)
    }
}

impl<K, V> Objects<K, V> {
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter().map(|(name, object)| (name, &**object))
    }

    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.0.values().map(|object| &**object)
    }
}

/// Names and how many there are, as of any map.
impl<K, V> Deref for Objects<K, V> {
    type Target = BTreeMap<K, Arc<V>>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<K, V> Clone for Objects<K, V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, V> Default for Objects<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Ord, V: PartialEq> PartialEq for Objects<K, V> {
    fn eq(&self, other: &Self) -> bool {
        Self::differences(self, other).next().is_none()
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Objects<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

type All<'a, K, V> =
    Peekable<std::iter::Flatten<std::option::IntoIter<btree_map::Iter<'a, K, Arc<V>>>>>;

/// See [`Objects::differences`].
pub struct Differences<'a, K, V> {
    old: All<'a, K, V>,
    new: All<'a, K, V>,
}

/// One object that differs: what it was, and what it is.
#[derive(Clone, Copy, Debug)]
pub struct Difference<'a, K, V> {
    pub name: &'a K,
    pub old: Option<&'a V>,
    pub new: Option<&'a V>,
}

impl<'a, K: Ord, V: PartialEq> Iterator for Differences<'a, K, V> {
    type Item = Difference<'a, K, V>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let order = match (self.old.peek(), self.new.peek()) {
                (None, None) => return None,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some((old, _)), Some((new, _))) => old.cmp(new),
            };
            let old = order.is_le().then(|| self.old.next()).flatten();
            let new = order.is_ge().then(|| self.new.next()).flatten();
            match (old, new) {
                (Some((_, old)), Some((_, new))) if Arc::ptr_eq(old, new) || old == new => {}
                (old, new) => {
                    let (name, _) = old.or(new)?;
                    return Some(Difference {
                        name,
                        old: old.map(|(_, object)| &**object),
                        new: new.map(|(_, object)| &**object),
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The reference asks both for every name.
        #[test]
        fn what_differs_is_found_whether_it_is_shared_or_not(
            old in prop::collection::btree_map(0..20_u8, 0..3_u8, 0..12),
            edits in prop::collection::vec((0..20_u8, prop::option::of(0..3_u8)), 0..6),
            share in any::<bool>(),
        ) {
            let (mut before, mut edited) = (Objects::default(), old.clone());
            old.iter().for_each(|(name, object)| before.insert(*name, *object));
            let mut after = if share { before.clone() } else { Objects::default() };
            for (name, object) in edits {
                match object {
                    Some(object) => drop(edited.insert(name, object)),
                    None => drop(edited.remove(&name)),
                }
            }
            old.keys()
                .filter(|name| !edited.contains_key(name))
                .for_each(|name| after.remove(&name.to_string()));
            edited.iter().for_each(|(name, object)| after.insert(*name, *object));

            let expected: Vec<_> = (0..20_u8)
                .map(|name| (name, old.get(&name).copied(), edited.get(&name).copied()))
                .filter(|(_, old, new)| old != new)
                .collect();
            let found: Vec<_> = Objects::differences(&before, &after)
                .map(|it| (*it.name, it.old.copied(), it.new.copied()))
                .collect();
            prop_assert_eq!(before == after, found.is_empty());
            prop_assert_eq!(found, expected);
        }
    }
}
