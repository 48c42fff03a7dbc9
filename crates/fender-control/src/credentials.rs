//! Secrets that the control plane reads and hands to the workloads whose documents list them, on their own stream; and the
//! other files that documents let it read.
//!
//! A value is in memory while somebody watches it, and nowhere else. Whoever may apply documents is not thereby allowed
//! to use this machine: a program is run, and a variable read, only if it was allowed at the start, by its name; a document's path is read only below the directories that were allowed at the start, links
//! included, and never inside the data directory, where the keys of the authorities lie.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use fender_api::proto::control::v1::{self as proto, credential_value};
use fender_config::snapshot::{
    AgeSecret, AwsSecret, Command, CredentialSource, DockerSecret, KubernetesSecret, Lifetime,
    Origin, SopsSecret, VaultSecret,
};
use fender_config::{Documents, HttpsUrl, ObjectName};
use fender_identity::{Secret, WorkloadName};
use fender_providers::command::CommandSource;
use fender_providers::docker::DockerSource;
use fender_providers::environment::Environment;
use fender_providers::file::FileSource;
use fender_providers::{
    FetchError, Fetched, Generation, ReadFiles, Reading, Source, State, Stores,
};
use fender_runtime::clock::SharedClock;
use fender_runtime::drain::Drain;
use fender_runtime::program::Runner;
use tokio::sync::watch;

use crate::documents::Library;

/// What is being watched, one watch each however many workloads ask.
#[derive(Debug)]
pub(crate) struct Sources {
    files: Files,
    programs: Runner,
    environment: Environment,
    clock: SharedClock,
    drain: Drain,
    /// What several credentials come from. What was leased is kept when this process ends: sidecars go on with it.
    stores: Stores,
    watched: Mutex<HashMap<Asked, Weak<watch::Receiver<State>>>>,
}

/// What is asked, and for which credential, where the answer depends on that.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Asked {
    File(PathBuf),
    DockerSecret(DockerSecret),
    Command(ObjectName, Command),
    Variable(String),
    Vault(Box<VaultSecret>),
    Kubernetes(Box<KubernetesSecret>),
    Aws(Box<AwsSecret>),
    Age(AgeSecret),
    Sops(SopsSecret),
}

impl Asked {
    fn of(name: &ObjectName, origin: &Origin) -> Self {
        match origin {
            Origin::File { path } => Self::File(path.clone()),
            Origin::DockerSecret(secret) => Self::DockerSecret(secret.clone()),
            Origin::Command(command) => Self::Command(name.clone(), command.clone()),
            Origin::Environment { variable } => Self::Variable(variable.clone()),
            Origin::Vault(secret) => Self::Vault(secret.clone()),
            Origin::KubernetesSecret(secret) => Self::Kubernetes(secret.clone()),
            Origin::Aws(secret) => Self::Aws(secret.clone()),
            Origin::Age(secret) => Self::Age(secret.clone()),
            Origin::Sops(secret) => Self::Sops(secret.clone()),
        }
    }
}

/// Which files of this machine documents may have read.
#[derive(Clone, Debug)]
struct Files {
    allowed: Arc<[PathBuf]>,
    forbidden: Arc<Path>,
}

/// One watch, shared; what it watches is let go when the last who shares it is gone.
pub(crate) type Watched = Arc<watch::Receiver<State>>;

impl Sources {
    pub(crate) fn new(
        allowed: Vec<PathBuf>,
        programs: Runner,
        environment: Environment,
        forbidden: &Path,
        clock: SharedClock,
        drain: Drain,
    ) -> Self {
        let files = Files {
            allowed: allowed.into(),
            forbidden: forbidden.into(),
        };
        Self {
            stores: Stores::new(
                files.clone(),
                environment.aws().clone(),
                || true,
                Arc::clone(&clock),
                &drain,
            ),
            files,
            programs,
            environment,
            clock,
            drain,
            watched: Mutex::default(),
        }
    }

    /// The same in a cluster of Kubernetes, whose API is here.
    pub(crate) fn in_cluster(mut self, api: Option<HttpsUrl>) -> Self {
        self.stores = self.stores.in_cluster(api);
        self
    }

    /// The value of the credential `name`.
    pub(crate) fn watch(&self, name: &ObjectName, origin: &Origin) -> Watched {
        self.shared(Asked::of(name, origin))
    }

    /// The watch of this credential, if anybody has it.
    pub(crate) fn watched(&self, name: &ObjectName, origin: &Origin) -> Option<Watched> {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.get(&Asked::of(name, origin))?.upgrade()
    }

    /// Which generation whoever watches this credential is given at this moment; none if nobody does.
    pub(crate) fn known(&self, name: &ObjectName, origin: &Origin) -> Option<Generation> {
        let states = self.watched(name, origin)?;
        let state = states.borrow();
        state.value().map(|fetched| fetched.generation.clone())
    }

    /// A file that documents name for something else than a credential.
    pub(crate) fn watch_file(&self, path: &Path) -> Watched {
        self.shared(Asked::File(path.to_owned()))
    }

    fn shared(&self, asked: Asked) -> Watched {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|_, states| states.strong_count() > 0);
        if let Some(states) = watched.get(&asked).and_then(Weak::upgrade) {
            return states;
        }
        let states = Arc::new(match &asked {
            Asked::File(path) => self.guarded(path, |root| FileSource::below(root, path)),
            Asked::DockerSecret(secret) => self.guarded(&secret.path(), |root| {
                DockerSource::below(root, secret.clone())
            }),
            Asked::Kubernetes(secret) => {
                self.stored(&secret.files(), |stores| stores.kubernetes(secret))
            }
            // What is not allowed of it is denied.
            Asked::Aws(secret) => self.stored(&secret.files(), |stores| stores.aws(secret)),
            Asked::Vault(secret) => self.stored(&secret.files(), |stores| stores.vault(secret)),
            Asked::Age(secret) => self.stored(&secret.files(), |stores| stores.age(secret)),
            Asked::Sops(secret) => self.stored(&secret.files(), |stores| stores.sops(secret)),
            Asked::Command(name, command) => self.run(name, command),
            // One that is not allowed is denied.
            Asked::Variable(variable) => {
                fender_providers::watch(self.environment.source(variable), &self.drain)
            }
        });
        watched.insert(asked, Arc::downgrade(&states));
        states
    }

    /// What `source` has, if this machine lets documents have all of `files` read.
    fn stored<S: Source>(
        &self,
        files: &[PathBuf],
        source: impl FnOnce(&Stores) -> S,
    ) -> watch::Receiver<State> {
        match files.iter().find(|path| !self.files.allow(path)) {
            None => fender_providers::watch(source(&self.stores), &self.drain),
            Some(path) => self.refused(path),
        }
    }

    /// What a program says, if this machine lets documents have it run.
    fn run(&self, name: &ObjectName, command: &Command) -> watch::Receiver<State> {
        if !self.programs.allows(&command.program) {
            tracing::warn!(credential = %name, program = %command.program.display(), "a credential's program is not allowed with --allow-command");
            return fender_providers::watch(NotAllowed(PROGRAM), &self.drain);
        }
        let (programs, clock) = (self.programs.clone(), Arc::clone(&self.clock));
        let source = CommandSource::new(name.clone(), command.clone(), programs, clock);
        fender_providers::watch(source, &self.drain)
    }

    /// What is at `path`, if this machine lets documents have it read.
    fn guarded<S: Source>(
        &self,
        path: &Path,
        below: impl FnOnce(&Path) -> S,
    ) -> watch::Receiver<State> {
        match self.files.root(path) {
            Some(root) => {
                let source = self.files.guard(path, below(root));
                fender_providers::watch(source, &self.drain)
            }
            None => self.refused(path),
        }
    }

    fn refused(&self, path: &Path) -> watch::Receiver<State> {
        tracing::warn!(path = %path.display(), "a credential's file is in no directory allowed with --allow-dir");
        fender_providers::watch(NotAllowed(FILE), &self.drain)
    }

    /// A sentence for each credential that documents let the control plane read and this machine does not.
    pub(crate) fn not_allowed(&self, documents: &Documents) -> Vec<String> {
        let asked = documents.credentials.values();
        let warned = asked.flat_map(|credential| {
            let (name, origin) = (&credential.name, credential.asked_by_control());
            let files = origin.map(Origin::files).unwrap_or_default();
            let files = files.into_iter().filter(|path| !self.files.allow(path));
            let files = files.map(move |path| {
                format!(
                    "the credential `{name}` will not be read: `{}` is in no directory that the control plane was \
                     started with --allow-dir for",
                    path.display()
                )
            });
            let other = match origin {
                Some(Origin::Command(command)) if !self.programs.allows(&command.program) => {
                    Some(format!(
                        "the credential `{name}` will not be fetched: `{}` is no program that the control plane \
                         was started with --allow-command for",
                        command.program.display()
                    ))
                }
                Some(Origin::Environment { variable }) if !self.environment.allows(variable) => {
                    Some(format!(
                        "the credential `{name}` will not be read: `{variable}` is no variable that the control plane \
                         was started with --allow-environment for"
                    ))
                }
                Some(Origin::Aws(secret)) => self.stores.check_aws(secret).err().map(|refused| {
                    format!("the credential `{name}` will not be fetched by the control plane: {refused}")
                }),
                Some(_) | None => None,
            };
            files.chain(other)
        });
        warned.collect()
    }
}

impl Files {
    fn allow(&self, path: &Path) -> bool {
        self.root(path).is_some()
    }

    /// What is at `path`, unless that is in the data directory.
    fn guard<S>(&self, path: &Path, file: S) -> Guarded<S> {
        Guarded {
            file,
            path: path.to_owned(),
            forbidden: Arc::clone(&self.forbidden),
        }
    }

    /// The allowed directory a path lies in, by its text; opening it keeps links inside as well.
    fn root(&self, path: &Path) -> Option<&Path> {
        let plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
        let allowed = self.allowed.iter().map(PathBuf::as_path);
        let mut below =
            allowed.filter(|directory| path.starts_with(directory) && path != *directory);
        below.next().filter(|_| path.components().all(plain))
    }
}

impl Files {
    /// The file at `path`, if it may be read.
    async fn fetch(
        &self,
        path: &Path,
        open: impl FnOnce(FileSource) -> FileSource,
    ) -> Result<Secret, FetchError> {
        let Some(root) = self.root(path) else {
            let why = format!("`{}`: {FILE}", path.display());
            return Err(FetchError::Denied(why));
        };
        let file = open(FileSource::below(root, path));
        let fetched = self.guard(path, file).fetch().await?;
        Ok(fetched.value)
    }
}

impl ReadFiles for Files {
    fn read<'a>(&'a self, path: &'a Path, limit: u64) -> Reading<'a> {
        Box::pin(self.fetch(path, move |file| file.of_at_most(limit)))
    }

    fn read_private<'a>(&'a self, path: &'a Path, limit: u64) -> Reading<'a> {
        Box::pin(self.fetch(path, move |file| file.of_at_most(limit).seen_by_no_other()))
    }
}

/// What is asked for a workload's credential, if its documents list it and let the control plane ask.
pub(crate) fn authorized(
    library: &Library,
    workload: &WorkloadName,
    name: &ObjectName,
) -> Option<Origin> {
    let snapshot = library.snapshot(workload)?;
    let listed = snapshot.credentials.iter().any(|credential| {
        credential.name == *name && matches!(credential.source, CredentialSource::Control(_))
    });
    let in_force = library.in_force();
    let credential = in_force.documents.credentials.get(name);
    credential.filter(|_| listed)?.asked_by_control().cloned()
}

/// What is told of a state. Paths and errors of this machine stay here.
pub(crate) fn told(state: &State, origin: &Origin) -> Option<proto::CredentialValue> {
    const UNREADABLE: &str = "the control plane cannot read it at present";
    let value = |fetched: &Fetched, outdated: &str| {
        credential_value::State::Value(proto::Secret {
            value: fetched.value.expose().to_vec(),
            generation: fetched.generation.to_string(),
            outdated: outdated.to_owned(),
            lasting: lasts(origin),
        })
    };
    let state = match state {
        State::Pending => return None,
        State::Current(fetched) => value(fetched, ""),
        State::Stale {
            last: Some(fetched),
            ..
        } => value(fetched, UNREADABLE),
        State::Stale { last: None, .. } => {
            credential_value::State::Unavailable(UNREADABLE.to_owned())
        }
        State::Withdrawn(FetchError::Denied(_)) => credential_value::State::Withdrawn(
            "the control plane may not read it; its own log says why".to_owned(),
        ),
        State::Withdrawn(_) => {
            credential_value::State::Withdrawn("its source no longer has it".to_owned())
        }
    };
    Some(proto::CredentialValue { state: Some(state) })
}

/// Whether a value is good by itself while nobody can be asked: what is lent ends with whoever gives it back, and a program may
/// say of a value when it ends.
pub(crate) fn lasts(origin: &Origin) -> bool {
    match origin {
        Origin::Command(_) => false,
        Origin::Vault(_) => origin.lifetime() == Lifetime::Lasting,
        Origin::File { .. }
        | Origin::DockerSecret(_)
        | Origin::Environment { .. }
        | Origin::KubernetesSecret(_)
        | Origin::Aws(_)
        | Origin::Age(_)
        | Origin::Sops(_) => true,
    }
}

/// A file in no allowed directory, a program that is not allowed. It is followed like any other, so that whoever asks is answered once and then waits.
struct NotAllowed(&'static str);

const FILE: &str = "it is in no directory allowed with --allow-dir";
const PROGRAM: &str = "its program is not allowed with --allow-command";

impl Source for NotAllowed {
    async fn fetch(&self) -> Result<Fetched, FetchError> {
        Err(FetchError::Denied(self.0.to_owned()))
    }

    fn interval(&self) -> Duration {
        Duration::from_secs(3600)
    }
}

/// A file that must not lie in the data directory, looked at anew each time: links move.
struct Guarded<S> {
    file: S,
    path: PathBuf,
    forbidden: Arc<Path>,
}

impl<S: Source> Source for Guarded<S> {
    async fn fetch(&self) -> Result<Fetched, FetchError> {
        let real = tokio::fs::canonicalize(&self.path).await;
        if real
            .as_ref()
            .is_ok_and(|real| real.starts_with(&self.forbidden))
        {
            return Err(FetchError::Denied(
                "it lies in the control plane's data directory".to_owned(),
            ));
        }
        match (self.file.fetch().await, real) {
            // What opens now was not there to be looked at, or could not be: next time, perhaps.
            (Ok(_), Err(error)) => Err(FetchError::Outage(error.to_string())),
            (answer, _) => answer,
        }
    }

    fn interval(&self) -> Duration {
        self.file.interval()
    }
}

#[cfg(test)]
mod tests {
    use fender_config::snapshot::{VaultLogin, VaultPlace, VaultStore};

    use super::*;

    #[test]
    fn what_is_lent_or_may_end_by_itself_is_told_as_not_lasting() {
        let vault = |at| {
            Origin::Vault(Box::new(VaultSecret {
                store: VaultStore {
                    address: "https://127.0.0.1:1".parse().unwrap(),
                    roots: None,
                    namespace: None,
                    login: VaultLogin::Token {
                        file: "/run/token".into(),
                    },
                },
                at,
                key: Some("password".to_owned()),
                refresh: VaultSecret::REFRESH,
            }))
        };
        let lent = vault(VaultPlace::Engine {
            path: "database/creds/orders".parse().unwrap(),
        });
        let stored = vault(VaultPlace::Kv2 {
            mount: "secret".parse().unwrap(),
            path: "shop/smtp".parse().unwrap(),
            version: None,
        });
        let program = Origin::Command(Command {
            program: "/bin/ask".into(),
            arguments: Vec::new(),
            every: Duration::from_secs(60),
            timeout: Duration::from_secs(60),
        });
        let file = Origin::File {
            path: "/run/secret".into(),
        };
        let state = State::Current(Fetched {
            value: Secret::from("hunter2".to_owned()),
            generation: Generation::random(),
        });
        let lasting = |origin: &Origin| match told(&state, origin).unwrap().state {
            Some(credential_value::State::Value(secret)) => secret.lasting,
            other => panic!("{other:?}"),
        };
        assert!(lasting(&file) && lasting(&stored));
        assert!(!lasting(&lent) && !lasting(&program));
    }
}
