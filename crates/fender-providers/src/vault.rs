//! HashiCorp Vault and OpenBao, by their HTTP API: KV 1 and 2, and whatever other engines lease.
//!
//! A server in a namespace, and as whom it is asked, is one *store*: it has one login, one client and one budget, which all
//! credentials that come from it share (`Vaults`). A place in it is read once for all that name it, so that a user name
//! and its password are of one answer. What nobody has named for a while is let go: its lease is given back, and after the
//! last place the token.
//!
//! It follows no redirect, shows a token to the one server that its roots vouch for, writes nothing into Vault but logins,
//! renewals and revocations, and keeps nothing on disk.

mod dial;
mod login;
mod place;
mod session;
mod token;
mod wire;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fender_config::snapshot::{VaultPlace, VaultSecret, VaultStore};
use fender_identity::Svid;
use fender_runtime::clock::SharedClock;
use fender_runtime::drain::Drain;
use serde::de::IgnoredAny;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::host::{AtEnd, ReadFiles, Workload};
use crate::known::Known;
use crate::{FetchError, Fetched, Source, Standing};
use dial::{Dial, DialHttp};
use place::Place;
use session::Session;
use wire::{Body, Call};

/// How long what nobody names any more is kept, for who comes back: with the next documents, or a new connection.
const LINGER: Duration = Duration::from_secs(5 * 60);
/// How often that is looked at.
const SWEEP: Duration = Duration::from_secs(60);
/// No secret is asked for more often.
const SHORTEST_REFRESH: Duration = Duration::from_secs(1);

/// Every Vault that is asked. Clones are the same.
#[derive(Clone)]
pub(crate) struct Vaults {
    shared: Arc<Shared>,
    workload: Option<Arc<dyn Workload>>,
}

struct Shared {
    dial: Arc<dyn Dial>,
    files: Arc<dyn ReadFiles>,
    at_end: Arc<dyn AtEnd>,
    clock: SharedClock,
    drain: Drain,
    open: Mutex<HashMap<VaultStore, Arc<Vault>>>,
}

/// One store.
#[derive(Debug)]
struct Vault {
    desk: Arc<Desk>,
    places: Mutex<HashMap<VaultPlace, Kept>>,
}

/// What is needed to ask it.
#[derive(Debug)]
struct Desk {
    session: Session,
    leases: Leases,
}

/// A place, and since when nobody has named it.
#[derive(Debug)]
struct Kept {
    place: Arc<Place>,
    unused: Option<Instant>,
}

impl Vaults {
    pub(crate) fn new(
        files: Arc<dyn ReadFiles>,
        at_end: Arc<dyn AtEnd>,
        clock: SharedClock,
        drain: Drain,
    ) -> Self {
        Self::by(Arc::new(DialHttp), files, at_end, clock, drain)
    }

    fn by(
        dial: Arc<dyn Dial>,
        files: Arc<dyn ReadFiles>,
        at_end: Arc<dyn AtEnd>,
        clock: SharedClock,
        drain: Drain,
    ) -> Self {
        let open = Mutex::default();
        Self {
            shared: Arc::new(Shared {
                dial,
                files,
                at_end,
                clock,
                drain,
                open,
            }),
            workload: None,
        }
    }

    /// The same, of a process whose workload can log in as itself.
    pub(crate) fn of_workload(mut self, workload: Arc<dyn Workload>) -> Self {
        self.workload = Some(workload);
        self
    }

    /// A secret, to be followed.
    pub(crate) fn source(&self, secret: &VaultSecret) -> VaultSource {
        let shared = &self.shared;
        let mut open = shared.open();
        let vault = open.entry(secret.store.clone()).or_insert_with(|| {
            let vault = Arc::new(Vault::new(&secret.store, shared, self.workload.clone()));
            let keeper = keep(Arc::clone(shared), secret.store.clone(), Arc::clone(&vault));
            shared.drain.spawn(keeper);
            vault
        });
        VaultSource {
            place: vault.place(secret),
            key: secret.key.clone(),
            seen: AtomicU64::new(0),
            known: Known::default(),
        }
    }
}

impl fmt::Debug for Vaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vaults").finish_non_exhaustive()
    }
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, HashMap<VaultStore, Arc<Vault>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody needs a store any more; then nobody finds it any more either.
    fn closes(&self, store: &VaultStore) -> bool {
        let mut open = self.open();
        let unused = open
            .get(store)
            .is_some_and(|vault| vault.places().is_empty());
        if unused {
            open.remove(store);
        }
        unused
    }
}

impl Vault {
    fn new(store: &VaultStore, shared: &Shared, workload: Option<Arc<dyn Workload>>) -> Self {
        let session = Session::new(
            store.clone(),
            Arc::clone(&shared.dial),
            Arc::clone(&shared.files),
            workload,
            Arc::clone(&shared.clock),
        );
        let leases = Leases::default();
        Self {
            desk: Arc::new(Desk { session, leases }),
            places: Mutex::default(),
        }
    }

    fn place(&self, secret: &VaultSecret) -> Arc<Place> {
        let mut places = self.places();
        let kept = places.entry(secret.at.clone()).or_insert_with(|| Kept {
            place: Arc::new(Place::new(Arc::clone(&self.desk), secret.at.clone())),
            unused: None,
        });
        kept.unused = None;
        let refresh = secret.refresh.max(SHORTEST_REFRESH);
        kept.place.schedule().at_least_every(refresh);
        Arc::clone(&kept.place)
    }

    fn places(&self) -> MutexGuard<'_, HashMap<VaultPlace, Kept>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go what nobody has named for a while. Returns the leases of that.
    fn sweep(&self) -> Vec<String> {
        let now = Instant::now();
        let mut places = self.places();
        let over = places.extract_if(|_, kept| {
            if Arc::strong_count(&kept.place) > 1 {
                kept.unused = None;
                return false;
            }
            let since = *kept.unused.get_or_insert(now);
            now.duration_since(since) >= LINGER
        });
        over.filter_map(|(_, kept)| Arc::into_inner(kept.place)?.into_lease())
            .collect()
    }
}

/// Looks after a store until nobody needs it or everything ends.
async fn keep(shared: Arc<Shared>, store: VaultStore, vault: Arc<Vault>) {
    let desk = &vault.desk;
    let mut upkeep = desk.session.upkeep();
    let mut svid = desk.session.svid();
    let mut sweep = Instant::now() + SWEEP;
    loop {
        let next = upkeep.borrow_and_update().next;
        tokio::select! {
            biased;
            () = shared.drain.stopping() => {
                return desk.end(shared.at_end.keep_leases()).await;
            }
            Ok(()) = upkeep.changed() => {}
            () = renewed(&mut svid) => desk.session.show_another().await,
            () = looked_after(&desk.session, next) => {}
            () = tokio::time::sleep_until(sweep) => {
                sweep = Instant::now() + SWEEP;
                for lease in vault.sweep() {
                    desk.revoke(&lease).await;
                }
                if shared.closes(&store) {
                    return desk.end(false).await;
                }
            }
        }
    }
}

/// Resolves when the workload has another certificate.
async fn renewed(svid: &mut Option<watch::Receiver<Arc<Svid>>>) {
    let changed = match svid {
        Some(svid) => svid.changed().await,
        None => std::future::pending().await,
    };
    if changed.is_err() {
        // Nobody renews it any more.
        std::future::pending().await
    }
}

async fn looked_after(session: &Session, next: Option<Instant>) {
    match next {
        Some(next) => {
            tokio::time::sleep_until(next).await;
            session.look_after().await;
        }
        None => std::future::pending().await,
    }
}

impl Desk {
    /// Gives everything back, or leaves what was leased to who goes on using it.
    async fn end(&self, keeps_leases: bool) {
        let live = self.leases.live();
        let is_kept = |epoch| keeps_leases && live.iter().any(|(_, of)| *of == epoch);
        if !self.session.ends_leases() && !keeps_leases {
            for (lease, _) in &live {
                self.revoke(lease).await;
            }
        }
        self.session.end(is_kept).await;
    }

    async fn revoke(&self, lease: &str) {
        self.leases.leave(lease);
        let address = self.session.address();
        let revoked = async {
            let login = self.session.login().await?;
            let body = json!({ "lease_id": lease });
            let call = Call::post("sys/leases/revoke", login.token(), body);
            let answer: Result<Body<IgnoredAny>, _> = self.session.ask(&login, &call).await;
            answer.map_err(|failure| failure.into_error("`sys/leases/revoke`"))
        };
        match revoked.await {
            Ok(_) => tracing::info!(vault = %address, "a lease was given back"),
            Err(error) => {
                tracing::warn!(vault = %address, %error, "a lease was not given back; it ends by itself");
            }
        }
    }
}

/// Every lease that may be alive, by its id, with the epoch of the login that it ends with.
#[derive(Debug, Default)]
struct Leases(Mutex<BTreeMap<String, (u64, Instant)>>);

impl Leases {
    fn enter(&self, id: &str, epoch: u64, until: Instant) {
        let now = Instant::now();
        let mut leases = self.leases();
        leases.retain(|_, (_, until)| now < *until);
        leases.insert(id.to_owned(), (epoch, until));
    }

    fn leave(&self, id: &str) {
        self.leases().remove(id);
    }

    fn live(&self) -> Vec<(String, u64)> {
        let now = Instant::now();
        let leases = self.leases();
        let live = leases.iter().filter(|(_, (_, until))| now < *until);
        live.map(|(id, (epoch, _))| (id.clone(), *epoch)).collect()
    }

    fn leases(&self) -> MutexGuard<'_, BTreeMap<String, (u64, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One key of one place, or all of them.
#[derive(Debug)]
pub struct VaultSource {
    place: Arc<Place>,
    key: Option<String>,
    /// The number of the last answer.
    seen: AtomicU64,
    known: Known,
}

impl Source for VaultSource {
    async fn fetch(&self) -> Result<Fetched, FetchError> {
        let (number, answer) = self.place.read().await;
        self.seen.store(number, Ordering::Relaxed);
        let value = self.place.value(&*answer?, self.key.as_deref())?;
        Ok(self.known.fetched(value))
    }

    fn interval(&self) -> Duration {
        self.place.schedule().refresh()
    }

    /// Nobody sees half of what Vault writes.
    fn is_whole(&self) -> bool {
        true
    }

    fn age(&self) -> Option<Duration> {
        Some(self.place.schedule().age())
    }

    fn standing(&self) -> Standing {
        match self.place.is_leased() {
            true => Standing::Lent,
            false => Standing::Asked,
        }
    }

    async fn due(&self) {
        self.place.due(self.seen.load(Ordering::Relaxed)).await;
    }
}

#[cfg(test)]
mod tests;
