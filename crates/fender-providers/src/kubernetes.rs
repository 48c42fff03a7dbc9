//! Secrets of Kubernetes, by its API: each is listed and then watched, so that a change is known when it happens.
//!
//! A cluster, and as whom it is asked, has one client and one budget, which all credentials that come from it share. A Secret is
//! watched once for all that name it, so that its keys are of one version. What nobody follows any more is watched no
//! more.
//!
//! It asks for nothing but the Secrets that are named, by their names, and believes nothing that it is told of others. It
//! follows no redirect, shows a token to the one server that the roots vouch for, writes nothing, and keeps nothing on disk.

mod api;
mod follow;
mod wire;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use fender_config::HttpsUrl;
use fender_config::snapshot::{KubernetesName, KubernetesSecret, SecretCluster};
use fender_identity::Secret;
use fender_runtime::clock::SharedClock;
use fender_runtime::drain::Drain;
use tokio::sync::watch;

use crate::host::ReadFiles;
use crate::known::Known;
use crate::{FetchError, Fetched, Source, Standing, whole};
use api::{Api, Dial, DialHttps};
use follow::{Follower, Seen};
use wire::Reading;

/// Where the kubelet says that the API is.
pub const HOST_VARIABLE: &str = "KUBERNETES_SERVICE_HOST";
/// At which port.
pub const PORT_VARIABLE: &str = "KUBERNETES_SERVICE_PORT";

/// The API of the cluster that this process runs in, by what the kubelet put into its environment: a host and a port. None if
/// it runs in no cluster.
pub fn own_api(host: Option<&str>, port: Option<&str>) -> Option<HttpsUrl> {
    let (host, port) = (host?, port?);
    let url = match host.contains(':') {
        true => format!("https://[{host}]:{port}"),
        false => format!("https://{host}:{port}"),
    };
    url.parse().ok()
}

/// Every cluster that is asked. Clones are the same.
#[derive(Clone)]
pub(crate) struct Clusters {
    shared: Arc<Shared>,
    own: Option<HttpsUrl>,
}

struct Shared {
    dial: Arc<dyn Dial>,
    files: Arc<dyn ReadFiles>,
    clock: SharedClock,
    drain: Drain,
    open: Mutex<Open>,
}

/// What is asked at present; what nobody holds is not.
#[derive(Default)]
struct Open {
    clusters: HashMap<SecretCluster, Weak<Api>>,
    watched: HashMap<Named, Weak<Watched>>,
}

/// A Secret as documents name it.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Named {
    cluster: SecretCluster,
    namespace: Option<KubernetesName>,
    name: KubernetesName,
}

/// A Secret that is watched for as long as somebody holds this.
#[derive(Debug)]
struct Watched {
    seen: watch::Receiver<Seen>,
    /// So that the next one of its cluster has the same.
    _api: Arc<Api>,
}

impl Clusters {
    pub(crate) fn new(files: Arc<dyn ReadFiles>, clock: SharedClock, drain: Drain) -> Self {
        Self::by(Arc::new(DialHttps), files, clock, drain)
    }

    fn by(
        dial: Arc<dyn Dial>,
        files: Arc<dyn ReadFiles>,
        clock: SharedClock,
        drain: Drain,
    ) -> Self {
        let open = Mutex::default();
        Self {
            shared: Arc::new(Shared {
                dial,
                files,
                clock,
                drain,
                open,
            }),
            own: None,
        }
    }

    /// The same, where the API of the cluster that this process runs in is here.
    pub(crate) fn within(mut self, api: Option<HttpsUrl>) -> Self {
        self.own = api;
        self
    }

    /// A secret, to be followed.
    pub(crate) fn source(&self, secret: &KubernetesSecret) -> KubernetesSource {
        let named = Named {
            cluster: secret.cluster.clone(),
            namespace: secret.namespace.clone(),
            name: secret.name.clone(),
        };
        KubernetesSource {
            watched: self.watched(named),
            name: format!("Secret `{}`", secret.name),
            key: secret.key.clone(),
            number: AtomicU64::new(0),
            known: Known::default(),
        }
    }

    fn watched(&self, named: Named) -> Arc<Watched> {
        let shared = &self.shared;
        let mut open = shared.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.watched.retain(|_, known| known.strong_count() > 0);
        open.clusters.retain(|_, known| known.strong_count() > 0);
        if let Some(watched) = open.watched.get(&named).and_then(Weak::upgrade) {
            return watched;
        }
        let known = open.clusters.get(&named.cluster).and_then(Weak::upgrade);
        let api = known.unwrap_or_else(|| {
            let api = Arc::new(self.api(&named.cluster));
            let cluster = named.cluster.clone();
            open.clusters.insert(cluster, Arc::downgrade(&api));
            api
        });
        let (publish, seen) = watch::channel(Seen::default());
        let follower = Follower {
            api: Arc::clone(&api),
            namespace: named.namespace.clone(),
            name: named.name.clone(),
            publish,
        };
        let stop = shared.drain.clone();
        shared.drain.spawn(async move {
            tokio::select! {
                () = stop.stopping() => {}
                () = follower.run() => {}
            }
        });
        let watched = Arc::new(Watched { seen, _api: api });
        open.watched.insert(named, Arc::downgrade(&watched));
        watched
    }

    fn api(&self, cluster: &SecretCluster) -> Api {
        let address = match cluster {
            SecretCluster::Own => self.own.clone(),
            SecretCluster::At { api, .. } => Some(api.clone()),
        };
        Api::new(
            cluster.clone(),
            address,
            Arc::clone(&self.shared.dial),
            Arc::clone(&self.shared.files),
            Arc::clone(&self.shared.clock),
        )
    }
}

impl fmt::Debug for Clusters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clusters").finish_non_exhaustive()
    }
}

/// One key of a Secret, or all of them.
#[derive(Debug)]
pub struct KubernetesSource {
    watched: Arc<Watched>,
    /// For errors.
    name: String,
    key: Option<String>,
    /// Of the answer that was fetched last.
    number: AtomicU64,
    known: Known,
}

impl KubernetesSource {
    fn value(&self, reading: &Reading) -> Result<Secret, FetchError> {
        let name = &self.name;
        let Some(key) = &self.key else {
            if reading.fields.is_empty() {
                return Err(FetchError::Missing(format!("{name} has no keys")));
            }
            let fields = reading.fields.iter();
            let object = whole::object(fields.map(|(key, field)| (key.as_str(), &field.0)));
            let object = object.map_err(|error| format!("{name}: {error}"));
            return object.map_err(FetchError::Malformed);
        };
        match reading.fields.get(key).map(|field| &field.0) {
            None => Err(FetchError::Missing(format!("{name} has no `{key}`"))),
            Some(value) if value.is_empty() => {
                Err(FetchError::Malformed(format!("{name}: `{key}` is empty")))
            }
            Some(value) => Ok(value.clone()),
        }
    }

    fn bounded(&self, value: Secret) -> Result<Secret, FetchError> {
        match value.len() as u64 > crate::file::LIMIT {
            true => Err(FetchError::Malformed(format!(
                "{} is larger than 1 MiB",
                self.name
            ))),
            false => Ok(value),
        }
    }
}

impl Source for KubernetesSource {
    async fn fetch(&self) -> Result<Fetched, FetchError> {
        let mut seen = self.watched.seen.clone();
        let seen = seen.wait_for(|seen| seen.answer.is_some()).await;
        let Seen { number, answer } = match &seen {
            Ok(seen) => (*seen).clone(),
            Err(_) => Seen::default(),
        };
        drop(seen);
        self.number.store(number, Ordering::Relaxed);
        let answer = answer.ok_or_else(|| FetchError::Outage("nobody asks any more".to_owned()));
        let reading = answer??;
        let value = self.value(&reading).and_then(|value| self.bounded(value))?;
        Ok(self.known.fetched(value))
    }

    /// It is told of changes.
    fn interval(&self) -> Duration {
        Duration::MAX
    }

    /// Nobody sees half of what the API says.
    fn is_whole(&self) -> bool {
        true
    }

    fn standing(&self) -> Standing {
        Standing::Told
    }

    async fn due(&self) {
        let mut seen = self.watched.seen.clone();
        let last = self.number.load(Ordering::Relaxed);
        if seen.wait_for(|seen| seen.number != last).await.is_err() {
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests;
