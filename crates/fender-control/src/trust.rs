//! Whom the mesh believes and whom not any more, as every sidecar is told it.
//!
//! One [`Announced`] for all of them: encoded once, numbered apart from revisions and Snapshots, and published to
//! whoever follows. What it says is decided elsewhere: the roots by the authority.

use std::sync::Arc;

use bytes::Bytes;
use fender_api::proto::control::v1 as proto;
use fender_identity::Trust;
use prost::Message as _;
use tokio::sync::{Mutex, watch};

use crate::ca::{Authority, sha256};
use crate::store::{Store, StoreError, trust};

/// A Trust with its number, as it is and as it travels.
#[derive(Debug)]
pub(crate) struct Announced {
    pub(crate) trust: Trust,
    pub(crate) encoded: Bytes,
}

pub(crate) struct Announcements {
    store: Store,
    authority: Arc<Authority>,
    newest: watch::Sender<Arc<Announced>>,
    /// What is gathered first is published first.
    turn: Mutex<()>,
}

impl Announcements {
    pub(crate) async fn open(store: Store, authority: Arc<Authority>) -> Result<Self, StoreError> {
        let first = announced(&store, gather(&authority)).await?;
        Ok(Self {
            store,
            authority,
            newest: watch::Sender::new(Arc::new(first)),
            turn: Mutex::default(),
        })
    }

    /// The newest, and every later one.
    pub(crate) fn follow(&self) -> watch::Receiver<Arc<Announced>> {
        self.newest.subscribe()
    }

    /// To be called whenever something of what is announced may have changed. When this returns, the streams know.
    pub(crate) async fn refresh(&self) -> Result<(), StoreError> {
        let _turn = self.turn.lock().await;
        let next = announced(&self.store, gather(&self.authority)).await?;
        self.newest.send_if_modified(|newest| {
            let news = newest.trust.version != next.trust.version;
            if news {
                tracing::info!(version = next.trust.version, "trust announced");
                *newest = Arc::new(next);
            }
            news
        });
        Ok(())
    }
}

fn gather(authority: &Authority) -> Trust {
    Trust::from(Arc::clone(&authority.state().bundles))
}

/// The same as before keeps its number, also across restarts.
async fn announced(store: &Store, mut trust: Trust) -> Result<Announced, StoreError> {
    let digest = sha256(&proto::Trust::from(&trust).encode_to_vec());
    trust.version = store.write(trust::Number { digest }).await?;
    let encoded = proto::Trust::from(&trust).encode_to_vec().into();
    Ok(Announced { trust, encoded })
}
