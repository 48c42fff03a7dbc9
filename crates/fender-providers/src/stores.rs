//! What several credentials come from together. Stores of secrets that are asked over the network: one login, one client and
//! one budget for each. Encrypted files: opened once for all that is in them.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use fender_config::HttpsUrl;
use fender_config::snapshot::{
    AgeSecret, AwsSecret, KubernetesSecret, SopsFile, SopsSecret, VaultSecret,
};
use fender_identity::Secret;
use fender_runtime::clock::SharedClock;
use fender_runtime::drain::Drain;

use crate::age::{self, AgeSource};
use crate::aws::{Aws, AwsAccess, AwsNotAllowed, AwsSource};
use crate::host::{AtEnd, ReadFiles, Workload};
use crate::kubernetes::{Clusters, KubernetesSource};
use crate::sealed::Pair;
use crate::sops::{self, Document, SopsSource};
use crate::vault::{VaultSource, Vaults};

/// Every store that is asked, and every encrypted file that is read. Clones are the same.
#[derive(Clone)]
pub struct Stores {
    vaults: Vaults,
    clusters: Clusters,
    aws: Aws,
    files: Arc<dyn ReadFiles>,
    age: Arc<Opened<AgeSecret, Secret>>,
    sops: Arc<Opened<SopsFile, Document>>,
}

/// What is followed, by what names it.
struct Opened<K, T>(Mutex<HashMap<K, Weak<Pair<T>>>>);

impl<K: Clone + Eq + Hash, T> Opened<K, T> {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::default()))
    }

    /// The one that somebody follows already, if there is one.
    fn shared(&self, key: &K, new: impl FnOnce() -> Pair<T>) -> Arc<Pair<T>> {
        let mut opened = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        opened.retain(|_, pair| pair.strong_count() > 0);
        if let Some(pair) = opened.get(key).and_then(Weak::upgrade) {
            return pair;
        }
        let pair = Arc::new(new());
        opened.insert(key.clone(), Arc::downgrade(&pair));
        pair
    }
}

impl Stores {
    /// What is logged in, is logged out of when `drain` stops.
    pub fn new(
        files: impl ReadFiles,
        aws: AwsAccess,
        at_end: impl AtEnd,
        clock: SharedClock,
        drain: &Drain,
    ) -> Self {
        let files: Arc<dyn ReadFiles> = Arc::new(files);
        let clusters = Clusters::new(Arc::clone(&files), Arc::clone(&clock), drain.clone());
        let aws = Aws::new(aws, Arc::clone(&files), Arc::clone(&clock));
        let at_end = Arc::new(at_end);
        Self {
            vaults: Vaults::new(Arc::clone(&files), at_end, clock, drain.clone()),
            clusters,
            aws,
            files,
            age: Opened::new(),
            sops: Opened::new(),
        }
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

    /// Whether documents may have this of AWS read here.
    pub fn check_aws(&self, secret: &AwsSecret) -> Result<(), AwsNotAllowed> {
        self.aws.check(secret)
    }

    /// A secret or a parameter of AWS; denied if it may not be read here.
    pub fn aws(&self, secret: &AwsSecret) -> AwsSource {
        self.aws.source(secret)
    }

    /// A file that age encrypted.
    pub fn age(&self, secret: &AgeSecret) -> AgeSource {
        let pair = self.age.shared(secret, || {
            let (files, named) = (Arc::clone(&self.files), secret.clone());
            Pair::new(&secret.file, &secret.identity, files, move |file, own| {
                age::open_file(&named, file, own)
            })
        });
        AgeSource::new(pair)
    }

    /// A file that SOPS encrypted, or a part of it.
    pub fn sops(&self, secret: &SopsSecret) -> SopsSource {
        let pair = self.sops.shared(&secret.file, || {
            let (files, named) = (Arc::clone(&self.files), secret.file.clone());
            Pair::new(
                &named.path.clone(),
                &named.identity.clone(),
                files,
                move |file, own| sops::open_file(&named, file, own),
            )
        });
        SopsSource::new(pair, secret.clone())
    }
}

impl fmt::Debug for Stores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stores").finish_non_exhaustive()
    }
}
