//! Secrets that the control plane reads and hands to the workloads whose documents list them, on their own stream.
//!
//! A value is in memory while somebody watches it, and nowhere else. Nothing inside the data directory is ever read
//! this way, whatever a document says: the keys of the authorities lie there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use fender_api::proto::control::v1::{self as proto, credential_value};
use fender_config::snapshot::CredentialSource;
use fender_config::{CredentialFrom, ObjectName};
use fender_identity::WorkloadName;
use fender_providers::file::FileSource;
use fender_providers::{FetchError, Fetched, Source, State};
use fender_runtime::drain::Drain;
use tokio::sync::watch;

use crate::documents::Library;

/// Files being watched, one watch each however many workloads ask.
#[derive(Debug)]
pub(crate) struct Sources {
    forbidden: Arc<Path>,
    drain: Drain,
    watched: Mutex<BTreeMap<PathBuf, Weak<watch::Receiver<State>>>>,
}

/// One watch, shared; the file is let go when the last who shares it is gone.
pub(crate) type Watched = Arc<watch::Receiver<State>>;

impl Sources {
    pub(crate) fn new(forbidden: &Path, drain: Drain) -> Self {
        Self {
            forbidden: forbidden.into(),
            drain,
            watched: Mutex::default(),
        }
    }

    pub(crate) fn watch(&self, path: &Path) -> Watched {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|_, states| states.strong_count() > 0);
        if let Some(states) = watched.get(path).and_then(Weak::upgrade) {
            return states;
        }
        let source = Guarded {
            file: FileSource::new(path),
            path: path.to_owned(),
            forbidden: Arc::clone(&self.forbidden),
        };
        let states = Arc::new(fender_providers::watch(source, &self.drain));
        watched.insert(path.to_owned(), Arc::downgrade(&states));
        states
    }
}

/// Where a workload's credential is read, if its documents list it and let the control plane read it.
pub(crate) fn authorized(
    library: &Library,
    workload: &WorkloadName,
    name: &ObjectName,
) -> Option<PathBuf> {
    let snapshot = library.snapshot(workload)?;
    let listed = snapshot.credentials.iter().any(|credential| {
        credential.name == *name && credential.source == CredentialSource::Control
    });
    let in_force = library.in_force();
    match &in_force
        .documents
        .credentials
        .get(name)
        .filter(|_| listed)?
        .source
    {
        CredentialFrom::ControlFile(path) => Some(path.clone()),
        CredentialFrom::SidecarFile(_) => None,
    }
}

/// What is told of a state. Paths and errors of this machine stay here.
pub(crate) fn told(state: &State) -> Option<proto::CredentialValue> {
    let value = |fetched: &Fetched| {
        credential_value::State::Value(proto::Secret {
            value: fetched.value.expose().to_vec(),
            generation: fetched.generation.to_string(),
        })
    };
    let state = match state {
        State::Pending => return None,
        State::Current(fetched) => value(fetched),
        State::Stale {
            last: Some(fetched),
            ..
        } => value(fetched),
        State::Stale { last: None, .. } => credential_value::State::Unavailable(
            "the control plane cannot read it at present".to_owned(),
        ),
        State::Withdrawn(_) => {
            credential_value::State::Withdrawn("its source no longer has it".to_owned())
        }
    };
    Some(proto::CredentialValue { state: Some(state) })
}

/// A file that must not lie in the data directory, looked at anew each time: links move.
struct Guarded {
    file: FileSource,
    path: PathBuf,
    forbidden: Arc<Path>,
}

impl Source for Guarded {
    async fn fetch(&self) -> Result<Fetched, FetchError> {
        if let Ok(real) = tokio::fs::canonicalize(&self.path).await
            && real.starts_with(&self.forbidden)
        {
            return Err(FetchError::Denied(
                "it lies in the control plane's data directory".to_owned(),
            ));
        }
        self.file.fetch().await
    }

    fn interval(&self) -> Duration {
        self.file.interval()
    }
}
