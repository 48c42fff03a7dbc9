//! Where the secrets of a Snapshot come from, and getting all of them at start.

use std::sync::Arc;

#[cfg(feature = "stores")]
use fender_config::HttpsUrl;
use fender_config::ObjectName;
use fender_config::snapshot::{CredentialSource, CredentialSpec, Origin};
use fender_providers::command::CommandSource;
use fender_providers::docker::DockerSource;
use fender_providers::environment::Environment;
use fender_providers::file::FileSource;
use fender_providers::{AtEnd, FetchError, Fetched, Followed, State};
#[cfg(feature = "stores")]
use fender_providers::{Stores, Workload};
use fender_runtime::clock::SharedClock;
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use fender_runtime::program::Runner;
use futures_util::future::select_all;
use tokio::sync::watch;

use crate::allow::{AllowDirs, NotAllowed};
use crate::cache::{self, Cache};
use crate::deliver::DeliveryError;

/// Secrets that somebody else fetches for us: the control plane, for `via: control`.
pub trait RemoteSecrets: Send + Sync + 'static {
    /// What is known of the secret, from now on.
    fn watch(&self, name: &ObjectName) -> watch::Receiver<State>;

    /// The same, with when it was last known to be so, as far as that is known: of what is not, nothing is kept.
    fn follow(&self, name: &ObjectName) -> Followed {
        Followed {
            states: self.watch(name),
            confirmed: watch::channel(None).1,
        }
    }
}

/// Nobody does: a sidecar without a control plane.
#[derive(Clone, Copy, Debug)]
pub struct NoRemote;

impl RemoteSecrets for NoRemote {
    fn watch(&self, name: &ObjectName) -> watch::Receiver<State> {
        let why = format!("`{name}` is fetched by a control plane, and there is none");
        watch::channel(State::Withdrawn(FetchError::Missing(why))).1
    }
}

/// Everything secrets can come from.
#[derive(Clone)]
pub struct Sources {
    /// Which files documents may name.
    pub allow: AllowDirs,
    /// Which programs they may name, and whoever runs them.
    pub programs: Runner,
    /// Which variables they may name, and what those hold; and what of AWS, and what is there to ask it with.
    pub environment: Environment,
    pub clock: SharedClock,
    pub remote: Arc<dyn RemoteSecrets>,
    /// What several credentials come from.
    #[cfg(feature = "stores")]
    stores: Stores,
    /// Where what was fetched last is kept, if it is.
    pub(crate) cache: Option<Arc<Cache>>,
}

impl Sources {
    /// What is logged in to, is logged out of when `drain` stops.
    pub fn new(
        allow: AllowDirs,
        programs: Runner,
        environment: Environment,
        remote: Arc<dyn RemoteSecrets>,
        at_end: impl AtEnd,
        clock: SharedClock,
        drain: &Drain,
    ) -> Self {
        #[cfg(feature = "stores")]
        let stores = {
            let aws = environment.aws().clone();
            Stores::new(allow.clone(), aws, at_end, Arc::clone(&clock), drain)
        };
        #[cfg(not(feature = "stores"))]
        let _ = (at_end, drain);
        Self {
            allow,
            programs,
            environment,
            clock,
            remote,
            #[cfg(feature = "stores")]
            stores,
            cache: None,
        }
    }

    /// The same in a cluster of Kubernetes, whose API is here.
    #[cfg(feature = "stores")]
    #[must_use]
    pub fn in_cluster(mut self, api: Option<HttpsUrl>) -> Self {
        self.stores = self.stores.in_cluster(api);
        self
    }

    /// The same, of a process whose workload can log in to stores as itself.
    #[cfg(feature = "stores")]
    #[must_use]
    pub fn of_workload(mut self, workload: Arc<dyn Workload>) -> Self {
        self.stores = self.stores.of_workload(workload);
        self
    }

    /// The same, with what was fetched last kept for a start during an outage.
    #[must_use]
    pub fn kept_in(mut self, cache: Option<Cache>) -> Self {
        self.cache = cache.map(Arc::new);
        self
    }

    /// Which of two processes changes what is kept; none where nothing is.
    pub fn hand(&self) -> Option<cache::Hand> {
        self.cache.as_ref().map(|cache| cache.hand())
    }

    /// Keeps nothing of credentials that documents do not name any more. To be called before any of those that they do name is followed.
    pub async fn keep_only(&self, specs: &[CredentialSpec], drain: &Drain) {
        if let Some(cache) = &self.cache {
            let names = specs.iter().map(|spec| spec.name.clone()).collect();
            cache::keep_only(cache, names, drain).await;
        }
    }

    /// Nothing more is kept by whoever follows this credential: its document is another by now.
    pub(crate) fn unfollow(&self, name: &ObjectName) {
        if let Some(cache) = &self.cache {
            cache.unfollow(name);
        }
    }

    /// What is known of a credential, from now on. Of what may not be followed, nothing is kept any more either.
    pub(crate) fn follow(
        &self,
        spec: &CredentialSpec,
        drain: &Drain,
    ) -> Result<watch::Receiver<State>, NotAllowed> {
        self.unfollow(&spec.name);
        let followed = self.ask(spec, drain)?;
        Ok(match &self.cache {
            Some(cache) => cache::keep(cache, spec, followed, &self.clock, drain),
            None => followed.states,
        })
    }

    fn ask(&self, spec: &CredentialSpec, drain: &Drain) -> Result<Followed, NotAllowed> {
        let clock = &self.clock;
        match &spec.source {
            CredentialSource::Control(_) => Ok(self.remote.follow(&spec.name)),
            CredentialSource::Direct(Origin::File { path }) => {
                let source = match self.allow.check(path)? {
                    None => FileSource::new(path),
                    Some(root) => FileSource::below(root, path),
                };
                Ok(fender_providers::follow(source, clock, drain))
            }
            CredentialSource::Direct(Origin::DockerSecret(secret)) => {
                let source = match self.allow.check(&secret.path())? {
                    None => DockerSource::new(secret.clone()),
                    Some(root) => DockerSource::below(root, secret.clone()),
                };
                Ok(fender_providers::follow(source, clock, drain))
            }
            CredentialSource::Direct(Origin::Command(command)) => {
                if !self.programs.allows(&command.program) {
                    return Err(NotAllowed::program(&command.program));
                }
                let (name, command) = (spec.name.clone(), command.clone());
                let (programs, own) = (self.programs.clone(), Arc::clone(clock));
                let source = CommandSource::new(name, command, programs, own);
                Ok(fender_providers::follow(source, clock, drain))
            }
            CredentialSource::Direct(Origin::Environment { variable }) => {
                if !self.environment.allows(variable) {
                    return Err(NotAllowed::variable(variable));
                }
                let source = self.environment.source(variable);
                Ok(fender_providers::follow(source, clock, drain))
            }
            #[cfg(feature = "stores")]
            CredentialSource::Direct(Origin::Vault(secret)) => {
                for file in secret.files() {
                    self.allow.check(&file)?;
                }
                Ok(fender_providers::follow(
                    self.stores.vault(secret),
                    clock,
                    drain,
                ))
            }
            #[cfg(feature = "stores")]
            CredentialSource::Direct(Origin::KubernetesSecret(secret)) => {
                for file in secret.files() {
                    self.allow.check(&file)?;
                }
                Ok(fender_providers::follow(
                    self.stores.kubernetes(secret),
                    clock,
                    drain,
                ))
            }
            #[cfg(feature = "stores")]
            CredentialSource::Direct(Origin::Aws(secret)) => {
                self.stores.check_aws(secret).map_err(NotAllowed::aws)?;
                for file in secret.files() {
                    self.allow.check(&file)?;
                }
                Ok(fender_providers::follow(
                    self.stores.aws(secret),
                    clock,
                    drain,
                ))
            }
            #[cfg(feature = "stores")]
            CredentialSource::Direct(Origin::Age(secret)) => {
                for file in secret.files() {
                    self.allow.check(&file)?;
                }
                Ok(fender_providers::follow(
                    self.stores.age(secret),
                    clock,
                    drain,
                ))
            }
            #[cfg(feature = "stores")]
            CredentialSource::Direct(Origin::Sops(secret)) => {
                for file in secret.files() {
                    self.allow.check(&file)?;
                }
                Ok(fender_providers::follow(
                    self.stores.sops(secret),
                    clock,
                    drain,
                ))
            }
            #[cfg(not(feature = "stores"))]
            CredentialSource::Direct(Origin::Vault(_)) => Err(NotAllowed::left_out("vault")),
            #[cfg(not(feature = "stores"))]
            CredentialSource::Direct(Origin::KubernetesSecret(_)) => {
                Err(NotAllowed::left_out("kubernetesSecret"))
            }
            #[cfg(not(feature = "stores"))]
            CredentialSource::Direct(Origin::Aws(_)) => Err(NotAllowed::left_out("aws")),
            #[cfg(not(feature = "stores"))]
            CredentialSource::Direct(Origin::Age(_)) => Err(NotAllowed::left_out("age")),
            #[cfg(not(feature = "stores"))]
            CredentialSource::Direct(Origin::Sops(_)) => Err(NotAllowed::left_out("sops")),
        }
    }
}

/// Why the credentials are not there at start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The sources said no.
    #[error("credential `{name}`: {error}")]
    Missing { name: ObjectName, error: FetchError },
    /// The sources did not say yes in time.
    #[error("credential `{name}` did not come in time: {why}")]
    Timeout { name: ObjectName, why: String },
    /// The document may not have that file read, that program run, that variable read or that of AWS asked for.
    #[error("credential `{name}`: source {error}")]
    NotAllowed { name: ObjectName, error: NotAllowed },
    /// It came, but cannot be put where the document says.
    #[error("credential `{name}`: {error}")]
    Delivery {
        name: ObjectName,
        error: DeliveryError,
    },
}

impl StartError {
    /// What the process exits with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Missing { .. } => 66,
            Self::Timeout { .. } => 75,
            Self::NotAllowed { .. } => 77,
            Self::Delivery { error, .. } => match error {
                DeliveryError::NotAllowed(_) => 77,
                DeliveryError::Unfit { .. }
                | DeliveryError::NoSocket
                | DeliveryError::NoUrl
                | DeliveryError::Unmasked { .. }
                | DeliveryError::Unserved { .. } => 64,
                DeliveryError::Unrendered { .. } | DeliveryError::NoCertificate(_) => 66,
                DeliveryError::Failed { .. } | DeliveryError::Unsealed { .. } => 69,
            },
        }
    }
}

/// A credential with its value.
#[derive(Debug)]
pub struct Gathered {
    pub spec: CredentialSpec,
    pub fetched: Fetched,
    pub(crate) states: watch::Receiver<State>,
}

/// Gets all of `specs`, or none: the first refusal ends it, and so does the deadline.
pub async fn gather(
    specs: &[CredentialSpec],
    sources: &Sources,
    deadline: Deadline,
    drain: &Drain,
) -> Result<Vec<Gathered>, StartError> {
    let mut followed = Vec::with_capacity(specs.len());
    for spec in specs {
        let states = sources
            .follow(spec, drain)
            .map_err(|error| StartError::NotAllowed {
                name: spec.name.clone(),
                error,
            })?;
        followed.push((spec, states));
    }
    loop {
        let (gathered, late) = progress(&mut followed)?;
        let Some(late) = late else {
            return Ok(gathered);
        };
        let changed: Vec<_> = followed
            .iter_mut()
            .filter(|(_, states)| states.borrow().value().is_none())
            .map(|(_, states)| Box::pin(states.changed()))
            .collect();
        if changed.is_empty() {
            // What was late has come since.
            continue;
        }
        // A feed that ended says nothing more: there is nothing left to wait for.
        let Ok((Ok(()), _, _)) = deadline.bound(select_all(changed)).await else {
            return Err(late);
        };
    }
}

/// What is there, and what to say if the rest does not come.
fn progress(
    followed: &mut [(&CredentialSpec, watch::Receiver<State>)],
) -> Result<(Vec<Gathered>, Option<StartError>), StartError> {
    let mut gathered = Vec::new();
    let mut late = None;
    for (spec, states) in followed {
        let state = states.borrow_and_update().clone();
        let name = spec.name.clone();
        if let State::Withdrawn(error) = state {
            return Err(StartError::Missing { name, error });
        }
        match state.value() {
            Some(fetched) => gathered.push(Gathered {
                spec: spec.clone(),
                fetched: fetched.clone(),
                states: states.clone(),
            }),
            None => {
                let why = state
                    .error()
                    .map_or("no answer yet".to_owned(), ToString::to_string);
                late.get_or_insert(StartError::Timeout { name, why });
            }
        }
    }
    Ok((gathered, late))
}

#[cfg(test)]
mod tests;
