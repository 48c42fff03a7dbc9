//! Stores of secrets that are asked over the network: one login, one client and one budget for each, however many
//! credentials come from it.

use std::fmt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use fender_config::HttpsUrl;
use fender_config::snapshot::{KubernetesSecret, VaultSecret};
use fender_identity::{Secret, Svid};
use fender_runtime::clock::SharedClock;
use fender_runtime::drain::Drain;
use tokio::sync::watch;

use crate::FetchError;
use crate::kubernetes::{Clusters, KubernetesSource};
use crate::vault::{VaultSource, Vaults};

/// A secret on its way from a file.
pub type Reading<'a> = Pin<Box<dyn Future<Output = Result<Secret, FetchError>> + Send + 'a>>;

/// Reads the files that documents name, where this machine lets documents name them.
pub trait ReadFiles: fmt::Debug + Send + Sync + 'static {
    /// The whole of a file of at most `limit` bytes.
    fn read<'a>(&'a self, path: &'a Path, limit: u64) -> Reading<'a>;
}

/// Who this process's workload is, to stores that it logs in to as itself.
pub trait Workload: fmt::Debug + Send + Sync + 'static {
    /// Its certificate, as it is and as it changes.
    fn svid(&self) -> watch::Receiver<Arc<Svid>>;

    /// A JWT-SVID for whoever goes by the name `audience`.
    fn token<'a>(&'a self, audience: &'a str) -> Reading<'a>;
}

/// What becomes of the leases that are held, when this process ends.
pub trait AtEnd: Send + Sync + 'static {
    /// Whether somebody goes on using what was leased.
    fn keep_leases(&self) -> bool;
}

impl<F: Fn() -> bool + Send + Sync + 'static> AtEnd for F {
    fn keep_leases(&self) -> bool {
        self()
    }
}

/// Every store that is asked. Clones are the same.
#[derive(Clone)]
pub struct Stores {
    vaults: Vaults,
    clusters: Clusters,
}

impl Stores {
    /// What is logged in, is logged out of when `drain` stops.
    pub fn new(
        files: impl ReadFiles,
        at_end: impl AtEnd,
        clock: SharedClock,
        drain: &Drain,
    ) -> Self {
        let files: Arc<dyn ReadFiles> = Arc::new(files);
        let clusters = Clusters::new(Arc::clone(&files), Arc::clone(&clock), drain.clone());
        let vaults = Vaults::new(files, Arc::new(at_end), clock, drain.clone());
        Self { vaults, clusters }
    }

    /// The same in a cluster of Kubernetes, whose API is here.
    #[must_use]
    pub fn in_cluster(mut self, api: Option<HttpsUrl>) -> Self {
        self.clusters = self.clusters.within(api);
        self
    }

    /// A Secret of a cluster.
    pub fn kubernetes(&self, secret: &KubernetesSecret) -> KubernetesSource {
        self.clusters.source(secret)
    }

    /// The same, of a process whose workload can log in as itself. Without it no store sees anybody's identity.
    #[must_use]
    pub fn of_workload(mut self, workload: Arc<dyn Workload>) -> Self {
        self.vaults = self.vaults.of_workload(workload);
        self
    }

    /// A secret of a Vault.
    pub fn vault(&self, secret: &VaultSecret) -> VaultSource {
        self.vaults.source(secret)
    }
}

impl fmt::Debug for Stores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stores").finish_non_exhaustive()
    }
}
