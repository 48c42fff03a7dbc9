//! How often somebody may ask what is dear to answer.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

/// Those who are remembered; whoever asked longest ago is forgotten first.
const REMEMBERED: usize = 4096;

/// A bucket for each: it holds `burst`, and refills with time.
#[derive(Debug)]
pub struct Rates<K> {
    burst: f64,
    per_second: f64,
    buckets: Mutex<HashMap<K, Bucket>>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    level: f64,
    seen: Instant,
}

impl<K: Eq + Hash + Clone> Rates<K> {
    /// At first `burst` at once, then `per_second`; for each.
    pub fn new(burst: u32, per_second: u32) -> Self {
        Self {
            burst: f64::from(burst),
            per_second: f64::from(per_second),
            buckets: Mutex::default(),
        }
    }

    /// Whether `who` may once more.
    pub fn take(&self, who: &K) -> bool {
        let now = Instant::now();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= REMEMBERED && !buckets.contains_key(who) {
            let oldest = buckets.iter().min_by_key(|(_, bucket)| bucket.seen);
            if let Some(oldest) = oldest.map(|(who, _)| who.clone()) {
                buckets.remove(&oldest);
            }
        }
        let bucket = buckets.entry(who.clone()).or_insert(Bucket {
            level: self.burst,
            seen: now,
        });
        let refilled = now.duration_since(bucket.seen).as_secs_f64() * self.per_second;
        bucket.level = (bucket.level + refilled).min(self.burst);
        bucket.seen = now;
        if bucket.level < 1.0 {
            return false;
        }
        bucket.level -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn attack_asking_without_end_is_bounded_for_each_and_takes_nothing_from_others() {
        let rates = Rates::new(3, 1);
        assert_eq!((0..10).filter(|_| rates.take(&"a")).count(), 3);
        assert!(rates.take(&"b"));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!((0..10).filter(|_| rates.take(&"a")).count(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_are_remembered_than_there_is_room_for() {
        let rates = Rates::new(1, 1);
        for who in 0..REMEMBERED + 10 {
            assert!(rates.take(&who));
        }
        assert_eq!(rates.buckets.lock().unwrap().len(), REMEMBERED);
    }
}
