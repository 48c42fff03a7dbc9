//! AWS Secrets Manager and Systems Manager's Parameter Store, by their APIs.
//!
//! Requests are signed with the credentials that this machine has, found as AWS's SDKs find them ([`AwsSettings`]): documents
//! bring none. Of documents that came over the network only what was allowed locally is asked for ([`AllowAws`]). All
//! secrets share one set of credentials, those of one API in a region one budget, and credentials that name the same
//! secret one answer.
//!
//! It follows no redirect, writes nothing into AWS, and keeps nothing on disk.

mod allow;
mod chain;
mod desk;
mod keys;
mod place;
mod profile;
mod settings;
mod sign;
mod sts;
mod time;
mod wire;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use fender_config::snapshot::{AwsPlace, AwsSecret, AwsService, AwsStore};
use fender_runtime::clock::SharedClock;
use tokio::time::Instant;

use crate::host::ReadFiles;
use crate::known::Known;
use crate::{FetchError, Fetched, Source};
use chain::Chain;
use desk::Desk;
use place::Place;
use wire::{Http, Wire};

pub use allow::{AllowAws, AwsNotAllowed, AwsPattern, InvalidAwsPattern};
pub use settings::AwsSettings;

/// How long what is known of an API that nobody asks is remembered: that it wants to be left alone, for instance.
const LINGER: Duration = Duration::from_secs(5 * 60);
/// No secret is asked for more often.
const SHORTEST_REFRESH: Duration = Duration::from_secs(1);

/// What this machine has for AWS, and what documents may do with it.
#[derive(Clone, Debug)]
pub struct AwsAccess {
    pub settings: AwsSettings,
    pub allow: AllowAws,
}

impl Default for AwsAccess {
    /// Nothing, and nothing.
    fn default() -> Self {
        Self {
            settings: AwsSettings::default(),
            allow: AllowAws::These(Vec::new()),
        }
    }
}

/// All of AWS that is asked. Clones are the same.
#[derive(Clone)]
pub(crate) struct Aws(Arc<Shared>);

struct Shared {
    access: AwsAccess,
    wire: Arc<dyn Wire>,
    chain: Arc<Chain>,
    clock: SharedClock,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    /// With the moment at which somebody last wanted it.
    desks: HashMap<(AwsStore, AwsService), (Arc<Desk>, Instant)>,
    places: HashMap<(AwsStore, AwsPlace), Weak<Place>>,
}

impl Aws {
    pub(crate) fn new(access: AwsAccess, files: Arc<dyn ReadFiles>, clock: SharedClock) -> Self {
        let roots = access.settings.roots();
        let wire = Http::new(files, roots, Arc::clone(&clock));
        Self::by(access, Arc::new(wire), clock)
    }

    fn by(access: AwsAccess, wire: Arc<dyn Wire>, clock: SharedClock) -> Self {
        let chain = Chain::new(
            access.settings.clone(),
            Arc::clone(&wire),
            Arc::clone(&clock),
        );
        Self(Arc::new(Shared {
            access,
            wire,
            chain: Arc::new(chain),
            clock,
            open: Mutex::default(),
        }))
    }

    /// Whether a document may have this read here.
    pub(crate) fn check(&self, secret: &AwsSecret) -> Result<(), AwsNotAllowed> {
        let AwsAccess { settings, allow } = &self.0.access;
        allow.check(secret, settings)
    }

    /// A secret, to be followed; denied if a document may not have it read.
    pub(crate) fn source(&self, secret: &AwsSecret) -> AwsSource {
        let place = self.check(secret).map(|()| self.0.place(secret));
        AwsSource {
            place: place.map_err(|error| FetchError::Denied(error.to_string())),
            key: secret.key.clone(),
            seen: AtomicU64::new(0),
            known: Known::default(),
        }
    }
}

impl fmt::Debug for Aws {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Aws").finish_non_exhaustive()
    }
}

impl Shared {
    fn place(&self, secret: &AwsSecret) -> Arc<Place> {
        let now = Instant::now();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let Open { desks, places } = &mut *open;
        places.retain(|_, place| place.strong_count() > 0);
        desks.retain(|_, (desk, used)| {
            let kept = Arc::strong_count(desk) > 1 || now.duration_since(*used) < LINGER;
            if Arc::strong_count(desk) > 1 {
                *used = now;
            }
            kept
        });
        let key = (secret.store.clone(), secret.at.clone());
        let known = places.get(&key).and_then(Weak::upgrade);
        let place = known.unwrap_or_else(|| {
            let service = secret.at.service();
            let desk = desks
                .entry((secret.store.clone(), service))
                .or_insert_with(|| (Arc::new(self.desk(&secret.store, service)), now));
            let place = Arc::new(Place::new(Arc::clone(&desk.0), secret.at.clone()));
            places.insert(key, Arc::downgrade(&place));
            place
        });
        let refresh = secret.refresh.max(SHORTEST_REFRESH);
        place.schedule().at_least_every(refresh);
        place
    }

    fn desk(&self, store: &AwsStore, service: AwsService) -> Desk {
        Desk::new(
            store,
            service,
            &self.access.settings,
            Arc::clone(&self.wire),
            Arc::clone(&self.chain),
            Arc::clone(&self.clock),
        )
    }
}

/// A secret, or one key of it.
#[derive(Debug)]
pub struct AwsSource {
    place: Result<Arc<Place>, FetchError>,
    key: Option<String>,
    /// The number of the last answer.
    seen: AtomicU64,
    known: Known,
}

impl Source for AwsSource {
    async fn fetch(&self) -> Result<Fetched, FetchError> {
        let place = self.place.as_ref().map_err(Clone::clone)?;
        let (number, answer) = place.read().await;
        self.seen.store(number, Ordering::Relaxed);
        let value = place.value(&*answer?, self.key.as_deref())?;
        Ok(self.known.fetched(value))
    }

    fn interval(&self) -> Duration {
        self.place
            .as_ref()
            .map_or(AwsSecret::REFRESH, |place| place.schedule().refresh())
    }

    /// Nobody sees half of what AWS writes.
    fn is_whole(&self) -> bool {
        true
    }

    fn age(&self) -> Option<Duration> {
        let place = self.place.as_ref().ok()?;
        Some(place.schedule().age())
    }

    async fn due(&self) {
        match &self.place {
            Ok(place) => {
                let seen = self.seen.load(Ordering::Relaxed);
                place.schedule().due(seen).await;
            }
            // What was allowed at the start does not change.
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests;
