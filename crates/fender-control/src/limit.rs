//! A bound on how often somebody may fail, so that guessing and flooding cost more than they give. Success is never
//! counted: a fleet behind one address starts as fast as it can.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Sources remembered; beyond it, the oldest window goes first.
const SOURCES: usize = 4096;

/// Where somebody calls from, as far as they can choose it: an IPv4 address, or the /64 of an IPv6 address, in which one
/// host may have as many as it likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Neighbourhood(IpAddr);

impl Neighbourhood {
    pub(crate) fn of(ip: IpAddr) -> Self {
        Self(match ip.to_canonical() {
            IpAddr::V6(ip) => {
                let prefix = u128::from(ip) & (u128::MAX << 64);
                IpAddr::V6(Ipv6Addr::from(prefix))
            }
            ip @ IpAddr::V4(_) => ip,
        })
    }
}

/// Counts failures by source in windows of one minute.
#[derive(Debug)]
pub(crate) struct Failures<S> {
    allowed: u32,
    windows: Mutex<HashMap<S, Window>>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    began: Instant,
    count: u32,
}

const WINDOW: Duration = Duration::from_secs(60);

impl<S: Eq + Hash + Clone> Failures<S> {
    pub(crate) fn new(allowed: u32) -> Self {
        Self {
            allowed,
            windows: Mutex::default(),
        }
    }

    /// Whether this source has failed too often in the last minute.
    pub(crate) fn exceeded(&self, source: &S) -> bool {
        let windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        windows
            .get(source)
            .is_some_and(|window| window.began.elapsed() < WINDOW && window.count >= self.allowed)
    }

    pub(crate) fn count(&self, source: S) {
        let now = Instant::now();
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if windows.len() >= SOURCES && !windows.contains_key(&source) {
            windows.retain(|_, window| window.began.elapsed() < WINDOW);
            if windows.len() >= SOURCES {
                let oldest = windows.iter().min_by_key(|(_, window)| window.began);
                if let Some(oldest) = oldest.map(|(source, _)| source.clone()) {
                    windows.remove(&oldest);
                }
            }
        }
        let window = windows.entry(source).or_insert(Window {
            began: now,
            count: 0,
        });
        if window.began.elapsed() >= WINDOW {
            *window = Window {
                began: now,
                count: 0,
            };
        }
        window.count = window.count.saturating_add(1);
    }
}

/// A bucket of permits that refills with time.
#[derive(Debug)]
pub(crate) struct Bucket {
    size: f64,
    per_second: f64,
    level: f64,
    seen: Instant,
}

impl Bucket {
    pub(crate) fn new(size: u32, per_second: u32) -> Self {
        let size = f64::from(size);
        Self {
            size,
            per_second: f64::from(per_second),
            level: size,
            seen: Instant::now(),
        }
    }

    pub(crate) fn refill_at(&mut self, per_second: f64) -> &mut Self {
        self.per_second = per_second;
        self
    }

    /// What it has gained by now.
    fn refill(&mut self) {
        let now = Instant::now();
        let gained = now.duration_since(self.seen).as_secs_f64() * self.per_second;
        self.level = (self.level + gained).min(self.size);
        self.seen = now;
    }

    pub(crate) fn has(&mut self) -> bool {
        self.refill();
        self.level >= 1.0
    }

    pub(crate) fn is_full(&mut self) -> bool {
        self.refill();
        self.level >= self.size
    }

    pub(crate) fn take(&mut self) -> bool {
        let taken = self.has();
        if taken {
            self.level -= 1.0;
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn failures_are_forgiven_after_a_minute_and_counted_per_source() {
        let failures = Failures::new(2);
        failures.count("a");
        assert!(!failures.exceeded(&"a"));
        failures.count("a");
        assert!(failures.exceeded(&"a") && !failures.exceeded(&"b"));
        tokio::time::advance(WINDOW).await;
        assert!(!failures.exceeded(&"a"));
    }

    #[test]
    fn attack_one_host_with_many_addresses_is_one_neighbourhood() {
        let of = |ip: &str| Neighbourhood::of(ip.parse().unwrap());
        assert_eq!(of("2001:db8:0:1::1"), of("2001:db8:0:1:ffff::2"));
        assert_ne!(of("2001:db8:0:1::1"), of("2001:db8:0:2::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_sources_does_not_grow_the_memory() {
        let failures = Failures::new(1);
        for source in 0..SOURCES + 100 {
            failures.count(source);
        }
        assert!(failures.windows.lock().unwrap().len() <= SOURCES);
    }

    #[tokio::test(start_paused = true)]
    async fn a_bucket_refills_with_time_and_never_overflows() {
        let mut bucket = Bucket::new(2, 1);
        assert!(bucket.take() && bucket.take() && !bucket.take());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(bucket.take() && !bucket.take());
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(bucket.take() && bucket.take() && !bucket.take());
    }
}
