//! Whom the mesh believes and whom not any more, as every sidecar is told it.
//!
//! One [`Announced`] for all of them: encoded once, numbered apart from revisions and Snapshots, and published to
//! whoever follows. What it says is decided elsewhere: the roots and the keys of tokens by the authority, the deny list by
//! revocations.
//!
//! It is gathered in the transaction that numbers it, and so after everything that was committed before: of two replicas
//! that announce at once, the one with the higher number knows at least what the other does.

use std::sync::Arc;

use bytes::Bytes;
use fender_api::convert::MAX_CRLS;
use fender_api::proto::control::v1 as proto;
use fender_config::Lifetimes;
use fender_identity::{Bundles, Trust};
use fender_runtime::clock::SharedClock;
use prost::Message as _;
use rustls::pki_types::UnixTime;
use tokio::sync::{Mutex, watch};

use crate::ca::{self, Authority, CaError, sha256};
use crate::store::authorities::{self, AuthorityRow};
use crate::store::jwt_keys::{self, JwtKeyRow};
use crate::store::revocations::{self, Revocation};
use crate::store::{Command, Connection, Store, StoreError, crls, trust};

/// A Trust with its number, as it is and as it travels.
#[derive(Debug)]
pub(crate) struct Announced {
    pub(crate) trust: Trust,
    pub(crate) encoded: Bytes,
    /// Of what travels: a sidecar that comes from another replica says what it has by this.
    pub(crate) sha256: [u8; 32],
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
        lifetimes: Lifetimes,
    ) -> Result<Self, CaError> {
        let first = announced(&store, &authority, lifetimes, clock.now()).await?;
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
    pub(crate) async fn refresh(&self, lifetimes: Lifetimes) -> Result<(), CaError> {
        let _turn = self.turn.lock().await;
        let now = self.clock.now();
        let next = announced(&self.store, &self.authority, lifetimes, now).await?;
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
async fn announced(
    store: &Store,
    authority: &Arc<Authority>,
    lifetimes: Lifetimes,
    now: UnixTime,
) -> Result<Announced, CaError> {
    let gather = Gather {
        authority: Arc::clone(authority),
        lifetimes,
        now,
    };
    let trust = store.write(gather).await??;
    authority.heed(Arc::clone(&trust.denied));
    let encoded = proto::Trust::from(&trust).encode_to_vec();
    Ok(Announced {
        trust,
        sha256: sha256(&encoded),
        encoded: encoded.into(),
    })
}

/// Reads all that is announced and numbers it. The same as before keeps its number, also across restarts.
struct Gather {
    authority: Arc<Authority>,
    lifetimes: Lifetimes,
    now: UnixTime,
}

impl Command for Gather {
    type Output = Result<Trust, CaError>;

    async fn run(&self, db: &mut Connection) -> Result<Self::Output, StoreError> {
        let authorities = authorities::seen_by(&mut *db).await?;
        let keys = jwt_keys::seen_by(&mut *db).await?;
        let lists = crls::seen_by(&mut *db).await?;
        let grace = self.lifetimes.renewal_grace;
        let revoked = revocations::in_force(&mut *db, self.now, grace).await?;
        let mut trust = match self.trust(&authorities, &keys, revoked) {
            Ok(trust) => trust,
            Err(error) => return Ok(Err(error)),
        };
        let lists = lists.into_iter().map(|row| row.list);
        trust.crls = lists.take(MAX_CRLS).collect();
        let digest = sha256(&proto::Trust::from(&trust).encode_to_vec());
        trust.version = trust::Number { digest }.run(db).await?;
        Ok(Ok(trust))
    }
}

impl Gather {
    fn trust(
        &self,
        authorities: &[AuthorityRow],
        keys: &[JwtKeyRow],
        revoked: Vec<Revocation>,
    ) -> Result<Trust, CaError> {
        let trust_domain = self.authority.trust_domain();
        let bundle = ca::bundle(authorities, trust_domain, self.now)?;
        Ok(Trust {
            denied: Arc::new(revocations::deny_list(revoked, trust_domain)),
            jwt: self
                .authority
                .jwt_bundles_of(keys, &self.lifetimes, self.now)?,
            ..Trust::from(Bundles::from(bundle))
        })
    }
}
