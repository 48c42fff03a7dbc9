//! Where the replicas of a control plane are, and which of them is asked next.
//!
//! Each client has an order of its own, so that those of a replica that dies spread over the others. It stays with the one
//! that answers until that one fails. None of it is kept on disk: where the control plane is, the operator says at every
//! start, and whom to believe there never depends on it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fender_runtime::id::OpaqueId;

use crate::url::{ControlUrl, UrlError};

/// Replicas one client may know.
const MOST: usize = 16;

/// One address or more. Clones share which one answers.
#[derive(Clone, Debug)]
pub struct Addresses(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    urls: Box<[ControlUrl]>,
    current: AtomicUsize,
}

impl Addresses {
    /// In an order that chance decides.
    pub fn new(mut urls: Vec<ControlUrl>) -> Result<Self, AddressesError> {
        urls.sort_by_cached_key(ToString::to_string);
        urls.dedup();
        if urls.is_empty() {
            return Err(AddressesError::None);
        }
        if urls.len() > MOST {
            return Err(AddressesError::TooMany { number: urls.len() });
        }
        urls.sort_by_cached_key(|_| OpaqueId::random());
        Ok(Self(Arc::new(Inner {
            urls: urls.into(),
            current: AtomicUsize::new(0),
        })))
    }

    /// As they are written on a command line or in an environment variable.
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Self, AddressesError> {
        let urls = texts
            .iter()
            .map(|text| text.as_ref().trim().parse())
            .collect::<Result<_, UrlError>>()?;
        Self::new(urls)
    }

    /// Each once, beginning with the one that answered last.
    pub(crate) fn turn(&self) -> Vec<&ControlUrl> {
        let Inner { urls, current } = &*self.0;
        let (before, from) = urls.split_at(current.load(Ordering::Relaxed));
        from.iter().chain(before).collect()
    }

    /// This one answers: it is asked next time, too.
    pub(crate) fn stay(&self, url: &ControlUrl) {
        if let Some(at) = self.0.urls.iter().position(|known| known == url) {
            self.0.current.store(at, Ordering::Relaxed);
        }
    }

    /// This one failed: another is asked next time, unless somebody has left it already.
    pub(crate) fn leave(&self, url: &ControlUrl) {
        let Inner { urls, current } = &*self.0;
        if let Some(at) = urls.iter().position(|known| known == url) {
            let next = (at + 1) % urls.len();
            let _ = current.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

impl From<ControlUrl> for Addresses {
    fn from(url: ControlUrl) -> Self {
        Self(Arc::new(Inner {
            urls: Box::new([url]),
            current: AtomicUsize::new(0),
        }))
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, url) in self.turn().into_iter().enumerate() {
            if position > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{url}")?;
        }
        Ok(())
    }
}

/// Why these are not the addresses of a control plane.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressesError {
    /// Nobody could be asked.
    #[error("no address of a control plane is given")]
    None,
    /// More than anybody has replicas.
    #[error("{number} addresses are given, and a client knows at most {MOST}")]
    TooMany {
        /// How many.
        number: usize,
    },
    /// One of them is none.
    #[error(transparent)]
    Url(#[from] UrlError),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(number: usize) -> Addresses {
        let urls = (1..=number).map(|port| format!("https://control:{port}").parse().unwrap());
        Addresses::new(urls.collect()).unwrap()
    }

    fn first(addresses: &Addresses) -> ControlUrl {
        addresses.turn()[0].clone()
    }

    #[test]
    fn a_client_stays_with_the_one_that_answers_and_leaves_it_once_when_it_fails() {
        let addresses = addresses(3);
        let order: Vec<_> = addresses.turn().into_iter().cloned().collect();
        addresses.stay(&order[0]);
        assert_eq!(first(&addresses), order[0]);
        // Several callers notice the same failure.
        let other = addresses.clone();
        addresses.leave(&order[0]);
        other.leave(&order[0]);
        assert_eq!(first(&addresses), order[1]);
        addresses.leave(&order[1]);
        addresses.leave(&order[2]);
        assert_eq!(first(&addresses), order[0], "round and round");
    }

    #[test]
    fn clients_of_one_replica_spread_over_all_others_when_it_dies() {
        let mut next = std::collections::BTreeMap::new();
        for _ in 0..3000 {
            let addresses = addresses(3);
            let dead = "https://control:1".parse().unwrap();
            addresses.stay(&dead);
            addresses.leave(&dead);
            *next.entry(first(&addresses).port()).or_insert(0) += 1;
        }
        assert_eq!(next.len(), 2);
        // Each half of 3,000, give or take what has a chance of one in a billion.
        assert!(
            next.values().all(|count| (1300..1700).contains(count)),
            "{next:?}"
        );
    }

    #[test]
    fn none_too_many_and_what_is_none_are_refused_and_one_twice_is_one() {
        assert_eq!(
            Addresses::new(Vec::new()).unwrap_err(),
            AddressesError::None
        );
        assert!(Addresses::parse(&["https://control:1", "http://control:2"]).is_err());
        let many: Vec<_> = (1..=17)
            .map(|port| format!("https://control:{port}"))
            .collect();
        assert_eq!(
            Addresses::parse(&many).unwrap_err(),
            AddressesError::TooMany { number: 17 }
        );
        let twice = Addresses::parse(&["https://control:1", " https://control:1/"]).unwrap();
        assert_eq!(twice.turn().len(), 1);
    }
}
