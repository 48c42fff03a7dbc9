//! Lists that are told page by page, for the audit log.
//!
//! A list is one entry there, which names where it begins, and not one for each of its pages. A page counts as the next one
//! of a list only if it begins where the page before ended, for the same certificate: whoever begins in the middle begins
//! a list of their own. So there is an entry for all that was read.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fender_identity::Serial;
use tokio::time::Instant;

use crate::store::audit::Action;

/// Lists that are being read at once. The one that has waited longest is forgotten, and its next page is an entry again.
const LISTS: usize = 256;
/// A page that is asked for later begins a new list.
const PATIENCE: Duration = Duration::from_secs(10 * 60);

#[derive(Debug, Default)]
pub(crate) struct Listings(Mutex<HashMap<List, Page>>);

/// Who reads which list, and what of it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct List {
    pub(crate) reader: Serial,
    pub(crate) action: Action,
    /// By what the list is narrowed.
    pub(crate) of: String,
}

#[derive(Debug)]
struct Page {
    next: String,
    told: Instant,
}

impl Listings {
    /// Whether a page from behind `after` goes on with a list that has its entry.
    pub(crate) fn goes_on(&self, list: &List, after: &str) -> bool {
        let lists = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lists
            .get(list)
            .is_some_and(|page| page.next == after && page.told.elapsed() < PATIENCE)
    }

    /// A page was told; the next one begins behind `next`, which is empty if there is none.
    pub(crate) fn told(&self, list: List, next: String) {
        let mut lists = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if next.is_empty() {
            lists.remove(&list);
            return;
        }
        if lists.len() >= LISTS && !lists.contains_key(&list) {
            let oldest = lists.iter().min_by_key(|(_, page)| page.told);
            if let Some(oldest) = oldest.map(|(list, _)| list.clone()) {
                lists.remove(&oldest);
            }
        }
        let told = Instant::now();
        lists.insert(list, Page { next, told });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(reader: u32) -> List {
        List {
            reader: Serial::from_bytes(&(reader + 1).to_be_bytes()).unwrap(),
            action: Action::AuditLog,
            of: String::new(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_goes_on_only_where_the_one_before_ended_and_soon() {
        let listings = Listings::default();
        assert!(!listings.goes_on(&list(0), "256"), "nobody began");
        listings.told(list(0), "256".to_owned());
        assert!(listings.goes_on(&list(0), "256"));
        for (reader, after) in [(0, ""), (0, "255"), (0, "512"), (1, "256")] {
            assert!(!listings.goes_on(&list(reader), after), "{reader} {after}");
        }
        tokio::time::advance(PATIENCE).await;
        assert!(!listings.goes_on(&list(0), "256"), "too late");
        listings.told(list(0), "256".to_owned());
        listings.told(list(0), String::new());
        assert!(!listings.goes_on(&list(0), "256"), "it is over");
    }

    #[tokio::test(start_paused = true)]
    async fn many_lists_do_not_grow_the_memory() {
        let listings = Listings::default();
        for reader in 0..1000 {
            listings.told(list(reader), "1".to_owned());
        }
        assert_eq!(listings.0.lock().unwrap().len(), LISTS);
    }
}
