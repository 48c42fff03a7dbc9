//! This process as one of those that serve a registry: its name, and that the others hear of it.
//!
//! A name is borne by one living process: one that would be the second is refused at its start, and one that was thought
//! dead and is not ends by itself when it finds its name taken.

use std::time::Duration;

use fender_runtime::drain::Drain;
use fender_runtime::id::OpaqueId;
use tokio::sync::watch;

use crate::datadir::{DataDir, DataDirError};
use crate::start::StartError;
use crate::store::Store;
use crate::store::replicas::{Appear, Appeared, Beat, Beaten, Leave, Life, ReplicaName};

/// Four in the time after which silence counts as absence.
const BEAT: Duration = Duration::from_secs(5);

/// As it is asked for, or after the data directory, which keeps it across restarts.
pub(crate) fn name(
    data: &DataDir,
    asked: Option<ReplicaName>,
) -> Result<ReplicaName, DataDirError> {
    if let Some(name) = asked {
        return Ok(name);
    }
    let home = data.home()?.to_string();
    let short = home.get(..8).unwrap_or(&home);
    format!("replica-{short}")
        .parse()
        .map_err(|_| DataDirError::NotAnId {
            path: data.path().join("replica"),
        })
}

/// The place among the replicas, held from the start on.
#[derive(Debug)]
pub(crate) struct Presence {
    store: Store,
    life: Life,
    superseded: watch::Sender<bool>,
}

impl Presence {
    /// Takes the name.
    pub(crate) async fn appear(
        store: Store,
        data: &DataDir,
        name: ReplicaName,
        url: String,
    ) -> Result<Self, StartError> {
        let life = Life {
            name,
            home: data.home()?.to_string(),
            run: OpaqueId::random().to_string(),
            url,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        match store.write(Appear(life.clone())).await? {
            Appeared::Here => {}
            Appeared::Taken(other) => {
                return Err(StartError::NameTaken {
                    name: life.name,
                    url: other.life.url,
                    seen_ago: other.seen_ago,
                });
            }
        }
        Ok(Self {
            store,
            life,
            superseded: watch::Sender::new(false),
        })
    }

    pub(crate) fn name(&self) -> &ReplicaName {
        &self.life.name
    }

    /// Turns true when another process has taken the name.
    pub(crate) fn superseded(&self) -> watch::Receiver<bool> {
        self.superseded.subscribe()
    }

    /// Says again and again that this replica lives, and at the end that it leaves.
    pub(crate) async fn keep(self, drain: Drain) {
        loop {
            tokio::select! {
                biased;
                () = drain.stopping() => break,
                () = tokio::time::sleep(BEAT) => {}
            }
            let beat = Beat(self.life.clone());
            match self.store.write(beat).await {
                Ok(Beaten::Heard) => {}
                Ok(Beaten::Superseded) => {
                    let name = &self.life.name;
                    tracing::error!(%name, "another process has taken this replica's name: this one ends");
                    self.superseded.send_replace(true);
                    return;
                }
                Err(error) => tracing::warn!(%error, "tell the other replicas of this one"),
            }
        }
        tokio::select! {
            biased;
            () = drain.forced() => {}
            () = self.leave() => {}
        }
    }

    /// Gives the name back.
    pub(crate) async fn leave(&self) {
        if let Err(error) = self.store.write(Leave(self.life.clone())).await {
            tracing::debug!(%error, "tell the other replicas that this one ends");
        }
    }
}
