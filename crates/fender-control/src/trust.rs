//! Whom the mesh believes and whom not any more, as every sidecar is told it.
//!
//! One [`Announced`] for all of them: encoded once, numbered apart from revisions and Snapshots, and published to
//! whoever follows. What it says is decided elsewhere: the roots and the keys of tokens by the
//! authority, the deny list by revocations.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fender_api::convert::MAX_CRLS;
use fender_api::proto::control::v1 as proto;
use fender_identity::Trust;
use fender_runtime::clock::SharedClock;
use prost::Message as _;
use rustls::pki_types::UnixTime;
use tokio::sync::{Mutex, watch};

use crate::ca::{Authority, sha256};
use crate::store::{Store, StoreError, crls, revocations, trust};

/// A Trust with its number, as it is and as it travels.
#[derive(Debug)]
pub(crate) struct Announced {
    pub(crate) trust: Trust,
    pub(crate) encoded: Bytes,
}

pub(crate) struct Announcements {
    store: Store,
    authority: Arc<Authority>,
    clock: SharedClock,
    newest: watch::Sender<Arc<Announced>>,
    /// What is gathered first is published first.
    turn: Mutex<()>,
}

impl Announcements {
    pub(crate) async fn open(
        store: Store,
        authority: Arc<Authority>,
        clock: SharedClock,
        renewal_grace: Duration,
    ) -> Result<Self, StoreError> {
        let trust = gather(&store, &authority, clock.now(), renewal_grace).await?;
        let first = announced(&store, trust).await?;
        Ok(Self {
            store,
            authority,
            clock,
            newest: watch::Sender::new(Arc::new(first)),
            turn: Mutex::default(),
        })
    }

    /// The newest, and every later one.
    pub(crate) fn follow(&self) -> watch::Receiver<Arc<Announced>> {
        self.newest.subscribe()
    }

    /// Of the newest.
    pub(crate) fn version(&self) -> u64 {
        self.newest.borrow().trust.version
    }

    /// To be called whenever something of what is announced may have changed. When this returns, the streams know.
    pub(crate) async fn refresh(&self, renewal_grace: Duration) -> Result<(), StoreError> {
        let _turn = self.turn.lock().await;
        let now = self.clock.now();
        let trust = gather(&self.store, &self.authority, now, renewal_grace).await?;
        let next = announced(&self.store, trust).await?;
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

/// Before anything is announced, the authority heeds it.
async fn gather(
    store: &Store,
    authority: &Authority,
    now: UnixTime,
    renewal_grace: Duration,
) -> Result<Trust, StoreError> {
    let revocations = revocations::in_force(store.reads(), now, renewal_grace).await?;
    let denied = Arc::new(revocations::deny_list(
        revocations,
        authority.trust_domain(),
    ));
    authority.heed(Arc::clone(&denied));
    let lists = crls::all(store).await?.into_iter().map(|row| row.list);
    Ok(Trust {
        denied,
        crls: lists.take(MAX_CRLS).collect(),
        jwt: authority.jwt_bundles(),
        ..Arc::clone(&authority.state().bundles).into()
    })
}

/// The same as before keeps its number, also across restarts.
async fn announced(store: &Store, mut trust: Trust) -> Result<Announced, StoreError> {
    let digest = sha256(&proto::Trust::from(&trust).encode_to_vec());
    trust.version = store.write(trust::Number { digest }).await?;
    let encoded = proto::Trust::from(&trust).encode_to_vec().into();
    Ok(Announced { trust, encoded })
}
